//! Messages that are not according to the protocol: the sender is told and disconnected, nobody
//! else notices.

use std::os::fd::AsFd;

use nix::sys::signal::{Signal, kill};
use rdma_core::control::{
    CONTROL_VERSION, Context, ContextRef, FDS_MAX, Hello, MESSAGE_MAX, Message, Query, Register,
    SlotRef, Text, Welcome,
};
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::reason::Reason;
use rdma_core::sync::Ordering;

use crate::client::{
    Couple, Daemon, Wire, eventfd, netlink, path_of, registration, slot_memory, tcp_pair,
};

fn hello(layout_version: u32) -> Message<'static> {
    Message::Hello(Hello {
        layout_version,
        ring_log2: 22,
        session: 0,
    })
}

fn bytes(message: &Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let length = message.emit(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

/// What the daemon says to `bytes` with `fds` sound descriptors for HELLO beside them.
fn answer(daemon: &Daemon, bytes: &[u8], fds: usize) -> (Reason, &'static str) {
    let memory = slot_memory();
    let socket = netlink();
    let bell = eventfd();
    let all = [memory.as_fd(), socket.as_fd(), bell.as_fd(), bell.as_fd()];
    let mut wire = Wire::connect(&daemon.socket);
    wire.send_bytes(bytes, &all[..fds]);
    wire.expect_failure()
}

#[test]
fn malformed_messages_end_their_own_connection_only() {
    let daemon = Daemon::start();
    let mut honest = daemon.program();
    let good = bytes(&hello(LAYOUT_VERSION));
    let mut long = good.clone();
    long.push(0);
    for cut in [1, 7, 15, good.len() - 1] {
        answer(&daemon, &good[..cut], 2);
    }
    answer(&daemon, &long, 2);
    for fds in [0, 1, 3, FDS_MAX] {
        let (_, text) = answer(&daemon, &good, fds);
        assert!(text.contains("descriptors"), "{text}");
    }
    let patched = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let (reason, text) = answer(&daemon, &patched(0, b"HTTP"), 2);
    assert!(text.contains("magic"), "{text}");
    assert_eq!(reason, Reason::Version);
    let (_, text) = answer(&daemon, &patched(6, &77u16.to_ne_bytes()), 2);
    assert!(text.contains("kind 77"), "{text}");
    answer(&daemon, &patched(8, &u32::MAX.to_ne_bytes()), 2);
    answer(&daemon, &patched(8, &0u32.to_ne_bytes()), 2);
    answer(&daemon, &vec![b'x'; MESSAGE_MAX + 1], 0);
    answer(&daemon, &vec![0; MESSAGE_MAX * 2], 0);
    // Random bytes behind a good header.
    for seed in 0..200u32 {
        let kind = 1 + seed % 6;
        let mut bytes: Vec<u8> = (0..16 + seed)
            .map(|i| (i ^ seed).wrapping_mul(0x9e37_79b9).to_be_bytes()[0])
            .collect();
        bytes[..16].copy_from_slice(&good[..16]);
        bytes[6..8].copy_from_slice(&u16::try_from(kind).unwrap().to_ne_bytes());
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[8..12].copy_from_slice(&length.to_ne_bytes());
        if bytes.len() == size_of::<Query>() + 16 && kind == 6 {
            continue;
        }
        answer(&daemon, &bytes, 0);
    }
    honest.sync();
    let status = daemon.report(Query::STATUS, 0);
    assert!(status["daemon"]["malformed"].as_u64().unwrap() > 200);
}

#[test]
fn an_empty_message_is_no_message() {
    let daemon = Daemon::start();
    let mut wire = Wire::connect(&daemon.socket);
    wire.send_bytes(&[], &[eventfd().as_fd()]);
    wire.expect_end();
    daemon.program().sync();
}

#[test]
fn other_versions_are_told_apart() {
    let daemon = Daemon::start();
    let (reason, text) = answer(&daemon, &bytes(&hello(LAYOUT_VERSION + 1)), 2);
    assert_eq!(reason, Reason::Version);
    let other = LAYOUT_VERSION + 1;
    assert!(text.contains(&format!("layout version {other}")), "{text}");
    let mut other = bytes(&hello(LAYOUT_VERSION));
    other[4..6].copy_from_slice(&(CONTROL_VERSION + 1).to_ne_bytes());
    let (reason, text) = answer(&daemon, &other, 2);
    assert_eq!(reason, Reason::Version);
    let other = CONTROL_VERSION + 1;
    assert!(text.contains(&format!("control version {other}")), "{text}");
}

#[test]
fn messages_out_of_place_are_refused() {
    let daemon = Daemon::start();
    let slot = SlotRef {
        slot: 0,
        generation: 0,
    };
    let (_, text) = answer(&daemon, &bytes(&Message::Unregister(slot)), 0);
    assert!(text.contains("does not belong"), "{text}");
    // What only the daemon says.
    let text = Text {
        more: 0,
        reserved: 0,
    };
    answer(&daemon, &bytes(&Message::Report(text, "x")), 0);
    answer(&daemon, &bytes(&Message::Failure(text, "x")), 0);
    let welcome = Welcome {
        process: 1,
        layout_version: 1,
        epoch: 1,
        at: 0,
        machine: 0,
        reserved: 0,
    };
    answer(&daemon, &bytes(&Message::Welcome(welcome)), 1);
    // HELLO twice, and a question from a program.
    let again = bytes(&hello(LAYOUT_VERSION));
    let mut program = daemon.program();
    let (memory, socket) = (slot_memory(), netlink());
    program
        .wire
        .send_bytes(&again, &[memory.as_fd(), socket.as_fd()]);
    program.wire.expect_failure();
    let query = Query {
        what: Query::STATUS,
        reserved: 0,
        session: 0,
    };
    let mut program = daemon.program();
    program.wire.send(&Message::Query(query), &[]);
    program.wire.expect_failure();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let daemon = Daemon::start();
    drop(daemon.program());
    let idle = daemon.descriptors();
    let bell = eventfd();
    for _ in 0..200 {
        let mut wire = Wire::connect(&daemon.socket);
        let context = Message::Context(Context {
            context: 0,
            reserved: 0,
        });
        wire.send(&context, &[bell.as_fd(); 4]);
        wire.expect_failure();
    }
    crate::client::retry(|| (daemon.descriptors() <= idle + 8).then_some(()));
}

#[test]
fn a_connection_that_lingers_does_not_hold_the_daemon_up() {
    use std::io::Write;
    let daemon = Daemon::start();
    // Data that nobody reads, and a close that waits for it for an hour.
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..8 {
        let (mut sender, receiver) = tcp_pair();
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[0; 65_536]).is_ok() {}
        let hour = Some(std::time::Duration::from_secs(3600));
        rustix::net::sockopt::set_socket_linger(&sender, hour).unwrap();
        senders.push(sender);
        receivers.push(receiver);
    }
    // The daemon's must be the last descriptor of each.
    kill(daemon.pid(), Signal::SIGSTOP).unwrap();
    let mut wires = Vec::new();
    for sender in senders {
        let wire = Wire::connect(&daemon.socket);
        wire.send_bytes(b"nonsense", &[sender.as_fd()]);
        wires.push(wire);
    }
    kill(daemon.pid(), Signal::SIGCONT).unwrap();
    for mut wire in wires {
        wire.expect_failure();
    }
    for _ in 0..20 {
        daemon.program().sync();
    }
}

#[test]
fn a_hostile_program_hurts_only_itself() {
    let mut daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    let idle = daemon.descriptors();
    let (bell, memory, socket) = (eventfd(), slot_memory(), netlink());
    let (client, _server) = tcp_pair();
    let path = path_of(&client);
    let honest = registration(&client, 1);
    for seed in 1..150u32 {
        let mut state = seed;
        let mut random = move |below: u32| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state % below
        };
        let program = daemon.program();
        // What the arena says changes all the time as well.
        let header = program.slots.header();
        header.slots_used.store(random(u32::MAX), Ordering::SeqCst);
        header.magic.store(0, Ordering::SeqCst);
        for _ in 0..100 {
            let slot = random(4);
            let generation = random(2);
            let message = match random(5) {
                0 => Message::Context(Context {
                    context: random(8),
                    reserved: random(2),
                }),
                1 => Message::Register(Register {
                    slot,
                    generation,
                    cookie: honest.cookie * u64::from(random(2)),
                    family: if random(4) == 0 { 6 } else { 4 },
                    own_port: honest.own_port ^ u16::from(random(4) == 0),
                    ..honest
                }),
                2 => Message::Unregister(SlotRef { slot, generation }),
                3 => Message::Kick(ContextRef {
                    process: random(20),
                    context: random(8),
                }),
                _ => Message::Unregister(SlotRef {
                    slot: random(16_384),
                    generation,
                }),
            };
            let fds = [&bell, &memory, &socket, &path];
            let fds: Vec<_> = (0..message.fds().min)
                .map(|_| match (random(50), &message) {
                    (0, _) => fds[random(4) as usize],
                    (_, Message::Register(_)) => &path,
                    _ => &bell,
                })
                .map(AsFd::as_fd)
                .collect();
            let mut buffer = vec![0; 256];
            let length = message.emit(&mut buffer).unwrap();
            // It may have been disconnected by now.
            if program
                .wire
                .try_send_bytes(&buffer[..length], &fds)
                .is_err()
            {
                break;
            }
        }
    }
    couple.one.sync();
    couple.again(1);
    crate::client::retry(|| (daemon.descriptors() <= idle + 24).then_some(()));
    assert!(daemon.is_running());
}
