//! Our own descriptors in somebody else's process: high, close-on-exec, out of the way.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getrlimit};

/// Where our descriptors start when the limit allows it: far above what programs, shells and
/// `dup2`-happy runtimes use, below FD_SETSIZE in none of them.
const FLOOR: u64 = 100_000;

/// Moves a descriptor to a high number and closes the original.
///
/// # Errors
/// `EMFILE` when the process has no descriptor left; the original is closed then too.
pub fn lift(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    duplicate(fd)
}

/// A duplicate with a high number. Lower ones are not used even for a moment.
///
/// # Errors
/// As [`lift`].
pub fn duplicate(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // A quarter of the range is ours when it is small, all above FLOOR when it is large.
    let mut floor = FLOOR.min(limit.saturating_sub(limit / 4));
    loop {
        match fcntl_dupfd_cloexec(&fd, i32::try_from(floor).unwrap_or(i32::MAX)) {
            Ok(high) => return Ok(high),
            Err(error) if floor <= 3 => return Err(error),
            // The top is full: look lower, but never among the standard three.
            Err(_) => floor = (floor / 2).max(3),
        }
    }
}
