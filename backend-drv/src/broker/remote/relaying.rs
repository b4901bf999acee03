//! From two ends that belong together to a relayed connection, and to its end.

use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use super::{Abroad, FarHalf, Relay};
use crate::broker::{Action, Broker, Half, State};
use crate::carving::{Couple, Place};
use crate::ids::{ConnectionId, PeerId, Process, RegistrationId};

/// Who is at the ends of memory that one end shares with the relay.
#[derive(Clone, Copy, Debug)]
pub(in crate::broker) struct Seats {
    pub(in crate::broker) ends: [Option<RegistrationId>; 2],
    pub(in crate::broker) processes: [Process; 2],
}

impl Broker {
    /// The relayed connection of a registration, if it is with `peer`. A program that closes early leaves its
    /// relayed connection behind, so that the far backend hears of the end by it.
    pub(in crate::broker) fn relayed_of(
        &self,
        id: RegistrationId,
        peer: PeerId,
    ) -> Option<ConnectionId> {
        let Some(registration) = self.registrations.get(&id) else {
            let connection = *self.abroad.get(&id)?;
            let relay = self.connections.get(&connection)?.relay?;
            return (relay.open && relay.abroad()?.peer == peer).then_some(connection);
        };
        let State::Attached(connection, _) = registration.state else {
            return None;
        };
        let relay = self.connections.get(&connection)?.relay?;
        (relay.abroad()?.peer == peer).then_some(connection)
    }

    /// Finds memory for an end whose far end is at `peer`.
    pub(in crate::broker) fn relay(
        &mut self,
        id: RegistrationId,
        peer: PeerId,
        far_id: u64,
        far: Option<FarPlace>,
        ring_log2: u32,
    ) {
        let Some(Seats { ends, processes }) = self.seats_of(id) else {
            return self.refuse_both(id, peer, far_id, Reason::Unreachable);
        };
        match self.find_place_beside_relay(id, ring_log2) {
            Ok(place) => {
                let abroad = Abroad {
                    peer,
                    own_id: id,
                    far_id,
                    far,
                    leads: far.is_none(),
                };
                let relay = Relay {
                    far: FarHalf::Abroad(abroad),
                    open: false,
                };
                let connection = self.new_connection();
                self.reserve(connection, ends, processes, place, Some(relay));
            }
            Err(reason) => self.refuse_both(id, peer, far_id, reason),
        }
    }

    /// Who is at the ends of memory that an end shares with the relay; `None`: there is no relay for its program.
    pub(in crate::broker) fn seats_of(&self, id: RegistrationId) -> Option<Seats> {
        let registration = self.registrations.get(&id)?;
        let process = registration.process;
        let port = self.programs.get(&process)?.facts.port?;
        Some(if registration.connects {
            Seats {
                ends: [Some(id), None],
                processes: [process, port],
            }
        } else {
            Seats {
                ends: [None, Some(id)],
                processes: [port, process],
            }
        })
    }

    /// A place for memory that an end shares with the relay. Its user pays.
    pub(in crate::broker) fn find_place_beside_relay(
        &mut self,
        id: RegistrationId,
        ring_log2: u32,
    ) -> Result<Place, Reason> {
        let Some(Seats { processes, .. }) = self.seats_of(id) else {
            return Err(Reason::Unreachable);
        };
        let registration = self.registrations.get(&id);
        let process = registration.map_or(processes[0], |registration| registration.process);
        let couple = Couple::of(processes[0], processes[1]);
        self.find_place(couple, [process, process], ring_log2)
    }

    /// The memory of a relayed connection is there: the relay shall serve it.
    pub(in crate::broker) fn open_relay(&mut self, connection: ConnectionId) {
        let relay = self.connections.get(&connection).and_then(|it| it.relay);
        match relay.map(|relay| relay.far) {
            Some(FarHalf::Abroad(abroad)) => {
                if let Some(half) = self.half(connection) {
                    self.actions.push_back(Action::OpenRelay {
                        half,
                        peer: abroad.peer,
                        far: abroad.far,
                    });
                }
            }
            Some(FarHalf::Here(other)) => self.open_here(connection, other),
            None => {}
        }
    }

    /// What the relay has to know of a connection, which it serves from now on.
    pub(in crate::broker) fn half(&mut self, connection: ConnectionId) -> Option<Half> {
        let entry = self.connections.get_mut(&connection)?;
        let relay = entry.relay.as_mut()?;
        relay.open = true;
        entry.holds += 1;
        let end = if entry.ends[0].is_some() {
            End::Zero
        } else {
            End::One
        };
        let (place, process) = (entry.place, entry.processes[end.index()]);
        let program = self.programs.get(&process);
        Some(Half {
            connection,
            place,
            end,
            process,
            domain: program.and_then(|program| program.facts.domain),
        })
    }

    /// The answer to [`Action::OpenRelay`]: where the relay takes bytes for the program.
    pub fn relay_opened(&mut self, connection: ConnectionId, place: Result<FarPlace, Reason>) {
        let Some(entry) = self.connections.get(&connection) else {
            return;
        };
        let Some(relay) = entry.relay.as_ref().and_then(Relay::abroad).copied() else {
            return;
        };
        let Some(id) = entry.ends.into_iter().flatten().next() else {
            // It has left meanwhile.
            return self.give_up_relayed(connection, Reason::NotEstablished);
        };
        match (place, entry.doomed) {
            (Ok(_), Some(reason)) => self.give_up_relayed(connection, reason),
            (Ok(place), None) if relay.leads => {
                let ring_log2 = u8::try_from(entry.place.ring_log2).unwrap_or(0);
                let pair = Pairing::Pair {
                    id: relay.far_id,
                    offer: id.0,
                    ring_log2,
                    place,
                };
                self.tell(relay.peer, pair);
            }
            (Ok(place), None) => {
                let paired = Pairing::Paired {
                    offer: relay.far_id,
                    place,
                };
                self.tell(relay.peer, paired);
                self.announce_relayed(connection);
            }
            (Err(reason), _) => self.give_up_relayed(connection, reason),
        }
    }

    /// Tells the program of a connection whose both halves are ready.
    pub(in crate::broker) fn announce_relayed(&mut self, connection: ConnectionId) {
        let Some(entry) = self.connections.get(&connection) else {
            return;
        };
        let (ends, processes, place) = (entry.ends, entry.processes, entry.place);
        let index = usize::from(ends[0].is_none());
        let Some(id) = ends[index] else {
            return;
        };
        let (process, port) = (processes[index], processes[1 - index]);
        self.introduce_port(process, port);
        self.announce(connection, id, index, port, &place, true);
    }

    /// Makes the relay known to a program, as if it were a program with one context.
    pub(in crate::broker) fn introduce_port(&mut self, process: Process, port: Process) {
        self.introduce(process, port, [0]);
    }

    /// A relayed connection of which the near program has not been told, or is not there to be told.
    pub(in crate::broker) fn give_up_relayed(&mut self, connection: ConnectionId, reason: Reason) {
        let Some(entry) = self.connections.get(&connection) else {
            return;
        };
        let Some(relay) = entry.relay else {
            return;
        };
        let ends = entry.ends;
        self.refuse_relay(relay, reason);
        self.actions.push_back(Action::CloseRelay(connection));
        for id in ends.into_iter().flatten() {
            // Lets go of the memory, and tells the program.
            self.refuse(id, reason);
        }
    }

    /// A connection that was being made will not be: whoever has the other end is told.
    pub(in crate::broker) fn refuse_relay(&mut self, relay: Relay, reason: Reason) {
        match relay.far {
            FarHalf::Abroad(abroad) => {
                let refusal = Pairing::Refuse {
                    id: abroad.far_id,
                    reason: reason.code(),
                };
                self.tell(abroad.peer, refusal);
            }
            FarHalf::Here(other) => self.drop_half(other, reason),
        }
    }

    /// The relay has let go of a connection.
    pub fn relay_closed(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.connections.get_mut(&connection)
            && let Some(relay) = &mut entry.relay
            && relay.open
        {
            relay.open = false;
            self.release(connection);
        }
    }
}
