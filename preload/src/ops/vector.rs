//! preadv2 and pwritev2 on a socket: at no offset, with flags.

#![expect(unsafe_code, reason = "libc's own calls and the program's vectors")]

use core::ffi::c_int;
use std::os::fd::AsRawFd;

use libc::{MSG_DONTWAIT, MSG_NOSIGNAL, RWF_NOWAIT, iovec, off_t};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{recv, send};
use crate::conn::conn;
use crate::user::Buffers;
use crate::{errno, fds, real};

/// Flags that every kernel knows and, RWF_NOWAIT apart, no socket minds.
const COMMON: c_int =
    libc::RWF_HIPRI | libc::RWF_DSYNC | libc::RWF_SYNC | RWF_NOWAIT | libc::RWF_APPEND;

/// No signal for EPIPE (Linux 6.18).
const RWF_NOSIGNAL: c_int = 0x100;

/// preadv2(2).
///
/// # Safety
/// As preadv2 itself.
pub(crate) unsafe fn read(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> isize {
    // SAFETY: by contract.
    let native = move || unsafe { real::preadv2(fd, iov, count, offset, flags) };
    let entry = fds::lookup(fd);
    let Some(index) = entry.as_conn().filter(|_| offset == -1) else {
        return native();
    };
    // SAFETY: by contract.
    match unsafe { Buffers::vector(iov, count) } {
        Ok(mut buffers) if buffers.left() > 0 && is_known(index, flags, false) => {
            recv::recv(fd, entry, index, &mut buffers, meaning(flags), native)
        }
        Ok(_) | Err(_) => native(),
    }
}

/// pwritev2(2).
///
/// # Safety
/// As pwritev2 itself.
pub(crate) unsafe fn write(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> isize {
    // SAFETY: by contract.
    let native = move || unsafe { real::pwritev2(fd, iov, count, offset, flags) };
    let entry = fds::lookup(fd);
    let Some(index) = entry.as_conn().filter(|_| offset == -1) else {
        return native();
    };
    // SAFETY: by contract.
    match unsafe { Buffers::vector(iov, count) } {
        Ok(buffers) if buffers.left() > 0 && is_known(index, flags, true) => {
            send::send(fd, entry, index, &buffers, meaning(flags), native)
        }
        Ok(_) | Err(_) => native(),
    }
}

/// What the flags are to a socket.
const fn meaning(flags: c_int) -> c_int {
    let wait = if flags & RWF_NOWAIT != 0 {
        MSG_DONTWAIT
    } else {
        0
    };
    let signal = if flags & RWF_NOSIGNAL != 0 {
        MSG_NOSIGNAL
    } else {
        0
    };
    wait | signal
}

/// Whether the kernel takes the flags for a socket. What it refuses, it refuses before it moves a byte.
fn is_known(index: u32, flags: c_int, write: bool) -> bool {
    flags & !COMMON == 0 || conn(index).view().is_none() || is_taken(flags, write)
}

/// Asks with a byte and a socket of our own.
#[cold]
fn is_taken(flags: c_int, write: bool) -> bool {
    errno::preserved(|| {
        let family = AddressFamily::UNIX;
        let flag = SocketFlags::CLOEXEC;
        let Ok((one, other)) = socketpair(family, SocketType::STREAM, flag, None) else {
            return false;
        };
        let mut byte = 0u8;
        let part = iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: one byte, and room for it in the socket.
        let sent = unsafe {
            real::pwritev2(
                other.as_raw_fd(),
                &raw const part,
                1,
                -1,
                if write { flags } else { 0 },
            )
        };
        // SAFETY: one byte, which has just been sent.
        sent == 1
            && (write
                || unsafe { real::preadv2(one.as_raw_fd(), &raw const part, 1, -1, flags) } == 1)
    })
}
