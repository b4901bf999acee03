//! select and pselect: the program's sets as entries of poll, and back.

#![expect(unsafe_code, reason = "the program's sets")]

use core::ffi::c_int;

use libc::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, fd_set, pollfd, sigset_t};

use super::poll::{is_mask, poll_with};
use super::sleep::OWN_ENTRIES;
use super::time::deadline_in;
use super::{READ_BITS, WRITE_BITS, ring_conn, room};
use crate::{errno, probe};

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
    let mut used = 0;
    let mut ours = false;
    // SAFETY: by contract.
    for entry in unsafe { asked(count, sets) } {
        used += 1;
        ours |= ring_conn(entry.fd).is_some();
    }
    if !ours {
        return None;
    }
    let result = room::lend(2 * used + OWN_ENTRIES, used, |all, bits| {
        let (entries, copy) = all.split_at_mut(used);
        let mut filled = 0;
        // SAFETY: by contract.
        for (entry, asked) in entries.iter_mut().zip(unsafe { asked(count, sets) }) {
            *entry = asked;
            filled += 1;
        }
        // Fewer than were counted if another thread writes the sets.
        let entries = &mut entries[..filled];
        let rc = wait(
            entries,
            copy,
            &mut bits[..filled],
            timeout_ns.map(deadline_in),
            mask,
        );
        if rc < 0 {
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
        }
    });
    Some(result.unwrap_or_else(|| {
        errno::set(libc::ENOMEM);
        -1
    }))
}

/// Waits until an entry counts in a set; what was told stands in the entries.
fn wait(
    entries: &mut [pollfd],
    copy: &mut [pollfd],
    bits: &mut [i16],
    deadline: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    loop {
        let rc = poll_with(entries, copy, bits, deadline, mask);
        for (entry, told) in entries.iter_mut().zip(&*copy) {
            entry.revents = told.revents;
        }
        if rc <= 0
            || entries
                .iter()
                .any(|entry| entry.revents & POLLNVAL != 0 || hits(entry).contains(&true))
        {
            return rc;
        }
        // An error is no exceptional condition, but would be told again and again.
        for entry in entries.iter_mut().filter(|entry| entry.revents != 0) {
            entry.fd = !entry.fd;
        }
    }
}

/// What the sets ask about, as entries of poll; of [`SELECT_MAX`] descriptors at most.
///
/// # Safety
/// The sets are null or hold `count` descriptors, and can be read until the iterator is gone.
pub(super) unsafe fn asked(count: c_int, sets: [*mut fd_set; 3]) -> impl Iterator<Item = pollfd> {
    let count = usize::try_from(count.min(SELECT_MAX)).unwrap_or(0);
    (0..count.div_ceil(BITS)).flat_map(move |index| {
        let within = match count - index * BITS {
            left if left < BITS => (1 << left) - 1,
            _ => u64::MAX,
        };
        // SAFETY: a word of each set, by contract.
        let words = sets.map(|set| unsafe { word(set, index) } & within);
        let mut left = words[0] | words[1] | words[2];
        core::iter::from_fn(move || {
            (left != 0).then(|| {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let events = words
                    .iter()
                    .zip([POLLIN, POLLOUT, POLLPRI])
                    .filter(|(word, _)| **word >> bit & 1 != 0)
                    .fold(0, |all, (_, event)| all | event);
                pollfd {
                    fd: c_int::try_from(index * BITS + bit as usize).unwrap_or(-1),
                    events,
                    revents: 0,
                }
            })
        })
    })
}

/// Descriptors in a word of a set, which is an array of longs, whatever its declared length.
const BITS: usize = 64;

/// # Safety
/// The set is null or has such a word.
unsafe fn word(set: *const fd_set, index: usize) -> u64 {
    if set.is_null() {
        return 0;
    }
    // SAFETY: by contract.
    unsafe { set.cast::<u64>().add(index).read_unaligned() }
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
fn can_write(count: c_int, sets: [*mut fd_set; 3]) -> bool {
    let bytes = usize::try_from(count).map_or(0, bytes_of_set);
    // SAFETY: the program gave the sets to be overwritten.
    sets.iter()
        .all(|set| set.is_null() || unsafe { probe::writable(set.cast(), bytes) })
}

/// Bytes of a set of `count` descriptors: whole words.
const fn bytes_of_set(count: usize) -> usize {
    count.div_ceil(BITS) * 8
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
unsafe fn is_set(set: *const fd_set, fd: usize) -> bool {
    // SAFETY: by contract.
    unsafe { word(set, fd / BITS) >> (fd % BITS) & 1 != 0 }
}

/// # Safety
/// The set has room for `fd`.
unsafe fn clear(set: *mut fd_set, fd: usize) {
    // SAFETY: by contract.
    unsafe {
        let word = set.cast::<u64>().add(fd / BITS);
        word.write_unaligned(word.read_unaligned() & !(1 << (fd % BITS)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three words.
    type Set = [u64; 3];

    fn asked_by(count: c_int, sets: &mut [Option<Set>; 3]) -> Vec<(c_int, i16)> {
        let sets = sets.each_mut().map(|set| match set {
            Some(set) => set.as_mut_ptr().cast::<fd_set>(),
            None => core::ptr::null_mut(),
        });
        // SAFETY: sets of 192 descriptors, or null, that nobody else uses.
        let entries = unsafe { asked(count, sets) };
        entries.map(|entry| (entry.fd, entry.events)).collect()
    }

    #[test]
    fn sets_become_entries_in_order() {
        let mut sets = [Some([1 << 63, 1, 1 << 5]), Some([1 << 63, 0, 0]), None];
        let all = [(63, POLLIN | POLLOUT), (64, POLLIN), (133, POLLIN)];
        assert_eq!(asked_by(192, &mut sets), all);
        assert_eq!(asked_by(134, &mut sets), all);
        // What lies at the count or behind it is not asked about.
        assert_eq!(asked_by(133, &mut sets), all[..2]);
        assert_eq!(asked_by(64, &mut sets), all[..1]);
        assert_eq!(asked_by(63, &mut sets), []);
        assert_eq!(asked_by(0, &mut sets), []);
        assert_eq!(
            asked_by(192, &mut [None, None, Some([0, 2, 0])]),
            [(65, POLLPRI)]
        );
    }
}
