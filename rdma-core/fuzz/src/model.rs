//! The ring against a queue: one list of operations for the property tests and the fuzzer.

#![expect(
    unsafe_code,
    reason = "bytes are put at the ring's raw address, as the kernel would"
)]

use std::collections::VecDeque;

use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::layout::{ConnView, End, RING_LOG2_MIN, conn_bytes};
use rdma_core::mem::HeapRegion;
use rdma_core::ring::{Consumer, Corrupt, Producer, RxCursor, TxCursor};
use rdma_core::sync::{AtomicU32, AtomicU64, Ordering};

/// Bytes that the ring under test holds.
pub(crate) const CAPACITY: usize = 1 << RING_LOG2_MIN;

/// What can happen to a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// Producer: writes so many bytes, if they fit.
    Write(usize),
    /// Producer: has so many bytes put there by somebody else (sendfile).
    Fill(usize),
    /// Producer: makes them visible.
    Publish,
    /// Producer: looks at the head.
    RefreshProducer,
    /// Producer: learns the head from elsewhere.
    Hint,
    /// Consumer: reads so many bytes, if they are there.
    Read(usize),
    /// Consumer: looks at bytes so far behind the head.
    Peek(usize, usize),
    /// Consumer: skips bytes that it knows of.
    Discard(usize),
    /// Consumer: looks at the tail.
    RefreshConsumer,
    /// Consumer: gives the space back.
    Release,
    /// A hostile end: sets the word with this number.
    Poke(u8, u64),
    /// A hostile end: moves the word with this number a little.
    Nudge(u8, i32),
}

/// A ring between two ends, and what it should hold.
#[derive(Debug)]
pub(crate) struct Model {
    /// The producer's view.
    near: ConnView,
    /// The consumer's view.
    far: ConnView,
    send: TxCursor,
    recv: RxCursor,
    /// Written and not yet read.
    queue: VecDeque<u8>,
    next: u8,
    published: u64,
    released: u64,
    /// Some word was written by nobody's rules: only safety is left to check.
    hostile: bool,
    /// Last: the views point into it.
    _heap: HeapRegion,
}

impl Model {
    /// An empty ring.
    pub(crate) fn new() -> Self {
        let heap = HeapRegion::new(conn_bytes(CAPACITY));
        let view = |end| ConnView::new(&heap.region(), end, RING_LOG2_MIN).expect("it fits");
        Self {
            near: view(End::Zero),
            far: view(End::One),
            send: TxCursor::default(),
            recv: RxCursor::default(),
            queue: VecDeque::new(),
            next: 0,
            published: 0,
            released: 0,
            hostile: false,
            _heap: heap,
        }
    }

    /// Does it, and checks what can be checked.
    ///
    /// # Panics
    /// If the ring is wrong.
    pub(crate) fn apply(&mut self, operation: Operation) {
        let before = (self.send.tail, self.recv.head);
        if self.perform(operation).is_err() {
            assert!(self.hostile, "{operation:?} found a correct end corrupt");
            assert_eq!(before, (self.send.tail, self.recv.head), "moved");
        }
        assert!(self.recv.head <= self.recv.tail);
        assert!(self.recv.available() <= CAPACITY as u64);
        assert!(self.send.head <= self.send.tail && self.send.base <= self.send.tail);
        assert!(self.send.used() <= CAPACITY as u64);
        if self.hostile {
            self.look_at_everything();
        } else {
            assert_eq!(self.send.tail - self.recv.head, self.queue.len() as u64);
        }
    }

    fn perform(&mut self, operation: Operation) -> Result<(), Corrupt> {
        let (producer, consumer) = (Producer::of(&self.near), Consumer::of(&self.far));
        match operation {
            Operation::Write(len) => {
                let bytes = self.bytes(len);
                let space = self.space();
                let put = producer.write_slice(&mut self.send, &bytes)?;
                self.check(put, len.min(space));
                self.written(&bytes[..put]);
            }
            Operation::Fill(len) => {
                let (at, run) = producer.raw_run(&mut self.send, len);
                assert!(run <= len && run as u64 <= producer.free(&self.send));
                let bytes = self.bytes(run);
                // SAFETY: the run is free memory of the ring, and `bytes` is as long.
                unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), run) };
                producer.advance(&mut self.send, run);
                self.written(&bytes);
            }
            Operation::Publish => {
                producer.publish(&self.send, 0, 1);
                self.published = self.send.tail;
            }
            Operation::RefreshProducer => {
                let free = producer.refresh(&mut self.send)?;
                self.check(free, self.space() as u64);
            }
            Operation::Hint => self.send.hint(consumer.published()),
            Operation::Read(len) => {
                let got = framed(len, |out| consumer.read_slice(&mut self.recv, out))?;
                self.check(got.len(), len.min(self.visible() + got.len()));
                self.compare(0, &got);
                self.queue.drain(..got.len().min(self.queue.len()));
            }
            Operation::Peek(skip, len) => {
                let skipped = skip as u64;
                let got = framed(len, |out| consumer.peek_slice(&mut self.recv, skipped, out))?;
                self.check(got.len(), len.min(self.visible().saturating_sub(skip)));
                self.compare(skip, &got);
            }
            Operation::Discard(len) => {
                let known = usize::try_from(self.recv.available()).expect("at most a ring");
                let (at, run) = consumer.raw_run(&self.recv, len)?;
                assert!(run <= len.min(known), "a run of what is there");
                // SAFETY: the run lies in the ring, which nobody writes meanwhile.
                let bytes: Vec<u8> = (0..run).map(|i| unsafe { at.add(i).read() }).collect();
                self.compare(0, &bytes);
                consumer.discard(&mut self.recv, run);
                self.queue.drain(..run.min(self.queue.len()));
            }
            Operation::RefreshConsumer => {
                let available = consumer.refresh(&mut self.recv)?;
                self.check(available, self.visible() as u64);
                assert!(self.hostile || !consumer.moved(&self.recv));
            }
            Operation::Release => {
                consumer.publish(&self.recv);
                self.released = self.recv.head;
            }
            Operation::Poke(number, value) => {
                self.hostile = true;
                self.word(number).set(value);
            }
            Operation::Nudge(number, by) => {
                self.hostile = true;
                let word = self.word(number);
                word.set(word.now().wrapping_add_signed(i64::from(by)));
            }
        }
        Ok(())
    }

    /// Free bytes, after a look at the head.
    fn space(&self) -> usize {
        CAPACITY.saturating_sub(self.queue_from(self.released))
    }

    /// Bytes that the consumer can find.
    fn visible(&self) -> usize {
        usize::try_from(self.published.saturating_sub(self.recv.head)).unwrap_or(usize::MAX)
    }

    fn queue_from(&self, position: u64) -> usize {
        usize::try_from(self.send.tail - position.min(self.send.tail)).unwrap_or(usize::MAX)
    }

    /// The next `len` bytes of the stream, which has a period that no power of two divides.
    fn bytes(&self, len: usize) -> Vec<u8> {
        let period: Vec<u8> = (self.next..251).chain(0..self.next).collect();
        let mut bytes = period.repeat(len / period.len() + 1);
        bytes.truncate(len);
        bytes
    }

    fn written(&mut self, bytes: &[u8]) {
        self.queue.extend(bytes);
        self.next = bytes.last().map_or(self.next, |last| (last + 1) % 251);
    }

    fn check<T: PartialEq + core::fmt::Debug>(&self, is: T, should: T) {
        assert!(self.hostile || is == should, "{is:?} instead of {should:?}");
    }

    fn compare(&mut self, skip: usize, got: &[u8]) {
        if !self.hostile {
            let queue = self.queue.make_contiguous();
            let right = &queue[skip.min(queue.len())..];
            assert!(right.starts_with(got), "wrong bytes");
        }
    }

    /// Every answer that an end derives from what the other wrote.
    fn look_at_everything(&self) {
        for view in [&self.near, &self.far] {
            let state = &view.theirs.state;
            let _ = (
                state.is_armed(),
                state.accept(),
                state.returned_at(),
                state.ended_at(),
            );
            let _ = (state.is_reader_gone(), state.broken());
            let who = WaitRef {
                process: 7,
                context: 7,
                bit: Some(7),
            };
            for what in [WaitFor::Data, WaitFor::Space] {
                view.theirs.waits.each(what, |who| {
                    assert!(who.process <= WaitRef::PROCESS_MAX);
                });
                if view.mine.waits.enter(what, who) {
                    let _ = view.mine.waits.any(what);
                    assert!(view.mine.waits.leave(what, who));
                }
            }
        }
    }

    fn word(&self, number: u8) -> Word {
        let producer = self.near.tx_words;
        let mut narrow = vec![&producer.cpu];
        let mut wide = vec![&producer.tail, &producer.base, &producer.ack];
        for end in [self.near.mine, self.far.mine] {
            wide.extend([&end.consumer.head, &end.state.switch_at, &end.state.end_at]);
            wide.extend(end.waits.rx.iter().chain(&end.waits.tx));
            narrow.extend([
                &end.state.armed,
                &end.state.route,
                &end.state.ended,
                &end.state.reader_gone,
                &end.state.broken,
                &end.waits.rx_waiters,
                &end.waits.tx_waiters,
            ]);
        }
        let number = usize::from(number) % (wide.len() + narrow.len());
        match wide.get(number) {
            Some(word) => Word::Wide(word),
            None => Word::Narrow(narrow[number - wide.len()]),
        }
    }
}

/// A word of a connection's memory.
enum Word {
    Wide(&'static AtomicU64),
    Narrow(&'static AtomicU32),
}

impl Word {
    fn now(&self) -> u64 {
        match self {
            Self::Wide(word) => word.load(Ordering::Relaxed),
            Self::Narrow(word) => u64::from(word.load(Ordering::Relaxed)),
        }
    }

    fn set(&self, value: u64) {
        let low = u32::try_from(value & 0xffff_ffff).expect("32 bits");
        match self {
            Self::Wide(word) => word.store(value, Ordering::Relaxed),
            Self::Narrow(word) => word.store(low, Ordering::Relaxed),
        }
    }
}

/// Has `read` fill a buffer of `len` bytes, and sees that nothing around it is touched.
fn framed(
    len: usize,
    read: impl FnOnce(&mut [u8]) -> Result<usize, Corrupt>,
) -> Result<Vec<u8>, Corrupt> {
    const FRAME: usize = 32;
    let mut buffer = vec![0xa5; len + 2 * FRAME];
    let got = read(&mut buffer[FRAME..FRAME + len])?;
    assert!(got <= len);
    assert_eq!(buffer[..FRAME], [0xa5; FRAME], "wrote before the buffer");
    assert_eq!(buffer[FRAME + len..], [0xa5; FRAME], "wrote behind it");
    Ok(buffer[FRAME..FRAME + got].to_vec())
}
