//! From two registrations that mirror each other to a connection.

use rdma_core::control::{ContextRef, Message, Paired, Peer, SlotRef};
use rdma_core::layout::End;
use rdma_core::reason::Reason;

use super::facts::trusted;
use super::remote::Relay;
use super::{
    Action, Beside, Broker, Connection, Key, Paid, Program, Registration, Shortage, State,
};
use crate::accounts::{Account, Holdings};
use crate::carving::{Couple, Place};
use crate::ids::{ConnectionId, Process, RegistrationId};
use crate::pairing::Comparison;

impl Broker {
    /// Looks for the far end of a registration that was just entered.
    pub(super) fn find_mate(&mut self, id: RegistrationId) {
        let Some(registration) = self.registrations.get(&id) else {
            return;
        };
        let mirrored = registration.tuple.mirrored();
        let key = Key {
            netns: registration.netns,
            tuple: mirrored,
        };
        let named = self.by_key.get(&key).copied();
        if let Some(connection) = named.and_then(|mate| self.alone_in(mate)) {
            // Its far end gave this up before it heard of it, and begins anew.
            self.actions.push_back(Action::TakeBack(connection));
        }
        let near = named.filter(|mate| self.waits(*mate));
        let mate = match near {
            Some(mate) => Some(mate),
            None if registration.owned => {
                let same = self.abroad(registration.tuple, None);
                let far = self.abroad(mirrored, Some(registration.netns));
                match (same.as_slice(), far.as_slice()) {
                    (_, []) => None,
                    ([_], [mate]) => Some(*mate),
                    _ => {
                        // Two domains own one address: nobody can say which of them is meant.
                        for id in same.into_iter().chain(far) {
                            self.refuse(id, Reason::Ambiguous);
                        }
                        return;
                    }
                }
            }
            None => None,
        };
        let Some(mate) = mate else {
            return self.look_abroad(id);
        };
        if self.trust(id, mate) || self.may_be_relayed(id, mate) {
            self.actions.push_back(Action::Compare {
                left: id,
                right: mate,
            });
        } else {
            self.refuse(id, Reason::Untrusted);
            self.refuse(mate, Reason::Untrusted);
        }
    }

    /// The connection of a registration, if nobody is at its other end and no relay serves it.
    fn alone_in(&self, id: RegistrationId) -> Option<ConnectionId> {
        let State::Attached(connection, end) = self.registrations.get(&id)?.state else {
            return None;
        };
        let entry = self.connections.get(&connection)?;
        // One that is being prepared is undone when it is.
        let is_direct = entry.relay.is_none() && entry.uplinked.is_none() && !entry.preparing;
        (is_direct && entry.ends.get(end.far().index())?.is_none()).then_some(connection)
    }

    fn waits(&self, id: RegistrationId) -> bool {
        self.registrations
            .get(&id)
            .is_some_and(|registration| registration.state == State::Waiting)
    }

    /// Waiting registrations of domains that own the address, outside one namespace.
    fn abroad(&self, tuple: crate::pairing::Tuple, except: Option<u64>) -> Vec<RegistrationId> {
        let list = self.by_tuple.get(&tuple).map_or(&[][..], Vec::as_slice);
        list.iter()
            .copied()
            .filter(|id| {
                self.registrations.get(id).is_some_and(|registration| {
                    registration.state == State::Waiting && Some(registration.netns) != except
                })
            })
            .collect()
    }

    fn trust(&self, one: RegistrationId, other: RegistrationId) -> bool {
        let facts = |id| {
            let registration: &Registration = self.registrations.get(&id)?;
            let program = self.programs.get(&registration.process)?;
            Some(&program.facts)
        };
        match (facts(one), facts(other)) {
            (Some(one), Some(other)) => trusted(one, other, &self.domains),
            _ => false,
        }
    }

    /// The answer to [`Action::Compare`].
    pub fn compared(&mut self, left: RegistrationId, right: RegistrationId, result: Comparison) {
        if !self.waits(left) || !self.waits(right) {
            return;
        }
        match result {
            Comparison::Match if self.trust(left, right) => self.connect(left, right),
            Comparison::Match => self.connect_apart(left, right),
            Comparison::Mismatch => {
                self.refuse(left, Reason::Mismatch);
                self.refuse(right, Reason::Mismatch);
            }
            Comparison::Gone {
                left: left_gone,
                right: right_gone,
            } => {
                if left_gone {
                    self.refuse(left, Reason::NotEstablished);
                }
                if right_gone {
                    self.refuse(right, Reason::NotEstablished);
                }
            }
        }
    }

    /// Finds memory for two ends that belong together.
    fn connect(&mut self, left: RegistrationId, right: RegistrationId) {
        let Some((one, other)) = self
            .registrations
            .get(&left)
            .zip(self.registrations.get(&right))
        else {
            return;
        };
        let Some((first, second)) = self
            .programs
            .get(&one.process)
            .zip(self.programs.get(&other.process))
        else {
            return;
        };
        // The connecting end is end 0, if there is just one.
        let swap = other.connects && !one.connects;
        let mut ends = [left, right];
        let mut processes = [one.process, other.process];
        if swap {
            ends.reverse();
            processes.reverse();
        }
        let ring_log2 = first.facts.ring_log2.min(second.facts.ring_log2);
        let couple = Couple::of(processes[0], processes[1]);
        match self.find_place(couple, processes, ring_log2) {
            Ok(place) => {
                let connection = self.new_connection();
                self.reserve(connection, ends.map(Some), processes, place, None);
            }
            Err(reason) => {
                self.refuse(left, reason);
                self.refuse(right, reason);
            }
        }
    }

    /// A place for a connection of `couple`, for which the users of `processes` pay.
    pub(super) fn find_place(
        &mut self,
        couple: Couple,
        processes: [Process; 2],
        ring_log2: u32,
    ) -> Result<Place, Reason> {
        let [first, second] = processes.map(|process| self.programs.get(&process));
        let (Some(first), Some(second)) = (first, second) else {
            return Err(Reason::NotEstablished);
        };
        let accounts = payers(first, second);
        let place = self
            .carving
            .place(couple, ring_log2)
            .ok_or(Reason::NoMemory)?;
        if !place.fresh {
            return Ok(place);
        }
        let memory = Holdings::arena(place.arena_bytes);
        if self.accounts.charge_all(&accounts, memory).is_err() {
            self.carving.forget(place.arena);
            return Err(Reason::Quota);
        }
        let paid = Paid {
            accounts,
            bytes: place.arena_bytes,
            processes,
        };
        self.paid.insert(place.arena, paid);
        Ok(place)
    }

    pub(super) const fn new_connection(&mut self) -> ConnectionId {
        self.last_connection += 1;
        ConnectionId(self.last_connection)
    }

    pub(super) fn reserve(
        &mut self,
        connection: ConnectionId,
        ends: [Option<RegistrationId>; 2],
        processes: [Process; 2],
        place: Place,
        relay: Option<Relay>,
    ) {
        let mut owner = 0;
        for (id, end) in ends.into_iter().zip([End::Zero, End::One]) {
            if let Some(registration) = id.and_then(|id| self.registrations.get_mut(&id)) {
                registration.state = State::Attached(connection, end);
                owner = registration.uid;
            }
        }
        if let Some(own) = relay.as_ref().and_then(Relay::own) {
            self.abroad.insert(own, connection);
        }
        self.connections.insert(
            connection,
            Connection {
                ends,
                processes,
                place,
                preparing: true,
                doomed: None,
                holds: 0,
                relay,
                uplinked: None,
            },
        );
        self.actions.push_back(Action::Prepare {
            connection,
            place,
            owner,
        });
    }

    /// The answer to [`Action::Prepare`]: the memory is there, or could not be had.
    pub fn prepared(&mut self, connection: ConnectionId, result: Result<(), Shortage>) {
        let Some(entry) = self.connections.get_mut(&connection) else {
            return;
        };
        entry.preparing = false;
        let (ends, processes, place) = (entry.ends, entry.processes, entry.place);
        let doomed = entry.doomed;
        let is_relayed = entry.relay.is_some();
        if let Err(shortage) = result {
            self.undo(connection, Reason::NoMemory);
            if shortage == Shortage::Arena {
                // Nobody else can have been given a place in it.
                self.carving.forget(place.arena);
                self.drop_arena(place.arena);
            } else {
                // Perhaps half there: not used again before it has been zeroed.
                self.actions.push_back(Action::Recycle { place });
            }
            return;
        }
        if !ends
            .iter()
            .all(|end| end.map_or(is_relayed, |id| self.attached(id)))
        {
            // One end has left while the memory was made.
            self.undo(connection, Reason::NotEstablished);
            self.actions.push_back(Action::Recycle { place });
            return;
        }
        if let Some(reason) = doomed {
            self.undo(connection, reason);
            self.actions.push_back(Action::Recycle { place });
            return;
        }
        if is_relayed {
            return self.open_relay(connection);
        }
        for (near, far) in [(0, 1), (1, 0)] {
            self.introduce_program(processes[near], processes[far]);
        }
        for (index, id) in ends.into_iter().enumerate() {
            let Some(id) = id else { continue };
            self.announce(connection, id, index, processes[1 - index], &place, false);
        }
    }

    fn attached(&self, id: RegistrationId) -> bool {
        self.registrations
            .get(&id)
            .is_some_and(|registration| matches!(registration.state, State::Attached(..)))
    }

    /// Takes back a connection that nobody has been told of.
    pub(super) fn undo(&mut self, connection: ConnectionId, reason: Reason) {
        let Some(entry) = self.forget_connection(connection) else {
            return;
        };
        if let Some(relay) = entry.relay {
            self.refuse_relay(relay, reason);
        }
        for id in entry.ends.into_iter().flatten() {
            if self.attached(id) {
                if let Some(registration) = self.registrations.get_mut(&id) {
                    registration.state = State::Waiting;
                }
                self.refuse(id, reason);
            }
        }
    }

    /// Makes a program known to another.
    fn introduce_program(&mut self, process: Process, peer: Process) {
        let contexts = self.programs.get(&peer).map(|found| found.contexts.clone());
        if let Some(contexts) = contexts {
            self.introduce(process, peer, contexts);
        }
    }

    /// Makes `peer` known to `process`, unless it is: its event memory and its doorbells.
    pub(super) fn introduce(
        &mut self,
        process: Process,
        peer: Process,
        contexts: impl IntoIterator<Item = u32>,
    ) {
        let Some(program) = self.programs.get_mut(&process) else {
            return;
        };
        if !program.peers.insert(peer) {
            return;
        }
        let body = Peer {
            process: peer.0,
            reserved: 0,
            at: 0,
        };
        self.send(process, Message::Peer(body), Some(Beside::Events(peer)));
        for context in contexts {
            self.tell_context(process, peer, context);
        }
    }

    /// Tells `to` how a context of `peer` is woken.
    pub(super) fn tell_context(&mut self, to: Process, peer: Process, context: u32) {
        let reference = ContextRef {
            process: peer.0,
            context,
        };
        let doorbell = Beside::Doorbell(peer, context);
        self.send(to, Message::PeerContext(reference), Some(doorbell));
    }

    pub(super) fn announce(
        &mut self,
        connection: ConnectionId,
        id: RegistrationId,
        end: usize,
        peer: Process,
        place: &Place,
        relayed: bool,
    ) {
        let Some(registration) = self.registrations.get(&id) else {
            return;
        };
        let process = registration.process;
        let slot = SlotRef {
            slot: registration.slot,
            generation: registration.generation,
        };
        let new = self
            .programs
            .get_mut(&process)
            .is_some_and(|program| program.arenas.insert(place.arena));
        let paired = Paired {
            slot: slot.slot,
            generation: slot.generation,
            conn_id: connection.0,
            arena: place.arena.0,
            ring_log2: place.ring_log2,
            arena_bytes: place.arena_bytes,
            offset: place.offset,
            at: 0,
            peer: peer.0,
            end: u8::try_from(end).unwrap_or(0),
            relayed: relayed.into(),
            reserved: [0; 2],
        };
        let beside = new.then_some(Beside::Arena(place.arena));
        self.send(process, Message::Paired(paired), beside);
    }

    /// The far end of an attached registration: its program and slot, if it has not let go.
    pub fn far_end(&self, id: RegistrationId) -> Option<(ConnectionId, Process)> {
        let (State::Attached(connection, end) | State::Leaving(connection, end)) =
            self.registrations.get(&id)?.state
        else {
            return None;
        };
        let entry = self.connections.get(&connection)?;
        Some((connection, *entry.processes.get(end.far().index())?))
    }
}

/// Everybody who pays for memory shared by two programs.
fn payers(one: &Program, other: &Program) -> Vec<Account> {
    let mut accounts = Vec::with_capacity(4);
    for facts in [&one.facts, &other.facts] {
        let user = Account::User(facts.uid);
        for account in [Some(user), facts.domain.map(Account::Domain)] {
            if let Some(account) = account
                && !accounts.contains(&account)
            {
                accounts.push(account);
            }
        }
    }
    accounts
}
