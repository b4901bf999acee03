//! Sockets before they are connections: whether this process alone can have one, by one descriptor.
//!
//! A connection is followed by whoever has it from the moment on at which it is made. A socket that went to others
//! before that, by fork, in a message or as a second descriptor, would be used there unseen.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rdma_core::Reason;

use super::exec::spawned;
use super::fork::is_own_memory;
use crate::{fds, kernel};

/// For each descriptor that `socket` gave out the [moment](now) of that, with [`DUPLICATED`]; or [`ELSEWHERE`].
static BORN: [AtomicU64; fds::LIMIT] = [const { AtomicU64::new(ELSEWHERE) }; fds::LIMIT];

/// Somebody else may have it, or made it.
const ELSEWHERE: u64 = 0;
/// Another descriptor named the same file once.
const DUPLICATED: u64 = 1;

/// Forks so far, and one, so that no moment is [`ELSEWHERE`].
static FORKS: AtomicU32 = AtomicU32::new(1);
/// Highest descriptor that was ever marked as duplicated.
static HIGHEST: AtomicU32 = AtomicU32::new(0);

/// `socket` has given out a descriptor.
#[inline]
pub(crate) fn born(fd: c_int) {
    if let Some(place) = place(fd) {
        place.store(now(), Ordering::Relaxed);
    }
}

/// A descriptor is passed on, or came from elsewhere.
pub(super) fn note_elsewhere(fd: c_int) {
    if let Some(place) = place(fd) {
        place.store(ELSEWHERE, Ordering::Relaxed);
    }
}

/// Two descriptors name the same file.
pub(super) fn note_duplicate(old: c_int, new: c_int) {
    let (Some(old_place), Some(new_place)) = (place(old), place(new)) else {
        note_elsewhere(old);
        return;
    };
    let mut born = old_place.load(Ordering::Relaxed);
    if born != ELSEWHERE && !is_own_memory() {
        // The duplicate is another process's.
        note_elsewhere(old);
        return;
    }
    if born != ELSEWHERE {
        born |= DUPLICATED;
        old_place.store(born, Ordering::Relaxed);
        HIGHEST.fetch_max(old.max(new).unsigned_abs(), Ordering::Relaxed);
    }
    if new_place.load(Ordering::Relaxed) != born {
        new_place.store(born, Ordering::Relaxed);
    }
}

/// About to fork: the child has all that there is.
pub(super) fn note_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Why a socket that is being connected cannot be followed: somebody else may use it, or another descriptor.
pub(super) fn is_elsewhere(fd: c_int) -> Option<Reason> {
    let born = place(fd)?.load(Ordering::Relaxed);
    if born == ELSEWHERE {
        return Some(Reason::FdPassed);
    }
    let is_shared = born & !DUPLICATED != now();
    (is_shared || born & DUPLICATED != 0 && has_another(fd)).then_some(Reason::Forked)
}

/// Whether another descriptor of this process names the same socket: not if it was merely moved.
#[cold]
fn has_another(fd: c_int) -> bool {
    let Some(cookie) = kernel::cookie(fd) else {
        return true;
    };
    (0..=HIGHEST.load(Ordering::Relaxed).cast_signed()).any(|other| {
        let marked = place(other)
            .is_some_and(|place| place.load(Ordering::Relaxed) & DUPLICATED == DUPLICATED);
        marked && other != fd && kernel::cookie(other) == Some(cookie)
    })
}

/// How many forks and spawns there have been.
fn now() -> u64 {
    u64::from(FORKS.load(Ordering::Relaxed).wrapping_add(spawned())) << 1
}

#[expect(
    clippy::cast_sign_loss,
    reason = "a negative descriptor becomes an index beyond the table"
)]
fn place(fd: c_int) -> Option<&'static AtomicU64> {
    BORN.get(fd as u32 as usize)
}
