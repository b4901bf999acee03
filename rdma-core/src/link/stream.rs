//! The streams of a link: what each end may send, what has arrived, what must be told.

use core::hash::{BuildHasherDefault, Hasher};
use std::collections::HashMap;

use super::reassembly::RangeSet;
use super::sent::StreamRef;
use super::turns::Turn;
use super::{Endpoint, FarEnd, Positions};
use crate::wire::State;

/// Most ranges beyond the edge of a stream. A frame that would need one more is not acknowledged, and
/// comes again.
pub(super) const BEYOND_MAX: usize = 512;

/// What a slot is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Life {
    /// Nothing.
    Free,
    /// The far end may write before this end has opened it: such frames must come again.
    Expected,
    /// A stream.
    Open,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) generation: u32,
    pub(super) life: Life,
    pub(super) endpoint: u32,
    pub(super) far: FarEnd,
    pub(super) own_rkey: u32,
    pub(super) turn: Turn,

    /// The local program has written up to here.
    pub(super) produced: u64,
    /// Sent at least once up to here.
    pub(super) next: u64,
    /// The far program has read up to here.
    pub(super) far_head: u64,
    /// To be sent again.
    pub(super) lost: RangeSet,
    pub(super) stopped: bool,
    /// Known to the scheduler as ready.
    pub(super) ready: bool,
    /// Bytes sent since it last had nothing to send.
    pub(super) run: u64,
    /// What it had left when it was last ready.
    pub(super) credit: i64,

    /// All has arrived up to here.
    pub(super) edge: u64,
    /// What has arrived beyond.
    pub(super) beyond: RangeSet,
    /// The local program has read up to here.
    pub(super) head: u64,
    /// The far end was told that far.
    pub(super) reported: u64,
    pub(super) consumed_queued: bool,

    pub(super) state: State,
    pub(super) state_sequence: u32,
    /// The far end has acknowledged this one.
    pub(super) state_known: u32,
    pub(super) state_queued: bool,
    pub(super) far_state: State,
    pub(super) far_sequence: u32,

    /// An event waits to be taken: bytes arrived, the far program read, its state changed.
    pub(super) tell_arrived: bool,
    pub(super) tell_consumed: bool,
    pub(super) tell_state: bool,
}

impl Stream {
    fn free() -> Self {
        Self {
            generation: 0,
            life: Life::Free,
            endpoint: 0,
            far: FarEnd {
                endpoint: 0,
                rkey: 0,
                capacity: 0,
            },
            own_rkey: 0,
            turn: Turn { domain: 0, slot: 0 },
            produced: 0,
            next: 0,
            far_head: 0,
            lost: RangeSet::default(),
            stopped: false,
            ready: false,
            run: 0,
            credit: 1,
            edge: 0,
            beyond: RangeSet::default(),
            head: 0,
            reported: 0,
            consumed_queued: false,
            state: State::default(),
            state_sequence: 0,
            state_known: 0,
            state_queued: false,
            far_state: State::default(),
            far_sequence: 0,
            tell_arrived: false,
            tell_consumed: false,
            tell_state: false,
        }
    }

    /// Makes a new stream of the slot; its memory is used again.
    fn renew(&mut self, life: Life, endpoint: u32) {
        let (mut lost, mut beyond) = (
            core::mem::take(&mut self.lost),
            core::mem::take(&mut self.beyond),
        );
        lost.clear();
        beyond.clear();
        *self = Self {
            generation: self.generation.wrapping_add(1),
            life,
            endpoint,
            lost,
            beyond,
            ..Self::free()
        };
    }

    pub(super) fn start(&mut self, far: FarEnd, own_rkey: u32, turn: Turn, at: Positions) {
        self.life = Life::Open;
        self.far = far;
        self.own_rkey = own_rkey;
        self.turn = turn;
        self.produced = at.sent;
        self.next = at.sent;
        self.far_head = at.far_consumed.min(at.sent);
        self.edge = at.received;
        self.head = at.consumed.min(at.received);
        self.reported = self.head;
    }

    /// Whether the program has nothing more, be there room or not.
    #[inline]
    pub(super) const fn has_sent_all(&self) -> bool {
        self.next == self.produced
    }

    /// What should be sent next: first what was lost, then what is new and fits the far ring.
    #[inline]
    pub(super) fn sendable(&self) -> Option<(u64, u64)> {
        if self.stopped {
            return None;
        }
        if let Some((start, end)) = self.lost.first() {
            return Some((start, end - start));
        }
        let limit = self
            .produced
            .min(self.far_head.saturating_add(self.far.capacity));
        (self.next < limit).then(|| (self.next, limit - self.next))
    }

    /// `length` bytes of what [`Self::sendable`] said are sent. Tells whether they were sent before.
    #[inline]
    pub(super) fn advance(&mut self, offset: u64, length: u64) -> bool {
        let end = offset + length;
        let again = !self.lost.is_empty();
        if again {
            self.lost.remove_below(end);
        } else {
            self.next = end;
        }
        again
    }

    /// Bytes are to be sent once more, unless the far program has read them already (then they may no
    /// longer be in the ring).
    pub(super) fn resend(&mut self, offset: u64, length: u64) {
        if !self.stopped {
            self.lost.insert(offset.max(self.far_head), offset + length);
        }
    }

    /// Bytes `offset..end`, beyond the edge, are in place now. Tells whether the edge moved.
    #[inline]
    pub(super) fn arrived(&mut self, offset: u64, end: u64) -> bool {
        if offset > self.edge {
            self.beyond.insert(offset, end);
            return false;
        }
        self.edge = end;
        while let Some(end) = self.beyond.take_touching(self.edge) {
            self.edge = self.edge.max(end);
        }
        true
    }

    /// The far program has read up to `head`. False: it cannot have.
    pub(super) fn on_consumed(&mut self, head: u64) -> bool {
        if head > self.next {
            return false;
        }
        if head > self.far_head {
            self.far_head = head;
            self.lost.remove_below(head);
        }
        true
    }
}

/// A hash for numbers that this side has chosen itself: one multiplication.
#[derive(Debug, Default)]
pub(super) struct EndpointHasher(u64);

impl Hasher for EndpointHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

/// All streams of a link.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    free: Vec<u32>,
    index: HashMap<u32, u32, BuildHasherDefault<EndpointHasher>>,
    /// The last answer of [`Self::find`].
    recent: Option<(u32, u32)>,
    open: usize,
}

impl Streams {
    /// Open streams.
    #[inline]
    pub(super) const fn open(&self) -> usize {
        self.open
    }

    /// The slot of an endpoint.
    #[inline]
    pub(super) fn find(&mut self, endpoint: u32) -> Option<u32> {
        match self.recent {
            Some((known, slot)) if known == endpoint => Some(slot),
            _ => {
                let slot = *self.index.get(&endpoint)?;
                self.recent = Some((endpoint, slot));
                Some(slot)
            }
        }
    }

    /// The stream in a slot.
    #[inline]
    pub(super) fn at(&mut self, slot: u32) -> Option<&mut Stream> {
        self.slots.get_mut(slot as usize)
    }

    /// An open stream, by its endpoint.
    #[inline]
    pub(super) fn of(&mut self, endpoint: Endpoint) -> Option<(u32, &mut Stream)> {
        let slot = self.find(endpoint.0)?;
        let stream = self.slots.get_mut(slot as usize)?;
        (stream.life == Life::Open).then_some((slot, stream))
    }

    /// An open stream, if it is still the one that was meant.
    #[inline]
    pub(super) fn get(&mut self, meant: StreamRef) -> Option<&mut Stream> {
        self.slots
            .get_mut(meant.slot as usize)
            .filter(|stream| stream.generation == meant.generation && stream.life == Life::Open)
    }

    /// Gives the endpoint a slot, in which `life` is not `Free`. `None`: it is open already.
    pub(super) fn occupy(&mut self, endpoint: Endpoint, life: Life) -> Option<u32> {
        if let Some(slot) = self.find(endpoint.0) {
            let stream = &mut self.slots[slot as usize];
            if stream.life == Life::Open {
                return None;
            }
            stream.life = life;
            self.open += usize::from(life == Life::Open);
            return Some(slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Stream::free());
                slot
            }
        };
        self.slots[slot as usize].renew(life, endpoint.0);
        self.index.insert(endpoint.0, slot);
        self.open += usize::from(life == Life::Open);
        Some(slot)
    }

    /// Frees the slot of an endpoint.
    pub(super) fn release(&mut self, endpoint: Endpoint) {
        let Some(slot) = self.index.remove(&endpoint.0) else {
            return;
        };
        let stream = &mut self.slots[slot as usize];
        self.open -= usize::from(stream.life == Life::Open);
        stream.renew(Life::Free, 0);
        self.free.push(slot);
        self.recent = None;
    }

    /// Frees all.
    pub(super) fn clear(&mut self) {
        self.recent = None;
        self.open = 0;
        self.index.clear();
        self.free.clear();
        for (slot, stream) in (0u32..).zip(&mut self.slots) {
            stream.renew(Life::Free, 0);
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(streams: &mut Streams, endpoint: u32) -> u32 {
        let slot = streams.occupy(Endpoint(endpoint), Life::Open).unwrap();
        let far = FarEnd {
            endpoint: 1,
            rkey: 2,
            capacity: 100,
        };
        let turn = Turn { domain: 0, slot };
        let at = Positions {
            sent: 1000,
            far_consumed: 1000,
            received: 500,
            consumed: 500,
        };
        streams.at(slot).unwrap().start(far, 3, turn, at);
        slot
    }

    #[test]
    fn sends_what_fits_and_first_what_was_lost() {
        let mut streams = Streams::default();
        let slot = open(&mut streams, 7);
        let stream = streams.at(slot).unwrap();
        assert_eq!(stream.sendable(), None);
        stream.produced = 1500;
        assert_eq!(stream.sendable(), Some((1000, 100)));
        assert!(!stream.advance(1000, 60));
        assert_eq!(stream.sendable(), Some((1060, 40)));
        stream.resend(1010, 20);
        stream.resend(1020, 30);
        assert_eq!(stream.sendable(), Some((1010, 40)));
        assert!(stream.on_consumed(1030));
        assert_eq!(stream.sendable(), Some((1030, 20)));
        assert!(stream.advance(1030, 20));
        assert_eq!(stream.sendable(), Some((1060, 70)));
        assert!(!stream.on_consumed(1061), "not even sent");
        stream.stopped = true;
        stream.resend(1050, 5);
        assert_eq!(stream.sendable(), None);
    }

    #[test]
    fn the_edge_moves_when_the_gap_is_filled() {
        let mut streams = Streams::default();
        let slot = open(&mut streams, 7);
        let stream = streams.at(slot).unwrap();
        assert!(!stream.arrived(510, 520));
        assert!(!stream.arrived(530, 540));
        assert!(stream.arrived(500, 512));
        assert_eq!(stream.edge, 520);
        assert!(stream.arrived(520, 530));
        assert_eq!(stream.edge, 540);
        assert!(stream.beyond.is_empty());
    }

    #[test]
    fn slots_are_used_again_but_not_mistaken() {
        let mut streams = Streams::default();
        let slot = open(&mut streams, 7);
        let meant = StreamRef {
            slot,
            generation: streams.at(slot).unwrap().generation,
        };
        assert!(streams.get(meant).is_some());
        assert_eq!(streams.occupy(Endpoint(7), Life::Open), None);
        streams.release(Endpoint(7));
        assert!(streams.find(7).is_none() && streams.get(meant).is_none());
        assert_eq!(open(&mut streams, 8), slot);
        assert!(streams.get(meant).is_none());
        assert_eq!(streams.occupy(Endpoint(9), Life::Expected), Some(1));
        assert!(streams.of(Endpoint(9)).is_none());
        assert_eq!(streams.occupy(Endpoint(9), Life::Open), Some(1));
        assert_eq!(streams.open(), 2);
        streams.clear();
        assert_eq!((streams.open(), streams.find(8)), (0, None));
    }
}
