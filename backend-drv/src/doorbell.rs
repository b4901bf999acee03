//! Rings doorbells of programs: writes to eventfds that the programs hold too.
//!
//! A program could fill its eventfd and make it blocking at any moment, so that a write would never
//! return. A doorbell that is full has been rung already and needs no write; and should a write block
//! after all, a timer interrupts it.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Rings `bell`, unless it is ringing already.
pub fn ring(bell: impl AsFd) {
    let bell = bell.as_fd();
    let mut fds = [PollFd::new(bell, PollFlags::POLLOUT)];
    if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)) {
        return;
    }
    if let Err(error) = nix::unistd::write(bell, &1u64.to_ne_bytes()) {
        tracing::debug!(%error, "doorbell");
    }
}
