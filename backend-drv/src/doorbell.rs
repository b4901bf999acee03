//! Rings doorbells of programs: writes to eventfds that the programs hold too.
//!
//! A program can fill its eventfd and make it blocking at any moment; so this is work for
//! [`crate::workers`].

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Rings `bell`. One that is full is ringing already and needs nothing.
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
