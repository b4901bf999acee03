//! Which connections a tool means, and who holds what of a connection that is worked on from outside.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rdma_core::control::{Revoke, SlotRef};
use rdma_core::layout::End;
use rdma_core::reason::Reason;

use super::{Broker, Proof, Registration, State};
use crate::carving::Place;
use crate::ids::{ConnectionId, Process, RegistrationId};
use crate::pairing::Tuple;

/// What a tool asks for: connections of which all of it is true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// The address of either end lies in it.
    pub network: Option<IpNet>,
    /// The port beside that address; 0 is any.
    pub port: u16,
    /// Process id of the program at either end.
    pub pid: Option<u32>,
    /// Its number.
    pub connection: Option<ConnectionId>,
    /// The user at either end; `None` is any.
    pub owner: Option<u32>,
}

impl Filter {
    /// What `body` asks for, of connections of `owner`.
    pub fn of(body: &Revoke, owner: Option<u32>) -> Self {
        let has = |what| body.what & what != 0;
        let address = if body.family == 4 {
            let [a, b, c, d, ..] = body.addr;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(body.addr))
        };
        let network = has(Revoke::ADDRESS)
            .then(|| IpNet::new(address, body.prefix).ok())
            .flatten();
        Self {
            network,
            port: if has(Revoke::ADDRESS) { body.port } else { 0 },
            pid: has(Revoke::PID).then_some(body.pid),
            connection: has(Revoke::CONNECTION).then_some(ConnectionId(body.conn_id)),
            owner,
        }
    }

    /// Whether a connection with one end here is meant, as far as its program has nothing to do with it.
    pub fn fits(&self, connection: ConnectionId, tuple: &Tuple, uid: u32) -> bool {
        self.connection.is_none_or(|wanted| wanted == connection)
            && self.owner.is_none_or(|owner| owner == uid)
            && self.has_address_of(tuple)
    }

    fn fits_address(&self, registration: &Registration) -> bool {
        self.has_address_of(&registration.tuple)
    }

    fn has_address_of(&self, tuple: &Tuple) -> bool {
        self.network.is_none_or(|network| {
            [tuple.own, tuple.far].into_iter().any(|address| {
                network.contains(&address.ip()) && (self.port == 0 || self.port == address.port())
            })
        })
    }

    fn fits_owner(&self, registration: &Registration) -> bool {
        self.owner.is_none_or(|owner| owner == registration.uid)
    }
}

/// What a filter has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matches {
    /// Connections that share memory.
    pub connections: Vec<ConnectionId>,
    /// Registrations without memory yet that are refused.
    pub refused: usize,
}

/// Who is at one end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Occupant {
    /// The registration.
    pub id: RegistrationId,
    /// The program.
    pub process: Process,
    /// Its slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
    /// Its socket.
    pub proof: Proof,
}

/// A connection and its ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Its memory.
    pub place: Place,
    /// Ends 0 and 1; `None` where the end has let go.
    pub occupants: [Option<Occupant>; 2],
}

impl Broker {
    /// Finds what `filter` means. Registrations that wait are refused, for `reason`; `pid_of` tells the process id
    /// of a program.
    pub fn revoke(
        &mut self,
        filter: &Filter,
        reason: Reason,
        pid_of: impl Fn(Process) -> u32,
    ) -> Matches {
        let fits_pid = |registration: &Registration| {
            filter
                .pid
                .is_none_or(|pid| pid == pid_of(registration.process))
        };
        let mut found = Matches::default();
        let mut waiting = Vec::new();
        let registrations = &self.registrations;
        for (&id, registration) in registrations {
            if registration.state == State::Waiting
                && filter.connection.is_none()
                && filter.fits_address(registration)
                && filter.fits_owner(registration)
                && fits_pid(registration)
            {
                waiting.push(id);
            }
        }
        for (&id, connection) in &mut self.connections {
            let numbers = connection.ends;
            let ends = || {
                let ends = numbers.iter().flatten();
                ends.filter_map(|id| registrations.get(id))
            };
            // An end that has left is dealt with already; one that has let go has nothing to go back with.
            let whole = ends()
                .filter(|end| matches!(end.state, State::Attached(..)))
                .count()
                == if connection.relay.is_some() || connection.uplinked.is_some() {
                    1
                } else {
                    2
                };
            if whole
                && filter.connection.is_none_or(|wanted| wanted == id)
                && ends().any(|end| filter.fits_address(end))
                && ends().any(|end| filter.fits_owner(end))
                && ends().any(fits_pid)
            {
                if connection.preparing {
                    connection.doomed = Some(reason);
                    found.refused += numbers.len();
                } else {
                    found.connections.push(id);
                }
            }
        }
        found.refused += waiting.len();
        for id in waiting {
            self.refuse(id, reason);
        }
        found
    }

    /// Who is at the ends of a connection.
    pub fn ends(&self, connection: ConnectionId) -> Option<Ends> {
        let entry = self.connections.get(&connection)?;
        let occupant = |id: Option<RegistrationId>| {
            let id = id?;
            let registration = self.registrations.get(&id)?;
            Some(Occupant {
                id,
                process: registration.process,
                slot: registration.slot,
                generation: registration.generation,
                proof: registration.proof,
            })
        };
        Some(Ends {
            place: entry.place,
            occupants: entry.ends.map(occupant),
        })
    }

    /// The connection of an attached registration, and its end of it.
    pub fn seat_of(&self, id: RegistrationId) -> Option<(ConnectionId, End)> {
        match self.registrations.get(&id)?.state {
            State::Attached(connection, end) => Some((connection, end)),
            State::Waiting | State::Leaving(..) => None,
        }
    }

    /// The far end of an attached slot, if it has not let go.
    pub fn far_registration(&self, process: Process, slot: SlotRef) -> Option<RegistrationId> {
        let id = self.programs.get(&process)?.slots.get(&slot.slot)?;
        let registration = self.registrations.get(id)?;
        if registration.generation != slot.generation {
            return None;
        }
        let (connection, end) = self.seat_of(*id)?;
        *self
            .connections
            .get(&connection)?
            .ends
            .get(end.far().index())?
    }

    /// The connection of an attached slot.
    pub fn connection_of(&self, process: Process, slot: SlotRef) -> Option<ConnectionId> {
        let id = self.programs.get(&process)?.slots.get(&slot.slot)?;
        let registration = self.registrations.get(id)?;
        (registration.generation == slot.generation).then_some(())?;
        Some(self.seat_of(*id)?.0)
    }

    /// A thread begins to work on the memory of a connection. False: it is not there any more.
    #[must_use]
    pub fn hold(&mut self, connection: ConnectionId) -> bool {
        let entry = self.connections.get_mut(&connection);
        entry.is_some_and(|entry| {
            entry.holds += 1;
            true
        })
    }

    /// A thread is done with the memory of a connection.
    pub fn release(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.connections.get_mut(&connection) {
            entry.holds = entry.holds.saturating_sub(1);
            self.recycle_if_unused(connection);
        }
    }
}
