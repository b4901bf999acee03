//! Ends, programs, drivers and machines that go.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_core::channel::Down;
use rdma_core::event::WaitFor;
use rdma_core::reason::Reason;
use rdma_core::sync::full_barrier;

use super::hearing::GUEST_UID;
use crate::broker::Filter;
use crate::carving::Place;
use crate::daemon::Daemon;
use crate::ids::{ConnectionId, Process};
use crate::pairing::Tuple;
use crate::relay::Command;
use crate::vm::VmId;
use crate::vm::connections::{Connection, Freed, relay_id};
use crate::vm::region::is_in_region;
use crate::vm::switch::Side;
use crate::workers::Job;

/// Longer than a program takes to notice that a connection is broken while it copies.
const LINGER: Duration = Duration::from_secs(10);

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

    /// Has the memory of a connection zeroed, as soon as nobody can use it any more. Programs of a machine go with it;
    /// those of a container are told that it is over, and what they have in hand stays as it is for a while.
    pub(super) fn recycle_guest(&mut self, freed: &Freed) {
        let mut freed = *freed;
        let end = freed.end;
        let tenancy = self.vms.tenancy(end.vm);
        let arena = tenancy.and_then(|tenancy| tenancy.region.arena(end.place.arena));
        let mut lingers = false;
        for keeper in &mut freed.keepers {
            let words =
                keeper.and_then(|(_, end)| arena.as_ref()?.end(freed.end.place.offset, end));
            if words.is_some_and(|words| words.state.has_let_go()) {
                *keeper = None;
            }
            if let Some((vm, _)) = keeper.take_if(|(vm, _)| self.vms.seat(*vm).is_none()) {
                let vm = self.vms.vm(vm);
                lingers |= vm.is_some_and(|vm| vm.config.shared_network);
            }
        }
        if freed.keepers.iter().any(Option::is_some) {
            return self.vms.kept.push(freed);
        }
        if lingers {
            let until = Instant::now() + LINGER;
            return self.vms.lingering.push_back((until, freed));
        }
        if let Some(arena) = arena {
            let job = Job::Clear {
                arena: Arc::new(arena),
                place: end.place,
            };
            self.workers.submit(GUEST_UID, job);
        }
    }

    /// A machine has gone, which may have kept something, or some time has.
    pub(super) fn recycle_kept(&mut self) {
        for freed in std::mem::take(&mut self.vms.kept) {
            self.recycle_guest(&freed);
        }
    }

    /// What is due by the clock.
    pub(super) fn recycle_lingering(&mut self, now: Instant) {
        while let Some((_, freed)) = self.vms.lingering.pop_front_if(|(until, _)| *until <= now) {
            self.recycle_guest(&freed);
        }
    }

    /// Memory of a connection has been zeroed, or not. False: it is none of a guest's.
    pub(in crate::daemon) fn guest_recycled(&mut self, place: &Place, zeroed: bool) -> bool {
        if !is_in_region(place.arena) {
            return false;
        }
        for tenancy in &mut self.vms.tenancies {
            if tenancy.region.arena(place.arena).is_some() {
                tenancy.region.release(place, zeroed);
                if tenancy.group.members().next().is_none() {
                    tenancy.region.reset();
                }
            }
        }
        true
    }

    /// A program has left its guest.
    pub(super) fn guest_program_left(&mut self, vm: VmId, process: Process) {
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
                self.vms.retired.insert(process, (found.tenancy, port.at));
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
        if let Some((tenancy, at)) = self.vms.retired.remove(&process)
            && let Some(tenancy) = self.vms.tenancies.get_mut(tenancy)
        {
            tenancy.region.give_back_events(at);
            if tenancy.group.members().next().is_none() {
                tenancy.region.reset();
            }
        }
    }

    /// A driver has ended, and its programs are looked after no more.
    pub(super) fn guest_ended(&mut self, vm: VmId) {
        let mut deeds = Vec::new();
        let is_it = |side| side == Side::Vm(vm) || side == Side::Local(vm);
        self.vms.switch.forget(is_it, Reason::FarEnd, &mut deeds);
        self.do_deeds(deeds);
        let programs: Vec<Process> = self
            .vms
            .seat(vm)
            .map(|seat| seat.programs.keys().copied().collect())
            .unwrap_or_default();
        for process in programs {
            self.guest_program_left(vm, process);
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
        let heaps = self
            .vms
            .vms
            .get_mut(vm.0)
            .and_then(|vm| vm.seat.take())
            .map(|seat| seat.heaps);
        self.recycle_kept();
        self.vms.free_blocks(vm);
        if let Some(tenancy) = self.vms.tenancy_mut(vm) {
            if let Some(socket) = tenancy.group.socket(member) {
                let _ = self.epoll.delete(socket.as_fd());
            }
            tenancy.group.leave(member);
            tenancy.region.clear_control(member);
            for heap in heaps.into_iter().flatten() {
                tenancy.region.give_back(heap.at, heap.bytes);
            }
            if tenancy.group.members().next().is_none() {
                tenancy.region.reset();
            }
        }
        let tenancy = self.vms.vm(vm).map(|vm| vm.tenancy);
        if let (Some(keeper), Some(tenancy)) = (&mut self.keeper, tenancy) {
            self.vms.forget_member(keeper, tenancy, member);
        }
    }

    /// Breaks everything that a guest has: nobody there can be woken any more.
    pub(super) fn break_ends(&mut self, vm: VmId) {
        for (number, index) in self.vms.connections.of_vm(vm) {
            self.break_end(vm, number);
            if let Some(freed) = self.vms.connections.abandon(number, index) {
                self.recycle_guest(&freed);
            }
        }
    }

    /// The same for a driver that has died. Programs that have seen that have left their rings, and go on.
    pub(super) fn abandon_ends(&mut self, vm: VmId) {
        for (number, index) in self.vms.connections.of_vm(vm) {
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
            if let Some(freed) = self.vms.connections.abandon(number, index) {
                self.recycle_guest(&freed);
            }
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
    fn break_end(&mut self, vm: VmId, number: u64) {
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
