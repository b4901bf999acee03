//! select and pselect: the program's sets as entries of poll, and back.

#![expect(unsafe_code, reason = "the program's sets")]
#![expect(
    clippy::cast_ptr_alignment,
    reason = "memory from mmap is aligned to a page"
)]

use core::ffi::c_int;

use libc::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, fd_set, pollfd, sigset_t};

use super::poll::{is_mask, poll_with};
use super::sleep::OWN_ENTRIES;
use super::time::deadline_in;
use super::{READ_BITS, WRITE_BITS, ring_conn};
use crate::{errno, probe};

/// Whether a descriptor in the sets involves a ring.
///
/// # Safety
/// As [`select`].
unsafe fn any_ring(count: c_int, sets: [*mut fd_set; 3]) -> bool {
    (0..usize::try_from(count).unwrap_or(0)).any(|fd| {
        c_int::try_from(fd).is_ok_and(|number| ring_conn(number).is_some())
            // SAFETY: fd < count.
            && (0..3).any(|i| unsafe { is_set(sets[i], fd) })
    })
}

/// select and pselect. `None`: no descriptor involves a ring; the caller asks the kernel, by
/// [`select_in_kernel`](super::select_in_kernel). Sets are written and the remaining time is left to the
/// caller.
///
/// # Safety
/// The sets are null or hold `count` descriptors and can be read.
pub(crate) unsafe fn select(
    count: c_int,
    sets: [*mut fd_set; 3],
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> Option<c_int> {
    // SAFETY: by contract.
    if !unsafe { any_ring(count, sets) } {
        return None;
    }
    let count = usize::try_from(count).ok()?;
    let bytes = (2 * count + OWN_ENTRIES) * size_of::<pollfd>();
    let Ok(region) = frontend_drv::memory::reserve(bytes) else {
        errno::set(libc::ENOMEM);
        return Some(-1);
    };
    // SAFETY: fresh zero memory of that size, aligned to a page.
    let all = unsafe {
        core::slice::from_raw_parts_mut(
            region.base().as_ptr().cast::<pollfd>(),
            2 * count + OWN_ENTRIES,
        )
    };
    let (entries, copy) = all.split_at_mut(count);
    let mut used = 0;
    for fd in 0..count {
        let bits = [POLLIN, POLLOUT, POLLPRI];
        // SAFETY: fd < count.
        let events = (0..3)
            .filter(|&i| unsafe { is_set(sets[i], fd) })
            .fold(0, |all, i| all | bits[i]);
        if events != 0 {
            entries[used] = pollfd {
                fd: c_int::try_from(fd).unwrap_or(-1),
                events,
                revents: 0,
            };
            used += 1;
        }
    }
    let entries = &mut entries[..used];
    let deadline = timeout_ns.map(deadline_in);
    let rc = loop {
        let rc = poll_with(entries, copy, deadline, mask);
        for (entry, told) in entries.iter_mut().zip(&*copy) {
            entry.revents = told.revents;
        }
        if rc <= 0
            || entries
                .iter()
                .any(|entry| entry.revents & POLLNVAL != 0 || hits(entry).contains(&true))
        {
            break rc;
        }
        // An error is no exceptional condition, but would be told again and again.
        for entry in entries.iter_mut().filter(|entry| entry.revents != 0) {
            entry.fd = !entry.fd;
        }
    };
    let result = if rc < 0 {
        -1
    } else if !can_write(count, sets) {
        errno::set(libc::EFAULT);
        -1
    } else if entries.iter().any(|entry| entry.revents & POLLNVAL != 0) {
        errno::set(libc::EBADF);
        -1
    } else {
        // SAFETY: as promised by the caller.
        unsafe { write_sets(entries, sets) }
    };
    // SAFETY: not used any more.
    unsafe { frontend_drv::memory::unmap(region) };
    Some(result)
}

/// Whether select's arguments can be read; if not, the kernel says so.
pub(crate) fn are_sets(count: c_int, sets: [*mut fd_set; 3], mask: *const sigset_t) -> bool {
    let bytes = usize::try_from(count).map_or(0, bytes_of_set);
    count <= SELECT_MAX
        && sets
            .iter()
            .all(|set| set.is_null() || probe::readable(set.cast(), bytes))
        && is_mask(mask)
}

/// Whether the sets, which are about to be overwritten, can be.
fn can_write(count: usize, sets: [*mut fd_set; 3]) -> bool {
    let bytes = bytes_of_set(count);
    // SAFETY: the program gave the sets to be overwritten.
    sets.iter()
        .all(|set| set.is_null() || unsafe { probe::writable(set.cast(), bytes) })
}

/// Bytes of a set of `count` descriptors: whole words.
const fn bytes_of_set(count: usize) -> usize {
    count.div_ceil(64) * 8
}

/// As `ENTRIES_MAX` of poll.
const SELECT_MAX: c_int = 1 << 20;

/// In which of the sets an entry counts.
const fn hits(entry: &pollfd) -> [bool; 3] {
    let (asked, told) = (entry.events, entry.revents);
    [
        asked & POLLIN != 0 && told & (READ_BITS | POLLHUP | POLLERR) != 0,
        asked & POLLOUT != 0 && told & (WRITE_BITS | POLLERR) != 0,
        asked & POLLPRI != 0 && told & POLLPRI != 0,
    ]
}

/// Writes results as select does; the number of bits set.
///
/// # Safety
/// As [`select`].
unsafe fn write_sets(entries: &[pollfd], sets: [*mut fd_set; 3]) -> c_int {
    let mut total = 0;
    for entry in entries {
        // Asked about no more, or as ever.
        let Ok(fd) = usize::try_from(entry.fd.max(!entry.fd)) else {
            continue;
        };
        for (set, hit) in sets.into_iter().zip(hits(entry)) {
            // SAFETY: the set has room for fd, or is null.
            if unsafe { is_set(set, fd) } {
                if hit {
                    total += 1;
                } else {
                    // SAFETY: as above.
                    unsafe { clear(set, fd) };
                }
            }
        }
    }
    total
}

/// # Safety
/// The set is null or has room for `fd`.
pub(super) unsafe fn is_set(set: *const fd_set, fd: usize) -> bool {
    if set.is_null() {
        return false;
    }
    // SAFETY: by contract; fd_set is an array of longs, whatever its declared length.
    let word = unsafe { set.cast::<u64>().add(fd / 64).read_unaligned() };
    word >> (fd % 64) & 1 != 0
}

/// # Safety
/// The set has room for `fd`.
unsafe fn clear(set: *mut fd_set, fd: usize) {
    // SAFETY: by contract.
    unsafe {
        let word = set.cast::<u64>().add(fd / 64);
        word.write_unaligned(word.read_unaligned() & !(1 << (fd % 64)));
    }
}
