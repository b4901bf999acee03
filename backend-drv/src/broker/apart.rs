//! Two ends of this host that do not trust each other: each shares memory with the relay alone, which copies between
//! the two.
//!
//! To the broker that is two connections with one end each, as the two daemons of a connection between hosts have
//! them. They come into being together or not at all.

use rdma_core::reason::Reason;

use super::remote::{FarHalf, Relay};
use super::{Action, Broker};
use crate::accounts::Holdings;
use crate::carving::Place;
use crate::ids::{ConnectionId, RegistrationId};

impl Broker {
    /// Whether there is a relay for both ends.
    pub(super) fn may_be_relayed(&self, one: RegistrationId, other: RegistrationId) -> bool {
        [one, other]
            .into_iter()
            .all(|id| self.seats_of(id).is_some())
    }

    /// Finds memory for two ends that belong together, for each on its own.
    pub(super) fn connect_apart(&mut self, left: RegistrationId, right: RegistrationId) {
        let (Some(near), Some(far)) = (self.seats_of(left), self.seats_of(right)) else {
            return self.refuse_two(left, right, Reason::Untrusted);
        };
        let ring_log2 = self.ring_log2_of(left).min(self.ring_log2_of(right));
        let ring_log2 = u32::from(ring_log2);
        let place = match self.find_place_beside_relay(left, ring_log2) {
            Ok(place) => place,
            Err(reason) => return self.refuse_two(left, right, reason),
        };
        let far_place = match self.find_place_beside_relay(right, ring_log2) {
            Ok(place) => place,
            Err(reason) => {
                self.give_back_place(&place);
                return self.refuse_two(left, right, reason);
            }
        };
        let (one, other) = (self.new_connection(), self.new_connection());
        let relay = |far| Relay {
            far: FarHalf::Here(far),
            open: false,
        };
        let (to_one, to_other) = (relay(one), relay(other));
        self.reserve(one, near.ends, near.processes, place, Some(to_other));
        self.reserve(other, far.ends, far.processes, far_place, Some(to_one));
    }

    fn refuse_two(&mut self, one: RegistrationId, other: RegistrationId, reason: Reason) {
        self.refuse(one, reason);
        self.refuse(other, reason);
    }

    /// Nothing was done with a place yet.
    fn give_back_place(&mut self, place: &Place) {
        if place.fresh {
            self.carving.forget(place.arena);
            if let Some(paid) = self.paid.remove(&place.arena) {
                let memory = Holdings::arena(paid.bytes);
                self.accounts.discharge_all(&paid.accounts, memory);
            }
        } else {
            self.recycled(place, true);
        }
    }

    /// The memory of one half is there. The relay is asked when that of the other is, too.
    pub(super) fn open_here(&mut self, connection: ConnectionId, other: ConnectionId) {
        match self.connections.get(&other).map(|entry| entry.preparing) {
            Some(true) => {}
            Some(false) => {
                let (one, other) = (connection.min(other), connection.max(other));
                if let (Some(one), Some(other)) = (self.half(one), self.half(other)) {
                    self.actions.push_back(Action::OpenHere([one, other]));
                }
            }
            // The other end has left.
            None => self.drop_half(connection, Reason::NotEstablished),
        }
    }

    /// One half of a connection that is being made, whose other half will not be.
    pub(super) fn drop_half(&mut self, connection: ConnectionId, reason: Reason) {
        let Some(entry) = self.connections.get_mut(&connection) else {
            return;
        };
        if entry.preparing {
            entry.doomed = Some(reason);
            return;
        }
        let place = entry.place;
        self.undo(connection, reason);
        self.actions.push_back(Action::Recycle { place });
    }

    /// The answer to [`Action::OpenHere`]: both halves are served, or neither is.
    pub fn opened_here(&mut self, both: [ConnectionId; 2], result: Result<(), Reason>) {
        let wrong = both.into_iter().find_map(|connection| {
            let entry = self.connections.get(&connection);
            let Some(entry) = entry.filter(|entry| entry.ends != [None, None]) else {
                // It has left meanwhile.
                return Some(Reason::NotEstablished);
            };
            entry.doomed
        });
        let result = result.and(wrong.map_or(Ok(()), Err));
        for connection in both {
            match result {
                Ok(()) => self.announce_relayed(connection),
                Err(reason) => self.give_up_half(connection, reason),
            }
        }
    }

    /// Neither program has been told of the connection, nor will be.
    fn give_up_half(&mut self, connection: ConnectionId, reason: Reason) {
        let Some(entry) = self.connections.get(&connection) else {
            return;
        };
        let ends = entry.ends;
        self.actions.push_back(Action::CloseRelay(connection));
        for id in ends.into_iter().flatten() {
            // Lets go of the memory, and tells the program.
            self.refuse(id, reason);
        }
    }
}
