//! What ends the ring's stream: the kernel's word on the far end, a break, the way back to TCP.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::layout::ConnView;
use rdma_core::slot::{RxState, TxState};

use crate::conn::{Conn, NO_FINAL, SHUT_READ, SHUT_WRITE};
use crate::ops::{epoll, lock};
use crate::trace::{self, Level};
use crate::{control, kernel, kick, lifecycle, relayed};

/// The kernel reports something on a socket whose bytes come from the ring: end of stream, an error,
/// or a writer that nobody saw.
pub(crate) fn on_kernel_event(conn: &Conn, view: &ConnView, fd: c_int, bits: i16) {
    let rx = &conn.slot().rx;
    // After a far end's return to the kernel, the kernel is asked when the ring has been read.
    if rx.state() != RxState::Ring
        || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
        || view.theirs.state.returned_at().is_some()
        || relayed::is_broken(view)
    {
        return;
    }
    let shut = conn.shut();
    if bits & libc::POLLERR == 0
        && bits & libc::POLLHUP != 0
        && shut == SHUT_READ | SHUT_WRITE
        && kernel::state(fd).is_some_and(|state| state != kernel::TCP_CLOSE)
    {
        // Our own shutdown of both directions.
        return;
    }
    if bits & (libc::POLLERR | libc::POLLHUP) == 0 {
        if conn.shut() & SHUT_READ != 0 {
            return;
        }
        match kernel::peek(fd) {
            Ok(false) => {}
            // Its return was announced before it sent anything.
            Ok(true) if view.theirs.state.returned_at().is_some() => return,
            Ok(true) => return break_conn(conn, view, Reason::UnseenWriter),
            Err(libc::EAGAIN | libc::EINTR) => return,
            Err(error) => conn.pending_error.store(error, Ordering::Relaxed),
        }
    }
    if relayed::is_early(conn, view) {
        return;
    }
    if conn.is_relayed() && view.theirs.state.ended_at().is_none() && shut & SHUT_READ == 0 {
        // Nobody can say whether these were all bytes.
        return break_conn(conn, view, Reason::LinkTimeout);
    }
    // Hung up by RST, not by a FIN in each direction: the kernel has told or will tell.
    let reset = bits & libc::POLLERR != 0
        || bits & libc::POLLHUP != 0 && shut & (SHUT_READ | SHUT_WRITE) != SHUT_WRITE;
    finish(conn, view, fd, reset);
}

/// Asks the kernel about a far end that has said nothing by ring: a killed one cannot. True: there is news.
#[cold]
pub(crate) fn ask_kernel(conn: &Conn, view: &ConnView, fd: c_int) -> bool {
    let is_over =
        || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL || relayed::is_broken(view);
    if conn.slot().rx.state() != RxState::Ring || is_over() || lifecycle::is_stale(conn, fd) {
        return false;
    }
    let bits = kernel::poll_now(fd, libc::POLLRDHUP);
    if bits != 0 {
        on_kernel_event(conn, view, fd, bits);
    }
    is_over()
}

/// As [`ask_kernel`], once in a tick of the kernel's clock: for calls that a program makes again and again because they
/// need not wait.
pub(crate) fn ask_kernel_at_times(conn: &Conn, view: &ConnView, fd: c_int) -> bool {
    !conn.is_asked_in(control::coarse_ns()) && ask_kernel(conn, view, fd)
}

/// The far end's kernel has said FIN or RST: whatever it wrote to the ring, it wrote before. `reset`: RST,
/// which the kernel reports itself.
fn finish(conn: &Conn, view: &ConnView, fd: c_int, reset: bool) {
    relayed::note_reset(conn, view, !reset);
    // An honest end said where its stream ends before it closed; a killed one did not.
    let killed = view.theirs.state.ended_at().is_none();
    let tail = view.rx_words.tail.load(Ordering::Acquire);
    if killed && conn.pending_error.load(Ordering::Relaxed) == 0 {
        let tx = &conn.slot().tx;
        let sent = tx.cursor().tail;
        let read = view.theirs.consumer.head.load(Ordering::Acquire);
        if read < sent && !reset {
            // Unread bytes at a dead end: TCP would have answered RST. The kernel is left to tell of it, in all calls.
            if kernel::state(fd) == Some(kernel::TCP_CLOSE_WAIT) && !lifecycle::is_stale(conn, fd) {
                conn.note_reset();
                kernel::abort(fd);
            } else if !conn.is_reset() {
                conn.pending_error
                    .store(libc::ECONNRESET, Ordering::Relaxed);
            }
        }
        if conn.pending_error.load(Ordering::Relaxed) == 0 && lock::take_tx(conn).is_ok() {
            // Nobody reads the ring: what is sent from now on, the kernel answers.
            if tx.state() == TxState::Ring {
                tx.set_state(TxState::Done);
            }
            lock::free(&tx.lock);
        }
    }
    let end = view.theirs.state.ended_at().unwrap_or(tail);
    conn.final_tail.store(end, Ordering::Release);
}

/// Breaks the connection at both ends.
#[cold]
pub(crate) fn break_conn(conn: &Conn, view: &ConnView, reason: Reason) {
    if relayed::is_broken(view) {
        return;
    }
    view.mine.state.break_with(reason);
    trace::event(Level::Warn, conn, "broken:", reason.name());
    conn.slot()
        .meta
        .reason
        .store(reason.code(), Ordering::Relaxed);
    if let Some(arena) = control::arena() {
        arena.header().counters.count_reason(reason);
    }
    kick::wake_all(conn, view);
}

/// What a call on a broken connection answers, which is told once; 0: it has been, and the stream is over.
#[cold]
pub(crate) fn take_break(conn: &Conn, view: &ConnView, fd: c_int) -> c_int {
    let untold = is_break_untold(conn, view, fd);
    kernel::take_error(fd);
    if !untold || !conn.die() {
        return 0;
    }
    if is_by_time(view) {
        libc::ETIMEDOUT
    } else {
        libc::ECONNRESET
    }
}

/// Whether nobody has been told of a connection's break, by us or by the kernel.
#[cold]
pub(crate) fn is_break_untold(conn: &Conn, view: &ConnView, fd: c_int) -> bool {
    reset_broken(conn, view, fd);
    !conn.is_dead() && (!conn.is_reset() || kernel::poll_now(fd, 0) & libc::POLLERR != 0)
}

/// The kernel's connection ends with a broken one. Else it would live until this end is closed, and with it whoever waits
/// there and looks at no ring: threads of this end, and a far end that has gone back to TCP. Where time has run out, the
/// far end is not told by TCP either: it finds out by itself.
#[cold]
pub(crate) fn reset_broken(conn: &Conn, view: &ConnView, fd: c_int) {
    let lives = kernel::state(fd).is_some_and(|state| state != kernel::TCP_CLOSE);
    // What is unread there would be lost; whoever reads it, or sends, comes here again.
    if lives
        && !is_by_time(view)
        && kernel::readable(fd) == Some(0)
        && !lifecycle::is_stale(conn, fd)
    {
        conn.note_reset();
        kernel::abort(fd);
    }
}

/// Whether a connection is broken because nothing was heard in time.
fn is_by_time(view: &ConnView) -> bool {
    let reason = view.theirs.state.broken().or(view.mine.state.broken());
    reason.is_some_and(Reason::is_timeout)
}

/// Under the receive lock: the ring has been read to where the far end's stream goes back to the kernel.
pub(super) fn back_in_kernel(conn: &'static Conn, fd: c_int) {
    conn.slot().rx.set_state(RxState::Returned);
    trace::event(Level::Info, conn, "receives by TCP again", "");
    epoll::on_change(conn, fd);
}
