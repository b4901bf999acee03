//! Connections that tools take off the ring.

use rdma_core::control::{Message, Revoke};
use rdma_core::event::{CONTEXT_STRIDE, EVENT_BYTES, EventContext, WaitFor, WaitRef};
use rdma_core::reason::Reason;
use rdma_core::ring::RxCursor;
use rdma_core::slot::{RxState, TxState};
use rdma_core::sync::Ordering;
use serde_json::json;

use backend_drv::memory::Mapping;

use crate::client::{
    ALL, Couple, Daemon, Program, Tool, eventfd, is_readable, registration, retry,
};
use crate::client::{Wire, tcp_pair};
use crate::helper::{Helper, Start};

/// What the daemon says it did: revoked, already on TCP, refused, pending.
fn counts(revoked: u32, already: u32, refused: u32, pending: u32) -> serde_json::Value {
    json!({"revoked": revoked, "already": already, "refused": refused, "pending": pending})
}

fn reason(program: &Program) -> Option<Reason> {
    Reason::from_code(program.slot(0).meta.reason.load(Ordering::SeqCst))
}

fn states(program: &Program) -> (TxState, RxState) {
    (program.slot(0).tx.state(), program.slot(0).rx.state())
}

const BACK: (TxState, RxState) = (TxState::Returned, RxState::Returned);

#[test]
fn both_directions_are_taken_back_and_stay_there() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"read and unread", Some(9));
    let mut tool = Tool::connect(&daemon.socket);
    assert_eq!(tool.revoke(&ALL), counts(1, 0, 0, 0));
    let memory = couple.map();
    assert_eq!(memory.state(0).returned_at(), Some(15));
    assert_eq!(states(&couple.one), BACK);
    // The other direction never left TCP. This one is read to its end first.
    assert_eq!(states(&couple.other), (TxState::Returned, RxState::Ring));
    for program in [&couple.one, &couple.other] {
        assert_eq!(reason(program), Some(Reason::Revoked));
        let lock = &program.slot(0).tx.lock;
        assert_eq!(lock.try_lock(1), Ok(()), "it is free");
        lock.unlock();
    }
    let rest = RxCursor { head: 15, tail: 15 };
    couple.other.slot(0).rx.set_cursor(&rest);
    retry(|| (states(&couple.other) == BACK).then_some(()));
    assert_eq!(tool.revoke(&ALL), counts(0, 1, 0, 0));
}

#[test]
fn whoever_waits_at_either_end_is_woken() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    couple.send_by_ring(b"", Some(0));
    let memory = couple.map();
    let mut bells = Vec::new();
    for (end, what) in [(0, WaitFor::Space), (1, WaitFor::Data)] {
        let program = if end == 0 {
            &mut couple.one
        } else {
            &mut couple.other
        };
        let bell = eventfd();
        program.add_context(3, &bell);
        program.sync();
        let events = Mapping::of_sealed(&program.events, EVENT_BYTES).unwrap();
        let context: &EventContext = events.get(3 * CONTEXT_STRIDE).unwrap();
        let who = WaitRef {
            process: program.welcome.process,
            context: 3,
            bit: None,
        };
        assert!(memory.waits(end).enter(what, who));
        context.prepare_sleep();
        bells.push((bell, events));
    }
    Tool::connect(&daemon.socket).revoke(&ALL);
    for (bell, events) in &bells {
        retry(|| is_readable(bell).then_some(()));
        let context: &EventContext = events.get(3 * CONTEXT_STRIDE).unwrap();
        assert!(context.finish_sleep(), "the sleeper was taken");
    }
}

#[test]
fn what_is_broken_or_gone_is_left_alone() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"x", Some(0));
    couple.map().state(1).break_with(Reason::RingCorrupt);
    let mut tool = Tool::connect(&daemon.socket);
    assert_eq!(tool.revoke(&ALL), counts(0, 1, 0, 0));
    assert_eq!(states(&couple.one), (TxState::Ring, RxState::Kernel));
    couple.other.unregister(0);
    let mut couple = couple;
    couple.other.sync();
    assert_eq!(tool.revoke(&ALL), counts(0, 0, 0, 0));
}

#[test]
fn a_slot_that_is_used_again_is_left_alone() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"x", Some(0));
    let slot = couple.one.slot(0);
    slot.meta.generation.store(8, Ordering::SeqCst);
    Tool::connect(&daemon.socket).revoke(&ALL);
    assert_eq!(slot.tx.state(), TxState::Ring);
    assert_eq!(slot.meta.reason.load(Ordering::SeqCst), 0);
}

/// A program that keeps a lock for ever keeps nothing but its own connection.
#[test]
fn a_lock_that_is_kept_makes_it_pending() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    couple.send_by_ring(b"x", Some(1));
    let slot = couple.one.slot(0);
    assert_eq!(slot.tx.lock.try_lock(5), Ok(()));
    assert_eq!(
        Tool::connect(&daemon.socket).revoke(&ALL),
        counts(0, 0, 0, 1)
    );
    assert_eq!(slot.tx.state(), TxState::Ring);
    couple.again(1);
    couple.one.slot(0).tx.lock.unlock();
    retry(|| (states(&couple.one) == BACK).then_some(()));
}

/// One end has given its registration up before it heard of the memory, and asks anew.
#[test]
fn an_end_that_begins_anew_takes_the_other_off_for_a_time() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    couple.map().state(1).arm();
    couple.other.slot(0).rx.set_state(RxState::Armed);
    let begin = |program: &Program, socket, side| {
        program.unregister(0);
        program.register(0, socket, &registration(socket, side));
    };
    begin(&couple.one, &couple.sockets.0, 1);
    retry(|| (states(&couple.other) == BACK).then_some(()));
    assert_eq!(reason(&couple.other), Some(Reason::Drained));
    begin(&couple.other, &couple.sockets.1, 2);
    assert_eq!(couple.one.expect_pair().0.end, 0);
    assert_eq!(couple.other.expect_pair().0.end, 1);
}

#[test]
fn a_registration_that_waits_is_refused() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let (client, _server) = tcp_pair();
    program.register(0, &client, &registration(&client, 1));
    program.sync();
    let mut tool = Tool::connect(&daemon.socket);
    let elsewhere = Revoke {
        what: Revoke::ADDRESS,
        addr: [10, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        prefix: 16,
        ..ALL
    };
    assert_eq!(tool.revoke(&elsewhere), counts(0, 0, 0, 0));
    let here = Revoke {
        addr: [127, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        prefix: 8,
        port: client.peer_addr().unwrap().port(),
        ..elsewhere
    };
    assert_eq!(tool.revoke(&here), counts(0, 0, 1, 0));
    assert_eq!(program.expect_refusal(0), Reason::Revoked);
}

#[test]
fn connections_are_found_by_process_and_number() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    couple.send_by_ring(b"", Some(0));
    let (second, _) = couple.again(1);
    couple.one.slot(1);
    couple.other.slot(1);
    let mut tool = Tool::connect(&daemon.socket);
    let by = |what, pid, conn_id| Revoke {
        what,
        pid,
        conn_id,
        ..ALL
    };
    assert_eq!(tool.revoke(&by(Revoke::PID, 1, 0)), counts(0, 0, 0, 0));
    let number = by(Revoke::CONNECTION, 0, second.conn_id);
    assert_eq!(tool.revoke(&number), counts(1, 0, 0, 0));
    assert_eq!(couple.one.slot(0).tx.state(), TxState::Ring);
    assert_eq!(couple.one.slot(1).tx.state(), TxState::Returned);
    let mine = by(Revoke::PID, std::process::id(), 0);
    assert_eq!(tool.revoke(&mine), counts(1, 1, 0, 0));
}

#[test]
fn many_tools_ask_at_once() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"", Some(0));
    let wires: Vec<Wire> = (0..20).map(|_| Wire::connect(&daemon.socket)).collect();
    for wire in &wires {
        wire.send(&Message::Revoke(ALL), &[]);
    }
    let answers = wires.into_iter().map(|mut wire| match wire.receive() {
        Some((Message::Report(_, text), _)) => text,
        other => panic!("{other:?} instead of REPORT"),
    });
    let answers: Vec<serde_json::Value> = answers
        .map(|text| serde_json::from_str(text).unwrap())
        .collect();
    let sum = |what: &str| {
        answers
            .iter()
            .map(|answer| answer[what].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!((sum("revoked"), sum("already"), sum("pending")), (1, 19, 0));
}

#[test]
fn programs_do_not_revoke() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    program.wire.send(&Message::Revoke(ALL), &[]);
    let (reason, text) = program.wire.expect_failure();
    assert_eq!(reason, Reason::Version);
    assert!(text.contains("does not belong here"), "{text}");
}

#[test]
fn users_revoke_what_is_their_own() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: another user's program needs root");
        return;
    }
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    couple.send_by_ring(b"", Some(0));
    let start = Start {
        uid: Some(65_534),
        revokes: true,
        ..Start::default()
    };
    let Some(mut helper) = Helper::start(&daemon.socket, &start) else {
        println!(
            "skipped: user 65534 cannot run {:?}",
            std::env::current_exe()
        );
        return;
    };
    // Its own registration, which waits, is all that it can mean.
    assert_eq!(helper.outcome().as_deref(), Some("revoked"));
    assert_eq!(helper.said("answer"), counts(0, 0, 1, 0).to_string());
    assert_eq!(states(&couple.one), (TxState::Ring, RxState::Kernel));
    helper.finish();
}
