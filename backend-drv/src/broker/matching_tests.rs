//! Which registrations are two ends of one connection.

use rdma_core::control::kind::{PAIRED, PEER, PEER_CONTEXT};

use super::tests::{World, domain};
use super::*;
use crate::pairing::Comparison;

#[test]
fn a_mate_that_is_gone_is_refused_and_the_other_waits_on() {
    let (mut world, [one, other], [left, right]) = World::comparing();
    let gone = Comparison::Gone {
        left: false,
        right: true,
    };
    world.broker.compared(left, right, gone);
    world.by_hand = false;
    world.run();
    assert_eq!(world.refused(one), [Reason::NotEstablished]);
    assert_eq!(world.refused(other), []);
    // A late or repeated answer changes nothing.
    world.broker.compared(left, right, Comparison::Match);
    world.run();
    assert_eq!(world.paired(other), []);
    // The next socket with these addresses is its mate.
    world.register(one, 1, (80, 4000), 13);
    assert_eq!(world.paired(other).len(), 1);
}

#[test]
fn a_claim_to_the_addresses_of_a_dead_socket_takes_over() {
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    world.register(one, 0, (80, 4000), 11);
    // The kernel says that the addresses belong to another socket now.
    world.register(other, 0, (80, 4000), 12);
    assert_eq!(world.refused(one), [Reason::NotEstablished]);
    world.register(one, 1, (4000, 80), 13);
    assert_eq!(world.paired(other).len(), 1);
    // Attached, and its end has yet to say that it is closed.
    world.register(one, 2, (80, 4000), 14);
    assert_eq!(world.refused(one), []);
    world.unregister(other, 0);
    world.unregister(one, 1);
    world.register(other, 3, (4000, 80), 15);
    assert_eq!(world.paired(one).len(), 1);
}

#[test]
fn two_domains_that_own_one_address_are_ambiguous() {
    let nets = ["10.0.0.1/32", "10.0.0.2/32", "10.0.0.2/32"];
    let domains = (0..3)
        .map(|index| domain(index as u64 + 1, nets[index], Some("t")))
        .collect();
    let mut world = World::new(domains);
    let programs = [world.join(1, 1), world.join(2, 2), world.join(3, 3)];
    world.register(programs[1], 0, (4000, 80), 12);
    world.register(programs[2], 0, (4000, 80), 13);
    world.register(programs[0], 0, (80, 4000), 11);
    for program in programs {
        assert_eq!(world.refused(program), [Reason::Ambiguous]);
    }
}

#[test]
fn trust_is_a_tenant_or_else_a_user_of_a_namespace() {
    let domains = [
        domain(1, "10.0.0.1/32", Some("t")),
        domain(2, "10.0.0.2/32", Some("t")),
        domain(3, "10.0.0.3/32", Some("u")),
        domain(4, "10.0.0.4/32", None),
    ];
    let facts = |uid, user_namespace, domain| ProgramFacts {
        uid,
        user_namespace,
        netns: 0,
        domain,
        ring_log2: 16,
        port: None,
    };
    let own = UserNamespace::Own;
    let other = UserNamespace::Other(1, 2);
    for (one, two, expected) in [
        (facts(1, own, None), facts(1, own, None), true),
        (facts(1, own, None), facts(2, own, None), false),
        (facts(1, own, None), facts(1, other, None), false),
        (facts(1, other, None), facts(1, other, None), true),
        (
            facts(1, UserNamespace::Unknown, None),
            facts(1, UserNamespace::Unknown, None),
            false,
        ),
        (facts(1, own, Some(0)), facts(2, other, Some(1)), true),
        (facts(0, own, Some(0)), facts(0, own, Some(2)), false),
        (facts(0, own, Some(0)), facts(0, own, Some(3)), false),
        (facts(0, own, Some(3)), facts(0, own, None), true),
    ] {
        assert_eq!(
            facts::trusted(&one, &two, &domains),
            expected,
            "{one:?} {two:?}"
        );
        assert_eq!(facts::trusted(&two, &one, &domains), expected);
    }
}

#[test]
fn a_program_hears_of_its_peer_once_and_in_order() {
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    world.broker.context(other, 7);
    world.run();
    world.told(one);
    for slot in 0..3u16 {
        world.register(one, slot.into(), (80, 4000 + slot), 20 + u32::from(slot));
        world.register(other, slot.into(), (4000 + slot, 80), 30 + u32::from(slot));
    }
    let kinds: Vec<u16> = world.told(one).iter().map(Message::kind).collect();
    assert_eq!(kinds, [PEER, PEER_CONTEXT, PAIRED, PAIRED, PAIRED]);
    let arenas: Vec<bool> = world
        .sent
        .iter()
        .filter(|(to, message, _)| *to == other && matches!(message, Message::Paired(_)))
        .map(|(_, _, beside)| beside.is_some())
        .collect();
    assert_eq!(arenas, [true, false, true], "each arena is sent once");
}

#[test]
fn what_was_inherited_is_left_alone() {
    let mut world = World::new(Vec::new());
    let process = world.join(1, 7);
    let origin = Origin {
        tuple: Tuple {
            own: "10.0.0.1:100".parse().unwrap(),
            far: "10.0.0.2:2000".parse().unwrap(),
        },
        netns: 7,
        uid: 1000,
        proof: Proof {
            inode: 5,
            cookie: 5,
        },
    };
    world.broker.inherit(ConnectionId(40), ArenaId(30), &origin);
    let refusals = |world: &World| {
        let sent = world.sent.iter();
        sent.filter(|(_, message, _)| matches!(message, Message::Refused(_)))
            .count()
    };
    world.register(process, 0, (100, 2000), 5);
    assert_eq!(refusals(&world), 1, "its socket has a connection");
    // Another socket of the same name, later.
    world.register(process, 1, (100, 2000), 6);
    world.register(process, 2, (2000, 100), 8);
    assert_eq!(refusals(&world), 1);
    let paired = world.sent.iter().find_map(|(_, message, _)| match message {
        Message::Paired(paired) => Some(*paired),
        _ => None,
    });
    let paired = paired.unwrap();
    assert_eq!((paired.conn_id, paired.arena), (41, 31));
    world.unregister(process, 1);
    world.broker.disinherit(&origin);
    world.register(process, 3, (100, 2000), 5);
    assert_eq!(refusals(&world), 1);
}
