//! Ends, programs, drivers and machines that go.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rdma_core::channel::Down;
use rdma_core::event::WaitFor;
use rdma_core::reason::Reason;
use rdma_core::sync::full_barrier;

use crate::broker::Filter;
use crate::carving::Place;
use crate::daemon::Daemon;
use crate::ids::{ConnectionId, Process};
use crate::pairing::Tuple;
use crate::relay::Command;
use crate::vm::connections::{Connection, Freed, relay_id};
use crate::vm::ghosts::{Asked, Retired};
use crate::vm::lease::Lease;
use crate::vm::region::is_in_region;
use crate::vm::switch::Side;
use crate::vm::{GUEST_UID, VmId};
use crate::workers::Job;

impl Daemon {
    /// A guest's program uses the memory of a connection no more.
    pub(super) fn guest_let_go(&mut self, number: u64, index: usize) {
        let relayed = self
            .vms
            .connections
            .get(number)
            .is_some_and(Connection::is_relayed);
        if relayed {
            self.command(Command::End(relay_id(number, index)));
        }
        if let Some(freed) = self.vms.connections.let_go(number, index) {
            self.recycle_guest(&freed);
        }
    }

    /// Has the memory of a connection zeroed, as soon as nobody can use it any more.
    pub(super) fn recycle_guest(&mut self, freed: &Freed) {
        self.recycle_asked(freed, &mut Asked::default());
    }

    fn recycle_asked(&mut self, freed: &Freed, asked: &mut Asked) {
        let mut freed = *freed;
        let Some(index) = self.vms.vm(freed.end.vm).map(|vm| vm.tenancy) else {
            return;
        };
        let Some(tenancy) = self.vms.tenancies.get(index) else {
            return;
        };
        let Some(arena) = tenancy.region.arena(freed.end.place.arena) else {
            return;
        };
        for keeper in &mut freed.keepers {
            let _over = keeper.take_if(|(lease, end)| {
                let words = arena.end(freed.end.place.offset, *end);
                words.is_some_and(|words| words.state.has_let_go())
                    || !asked.is_lent(index, &tenancy.region, *lease)
            });
        }
        if freed.keepers.iter().any(Option::is_some) {
            return self.vms.ghosts.keep(freed);
        }
        let job = Job::Clear {
            arena: Arc::new(arena),
            place: freed.end.place,
        };
        self.workers.submit(GUEST_UID, job);
    }

    /// Frees what was kept for programs whose driver has died or left, and which have let go of it or are gone as well.
    pub(super) fn look_after_ghosts(&mut self, now: Instant) {
        let mut asked = Asked::default();
        for freed in std::mem::take(&mut self.vms.ghosts.memory) {
            self.recycle_asked(&freed, &mut asked);
        }
        for port in std::mem::take(&mut self.vms.ghosts.ports) {
            self.recycle_port(port, &mut asked);
        }
        let (tenancies, vms) = (&self.vms.tenancies, &self.vms.vms);
        let is_over = |vm: VmId, lease| {
            let index = vms.get(vm.0).map(|vm| vm.tenancy);
            let found = index.and_then(|index| Some((index, tenancies.get(index)?)));
            found.is_none_or(|(index, tenancy)| !asked.is_lent(index, &tenancy.region, lease))
        };
        let (blocks, heaps) = self.vms.ghosts.take_over(is_over);
        self.vms.free_blocks(&blocks);
        for (vm, heap) in heaps {
            if let Some(tenancy) = self.vms.tenancy_mut(vm) {
                tenancy.region.give_back_heap(heap);
            }
        }
        // Also of a daemon before us, whose ghosts are known by their locks only.
        let mut more = false;
        for tenancy in 0..self.vms.tenancies.len() {
            more |= self.reset_if_unused(tenancy) | self.vms.inherit_rest(tenancy);
        }
        self.vms.ghosts.rest(now, more);
    }

    /// Has a region begin anew that nobody shares any more. What was kept for those who have left is part of it: as long
    /// as that is not given back, it would be given back to what is another region by then. True: nobody shares it, but
    /// that is not possible yet.
    fn reset_if_unused(&mut self, tenancy: usize) -> bool {
        let is_its = |vm: VmId| self.vms.vm(vm).is_some_and(|vm| vm.tenancy == tenancy);
        let is_kept = self.vms.ghosts.members.iter().any(|ghost| is_its(ghost.vm));
        // One that cannot be told anything is no member any more, but has not departed yet.
        let is_seated = |vm| self.vms.seat(vm).is_some();
        let is_shared = self.vms.of_tenancy(tenancy).any(is_seated);
        let unused = self.vms.tenancies.get_mut(tenancy);
        let unused = unused.filter(|tenancy| tenancy.group.members().next().is_none());
        let Some(tenancy) = unused else { return false };
        if !is_kept && !is_shared {
            tenancy.region.reset();
        }
        tenancy.region.may_be_reset()
    }

    /// The relay has let go of a port; its program may not have.
    fn recycle_port(&mut self, port: Retired, asked: &mut Asked) {
        let Some(tenancy) = self.vms.tenancies.get_mut(port.tenancy) else {
            return;
        };
        if port
            .lease
            .is_some_and(|lease| asked.is_lent(port.tenancy, &tenancy.region, lease))
        {
            return self.vms.ghosts.ports.push(port);
        }
        tenancy.region.give_back_events(port.at);
        self.reset_if_unused(port.tenancy);
    }

    /// Memory of a connection has been zeroed, or not. False: it is none of a guest's.
    pub(in crate::daemon) fn guest_recycled(&mut self, place: &Place, zeroed: bool) -> bool {
        if !is_in_region(place.arena) {
            return false;
        }
        let mut tenancies = self.vms.tenancies.iter_mut().enumerate();
        let found = tenancies.find(|(_, tenancy)| tenancy.region.arena(place.arena).is_some());
        if let Some((index, tenancy)) = found {
            tenancy.region.release(place, zeroed);
            self.reset_if_unused(index);
        }
        true
    }

    /// A program has left its guest; or, for one with a lease, its driver has, and nobody looks after it any more.
    pub(super) fn guest_program_left(&mut self, vm: VmId, process: Process, lease: Option<Lease>) {
        let Some(seat) = self.vms.seat_mut(vm) else {
            return;
        };
        let program = seat.programs.remove(&process);
        let port = program.and_then(|program| program.port);
        for other in self.who_knows(process) {
            self.tell_vm(other, &Down::ProgramGone(process.0));
            if let Some(seat) = self.vms.seat_mut(other) {
                for program in seat.programs.values_mut() {
                    program.knows.remove(&process);
                }
            }
        }
        if let Some(port) = port {
            self.command(Command::RemovePort(process));
            if let Some(tenancy) = self.vms.tenancy_mut(vm) {
                tenancy.region.leave(port.waiters.process);
            }
            if let Some(found) = self.vms.vm(vm) {
                let retired = Retired {
                    tenancy: found.tenancy,
                    at: port.at,
                    lease,
                };
                self.vms.retired.insert(process, retired);
            }
        }
        if let Some(tenancy) = self.vms.tenancy_mut(vm) {
            tenancy.region.leave(process);
        }
    }

    /// Takes connections of guests back to TCP that a tool means; how many.
    pub(in crate::daemon) fn revoke_guests(&mut self, filter: &Filter) -> usize {
        // A guest's programs are no processes of this host, and its connections have other numbers.
        if filter.pid.is_some() || filter.connection.is_some() {
            return 0;
        }
        let fits = |tuple: &Tuple| filter.fits(ConnectionId(0), tuple, GUEST_UID);
        let found = self.vms.connections.matching(fits);
        for number in &found {
            let Some(connection) = self.vms.connections.get(*number).copied() else {
                continue;
            };
            for (index, end) in connection.guests() {
                if end.used {
                    // For good, which the words of a relayed connection do not say.
                    let connection = *number;
                    let may_return = false;
                    self.tell_vm(
                        end.vm,
                        &Down::Withdraw {
                            connection,
                            may_return,
                        },
                    );
                }
                if end.far_is_relay() {
                    self.command(Command::Withdraw(relay_id(*number, index)));
                }
            }
        }
        found.len()
    }

    /// The relay has let go of the port of a program that has left.
    pub(in crate::daemon) fn guest_port_dropped(&mut self, process: Process) {
        if let Some(port) = self.vms.retired.remove(&process) {
            self.recycle_port(port, &mut Asked::default());
            self.vms.ghosts.note();
        }
    }

    /// A driver has ended, and its programs are looked after no more.
    pub(super) fn guest_ended(&mut self, vm: VmId) {
        let mut deeds = Vec::new();
        let is_it = |side| side == Side::Vm(vm) || side == Side::Local(vm);
        self.vms.switch.forget(is_it, Reason::FarEnd, &mut deeds);
        self.do_deeds(deeds);
        let Some(seat) = self.vms.seat(vm) else {
            return;
        };
        let lease = seat.lease;
        let programs: Vec<Process> = seat.programs.keys().copied().collect();
        for process in programs {
            self.guest_program_left(vm, process, Some(lease));
        }
        if let Some(seat) = self.vms.seat_mut(vm) {
            seat.welcome = None;
        }
        self.broker.peer_renewed(vm.peer());
    }

    /// A machine has gone, and takes everything of its own along. Its far ends are told at once: no kernel will.
    pub(super) fn vm_left(&mut self, vm: VmId) {
        let Some(seat) = self.vms.seat(vm) else {
            return;
        };
        let member = seat.member;
        tracing::info!(vm = vm.0, member, "device gone");
        self.break_ends(vm);
        self.guest_ended(vm);
        self.broker.peer_silent(vm.peer());
        self.vms.depart(vm);
        if let Some(tenancy) = self.vms.tenancy_mut(vm) {
            if let Some(socket) = tenancy.group.socket(member) {
                let _ = self.epoll.delete(socket.as_fd());
            }
            tenancy.group.leave(member);
            tenancy.region.clear_control(member);
        }
        self.vms.ghosts.note();
        self.look_after_ghosts(Instant::now());
        let tenancy = self.vms.vm(vm).map(|vm| vm.tenancy);
        if let (Some(keeper), Some(tenancy)) = (&mut self.keeper, tenancy) {
            self.vms.forget_member(keeper, tenancy, member);
        }
    }

    /// Breaks everything that a guest has: nobody there can be woken any more.
    pub(super) fn break_ends(&mut self, vm: VmId) {
        let Some(lease) = self.vms.seat(vm).map(|seat| seat.lease) else {
            return;
        };
        for end in self.vms.connections.of_vm(vm) {
            self.break_end(vm, end.0);
            self.forsake_end(end, lease);
        }
    }

    /// Nobody says any more when the program of an end lets go of it.
    pub(super) fn forsake_end(&mut self, (number, index): (u64, usize), lease: Lease) {
        if let Some(freed) = self.vms.connections.abandon(number, index, lease) {
            self.recycle_guest(&freed);
        }
    }

    /// The same for a driver that has died. Programs that have seen that have left their rings, and go on.
    pub(super) fn abandon_ends(&mut self, vm: VmId) {
        let Some(lease) = self.vms.seat(vm).map(|seat| seat.lease) else {
            return;
        };
        for end in self.vms.connections.of_vm(vm) {
            self.abandon_end(vm, end.0);
            self.forsake_end(end, lease);
        }
    }

    pub(super) fn abandon_end(&mut self, vm: VmId, number: u64) {
        match self.left_alone(vm, number) {
            // Its program may have to send once more what was left.
            Some(far) => {
                let connection = number;
                let may_return = true;
                self.tell_vm(
                    far,
                    &Down::Withdraw {
                        connection,
                        may_return,
                    },
                );
            }
            None => self.break_end(vm, number),
        }
    }

    /// The far guest of a direct connection whose end here has left its ring by itself.
    fn left_alone(&self, vm: VmId, number: u64) -> Option<VmId> {
        let (_, own, far) = self.vms.connections.end_of(number, vm)?;
        let far = far.filter(|_| !own.far_is_relay())?;
        let region = &self.vms.tenancy(vm)?.region;
        let arena = region.arena(own.place.arena)?;
        let words = arena.end(own.place.offset, own.end)?;
        words.state.has_left_ring().then_some(far.vm)
    }

    /// Breaks a connection for the sake of the end that is left.
    pub(super) fn break_end(&mut self, vm: VmId, number: u64) {
        let Some((index, own, far)) = self.vms.connections.end_of(number, vm) else {
            return;
        };
        if self
            .vms
            .connections
            .get(number)
            .is_some_and(Connection::is_relayed)
        {
            let reason = Reason::LinkReset;
            self.command(Command::Break(relay_id(number, index), reason));
            return;
        }
        let arena = self
            .vms
            .tenancy(vm)
            .and_then(|tenancy| tenancy.region.arena(own.place.arena));
        let Some((arena, far)) = arena.zip(far) else {
            return;
        };
        if let Some(words) = arena.end(own.place.offset, own.end) {
            words.state.break_with(Reason::LinkReset);
        }
        full_barrier();
        let mut waiting = Vec::new();
        if let Some(words) = arena.end(far.place.offset, far.end) {
            for what in [WaitFor::Data, WaitFor::Space] {
                words.waits.each(what, |who| waiting.push(who));
            }
        }
        let Some(program) = self
            .vms
            .seat(far.vm)
            .and_then(|seat| seat.programs.get(&far.process))
        else {
            return;
        };
        for who in waiting {
            if who.process == far.process.0 {
                program.waiters.wake(who);
            }
        }
    }
}
