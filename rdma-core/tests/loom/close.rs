//! The end of a direction: whoever sleeps hears of it.

use loom::thread;
use rdma_core::Reason;
use rdma_core::event::WaitFor;
use rdma_core::layout::EndState;
use rdma_core::ring::{RxCursor, TxCursor};

use crate::rig::{Direction, Sleeper, explore};

/// How an end goes away. Each of them has a barrier of its own, so nothing follows before the
/// look at the waiters.
#[derive(Clone, Copy, PartialEq)]
enum Farewell {
    /// shutdown(SHUT_WR).
    End,
    /// close.
    EndAndLeave,
    /// exec into a program without the library.
    LeaveRing,
    /// Something is wrong.
    Break,
}

fn say(farewell: Farewell, own: &EndState, far: &EndState, sent: u64) {
    match farewell {
        Farewell::End => own.end(sent),
        Farewell::EndAndLeave => {
            own.end(sent);
            own.leave();
        }
        Farewell::LeaveRing => own.retract(far, 0).unwrap(),
        Farewell::Break => own.break_with(Reason::HolderDied),
    }
}

/// A receiver that drains and sleeps hears that nothing more comes, and has read everything by then.
fn receiver_hears(farewell: Farewell) {
    explore(3, move || {
        let (direction, receiver) = (Direction::new(4), Sleeper::new());
        let sender = thread::spawn(move || {
            let mut cursor = TxCursor::default();
            assert_eq!(direction.put(&mut cursor, &[1, 2]), 2);
            let (own, far) = (&direction.sender.state, &direction.receiver.state);
            say(farewell, own, far, cursor.tail);
            receiver.rouse_waiters(&direction.receiver.waits, WaitFor::Data);
        });
        let far = &direction.sender.state;
        let over = |head| far.ended_at() == Some(head) || far.broken().is_some();
        let mut cursor = RxCursor::default();
        let mut got = Vec::new();
        while !over(cursor.head) {
            if direction.take(&mut cursor, 4, &mut got) == 0 {
                receiver.wait_in(&direction.receiver.waits, WaitFor::Data, || {
                    over(cursor.head) || direction.consumer().refresh(&mut cursor).unwrap() != 0
                });
            }
        }
        if farewell == Farewell::Break {
            direction.take(&mut cursor, 4, &mut got);
        }
        assert_eq!(got, [1, 2]);
        sender.join().unwrap();
    });
}

#[test]
fn a_receiver_hears_a_half_close() {
    receiver_hears(Farewell::End);
}

#[test]
fn a_receiver_hears_a_close() {
    receiver_hears(Farewell::EndAndLeave);
}

#[test]
fn a_receiver_hears_a_break() {
    receiver_hears(Farewell::Break);
}

/// A writer that sleeps on a full ring hears that nobody will ever make room.
fn writer_hears(farewell: Farewell) {
    explore(3, move || {
        let (direction, sender) = (Direction::new(2), Sleeper::new());
        let mut cursor = TxCursor::default();
        assert_eq!(direction.put(&mut cursor, &[1, 2]), 2);
        let reader = thread::spawn(move || {
            let (own, far) = (&direction.receiver.state, &direction.sender.state);
            say(farewell, own, far, 0);
            sender.rouse_waiters(&direction.sender.waits, WaitFor::Space);
        });
        let far = &direction.receiver.state;
        let gone = || far.is_reader_gone() || far.broken().is_some();
        while !gone() {
            sender.wait_in(&direction.sender.waits, WaitFor::Space, || {
                gone() || direction.producer().refresh(&mut cursor).unwrap() != 0
            });
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_writer_hears_that_its_reader_left() {
    writer_hears(Farewell::EndAndLeave);
}

#[test]
fn a_writer_hears_that_its_reader_left_the_ring() {
    writer_hears(Farewell::LeaveRing);
}

#[test]
fn a_writer_hears_a_break() {
    writer_hears(Farewell::Break);
}

/// Both ends close at once, each with a thread asleep.
#[test]
fn two_ends_that_close_at_once_wake_each_other() {
    explore(2, || {
        let direction = Direction::new(2);
        let (sender, receiver) = (Sleeper::new(), Sleeper::new());
        let mut cursor = TxCursor::default();
        assert_eq!(direction.put(&mut cursor, &[1, 2]), 2);
        let (near, far) = (direction.sender, direction.receiver);
        let reader = thread::spawn(move || {
            say(Farewell::EndAndLeave, &far.state, &near.state, 0);
            sender.rouse_waiters(&near.waits, WaitFor::Space);
            while !near.state.is_reader_gone() {
                receiver.wait_in(&far.waits, WaitFor::Data, || near.state.is_reader_gone());
            }
        });
        while !far.state.is_reader_gone() {
            sender.wait_in(&near.waits, WaitFor::Space, || far.state.is_reader_gone());
        }
        say(Farewell::EndAndLeave, &near.state, &far.state, cursor.tail);
        receiver.rouse_waiters(&far.waits, WaitFor::Data);
        reader.join().unwrap();
    });
}
