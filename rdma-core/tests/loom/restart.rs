//! Bytes are read before their place is used again, also when an empty ring restarts at its beginning
//! (every message here is short enough for that). loom reports any use of a byte that is not ordered.

use loom::thread;
use rdma_core::ring::{RxCursor, TxCursor};

use crate::rig::{Direction, explore};

/// Sender and receiver side by side, without waiting: each tries a few times.
fn streams(preemptions: usize, capacity: usize, chunks: &'static [usize], reads: &'static [usize]) {
    explore(preemptions, move || {
        let direction = Direction::new(capacity);
        let sender = thread::spawn(move || {
            let mut cursor = TxCursor::default();
            let mut sent = 0;
            for &chunk in chunks {
                let bytes: Vec<u8> = (sent..).take(chunk).collect();
                sent += u8::try_from(direction.put(&mut cursor, &bytes)).unwrap();
            }
            sent
        });
        let mut cursor = RxCursor::default();
        let mut got = Vec::new();
        for &most in reads {
            direction.take(&mut cursor, most, &mut got);
        }
        let sent = sender.join().unwrap();
        while direction.take(&mut cursor, capacity, &mut got) != 0 {}
        assert!(got.into_iter().eq(0..sent));
    });
}

#[test]
fn an_empty_ring_restarts_under_its_reader() {
    streams(3, 4, &[1, 1, 1, 1], &[1, 1, 2]);
}

#[test]
fn a_ring_wraps_under_its_reader() {
    streams(3, 4, &[3, 3, 3], &[2, 3, 2]);
}

#[test]
fn a_ring_is_filled_and_emptied_to_the_brim() {
    streams(3, 8, &[8, 8, 5], &[8, 7, 8]);
}

/// The answer carries the acknowledgement, and the sender believes it without a look at the head.
#[test]
fn an_acknowledgement_beside_the_answer_frees_the_bytes() {
    explore(3, || {
        let there = Direction::new(2);
        let back = Direction::between(there.receiver, there.sender, 2);
        let far = thread::spawn(move || {
            let (mut recv, mut send) = (RxCursor::default(), TxCursor::default());
            let mut got = Vec::new();
            for _ in 0..2 {
                there.take(&mut recv, 2, &mut got);
                let ack = there.consumer().published();
                back.producer().publish(&send, ack, 0);
            }
            back.put(&mut send, &[9]);
            (recv, got)
        });
        let mut send = TxCursor::default();
        let mut sent = 0;
        for _ in 0..3 {
            send.hint(back.consumer().ack());
            // Free as far as is known: no look at the head.
            let free = there.producer().free(&send);
            let most = usize::try_from(free).unwrap();
            let bytes: Vec<u8> = (sent..).take(most).collect();
            sent += u8::try_from(there.put(&mut send, &bytes)).unwrap();
        }
        let (mut recv, mut got) = far.join().unwrap();
        while there.take(&mut recv, 2, &mut got) != 0 {}
        assert!(got.into_iter().eq(0..sent));
        there.producer().refresh(&mut send).unwrap();
    });
}

/// At an end with two threads one reads and the other acknowledges what it has read.
#[test]
fn an_acknowledgement_by_another_thread_frees_the_bytes() {
    explore(3, || {
        let there = Direction::new(2);
        let back = Direction::between(there.receiver, there.sender, 2);
        let mut send = TxCursor::default();
        there.put(&mut send, &[1, 2]);
        let reader = thread::spawn(move || {
            let (mut cursor, mut got) = (RxCursor::default(), Vec::new());
            there.take(&mut cursor, 1, &mut got);
            there.take(&mut cursor, 1, &mut got);
            assert_eq!(got, [1, 2]);
        });
        let writer = thread::spawn(move || {
            let ack = there.consumer().published();
            back.producer().publish(&TxCursor::default(), ack, 0);
        });
        send.hint(back.consumer().ack());
        // Overwrites what was acknowledged; if that is all, without a look at the head.
        there.put(&mut send, &[3, 4]);
        there.producer().refresh(&mut send).unwrap();
        for thread in [reader, writer] {
            thread.join().unwrap();
        }
    });
}
