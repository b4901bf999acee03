//! The calling thread's errno: the only place that touches it.

#![expect(unsafe_code, reason = "errno is a thread-local of libc")]

use core::ffi::c_int;

/// The present value.
#[inline]
pub(crate) fn get() -> c_int {
    // SAFETY: libc returns a valid pointer to this thread's errno.
    unsafe { *libc::__errno_location() }
}

/// Sets errno.
#[inline]
pub(crate) fn set(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value };
}

/// Sets errno and returns -1, as a libc function fails.
#[inline]
#[cold]
pub(crate) fn fail(value: c_int) -> isize {
    set(value);
    -1
}

/// Runs `work` and restores errno afterwards: what we do behind the program's back leaves no trace.
#[inline]
pub(crate) fn preserved<T>(work: impl FnOnce() -> T) -> T {
    let before = get();
    let result = work();
    set(before);
    result
}
