//! Virtual machines: their devices come and go, their drivers speak.

mod connecting;
mod hearing;
mod leaving;
mod relaying;
mod resuming;
mod telling;

pub(in crate::daemon) use telling::Telling;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use rdma_core::channel::{CONTROL_VECTOR, Down};
use rustix::io::ReadWriteFlags;
use rustix::net::SocketFlags;

use super::Daemon;
use crate::doorbell;
use crate::vm::seat::Seat;
use crate::vm::server::HOST;
use crate::vm::{Vm, VmId};

/// Names in epoll: three kinds of descriptors, by machine or region.
const FIRST: u64 = 1 << 40;
const KINDS: u64 = 4;
const LISTENER: u64 = 0;
const QEMU: u64 = 1;
const BELL: u64 = 2;

/// Devices of a machine that have gone while programs have their memory still; with more, no other comes.
const GHOSTS_MAX: usize = 4;

const fn token(kind: u64, index: usize) -> u64 {
    FIRST + index as u64 * KINDS + kind
}

impl Daemon {
    /// Listens to the sockets of all machines.
    pub(in crate::daemon) fn watch_vms(&self) -> nix::Result<()> {
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        for (index, vm) in self.vms.vms.iter().enumerate() {
            self.epoll
                .add(&vm.listener, readable(token(LISTENER, index)))?;
        }
        if !self.vms.is_empty() {
            self.tell_vms();
        }
        for (index, tenancy) in self.vms.tenancies.iter().enumerate() {
            if let Some(bell) = tenancy.group.bell(HOST, CONTROL_VECTOR) {
                self.epoll.add(bell, readable(token(BELL, index)))?;
            }
        }
        Ok(())
    }

    /// True if the event was one of ours.
    pub(in crate::daemon) fn handle_vm(&mut self, name: u64) -> bool {
        let Some(rest) = name.checked_sub(FIRST) else {
            return false;
        };
        let Ok(index) = usize::try_from(rest / KINDS) else {
            return false;
        };
        match rest % KINDS {
            LISTENER => self.accept_vm(VmId(index)),
            QEMU => self.check_vm(VmId(index)),
            BELL => self.hear_region(index),
            _ => return false,
        }
        self.telling.note();
        true
    }

    /// A QEMU connects.
    fn accept_vm(&mut self, vm: VmId) {
        let Some(found) = self.vms.vm(vm) else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&found.listener, flags) else {
            return;
        };
        let name = found.config.name.clone();
        if found.seat.is_some() {
            // The one before may have died a moment ago.
            self.check_vm(vm);
        }
        if self.vms.seat(vm).is_some() {
            tracing::warn!(vm = %name, "a second device connects: turned away, a VM has one");
            return;
        }
        if self.vms.ghosts.count(vm) > 0 {
            self.look_after_ghosts(Instant::now());
        }
        let ghosts = self.vms.ghosts.count(vm);
        if ghosts > GHOSTS_MAX {
            if self.may_log() {
                tracing::warn!(vm = %name, ghosts, "device turned away: programs of too many that were there before have its memory still");
            }
            return;
        }
        match self.seat_vm(vm, socket) {
            Ok(member) => tracing::info!(vm = %name, member, "device"),
            Err(error) => tracing::warn!(vm = %name, %error, "device turned away"),
        }
        self.tell_group(vm);
    }

    fn seat_vm(&mut self, vm: VmId, socket: OwnedFd) -> io::Result<u16> {
        let tenancy = self.vms.tenancy_mut(vm).ok_or(io::ErrorKind::NotFound)?;
        let (memory, lease) = tenancy.region.lend();
        let member = tenancy.group.join(socket, &memory)?;
        drop(memory);
        let seat = Seat::new(&tenancy.region, member, lease);
        let seat = seat.ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(socket) = tenancy.group.socket(member) {
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            let event = EpollEvent::new(interest, token(QEMU, vm.0));
            self.epoll.add(socket, event)?;
        }
        if let Some(found) = self.vms.vms.get_mut(vm.0) {
            found.seat = Some(seat);
        }
        if let Some(keeper) = &mut self.keeper {
            self.vms.keep_member(keeper, vm);
        }
        Ok(member)
    }

    /// Something is up with the socket of a machine's QEMU.
    fn check_vm(&mut self, vm: VmId) {
        let Some((member, tenancy)) = self
            .vms
            .seat(vm)
            .map(|seat| seat.member)
            .zip(self.vms.tenancy_mut(vm))
        else {
            return;
        };
        tenancy.group.flush();
        if tenancy.group.is_gone(member) {
            // Its last words.
            self.hear_vm(vm);
            self.vm_left(vm);
        } else {
            self.tell_group(vm);
        }
    }

    /// Members that are behind are listened to for room; those that cannot be told have left.
    fn tell_group(&mut self, vm: VmId) {
        let Some(tenancy) = self.vms.vm(vm).map(|vm: &Vm| vm.tenancy) else {
            return;
        };
        let others: Vec<VmId> = self.vms.of_tenancy(tenancy).collect();
        let dropped = self
            .vms
            .tenancies
            .get_mut(tenancy)
            .map_or_else(Vec::new, |tenancy| tenancy.group.dropped());
        for other in others {
            let Some(member) = self.vms.seat(other).map(|seat| seat.member) else {
                continue;
            };
            if dropped.contains(&member) {
                self.vm_left(other);
                continue;
            }
            let Some(group) = self.vms.tenancies.get(tenancy).map(|found| &found.group) else {
                continue;
            };
            let mut interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            if group.is_behind(member) {
                interest |= EpollFlags::EPOLLOUT;
            }
            if let Some(socket) = group.socket(member) {
                let mut event = EpollEvent::new(interest, token(QEMU, other.0));
                let _ = self.epoll.modify(socket, &mut event);
            }
        }
    }

    /// Somebody who shares a region has rung.
    fn hear_region(&mut self, tenancy: usize) {
        if let Some(bell) = self
            .vms
            .tenancies
            .get(tenancy)
            .and_then(|tenancy| tenancy.group.bell(HOST, CONTROL_VECTOR))
        {
            silence(bell.as_fd());
        }
        let members: Vec<VmId> = self.vms.of_tenancy(tenancy).collect();
        for vm in members {
            self.hear_vm(vm);
        }
    }

    /// Says something to a guest.
    pub(super) fn tell_vm(&mut self, vm: VmId, message: &Down) {
        tracing::trace!(vm = vm.0, ?message, "to a guest");
        let Some(seat) = self.vms.seat_mut(vm) else {
            return;
        };
        if !seat.push(message) {
            tracing::warn!(vm = vm.0, "a guest does not read: it is served no more");
            self.vm_left(vm);
            return;
        }
        self.flush_vm(vm);
    }

    /// Writes what waits for room, and rings.
    pub(super) fn flush_vm(&mut self, vm: VmId) {
        let Some(seat) = self.vms.seat_mut(vm) else {
            return;
        };
        let member = seat.member;
        if seat.flush()
            && let Some(tenancy) = self.vms.tenancy(vm)
            && let Some(bell) = tenancy.group.bell(member, CONTROL_VECTOR)
        {
            doorbell::ring(bell.as_fd());
        }
    }
}

/// Takes what an eventfd of ours has counted. QEMU has it too, and could make it wait.
fn silence(bell: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    let mut parts = [io::IoSliceMut::new(&mut count)];
    let _ = rustix::io::preadv2(bell, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    #[test]
    fn an_eventfd_that_blocks_is_silenced_without_waiting() {
        let bell = EventFd::from_flags(EfdFlags::empty()).expect("an eventfd");
        assert!(bell.write(3).is_ok());
        let (told, done) = channel();
        std::thread::spawn(move || {
            silence(bell.as_fd());
            assert!(bell.write(u64::MAX - 1).is_ok(), "it was taken");
            silence(bell.as_fd());
            silence(bell.as_fd());
            let _ = told.send(());
        });
        assert_eq!(done.recv_timeout(Duration::from_secs(20)), Ok(()));
    }
}
