//! Calls that the kernel serves, and the rest of those that the ring has begun.

#![expect(unsafe_code, reason = "sends the program's buffers")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::MSG_NOSIGNAL;
use rdma_core::slot::{RxState, TxState};

use crate::conn::Conn;
use crate::user::Buffers;
use crate::{errno, fds, kernel, kick, lull, pins, real, upgrade};

/// The program's own call, counted; `may_wait`: unless the descriptor says otherwise. `None`: the direction was switched
/// meanwhile; look again.
pub(in crate::ops) fn to_kernel(
    conn: &'static Conn,
    fd: c_int,
    may_wait: bool,
    native: &dyn Fn() -> isize,
) -> Option<isize> {
    let tx = &conn.slot().tx;
    tx.inside.enter();
    let state = tx.state();
    if !matches!(state, TxState::Kernel | TxState::Done | TxState::Returned) {
        tx.inside.leave();
        return None;
    }
    let sent = pins::inside(conn, fd, || {
        let sent = native();
        let Ok(bytes) = usize::try_from(sent) else {
            return (sent, None);
        };
        if bytes > 0 {
            if hears_by_ring(conn) {
                kernel::push(fd);
            }
            kick::went_by_kernel();
        }
        if state == TxState::Done || fds::lookup(fd) != conn.entry() {
            return (sent, None);
        }
        tx.tcp_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if bytes > 0 && state == TxState::Kernel {
            lull::after_send(conn, fd, may_wait);
        }
        (sent, Some(bytes))
    });
    tx.inside.leave();
    let (sent, counts) = sent?;
    if let Some(bytes) = counts {
        upgrade::note(conn, fd, bytes);
    }
    Some(sent)
}

/// Whether the far end's bytes come by ring, and with them no acknowledgement of what went through the kernel:
/// Nagle's algorithm would wait for one that the far end's kernel puts off.
fn hears_by_ring(conn: &Conn) -> bool {
    match conn.slot().rx.state() {
        RxState::Draining | RxState::Ring => true,
        RxState::Armed => conn
            .view()
            .is_some_and(|view| view.theirs.state.is_switched()),
        _ => false,
    }
}

/// The program's call, which began with a descriptor that another thread has closed.
pub(super) fn to_kept(conn: &Conn, kept: c_int, buffers: &mut Buffers, flags: c_int) -> isize {
    let (mut parts, used) = buffers.rest::<64>(usize::MAX);
    // SAFETY: zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = used;
    // SAFETY: the parts are the program's buffers.
    let sent = unsafe { real::sendmsg(kept, &raw const message, flags) };
    if let Ok(bytes) = u64::try_from(sent) {
        let total = &conn.slot().tx.tcp_bytes;
        total.fetch_add(bytes, Ordering::Relaxed);
    }
    sent
}

/// The rest of a call whose first bytes went to the ring, which the stream has left.
pub(super) fn rest_to_kernel(conn: &Conn, fd: c_int, buffers: &mut Buffers, flags: c_int) {
    while buffers.left() > 0 {
        let (mut parts, used) = buffers.rest::<64>(usize::MAX);
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = used;
        let before = errno::get();
        // SAFETY: the parts are the program's buffers.
        let sent = unsafe { real::sendmsg(fd, &raw const message, flags | MSG_NOSIGNAL) };
        let Ok(bytes) = usize::try_from(sent) else {
            let error = errno::get();
            errno::set(before);
            // What the kernel says once only; all else it says again.
            if matches!(
                error,
                libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH
            ) {
                conn.defer_error(error);
            }
            return;
        };
        let total = &conn.slot().tx.tcp_bytes;
        total.fetch_add(bytes as u64, Ordering::Relaxed);
        buffers.skip(bytes);
    }
}
