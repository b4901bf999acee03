//! Two ends of one host that do not trust each other.

use super::tests::{World, domain};
use super::*;
use crate::pairing::Comparison;

/// Two programs of two users, as the relay knows them.
fn strangers() -> (World, Process, Process) {
    let mut world = World::new(vec![]);
    let one = world.join_as(1, 5, 1000, Some(Process(901)));
    let other = world.join_as(2, 5, 1001, Some(Process(902)));
    (world, one, other)
}

fn register_both(world: &mut World, one: Process, other: Process) {
    world.register(one, 0, (80, 4000), 11);
    world.register(other, 0, (4000, 80), 12);
}

/// The two ends that the relay was last asked to serve.
fn opened(world: &World) -> [Half; 2] {
    let found = world.done.iter().rev().find_map(|action| match action {
        Action::OpenHere(halves) => Some(*halves),
        _ => None,
    });
    found.expect("the relay was asked")
}

fn relay_lets_go(world: &mut World) {
    for half in opened(world) {
        world.broker.relay_closed(half.connection);
    }
    world.run();
}

#[test]
fn each_shares_memory_with_the_relay_alone() {
    let (mut world, one, other) = strangers();
    register_both(&mut world, one, other);
    let halves = opened(&world);
    assert_eq!(halves.map(|half| half.process), [other, one]);
    assert_eq!(halves.map(|half| half.end), [End::Zero, End::One]);
    let (near, far) = (world.paired(one)[0], world.paired(other)[0]);
    assert_eq!((near.relayed, far.relayed), (1, 1));
    assert_eq!((near.peer, far.peer), (901, 902));
    assert_ne!(near.arena, far.arena);
    assert_eq!((near.end, far.end), (1, 0));
    assert_eq!((near.ring_log2, far.ring_log2), (16, 16));
    for message in &world.sent {
        let (to, _, beside) = message;
        let foreign = [
            Beside::Events(if *to == one { other } else { one }),
            Beside::Arena(ArenaId(if *to == one { far.arena } else { near.arena })),
        ];
        assert!(beside.is_none_or(|beside| !foreign.contains(&beside)));
    }
}

#[test]
fn each_pays_for_its_own_memory() {
    let (mut world, one, other) = strangers();
    register_both(&mut world, one, other);
    let bytes = opened(&world)[0].place.arena_bytes;
    let left = |world: &World, uid| {
        let limit = tests::LIMIT.memory_bytes;
        let free = |bytes| {
            let memory = Holdings::arena(bytes);
            let account = Account::User(uid);
            let fits = world.accounts.charge(account, memory).is_ok();
            if fits {
                world.accounts.discharge(account, memory);
            }
            fits
        };
        free(limit - bytes) && !free(limit - bytes + 1)
    };
    assert!(left(&world, 1000) && left(&world, 1001));
    world.unregister(one, 0);
    world.unregister(other, 0);
    relay_lets_go(&mut world);
    world.leave(one);
    world.leave(other);
    assert!(world.arenas.is_empty());
    assert!(!left(&world, 1000), "all of it is free");
}

#[test]
fn without_a_relay_they_are_untrusted() {
    let mut world = World::new(vec![]);
    let one = world.join_as(1, 5, 1000, None);
    let other = world.join_as(2, 5, 1001, Some(Process(902)));
    register_both(&mut world, one, other);
    assert_eq!(world.refused(one), [Reason::Untrusted]);
    assert_eq!(world.refused(other), [Reason::Untrusted]);
}

#[test]
fn tenants_are_relayed_and_one_tenant_is_not() {
    let tenants = [("a", "b", 1), ("a", "a", 0)];
    for (first, second, relayed) in tenants {
        let mut world = World::new(vec![
            domain(5, "10.0.0.1/32", Some(first)),
            domain(6, "10.0.0.2/32", Some(second)),
        ]);
        let one = world.join_as(1, 5, 0, Some(Process(901)));
        let other = world.join_as(2, 6, 0, Some(Process(902)));
        register_both(&mut world, one, other);
        assert_eq!(world.paired(one)[0].relayed, relayed);
        assert_eq!(world.paired(other)[0].relayed, relayed);
        if relayed == 1 {
            let domains = opened(&world).map(|half| half.domain);
            assert_eq!(domains, [Some(1), Some(0)]);
        }
    }
}

#[test]
fn streams_that_differ_are_a_mismatch_whoever_they_are() {
    let (mut world, one, other) = strangers();
    world.by_hand = true;
    register_both(&mut world, one, other);
    let (left, right) = world.compare();
    world.broker.compared(left, right, Comparison::Mismatch);
    world.run();
    assert_eq!(world.refused(one), [Reason::Mismatch]);
    assert_eq!(world.refused(other), [Reason::Mismatch]);
}

#[test]
fn what_the_relay_does_not_take_is_refused_and_leaves_nothing() {
    let (mut world, one, other) = strangers();
    world.opens = Err(Reason::Quota);
    register_both(&mut world, one, other);
    assert_eq!(world.refused(one), [Reason::Quota]);
    assert_eq!(world.refused(other), [Reason::Quota]);
    assert_eq!(world.broker.connections(), 0);
    // The memory is used again.
    world.opens = Ok(());
    world.register(one, 1, (80, 4001), 13);
    world.register(other, 1, (4001, 80), 14);
    assert_eq!((world.paired(one).len(), world.paired(other).len()), (1, 1));
}

#[test]
fn a_shortage_of_either_refuses_both() {
    for short in 0..2 {
        let (mut world, one, other) = strangers();
        world.by_hand = true;
        register_both(&mut world, one, other);
        let (left, right) = world.compare();
        world.broker.compared(left, right, Comparison::Match);
        world.run();
        let prepares: Vec<_> = world
            .done
            .iter()
            .filter_map(|action| match action {
                Action::Prepare { connection, .. } => Some(*connection),
                _ => None,
            })
            .collect();
        assert_eq!(prepares.len(), 2);
        world.by_hand = false;
        for (index, connection) in prepares.into_iter().enumerate() {
            let result = if index == short {
                Err(Shortage::Pages)
            } else {
                Ok(())
            };
            world.broker.prepared(connection, result);
            world.run();
        }
        assert_eq!(world.refused(one), [Reason::NoMemory], "{short}");
        assert_eq!(world.refused(other), [Reason::NoMemory], "{short}");
        assert_eq!(world.broker.connections(), 0);
    }
}

#[test]
fn a_quota_of_either_refuses_both_and_costs_neither() {
    let (mut world, one, other) = strangers();
    let all = Holdings::arena(tests::LIMIT.memory_bytes);
    world
        .accounts
        .charge(Account::User(1001), all)
        .expect("all");
    register_both(&mut world, one, other);
    assert_eq!(world.refused(one), [Reason::Quota]);
    assert_eq!(world.refused(other), [Reason::Quota]);
    world
        .accounts
        .charge(Account::User(1000), all)
        .expect("all");
}

/// An end that leaves at each moment at which the broker waits for somebody.
#[test]
fn an_end_that_leaves_meanwhile_leaves_nobody_behind() {
    for moment in 0..4 {
        for vanishes in [false, true] {
            let (mut world, one, other) = strangers();
            world.by_hand = true;
            register_both(&mut world, one, other);
            let leave = |world: &mut World, now| {
                if now == moment && vanishes {
                    world.leave(other);
                } else if now == moment {
                    world.unregister(other, 0);
                }
            };
            leave(&mut world, 0);
            let (left, right) = world.compare();
            world.broker.compared(left, right, Comparison::Match);
            world.run();
            leave(&mut world, 1);
            let prepares: Vec<_> = world
                .done
                .iter()
                .filter_map(|action| match action {
                    Action::Prepare { connection, .. } => Some(*connection),
                    _ => None,
                })
                .collect();
            for (index, connection) in prepares.into_iter().enumerate() {
                world.broker.prepared(connection, Ok(()));
                world.run();
                if index == 0 {
                    leave(&mut world, 2);
                }
            }
            let asked = world.done.iter().find_map(|action| match action {
                Action::OpenHere(halves) => Some(halves.map(|half| half.connection)),
                _ => None,
            });
            leave(&mut world, 3);
            if let Some(both) = asked {
                world.broker.opened_here(both, Ok(()));
                world.run();
            }
            let examined: Vec<_> = world
                .done
                .iter()
                .filter_map(|action| match action {
                    Action::Examine(id) => Some(*id),
                    _ => None,
                })
                .collect();
            for id in examined {
                world.broker.examined(id, Fate::Gone);
            }
            world.run();
            if moment == 0 {
                // The other one waits on.
                assert_eq!(world.refused(one), []);
                continue;
            }
            let known = world.told(one);
            let is_paired = |message: &Message<'_>| matches!(message, Message::Paired(_));
            if known.iter().any(is_paired) {
                // Its registration was still there when it was announced.
                assert!(vanishes && moment >= 2);
                world.unregister(one, 0);
                relay_lets_go(&mut world);
            } else {
                let refused = known.iter().find_map(|message| match message {
                    Message::Refused(refused) => Reason::from_code(refused.reason),
                    _ => None,
                });
                assert_eq!(refused, Some(Reason::NotEstablished), "{moment} {vanishes}");
            }
            assert_eq!(world.broker.connections(), 0, "{moment} {vanishes}");
        }
    }
}

#[test]
fn each_end_is_revoked_and_departs_as_one_of_a_link() {
    let (mut world, one, other) = strangers();
    register_both(&mut world, one, other);
    let both = opened(&world).map(|half| half.connection);
    let mut found = world
        .broker
        .revoke(&Filter::default(), Reason::Revoked, |_| 0)
        .connections;
    found.sort_unstable();
    let mut expected = both;
    expected.sort_unstable();
    assert_eq!(found, expected);
    // TCP tells of an end that nobody has said, and the socket is held.
    let held: Vec<_> = {
        let ends = world.broker.ends(both[1]).expect("relayed");
        ends.occupants.iter().flatten().map(|it| it.id).collect()
    };
    for id in held {
        world.broker.examined(id, Fate::Held);
    }
    world.run();
    assert!(world.done.contains(&Action::LingerRelay(both[1])));
    world.unregister(one, 0);
    assert!(world.done.contains(&Action::EndRelay(both[1])));
    world.leave(other);
    let depart = Action::DepartRelay {
        connection: both[0],
        held: false,
    };
    assert!(world.done.contains(&depart));
    relay_lets_go(&mut world);
    assert_eq!(world.broker.connections(), 0);
}
