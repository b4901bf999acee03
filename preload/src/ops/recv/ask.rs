//! What others ask of a receiving direction, without receiving.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::handshake::Route;
use rdma_core::layout::ConnView;
use rdma_core::ring::Consumer;
use rdma_core::slot::RxState;

use super::ends::back_in_kernel;
use crate::conn::{Conn, NO_FINAL};
use crate::ops::lock;
use crate::{kernel, resend, upgrade};

/// Whether the direction is on the ring or about to be, arming it if it can be: for calls that receive
/// several times.
pub(in crate::ops) fn is_on_ring(conn: &'static Conn, fd: c_int, dont_wait: bool) -> bool {
    let Some(view) = conn.view() else {
        return false;
    };
    resend::service(conn, view, fd);
    let rx = &conn.slot().rx;
    if rx.state() == RxState::Kernel && lock::take_rx(conn).is_ok() {
        if rx.state() == RxState::Kernel {
            upgrade::try_arm(conn, view, fd, dont_wait);
        }
        lock::free(&rx.lock);
    }
    !matches!(
        rx.state(),
        RxState::Kernel | RxState::Done | RxState::Returned
    )
}

/// Bytes that a receive call could get now, for FIONREAD; `None`: ask the kernel.
pub(crate) fn readable(conn: &'static Conn, fd: c_int) -> Option<u64> {
    let view = conn.view()?;
    let rx = &conn.slot().rx;
    let in_ring = || {
        let mut cursor = rx.cursor();
        Consumer::of(view).refresh(&mut cursor).unwrap_or(0)
    };
    upgrade::notice_switch(conn, view, fd);
    match rx.state() {
        RxState::Kernel | RxState::Armed | RxState::Done | RxState::Returned => None,
        RxState::Draining => {
            let left = rx.kernel_left.load(Ordering::Relaxed);
            let there = kernel::readable(fd)?;
            if there < left {
                return Some(there);
            }
            let ring = in_ring();
            let returned = view.theirs.state.returned_at() == Some(rx.cursor().head + ring);
            Some(left + ring + if returned { there - left } else { 0 })
        }
        RxState::Ring => {
            let there = in_ring();
            // What a far end that has returned sent by the kernel is readable as well.
            let behind = (view.theirs.state.returned_at() == Some(rx.cursor().head + there))
                .then(|| kernel::readable(fd))
                .flatten();
            Some(there + behind.unwrap_or(0))
        }
    }
}

/// Whether bytes of the ring are to be read before the kernel's next one.
pub(crate) fn is_ring_ahead(conn: &Conn) -> bool {
    let rx = &conn.slot().rx;
    rx.state() == RxState::Ring
        && conn.view().is_some_and(|view| {
            let mut cursor = rx.cursor();
            Consumer::of(view).refresh(&mut cursor).unwrap_or(0) > 0
        })
}

/// What TCP_INQ tells beside a message: the bytes that are left, and one more for an end of stream.
pub(crate) fn left_to_read(conn: &'static Conn, fd: c_int) -> c_int {
    let there = readable(conn, fd);
    let over = match conn.view().filter(|_| there.is_some()) {
        Some(view) => {
            view.theirs.state.ended_at().is_some()
                || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
        }
        None => kernel::poll_now(fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0,
    };
    let there = there.or_else(|| kernel::readable(fd)).unwrap_or(0);
    c_int::try_from(there + u64::from(over)).unwrap_or(c_int::MAX)
}

/// Notices that the far end's stream goes back to the kernel without receiving, for those who only ask
/// what is there.
pub(crate) fn notice_return(conn: &'static Conn, view: &ConnView, fd: c_int) {
    let rx = &conn.slot().rx;
    let is_there = || match rx.state() {
        RxState::Ring => view.theirs.state.returned_at() == Some(rx.cursor().head),
        // Nothing has come by ring, and nothing will.
        RxState::Armed => view.theirs.state.route() == Route::Retracted,
        _ => false,
    };
    if is_there() && lock::take_rx(conn).is_ok() {
        if is_there() {
            back_in_kernel(conn, fd);
        }
        lock::free(&rx.lock);
    }
}
