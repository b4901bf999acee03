//! recvmmsg and sendmmsg.

#![expect(unsafe_code, reason = "the program's arrays of headers")]

use core::cell::Cell;
use core::ffi::c_int;

use libc::{mmsghdr, timespec};

use super::{CMSG_COMPAT, passing};
use crate::conn::{Conn, conn};
use crate::ops::{ready, recv, send};
use crate::{control, errno, fds, kernel, probe, real};

/// recvmmsg(2): on a ring by single receives, as the kernel does it: after the first message without
/// waiting if MSG_WAITFORONE is given; an error after the first message is left for the next call.
///
/// # Safety
/// As recvmmsg itself.
pub(crate) unsafe fn receive_batch(
    fd: c_int,
    msgs: *mut mmsghdr,
    count: u32,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    // SAFETY: by contract.
    let native = move || unsafe { real::recvmmsg(fd, msgs, count, flags, timeout) };
    let Some(index) = fds::lookup(fd).as_conn() else {
        let got = native();
        for i in 0..usize::try_from(got).unwrap_or(0) {
            // SAFETY: the kernel has just written it.
            unsafe { passing::note_received(&raw const (*msgs.add(i)).msg_hdr) };
        }
        return got;
    };
    if flags & CMSG_COMPAT != 0 {
        return native();
    }
    let conn = conn(index);
    while !recv::is_on_ring(conn, fd, flags & libc::MSG_DONTWAIT != 0) {
        let result = Cell::new(0);
        let counted = || {
            result.set(native());
            // SAFETY: the kernel has just written them.
            unsafe { bytes_of(msgs, result.get()) }
        };
        if recv::from_kernel(conn, fd, &counted).is_some() {
            return result.get();
        }
    }
    // SAFETY: by contract.
    unsafe { receive_each(conn, fd, msgs, count, flags, timeout) }
}

/// Bytes of so many messages of a batch; -1 for a failure.
///
/// # Safety
/// Their lengths can be read.
unsafe fn bytes_of(msgs: *const mmsghdr, done: c_int) -> isize {
    let Ok(done) = usize::try_from(done) else {
        return -1;
    };
    // SAFETY: by contract.
    let len = |i| isize::try_from(unsafe { (*msgs.add(i)).msg_len }).unwrap_or(0);
    (0..done).map(len).sum()
}

/// # Safety
/// As [`receive_batch`].
unsafe fn receive_each(
    conn: &'static Conn,
    fd: c_int,
    msgs: *mut mmsghdr,
    count: u32,
    mut flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let fail = |error| {
        errno::set(error);
        -1
    };
    let mut deadline = None;
    if !timeout.is_null() {
        // SAFETY: any bytes are a time.
        let Some(time) = (unsafe { probe::read(timeout) }) else {
            return fail(libc::EFAULT);
        };
        let Some(ns) = ready::from_timespec(time) else {
            return fail(libc::EINVAL);
        };
        deadline = Some(control::monotonic_ns().saturating_add(ns));
    }
    if flags & libc::MSG_ERRQUEUE == 0 {
        // Before the bytes, for once.
        let error = pending_error(conn, fd);
        if error != 0 {
            return fail(error);
        }
    }
    let one = flags & libc::MSG_WAITFORONE != 0;
    flags &= !libc::MSG_WAITFORONE;
    let mut done = 0;
    while done < count {
        let entry = msgs.wrapping_add(done as usize);
        // SAFETY: the address of an entry's header, which is touched before it is used.
        let got = unsafe { super::receive(fd, &raw mut (*entry).msg_hdr, flags) };
        let Ok(len) = u32::try_from(got) else {
            let error = errno::get();
            if done > 0 && !OF_THE_CALL.contains(&error) {
                conn.defer_error(error);
            }
            break;
        };
        // SAFETY: a word of the program's entry, which the kernel would overwrite.
        if !unsafe { probe::write(&raw mut (*entry).msg_len, len) } {
            errno::set(libc::EFAULT);
            break;
        }
        done += 1;
        if one {
            flags |= libc::MSG_DONTWAIT;
        }
        if deadline.is_some_and(|at| control::monotonic_ns() >= at) {
            break;
        }
    }
    if let Some(at) = deadline.filter(|_| done > 0) {
        // Linux tells the time that is left.
        let left = at.saturating_sub(control::monotonic_ns());
        // SAFETY: the program's time, which the kernel would overwrite.
        if !unsafe { probe::write(timeout, ready::to_timespec(left)) } {
            return fail(libc::EFAULT);
        }
    }
    if done == 0 && count > 0 {
        -1
    } else {
        done.cast_signed()
    }
}

/// Errors that say nothing of the connection.
const OF_THE_CALL: [c_int; 7] = [
    libc::EAGAIN,
    libc::EINTR,
    libc::EFAULT,
    libc::EINVAL,
    libc::EMSGSIZE,
    libc::EBADF,
    libc::EOPNOTSUPP,
];

/// The connection's error, which is taken by being told; 0: none.
fn pending_error(conn: &Conn, fd: c_int) -> c_int {
    let error = conn.take_error();
    if error == 0 && kernel::poll_now(fd, 0) & libc::POLLERR != 0 {
        return kernel::take_error(fd);
    }
    error
}

/// sendmmsg(2): on a ring by single sends, as the kernel does it: a message of which only a part was sent
/// is the last.
///
/// # Safety
/// As sendmmsg itself.
pub(crate) unsafe fn send_batch(fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int) -> c_int {
    // SAFETY: by contract.
    let native = move || unsafe { real::sendmmsg(fd, msgs, count, flags) };
    let Some(index) = fds::lookup(fd).as_conn() else {
        let note = |count: usize| {
            for i in 0..count {
                // SAFETY: by contract.
                unsafe { passing::note_passed(&raw const (*msgs.wrapping_add(i)).msg_hdr) };
            }
        };
        let before = passing::is_before();
        if before {
            note(count.min(BATCH_MAX) as usize);
        }
        let sent = native();
        if !before {
            note(usize::try_from(sent).unwrap_or(0));
        }
        return sent;
    };
    if flags & CMSG_COMPAT != 0 {
        return native();
    }
    let conn = conn(index);
    // Calls that never go to a ring are made one by one, and may take the direction back to the kernel.
    let special = flags & (libc::MSG_OOB | libc::MSG_ZEROCOPY | libc::MSG_FASTOPEN) != 0;
    while !special && !send::is_on_ring(conn, fd) {
        let result = Cell::new(0);
        let counted = || {
            result.set(native());
            // SAFETY: the kernel has just written them.
            unsafe { bytes_of(msgs, result.get()) }
        };
        if send::to_kernel(conn, fd, flags & libc::MSG_DONTWAIT == 0, &counted).is_some() {
            return result.get();
        }
    }
    let mut done = 0;
    while done < count.min(BATCH_MAX) {
        let entry = msgs.wrapping_add(done as usize);
        // SAFETY: the address of an entry's header, which is touched before it is used.
        let (sent, whole) = unsafe { super::send_one(fd, &raw const (*entry).msg_hdr, flags) };
        let Ok(len) = u32::try_from(sent) else { break };
        // SAFETY: a word of the program's entry, which the kernel would overwrite.
        if !unsafe { probe::write(&raw mut (*entry).msg_len, len) } {
            errno::set(libc::EFAULT);
            break;
        }
        done += 1;
        if !whole {
            break;
        }
    }
    if done == 0 && count > 0 {
        -1
    } else {
        done.cast_signed()
    }
}

/// Messages that the kernel sends at once.
const BATCH_MAX: u32 = 1024;
