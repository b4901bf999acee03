use std::collections::{BTreeMap, BTreeSet};

use rdma_core::control::kind::{PAIRED, PEER, PEER_CONTEXT};
use rdma_core::control::{Paired, Revoke};

use super::*;
use crate::pairing::Comparison;

pub(super) const LIMIT: Holdings = Holdings {
    processes: 100,
    connections: 100,
    memory_bytes: 1 << 40,
    descriptors: 1000,
    strays: 0,
};

/// A broker whose questions are answered as well as can be.
pub(super) struct World {
    pub(super) broker: Broker,
    pub(super) accounts: Arc<Accounts>,
    /// Everything sent, in order.
    pub(super) sent: Vec<(Process, Message<'static>, Option<Beside>)>,
    /// Everything else, in order.
    pub(super) done: Vec<Action>,
    pub(super) arenas: BTreeSet<ArenaId>,
    /// Questions are not answered but kept in `done`.
    pub(super) by_hand: bool,
    /// What became of the sockets of programs that leave.
    pub(super) fate: Fate,
    /// What the relay says to ends of one host.
    pub(super) opens: Result<(), Reason>,
}

impl World {
    pub(super) fn new(domains: Vec<Domain>) -> Self {
        let accounts = Arc::new(Accounts::new(LIMIT, vec![None; domains.len()]));
        Self {
            broker: Broker::new(Arc::clone(&accounts), domains, None),
            accounts,
            sent: Vec::new(),
            done: Vec::new(),
            arenas: BTreeSet::new(),
            by_hand: false,
            fate: Fate::Gone,
            opens: Ok(()),
        }
    }

    pub(super) fn join(&mut self, number: u32, netns: u64) -> Process {
        self.join_as(number, netns, 1000, None)
    }

    pub(super) fn join_as(
        &mut self,
        number: u32,
        netns: u64,
        uid: u32,
        port: Option<Process>,
    ) -> Process {
        let process = Process(number);
        let facts = ProgramFacts {
            uid,
            user_namespace: UserNamespace::Own,
            netns,
            domain: self.broker.domain_of(netns),
            ring_log2: 16,
            port,
        };
        self.broker.join(process, facts, 1);
        self.run();
        process
    }

    pub(super) fn register(&mut self, process: Process, slot: u32, ports: (u16, u16), inode: u32) {
        self.try_register(process, slot, ports, Ok(inode));
    }

    fn try_register(
        &mut self,
        process: Process,
        slot: u32,
        ports: (u16, u16),
        inode: Result<u32, Reason>,
    ) {
        let addr = |port: u16| {
            let mut addr = [0; 16];
            addr[..4].copy_from_slice(&[10, 0, 0, if port < 1000 { 1 } else { 2 }]);
            addr
        };
        let register = Register {
            slot,
            generation: 1,
            cookie: 0,
            connects: 1,
            side: if ports.0 < ports.1 { 2 } else { 1 },
            family: 4,
            own_port: ports.0,
            far_port: ports.1,
            reserved: [0; 6],
            own_addr: addr(ports.0),
            far_addr: addr(ports.1),
        };
        let proof = inode.map(|inode| Proof {
            inode,
            cookie: inode.into(),
        });
        self.broker.register(process, &register, proof);
        self.run();
    }

    pub(super) fn unregister(&mut self, process: Process, slot: u32) {
        let slot = SlotRef {
            slot,
            generation: 1,
        };
        self.broker.unregister(process, slot);
        self.run();
    }

    pub(super) fn leave(&mut self, process: Process) {
        self.broker.leave(process);
        self.run();
    }

    pub(super) fn run(&mut self) {
        while let Some(action) = self.broker.poll_action() {
            match action.clone() {
                Action::Send {
                    to,
                    message,
                    beside,
                } => self.sent.push((to, message, beside)),
                Action::Compare { .. }
                | Action::Examine(_)
                | Action::Withdraw { .. }
                | Action::OpenHere(_)
                    if self.by_hand =>
                {
                    self.done.push(action);
                }
                Action::Prepare { place, .. } if self.by_hand => {
                    self.arenas.insert(place.arena);
                    self.done.push(action);
                }
                Action::Compare { left, right } => {
                    self.broker.compared(left, right, Comparison::Match);
                }
                Action::Prepare {
                    connection, place, ..
                } => {
                    assert_eq!(self.arenas.insert(place.arena), place.fresh);
                    self.broker.prepared(connection, Ok(()));
                }
                Action::Recycle { place } => {
                    assert!(self.arenas.contains(&place.arena));
                    self.broker.recycled(&place, true);
                }
                Action::DropArena(arena) => assert!(self.arenas.remove(&arena)),
                Action::Examine(id) => self.broker.examined(id, self.fate),
                Action::Withdraw {
                    connection,
                    end,
                    registration,
                } => {
                    let ends = self.broker.ends(connection).unwrap();
                    let occupant = ends.occupants[end.index()].unwrap();
                    assert_eq!(occupant.id, registration);
                    self.broker.withdrawn(registration);
                }
                Action::OpenHere(halves) => {
                    let both = halves.map(|half| half.connection);
                    self.done.push(action);
                    if self.opens.is_err() {
                        for connection in both {
                            self.broker.relay_closed(connection);
                        }
                    }
                    self.broker.opened_here(both, self.opens);
                }
                Action::CloseRelay(connection) => self.broker.relay_closed(connection),
                other => self.done.push(other),
            }
        }
    }

    /// The comparison that was asked for last.
    pub(super) fn compare(&self) -> (RegistrationId, RegistrationId) {
        let found = self.done.iter().rev().find_map(|action| match action {
            Action::Compare { left, right } => Some((*left, *right)),
            _ => None,
        });
        found.unwrap()
    }

    /// The memory that was asked for last.
    pub(super) fn prepare(&self) -> (ConnectionId, Place) {
        let found = self.done.iter().rev().find_map(|action| match action {
            Action::Prepare {
                connection, place, ..
            } => Some((*connection, *place)),
            _ => None,
        });
        found.unwrap()
    }

    /// What `process` was told since the last time.
    pub(super) fn told(&mut self, process: Process) -> Vec<Message<'static>> {
        let (told, rest) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition::<Vec<_>, _>(|(to, _, _)| *to == process);
        self.sent = rest;
        told.into_iter().map(|(_, message, _)| message).collect()
    }

    pub(super) fn paired(&mut self, process: Process) -> Vec<Paired> {
        self.told(process)
            .into_iter()
            .filter_map(|message| match message {
                Message::Paired(paired) => Some(paired),
                _ => None,
            })
            .collect()
    }

    pub(super) fn refused(&mut self, process: Process) -> Vec<Reason> {
        self.told(process)
            .into_iter()
            .filter_map(|message| match message {
                Message::Refused(refused) => Reason::from_code(refused.reason),
                _ => None,
            })
            .collect()
    }
}

pub(super) fn domain(netns: u64, net: &str, tenant: Option<&str>) -> Domain {
    Domain {
        name: netns.to_string(),
        tenant: tenant.map(str::to_owned),
        netns,
        addresses: vec![net.parse().unwrap()],
    }
}

#[test]
fn a_mate_that_is_gone_is_refused_and_the_other_waits_on() {
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    world.by_hand = true;
    world.register(one, 0, (80, 4000), 11);
    world.register(other, 0, (4000, 80), 12);
    let (left, right) = world.compare();
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
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    world.by_hand = true;
    world.register(one, 0, (80, 4000), 11);
    world.register(other, 0, (4000, 80), 12);
    let (left, right) = world.compare();
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

#[test]
fn an_end_that_leaves_while_memory_is_made_takes_the_other_back_to_tcp() {
    let mut world = World::new(vec![]);
    let (one, other) = (world.join(1, 5), world.join(2, 5));
    world.by_hand = true;
    world.register(one, 0, (80, 4000), 11);
    world.register(other, 0, (4000, 80), 12);
    let (left, right) = world.compare();
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
        let mut world = World::new(vec![]);
        let (one, other) = (world.join(1, 5), world.join(2, 5));
        world.by_hand = true;
        world.register(one, 0, (80, 4000), 11);
        world.register(other, 0, (4000, 80), 12);
        let (left, right) = world.compare();
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

/// Anything in any order: nothing is leaked, nobody is told nonsense.
#[test]
fn whatever_happens_the_books_balance() {
    for seed in 0..300u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u32| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state % u64::from(below)).unwrap()
        };
        let domains = vec![
            domain(1, "10.0.0.1/32", None),
            domain(2, "10.0.0.2/32", None),
        ];
        let mut world = World::new(domains);
        let mut present = BTreeMap::new();
        let mut held = Vec::new();
        let mut next = 0;
        for _ in 0..200 {
            let some = u32::try_from(present.len()).unwrap();
            match random(12) {
                0 | 1 if some < 5 => {
                    next += 1;
                    let process = world.join(next, u64::from(random(3)));
                    present.insert(next, process);
                }
                2 if some > 0 => {
                    let key = *present.keys().nth(random(some) as usize).unwrap();
                    world.leave(present.remove(&key).unwrap());
                }
                3..=6 if some > 0 => {
                    let process = *present.values().nth(random(some) as usize).unwrap();
                    let low = 80 + u16::try_from(random(3)).unwrap();
                    let high = 4000 + u16::try_from(random(3)).unwrap();
                    let ports = if random(2) == 0 {
                        (low, high)
                    } else {
                        (high, low)
                    };
                    let inode = if random(8) == 0 {
                        Err(Reason::Identity)
                    } else {
                        Ok(100 + random(6))
                    };
                    world.try_register(process, random(6), ports, inode);
                }
                7 | 8 if some > 0 => {
                    let process = *present.values().nth(random(some) as usize).unwrap();
                    world.unregister(process, random(6));
                }
                9 if some > 0 => {
                    let process = *present.values().nth(random(some) as usize).unwrap();
                    world.broker.context(process, random(4));
                    world.run();
                }
                10 => {
                    world.fate = [Fate::Gone, Fate::Held][random(2) as usize];
                    let found = world
                        .broker
                        .revoke(&Filter::default(), Reason::Revoked, |_| 0);
                    for connection in found.connections {
                        assert!(world.broker.hold(connection));
                        held.push(connection);
                    }
                    world.run();
                }
                11 => {
                    for connection in held.drain(..) {
                        world.broker.release(connection);
                    }
                    world.run();
                }
                _ => {}
            }
            for (to, message, _) in world.sent.drain(..) {
                // A message that does not survive the wire would disconnect an honest program.
                let mut buffer = [0; 256];
                let length = message.emit(&mut buffer).unwrap();
                let fds = message.fds().min;
                assert_eq!(
                    rdma_core::control::parse(&buffer[..length], fds),
                    Ok(message)
                );
                assert!(present.contains_key(&to.0), "{message:?} to one who left");
            }
        }
        for process in present.into_values() {
            world.leave(process);
        }
        for connection in held {
            world.broker.release(connection);
        }
        world.run();
        let broker = &world.broker;
        assert!(world.arenas.is_empty(), "seed {seed}");
        assert!(broker.programs.is_empty() && broker.registrations.is_empty());
        assert!(broker.by_key.is_empty() && broker.by_tuple.is_empty());
        assert!(broker.connections.is_empty() && broker.carving.is_empty());
        assert!(broker.paid.is_empty() && broker.leaving.is_empty());
        assert_eq!(world.accounts.holdings(Account::User(1000)), Holdings::NONE);
    }
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
