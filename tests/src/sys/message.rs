//! Vectors, messages, batches of messages, and descriptors beside them.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::mem::{MaybeUninit, zeroed};
use core::ptr::null_mut;

use libc::{c_int, iovec, mmsghdr, msghdr, sockaddr_storage, socklen_t};

use super::{Ret, long, ret, size, spec};

fn parts_of(data: &[&[u8]]) -> Vec<iovec> {
    let part = |d: &&[u8]| iovec {
        iov_base: d.as_ptr().cast_mut().cast(),
        iov_len: d.len(),
    };
    data.iter().map(part).collect()
}

fn parts_of_mut(out: &mut [&mut [u8]]) -> Vec<iovec> {
    let part = |d: &mut &mut [u8]| iovec {
        iov_base: d.as_mut_ptr().cast(),
        iov_len: d.len(),
    };
    out.iter_mut().map(part).collect()
}

fn count_of(parts: &[iovec]) -> c_int {
    c_int::try_from(parts.len()).unwrap_or(c_int::MAX)
}

/// writev(2).
pub fn writev(fd: c_int, data: &[&[u8]]) -> Ret {
    let parts = parts_of(data);
    // SAFETY: the parts are slices.
    long(unsafe { libc::writev(fd, parts.as_ptr(), count_of(&parts)) })
}

/// readv(2).
pub fn readv(fd: c_int, out: &mut [&mut [u8]]) -> Ret {
    let parts = parts_of_mut(out);
    // SAFETY: the parts are slices.
    long(unsafe { libc::readv(fd, parts.as_ptr(), count_of(&parts)) })
}

/// readv(2) into the second entry of its own vector, and then into `out` by that entry and a third.
pub fn readv_over_itself(fd: c_int, out: &mut [u8; 16]) -> Ret {
    let (first, second) = out.split_at_mut(8);
    let part = |at: *mut u8, iov_len| iovec {
        iov_base: at.cast(),
        iov_len,
    };
    let mut parts = [
        part(null_mut(), size_of::<iovec>()),
        part(first.as_mut_ptr(), 8),
        part(second.as_mut_ptr(), 8),
    ];
    let base = parts.as_mut_ptr();
    // SAFETY: the parts are there; their second is any bytes after the call, and not used.
    long(unsafe {
        (*base).iov_base = base.add(1).cast();
        libc::readv(fd, base, 3)
    })
}

/// readv (`write` false) or writev with a vector at any address and any count.
pub fn vector_at(fd: c_int, at: usize, count: c_int, write: bool) -> Ret {
    let vec = core::ptr::with_exposed_provenance::<iovec>(at);
    // SAFETY: as in `send_at`.
    long(unsafe {
        if write {
            libc::writev(fd, vec, count)
        } else {
            libc::readv(fd, vec, count)
        }
    })
}

/// A vector whose entries are (address, length), for [`vector_at`]; lives for ever.
pub fn raw_vector(entries: &[(usize, usize)]) -> usize {
    let part = |&(at, iov_len): &(usize, usize)| iovec {
        iov_base: core::ptr::with_exposed_provenance_mut(at),
        iov_len,
    };
    let vec: Vec<iovec> = entries.iter().map(part).collect();
    vec.leak().as_ptr().expose_provenance()
}

/// preadv2 (`write` false) or pwritev2 at offset -1.
pub fn vector2(fd: c_int, buffer: &mut [u8], flags: c_int, write: bool) -> Ret {
    let part = iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let vec = &raw const part;
    // SAFETY: one part, which is a slice.
    long(unsafe {
        if write {
            libc::pwritev2(fd, vec, 1, -1, flags)
        } else {
            libc::preadv2(fd, vec, 1, -1, flags)
        }
    })
}

/// sendmsg(2).
pub fn sendmsg(fd: c_int, data: &[&[u8]], flags: c_int) -> Ret {
    let mut parts = parts_of(data);
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: the parts are slices.
    long(unsafe { libc::sendmsg(fd, &raw const message, flags) })
}

/// What recvmsg(2) left in its header.
#[derive(Debug)]
pub struct Header {
    /// msg_flags.
    pub flags: c_int,
    /// msg_namelen.
    pub name_len: socklen_t,
    /// msg_controllen.
    pub control_len: usize,
}

/// recvmsg(2) with room for an address and control data.
pub fn recvmsg(fd: c_int, out: &mut [&mut [u8]], flags: c_int) -> (Ret, Header) {
    let mut parts = parts_of_mut(out);
    let mut name = MaybeUninit::<sockaddr_storage>::zeroed();
    let mut control = [0u64; 16];
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size::<sockaddr_storage>();
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    message.msg_flags = -1;
    // SAFETY: the parts are slices; name and control have the lengths said.
    let got = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    let header = Header {
        flags: message.msg_flags,
        name_len: message.msg_namelen,
        control_len: message.msg_controllen,
    };
    (long(got), header)
}

fn batch(parts: &mut [iovec]) -> Vec<mmsghdr> {
    let one = |part: &mut iovec| {
        // SAFETY: zero is a valid mmsghdr.
        let mut message: mmsghdr = unsafe { zeroed() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_len = 77;
        message
    };
    parts.iter_mut().map(one).collect()
}

/// sendmmsg(2), one part each; the lengths that came back.
pub fn sendmmsg(fd: c_int, data: &[&[u8]], flags: c_int) -> (Ret, Vec<u32>) {
    let mut parts = parts_of(data);
    let mut messages = batch(&mut parts);
    let count = u32::try_from(messages.len()).unwrap_or(0);
    // SAFETY: the parts are slices.
    let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, flags) };
    (ret(sent), messages.iter().map(|m| m.msg_len).collect())
}

/// recvmmsg(2), one part each; the lengths that came back.
pub fn recvmmsg(
    fd: c_int,
    out: &mut [&mut [u8]],
    flags: c_int,
    timeout_ms: Option<i64>,
) -> (Ret, Vec<u32>) {
    let mut parts = parts_of_mut(out);
    let mut messages = batch(&mut parts);
    let count = u32::try_from(messages.len()).unwrap_or(0);
    let mut time = timeout_ms.map(spec);
    let time = time.as_mut().map_or(null_mut(), core::ptr::from_mut);
    // SAFETY: the parts are slices, the timeout is null or local.
    let got = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, time) };
    (ret(got), messages.iter().map(|m| m.msg_len).collect())
}

/// Sends `data` with descriptors beside it over a Unix socket.
pub fn send_fds(fd: c_int, data: &[u8], fds: &[c_int]) -> Ret {
    with_fds(data, fds, |message| {
        // SAFETY: a header whose parts live as long as this call.
        long(unsafe { libc::sendmsg(fd, message, 0) })
    })
}

/// The same with one descriptor, by sendmmsg.
pub fn send_fd_in_a_batch(fd: c_int, data: &[u8], passed: c_int) -> Ret {
    with_fds(data, &[passed], |&msg_hdr| {
        let mut batch = [mmsghdr {
            msg_hdr,
            msg_len: 0,
        }];
        // SAFETY: a header whose parts live as long as this call.
        ret(unsafe { libc::sendmmsg(fd, batch.as_mut_ptr(), 1, 0) })
    })
}

/// The same with one descriptor, by number.
pub fn raw_send_fd(fd: c_int, data: &[u8], passed: c_int) -> Ret {
    with_fds(data, &[passed], |message| {
        // SAFETY: a header whose parts live as long as this call.
        ret(unsafe { libc::syscall(libc::SYS_sendmsg, fd, core::ptr::from_ref(message), 0) })
    })
}

fn with_fds(data: &[u8], fds: &[c_int], send: impl FnOnce(&msghdr) -> Ret) -> Ret {
    let mut control = [0u64; 16];
    let mut part = iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    let bytes = u32::try_from(size_of_val(fds)).unwrap_or(0);
    // SAFETY: only computes a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(bytes) } as usize;
    // SAFETY: the control buffer has room for the header and the descriptors.
    unsafe {
        let header = &mut *libc::CMSG_FIRSTHDR(&raw const message);
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        header.cmsg_len = libc::CMSG_LEN(bytes) as usize;
        let out = libc::CMSG_DATA(header);
        core::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), out, size_of_val(fds));
    }
    send(&message)
}

/// Receives one descriptor over a Unix socket; -1 if none came.
pub fn recv_fd(fd: c_int) -> c_int {
    recv_with_fd(fd, &mut [0]).1
}

/// Receives data, and a descriptor if one came beside it (else -1), over a Unix socket.
pub fn recv_with_fd(fd: c_int, out: &mut [u8]) -> (Ret, c_int) {
    let mut control = [0u64; 16];
    let mut part = iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: a header made above.
    let got = long(unsafe { libc::recvmsg(fd, &raw mut message, 0) });
    // SAFETY: the header was filled by the kernel.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if got.is_err() || header.is_null() {
        return (got, -1);
    }
    // SAFETY: a control message of SCM_RIGHTS holds at least one descriptor.
    let passed = unsafe { libc::CMSG_DATA(header).cast::<c_int>().read_unaligned() };
    (got, passed)
}
