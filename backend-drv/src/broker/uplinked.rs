//! Connections of a guest's programs whose far end is outside the guest: the host's backend finds it, makes the memory
//! and says where it lies.
//!
//! To the search for the far end the host is a far backend like any other ([`super::remote`]); only that a leader asks
//! it for memory instead of making some, and that a follower is given some instead of being asked for it.

use rdma_core::channel::Grant;
use rdma_core::layout::End;
use rdma_core::wire::pairing::{Names, Pairing, Place as FarPlace};

use super::remote::Stage;
use super::{Action, Broker, Connection, State};
use crate::carving::Place;
use crate::ids::{ArenaId, ConnectionId, PeerId, Process, RegistrationId};
use crate::pairing::Tuple;

/// The host's backend, among far backends.
pub const UPLINK: PeerId = PeerId(u32::MAX);

/// Added to the host's numbers of connections, which are then none of ours.
const HOST_CONNECTIONS: u64 = 1 << 48;
/// Added to the host's numbers of arenas.
const HOST_ARENAS: u32 = 1 << 31;

/// How a connection with an end outside the guest is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Uplinked {
    /// Its far end is a program of another guest, which maps the same memory.
    Direct,
    /// The host's backend relays it.
    Relayed,
}

/// Our number for a connection of the host's.
pub const fn connection_id(host: u64) -> ConnectionId {
    ConnectionId(host | HOST_CONNECTIONS)
}

/// The host's number for one of ours; `None` if it is not the host's.
pub const fn host_connection(id: ConnectionId) -> Option<u64> {
    if id.0 & HOST_CONNECTIONS == 0 {
        return None;
    }
    Some(id.0 & !HOST_CONNECTIONS)
}

/// Our number for an arena of the host's.
pub const fn arena_id(host: u32) -> ArenaId {
    ArenaId(host | HOST_ARENAS)
}

/// The host's number for an arena of its own.
const fn host_arena(id: ArenaId) -> u32 {
    id.0 & !HOST_ARENAS
}

/// Whether an arena is the host's.
pub const fn is_host_arena(id: ArenaId) -> bool {
    id.0 & HOST_ARENAS != 0
}

impl Broker {
    /// A leader has found that two ends are one stream: the host makes the memory.
    pub(super) fn ask_for_memory(&mut self, id: RegistrationId, far: u64, ring_log2: u32) {
        self.set_stage(id, Stage::Settled);
        let pair = Pairing::Pair {
            id: far,
            offer: id.0,
            ring_log2: u8::try_from(ring_log2).unwrap_or(0),
            // The host knows.
            place: FarPlace::NOWHERE,
        };
        self.tell(UPLINK, pair);
    }

    /// Whether a registration waits for memory of the host's.
    pub fn awaits_grant(&self, id: RegistrationId) -> bool {
        self.registrations.get(&id).is_some_and(|registration| {
            registration.state == State::Waiting
                && registration.remote.is_some_and(|remote| {
                    remote.peer == UPLINK
                        && matches!(remote.stage, Stage::Settled | Stage::Answered(_))
                })
        })
    }

    /// The host has made memory for a registration that [waits for it](Broker::awaits_grant).
    pub fn granted(&mut self, grant: &Grant) {
        let id = RegistrationId(grant.registration);
        if !self.awaits_grant(id) {
            return;
        }
        let Ok(end) = End::try_from(grant.end) else {
            return;
        };
        let connection = connection_id(grant.connection);
        let follows = match self.stage(id) {
            Some((registration, remote)) => {
                registration.state = State::Attached(connection, end);
                match remote.stage {
                    Stage::Answered(offer) => Some(offer.id),
                    _ => None,
                }
            }
            None => return,
        };
        self.set_stage(id, Stage::Settled);
        let Some(process) = self.registrations.get(&id).map(|found| found.process) else {
            return;
        };
        let peer = Process(grant.peer);
        let (mut ends, mut processes) = ([None; 2], [peer; 2]);
        if let (Some(slot), Some(who)) = (ends.get_mut(end.index()), processes.get_mut(end.index()))
        {
            (*slot, *who) = (Some(id), process);
        }
        let place = Place {
            arena: arena_id(grant.arena),
            offset: grant.offset,
            ring_log2: grant.ring_log2,
            arena_bytes: grant.arena_bytes,
            fresh: false,
        };
        let is_relayed = grant.relayed != 0;
        self.connections.insert(
            connection,
            Connection {
                ends,
                processes,
                place,
                preparing: false,
                doomed: None,
                holds: 0,
                relay: None,
                uplinked: Some(if is_relayed {
                    Uplinked::Relayed
                } else {
                    Uplinked::Direct
                }),
            },
        );
        if let Some(offer) = follows {
            let paired = Pairing::Paired {
                offer,
                place: FarPlace::NOWHERE,
            };
            self.tell(UPLINK, paired);
        }
        self.introduce_foreign(process, peer);
        self.announce(connection, id, end.index(), peer, &place, is_relayed);
    }

    /// Makes a process outside the guest known to a program.
    fn introduce_foreign(&mut self, process: Process, peer: Process) {
        let Some(contexts) = self.foreign.get(&peer).cloned() else {
            return;
        };
        self.introduce(process, peer, contexts);
    }

    /// There is a process outside the guest that programs may have to do with.
    pub fn foreign_joined(&mut self, peer: Process) {
        self.foreign.entry(peer).or_default();
    }

    /// It has a context.
    pub fn foreign_context(&mut self, peer: Process, context: u32) {
        let Some(contexts) = self.foreign.get_mut(&peer) else {
            return;
        };
        if !contexts.insert(context) {
            return;
        }
        let knowing: Vec<Process> = self
            .programs
            .iter()
            .filter(|(_, program)| program.peers.contains(&peer))
            .map(|(process, _)| *process)
            .collect();
        for process in knowing {
            self.tell_context(process, peer, context);
        }
    }

    /// It has left.
    pub fn foreign_left(&mut self, peer: Process) {
        if self.foreign.remove(&peer).is_none() {
            return;
        }
        let mut knowing = Vec::new();
        for (process, program) in &mut self.programs {
            if program.peers.remove(&peer) {
                knowing.push(*process);
            }
        }
        for process in knowing {
            self.send_gone(process, peer);
        }
    }

    /// All connections whose far end is outside the guest.
    pub fn uplinked_connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        let all = self.connections.iter();
        all.filter(|(_, entry)| entry.uplinked.is_some())
            .map(|(connection, _)| *connection)
    }

    /// The host's memory that programs of this guest hold, as it was granted, but for the place of the arenas.
    pub fn held(&self) -> Vec<(Process, Names, Grant)> {
        let mut held = Vec::new();
        for (connection, entry) in &self.connections {
            let (Some(uplinked), Some(host)) = (entry.uplinked, host_connection(*connection))
            else {
                continue;
            };
            for (end, registration) in [End::Zero, End::One].into_iter().zip(entry.ends) {
                if let Some(registration) = registration
                    && let Some(found) = self.registrations.get(&registration)
                    && let Some(peer) = entry.processes.get(end.far().index())
                {
                    let grant = Grant {
                        registration: registration.0,
                        connection: host,
                        at: 0,
                        arena_bytes: entry.place.arena_bytes,
                        offset: entry.place.offset,
                        arena: host_arena(entry.place.arena),
                        ring_log2: entry.place.ring_log2,
                        peer: peer.0,
                        end: u8::try_from(end.index()).unwrap_or(0),
                        relayed: (uplinked == Uplinked::Relayed).into(),
                        reserved: [0; 2],
                    };
                    let Tuple { own, far } = found.tuple;
                    held.push((found.process, Names { own, far }, grant));
                }
            }
        }
        held
    }

    /// How a connection is served whose far end is outside the guest.
    pub fn uplinked(&self, connection: ConnectionId) -> Option<Uplinked> {
        self.connections.get(&connection)?.uplinked
    }

    /// The connection of a program that left, if its far end is in another guest.
    pub(super) fn left_outside(
        &self,
        id: RegistrationId,
    ) -> Option<(ConnectionId, End, Place, Process)> {
        let State::Leaving(connection, end) = self.registrations.get(&id)?.state else {
            return None;
        };
        let entry = self.connections.get(&connection)?;
        (entry.uplinked == Some(Uplinked::Direct)).then_some(())?;
        let survivor = *entry.processes.get(end.far().index())?;
        Some((connection, end, entry.place, survivor))
    }

    /// The host has gone, or serves another driver of this guest: nothing new is asked of it.
    pub fn uplink_lost(&mut self) {
        self.peer_silent(UPLINK);
        let foreign: Vec<Process> = self.foreign.keys().copied().collect();
        for peer in foreign {
            self.foreign_left(peer);
        }
    }

    /// Says that the memory of a connection is the host's again.
    pub(super) fn tell_end(&mut self, connection: ConnectionId) {
        self.actions.push_back(Action::EndRelay(connection));
    }
}
