//! Senders that are idle while their far end has left the ring.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Duration;

use rdma_core::handshake::Route;
use rdma_core::layout::RING_LOG2_MIN;
use rdma_core::reason::Reason;
use rdma_core::ring::{RxCursor, TxCursor};
use rdma_core::slot::{RxState, TxState};
use rdma_core::sync::Ordering;

use crate::client::{ALL, Couple, Daemon, Program, Tool, retry};

/// Whether the daemon may duplicate descriptors of this process.
fn may_reach() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let may =
        nix::unistd::Uid::effective().is_root() || scope.is_ok_and(|scope| scope.trim() == "0");
    if !may {
        println!("skipped: Yama keeps the daemon out of other processes");
    }
    may
}

/// The far end leaves its ring at `at`, and says so to the daemon.
fn retract(couple: &Couple, at: u64) {
    let memory = couple.map();
    assert_eq!(memory.state(1).retract(memory.state(0), at), Ok(()));
    couple.other.slot(0).rx.set_state(RxState::Returned);
    couple.other.retracted(0);
}

fn heard(couple: &Couple, bytes: usize) -> Vec<u8> {
    let mut socket = &couple.sockets.1;
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut heard = vec![0; bytes];
    socket.read_exact(&mut heard).unwrap();
    heard
}

fn is_back(program: &Program) -> bool {
    program.slot(0).tx.state() == TxState::Returned
}

/// What an honest rescue never does: keep a duplicate.
fn assert_nothing_kept(couple: Couple) {
    let Couple { sockets, .. } = couple;
    let (sender, mut receiver) = sockets;
    drop(sender);
    assert_eq!(receiver.read(&mut [0]).unwrap(), 0, "the end has come");
}

#[test]
fn what_was_left_in_the_ring_is_sent_for_it() {
    if !may_reach() {
        return;
    }
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"read, unread", Some(4));
    retract(&couple, 4);
    assert_eq!(heard(&couple, 8), b", unread");
    retry(|| is_back(&couple.one).then_some(()));
    let slot = couple.one.slot(0);
    assert_eq!(slot.tx.tcp_bytes.load(Ordering::SeqCst), 8);
    assert_eq!(slot.tx.lock.try_lock(1), Ok(()), "it is free");
    slot.tx.lock.unlock();
    assert_nothing_kept(couple);
}

#[test]
fn a_switch_that_nobody_had_accepted_is_undone() {
    if !may_reach() {
        return;
    }
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"never seen", None);
    let answer = Tool::connect(&daemon.socket).revoke(&ALL);
    assert_eq!(answer["revoked"], 1);
    assert_eq!(couple.other.slot(0).rx.state(), RxState::Returned);
    assert_eq!(heard(&couple, 10), b"never seen");
    retry(|| is_back(&couple.one).then_some(()));
}

#[test]
fn a_sender_with_nothing_left_to_send_needs_no_socket() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"all of it", Some(9));
    couple.one.slot(0).meta.fd.store(0, Ordering::SeqCst);
    retract(&couple, 9);
    retry(|| is_back(&couple.one).then_some(()));
}

#[test]
fn a_socket_that_was_moved_to_another_number_is_found() {
    if !may_reach() {
        return;
    }
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"found", Some(0));
    // Another socket of ours, one that is not open, and nonsense.
    for number in [couple.sockets.1.as_raw_fd() + 1, 100_001, -1, i32::MIN] {
        let slot = couple.one.slot(0);
        slot.tx.set_state(TxState::Ring);
        slot.meta.fd.store(number.cast_unsigned(), Ordering::SeqCst);
        if number > 0 {
            let memory = couple.map();
            memory
                .state(0)
                .route
                .store(Route::Accepted as u32, Ordering::SeqCst);
            retract(&couple, 0);
            assert_eq!(heard(&couple, 5), b"found", "{number}");
            retry(|| is_back(&couple.one).then_some(()));
        }
    }
}

/// More than the kernel takes at once, while nobody reads.
#[test]
fn a_full_socket_is_waited_for() {
    if !may_reach() {
        return;
    }
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    nix::sys::socket::setsockopt(&couple.sockets.0, nix::sys::socket::sockopt::SndBuf, &4096)
        .unwrap();
    nix::sys::socket::setsockopt(&couple.sockets.1, nix::sys::socket::sockopt::RcvBuf, &4096)
        .unwrap();
    let bytes: Vec<u8> = (0..1 << RING_LOG2_MIN)
        .map(|at: u32| at.to_le_bytes()[usize::from(at.is_multiple_of(3))])
        .collect();
    couple.send_by_ring(&bytes, Some(0));
    retract(&couple, 0);
    // Its helper gives up and comes back, and others get their turn.
    retry(|| {
        let slot = couple.one.slot(0);
        (slot.tx.resend.load(Ordering::SeqCst) > 0).then_some(())
    });
    std::thread::sleep(Duration::from_millis(600));
    assert!(!is_back(&couple.one));
    assert_eq!(heard(&couple, bytes.len()), bytes);
    retry(|| is_back(&couple.one).then_some(()));
}

#[test]
fn bytes_that_wrap_around_come_in_order() {
    if !may_reach() {
        return;
    }
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"after the wrap", Some(0));
    // The last three bytes of the ring come before its first ones.
    let capacity = 1u64 << RING_LOG2_MIN;
    let memory = couple.map();
    let end = couple.paired.0.offset + 4096 + 32 + capacity - 3;
    assert_eq!(rustix::io::pwrite(&couple.arena, b"and", end), Ok(3));
    let cursor = TxCursor {
        tail: capacity + 14,
        head: capacity - 3,
        base: 0,
    };
    couple.one.slot(0).tx.set_cursor(&cursor);
    memory.producer(0).tail.store(cursor.tail, Ordering::SeqCst);
    retract(&couple, capacity - 3);
    assert_eq!(heard(&couple, 17), b"andafter the wrap");
    retry(|| is_back(&couple.one).then_some(()));
}

#[test]
fn positions_that_cannot_be_are_not_believed() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    couple.send_by_ring(b"honest", Some(0));
    retract(&couple, u64::MAX);
    couple.one.sync();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(couple.one.slot(0).tx.state(), TxState::Ring);
    couple.again(1);
}

#[test]
fn messages_about_nothing_do_no_harm() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    couple.send_by_ring(b"x", Some(0));
    for slot in [0, 1, 16_383] {
        couple.one.retracted(slot);
        couple.other.retracted(slot);
    }
    couple.one.sync();
    couple.other.sync();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(couple.one.slot(0).tx.state(), TxState::Ring);
}

/// The program's control socket ends, and its connection does not: whoever has the socket now knows nothing
/// of rings.
#[test]
fn an_end_without_its_program_leaves_the_ring() {
    if !may_reach() {
        return;
    }
    let daemon = Daemon::start();
    let Couple {
        one,
        other,
        sockets,
        paired,
        arena,
        ..
    } = back_and_forth(&daemon);
    let memory = crate::client::Connection::of(&paired.0, &arena);
    let Program { wire, slots, .. } = other;
    drop(wire);
    let left = slots.slot(0).unwrap();
    retry(|| (left.rx.state() == RxState::Returned).then_some(()));
    assert_eq!(left.tx.state(), TxState::Returned);
    assert_eq!(memory.state(1).broken(), None);
    // What it sent by ring is read there; what it had not read is sent again.
    assert_eq!(memory.state(1).returned_at(), Some(5));
    let mut heard = [0; 6];
    (&sockets.1).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"unread");
    let reason = one.slot(0).meta.reason.load(Ordering::SeqCst);
    assert_eq!(Reason::from_code(reason), Some(Reason::Exec));
}

#[test]
fn an_end_that_keeps_its_locks_breaks_its_connection() {
    let daemon = Daemon::start();
    let couple = back_and_forth(&daemon);
    let memory = couple.map();
    let Program { wire, slots, .. } = couple.other;
    assert_eq!(slots.slot(0).unwrap().rx.lock.try_lock(5), Ok(()));
    drop(wire);
    assert_eq!(retry(|| memory.state(1).broken()), Reason::Exec);
}

#[test]
fn an_end_with_a_switch_that_nobody_saw_breaks_its_connection() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"never seen", None);
    let memory = couple.map();
    let Program { wire, slots, .. } = couple.one;
    drop(wire);
    assert_eq!(retry(|| memory.state(0).broken()), Reason::Exec);
    drop(slots);
}

#[test]
fn an_end_that_has_left_the_ring_itself_is_left_alone() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"gone back", Some(0));
    let memory = couple.map();
    assert!(memory.state(0).give_back(9));
    let slot = couple.one.slot(0);
    slot.tx.set_state(TxState::Returned);
    slot.rx.set_state(RxState::Returned);
    let Program { wire, slots, .. } = couple.one;
    drop(wire);
    // The daemon is done with it when the far end can have its addresses again.
    retry(|| {
        let status = daemon.report(rdma_core::control::Query::STATUS, 0);
        (status["processes"].as_array().unwrap().len() == 1).then_some(())
    });
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(memory.state(0).broken(), None);
    assert_eq!(memory.state(0).returned_at(), Some(9));
    assert!(!memory.state(0).is_reader_gone());
    drop(slots);
}

/// Both directions on rings: "unread" lies in the second program's ring, "by me" was sent by it.
fn back_and_forth(daemon: &Daemon) -> Couple {
    let couple = Couple::new(daemon);
    couple.send_by_ring(b"unread", Some(0));
    let memory = couple.map();
    memory.state(0).arm();
    assert!(memory.state(1).switch(0));
    assert_eq!(memory.state(1).accept(), Some(0));
    let (sender, receiver) = (couple.other.slot(0), couple.one.slot(0));
    sender.tx.set_cursor(&TxCursor {
        tail: 5,
        head: 0,
        base: 0,
    });
    sender.tx.set_state(TxState::Ring);
    receiver.rx.set_cursor(&RxCursor { head: 0, tail: 5 });
    receiver.rx.set_state(RxState::Ring);
    couple
}
