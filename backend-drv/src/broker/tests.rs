//! A broker whose questions are answered as well as can be, and anything that may happen to it, in any order.

use std::collections::{BTreeMap, BTreeSet};

use rdma_core::control::{Paired, Register};

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

    /// Two programs of one user whose ends of a connection are about to be compared, by hand.
    pub(super) fn comparing() -> (Self, [Process; 2], [RegistrationId; 2]) {
        let mut world = Self::new(vec![]);
        let (one, other) = (world.join(1, 5), world.join(2, 5));
        world.by_hand = true;
        world.register(one, 0, (80, 4000), 11);
        world.register(other, 0, (4000, 80), 12);
        let (left, right) = world.compare();
        (world, [one, other], [left, right])
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
