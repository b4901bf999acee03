//! Waiting until another look can give more.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{MSG_DONTWAIT, MSG_PEEK};
use rdma_core::event::WaitFor;
use rdma_core::handshake::Route;
use rdma_core::layout::ConnView;
use rdma_core::ring::{Consumer, RxCursor};
use rdma_core::slot::{RxState, TxState};

use super::STALE;
use super::ends::{ask_kernel_at_times, on_kernel_event};
use crate::conn::{Conn, NO_FINAL, SHUT_READ};
use crate::pins::Call;
use crate::wait::{self, Pace, Woken};
use crate::{control, kernel, lifecycle, relayed, resend, tls};

/// Waits until there may be `need` bytes more.
///
/// # Errors
/// The errno for the program: EAGAIN (non-blocking or timed out) or EINTR.
pub(in crate::ops) fn block(
    conn: &'static Conn,
    fd: c_int,
    flags: c_int,
    need: usize,
    call: &mut Call,
) -> Result<(), c_int> {
    let Some(view) = conn.view() else {
        return Ok(());
    };
    let slot = conn.slot();
    if flags & MSG_DONTWAIT != 0
        || (slot.meta.nonblocking.load(Ordering::Relaxed) != 0 && kernel::is_nonblocking(fd))
    {
        if ask_kernel_at_times(conn, view, fd) {
            return Ok(());
        }
        return Err(libc::EAGAIN);
    }
    let state = slot.rx.state();
    let ready = || {
        has_news(
            conn,
            view,
            state,
            if flags & MSG_PEEK != 0 { need } else { 1 },
        )
    };
    let far = wait::far_cpu(view);
    // Nothing was sent since the last receive: bytes are streaming in, nobody awaits an answer.
    let streaming = conn.sent_at_recv.swap_relaxed(slot.tx.cursor().tail) == slot.tx.cursor().tail;
    let pace = if streaming {
        Pace::Stream
    } else {
        Pace::Answer
    };
    if wait::glance(far, pace, ready) {
        return Ok(());
    }
    let started = control::monotonic_ns();
    if wait::spin(far, pace, ready) {
        return Ok(());
    }
    if !call.note(conn) {
        return Ok(());
    }
    if lifecycle::is_stale(conn, fd) {
        return Err(STALE);
    }
    if kernel::is_nonblocking(fd) {
        slot.meta.nonblocking.store(1, Ordering::Relaxed);
        return Err(libc::EAGAIN);
    }
    let deadline = call.gives_up_at(conn, fd, libc::SO_RCVTIMEO, started);
    let interrupts = tls::interrupts();
    let mut events = libc::POLLIN | libc::POLLRDHUP;
    if slot.tx.state() == TxState::Returning {
        events |= libc::POLLOUT;
    }
    let mut until = deadline;
    let mut watched = fd;
    if matches!(state, RxState::Ring | RxState::Armed)
        && let Some(soon) = relayed::put_off_until(conn, view)
    {
        // It would report the same again and again.
        watched = -1;
        until = Some(deadline.map_or(soon, |at| at.min(soon)));
    }
    if flags & MSG_PEEK != 0 && state == RxState::Ring && view.theirs.state.returned_at().is_some()
    {
        // What is missing comes by the kernel, which says at once that there is something.
        events = 0;
        let soon = started + NAP_NS;
        until = Some(deadline.map_or(soon, |at| at.min(soon)));
    }
    match wait::sleep(conn, view, watched, WaitFor::Data, events, until, ready) {
        Woken::Again => Ok(()),
        Woken::Timeout if until != deadline => Ok(()),
        // Of another file that has the number now.
        Woken::Kernel(_) if call.descriptor(conn) != Some(fd) => Ok(()),
        Woken::Kernel(bits) => {
            on_kernel_event(conn, view, fd, bits & !libc::POLLOUT);
            Ok(())
        }
        Woken::Timeout => Err(libc::EAGAIN),
        // With bytes or a timeout the kernel never restarts; without, SA_RESTART decides.
        Woken::Interrupted
            if call.begun
                || deadline.is_some()
                || tls::interrupts() != interrupts
                || flags & MSG_PEEK != 0 && is_anything_there(conn, view) =>
        {
            Err(libc::EINTR)
        }
        Woken::Interrupted => Ok(()),
    }
}

/// Between two looks at whether the kernel has as much as is asked for.
const NAP_NS: u64 = 1_000_000;

/// Whether another look can give something new.
fn has_news(conn: &Conn, view: &ConnView, state: RxState, need: usize) -> bool {
    let rx = &conn.slot().rx;
    let now = rx.state();
    if now != state || resend::is_wanted(conn, view) {
        return true;
    }
    match now {
        RxState::Kernel | RxState::Done | RxState::Returned => true,
        // Or the far end will never switch.
        RxState::Armed => {
            view.theirs.state.is_switched()
                || view.theirs.state.route() == Route::Retracted
                || relayed::has_come(conn, view)
                || relayed::is_broken(view)
        }
        RxState::Draining => false,
        RxState::Ring => {
            let ring = Consumer::of(view);
            let cursor = rx.cursor();
            if need > 1 {
                let mut copy = cursor;
                if ring
                    .refresh(&mut copy)
                    .is_ok_and(|available| available >= need as u64)
                {
                    return true;
                }
            } else if cursor.available() > 0 || ring.moved(&cursor) {
                return true;
            }
            is_over(conn, view, &cursor)
        }
    }
}

/// Whether a look that waits for more would find bytes in the ring.
fn is_anything_there(conn: &Conn, view: &ConnView) -> bool {
    let rx = &conn.slot().rx;
    let mut copy = rx.cursor();
    rx.state() == RxState::Ring
        && Consumer::of(view)
            .refresh(&mut copy)
            .is_ok_and(|there| there > 0)
}

/// Whether no more bytes will come, for whatever reason.
fn is_over(conn: &Conn, view: &ConnView, cursor: &RxCursor) -> bool {
    view.theirs.state.ended_at() == Some(cursor.head)
        || view.theirs.state.returned_at() == Some(cursor.head)
        || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
        || relayed::is_broken(view)
        || conn.shut() & SHUT_READ != 0
}
