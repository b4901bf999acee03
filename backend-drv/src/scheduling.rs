//! What the scheduler is asked for, for the thread that moves other programs' bytes.

#![expect(unsafe_code, reason = "system calls without safe wrappers")]

use std::io;

use nix::libc;

/// Nanoseconds; the least that kernels grant.
const SLICE_NS: u64 = 100_000;

/// Asks for short slices for the calling thread: it has its turn sooner and more often, for the same share of a
/// processor. A thread that was given a real-time policy keeps it.
///
/// Linux 6.12 and later grant that to threads of `SCHED_OTHER` by `sched_runtime` of `sched_setattr(2)`; earlier ones
/// ignore it.
///
/// # Errors
/// The kernel refuses.
pub fn ask_for_short_slices() -> io::Result<()> {
    // SAFETY: a C structure of integers.
    let mut attributes: libc::sched_attr = unsafe { core::mem::zeroed() };
    let size = u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0);
    // SAFETY: reads this thread's (0) attributes into `size` bytes of ours.
    let read = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            0,
            core::ptr::from_mut(&mut attributes),
            size,
            0,
        )
    };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    if i64::from(attributes.sched_policy) != i64::from(libc::SCHED_OTHER) {
        return Ok(());
    }
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the kernel reads `attributes.size` bytes, which the call above has set.
    let set = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            0,
            core::ptr::from_ref(&attributes),
            0,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn may_be_asked_again_and_without_privileges() {
        assert!(ask_for_short_slices().is_ok());
        assert!(ask_for_short_slices().is_ok());
    }
}
