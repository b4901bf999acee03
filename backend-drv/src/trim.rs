//! Gives back the memory of rings that a burst has filled, and that are empty by now.
//!
//! Work for [`crate::workers`]: punching a hole waits for whoever writes to that file. What is given back, and when
//! that may be done, says [`rdma_core::trim`].
//!
//! A byte that is written to a page of which a hole is made a moment later would be lost. So the hole is made under
//! the lock by which the program sends, in pieces that take some 60 microseconds each, and what the lock
//! protects is looked at anew for each piece. A program takes over the lock of a daemon that has died, which it knows
//! by the end of its control socket: that stays open until the hole is made. Where the daemon itself fills the ring
//! (the connection is relayed), the relay does not do so meanwhile.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rdma_core::layout::End;
use rdma_core::trim;

use crate::carving::Place;
use crate::direction::take;
use crate::shared::ConnectionArena;
use crate::withdrawal::Seat;

/// Bytes given back under the lock at once.
const PIECE: u64 = 256 * 1024;

/// Whose ring is to be trimmed.
#[derive(Clone, Debug)]
pub struct Trim {
    /// The memory of the connection.
    pub arena: Arc<ConnectionArena>,
    /// Where.
    pub place: Place,
    /// The end that sends by the ring.
    pub end: End,
    /// That end's program; `None`: it is the relay, which waits.
    pub sender: Option<Sender>,
}

/// A program that sends.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Its slot, in which the lock is.
    pub seat: Seat,
    /// Its control socket, which it must not see closed while the daemon has the lock.
    pub control: Arc<OwnedFd>,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trimmed {
    /// There is nothing more to give back.
    Done {
        /// How far the stream was read by then.
        read: u64,
        /// There was something.
        gave: bool,
    },
    /// Something lies in the ring, or somebody is at it.
    Busy,
}

impl Trim {
    /// Does it.
    pub fn perform(&self) -> Trimmed {
        match self.try_perform() {
            Ok(result) => result,
            Err(error) => {
                tracing::debug!(%error, arena = %self.place.arena, "nothing given back");
                Trimmed::Busy
            }
        }
    }

    fn try_perform(&self) -> io::Result<Trimmed> {
        let ring = (self.place.offset, self.place.ring_log2, self.end);
        let Some(read) = self.arena.consumed(self.place.offset, self.end.far()) else {
            return Ok(Trimmed::Busy);
        };
        let pieces = (1u64 << self.place.ring_log2) / PIECE + 2;
        for piece in 0..pieces {
            // Outside of the lock: whoever keeps the file busy holds up this thread alone.
            let Some(from) = self.arena.first_spare(ring)? else {
                let gave = piece > 0;
                return Ok(Trimmed::Done { read, gave });
            };
            if !self.give_back(ring, from)? {
                return Ok(Trimmed::Busy);
            }
        }
        // It was filled and emptied meanwhile.
        Ok(Trimmed::Busy)
    }

    /// Gives back one piece. False: not now.
    fn give_back(&self, ring: (u64, u32, End), from: u64) -> io::Result<bool> {
        let (offset, ring_log2, end) = ring;
        let read = || self.arena.consumed(offset, end.far());
        let Some(sender) = &self.sender else {
            // The relay has looked, and knows of bytes that nobody has been shown yet.
            if self.arena.published(offset, ring_log2, end) != read() {
                return Ok(false);
            }
            self.arena.give_back(ring, from, PIECE)?;
            return Ok(true);
        };
        let Some(slot) = sender.seat.look() else {
            return Ok(false);
        };
        let Some(_held) = take(&slot.tx.lock) else {
            return Ok(false);
        };
        let is_there = sender.seat.look().is_some();
        if !is_there || !read().is_some_and(|at| trim::settle(&slot.tx, at)) {
            return Ok(false);
        }
        self.arena.give_back(ring, from, PIECE)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use rdma_core::layout::conn_bytes;
    use rdma_core::ring::{Consumer, Producer, RxCursor, TxCursor};
    use rdma_core::slot::{ARENA_BYTES, TxState};
    use rustix::fs::fstat;

    use super::*;
    use crate::ids::{ArenaId, Process};
    use crate::ledger::ProgramRecord;
    use crate::shared::{SlotArena, sealed_memory};

    const LOG2: u32 = 22;
    const SLOT: u32 = 3;

    /// A ring that end 1 sends by.
    struct Stream {
        trim: Trim,
        tx: TxCursor,
        rx: RxCursor,
    }

    impl Stream {
        fn new(sender: Option<Sender>) -> Self {
            let bytes = conn_bytes(1 << LOG2) as u64;
            let arena = ConnectionArena::create(3 * bytes).unwrap();
            let place = Place {
                arena: ArenaId(1),
                // Neither the first nor the last.
                offset: bytes,
                ring_log2: LOG2,
                arena_bytes: 3 * bytes,
                fresh: true,
            };
            let trim = Trim {
                arena: Arc::new(arena),
                place,
                end: End::One,
                sender,
            };
            let (tx, rx) = (TxCursor::default(), RxCursor::default());
            Self { trim, tx, rx }
        }

        fn send(&mut self, bytes: &[u8]) {
            let (place, tx) = (self.trim.place, &mut self.tx);
            let at = (place.offset, place.ring_log2, self.trim.end);
            let sent = self.trim.arena.hold(at, |view| {
                let ring = Producer::of(&view);
                assert_eq!(ring.write_slice(tx, bytes), Ok(bytes.len()));
                ring.publish(tx, 0, 0);
                Some(())
            });
            assert!(sent.is_some());
        }

        fn receive(&mut self, len: usize) -> Vec<u8> {
            let (place, rx) = (self.trim.place, &mut self.rx);
            let at = (place.offset, place.ring_log2, self.trim.end.far());
            let mut bytes = vec![0; len];
            let got = self.trim.arena.hold(at, |view| {
                let ring = Consumer::of(&view);
                assert_eq!(ring.read_slice(rx, &mut bytes), Ok(len));
                ring.publish(rx);
                Some(())
            });
            assert!(got.is_some());
            bytes
        }

        fn touched(&self) -> u64 {
            let blocks = fstat(self.trim.arena.memory()).unwrap().st_blocks;
            u64::try_from(blocks).unwrap() * 512
        }
    }

    fn burst(seed: u8) -> Vec<u8> {
        let bytes = (0..3usize << 20).map(|at| (at >> 8).to_le_bytes()[0] ^ seed);
        bytes.collect()
    }

    /// The page of the words of both ends, and the beginning of the ring.
    const KEPT: u64 = 4096 + trim::KEPT_BYTES as u64;

    fn sender() -> Sender {
        let slots = sealed_memory("test", ARENA_BYTES as u64).unwrap();
        let program = ProgramRecord {
            process: Process(1),
            pid: 1,
            uid: 0,
            netns: 0,
            session: 0,
            contexts: AtomicU32::new(0),
            slots: SlotArena::new(slots).unwrap(),
        };
        Sender {
            seat: Seat {
                program: Arc::new(program),
                slot: SLOT,
                generation: 0,
            },
            control: Arc::new(std::fs::File::open("/dev/null").unwrap().into()),
        }
    }

    #[test]
    fn what_was_read_is_given_back_and_the_rest_is_as_it_was() {
        let mut stream = Stream::new(None);
        for seed in 0..3 {
            let bytes = burst(seed);
            stream.send(&bytes);
            assert!(stream.touched() >= bytes.len() as u64);
            let (most, last) = bytes.split_at(bytes.len() - 1);
            assert_eq!(stream.receive(most.len()), most);
            assert_eq!(stream.trim.perform(), Trimmed::Busy, "a byte is unread");
            assert_eq!(stream.receive(1), last);
            for gave in [true, false] {
                let read = stream.rx.head;
                assert_eq!(stream.trim.perform(), Trimmed::Done { read, gave });
                assert!(stream.touched() <= KEPT, "{}", stream.touched());
            }
        }
    }

    #[test]
    fn a_sender_s_ring_is_left_alone_unless_it_is_empty_and_its_lock_free() {
        let sender = sender();
        let seat = sender.seat.clone();
        let slot = seat.look().unwrap();
        let mut stream = Stream::new(Some(sender));
        let bytes = burst(7);
        stream.send(&bytes);
        slot.tx.set_state(TxState::Ring);
        slot.tx.set_cursor(&stream.tx);
        let (most, last) = bytes.split_at(bytes.len() - 1);
        assert_eq!(stream.receive(most.len()), most);
        let full = stream.touched();
        assert_eq!(stream.trim.perform(), Trimmed::Busy, "a byte is unread");
        assert_eq!(stream.receive(1), last);
        assert_eq!(slot.tx.lock.try_lock(7), Ok(()));
        assert_eq!(stream.trim.perform(), Trimmed::Busy, "somebody sends");
        assert_eq!(stream.touched(), full);
        slot.tx.lock.unlock();
        let (read, gave) = (stream.rx.head, true);
        assert_eq!(stream.trim.perform(), Trimmed::Done { read, gave });
        assert!(stream.touched() <= KEPT, "{}", stream.touched());
        assert_eq!(slot.tx.lock.try_lock(7), Ok(()), "it is free again");
        assert_eq!(slot.tx.cursor().head, stream.rx.head);
    }

    #[test]
    fn another_connection_s_slot_is_left_alone() {
        let sender = sender();
        let seat = sender.seat.clone();
        let mut stream = Stream::new(Some(sender));
        let bytes = burst(9);
        stream.send(&bytes);
        assert_eq!(stream.receive(bytes.len()), bytes);
        seat.look().unwrap().reset();
        assert_eq!(stream.trim.perform(), Trimmed::Busy);
        assert!(stream.touched() >= bytes.len() as u64);
    }
}
