//! Calls that the kernel serves, and the rest of those that the ring has begun.

#![expect(unsafe_code, reason = "receives into the program's buffers")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{MSG_DONTWAIT, MSG_WAITALL};
use rdma_core::Reason;
use rdma_core::layout::ConnView;
use rdma_core::slot::{RxState, Stage};

use super::ends::{break_conn, take_break};
use crate::conn::Conn;
use crate::user::Buffers;
use crate::{errno, fds, kernel, pins, real, relayed, upgrade};

/// The memory of a connection, if what the kernel has may not follow what was read from the ring. Another thread may have
/// left that just now, and wait to be told.
fn unsound(conn: &Conn) -> Option<&ConnView> {
    let view = conn.view().filter(|_| conn.is_relayed())?;
    (!relayed::is_confirmed(conn, view)).then_some(view)
}

/// Bytes may be missing: what the call answers.
fn lost(conn: &Conn, view: &ConnView, fd: c_int) -> isize {
    break_conn(conn, view, Reason::FarEnd);
    match take_break(conn, view, fd) {
        0 => 0,
        error => errno::fail(error),
    }
}

/// The program's own call, counted. `None`: the direction was armed meanwhile; look again.
pub(in crate::ops) fn from_kernel(
    conn: &'static Conn,
    fd: c_int,
    native: &dyn Fn() -> isize,
) -> Option<isize> {
    let rx = &conn.slot().rx;
    rx.inside.enter();
    let state = rx.state();
    if !matches!(state, RxState::Kernel | RxState::Done | RxState::Returned) {
        rx.inside.leave();
        return None;
    }
    let waited = &conn.slot().meta.waited;
    // Asked once per call only until a call has waited; of a connection that is attached, `try_arm` has asked.
    let waits = state == RxState::Kernel
        && conn.slot().stage() != Stage::Attached
        && waited.load(Ordering::Relaxed) == 0
        && kernel::readable(fd) == Some(0);
    if state == RxState::Returned
        && let Some(view) = unsound(conn)
    {
        rx.inside.leave();
        return Some(lost(conn, view, fd));
    }
    let got = pins::inside(conn, fd, native);
    rx.inside.leave();
    let got = got?;
    if got == 0
        && state == RxState::Returned
        && let Some(view) = conn.view()
        && !relayed::is_confirmed(conn, view)
    {
        return Some(lost(conn, view, fd));
    }
    if waits && got > 0 {
        waited.store(1, Ordering::Relaxed);
    }
    if let Ok(bytes) = usize::try_from(got)
        && state != RxState::Done
        && fds::lookup(fd) == conn.entry()
    {
        rx.tcp_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        upgrade::note(conn, fd, bytes);
    }
    Some(got)
}

/// The program's call, which began with a descriptor that another thread has closed.
pub(super) fn from_kept(conn: &Conn, kept: c_int, buffers: &mut Buffers, flags: c_int) -> isize {
    let (mut parts, used) = buffers.rest::<64>(usize::MAX);
    // SAFETY: zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = used;
    // SAFETY: the parts are the program's buffers.
    let got = unsafe { real::recvmsg(kept, &raw mut message, flags) };
    if let Ok(bytes) = u64::try_from(got) {
        let total = &conn.slot().rx.tcp_bytes;
        total.fetch_add(bytes, Ordering::Relaxed);
    }
    got
}

/// Whether the kernel has an error to tell, and no bytes before it.
fn has_only_an_error(fd: c_int) -> bool {
    kernel::poll_now(fd, 0) & libc::POLLERR != 0 && kernel::readable(fd) == Some(0)
}

/// Whether a call that has bytes must end before those of the kernel: the next is an urgent one, which a call
/// that begins with it passes over, or there is only an error, which is for the next call.
pub(super) fn must_end_before(fd: c_int) -> bool {
    has_only_an_error(fd) || kernel::is_at_mark(fd)
}

/// Whether the ring's stream goes on in the kernel after the next `bytes` bytes.
pub(super) fn stream_returns_at(conn: &Conn, bytes: usize) -> bool {
    let rx = &conn.slot().rx;
    rx.state() == RxState::Ring
        && conn
            .view()
            .and_then(|view| view.theirs.state.returned_at())
            .is_some_and(|at| at == rx.cursor().head + bytes as u64)
}

/// The rest of a call whose first bytes came from the ring, which the stream has left. Waits only for what
/// `target` lacks.
pub(super) fn rest_from_kernel(
    conn: &Conn,
    fd: c_int,
    buffers: &mut Buffers,
    mut flags: c_int,
    target: usize,
) {
    while buffers.left() > 0 {
        if buffers.done() >= target {
            flags |= MSG_DONTWAIT;
        }
        if must_end_before(fd) {
            return;
        }
        let (mut parts, used) = buffers.rest::<64>(usize::MAX);
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = used;
        let before = errno::get();
        // SAFETY: the parts are the program's buffers.
        let got = unsafe { real::recvmsg(fd, &raw mut message, flags) };
        match usize::try_from(got) {
            Ok(bytes) if bytes > 0 => {
                let total = &conn.slot().rx.tcp_bytes;
                total.fetch_add(bytes as u64, Ordering::Relaxed);
                buffers.skip(bytes);
            }
            end => {
                let error = errno::get();
                errno::set(before);
                // Behind the bytes that the program gets first.
                if end.is_err() && !matches!(error, libc::EAGAIN | libc::EINTR | libc::EFAULT) {
                    conn.defer_error(error);
                }
                return;
            }
        }
        if flags & MSG_WAITALL == 0 {
            return;
        }
    }
}
