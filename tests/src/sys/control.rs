//! Control data beside the bytes of TCP, and batches of messages of any lengths.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::mem::zeroed;
use core::ptr::null_mut;

use libc::{c_int, cmsghdr, iovec, mmsghdr, msghdr, timespec};

use super::{Ret, long, ret};

/// Room for control data, aligned as it must be.
type Control = [u64; 32];

/// What recvmsg(2) left beside the bytes.
#[derive(Debug)]
pub struct Beside {
    /// msg_flags.
    pub flags: c_int,
    /// msg_controllen.
    pub control_len: usize,
    /// Level, type, length and first int of each control message.
    pub parts: Vec<(c_int, c_int, usize, c_int)>,
}

/// recvmsg(2) with `control_len` bytes for control data.
pub fn recvmsg_with_control(
    fd: c_int,
    out: &mut [u8],
    flags: c_int,
    control_len: usize,
) -> (Ret, Beside) {
    let mut control: Control = [0; 32];
    let mut part = iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control_len.min(size_of::<Control>());
    message.msg_flags = -1;
    // SAFETY: the part is a slice, and the control data is local.
    let got = long(unsafe { libc::recvmsg(fd, &raw mut message, flags) });
    let mut parts = Vec::new();
    // SAFETY: the header was filled by the kernel.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while got.is_ok() && !at.is_null() {
        // SAFETY: a header inside the control data.
        let head = unsafe { at.read() };
        // SAFETY: the control data has room for an int behind any header.
        let value = unsafe { libc::CMSG_DATA(at).cast::<c_int>().read_unaligned() };
        parts.push((head.cmsg_level, head.cmsg_type, head.cmsg_len, value));
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(&raw const message, at) };
    }
    let beside = Beside {
        flags: message.msg_flags,
        control_len: message.msg_controllen,
        parts,
    };
    (got, beside)
}

/// sendmsg(2) with one control message that says of itself what `head` says (level, type, length), in
/// `control_len` bytes of control data.
pub fn sendmsg_with_control(
    fd: c_int,
    data: &[u8],
    head: (c_int, c_int, usize),
    control_len: usize,
) -> Ret {
    let mut control: Control = [0; 32];
    let at = control.as_mut_ptr().cast::<cmsghdr>();
    // SAFETY: the control data has room for a header.
    unsafe {
        (*at).cmsg_level = head.0;
        (*at).cmsg_type = head.1;
        (*at).cmsg_len = head.2;
    }
    let mut part = iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = at.cast();
    message.msg_controllen = control_len;
    // SAFETY: the part is a slice; the kernel refuses more control data than there is here.
    long(unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) })
}

/// recvmsg(2) without room for an address, of which the header says that it is `name_len` long; what the
/// header says afterwards.
pub fn recvmsg_unnamed(fd: c_int, out: &mut [u8], name_len: u32) -> (Ret, u32) {
    let mut part = iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_namelen = name_len;
    // SAFETY: the part is a slice.
    let got = unsafe { libc::recvmsg(fd, &raw mut message, 0) };
    (long(got), message.msg_namelen)
}

fn copies(part: &mut iovec, count: usize) -> Vec<mmsghdr> {
    // SAFETY: zero is a valid mmsghdr.
    let mut message: mmsghdr = unsafe { zeroed() };
    message.msg_hdr.msg_iov = part;
    message.msg_hdr.msg_iovlen = 1;
    vec![message; count]
}

/// sendmmsg(2) of `count` times the same bytes; how many bytes that were.
pub fn sendmmsg_copies(fd: c_int, data: &[u8], count: usize) -> (Ret, u64) {
    let mut part = iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    let mut messages = copies(&mut part, count);
    let len = u32::try_from(count).unwrap_or(0);
    // SAFETY: the part is a slice.
    let sent = ret(unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), len, libc::MSG_NOSIGNAL) });
    (sent, messages.iter().map(|m| u64::from(m.msg_len)).sum())
}

/// recvmmsg(2) of `count` messages into the same bytes; how many bytes came, and whether less than
/// `timeout_ms` was left of the timeout afterwards and how many whole seconds.
pub fn recvmmsg_copies(
    fd: c_int,
    out: &mut [u8],
    count: usize,
    flags: c_int,
    timeout_ms: Option<i64>,
) -> (Ret, u64, Option<(bool, i64)>) {
    let mut part = iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    let mut messages = copies(&mut part, count);
    let len = u32::try_from(count).unwrap_or(0);
    let before = timeout_ms.map(super::spec);
    let mut time = before;
    let at: *mut timespec = time.as_mut().map_or(null_mut(), core::ptr::from_mut);
    // SAFETY: the part is a slice, the timeout is null or local.
    let got = ret(unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), len, flags, at) });
    let bytes = messages.iter().map(|m| u64::from(m.msg_len)).sum();
    let left = time.zip(before).map(|(after, before)| {
        let less = (after.tv_sec, after.tv_nsec) < (before.tv_sec, before.tv_nsec);
        (less, after.tv_sec)
    });
    (got, bytes, left)
}

/// preadv2 or pwritev2 at any offset with any flags, by the names with and without "64".
pub fn vector2_at(
    fd: c_int,
    buffer: &mut [u8],
    offset: i64,
    flags: c_int,
    write: bool,
    name64: bool,
) -> Ret {
    unsafe extern "C" {
        fn preadv64v2(fd: c_int, iov: *const iovec, n: c_int, at: i64, flags: c_int) -> isize;
        fn pwritev64v2(fd: c_int, iov: *const iovec, n: c_int, at: i64, flags: c_int) -> isize;
    }
    let part = iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let vec = &raw const part;
    // SAFETY: one part, which is a slice.
    long(unsafe {
        match (write, name64) {
            (true, false) => libc::pwritev2(fd, vec, 1, offset, flags),
            (true, true) => pwritev64v2(fd, vec, 1, offset, flags),
            (false, false) => libc::preadv2(fd, vec, 1, offset, flags),
            (false, true) => preadv64v2(fd, vec, 1, offset, flags),
        }
    })
}

/// sockatmark(3).
pub fn sockatmark(fd: c_int) -> Ret {
    unsafe extern "C" {
        safe fn sockatmark(fd: c_int) -> c_int;
    }
    ret(sockatmark(fd))
}
