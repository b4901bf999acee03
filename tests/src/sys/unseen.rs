//! System calls that no preload library sees: for tests that move or measure bytes behind its back.
//!
//! rustix makes them without libc; what it has not goes by `syscall`, whose numbers used here nobody hooks.

#![expect(
    unsafe_code,
    reason = "raw system calls, which libc's symbols do not show"
)]

use std::os::fd::BorrowedFd;

use libc::c_int;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};

use super::{Ret, size};

/// What the kernel's TCP says of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// The state, as the kernel numbers it.
    pub state: u8,
    /// Positions given out to what was written, the FIN among them and the SYN not.
    pub written: u64,
    /// Positions received, the FIN among them.
    pub received: u64,
    /// Positions written and not acknowledged.
    pub queued: u64,
}

/// TCP_INFO and SIOCOUTQ. `connected`: this end's SYN counts as acknowledged.
pub fn counts(fd: c_int, connected: bool) -> Option<Counts> {
    let mut info = [0u64; 17];
    let mut len = size::<[u64; 17]>();
    let get = libc::SYS_getsockopt;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: a buffer of `len` bytes.
    let rc = unsafe { libc::syscall(get, fd, level, name, info.as_mut_ptr(), &raw mut len) };
    if rc != 0 {
        return None;
    }
    let mut queued: c_int = 0;
    // SAFETY: one int.
    let rc = unsafe { libc::syscall(libc::SYS_ioctl, fd, super::SIOCOUTQ, &raw mut queued) };
    let queued = u64::try_from(queued).ok().filter(|_| rc == 0)?;
    // tcpi_bytes_acked and tcpi_bytes_received (Linux 4.2).
    let [state, .., acked, received] = info;
    Some(Counts {
        state: state.to_le_bytes()[0],
        written: (acked + queued).saturating_sub(u64::from(connected)),
        received,
        queued,
    })
}

/// send(2).
pub fn send_unseen(fd: c_int, data: &[u8]) -> Ret {
    // SAFETY: the caller's descriptor is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    counted(rustix::net::send(fd, data, SendFlags::empty()))
}

/// recv(2) with MSG_WAITALL.
pub fn recv_unseen(fd: c_int, out: &mut [u8]) -> Ret {
    // SAFETY: the caller's descriptor is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    counted(rustix::net::recv(fd, out, RecvFlags::WAITALL).map(|(bytes, _)| bytes))
}

/// poll(2) for bytes to read: how many descriptors are ready.
pub fn poll_unseen(fd: c_int, timeout_ms: c_int) -> usize {
    // SAFETY: the caller's descriptor is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let timeout = Timespec {
        tv_sec: i64::from(timeout_ms / 1000),
        tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
    };
    let mut wants = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut wants, Some(&timeout)).unwrap_or(0)
}

fn counted(done: rustix::io::Result<usize>) -> Ret {
    done.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
        .map_err(rustix::io::Errno::raw_os_error)
}

/// Ends the process as exit(3) does.
pub fn exit(code: c_int) -> ! {
    std::process::exit(code)
}
