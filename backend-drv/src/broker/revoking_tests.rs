//! Connections that are taken off the ring, and which of them a filter finds.

use rdma_core::control::Revoke;

use super::tests::World;
use super::*;
use crate::pairing::Comparison;

/// Two programs with a connection each way around, and one of them with a registration that waits.
fn busy_world() -> (World, Process, Process) {
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    world.register(one, 0, (80, 4000), 11);
    world.register(other, 0, (4000, 80), 12);
    world.register(one, 1, (80, 4001), 13);
    world.register(other, 1, (4001, 80), 14);
    world.register(one, 2, (81, 4002), 15);
    world.sent.clear();
    (world, one, other)
}

#[test]
fn a_filter_finds_what_it_says() {
    let net = |text: &str| Some(text.parse().unwrap());
    let all = Filter::default();
    let cases = [
        (all, 2, 1),
        (
            Filter {
                network: net("10.0.0.1/32"),
                ..all
            },
            2,
            1,
        ),
        (
            Filter {
                network: net("10.0.0.0/24"),
                port: 4001,
                ..all
            },
            1,
            0,
        ),
        (
            Filter {
                network: net("10.0.0.1/32"),
                port: 4001,
                ..all
            },
            0,
            0,
        ),
        (
            Filter {
                network: net("10.0.0.1/32"),
                port: 81,
                ..all
            },
            0,
            1,
        ),
        (
            Filter {
                network: net("fd00::/16"),
                ..all
            },
            0,
            0,
        ),
        (
            Filter {
                pid: Some(101),
                ..all
            },
            2,
            1,
        ),
        (
            Filter {
                pid: Some(102),
                ..all
            },
            2,
            0,
        ),
        (
            Filter {
                pid: Some(1),
                ..all
            },
            0,
            0,
        ),
        (
            Filter {
                connection: Some(ConnectionId(2)),
                ..all
            },
            1,
            0,
        ),
        (
            Filter {
                connection: Some(ConnectionId(9)),
                ..all
            },
            0,
            0,
        ),
        (
            Filter {
                owner: Some(1000),
                ..all
            },
            2,
            1,
        ),
        (
            Filter {
                owner: Some(1001),
                ..all
            },
            0,
            0,
        ),
    ];
    for (filter, connections, refused) in cases {
        let (mut world, one, _) = busy_world();
        let found = world
            .broker
            .revoke(&filter, Reason::Revoked, |process| 100 + process.0);
        world.run();
        assert_eq!(
            (found.connections.len(), found.refused),
            (connections, refused),
            "{filter:?}"
        );
        assert_eq!(world.refused(one), vec![Reason::Revoked; refused]);
    }
}

#[test]
fn a_filter_says_what_the_message_says() {
    let mut body = Revoke {
        what: 0,
        pid: 5,
        conn_id: 6,
        addr: [10, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        family: 4,
        prefix: 24,
        port: 80,
        reserved: 0,
    };
    assert_eq!(Filter::of(&body, None), Filter::default());
    body.what = Revoke::ADDRESS | Revoke::PID | Revoke::CONNECTION;
    let all = Filter {
        network: Some("10.9.0.0/24".parse().unwrap()),
        port: 80,
        pid: Some(5),
        connection: Some(ConnectionId(6)),
        owner: Some(7),
    };
    assert_eq!(Filter::of(&body, Some(7)), all);
    body.family = 6;
    body.prefix = 128;
    let wide = Filter::of(&body, None).network.unwrap();
    assert_eq!(wide.to_string(), "a09::/128");
}

#[test]
fn a_connection_that_is_revoked_while_its_memory_is_made_is_never_told_of() {
    let (mut world, [one, other], [left, right]) = World::comparing();
    world.broker.compared(left, right, Comparison::Match);
    world.run();
    let found = world
        .broker
        .revoke(&Filter::default(), Reason::Revoked, |_| 0);
    assert_eq!((found.connections.len(), found.refused), (0, 2));
    world.by_hand = false;
    world.broker.prepared(world.prepare().0, Ok(()));
    world.run();
    assert_eq!(world.refused(one), [Reason::Revoked]);
    assert_eq!(world.refused(other), [Reason::Revoked]);
    assert_eq!(world.broker.connections(), 0);
}

#[test]
fn the_far_end_of_a_slot_is_found_while_both_are_attached() {
    let (mut world, one, other) = busy_world();
    let slot = |slot, generation| SlotRef { slot, generation };
    let far = world.broker.far_registration(one, slot(0, 1)).unwrap();
    let (connection, _) = world.broker.seat_of(far).unwrap();
    assert_eq!(world.broker.registration(far).unwrap().process, other);
    assert_eq!(world.broker.far_registration(one, slot(0, 2)), None);
    assert_eq!(
        world.broker.far_registration(one, slot(2, 1)),
        None,
        "it waits"
    );
    assert_eq!(world.broker.far_registration(one, slot(9, 1)), None);
    world.unregister(other, 0);
    assert_eq!(world.broker.far_registration(one, slot(0, 1)), None);
    assert!(
        world
            .broker
            .ends(connection)
            .unwrap()
            .occupants
            .contains(&None)
    );
}
