//! The byte ring: one producer, one consumer, no system call, no lock.
//!
//! ```text
//!        base                 head           tail
//!         |                    |              |
//!   data: [ consumed, reusable | to be read   | free ...........]   index = (position - base) % size
//! ```
//!
//! Positions (`head`, `tail`) only grow and count stream bytes exactly. The producer may move `base`
//! while the ring is empty, which restarts the ring at its beginning: small messages then stay in the
//! same few cache lines, and the pages behind stay untouched (an idle or chatty connection costs a
//! page, not the ring).
//!
//! The caller keeps its own position in a *cursor* that the far end cannot write, moves it with
//! `write`/`read`, and makes it visible with `publish`. Whether somebody must then be woken is the
//! caller's question (see [`crate::event`]): after `publish` comes a full barrier, then one load.
//!
//! Every word of the far end is loaded once and checked: the tail may only move forward and never by
//! more than the ring holds, the head must lie in the ring behind the tail. Anything else is
//! [`Corrupt`]: the connection is broken, nothing worse.

mod consumer;
mod producer;

pub use consumer::{Consumer, RxCursor};
pub(crate) use producer::RESTART_BYTES;
pub use producer::{OutOfRing, Producer, TxCursor};

/// The far end wrote a word that no correct end writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Corrupt {
    /// The consumer's position lies beyond what was produced, or further behind than the ring holds.
    #[error("the far end's head {head} is outside {seen}..={tail}")]
    Head {
        /// What was read.
        head: u64,
        /// The smallest value that could be true.
        seen: u64,
        /// Our tail.
        tail: u64,
    },
    /// The producer's position moved backwards or further than the ring holds.
    #[error("the far end's tail {tail} is outside {seen}..={head}+{capacity}")]
    Tail {
        /// What was read.
        tail: u64,
        /// The last valid value.
        seen: u64,
        /// Our head.
        head: u64,
        /// Bytes the ring holds.
        capacity: u64,
    },
    /// The ring's base lies beyond the bytes to be read.
    #[error("the far end's base {base} is beyond our head {head}")]
    Base {
        /// What was read.
        base: u64,
        /// Our head.
        head: u64,
    },
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::layout::{ConnView, End, RING_LOG2_MIN, conn_bytes};
    use crate::mem::HeapRegion;
    use crate::sync::Ordering;

    const BYTES: usize = 1 << RING_LOG2_MIN;

    fn pair() -> (HeapRegion, Producer, Consumer) {
        let heap = HeapRegion::new(conn_bytes(BYTES));
        let zero = ConnView::new(&heap.region(), End::Zero, RING_LOG2_MIN).expect("it fits");
        let one = ConnView::new(&heap.region(), End::One, RING_LOG2_MIN).expect("it fits");
        (heap, Producer::of(&zero), Consumer::of(&one))
    }

    #[test]
    fn bytes_arrive_in_order_across_the_wrap() {
        let (_heap, tx, rx) = pair();
        let (mut send, mut recv) = (TxCursor::default(), RxCursor::default());
        let (mut next_in, mut next_out) = (0u8, 0u8);
        for round in 0..2_000usize {
            let chunk: Vec<u8> = (0..(round * 37) % 5_000)
                .map(|_| {
                    next_in = next_in.wrapping_add(1);
                    next_in
                })
                .collect();
            let mut done = 0;
            while done < chunk.len() {
                done += tx.write_slice(&mut send, &chunk[done..]).unwrap();
                tx.publish(&send, 0, 0);
                let mut out = vec![0u8; 3_000];
                let got = rx.read_slice(&mut recv, &mut out).unwrap();
                rx.publish(&recv);
                for byte in &out[..got] {
                    next_out = next_out.wrapping_add(1);
                    assert_eq!(*byte, next_out);
                }
            }
        }
        assert!(send.tail > 10 * BYTES as u64, "the ring wrapped");
    }

    #[test]
    fn a_full_ring_takes_nothing_and_loses_nothing() {
        let (_heap, tx, rx) = pair();
        let (mut send, mut recv) = (TxCursor::default(), RxCursor::default());
        let data = vec![7u8; BYTES + 10];
        assert_eq!(tx.write_slice(&mut send, &data).unwrap(), BYTES);
        tx.publish(&send, 0, 0);
        assert_eq!(tx.write_slice(&mut send, &data).unwrap(), 0);
        let mut out = vec![0u8; 100];
        assert_eq!(rx.read_slice(&mut recv, &mut out).unwrap(), 100);
        rx.publish(&recv);
        assert_eq!(tx.write_slice(&mut send, &data).unwrap(), 100);
    }

    #[test]
    fn raw_runs_hold_what_was_written_and_stop_at_the_wrap() {
        let (_heap, tx, rx) = pair();
        let (mut send, mut recv) = (TxCursor::default(), RxCursor::default());
        tx.write_slice(&mut send, &[1; BYTES - 10]).unwrap();
        tx.publish(&send, 0, 0);
        rx.refresh(&mut recv).unwrap();
        rx.discard(&mut recv, BYTES - 20);
        rx.publish(&recv);
        tx.write_slice(&mut send, &[2; 110]).unwrap();
        tx.publish(&send, 0, 0);
        rx.refresh(&mut recv).unwrap();
        let (mut seen, mut runs) = (Vec::new(), Vec::new());
        while recv.available() > 0 {
            let (at, run) = rx.raw_run(&recv, 64).unwrap();
            runs.push(run);
            // SAFETY: `run` bytes of the ring, which nobody writes here.
            #[expect(unsafe_code, reason = "in place of a system call")]
            seen.extend((0..run).map(|i| unsafe { at.add(i).read() }));
            rx.discard(&mut recv, run);
        }
        assert_eq!(runs, [20, 64, 36]);
        assert_eq!(seen, [vec![1; 10], vec![2; 110]].concat());
        tx.words().base.store(u64::MAX, Ordering::Relaxed);
        assert!(matches!(rx.raw_run(&recv, 1), Err(Corrupt::Base { .. })));
    }

    #[test]
    fn an_empty_ring_restarts_at_its_beginning() {
        let (_heap, tx, rx) = pair();
        let (mut send, mut recv) = (TxCursor::default(), RxCursor::default());
        for i in 0..10_000u64 {
            tx.write_slice(&mut send, &i.to_le_bytes()).unwrap();
            tx.publish(&send, 0, 0);
            assert!(
                send.tail - send.base <= 64,
                "one line is enough for a ping-pong"
            );
            let mut out = [0u8; 8];
            assert_eq!(rx.read_slice(&mut recv, &mut out).unwrap(), 8);
            assert_eq!(u64::from_le_bytes(out), i);
            rx.publish(&recv);
            send.hint(recv.head);
        }
    }

    #[test]
    fn a_lying_consumer_is_corrupt() {
        let (_heap, tx, rx) = pair();
        let mut send = TxCursor::default();
        tx.write_slice(&mut send, &[1; 100]).unwrap();
        tx.publish(&send, 0, 0);
        rx.far_words().head.store(101, Ordering::Relaxed);
        assert!(matches!(
            tx.refresh(&mut send),
            Err(Corrupt::Head { head: 101, .. })
        ));
        rx.far_words().head.store(60, Ordering::Relaxed);
        assert!(tx.refresh(&mut send).is_ok());
    }

    #[test]
    fn a_head_just_below_zero_is_corrupt() {
        let (_heap, tx, rx) = pair();
        let mut send = TxCursor::default();
        tx.write_slice(&mut send, &[1]).unwrap();
        rx.far_words().head.store(u64::MAX, Ordering::Relaxed);
        assert!(matches!(tx.refresh(&mut send), Err(Corrupt::Head { .. })));
    }

    #[test]
    fn a_head_behind_an_acknowledgement_is_no_news() {
        let (_heap, tx, rx) = pair();
        let mut send = TxCursor::default();
        tx.write_slice(&mut send, &[1; 100]).unwrap();
        tx.publish(&send, 0, 0);
        send.hint(60);
        rx.far_words().head.store(59, Ordering::Relaxed);
        assert_eq!(tx.refresh(&mut send), Ok(BYTES as u64 - 40));
        tx.write_slice(&mut send, &[2; BYTES - 40]).unwrap();
        assert!(
            matches!(
                tx.refresh(&mut send),
                Err(Corrupt::Head {
                    head: 59,
                    seen: 60,
                    ..
                })
            ),
            "the ring cannot hold so much"
        );
    }

    #[test]
    fn a_lying_producer_is_corrupt() {
        let (_heap, tx, rx) = pair();
        let mut recv = RxCursor::default();
        tx.words().tail.store(BYTES as u64 + 1, Ordering::Relaxed);
        assert!(matches!(rx.refresh(&mut recv), Err(Corrupt::Tail { .. })));
        tx.words().tail.store(50, Ordering::Relaxed);
        assert_eq!(rx.refresh(&mut recv), Ok(50));
        tx.words().tail.store(49, Ordering::Relaxed);
        assert!(matches!(
            rx.refresh(&mut recv),
            Err(Corrupt::Tail {
                tail: 49,
                seen: 50,
                ..
            })
        ));
        tx.words().base.store(10, Ordering::Relaxed);
        let mut out = [0u8; 8];
        assert!(matches!(
            rx.read_slice(&mut recv, &mut out),
            Err(Corrupt::Base { .. })
        ));
    }
}
