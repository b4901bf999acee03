//! Machines of a daemon before us, and what it relayed for them.
//!
//! What the relay needs stands in the records. What has become of the programs since, their drivers are asked: they name
//! who is there and which memory they hold, and what they do not name they have let go of.

use nix::sys::epoll::{EpollEvent, EpollFlags};
use rdma_core::channel::{Down, Grant};

use super::{QEMU, token};
use crate::daemon::Daemon;
use crate::ids::Process;
use crate::keeper::Item;
use crate::pairing::Tuple;
use crate::relay::Kept;
use crate::vm::resuming::Named;
use crate::vm::server::HOST;
use crate::vm::{VmId, Vms};

impl Daemon {
    /// Goes on with machines of a daemon before us, and has the next one find them. What that relayed for them is added
    /// to what the relay begins with.
    pub(in crate::daemon) fn take_over_vms(&mut self, items: Vec<Item>) -> Vec<VmId> {
        self.vms.number_from(self.ledger.epoch);
        let restored = self.vms.restore(items, self.keeper.as_mut());
        if let Some(kept) = &mut self.kept {
            resume(&mut self.vms, kept);
        }
        if let Some(keeper) = self.keeper.as_mut().filter(|_| !self.vms.is_empty()) {
            self.vms.keep_all(keeper);
            self.vms.ghosts.note();
        }
        restored
    }

    /// Asks machines of a daemon before us what they have.
    pub(in crate::daemon) fn ask_vms(&mut self, restored: Vec<VmId>) {
        let run = self.ledger.epoch;
        // Before the first one answers: whoever was not asked has named everything.
        for vm in &restored {
            if let Some(seat) = self.vms.seat_mut(*vm) {
                seat.asked = seat.welcome.map(|_| run);
            }
        }
        for vm in restored {
            let Some(seat) = self.vms.seat(vm) else {
                continue;
            };
            let (member, ends) = (seat.member, seat.unnamed.len());
            tracing::info!(vm = vm.0, member, ends, "going on");
            if let Some(tenancy) = self.vms.tenancy(vm)
                && let Some(socket) = tenancy.group.socket(member)
            {
                let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
                let event = EpollEvent::new(interest, token(QEMU, vm.0));
                let _ = self.epoll.add(socket, event);
            }
            self.tell_vm(vm, &Down::Again(run));
            self.hear_vm(vm);
        }
    }

    /// A program that a guest had before we started: what it knows of the relay is true still, or to be forgotten.
    pub(super) fn port_again(&mut self, vm: VmId, process: Process) {
        let Some(seat) = self.vms.seat(vm) else {
            return;
        };
        let Some(number) = seat.port_number(process) else {
            return;
        };
        let port = seat
            .programs
            .get(&process)
            .and_then(|found| found.port.as_ref());
        match port.map(|port| port.at) {
            // It may not have heard of it.
            Some(at) => {
                let process_at = Down::Program {
                    process: number.0,
                    at,
                };
                self.tell_vm(vm, &process_at);
                let vector = self
                    .vms
                    .tenancy(vm)
                    .map(|found| found.group.vector_of_port(process));
                self.tell_context(vm, number, 0, (HOST, vector.unwrap_or(0)));
            }
            None => self.tell_vm(vm, &Down::ProgramGone(number.0)),
        }
    }

    /// A guest has memory that a daemon before us has given it.
    pub(super) fn guest_holds(
        &mut self,
        vm: VmId,
        process: Process,
        tuple: Tuple,
        grant: &Grant,
    ) -> Option<()> {
        self.vms.seat(vm)?.asked?;
        let number = grant.connection;
        let named = self.vms.named(vm, process, tuple, grant);
        if grant.relayed == 0 && self.vms.connections.end_of(number, vm).is_some() {
            let peer = Process(grant.peer);
            let known = self
                .vms
                .vm_of_process(peer)
                .and_then(|far| self.vms.seat(far)?.programs.get(&peer));
            let at = known.map(|program| program.at);
            self.introduce_guest(vm, process, peer, at);
        }
        match named {
            Named::Known => {}
            Named::Lost => self.tell_vm(vm, &Down::Lost(number)),
            Named::Left(far, index, lease) => {
                self.break_end(far, number);
                self.forsake_end((number, index), lease);
            }
            Named::Abandoned(far, index, lease) => {
                self.abandon_end(far, number);
                self.forsake_end((number, index), lease);
            }
        }
        Some(())
    }

    /// A guest has named everything.
    pub(super) fn guest_told(&mut self, vm: VmId, run: u64) -> Option<()> {
        let seat = self.vms.seat(vm)?;
        if seat.asked != Some(run) {
            // An answer to the daemon before us, perhaps.
            return Some(());
        }
        let (unnamed, left) = self.vms.told(vm);
        tracing::debug!(vm = vm.0, ?unnamed, ?left, "asked");
        for (number, index) in unnamed {
            self.guest_let_go(number, index);
        }
        for process in left {
            self.guest_program_left(vm, process, None);
        }
        let tenancy = self.vms.vm(vm)?.tenancy;
        if self.vms.inherit_rest(tenancy) {
            self.vms.ghosts.note();
        }
        Some(())
    }
}

/// Finds the memory of the connections of guests.
fn resume(vms: &mut Vms, kept: &mut Kept) {
    for (endpoint, record) in std::mem::take(&mut kept.guests) {
        match vms.resume(&record) {
            Ok(resumed) => {
                kept.ports.extend(resumed.port);
                kept.connections.push((endpoint, record, resumed.arena));
            }
            Err(error) => {
                let connection = record.connection;
                tracing::warn!(%connection, endpoint, %error, "not gone on with");
                kept.lost.push(record.beyond);
                if let Some(records) = &kept.records {
                    records.erase(endpoint);
                }
            }
        }
    }
}
