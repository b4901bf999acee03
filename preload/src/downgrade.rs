//! From the ring back to kernel TCP, for good: somebody uses the socket who does not see rings.
//!
//! The direction that this end sends goes back after the ring's last byte: the far end reads the ring up
//! to there and then the kernel again. The direction that it receives is left where it stands: the far
//! end sends what lies behind once more, by the kernel, when it next looks at the connection (a waiting
//! thread is woken for that). See [`rdma_core::handshake`].
//!
//! The states stand in the end slot, so they hold for all processes that share the socket by fork.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::layout::ConnView;
use rdma_core::ring::Consumer;
use rdma_core::slot::{RxState, TxState};

use crate::conn::{Conn, NO_FINAL};
use crate::ops::recv::{break_conn, reset_broken};
use crate::ops::{epoll, lock, ready};
use crate::resend::{self, FLUSH_NS, NAP_NS};
use crate::trace::{self, Level};
use crate::{contexts, control, kernel, kick, lifecycle, relayed};

/// How long whoever gives a socket to a user who does not see rings waits for the kernel to have again what was there
/// to be read. A far end that does not run makes it no longer.
const RESENT_NS: u64 = 1_000_000_000;
/// As long as nothing more comes, though something has: no more fits.
const RESENT_STALL_NS: u64 = 20_000_000;

/// The connections that go back together: calls what it is given for each, with a descriptor of it.
pub(crate) type Members<'a> = &'a dyn Fn(&mut dyn FnMut(&'static Conn, c_int));

/// Both directions of a connection go back to the kernel. What cannot be carried over (bytes unread in our ring whose
/// sender has already left) is read first, or, if somebody reads who does not see rings, breaks the
/// connection, openly.
pub(crate) fn leave_ring(conn: &'static Conn, fd: c_int, reason: Reason) {
    leave_rings(&|each| each(conn, fd), reason);
}

/// The same for several. All far ends are asked before any answer is waited for, and all have the same time to answer,
/// however many they are.
pub(crate) fn leave_rings(members: Members<'_>, reason: Reason) {
    members(&mut |conn, fd| begin(conn, fd, reason));
    let leaving = |work: &mut dyn FnMut(&'static Conn, &ConnView, c_int)| {
        members(&mut |conn, fd| {
            if let Some(view) = conn
                .view()
                .filter(|_| conn.leaves.load(Ordering::Relaxed) != 0)
            {
                work(conn, view, fd);
            }
        });
    };
    wait_for_all(&leaving, &resend::is_flushed);
    leaving(&mut |conn, view, fd| {
        if !resend::is_flushed(conn, view, fd) {
            break_conn(conn, view, reason);
            reset_broken(conn, view, fd);
        }
    });
    leaving(&mut |conn, view, fd| leave_receiving(conn, view, fd, reason));
    wait_for_all(&leaving, &|conn, view, _| relayed::is_settled(conn, view));
    leaving(&mut |conn, view, fd| {
        if relayed::is_unconfirmed(conn, view) {
            break_unconfirmed(conn, view, fd, reason);
        }
        kick::wake_all(conn, view);
        contexts::ring_own(&view.mine.waits);
        epoll::on_change(conn, fd);
    });
    if !sees_reads(reason) {
        await_resent(&leaving);
    }
    leaving(&mut |conn, _, _| conn.leaves.store(0, Ordering::Relaxed));
}

/// Vetoes the connection, and asks for the direction that this end sends.
fn begin(conn: &'static Conn, fd: c_int, reason: Reason) {
    conn.veto(reason);
    let Some(view) = conn.view() else { return };
    if lock::is_inside(conn) {
        // In a signal handler that has interrupted an operation: nothing can be moved now.
        return;
    }
    if !ready::involves_ring(conn) {
        // No other process that shares the slot may go to the ring later.
        settle_in_kernel(conn);
        if !ready::involves_ring(conn) {
            return;
        }
    }
    trace::event(Level::Info, conn, "goes back to TCP:", reason.name());
    conn.leaves.store(1, Ordering::Relaxed);
    conn.owed.store(0, Ordering::Relaxed);
    leave_sending(conn, view, fd, reason);
}

/// As [`Members`], of those that have been on a ring.
type Leaving<'a> = &'a dyn Fn(&mut dyn FnMut(&'static Conn, &ConnView, c_int));

/// Waits until all are done, but not for ever.
fn wait_for_all(leaving: Leaving<'_>, is_done: &dyn Fn(&'static Conn, &ConnView, c_int) -> bool) {
    let deadline = control::monotonic_ns() + FLUSH_NS;
    loop {
        let mut all = true;
        leaving(&mut |conn, view, fd| all &= is_done(conn, view, fd));
        if all || control::monotonic_ns() >= deadline {
            return;
        }
        let _ = ready::kernel_poll(&mut [], Some(NAP_NS));
    }
}

/// What was there to be read is there for the new users too, who may not wait for it: returns once the kernel has it again,
/// or as much as fits, unless the far ends take too long.
fn await_resent(leaving: Leaving<'_>) {
    let deadline = control::monotonic_ns() + RESENT_NS;
    let (mut last, mut since) = (0, 0);
    loop {
        let (mut all, mut there) = (true, 0);
        leaving(&mut |conn, view, fd| {
            // The far end may wait for the same.
            resend::service(conn, view, fd);
            let readable = kernel::readable(fd).unwrap_or(u64::MAX);
            let owed = conn.owed.load(Ordering::Relaxed);
            all &= readable >= owed || is_over(view, fd);
            there += readable.min(owed);
        });
        let now = control::monotonic_ns();
        if there > last {
            (last, since) = (there, now);
        }
        if all || now >= deadline || last > 0 && now - since > RESENT_STALL_NS {
            return;
        }
        let _ = ready::kernel_poll(&mut [], Some(NAP_NS));
    }
}

/// Whether nothing more can come.
fn is_over(view: &ConnView, fd: c_int) -> bool {
    let ends = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    relayed::is_broken(view) || kernel::poll_now(fd, libc::POLLRDHUP) & ends != 0
}

/// Directions that are in the kernel stay there.
fn settle_in_kernel(conn: &Conn) {
    let slot = conn.slot();
    if lock::take_tx(conn).is_ok() {
        if slot.tx.state() == TxState::Kernel {
            slot.tx.set_state(TxState::Returned);
        }
        lock::free(&slot.tx.lock);
    }
    if lock::take_rx(conn).is_ok() {
        if slot.rx.state() == RxState::Kernel {
            slot.rx.set_state(RxState::Returned);
        }
        lock::free(&slot.rx.lock);
    }
}

/// The direction that this end sends goes back after the last byte of its ring, as soon as it is
/// [flushed](resend::is_flushed).
pub(crate) fn leave_sending(conn: &'static Conn, view: &ConnView, fd: c_int, reason: Reason) {
    let tx = &conn.slot().tx;
    if lock::take_tx(conn).is_err() {
        return break_conn(conn, view, reason);
    }
    match tx.state() {
        TxState::Ring if conn.is_relayed() => {
            // False: the backend has answered already. Otherwise it will.
            let _ = view.mine.state.cancel();
            kick::wake_all(conn, view);
        }
        TxState::Ring => {
            let state = &view.mine.state;
            let tail = tx.cursor().tail;
            // Either accepted, or taken back, or accepted in between, or left by the far end.
            if state.give_back(tail) || !state.cancel() && state.give_back(tail) {
                tx.set_state(TxState::Returned);
            } else {
                resend::begin(conn, view);
            }
        }
        TxState::Kernel => tx.set_state(TxState::Returned),
        TxState::Switching | TxState::Done | TxState::Returning | TxState::Returned => {}
    }
    lock::free(&tx.lock);
    resend::service(conn, view, fd);
}

/// The direction that this end receives is left where it stands. That of a relayed connection has yet to be
/// [confirmed](relayed::is_unconfirmed).
pub(crate) fn leave_receiving(conn: &'static Conn, view: &ConnView, fd: c_int, reason: Reason) {
    let rx = &conn.slot().rx;
    if lock::take_rx(conn).is_err() {
        return break_conn(conn, view, reason);
    }
    let is_sent_to = view.theirs.state.is_switched();
    let mut left = Left::Nothing;
    match rx.state() {
        RxState::Kernel => rx.set_state(RxState::Returned),
        RxState::Armed | RxState::Draining | RxState::Ring => {
            left = leave_at_head(conn, view, !sees_reads(reason));
        }
        RxState::Done | RxState::Returned => {}
    }
    lock::free(&rx.lock);
    match left {
        Left::Lost => break_unconfirmed(conn, view, fd, reason),
        Left::Ring if conn.is_relayed() => kick::wake_all(conn, view),
        // Its sender may sleep where the library does not see it.
        Left::Ring if is_sent_to => lifecycle::tell_retracted(conn),
        Left::Ring | Left::Nothing => {}
    }
}

/// Nobody sends what this end has left in its ring, or nobody has said so in time.
pub(crate) fn break_unconfirmed(conn: &Conn, view: &ConnView, fd: c_int, reason: Reason) {
    break_conn(conn, view, reason);
    // What comes by the kernel must not be taken for the next bytes of the stream.
    kernel::abort(fd);
}

/// Whether the socket is still read through the library only: what lies in a ring whose sender has left can
/// then be read to its end.
fn sees_reads(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Stdio
            | Reason::FdPassed
            | Reason::Exec
            | Reason::IoUring
            | Reason::Sandboxed
            | Reason::SharedEpoll
            | Reason::Splice
    )
}

/// What a receiver has left.
enum Left {
    /// Nothing: the ring will be read to its end.
    Nothing,
    /// The ring: its sender sends the rest.
    Ring,
    /// The ring, and bytes in it that nobody sends again.
    Lost,
}

/// As [`leave_receiving`], under the lock. `now`: even if bytes are lost.
fn leave_at_head(conn: &Conn, view: &ConnView, now: bool) -> Left {
    let rx = &conn.slot().rx;
    let far = &view.theirs.state;
    // Ends before the tail, as ever.
    let last = conn.final_tail.load(Ordering::Acquire);
    let end = far.ended_at().or((last != NO_FINAL).then_some(last));
    let mut cursor = rx.cursor();
    let unread = Consumer::of(view).refresh(&mut cursor).unwrap_or(1);
    let ends_behind = end.is_some() && unread > 0;
    if ends_behind && !now {
        return Left::Nothing;
    }
    let left = match view.mine.state.retract(far, cursor.head) {
        // The far end will not send anything again.
        Ok(()) if ends_behind => Left::Lost,
        Ok(()) => {
            conn.owed.store(unread, Ordering::Relaxed);
            Left::Ring
        }
        Err(at) if at == cursor.head => Left::Nothing,
        Err(_) if !now => return Left::Nothing,
        Err(_) => Left::Lost,
    };
    rx.set_state(RxState::Returned);
    left
}
