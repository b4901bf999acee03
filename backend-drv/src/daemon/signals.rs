//! Signals that end a daemon.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that end the daemon.
fn ending() -> SigSet {
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending
}

/// Blocks the signals that a daemon receives as it does everything else. For a program that starts threads before
/// it makes its daemon: a signal would otherwise find one of those, and kill.
///
/// # Errors
/// None in practice.
pub fn block_signals() -> io::Result<()> {
    let mut blocked = ending();
    blocked.add(Signal::SIGXFSZ);
    Ok(blocked.thread_block()?)
}

/// Waits so long for a signal that ends the daemon. For a program that [has blocked](block_signals) them and has no
/// daemon yet.
///
/// # Errors
/// None in practice.
pub fn is_signalled(patience: Duration) -> io::Result<bool> {
    let signals = signals()?;
    let mut readable = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    Ok(poll(&mut readable, patience)? > 0)
}

/// Signals that end the daemon come through a descriptor; SIGXFSZ stays blocked, so that a memory
/// beyond the file size limit is an error (EFBIG) and not our death.
pub(super) fn signals() -> io::Result<SignalFd> {
    block_signals()?;
    let ending = ending();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&ending, flags)?)
}
