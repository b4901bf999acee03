//! System calls that move bytes while a direction's lock is held: by number, because libc's functions
//! are cancellation points, and a thread must not be cancelled there. None of them waits.

#![expect(unsafe_code, reason = "system calls with memory of rings and pipes")]

use core::ffi::{c_int, c_long};

use libc::{SPLICE_F_NONBLOCK, iovec, off_t};

use crate::{errno, real};

/// The offset of what has none.
pub(super) const HERE: off_t = -1;

/// preadv2(2) of one buffer at an offset, with RWF_NOWAIT.
///
/// # Errors
/// The errno: EAGAIN where it would have to wait, EOPNOTSUPP where the file cannot be read so.
///
/// # Safety
/// `to` is writable for `len` bytes.
pub(super) unsafe fn read_now(
    fd: c_int,
    to: *mut u8,
    len: usize,
    at: off_t,
) -> Result<usize, c_int> {
    // SAFETY: by contract.
    unsafe { vector(libc::SYS_preadv2, fd, to, len, at) }
}

/// pwritev2(2) of one buffer into a pipe, with RWF_NOWAIT.
///
/// # Errors
/// As [`read_now`].
///
/// # Safety
/// `from` is readable for `len` bytes.
pub(super) unsafe fn write_now(fd: c_int, from: *const u8, len: usize) -> Result<usize, c_int> {
    // SAFETY: by contract; only read.
    unsafe { vector(libc::SYS_pwritev2, fd, from.cast_mut(), len, HERE) }
}

/// # Safety
/// The call's.
unsafe fn vector(
    number: c_long,
    fd: c_int,
    memory: *mut u8,
    len: usize,
    at: off_t,
) -> Result<usize, c_int> {
    let part = iovec {
        iov_base: memory.cast(),
        iov_len: len,
    };
    // The offset is one word on 64 bits; its high half is ignored.
    let offset = at.cast_unsigned();
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let parts = (&raw const part).expose_provenance();
    let flags = word(libc::RWF_NOWAIT);
    // SAFETY: one part, by contract.
    moved(|| unsafe { real::syscall(number, word(fd), parts, 1, offset, 0, flags) })
}

/// read(2), of bytes that are known to be there or from a pipe of our own.
///
/// # Errors
/// The errno.
///
/// # Safety
/// `to` is writable for `len` bytes.
pub(super) unsafe fn read(fd: c_int, to: *mut u8, len: usize) -> Result<usize, c_int> {
    let to = to.expose_provenance();
    // SAFETY: writable by contract.
    moved(|| unsafe { real::syscall(libc::SYS_read, word(fd), to, len, 0, 0, 0) })
}

/// write(2), into a pipe of our own.
///
/// # Errors
/// The errno.
///
/// # Safety
/// `from` is readable for `len` bytes.
pub(super) unsafe fn write(fd: c_int, from: *const u8, len: usize) -> Result<usize, c_int> {
    let from = from.expose_provenance();
    // SAFETY: readable by contract.
    moved(|| unsafe { real::syscall(libc::SYS_write, word(fd), from, len, 0, 0, 0) })
}

/// vmsplice(2) with SPLICE_F_NONBLOCK: from the pipe into the memory if the descriptor is only for
/// reading, else the memory's pages into the pipe.
///
/// # Errors
/// The errno.
///
/// # Safety
/// `memory` is writable for `len` bytes, or readable and never written to again.
pub(super) unsafe fn vmsplice(fd: c_int, memory: *mut u8, len: usize) -> Result<usize, c_int> {
    let part = iovec {
        iov_base: memory.cast(),
        iov_len: len,
    };
    let parts = (&raw const part).expose_provenance();
    let flags = SPLICE_F_NONBLOCK as usize;
    // SAFETY: one part, by contract.
    moved(|| unsafe { real::syscall(libc::SYS_vmsplice, word(fd), parts, 1, flags, 0, 0) })
}

/// splice(2) with SPLICE_F_NONBLOCK between two pipes.
///
/// # Errors
/// The errno.
pub(super) fn splice(from: c_int, to: c_int, len: usize) -> Result<usize, c_int> {
    let flags = SPLICE_F_NONBLOCK as usize;
    // SAFETY: no memory of anybody.
    moved(|| unsafe { real::syscall(libc::SYS_splice, word(from), 0, word(to), 0, len, flags) })
}

/// An int as an argument.
const fn word(value: c_int) -> usize {
    value.cast_unsigned() as usize
}

/// The count that a call returned, or its errno; errno itself stays as it was.
fn moved(call: impl FnOnce() -> c_long) -> Result<usize, c_int> {
    errno::preserved(|| usize::try_from(call()).map_err(|_| errno::get()))
}
