//! Bytes: one buffer at a time, from anywhere in memory, or from files and pipes.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::mem::MaybeUninit;
use core::ptr::null_mut;
use std::net::SocketAddr;

use libc::{c_int, c_void, sockaddr_storage, socklen_t};

use super::socket::sockaddr;
use super::{Ret, long, ret, size};

/// send(2).
pub fn send(fd: c_int, data: &[u8], flags: c_int) -> Ret {
    send_at(fd, data.as_ptr().addr(), data.len(), flags)
}

/// recv(2).
pub fn recv(fd: c_int, out: &mut [u8], flags: c_int) -> Ret {
    // SAFETY: the buffer is a slice.
    long(unsafe { libc::recv(fd, out.as_mut_ptr().cast(), out.len(), flags) })
}

/// write(2).
pub fn write(fd: c_int, data: &[u8]) -> Ret {
    // SAFETY: the buffer is a slice.
    long(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })
}

/// read(2).
pub fn read(fd: c_int, out: &mut [u8]) -> Ret {
    // SAFETY: the buffer is a slice.
    long(unsafe { libc::read(fd, out.as_mut_ptr().cast(), out.len()) })
}

/// send(2) from any address: the kernel checks it.
pub fn send_at(fd: c_int, at: usize, len: usize, flags: c_int) -> Ret {
    let from = core::ptr::with_exposed_provenance::<c_void>(at);
    // SAFETY: a kernel call with a bad address fails; what is under test must not do worse.
    long(unsafe { libc::send(fd, from, len, flags) })
}

/// recv(2) to any address.
pub fn recv_at(fd: c_int, at: usize, len: usize, flags: c_int) -> Ret {
    let to = core::ptr::with_exposed_provenance_mut::<c_void>(at);
    // SAFETY: as in `send_at`; good addresses are never used here.
    long(unsafe { libc::recv(fd, to, len, flags) })
}

/// sendto(2).
pub fn sendto(fd: c_int, data: &[u8], flags: c_int, to: SocketAddr) -> Ret {
    let (storage, len) = sockaddr(to);
    let at = (&raw const storage).cast();
    // SAFETY: a slice and a local address.
    long(unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, at, len) })
}

/// recvfrom(2) with an address buffer; the length that came back.
pub fn recvfrom(fd: c_int, out: &mut [u8], flags: c_int) -> (Ret, socklen_t) {
    let mut storage = MaybeUninit::<sockaddr_storage>::zeroed();
    let mut len = size::<sockaddr_storage>();
    let at = storage.as_mut_ptr().cast();
    // SAFETY: a slice, and a storage of `len` bytes.
    let got = unsafe {
        libc::recvfrom(
            fd,
            out.as_mut_ptr().cast(),
            out.len(),
            flags,
            at,
            &raw mut len,
        )
    };
    (long(got), len)
}

/// sendfile(2); the offset that came back, if one was given.
pub fn sendfile(out: c_int, input: c_int, offset: Option<i64>, count: usize) -> (Ret, Option<i64>) {
    let mut offset = offset;
    let at = offset.as_mut().map_or(null_mut(), core::ptr::from_mut);
    // SAFETY: the offset is null or local.
    let sent = unsafe { libc::sendfile(out, input, at, count) };
    (long(sent), offset)
}

/// splice(2) without offsets.
pub fn splice(input: c_int, out: c_int, len: usize, flags: u32) -> Ret {
    // SAFETY: no offsets.
    long(unsafe { libc::splice(input, null_mut(), out, null_mut(), len, flags) })
}

/// pread(2).
pub fn pread(fd: c_int, out: &mut [u8], offset: i64) -> Ret {
    // SAFETY: a slice.
    long(unsafe { libc::pread(fd, out.as_mut_ptr().cast(), out.len(), offset) })
}

/// lseek(2).
pub fn lseek(fd: c_int, offset: i64, whence: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::lseek(fd, offset, whence) })
}
