//! The control rings of one member: messages of a few bytes, each with its length before it, in a byte ring.

use std::collections::VecDeque;

use super::message::MESSAGE_BYTES;
use super::{BACKEND, CONTROL_AREA_BYTES, CONTROL_AREAS_AT, CONTROL_RING_BYTES, MEMBERS};
use crate::layout::{ConsumerWords, ProducerWords};
use crate::mem::Region;
use crate::ring::{Consumer, Corrupt, Producer, RxCursor, TxCursor};
use crate::sync::{Ordering, full_barrier};

/// Messages that wait with the writer before the reader is taken to be dead or hostile.
const BACKLOG_MAX: usize = 65_536;

/// In place of an incarnation: the writer is about to begin another.
const CHANGING: u32 = u32::MAX;

/// The consumer's words, then the producer's, then the data.
const PRODUCER: usize = 4096 - size_of::<ProducerWords>();
const DATA: usize = 4096;
const SPAN: usize = DATA + CONTROL_RING_BYTES;

/// Where the control area of a member begins; `None` for the backend and beyond the last.
pub const fn control_offset(member: u16) -> Option<usize> {
    if member == BACKEND || member >= MEMBERS {
        return None;
    }
    Some(CONTROL_AREAS_AT + (member as usize - 1) * CONTROL_AREA_BYTES)
}

/// Which of the two rings of a control area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the backend.
    Down,
    /// To the backend.
    Up,
}

/// What ends the service of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The words of a ring are impossible.
    #[error("control ring: {0}")]
    Corrupt(#[from] Corrupt),
    /// A length that no message has.
    #[error("control ring: message of {0} bytes")]
    Length(u32),
    /// The member does not read.
    #[error("control ring: {0} messages unread")]
    Behind(usize),
}

fn parts(
    region: &Region,
    member: u16,
    direction: Direction,
) -> Option<(
    &'static ConsumerWords,
    &'static ProducerWords,
    crate::mem::RingBytes,
)> {
    let half = match direction {
        Direction::Down => 0,
        Direction::Up => SPAN,
    };
    let at = control_offset(member)? + half;
    Some((
        region.get(at)?,
        region.get(at + PRODUCER)?,
        region.ring_bytes(at + DATA, CONTROL_RING_BYTES)?,
    ))
}

/// The reading side.
#[derive(Debug)]
pub struct ControlRing {
    consumer: Consumer,
    words: &'static ProducerWords,
    cursor: RxCursor,
    incarnation: u32,
    is_stale: bool,
}

impl ControlRing {
    /// Reads what `direction` of `member` brings. The area was zeroed before its writer came.
    pub fn new(region: &Region, member: u16, direction: Direction) -> Option<Self> {
        let (far, words, data) = parts(region, member, direction)?;
        Some(Self {
            consumer: Consumer::new(words, far, data),
            words,
            cursor: RxCursor::default(),
            incarnation: 0,
            is_stale: false,
        })
    }

    /// Reads what `direction` of `member` brings from the next incarnation on: what stands there was meant for
    /// somebody else.
    pub fn afresh(region: &Region, member: u16, direction: Direction) -> Option<Self> {
        let mut ring = Self::new(region, member, direction)?;
        ring.incarnation = ring.words.reserved.load(Ordering::Acquire);
        ring.is_stale = true;
        Some(ring)
    }

    /// Goes on where a reader before us has stopped.
    pub fn resumed(region: &Region, member: u16, direction: Direction) -> Option<Self> {
        let mut ring = Self::new(region, member, direction)?;
        let (far, words, _) = parts(region, member, direction)?;
        ring.incarnation = words.reserved.load(Ordering::Acquire);
        // Whatever stands there is held against the writer's position before anything is read.
        let head = far.head.load(Ordering::Acquire);
        ring.cursor = RxCursor { head, tail: head };
        Some(ring)
    }

    /// Copies the next message, if there is one, to the beginning of `buffer`; its length.
    ///
    /// # Errors
    /// [`Fault`]; the ring makes no sense any more.
    pub fn next(&mut self, buffer: &mut [u8; MESSAGE_BYTES]) -> Result<Option<usize>, Fault> {
        let incarnation = self.words.reserved.load(Ordering::Acquire);
        if incarnation == CHANGING {
            return Ok(None);
        }
        if incarnation != self.incarnation {
            self.incarnation = incarnation;
            self.is_stale = false;
            self.cursor = RxCursor::default();
            self.consumer.publish(&self.cursor);
        }
        if self.is_stale {
            return Ok(None);
        }
        if self.cursor.available() == 0 {
            match self.consumer.refresh(&mut self.cursor) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                // The writer begins anew.
                Err(_) if self.words.reserved.load(Ordering::Acquire) != incarnation => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut length = [0u8; 4];
        if self.consumer.read_slice(&mut self.cursor, &mut length)? != length.len() {
            return Err(Fault::Length(0));
        }
        let length = u32::from_ne_bytes(length);
        let wanted = usize::try_from(length)
            .ok()
            .and_then(|length| buffer.get_mut(..length))
            .filter(|wanted| !wanted.is_empty())
            .ok_or(Fault::Length(length))?;
        // Writers publish whole messages only.
        if self.consumer.read_slice(&mut self.cursor, wanted)? != wanted.len() {
            return Err(Fault::Length(length));
        }
        self.consumer.publish(&self.cursor);
        Ok(Some(wanted.len()))
    }
}

/// The writing side.
#[derive(Debug)]
pub struct Writer {
    producer: Producer,
    far: &'static ConsumerWords,
    cursor: TxCursor,
    backlog: VecDeque<Vec<u8>>,
    begun: bool,
}

impl Writer {
    /// Writes what `direction` of `member` brings from now on; whatever stands in the ring is void. Nothing is written
    /// before [`Writer::flush`] is called, so that the far side may be made ready first.
    pub fn new(region: &Region, member: u16, direction: Direction) -> Option<Self> {
        let (far, words, data) = parts(region, member, direction)?;
        Some(Self {
            producer: Producer::new(words, far, data),
            far,
            cursor: TxCursor::default(),
            backlog: VecDeque::new(),
            begun: false,
        })
    }

    /// A new incarnation of the ring: the reader forgets the one before.
    fn begin(&mut self) {
        let words = self.producer.words();
        let before = words.reserved.swap(CHANGING, Ordering::SeqCst);
        words.tail.store(0, Ordering::SeqCst);
        words.base.store(0, Ordering::SeqCst);
        self.far.head.store(0, Ordering::SeqCst);
        let next = before.wrapping_add(1);
        let next = if next == CHANGING { 1 } else { next };
        words.reserved.store(next, Ordering::SeqCst);
        self.begun = true;
    }

    /// Puts a message behind those that wait.
    ///
    /// # Errors
    /// [`Fault::Behind`]: too many do.
    pub fn push(&mut self, message: &[u8]) -> Result<(), Fault> {
        if self.backlog.len() >= BACKLOG_MAX {
            return Err(Fault::Behind(self.backlog.len()));
        }
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let mut whole = length.to_ne_bytes().to_vec();
        whole.extend_from_slice(message);
        self.backlog.push_back(whole);
        Ok(())
    }

    /// Writes what fits. True if there was something, so that the reader's doorbell is to be rung.
    pub fn flush(&mut self) -> bool {
        if !self.begun {
            self.begin();
        }
        let mut some = false;
        while let Some(message) = self.backlog.front() {
            let length = message.len() as u64;
            // A head that makes no sense is an earlier incarnation's, or a lie: no room.
            if self.producer.free(&self.cursor) < length
                && !self
                    .producer
                    .refresh(&mut self.cursor)
                    .is_ok_and(|free| free >= length)
            {
                break;
            }
            if self
                .producer
                .write_slice(&mut self.cursor, message)
                .is_err()
            {
                break;
            }
            self.producer.publish(&self.cursor, 0, 0);
            self.backlog.pop_front();
            some = true;
        }
        full_barrier();
        some
    }

    /// Whether messages wait for room.
    pub fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mem::HeapRegion;

    fn heap() -> HeapRegion {
        HeapRegion::new(CONTROL_AREAS_AT + 2 * CONTROL_AREA_BYTES)
    }

    fn all(ring: &mut ControlRing) -> Vec<Vec<u8>> {
        let mut buffer = [0; MESSAGE_BYTES];
        let mut found = Vec::new();
        while let Some(length) = ring.next(&mut buffer).expect("good words") {
            found.push(buffer[..length].to_vec());
        }
        found
    }

    #[test]
    fn messages_come_whole_and_in_order_however_many_wait() {
        let heap = heap();
        let mut writer = Writer::new(&heap.region(), 2, Direction::Up).unwrap();
        let mut ring = ControlRing::new(&heap.region(), 2, Direction::Up).unwrap();
        let sent: Vec<Vec<u8>> = (0..=u8::MAX)
            .cycle()
            .zip(0..4_000)
            .map(|(byte, i)| vec![byte; 1 + i % (MESSAGE_BYTES - 1)])
            .collect();
        for message in &sent {
            writer.push(message).unwrap();
        }
        let mut got = Vec::new();
        while got.len() < sent.len() {
            assert!(writer.flush());
            got.extend(all(&mut ring));
        }
        assert_eq!(got, sent);
        assert!(!writer.is_behind() && !writer.flush());
    }

    #[test]
    fn the_directions_and_members_do_not_touch_each_other() {
        let heap = heap();
        let region = heap.region();
        let mut rings = Vec::new();
        for member in [1, 2] {
            for direction in [Direction::Down, Direction::Up] {
                let mut writer = Writer::new(&region, member, direction).unwrap();
                let name = format!("{member} {direction:?}").into_bytes();
                writer.push(&name).unwrap();
                writer.flush();
                rings.push((ControlRing::new(&region, member, direction).unwrap(), name));
            }
        }
        for (ring, name) in &mut rings {
            assert_eq!(all(ring), core::slice::from_ref(name));
        }
        assert!(ControlRing::new(&region, 0, Direction::Up).is_none());
        assert!(ControlRing::new(&region, MEMBERS, Direction::Up).is_none());
    }

    #[test]
    fn a_new_incarnation_voids_what_was_left() {
        let heap = heap();
        let mut ring = ControlRing::new(&heap.region(), 1, Direction::Down).unwrap();
        for round in 0..3u8 {
            let mut writer = Writer::new(&heap.region(), 1, Direction::Down).unwrap();
            writer.push(&[round; 5]).unwrap();
            writer.push(&[round; 6]).unwrap();
            writer.flush();
            let mut buffer = [0; MESSAGE_BYTES];
            assert_eq!(ring.next(&mut buffer), Ok(Some(5)));
            assert_eq!(buffer[..5], [round; 5]);
        }
    }

    #[test]
    fn a_reader_goes_on_where_one_before_it_stopped() {
        let heap = heap();
        let region = heap.region();
        let mut ring = ControlRing::new(&region, 1, Direction::Up).unwrap();
        let mut writer = Writer::new(&region, 1, Direction::Up).unwrap();
        for byte in 0..10 {
            writer.push(&[byte; 9]).unwrap();
        }
        writer.flush();
        let mut buffer = [0; MESSAGE_BYTES];
        for _ in 0..4 {
            assert_eq!(ring.next(&mut buffer), Ok(Some(9)));
        }
        let mut next = ControlRing::resumed(&region, 1, Direction::Up).unwrap();
        assert_eq!(all(&mut next).len(), 6);
        writer.push(&[77]).unwrap();
        writer.flush();
        assert_eq!(all(&mut next), [vec![77]]);
    }

    #[test]
    fn what_was_said_to_an_earlier_reader_is_not_read() {
        let heap = heap();
        let region = heap.region();
        let mut writer = Writer::new(&region, 1, Direction::Down).unwrap();
        writer.push(&[1]).unwrap();
        writer.flush();
        let mut ring = ControlRing::afresh(&region, 1, Direction::Down).unwrap();
        assert!(all(&mut ring).is_empty());
        let mut writer = Writer::new(&region, 1, Direction::Down).unwrap();
        writer.push(&[2]).unwrap();
        writer.flush();
        assert_eq!(all(&mut ring), [vec![2]]);
    }

    #[test]
    fn garbage_is_a_fault_and_not_a_panic() {
        let heap = heap();
        let mut buffer = [0; MESSAGE_BYTES];
        let (_, words, _) = parts(&heap.region(), 1, Direction::Up).unwrap();
        let mut ring = ControlRing::new(&heap.region(), 1, Direction::Up).unwrap();
        words.tail.store(1 << 40, Ordering::SeqCst);
        assert!(matches!(ring.next(&mut buffer), Err(Fault::Corrupt(_))));
        let mut ring = ControlRing::new(&heap.region(), 1, Direction::Up).unwrap();
        words.tail.store(100, Ordering::SeqCst);
        assert_eq!(ring.next(&mut buffer), Err(Fault::Length(0)));
        let mut ring = ControlRing::new(&heap.region(), 1, Direction::Up).unwrap();
        words.tail.store(2, Ordering::SeqCst);
        assert_eq!(ring.next(&mut buffer), Err(Fault::Length(0)));
    }

    #[test]
    fn a_reader_that_does_not_read_has_an_end() {
        let heap = heap();
        let mut writer = Writer::new(&heap.region(), 1, Direction::Down).unwrap();
        for _ in 0..BACKLOG_MAX {
            writer.push(&[1]).unwrap();
        }
        assert_eq!(writer.push(&[1]), Err(Fault::Behind(BACKLOG_MAX)));
    }
}
