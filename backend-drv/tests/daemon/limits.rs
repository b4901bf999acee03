//! Shortages and floods: the new is refused, the old goes on.

use std::os::fd::AsFd;

use rdma_core::control::{Message, Query};
use rdma_core::reason::Reason;

use crate::client::{Couple, Daemon, Program, Wire, eventfd, registration, retry, tcp_pair};

#[test]
fn five_hundred_clients_come_and_go() {
    let mut daemon = Daemon::start();
    let mut honest = daemon.program();
    for _ in 0..10 {
        let wires: Vec<Wire> = (0..50).map(|_| Wire::connect(&daemon.socket)).collect();
        drop(wires);
    }
    for _ in 0..100 {
        daemon.program().sync();
    }
    honest.sync();
    assert!(daemon.is_running());
    retry(|| {
        let status = daemon.report(Query::STATUS, 0);
        (status["daemon"]["clients"] == 2).then_some(())
    });
}

#[test]
fn a_client_that_never_reads_is_disconnected() {
    let daemon = Daemon::with_config("[limits]\nqueued_messages = 16");
    let mut couple = Couple::new(&daemon);
    let bell = eventfd();
    // Every context of one is announced to the other, who does not care.
    let mut sent = 0u32;
    retry(|| {
        for _ in 0..50 {
            couple.one.add_context(sent % 200, &bell);
            sent += 1;
        }
        couple.one.sync();
        let status = daemon.report(Query::STATUS, 0);
        (status["processes"].as_array().unwrap().len() == 1).then_some(())
    });
    assert!(
        daemon
            .log()
            .iter()
            .any(|line| line.contains("does not read"))
    );
    couple.one.sync();
}

#[test]
fn more_clients_than_allowed_are_turned_away() {
    let daemon = Daemon::with_config("[limits]\nclients = 4");
    let mut kept: Vec<Program> = (0..4).map(|_| daemon.program()).collect();
    for _ in 0..100 {
        let mut wire = Wire::connect(&daemon.socket);
        assert_eq!(wire.expect_failure().0, Reason::Quota);
    }
    for program in &mut kept {
        program.sync();
    }
    kept.pop();
    retry(|| {
        let mut wire = Wire::connect(&daemon.socket);
        wire.send_bytes(b"x", &[]);
        (wire.expect_failure().0 != Reason::Quota).then_some(())
    });
}

#[test]
fn quotas_of_a_user_are_kept() {
    let daemon = Daemon::with_config("[limits.per_user]\nconnections = 3");
    let mut couple = Couple::new(&daemon);
    let (client, server) = tcp_pair();
    couple.one.register(1, &client, &registration(&client, 1));
    couple.other.register(1, &server, &registration(&server, 2));
    assert_eq!(couple.other.expect_refusal(1), Reason::Quota);
    // One that is given up makes room.
    couple.one.unregister(0);
    couple.one.sync();
    couple.other.register(1, &server, &registration(&server, 2));
    couple.other.expect_pair();
}

#[test]
fn connection_memory_counts_as_a_whole_arena() {
    let daemon = Daemon::with_config("[limits.per_user]\nmemory_bytes = \"400 KiB\"");
    let mut couple = Couple::new(&daemon);
    couple.again(1);
    let (client, server) = tcp_pair();
    couple.one.register(2, &client, &registration(&client, 1));
    couple.other.register(2, &server, &registration(&server, 2));
    assert_eq!(couple.one.expect_refusal(2), Reason::Quota);
    assert_eq!(couple.other.expect_refusal(2), Reason::Quota);
    // Gone programs pay no more.
    drop(couple);
    retry(|| {
        let status = daemon.report(Query::STATUS, 0);
        (status["daemon"]["arenas"] == 0).then_some(())
    });
    Couple::new(&daemon);
}

#[test]
fn doorbells_count_as_descriptors() {
    let daemon = Daemon::with_config("[limits.per_user]\ndescriptors = 10");
    let mut program = daemon.program();
    let bell = eventfd();
    for context in 0..6 {
        program.add_context(context, &bell);
        assert!(matches!(program.receive().0, Message::ContextKnown(_)));
    }
    // The same one again is no further one.
    program.add_context(3, &bell);
    assert!(matches!(program.receive().0, Message::ContextKnown(_)));
    // One too many is not taken, and the program goes on.
    program.add_context(6, &bell);
    program.add_context(3, &bell);
    let (message, _) = program.receive();
    assert!(matches!(message, Message::ContextKnown(known) if known.context == 3));
}

#[test]
fn a_file_size_limit_leaves_connections_on_tcp() {
    // As large as event memory needs, smaller than connection memory.
    let daemon = Daemon::under(&["prlimit", "--fsize=4194304:4194304"], "", "debug");
    let (mut one, mut other) = (
        Program::with_ring(&daemon.socket, 22),
        Program::with_ring(&daemon.socket, 22),
    );
    for slot in 0..3 {
        let (client, server) = tcp_pair();
        one.register(slot, &client, &registration(&client, 1));
        other.register(slot, &server, &registration(&server, 2));
        assert_eq!(one.expect_refusal(slot), Reason::NoMemory);
        assert_eq!(other.expect_refusal(slot), Reason::NoMemory);
    }
    // Smaller ones still fit: the daemon goes on.
    Couple::new(&daemon);
    one.sync();
}

#[test]
fn without_descriptors_the_present_clients_go_on() {
    let mut daemon = Daemon::under(&["prlimit", "--nofile=64:64"], "", "debug");
    let mut couple = Couple::new(&daemon);
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(Wire::connect(&daemon.socket));
    }
    retry(|| (daemon.descriptors() >= 64).then_some(()));
    // The daemon cannot receive another descriptor, and says so.
    let (client, _server) = tcp_pair();
    couple.one.register(1, &client, &registration(&client, 1));
    assert_eq!(couple.one.expect_refusal(1), Reason::NoMemory);
    couple.one.add_context(1, eventfd());
    couple.one.register(1, &client, &registration(&client, 1));
    assert_eq!(couple.one.expect_refusal(1), Reason::NoMemory);
    assert!(daemon.is_running());
    drop(crowd);
    // When they have gone, new ones are welcome again.
    retry(|| {
        let wire = Wire::connect(&daemon.socket);
        wire.try_send_bytes(b"x", &[]).ok()?;
        let mut wire = wire;
        wire.try_receive()?;
        Some(())
    });
    daemon.program().sync();
}

#[test]
fn a_flood_of_offences_does_not_flood_the_log() {
    let daemon = Daemon::under(&[], "", "info");
    for _ in 0..2000 {
        let mut wire = Wire::connect(&daemon.socket);
        wire.send_bytes(b"nonsense", &[eventfd().as_fd()]);
        wire.expect_failure();
    }
    let lines = daemon.log().len();
    assert!(lines < 400, "{lines} lines");
}
