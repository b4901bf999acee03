//! Timeouts, and libc's ppoll with one in nanoseconds.

#![expect(unsafe_code, reason = "libc's ppoll")]

use core::ffi::c_int;

use libc::{pollfd, sigset_t, timespec};

use crate::{control, errno, real};

/// `ppoll` with a timeout in nanoseconds and the signal mask as it is.
///
/// # Errors
/// The errno.
pub(crate) fn kernel_poll(entries: &mut [pollfd], timeout_ns: Option<u64>) -> Result<usize, c_int> {
    kernel_ppoll(entries, timeout_ns, core::ptr::null())
}

pub(super) fn kernel_ppoll(
    entries: &mut [pollfd],
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> Result<usize, c_int> {
    let time = timeout_ns.map(to_timespec);
    let time = time.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let before = errno::get();
    // SAFETY: the entries are a slice; time and mask are null or valid.
    let rc = unsafe {
        real::ppoll(
            entries.as_mut_ptr(),
            entries.len() as libc::nfds_t,
            time,
            mask,
        )
    };
    match usize::try_from(rc) {
        Ok(count) => Ok(count),
        Err(_) => {
            let error = errno::get();
            errno::set(before);
            Err(error)
        }
    }
}

/// Nanoseconds as a timespec.
pub(crate) fn to_timespec(ns: u64) -> timespec {
    timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    }
}

/// When a wait of so many nanoseconds from now ends. One of none has ended, whatever the clock says.
pub(crate) fn deadline_in(ns: u64) -> u64 {
    if ns == 0 {
        0
    } else {
        control::monotonic_ns().saturating_add(ns)
    }
}

/// Whether a wait that ends then has ended.
pub(crate) fn is_past(deadline: Option<u64>) -> bool {
    deadline.is_some_and(|at| at == 0 || at <= control::monotonic_ns())
}

/// A timespec as nanoseconds; `None` if it is no time.
pub(crate) fn from_timespec(time: timespec) -> Option<u64> {
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u64::try_from(time.tv_nsec)
        .ok()
        .filter(|&nanos| nanos < 1_000_000_000)?;
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
