//! Messages: recvmsg and sendmsg, and what stands beside the bytes.
//!
//! * [`batches`]: recvmmsg and sendmmsg. [`passing`]: descriptors in messages of other sockets.

#![expect(unsafe_code, reason = "the program's headers and control data")]

mod batches;
mod passing;

pub(crate) use batches::{receive_batch, send_batch};

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;

use libc::{MSG_CMSG_CLOEXEC, MSG_CTRUNC, cmsghdr, msghdr, sockaddr, socklen_t};

use super::{options, recv, send};
use crate::conn::{Conn, conn};
use crate::user::Buffers;
use crate::{errno, fds, probe, real};

/// MSG_CMSG_COMPAT: a flag of the kernel's own, which it refuses in calls with messages.
const CMSG_COMPAT: c_int = c_int::MIN;

/// recvmsg(2).
///
/// # Safety
/// As recvmsg itself.
pub(crate) unsafe fn receive(fd: c_int, msg: *mut msghdr, flags: c_int) -> isize {
    let by_kernel = Cell::new(false);
    let seen = &by_kernel;
    let native = move || {
        seen.set(true);
        // SAFETY: by contract.
        unsafe { real::recvmsg(fd, msg, flags) }
    };
    let entry = fds::lookup(fd);
    let Some(index) = entry.as_conn() else {
        let got = native();
        if got >= 0 {
            // SAFETY: the kernel has just written it.
            unsafe { passing::note_received(msg) };
        }
        return got;
    };
    if flags & CMSG_COMPAT != 0 {
        return native();
    }
    // SAFETY: any bytes are a header of numbers and addresses.
    let Some(header) = (unsafe { probe::read(msg) }) else {
        return native();
    };
    let Ok(count) = c_int::try_from(header.msg_iovlen) else {
        return native();
    };
    if !header.msg_name.is_null() && c_int::try_from(header.msg_namelen).is_err() {
        return native();
    }
    // SAFETY: by contract.
    let Ok(mut buffers) = (unsafe { Buffers::vector(header.msg_iov, count) }) else {
        return native();
    };
    let got = recv::recv(fd, entry, index, &mut buffers, flags, native);
    // SAFETY: by contract.
    if got >= 0 && !by_kernel.get() && !unsafe { tell(conn(index), fd, msg, &header, flags) } {
        // The bytes are taken, as on TCP.
        return errno::fail(libc::EFAULT);
    }
    got
}

/// What the kernel's TCP writes into a header beside the bytes. False: it cannot be written.
///
/// # Safety
/// `msg` is the program's header, of which `header` is a copy.
unsafe fn tell(
    conn: &'static Conn,
    fd: c_int,
    msg: *mut msghdr,
    header: &msghdr,
    flags: c_int,
) -> bool {
    let mut told = flags & MSG_CMSG_CLOEXEC;
    let mut used = 0;
    if conn.slot().rx.inq.load(Ordering::Relaxed) != 0 {
        let left = recv::left_to_read(conn, fd);
        // SAFETY: the program's control data, which the kernel would overwrite.
        match unsafe { put_control(header, libc::IPPROTO_TCP, options::TCP_INQ, left) } {
            Some((bytes, whole)) => {
                used = bytes;
                told |= if whole { 0 } else { MSG_CTRUNC };
            }
            None => told |= MSG_CTRUNC,
        }
    }
    // SAFETY: words of the program's header, which the kernel would overwrite.
    unsafe {
        (header.msg_name.is_null() || probe::write(&raw mut (*msg).msg_namelen, 0))
            && probe::write(&raw mut (*msg).msg_flags, told)
            && probe::write(&raw mut (*msg).msg_controllen, used)
    }
}

/// A control message of one int.
#[repr(C)]
#[derive(Clone, Copy)]
struct IntControl {
    header: cmsghdr,
    value: c_int,
}

/// Bytes of it that are not padding.
const INT_CONTROL: usize = size_of::<cmsghdr>() + size_of::<c_int>();

/// Writes a control message at the beginning of the control data, as much of it as there is room for:
/// the bytes used, and whether it was all. `None`: no room, or no memory.
///
/// # Safety
/// The control data is to be overwritten.
unsafe fn put_control(
    header: &msghdr,
    level: c_int,
    kind: c_int,
    value: c_int,
) -> Option<(usize, bool)> {
    let room = header.msg_controllen;
    if header.msg_control.is_null() || room < size_of::<cmsghdr>() {
        return None;
    }
    let len = INT_CONTROL.min(room);
    // SAFETY: zero is a valid cmsghdr.
    let mut head: cmsghdr = unsafe { core::mem::zeroed() };
    head.cmsg_len = len;
    head.cmsg_level = level;
    head.cmsg_type = kind;
    let control = IntControl {
        header: head,
        value,
    };
    let place = header.msg_control.cast::<u8>();
    // SAFETY: by contract.
    if !unsafe { probe::writable(place, len) } {
        return Some((0, true));
    }
    // SAFETY: found writable; no more than the message's bytes that are not padding.
    unsafe { place.copy_from_nonoverlapping((&raw const control).cast(), len) };
    Some((size_of::<IntControl>().min(room), len == INT_CONTROL))
}

/// sendmsg(2).
///
/// # Safety
/// As sendmsg itself.
pub(crate) unsafe fn send(fd: c_int, msg: *const msghdr, flags: c_int) -> isize {
    // SAFETY: by contract.
    unsafe { send_one(fd, msg, flags) }.0
}

/// sendmsg(2), and whether all was sent.
///
/// # Safety
/// As sendmsg itself.
unsafe fn send_one(fd: c_int, msg: *const msghdr, flags: c_int) -> (isize, bool) {
    // SAFETY: by contract.
    let native = move || unsafe { real::sendmsg(fd, msg, flags) };
    let entry = fds::lookup(fd);
    let Some(index) = entry.as_conn() else {
        let before = passing::is_before();
        if before {
            // SAFETY: by contract.
            unsafe { passing::note_passed(msg) };
        }
        let sent = native();
        if !before && sent >= 0 {
            // SAFETY: by contract.
            unsafe { passing::note_passed(msg) };
        }
        return (sent, true);
    };
    if flags & CMSG_COMPAT != 0 {
        return (native(), true);
    }
    // SAFETY: any bytes are a header of numbers and addresses.
    let Some(header) = (unsafe { probe::read(msg) }) else {
        return (native(), true);
    };
    let Ok(count) = c_int::try_from(header.msg_iovlen) else {
        return (native(), true);
    };
    // SAFETY: by contract.
    if !is_sound(&header) || !unsafe { may_stand_beside(conn(index), fd, &header) } {
        return (native(), true);
    }
    // SAFETY: by contract.
    match unsafe { Buffers::vector(header.msg_iov, count) } {
        Ok(buffers) => {
            let sent = send::send(fd, entry, index, &buffers, flags, native);
            (sent, usize::try_from(sent) == Ok(buffers.left()))
        }
        Err(_) => (native(), true),
    }
}

/// Whether the kernel takes the control data of a message that may go to a ring: it is asked with a message
/// of no bytes, of which TCP only looks at the control data. False: it refuses the whole message as well.
///
/// # Safety
/// As [`send()`], for a header that is sound.
unsafe fn may_stand_beside(conn: &Conn, fd: c_int, header: &msghdr) -> bool {
    if header.msg_controllen == 0 || conn.view().is_none() {
        return true;
    }
    let mut empty = *header;
    empty.msg_iovlen = 0;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    errno::preserved(|| {
        // SAFETY: by contract; no bytes.
        let sent = unsafe { real::sendmsg(fd, &raw const empty, flags) };
        sent >= 0
            || !matches!(
                errno::get(),
                libc::EINVAL | libc::EFAULT | libc::ENOBUFS | libc::EPERM
            )
    })
}

/// Whether an address that the program gives beside the data of a connected socket can be one; what
/// cannot, the kernel refuses.
pub(crate) fn is_address(addr: *const sockaddr, len: socklen_t) -> bool {
    len as usize <= size_of::<libc::sockaddr_storage>() && is_there(addr.cast(), len as usize)
}

/// As [`is_address`], for all that a message carries beside its data.
fn is_sound(header: &msghdr) -> bool {
    let name_len = (header.msg_namelen as usize).min(size_of::<libc::sockaddr_storage>());
    let is_named = !header.msg_name.is_null();
    !(is_named
        && (c_int::try_from(header.msg_namelen).is_err() || !is_there(header.msg_name, name_len)))
        && is_there(header.msg_control, header.msg_controllen)
}

/// Whether bytes beside the data can be read: those that the kernel would copy in any case.
fn is_there(at: *const c_void, len: usize) -> bool {
    probe::readable(at.cast(), len.min(CONTROL_MAX))
}

/// More control data than the kernel takes.
const CONTROL_MAX: usize = 1 << 20;

/// Tells that a connected TCP socket names nobody; `got` or an error.
///
/// # Safety
/// `alen` is the program's word for the length of an address.
pub(crate) unsafe fn named_nobody(got: isize, alen: *mut socklen_t) -> isize {
    // SAFETY: any bytes are a length.
    match unsafe { probe::read(alen) } {
        // SAFETY: by contract a word to be overwritten.
        Some(room) if room <= i32::MAX as u32 && unsafe { probe::write(alen, 0) } => got,
        Some(room) if room > i32::MAX as u32 => errno::fail(libc::EINVAL),
        _ => errno::fail(libc::EFAULT),
    }
}
