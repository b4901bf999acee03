//! What becomes of an end whose far end leaves, or that gets no memory.

use super::tests::World;
use super::*;
use crate::pairing::Comparison;

#[test]
fn a_socket_kept_over_exec_is_refused_while_its_past_is_looked_into() {
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    world.register(one, 0, (80, 4000), 11);
    world.register(other, 0, (4000, 80), 12);
    world.by_hand = true;
    world.leave(one);
    let Some(Action::Examine(examine)) = world.done.pop() else {
        panic!("nobody looks into it");
    };
    let again = world.join(3, 5);
    world.register(again, 0, (80, 4000), 11);
    assert_eq!(world.refused(again), [Reason::Exec]);
    world.broker.examined(examine, Fate::Held);
    world.run();
    let Some(Action::Withdraw {
        connection,
        end: End::One,
        registration,
    }) = world.done.pop()
    else {
        panic!("the ring is not left");
    };
    assert!(!world.done.contains(&Action::Forget(one)));
    // The survivor closes meanwhile, and a thread is still at work on the memory.
    assert!(world.broker.hold(connection));
    world.unregister(other, 0);
    world.broker.withdrawn(registration);
    world.run();
    assert!(world.done.contains(&Action::Forget(one)));
    assert_eq!(world.broker.connections(), 1);
    world.broker.release(connection);
    world.run();
    assert_eq!(world.broker.connections(), 0);
}

#[test]
fn an_end_that_leaves_while_memory_is_made_takes_the_other_back_to_tcp() {
    let (mut world, [one, other], [left, right]) = World::comparing();
    world.broker.compared(left, right, Comparison::Match);
    world.run();
    world.by_hand = false;
    world.leave(one);
    world.broker.prepared(world.prepare().0, Ok(()));
    world.run();
    assert_eq!(world.refused(other), [Reason::NotEstablished]);
    world.leave(other);
    assert!(world.arenas.is_empty() && world.broker.connections.is_empty());
    assert_eq!(world.accounts.holdings(Account::User(1000)), Holdings::NONE);
}

#[test]
fn an_end_that_begins_anew_has_the_other_let_go() {
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    for _ in 0..2 {
        world.register(one, 0, (80, 4000), 11);
        world.register(other, 0, (4000, 80), 12);
        let connection = ConnectionId(world.paired(one)[0].conn_id);
        assert_eq!(world.paired(other).len(), 1);
        world.done.clear();
        world.unregister(one, 0);
        world.register(one, 0, (80, 4000), 11);
        let is_it = |action: &Action| matches!(action, Action::TakeBack(id) if *id == connection);
        assert_eq!(world.done.iter().filter(|it| is_it(it)).count(), 1);
        // The other one lets go, and asks again.
        world.unregister(other, 0);
        world.register(other, 0, (4000, 80), 12);
        assert_eq!((world.paired(one).len(), world.paired(other).len()), (1, 1));
        world.unregister(one, 0);
        world.unregister(other, 0);
    }
    assert!(world.broker.connections.is_empty());
}

#[test]
fn memory_that_cannot_be_had_is_asked_for_again_the_next_time() {
    for shortage in [Shortage::Arena, Shortage::Pages] {
        let (mut world, [one, other], [left, right]) = World::comparing();
        world.broker.compared(left, right, Comparison::Match);
        world.run();
        let (connection, place) = world.prepare();
        assert!(place.fresh);
        world.broker.prepared(connection, Err(shortage));
        world.by_hand = false;
        world.run();
        assert_eq!(world.refused(one), [Reason::NoMemory]);
        assert_eq!(world.refused(other), [Reason::NoMemory]);
        world.register(one, 0, (80, 4000), 11);
        world.register(other, 0, (4000, 80), 12);
        let paired = world.paired(one);
        assert_eq!(paired.len(), 1);
        assert_eq!(
            paired[0].arena == place.arena.0,
            shortage == Shortage::Pages
        );
    }
}
