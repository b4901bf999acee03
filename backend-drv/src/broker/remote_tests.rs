//! Two brokers and a link between them that loses nothing.

use rdma_core::control::Register;
use std::collections::VecDeque;

use rdma_core::wire::pairing::{PAIRING_MAX, Pairing, Place as FarPlace};

use super::*;
use crate::ids::PeerId;
use crate::pairing::Stream;

const NETNS: u64 = 7;
const PORT: Process = Process(900);
const FAR: PeerId = PeerId(0);

struct Host {
    broker: Broker,
    /// Said to the other host and not delivered.
    said: VecDeque<Pairing>,
    sent: Vec<Message<'static>>,
    done: Vec<Action>,
    stream: Option<Stream>,
    reachable: bool,
    /// The kernel is slow to say what it knows of a socket.
    holds_samples: bool,
    opens: Result<(), Reason>,
}

impl Host {
    fn new() -> Self {
        let limit = Holdings {
            processes: 9,
            connections: 9,
            memory_bytes: 1 << 40,
            descriptors: 99,
            strays: 0,
        };
        let accounts = Arc::new(Accounts::new(limit, Vec::new()));
        let mut broker = Broker::new(accounts, Vec::new(), Some(NETNS));
        let facts = ProgramFacts {
            uid: 1000,
            user_namespace: UserNamespace::Own,
            netns: NETNS,
            domain: None,
            ring_log2: 16,
            port: Some(PORT),
        };
        broker.join(Process(1), facts, 1);
        Self {
            broker,
            said: VecDeque::new(),
            sent: Vec::new(),
            done: Vec::new(),
            stream: Some(Stream::default()),
            reachable: true,
            holds_samples: false,
            opens: Ok(()),
        }
    }

    /// Registers the end with the last byte `own` of its address.
    fn register(&mut self, own: u8) {
        let address = |last| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&[10, 9, 0, last]);
            bytes
        };
        let register = Register {
            slot: 0,
            generation: 1,
            cookie: 5,
            connects: 1,
            side: own,
            family: 4,
            own_port: 1000 + u16::from(own),
            far_port: 1000 + u16::from(3 - own),
            reserved: [0; 6],
            own_addr: address(own),
            far_addr: address(3 - own),
        };
        let proof = Proof {
            inode: own.into(),
            cookie: 5,
        };
        self.broker.register(Process(1), &register, Ok(proof));
        self.run();
    }

    fn unregister(&mut self) {
        let slot = SlotRef {
            slot: 0,
            generation: 1,
        };
        self.broker.unregister(Process(1), slot);
        self.run();
    }

    fn run(&mut self) {
        while let Some(action) = self.broker.poll_action() {
            match action {
                Action::Send { message, .. } => self.sent.push(message),
                Action::Reach { id, .. } if self.reachable => self.broker.reachable(id, FAR),
                Action::Sample(_) if self.holds_samples => {}
                Action::Sample(id) => self.broker.sampled(id, self.stream),
                Action::Tell { peer, message } => {
                    assert_eq!(peer, FAR);
                    let mut bytes = [0; PAIRING_MAX];
                    let len = message.emit(&mut bytes);
                    self.said
                        .push_back(Pairing::parse(&bytes[..len]).expect("what was emitted"));
                }
                Action::Prepare { connection, .. } => self.broker.prepared(connection, Ok(())),
                Action::OpenRelay { half, .. } => {
                    let connection = half.connection;
                    let place = FarPlace {
                        endpoint: 40,
                        rkey: 41,
                    };
                    self.done.push(action);
                    if self.opens.is_err() {
                        self.broker.relay_closed(connection);
                    }
                    self.broker
                        .relay_opened(connection, self.opens.map(|()| place));
                }
                Action::CloseRelay(connection) => self.broker.relay_closed(connection),
                other => self.done.push(other),
            }
        }
    }

    fn paired(&self) -> Option<rdma_core::control::Paired> {
        self.sent.iter().find_map(|message| match message {
            Message::Paired(paired) => Some(*paired),
            _ => None,
        })
    }

    fn refused(&self) -> Option<Reason> {
        self.sent.iter().find_map(|message| match message {
            Message::Refused(refused) => Reason::from_code(refused.reason),
            _ => None,
        })
    }

    fn did(&self, what: fn(&Action) -> bool) -> usize {
        self.done.iter().filter(|action| what(action)).count()
    }
}

/// Delivers everything, in turn.
fn talk(one: &mut Host, other: &mut Host) {
    loop {
        let before = one.said.len() + other.said.len();
        if before == 0 {
            return;
        }
        if let Some(message) = one.said.pop_front() {
            other.broker.heard(FAR, message);
            other.run();
        }
        if let Some(message) = other.said.pop_front() {
            one.broker.heard(FAR, message);
            one.run();
        }
    }
}

fn is_recycle(action: &Action) -> bool {
    matches!(action, Action::Recycle { .. })
}

#[test]
fn whoever_registers_first_both_ends_are_paired_once() {
    for leader_first in [true, false] {
        let (mut leader, mut follower) = (Host::new(), Host::new());
        if leader_first {
            leader.register(1);
            talk(&mut leader, &mut follower);
            follower.register(2);
        } else {
            follower.register(2);
            leader.register(1);
        }
        talk(&mut leader, &mut follower);
        for (host, end) in [(&leader, 0), (&follower, 1)] {
            let paired = host.paired().expect("paired");
            assert_eq!(
                (paired.relayed, paired.peer, paired.end, paired.ring_log2),
                (1, PORT.0, end, 16)
            );
            assert_eq!(host.refused(), None);
            assert_eq!(host.broker.connections(), 1);
        }
        assert_eq!(leader.did(|a| matches!(a, Action::JoinRelay { .. })), 1);
        assert_eq!(
            follower.did(|a| matches!(a, Action::OpenRelay { far: Some(_), .. })),
            1
        );
    }
}

#[test]
fn memory_is_used_again_after_program_and_relay_let_go() {
    let (mut leader, mut follower) = (Host::new(), Host::new());
    leader.register(1);
    talk(&mut leader, &mut follower);
    follower.register(2);
    talk(&mut leader, &mut follower);
    leader.unregister();
    assert_eq!(leader.did(|a| matches!(a, Action::EndRelay(_))), 1);
    assert_eq!(leader.did(is_recycle), 0);
    leader.broker.relay_closed(ConnectionId(1));
    leader.run();
    assert_eq!(leader.did(is_recycle), 1);
    follower.broker.relay_closed(ConnectionId(1));
    follower.run();
    assert_eq!(follower.did(is_recycle), 0);
    follower.unregister();
    assert_eq!(follower.did(is_recycle), 1);
}

#[test]
fn two_streams_are_not_one() {
    let (mut leader, mut follower) = (Host::new(), Host::new());
    follower.stream = Some(Stream {
        receive_scale: 3,
        ..Stream::default()
    });
    leader.register(1);
    talk(&mut leader, &mut follower);
    follower.register(2);
    talk(&mut leader, &mut follower);
    assert_eq!(leader.refused(), Some(Reason::Mismatch));
    assert_eq!(follower.refused(), Some(Reason::Mismatch));
}

#[test]
fn an_offer_that_is_withdrawn_is_forgotten() {
    let (mut leader, mut follower) = (Host::new(), Host::new());
    leader.register(1);
    leader.unregister();
    talk(&mut leader, &mut follower);
    follower.register(2);
    talk(&mut leader, &mut follower);
    assert!(follower.paired().is_none() && follower.refused().is_none());
}

#[test]
fn an_offer_that_is_withdrawn_leaves_the_follower_to_the_next_one() {
    // Whether the follower's answer has come, or crosses the withdrawal.
    for compared in [false, true] {
        let (mut leader, mut follower) = (Host::new(), Host::new());
        leader.register(1);
        talk(&mut leader, &mut follower);
        follower.register(2);
        if compared {
            leader.holds_samples = true;
            talk(&mut leader, &mut follower);
            leader.holds_samples = false;
        }
        leader.unregister();
        leader.register(1);
        talk(&mut leader, &mut follower);
        assert_eq!((leader.refused(), follower.refused()), (None, None));
        assert!(leader.paired().is_some() && follower.paired().is_some());
    }
}

#[test]
fn whoever_cannot_serve_says_so_to_both() {
    for leader_fails in [true, false] {
        let (mut leader, mut follower) = (Host::new(), Host::new());
        let failing = if leader_fails {
            &mut leader
        } else {
            &mut follower
        };
        failing.opens = Err(Reason::NoMemory);
        leader.register(1);
        talk(&mut leader, &mut follower);
        follower.register(2);
        talk(&mut leader, &mut follower);
        assert_eq!(leader.refused(), Some(Reason::NoMemory));
        assert_eq!(follower.refused(), Some(Reason::NoMemory));
        assert_eq!(
            (leader.broker.connections(), follower.broker.connections()),
            (0, 0)
        );
    }
}

#[test]
fn a_backend_that_is_silent_costs_its_peers_nothing_but_the_ring() {
    let mut leader = Host::new();
    leader.register(1);
    leader.broker.peer_silent(FAR);
    leader.run();
    assert_eq!(leader.refused(), Some(Reason::Unreachable));
    let mut alone = Host::new();
    alone.reachable = false;
    alone.register(1);
    assert!(alone.refused().is_none() && alone.said.is_empty());
}

#[test]
fn a_backend_that_starts_anew_is_offered_once_more() {
    let (mut leader, mut follower) = (Host::new(), Host::new());
    leader.register(1);
    leader.said.clear();
    leader.broker.peer_renewed(FAR);
    leader.run();
    talk(&mut leader, &mut follower);
    follower.register(2);
    talk(&mut leader, &mut follower);
    assert!(leader.paired().is_some() && follower.paired().is_some());
}

#[test]
fn nonsense_pairs_nobody() {
    let (mut leader, mut follower) = (Host::new(), Host::new());
    leader.register(1);
    follower.register(2);
    let place = FarPlace {
        endpoint: 1,
        rkey: 1,
    };
    for message in [
        Pairing::Pair {
            id: 1,
            offer: 99,
            ring_log2: 16,
            place,
        },
        Pairing::Paired { offer: 1, place },
        Pairing::Candidate {
            offer: 99,
            id: 1,
            ring_log2: 16,
            sample: Stream::default(),
        },
    ] {
        follower.broker.heard(FAR, message);
        follower.run();
    }
    assert!(follower.paired().is_none());
    follower.said.clear();
    talk(&mut leader, &mut follower);
    assert!(leader.paired().is_some() && follower.paired().is_some());
}
