//! Connections of guests that a daemon before us relayed: whose they are and where their memory lies.

use std::os::fd::AsFd;
use std::sync::Arc;

use rdma_core::channel::Grant;

use super::connections::{Freed, GuestEnd, of_relay};
use super::seat::Port;
use super::server::HOST;
use super::{GUEST_UID, VmId, Vms};
use crate::keeper::record::Record;
use crate::relay::KeptPort;
use crate::shared::ConnectionArena;
use crate::wake::Waiters;

/// Why a connection is not gone on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// Nobody has it.
    #[error("its machine, or the driver in it, has gone")]
    Left,
    /// It is not what a daemon would have written.
    #[error("its record does not fit what was kept of its machine")]
    Nonsense,
}

/// What the relay needs to go on with an end.
#[derive(Debug)]
pub struct Resumed {
    /// The memory.
    pub arena: Arc<ConnectionArena>,
    /// How its program knows the relay, if this is its first connection.
    pub port: Option<KeptPort>,
}

impl Vms {
    /// Goes on with an end that a daemon before us relayed.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn resume(&mut self, record: &Record) -> Result<Resumed, Unfit> {
        let (number, index) = of_relay(record.connection).ok_or(Unfit::Nonsense)?;
        let places = record.guest.ok_or(Unfit::Nonsense)?;
        let vm = self.vm_of_process(record.process).ok_or(Unfit::Left)?;
        let mut end = GuestEnd {
            vm,
            process: record.process,
            registration: 0,
            place: record.place,
            end: record.end,
            far: record.port,
            granted: true,
            used: true,
            relayed: true,
            kept: None,
        };
        let port = self.seat(vm).and_then(|seat| seat.port_number(end.process));
        if port.is_none() {
            end.relayed = false;
            self.leave_behind(places.arena, end);
            return Err(Unfit::Left);
        }
        if port != Some(record.port) || !end.far_is_relay() {
            return Err(Unfit::Nonsense);
        }
        let port = self.resume_port(&end, places.events, places.port);
        let port = port.ok_or(Unfit::Nonsense)?;
        let region = self.tenancy_mut(vm).map(|tenancy| &mut tenancy.region);
        let arena = region.and_then(|region| region.inherit_place(places.arena, &end.place));
        let arena = arena.ok_or(Unfit::Nonsense)?;
        let tuple = record.origin.tuple;
        if !self.connections.restore(number, index, tuple, end) {
            return Err(Unfit::Nonsense);
        }
        if let Some(seat) = self.seat_mut(vm) {
            seat.unnamed.insert((number, index));
        }
        Ok(Resumed {
            arena: Arc::new(arena),
            port,
        })
    }

    /// How a program knows the relay. `None`: that cannot be. `Some(None)`: it is known already.
    #[expect(
        clippy::option_option,
        reason = "whether it can be, and whether it is new"
    )]
    fn resume_port(&mut self, end: &GuestEnd, events: u64, at: u64) -> Option<Option<KeptPort>> {
        let found = self.vms.get_mut(end.vm.0)?;
        let tenancy = self.tenancies.get_mut(found.tenancy)?;
        let seat = found.seat.as_mut()?;
        let program = seat.program(&tenancy.region, end.process, events)?;
        if let Some(port) = &program.port {
            return (port.at == at).then_some(None);
        }
        let bell = tenancy
            .group
            .bell(HOST, tenancy.group.vector_of_port(end.process))?;
        let bell = Arc::new(bell.as_fd().try_clone_to_owned().ok()?);
        let own = tenancy.region.inherit_events(at)?;
        let own = Arc::new(Waiters::new(end.far, GUEST_UID, own));
        program.port = Some(Port {
            waiters: Arc::clone(&own),
            at,
        });
        Some(Some(KeptPort {
            program: Arc::clone(&program.waiters),
            port: own,
            bell,
        }))
    }

    /// The programs of a driver that has gone may have the memory of an end still. `at`: where its arena begins.
    fn leave_behind(&mut self, at: u64, end: GuestEnd) {
        let seated = self.seat(end.vm).map(|seat| seat.lease);
        let lease = seated.or_else(|| self.ghosts.lease_of(end.vm));
        let region = self.tenancy_mut(end.vm).map(|tenancy| &mut tenancy.region);
        if let (Some(lease), Some(region)) = (lease, region)
            && region.inherit_place(at, &end.place).is_some()
        {
            let keepers = [Some((lease, end.end)), None];
            self.ghosts.keep(Freed { end, keepers });
        }
    }

    /// A guest names memory that it has. False: it is relayed, and not by us.
    pub fn named(&mut self, vm: VmId, grant: &Grant) -> bool {
        if grant.relayed == 0 {
            return true;
        }
        let found = self.connections.end_of(grant.connection, vm);
        if let (Some((index, ..)), Some(seat)) = (found, self.seat_mut(vm)) {
            seat.unnamed.remove(&(grant.connection, index));
        }
        found.is_some()
    }
}
