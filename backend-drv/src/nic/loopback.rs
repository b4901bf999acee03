//! Two NICs in memory that are each other's whole network. Frames arrive in order and intact; when the far end's queue
//! is full they are lost, as on any other network.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Address, Arrival, Nic, NicStats, Outgoing, Sink};

/// One of the two.
#[derive(Debug)]
pub struct Loopback {
    address: Address,
    far: Address,
    max_frame: usize,
    incoming: Arc<Queue>,
    outgoing: Arc<Queue>,
    /// Frames taken out of the queue, and their buffers afterwards.
    batch: Vec<Vec<u8>>,
    stats: NicStats,
}

/// Frames on their way to one end.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// Readable while frames wait.
    bell: EventFd,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Vec<u8>>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    dropped: u64,
}

/// Two ends that carry frames of up to `max_frame` bytes to each other.
///
/// # Errors
/// No descriptors.
pub fn pair(max_frame: usize) -> io::Result<(Loopback, Loopback)> {
    let (one, two) = (Arc::new(Queue::new()?), Arc::new(Queue::new()?));
    let end = |own, far, incoming: &Arc<Queue>, outgoing: &Arc<Queue>| Loopback {
        address: own,
        far,
        max_frame,
        incoming: Arc::clone(incoming),
        outgoing: Arc::clone(outgoing),
        batch: Vec::new(),
        stats: NicStats::default(),
    };
    // Locally administered addresses.
    let (a, b) = (
        Address::Mac([2, 0, 0, 0, 0, 1]),
        Address::Mac([2, 0, 0, 0, 0, 2]),
    );
    Ok((end(a, b, &one, &two), end(b, a, &two, &one)))
}

impl Queue {
    fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            waiting: Mutex::default(),
            bell: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nic for Loopback {
    fn address(&self) -> Address {
        self.address
    }

    fn broadcast(&self) -> Option<Address> {
        Some(BROADCAST)
    }

    fn max_frame(&self) -> usize {
        self.max_frame
    }

    fn window(&self) -> usize {
        QUEUE_MAX * self.max_frame
    }

    fn send(&mut self, batch: &[Outgoing<'_>]) -> io::Result<usize> {
        self.stats.send_calls += 1;
        let mut waiting = self.outgoing.lock();
        let asleep = waiting.frames.is_empty();
        for frame in batch {
            let there = frame.to == self.far || frame.to == BROADCAST;
            if !there || frame.len() > self.max_frame {
                self.stats.send_drops += 1;
                continue;
            }
            self.stats.sent_frames += 1;
            self.stats.sent_bytes += frame.len() as u64;
            if waiting.frames.len() >= QUEUE_MAX {
                waiting.dropped += 1;
                continue;
            }
            let mut bytes = waiting.spare.pop().unwrap_or_default();
            frame.append_to(&mut bytes);
            waiting.frames.push_back(bytes);
        }
        if asleep && !waiting.frames.is_empty() {
            self.outgoing.bell.write(1)?;
        }
        Ok(batch.len())
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> io::Result<usize> {
        self.stats.receive_calls += 1;
        {
            let mut waiting = self.incoming.lock();
            let count = waiting.frames.len().min(BATCH_MAX);
            self.batch.extend(waiting.frames.drain(..count));
            if waiting.frames.is_empty() {
                // Nothing in it is fine: we were woken by the clock.
                let _ = self.incoming.bell.read();
            }
            self.stats.receive_drops = waiting.dropped;
        }
        let count = self.batch.len();
        for frame in &mut self.batch {
            self.stats.received_frames += 1;
            self.stats.received_bytes += frame.len() as u64;
            let from = self.far;
            sink(Arrival { from, at: None }, frame);
            frame.clear();
        }
        let mut waiting = self.incoming.lock();
        let room = BATCH_MAX.saturating_sub(waiting.spare.len());
        waiting.spare.extend(self.batch.drain(..).take(room));
        Ok(count)
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.incoming.bell.as_fd()
    }

    fn wants_write(&self) -> bool {
        false
    }

    fn stats(&self) -> NicStats {
        self.stats
    }
}

/// Both ends understand it.
const BROADCAST: Address = Address::Mac([0xff; 6]);
/// Frames that wait for one end before more are lost.
const QUEUE_MAX: usize = 8192;
/// Frames per call of `receive`.
const BATCH_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn readable(nic: &dyn Nic) -> bool {
        let mut fds = [PollFd::new(nic.readiness(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn frames_arrive_in_order_and_wake_the_far_end() {
        let (mut one, mut two) = pair(1000).unwrap();
        assert!(!readable(&two));
        let heads: Vec<[u8; 2]> = (0..600u16).map(u16::to_be_bytes).collect();
        let batch: Vec<_> = heads
            .iter()
            .map(|head| Outgoing::of_head(two.address(), head))
            .collect();
        assert_eq!(one.send(&batch).unwrap(), 600);
        let mut got = Vec::new();
        let mut counts = Vec::new();
        while readable(&two) {
            let count = two
                .receive(&mut |arrival, frame| {
                    assert_eq!(arrival.from, one.address());
                    got.push(<[u8; 2]>::try_from(&*frame).unwrap());
                })
                .unwrap();
            counts.push(count);
        }
        assert_eq!(counts, [256, 256, 88]);
        assert_eq!(got, heads);
        assert_eq!(two.receive(&mut |_, _| panic!("nothing")).unwrap(), 0);
    }

    #[test]
    fn what_does_not_fit_is_lost_and_counted() {
        let (mut one, mut two) = pair(10).unwrap();
        let far = two.address();
        let nobody = Address::Mac([2, 0, 0, 0, 0, 9]);
        let batch = [
            Outgoing::of_head(far, &[0; 11]),
            Outgoing::of_head(nobody, &[0; 5]),
            Outgoing::of_head(one.broadcast().unwrap(), &[0; 10]),
        ];
        assert_eq!(one.send(&batch).unwrap(), 3);
        assert_eq!((one.stats().sent_frames, one.stats().send_drops), (1, 2));
        let full = vec![Outgoing::of_head(far, &[7]); QUEUE_MAX + 5];
        assert_eq!(one.send(&full).unwrap(), QUEUE_MAX + 5);
        let mut frames = 0;
        while two.receive(&mut |_, _| frames += 1).unwrap() > 0 {}
        assert_eq!(frames, QUEUE_MAX);
        assert_eq!(two.stats().receive_drops, 6);
    }
}
