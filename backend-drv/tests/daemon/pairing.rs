//! The life of a connection: registered, paired, let go of, used again.

use std::os::fd::AsFd;

use rdma_core::control::{ContextRef, Message};
use rdma_core::layout::{CONN_MAGIC, ConnHeader, ConsumerWords, ProducerWords, ring_offset};
use rdma_core::layout::{RING_LOG2_MIN, end_offset};
use rdma_core::reason::Reason;
use rdma_core::sync::Ordering;

use crate::client::{
    Connection, Couple, Daemon, Program, eventfd, is_readable, registration, retry, tcp_pair,
};

#[test]
fn two_ends_get_one_memory_and_it_is_zero() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    let (first, second) = couple.paired;
    assert_eq!(
        (first.end, second.end),
        (0, 1),
        "the connecting end is end 0"
    );
    assert_eq!(first.conn_id, second.conn_id);
    assert_eq!((first.arena, first.offset), (second.arena, second.offset));
    assert_eq!(first.peer, couple.other.welcome.process);
    assert_eq!(second.peer, couple.one.welcome.process);
    assert_eq!(first.ring_log2, RING_LOG2_MIN);
    let (one, other) = (couple.map(), couple.map());
    let header: &ConnHeader = one.get(0).unwrap();
    assert_eq!(header.magic.load(Ordering::SeqCst), CONN_MAGIC);
    assert_eq!(header.conn_id.load(Ordering::SeqCst), first.conn_id);
    let word = |memory: &Connection| -> u64 {
        let ring: &ProducerWords = memory.get(ring_offset(1, 1 << RING_LOG2_MIN)).unwrap();
        ring.tail.fetch_add(7, Ordering::SeqCst)
    };
    assert_eq!(word(&one), 0);
    assert_eq!(word(&other), 7);
}

#[test]
fn the_order_of_registration_does_not_matter() {
    let daemon = Daemon::start();
    let (mut one, mut other) = (daemon.program(), daemon.program());
    let (client, server) = tcp_pair();
    other.register(3, &server, &registration(&server, 2));
    other.sync();
    one.register(4, &client, &registration(&client, 1));
    assert_eq!(one.expect_pair().0.end, 0);
    assert_eq!(other.expect_pair().0.end, 1);
}

#[test]
fn a_program_may_talk_to_itself() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let (client, server) = tcp_pair();
    program.register(0, &client, &registration(&client, 1));
    program.register(1, &server, &registration(&server, 2));
    let (first, arena) = program.expect_pair();
    let (second, again) = program.expect_pair();
    assert_eq!(first.conn_id, second.conn_id);
    assert!(arena.is_some() && again.is_none(), "one arena, sent once");
    assert_eq!(first.peer, program.welcome.process);
}

#[test]
fn peers_learn_of_each_other_before_they_are_paired() {
    let daemon = Daemon::start();
    let (mut one, mut other) = (daemon.program(), daemon.program());
    one.add_context(3, eventfd());
    other.add_context(5, eventfd());
    for program in [&mut one, &mut other] {
        assert!(matches!(program.receive().0, Message::ContextKnown(_)));
    }
    let (client, server) = tcp_pair();
    one.register(0, &client, &registration(&client, 1));
    other.register(0, &server, &registration(&server, 2));
    let (message, fds) = one.receive();
    assert!(matches!(message, Message::Peer(peer) if peer.process == other.welcome.process));
    assert_eq!(fds.len(), 1);
    let reference = ContextRef {
        process: other.welcome.process,
        context: 5,
    };
    let (message, fds) = one.receive();
    assert_eq!((message, fds.len()), (Message::PeerContext(reference), 1));
    assert!(matches!(one.receive().0, Message::Paired(_)));
    other.expect_pair();
    // A context that comes later is passed on at once; and nobody is introduced twice.
    other.add_context(6, eventfd());
    let (message, _) = one.receive();
    assert!(matches!(message, Message::PeerContext(found) if found.context == 6));
    let (client, server) = tcp_pair();
    one.register(1, &client, &registration(&client, 1));
    other.register(1, &server, &registration(&server, 2));
    assert!(matches!(one.receive().0, Message::Paired(_)));
}

#[test]
fn every_message_raises_the_mailbox() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let before = retry(|| Some(program.mailbox()).filter(|raised| *raised == 1));
    program.sync();
    retry(|| Some(()).filter(|()| program.mailbox() == before + 1));
}

#[test]
fn a_doorbell_not_at_hand_is_rung_by_the_daemon() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    let bell = eventfd();
    couple.other.add_context(9, &bell);
    couple.other.sync();
    let target = |process| {
        Message::Kick(ContextRef {
            process,
            context: 9,
        })
    };
    let mut stranger = daemon.program();
    stranger
        .wire
        .send(&target(couple.other.welcome.process), &[]);
    stranger.sync();
    assert!(!is_readable(&bell), "a stranger may not");
    couple
        .one
        .wire
        .send(&target(couple.other.welcome.process), &[]);
    retry(|| is_readable(&bell).then_some(()));
}

#[test]
fn a_full_doorbell_does_not_stop_the_daemon() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    let bell = eventfd();
    rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    couple.other.add_context(9, &bell);
    couple.other.sync();
    let kick = Message::Kick(ContextRef {
        process: couple.other.welcome.process,
        context: 9,
    });
    for _ in 0..100 {
        couple.one.wire.send(&kick, &[]);
    }
    couple.one.sync();
}

#[test]
fn memory_is_used_again_after_both_have_let_go_and_is_zero() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    let used = couple.map();
    let ring: &ProducerWords = used.get(ring_offset(0, 1 << RING_LOG2_MIN)).unwrap();
    let head: &ConsumerWords = used.get(end_offset(0) + 256).unwrap();
    for word in [&ring.tail, &ring.base, &head.head] {
        word.store(0xdead_beef, Ordering::SeqCst);
    }
    let place = (couple.paired.0.arena, couple.paired.0.offset);
    couple.one.unregister(0);
    couple.one.sync();
    let (first, _) = couple.again(1);
    assert_ne!((first.arena, first.offset), place, "the other end holds it");
    couple.other.unregister(0);
    couple.other.sync();
    // Clearing takes its time; until then other memory is used.
    for slot in 2..200 {
        let (paired, _) = couple.again(slot);
        if (paired.arena, paired.offset) == place {
            for word in [&ring.tail, &ring.base, &head.head] {
                assert_eq!(word.load(Ordering::SeqCst), 0);
            }
            return;
        }
    }
    panic!("the memory was never used again");
}

#[test]
fn many_connections_of_two_programs_need_few_arenas() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    let mut arenas = 1;
    for slot in 1..100 {
        let (_, arena) = couple.again(slot);
        arenas += usize::from(arena.is_some());
    }
    assert_eq!(arenas, 6, "2 + 4 + 8 + 16 + 32 + 64");
}

#[test]
fn a_connection_to_itself_stays_on_tcp() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let (client, _server) = tcp_pair();
    let mut body = registration(&client, 1);
    body.far_port = body.own_port;
    program.register(0, &client, &body);
    assert_eq!(program.expect_refusal(0), Reason::SelfConnected);
}

#[test]
fn one_socket_registered_twice_is_ambiguous() {
    let daemon = Daemon::start();
    let (mut one, mut other) = (daemon.program(), daemon.program());
    let (client, server) = tcp_pair();
    let body = registration(&client, 1);
    // Two programs hold it: neither can know what the other does.
    one.register(0, &client, &body);
    one.sync();
    other.register(0, client.try_clone().unwrap(), &body);
    assert_eq!(one.expect_refusal(0), Reason::Ambiguous);
    assert_eq!(other.expect_refusal(0), Reason::Ambiguous);
    // On rings already: the first keeps it.
    one.register(1, &client, &body);
    one.register(2, &server, &registration(&server, 2));
    one.expect_pair();
    one.expect_pair();
    other.register(1, &client, &body);
    assert_eq!(other.expect_refusal(1), Reason::Ambiguous);
    // One slot, twice.
    one.register(2, &server, &registration(&server, 2));
    assert_eq!(one.expect_refusal(2), Reason::Ambiguous);
}

#[test]
fn what_waits_can_be_given_up() {
    let daemon = Daemon::start();
    let (mut one, mut other) = (daemon.program(), daemon.program());
    let (client, server) = tcp_pair();
    one.register(0, &client, &registration(&client, 1));
    one.unregister(0);
    one.sync();
    other.register(0, &server, &registration(&server, 2));
    assert!(other.sync().is_empty(), "nobody is there");
    one.register(0, &client, &registration(&client, 1));
    one.expect_pair();
    other.expect_pair();
}

#[test]
fn an_end_that_is_closing_is_not_paired() {
    let daemon = Daemon::start();
    let (mut one, mut other) = (daemon.program(), daemon.program());
    let (client, server) = tcp_pair();
    one.register(0, &client, &registration(&client, 1));
    one.sync();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    other.register(0, &server, &registration(&server, 2));
    let reason = other.wire.receive().map(|(message, _)| message);
    assert!(
        matches!(reason, Some(Message::Refused(refused))
            if Reason::from_code(refused.reason) == Some(Reason::NotEstablished)),
        "{reason:?}"
    );
    drop(one);
}

#[test]
fn ipv6_and_mapped_connections_pair() {
    let daemon = Daemon::start();
    for (listen, connect) in [("[::1]:0", "[::1]"), ("[::]:0", "127.0.0.1")] {
        let Ok(listener) = std::net::TcpListener::bind(listen) else {
            println!("skipped: no IPv6");
            return;
        };
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(format!("{connect}:{port}")).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (mut one, mut other) = (daemon.program(), daemon.program());
        one.register(0, &client, &registration(&client, 1));
        other.register(0, &server, &registration(&server, 2));
        one.expect_pair();
        other.expect_pair();
    }
}

#[test]
fn bytes_in_flight_are_no_mismatch() {
    use std::io::{Read, Write};
    let daemon = Daemon::start();
    let (client, server) = tcp_pair();
    let flow = |mut from: std::net::TcpStream, mut to: std::net::TcpStream| {
        std::thread::spawn(move || {
            let reader = std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while to.read(&mut buffer).is_ok_and(|read| read > 0) {}
            });
            let data = vec![1; 10_000];
            while from.write_all(&data).is_ok() {}
            reader.join().unwrap();
        })
    };
    let there = flow(client.try_clone().unwrap(), server.try_clone().unwrap());
    let back = flow(server.try_clone().unwrap(), client.try_clone().unwrap());
    let (mut one, mut other) = (daemon.program(), daemon.program());
    for slot in 0..50 {
        one.register(slot, &client, &registration(&client, 1));
        other.register(slot, &server, &registration(&server, 2));
        one.expect_pair();
        other.expect_pair();
        one.unregister(slot);
        other.unregister(slot);
        one.sync();
        other.sync();
    }
    // Either may find that the other has reset the connection.
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = server.shutdown(std::net::Shutdown::Both);
    there.join().unwrap();
    back.join().unwrap();
}

#[test]
fn allocating_at_once_pairs_as_well() {
    let daemon = Daemon::with_config("[limits]\nallocate = true");
    let couple = Couple::new(&daemon);
    let blocks = rustix::fs::fstat(couple.arena.as_fd()).unwrap().st_blocks;
    let one = (couple.paired.0.arena_bytes / 2) / 512;
    assert!(u64::try_from(blocks).unwrap() >= one, "{blocks} blocks");
}

#[test]
fn the_smaller_ring_is_taken_and_the_limit_kept() {
    let daemon = Daemon::with_config("[limits]\nring_log2_max = 20\nring_log2_default = 18");
    for (wanted, got) in [((30, 30), 20), ((30, 17), 17), ((0, 30), 18)] {
        let couple = Couple::of(
            Program::with_ring(&daemon.socket, wanted.0),
            Program::with_ring(&daemon.socket, wanted.1),
        );
        assert_eq!(couple.paired.0.ring_log2, got);
    }
}
