//! The processes that hold a connection by fork: only the last of them ends it.
//!
//! A count stands in the end slot, which all of them share. Beside it stand the process numbers of a few, so
//! that one that was killed, or left by a way that no hook sees, is not counted for ever. A number that
//! was given out anew looks alive, and all that follows is that the connection is ended by the kernel's
//! FIN alone.

use core::sync::atomic::Ordering;
use std::os::fd::AsRawFd;

use rdma_core::slot::Slot;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

use crate::conn::Conn;
use crate::lifecycle::own_pid;

/// A new connection, held by this process.
pub(crate) fn begin(slot: &Slot) {
    slot.meta.holders.store(1, Ordering::Relaxed);
    enter(slot);
}

/// About to fork: counted before the child exists, so that a close of the parent's in the meantime is not
/// the last.
pub(crate) fn expect_one(slot: &Slot) {
    slot.meta.holders.fetch_add(1, Ordering::AcqRel);
}

/// The fork failed, or this process holds the connection no longer. True if it was the last.
pub(crate) fn leave(slot: &Slot) -> bool {
    let own = own_pid();
    for place in &slot.meta.holder_pids {
        let _ = place.compare_exchange(own, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
    let left = slot.meta.holders.fetch_sub(1, Ordering::AcqRel) - 1;
    left == 0 || living(slot, |pid| is_dead(pid) || is_zombie(pid)) == 0
}

/// The fork failed: nobody came.
pub(crate) fn nobody_came(slot: &Slot) {
    slot.meta.holders.fetch_sub(1, Ordering::AcqRel);
}

/// In a forked child, which was counted already; or a program that goes on after a failed exec.
pub(crate) fn enter(slot: &Slot) {
    let own = own_pid();
    let _ = slot.meta.holder_pids.iter().any(|place| {
        place
            .compare_exchange(0, own, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    });
}

/// Whether this process is the only one, as far as is known.
pub(crate) fn is_alone(conn: &Conn) -> bool {
    let slot = conn.slot();
    slot.meta.holders.load(Ordering::Acquire) == 1 || living(slot, is_dead) == 1
}

/// How many hold the connection, those left out that have died.
#[cold]
fn living(slot: &Slot, is_dead: impl Fn(u32) -> bool) -> u32 {
    for place in &slot.meta.holder_pids {
        let pid = place.load(Ordering::Acquire);
        if pid != 0 && is_dead(pid) {
            let gone = place.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
            if gone.is_ok() {
                slot.meta.holders.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
    slot.meta.holders.load(Ordering::Acquire)
}

/// Whether no process or thread has this number.
pub(crate) fn is_dead(number: u32) -> bool {
    i32::try_from(number)
        .ok()
        .and_then(Pid::from_raw)
        .is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// Whether the process has ended and nobody has waited for it yet: it holds no descriptors any more.
fn is_zombie(number: u32) -> bool {
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
    let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return false;
    };
    crate::kernel::poll_now(process.as_raw_fd(), libc::POLLIN) != 0
}
