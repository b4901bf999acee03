//! Calls none of whose descriptors involves a ring: the kernel alone is asked.

#![expect(unsafe_code, reason = "arrays and sets of the program")]

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::{fd_set, pollfd};

use super::select::asked;
use super::{involves_ring, note_delivered};
use crate::conn::conn;
use crate::ops::epoll;
use crate::{fds, forsaken, renew};

/// Asks the kernel alone, for descriptors none of which involves a ring. Meanwhile the caller counts
/// as a reader inside the kernel, so that no other thread arms a direction that it waits for.
///
/// # Safety
/// As [`poll`](fn@super::poll).
pub(crate) unsafe fn poll_in_kernel(
    fds: *mut pollfd,
    count: usize,
    native: impl Fn() -> c_int,
) -> c_int {
    if count == 0 {
        return native();
    }
    // SAFETY: by contract.
    let entries = unsafe { core::slice::from_raw_parts(fds.cast_const(), count) };
    let result = as_reader(&mut entries.iter().map(|entry| entry.fd), &native);
    if result > 0 {
        // SAFETY: by contract.
        unsafe { delivered(fds, count) };
    }
    result
}

/// Answer of [`poll_in_kernel`] and [`select_in_kernel`]: some direction was armed meanwhile.
pub(crate) const LOOK_AGAIN: c_int = c_int::MIN;

/// As [`poll_in_kernel`], for select.
///
/// # Safety
/// As [`select`](fn@super::select).
pub(crate) unsafe fn select_in_kernel(
    count: c_int,
    sets: [*mut fd_set; 3],
    native: impl Fn() -> c_int,
) -> c_int {
    // SAFETY: by contract.
    let asked = unsafe { asked(count, sets) };
    let result = as_reader(&mut asked.map(|entry| entry.fd), &native);
    if result > 0 {
        // SAFETY: by contract.
        unsafe { delivered_sets(count, sets) };
    }
    result
}

/// Runs `native` with the calling thread counted as a reader of every connection among `fds`; sets among
/// them are told that somebody watches them. The connections are remembered, because other threads may
/// close the descriptors meanwhile.
fn as_reader(fds: &mut dyn Iterator<Item = c_int>, native: &dyn Fn() -> c_int) -> c_int {
    let mut counted = [0u16; READERS];
    let mut used = 0;
    let mut armed = false;
    let mut complete = true;
    for fd in fds {
        let entry = fds::lookup(fd);
        if entry.as_epoll().is_some() {
            epoll::mark_polled(fd);
        }
        let Some(index) = entry.as_conn() else {
            continue;
        };
        forsaken::look(false);
        renew::let_go(conn(index));
        match (counted.get_mut(used), u16::try_from(index)) {
            (Some(place), Ok(number)) => {
                *place = number;
                used += 1;
                conn(index).slot().rx.inside.enter();
                armed |= involves_ring(conn(index));
            }
            _ => complete = complete && conn(index).view().is_none(),
        }
    }
    if !complete {
        // Too many to count: those beyond must not be armed by others while we sleep.
        SLEEPERS_UNCOUNTED.fetch_add(1, Ordering::SeqCst);
    }
    let result = if armed { LOOK_AGAIN } else { native() };
    if !complete {
        SLEEPERS_UNCOUNTED.fetch_sub(1, Ordering::SeqCst);
    }
    for number in counted.iter().take(used) {
        conn(u32::from(*number)).slot().rx.inside.leave();
    }
    result
}

/// Connections that one waiting call is counted in.
const READERS: usize = 1024;

/// Waiting calls on more connections than are counted; while there are any, nothing is armed.
static SLEEPERS_UNCOUNTED: AtomicU32 = AtomicU32::new(0);

/// Whether arming must wait because some sleeping call is not counted.
pub(crate) fn has_uncounted_sleepers() -> bool {
    SLEEPERS_UNCOUNTED.load(Ordering::SeqCst) != 0
}

/// The program has been told the readiness of these descriptors, through us.
///
/// # Safety
/// As [`poll`](fn@super::poll).
unsafe fn delivered(fds: *const pollfd, count: usize) {
    // SAFETY: by contract.
    for entry in unsafe { core::slice::from_raw_parts(fds, count) } {
        if entry.revents != 0 {
            note_delivered(entry.fd);
        }
    }
}

/// The program has been told the readiness in these sets, through us.
///
/// # Safety
/// As [`select`](fn@super::select).
unsafe fn delivered_sets(count: c_int, sets: [*mut fd_set; 3]) {
    let sets = [sets[0], sets[1], core::ptr::null_mut()];
    // SAFETY: by contract.
    for entry in unsafe { asked(count, sets) } {
        note_delivered(entry.fd);
    }
}
