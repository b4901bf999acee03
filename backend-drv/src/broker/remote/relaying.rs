//! From two ends that belong together to a relayed connection, and to its end.

use rdma_core::control::{ContextRef, Message, Peer};
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use super::Relay;
use crate::broker::{Action, Beside, Broker, State};
use crate::carving::Couple;
use crate::ids::{ConnectionId, PeerId, Process, RegistrationId};

impl Broker {
    /// The relayed connection of a registration, if it is with `peer`. A program that closes early leaves its
    /// relayed connection behind, so that the far backend hears of the end by it.
    pub(in crate::broker) fn relayed_of(
        &self,
        id: RegistrationId,
        peer: PeerId,
    ) -> Option<ConnectionId> {
        let Some(registration) = self.registrations.get(&id) else {
            let is_it = |relay: Relay| relay.own_id == id && relay.peer == peer && relay.open;
            let mut all = self.connections.iter();
            let found = all.find(|(_, entry)| entry.relay.is_some_and(is_it));
            return found.map(|(connection, _)| *connection);
        };
        let State::Attached(connection, _) = registration.state else {
            return None;
        };
        let relay = self.connections.get(&connection)?.relay?;
        (relay.peer == peer).then_some(connection)
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
        let Some(registration) = self.registrations.get(&id) else {
            return;
        };
        let (process, connects) = (registration.process, registration.connects);
        let Some(port) = self
            .programs
            .get(&process)
            .and_then(|program| program.facts.port)
        else {
            return self.refuse_both(id, peer, far_id, Reason::Unreachable);
        };
        let end = if connects { End::Zero } else { End::One };
        let mut ends = [None, None];
        let mut processes = [port, port];
        if let (Some(slot), Some(who)) = (ends.get_mut(end.index()), processes.get_mut(end.index()))
        {
            *slot = Some(id);
            *who = process;
        }
        match self.find_place(Couple::of(process, port), [process, process], ring_log2) {
            Ok(place) => {
                let relay = Relay {
                    peer,
                    own_id: id,
                    far_id,
                    far,
                    leads: far.is_none(),
                    open: false,
                };
                self.reserve(ends, processes, place, Some(relay));
            }
            Err(reason) => self.refuse_both(id, peer, far_id, reason),
        }
    }

    /// The memory of a relayed connection is there: the relay shall serve it.
    pub(in crate::broker) fn open_relay(&mut self, connection: ConnectionId) {
        let Some(entry) = self.connections.get_mut(&connection) else {
            return;
        };
        let Some(relay) = &mut entry.relay else {
            return;
        };
        relay.open = true;
        entry.holds += 1;
        let (place, relay, ends, processes) = (entry.place, *relay, entry.ends, entry.processes);
        let end = if ends[0].is_some() {
            End::Zero
        } else {
            End::One
        };
        let process = processes[end.index()];
        let domain = self
            .programs
            .get(&process)
            .and_then(|program| program.facts.domain);
        self.actions.push_back(Action::OpenRelay {
            connection,
            place,
            end,
            process,
            peer: relay.peer,
            far: relay.far,
            domain,
        });
    }

    /// The answer to [`Action::OpenRelay`]: where the relay takes bytes for the program.
    pub fn relay_opened(&mut self, connection: ConnectionId, place: Result<FarPlace, Reason>) {
        let Some(entry) = self.connections.get(&connection) else {
            return;
        };
        let Some(relay) = entry.relay else {
            return;
        };
        let Some(id) = entry.ends.into_iter().flatten().next() else {
            // It has left meanwhile.
            return self.give_up_relayed(connection, Reason::NotEstablished);
        };
        match place {
            Ok(_) if entry.revoked => self.give_up_relayed(connection, Reason::Revoked),
            Ok(place) if relay.leads => {
                let ring_log2 = u8::try_from(entry.place.ring_log2).unwrap_or(0);
                let pair = Pairing::Pair {
                    id: relay.far_id,
                    offer: id.0,
                    ring_log2,
                    place,
                };
                self.tell(relay.peer, pair);
            }
            Ok(place) => {
                let paired = Pairing::Paired {
                    offer: relay.far_id,
                    place,
                };
                self.tell(relay.peer, paired);
                self.announce_relayed(connection);
            }
            Err(reason) => self.give_up_relayed(connection, reason),
        }
    }

    /// Tells the program of a connection whose both backends are ready.
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
        let Some(program) = self.programs.get_mut(&process) else {
            return;
        };
        if !program.peers.insert(port) {
            return;
        }
        let body = Peer {
            process: port.0,
            reserved: 0,
        };
        self.send(process, Message::Peer(body), Some(Beside::Events(port)));
        let reference = ContextRef {
            process: port.0,
            context: 0,
        };
        let doorbell = Beside::Doorbell(port, 0);
        self.send(process, Message::PeerContext(reference), Some(doorbell));
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

    /// A connection that was being made will not be: the far backend, which has the other end, is told.
    pub(in crate::broker) fn refuse_relay(&mut self, relay: Relay, reason: Reason) {
        let refusal = Pairing::Refuse {
            id: relay.far_id,
            reason: reason.code(),
        };
        self.tell(relay.peer, refusal);
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
