//! Connections of guests that a daemon before us relayed, and those that two guests of a region have without us: whose
//! they are and where their memory lies.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use rdma_core::channel::Grant;
use rdma_core::layout::End;

use super::connections::{Freed, GuestEnd, of_relay};
use super::lease::Lease;
use super::seat::{Port, Seat};
use super::server::HOST;
use super::{GUEST_UID, VmId, Vms};
use crate::carving::Place;
use crate::ids::{ArenaId, Process};
use crate::keeper::record::Record;
use crate::pairing::Tuple;
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

/// What is to be done about a connection that a guest has named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Named {
    /// Nothing.
    Known,
    /// Nobody serves it.
    Lost,
    /// The machine of its far end has gone: which, which end, and what that had.
    Left(VmId, usize, Lease),
    /// The driver of its far end has.
    Abandoned(VmId, usize, Lease),
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

    /// A guest names memory that its program `process` has, of the connection that this sees as `tuple`.
    pub fn named(&mut self, vm: VmId, process: Process, tuple: Tuple, grant: &Grant) -> Named {
        let number = grant.connection;
        if let Some((index, ..)) = self.connections.end_of(number, vm) {
            if let Some(seat) = self.seat_mut(vm) {
                seat.unnamed.remove(&(number, index));
            }
            return Named::Known;
        }
        // It has to have told of the program, and cannot have got a second end of anything.
        let is_there = |seat: &Seat| seat.programs.contains_key(&process);
        let is_nobodys = |(_, end): (usize, GuestEnd)| end.vm != vm && !end.relayed;
        let is_new = self
            .connections
            .get(number)
            .is_none_or(|found| found.is_relayed() && found.guests().all(is_nobodys));
        let near = GuestEnd {
            vm,
            process,
            registration: grant.registration,
            place: Place {
                arena: ArenaId(grant.arena),
                offset: grant.offset,
                ring_log2: grant.ring_log2,
                arena_bytes: grant.arena_bytes,
                fresh: false,
            },
            end: End::try_from(grant.end).unwrap_or(End::Zero),
            far: Process(grant.peer),
            granted: true,
            used: true,
            relayed: false,
            kept: None,
        };
        let fits = is_new && self.seat(vm).is_some_and(is_there);
        if grant.relayed != 0 {
            if fits {
                self.name_relayed(number, tuple, grant.at, near);
            }
            return Named::Lost;
        }
        let named = fits.then(|| self.name_direct(number, tuple, grant.at, near));
        named.flatten().unwrap_or(Named::Known)
    }

    /// Nobody serves it, but the guest will say when its program does not have the memory any more.
    fn name_relayed(&mut self, number: u64, tuple: Tuple, at: u64, near: GuestEnd) {
        let port = self
            .seat(near.vm)
            .and_then(|seat| seat.port_number(near.process));
        let region = self.tenancy_mut(near.vm).map(|found| &mut found.region);
        if port == Some(near.far)
            && region.is_some_and(|region| region.inherit_place(at, &near.place).is_some())
        {
            // Which end it was is known to nobody.
            let _is_one = [0, 1]
                .into_iter()
                .any(|index| self.connections.restore(number, index, tuple, near));
        }
    }

    /// A connection that two guests of a region have without us. Whoever maps the region can do anything to it, so the
    /// guest is believed as far as its region is concerned.
    fn name_direct(&mut self, number: u64, tuple: Tuple, at: u64, near: GuestEnd) -> Option<Named> {
        self.connections.get(number).is_none().then_some(())?;
        let vm = self.vm_of_process(near.far).filter(|vm| *vm != near.vm)?;
        (self.vm(vm)?.tenancy == self.vm(near.vm)?.tenancy).then_some(())?;
        let (index, far_index) = (near.end.index(), near.end.far().index());
        let mut far = GuestEnd {
            vm,
            process: near.far,
            registration: 0,
            end: near.end.far(),
            far: near.process,
            ..near
        };
        let last = self.ghosts.lease_of(vm);
        let seat = self.seat_mut(vm);
        let lease = seat.as_ref().map(|seat| seat.lease).or(last);
        let named = match seat {
            Some(seat) if seat.may_number(far.process) => {
                if seat.asked.is_some() {
                    seat.unnamed.insert((number, far_index));
                } else {
                    // It has named everything else.
                    far.used = false;
                }
                Named::Known
            }
            Some(_) => Named::Abandoned(vm, far_index, lease?),
            None => match lease {
                Some(lease) => Named::Left(vm, far_index, lease),
                None => {
                    // Whether anybody has it there, nobody can be asked.
                    self.tenancy_mut(vm)?.region.set_aside(at, &near.place);
                    return None;
                }
            },
        };
        let region = &mut self.tenancy_mut(near.vm)?.region;
        if region.inherit_place(at, &near.place).is_none() {
            if let Some(seat) = self.seat_mut(vm) {
                seat.unnamed.remove(&(number, far_index));
            }
            return None;
        }
        self.connections.restore(number, index, tuple, near);
        self.connections
            .restore(number, far_index, tuple.mirrored(), far);
        Some(named)
    }

    /// A guest has named everything: what it has not is over, and so are the programs that it has not told of.
    pub fn told(&mut self, vm: VmId) -> (BTreeSet<(u64, usize)>, Vec<Process>) {
        let Some(seat) = self.seat_mut(vm) else {
            return Default::default();
        };
        seat.asked = None;
        let unnamed = std::mem::take(&mut seat.unnamed);
        let programs = seat.programs.iter().filter(|(_, found)| !found.announced);
        let left = programs.map(|(process, _)| *process).collect();
        // Of programs of drivers before it nobody hears.
        let is_first = self.blocks_of(vm).count() < 2;
        if let Some(tenancy) = self.tenancy_mut(vm).filter(|_| is_first)
            && let Some(unheard) = &mut tenancy.unheard
        {
            unheard.remove(&vm);
        }
        (unnamed, left)
    }

    /// Frees what nobody has of a region of a daemon before us, as soon as everybody was heard. True: somebody has some
    /// who cannot be asked.
    pub fn inherit_rest(&mut self, tenancy: usize) -> bool {
        let seats = self.of_tenancy(tenancy).filter_map(|vm| self.seat(vm));
        let known: BTreeSet<Lease> = seats.map(|seat| seat.lease).collect();
        let Some(tenancy) = self.tenancies.get_mut(tenancy) else {
            return false;
        };
        if !tenancy.unheard.as_ref().is_some_and(BTreeSet::is_empty) {
            return false;
        }
        if tenancy.region.is_lent_but(&known) {
            return !tenancy.region.is_endless();
        }
        tenancy.unheard = None;
        tenancy.region.inherit_rest();
        false
    }
}

#[cfg(test)]
mod tests;
