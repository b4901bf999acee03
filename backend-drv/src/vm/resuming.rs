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
mod tests {
    use std::os::fd::OwnedFd;

    use rdma_core::channel::{GUEST_PROCESS_MIN, GUEST_PROCESSES, GuestWelcome, HEAP_START};
    use rdma_core::event::EVENT_BYTES;
    use rdma_core::layout::conn_bytes;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::config::VmConfig;
    use crate::vm::Tenancy;
    use crate::vm::region::{Heap, Region};
    use crate::vm::server::Group;

    const BYTES: u64 = 256 << 20;
    const A: VmId = VmId(0);
    const B: VmId = VmId(1);
    const RUN: u64 = 77;

    /// Two machines of one tenant after a restart of the daemon, with a program each, and what keeps them.
    struct Rig {
        vms: Vms,
        programs: [Process; 2],
        /// Memory of a connection that both had.
        grant: Grant,
        _rest: (Vec<OwnedFd>, tempfile::TempDir),
    }

    fn config(directory: &std::path::Path, name: &str) -> VmConfig {
        VmConfig {
            name: name.to_owned(),
            socket: directory.join(name),
            socket_mode: 0o600,
            tenant: Some("blue".to_owned()),
            addresses: Vec::new(),
            memory_bytes: BYTES,
            memory_path: None,
            vectors: 4,
            weight: 1,
            rate_limit: None,
            shared_network: false,
        }
    }

    fn rig() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let configs = ["a", "b"].map(|name| config(directory.path(), name));
        let mut vms = Vms::open(&configs, 1).unwrap();
        // What the daemon before has given out.
        let old = &mut vms.tenancies[0].region;
        let heaps = [(); 2].map(|()| old.take_heap(2 * EVENT_BYTES as u64).unwrap());
        let programs = [0, 1].map(|index| Process(GUEST_PROCESS_MIN + index * GUEST_PROCESSES + 3));
        let couple = crate::carving::Couple::of(programs[0], programs[1]);
        let (place, arena) = old.place(couple, 16).unwrap();
        let grant = Grant {
            registration: 5,
            connection: 9,
            at: arena.start(),
            arena_bytes: place.arena_bytes,
            offset: place.offset,
            arena: place.arena.0,
            ring_log2: 16,
            peer: programs[1].0,
            end: 0,
            relayed: 0,
            reserved: [0; 2],
        };
        let (mark, memory) = (old.mark(), old.memory().try_clone().unwrap());
        let mut region = Region::restore(0, memory, BYTES, mark).unwrap();
        let memory = Arc::clone(region.memory());
        let mut group = Group::new(Arc::clone(&memory), 4).unwrap();
        let mut rest = Vec::new();
        let unheard = Some([A, B].into());
        for (index, heap) in heaps.into_iter().enumerate() {
            assert!(region.inherit_heap(heap));
            let flags = SocketFlags::CLOEXEC;
            let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let (ours, its) = pair.unwrap();
            rest.push(its);
            let (lent, lease) = region.lend();
            let member = group.join(ours, &lent).unwrap();
            let mut seat = Seat::new(&region, member, lease).unwrap();
            seat.welcome = Some(welcome(index, heap));
            seat.heaps.push(heap);
            seat.asked = Some(RUN);
            let program = seat.program(&region, programs[index], heap.at).unwrap();
            program.announced = true;
            vms.vms[index].seat = Some(seat);
            vms.give_block(u32::try_from(index).unwrap(), VmId(index));
        }
        vms.tenancies[0] = Tenancy {
            region,
            group,
            unheard,
        };
        Rig {
            vms,
            programs,
            grant,
            _rest: (rest, directory),
        }
    }

    fn welcome(index: usize, heap: Heap) -> GuestWelcome {
        GuestWelcome {
            nonce: 1,
            heap_at: heap.at,
            heap_bytes: heap.bytes,
            first_process: GUEST_PROCESS_MIN + u32::try_from(index).unwrap() * GUEST_PROCESSES,
            processes: GUEST_PROCESSES,
            machine: 1,
            reserved: 0,
        }
    }

    impl Rig {
        fn named(&mut self, vm: VmId, grant: &Grant) -> Named {
            let tuple = Tuple {
                own: ([10, 0, 0, 1], 1).into(),
                far: ([10, 0, 0, 2], 2).into(),
            };
            self.vms.named(vm, self.programs[vm.0], tuple, grant)
        }

        /// The same memory as its other end has it.
        fn far(&self) -> Grant {
            Grant {
                peer: self.programs[0].0,
                end: 1,
                ..self.grant
            }
        }

        fn free(&self) -> u64 {
            self.vms.tenancies[0].region.free()
        }
    }

    #[test]
    fn a_direct_connection_is_known_again_and_freed_once() {
        for speaks in [[A, B], [B, A]] {
            let mut rig = rig();
            for vm in speaks {
                let grant = if vm == A { rig.grant } else { rig.far() };
                assert_eq!(rig.named(vm, &grant), Named::Known);
                assert_eq!(rig.named(vm, &grant), Named::Known, "once");
                assert_eq!(rig.vms.connections.count(), (1, 0));
            }
            let number = rig.grant.connection;
            let connection = rig.vms.connections.get(number).unwrap();
            let ends: Vec<_> = connection.guests().map(|(_, end)| end.process).collect();
            assert_eq!(ends, rig.programs);
            for vm in speaks {
                assert!(rig.vms.told(vm).0.is_empty());
            }
            assert_eq!(rig.vms.connections.let_go(number, 0), None);
            let freed = rig.vms.connections.let_go(number, 1).unwrap();
            let before = rig.free();
            rig.vms.tenancies[0].region.release(&freed.end.place, true);
            assert_eq!(rig.free(), before + conn_bytes(1 << 16) as u64);
            rig.vms.tenancies[0].region.release(&freed.end.place, true);
            assert_eq!(rig.free(), before + conn_bytes(1 << 16) as u64, "once");
        }
    }

    #[test]
    fn what_a_far_end_does_not_name_it_has_let_go_of() {
        let mut rig = rig();
        rig.vms.told(B);
        assert_eq!(rig.named(A, &rig.grant.clone()), Named::Known);
        let number = rig.grant.connection;
        assert!(rig.vms.connections.let_go(number, 0).is_some());
        // The other way round it is heard of at the end.
        let mut rig = self::rig();
        assert_eq!(rig.named(A, &rig.grant.clone()), Named::Known);
        assert_eq!(rig.vms.told(B).0, [(number, 1)].into());
    }

    #[test]
    fn who_has_gone_is_named_by_its_far_end() {
        let mut rig = rig();
        let lease = rig.vms.seat(B).unwrap().lease;
        rig.vms.depart(B);
        assert_eq!(rig.named(A, &rig.grant.clone()), Named::Left(B, 1, lease));
        let mut rig = self::rig();
        let seat = rig.vms.seat_mut(B).unwrap();
        let lease = seat.lease;
        seat.welcome.as_mut().unwrap().first_process += 7 * GUEST_PROCESSES;
        let abandoned = Named::Abandoned(B, 1, lease);
        assert_eq!(rig.named(A, &rig.grant.clone()), abandoned);
    }

    #[test]
    fn lies_get_nobody_any_memory() {
        let mut rig = rig();
        let (good, before) = (rig.grant, rig.free());
        let lies = [
            Grant {
                at: HEAP_START,
                ..good
            },
            Grant {
                at: BYTES - good.arena_bytes,
                ..good
            },
            Grant { at: !4095, ..good },
            Grant {
                arena: good.arena + 64,
                ..good
            },
            Grant {
                arena: good.arena + (1 << 20),
                ..good
            },
            Grant { arena: 3, ..good },
            Grant {
                peer: rig.programs[0].0,
                ..good
            },
            Grant { peer: 7, ..good },
        ];
        for lie in lies {
            assert_eq!(rig.named(A, &lie), Named::Known, "{lie:?}");
            assert_eq!(rig.vms.connections.count(), (0, 0), "{lie:?}");
        }
        for lie in lies {
            let lie = Grant { relayed: 1, ..lie };
            assert_eq!(rig.named(A, &lie), Named::Lost, "{lie:?}");
            assert_eq!(rig.vms.connections.count(), (0, 0), "{lie:?}");
        }
        assert_eq!(rig.named(A, &good), Named::Known);
        assert_eq!(rig.vms.connections.count(), (1, 0));
        let again = Grant {
            connection: 10,
            ..good
        };
        rig.named(A, &again);
        assert_eq!(rig.vms.connections.count(), (1, 0), "the same memory");
        assert_eq!(rig.free(), before);
    }

    #[test]
    fn what_nobody_serves_is_freed_when_it_is_let_go_of() {
        let mut rig = rig();
        let port = rig.vms.seat(A).unwrap().port_number(rig.programs[0]);
        let grant = Grant {
            peer: port.unwrap().0,
            relayed: 1,
            ..rig.grant
        };
        assert_eq!(rig.named(A, &grant), Named::Lost);
        assert_eq!(rig.vms.connections.count(), (0, 1));
        assert!(rig.vms.connections.let_go(grant.connection, 0).is_some());
        assert_eq!(rig.vms.connections.count(), (0, 0));
    }

    #[test]
    fn the_rest_is_free_when_all_have_spoken_and_nobody_else_has_it() {
        let mut rig = rig();
        rig.named(A, &rig.grant.clone());
        let before = rig.free();
        let stranger = rig.vms.tenancies[0].region.lend();
        rig.vms.told(A);
        assert!(!rig.vms.inherit_rest(0));
        rig.vms.told(B);
        assert!(rig.vms.inherit_rest(0), "somebody else may have it");
        assert_eq!(rig.free(), before);
        drop(stranger);
        assert!(!rig.vms.inherit_rest(0));
        let held = 4 * EVENT_BYTES + conn_bytes(1 << 16);
        assert_eq!(rig.free(), BYTES - HEAP_START - held as u64);
        // Whoever comes now gets none of what is in use.
        let mut taken = Vec::new();
        while let Some(heap) = rig.vms.tenancies[0].region.take_heap(1 << 20) {
            taken.push(heap.at);
        }
        let grant = rig.grant;
        let range = grant.at + grant.offset..grant.at + grant.offset + conn_bytes(1 << 16) as u64;
        assert!(
            taken
                .iter()
                .all(|at| at + (1 << 20) <= range.start || *at >= range.end)
        );
    }
}
