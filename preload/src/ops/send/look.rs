//! One look at wherever the bytes go now, border or ring; and the end of the direction.

use core::ffi::c_int;

use rdma_core::Reason;
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::ring::Producer;
use rdma_core::slot::TxState;

use super::{Step, publish};
use crate::conn::Conn;
use crate::ops::recv::{self, break_conn, take_break};
use crate::ops::{epoll, lock, ready};
use crate::resend::{self, Resent};
use crate::user::Buffers;
use crate::{kernel, kick, relayed, upgrade};

/// How long a FIN may take after the word that it comes: the far end is between two lines of its close.
const END_NS: u64 = 100_000_000;

/// One look at wherever the bytes go now.
pub(super) fn step(conn: &'static Conn, fd: c_int, buffers: &mut Buffers, dont_wait: bool) -> Step {
    let tx = &conn.slot().tx;
    let Some(view) = conn.view() else {
        return Step::Native;
    };
    if lock::take_tx(conn).is_err() {
        return Step::Error(libc::EINTR);
    }
    let step = look(conn, view, fd, buffers, dont_wait);
    lock::free(&tx.lock);
    if matches!(step, Step::Moved) {
        kick::after_publish(conn, view, WaitFor::Data);
    }
    step
}

/// As [`step`], under the lock.
fn look(
    conn: &'static Conn,
    view: &ConnView,
    fd: c_int,
    buffers: &mut Buffers,
    dont_wait: bool,
) -> Step {
    let tx = &conn.slot().tx;
    if tx.state() != TxState::Kernel {
        let error = conn.take_error();
        if error != 0 {
            return Step::Error(error);
        }
        if relayed::is_broken(view) {
            return broken(conn, view, fd);
        }
        if conn.is_dead() {
            return Step::Error(libc::EPIPE);
        }
    }
    match tx.state() {
        // What is in the kernel stays there if the ring is of no use any more.
        TxState::Kernel if view.theirs.state.is_armed() && !relayed::is_broken(view) => {
            if !upgrade::try_switch(conn, view, fd, dont_wait) {
                return Step::Native;
            }
        }
        TxState::Kernel | TxState::Switching | TxState::Done | TxState::Returned => {
            if tx.state() == TxState::Kernel && view.theirs.state.is_reader_gone() {
                // Once: it may be that only the ring was let go of there.
                let_the_end_come(fd);
                tx.set_state(TxState::Done);
            }
            return Step::Native;
        }
        TxState::Returning => return resend(conn, view, fd),
        TxState::Ring => {}
    }
    if view.theirs.state.is_reader_gone() {
        if resend::begin(conn, view) {
            return resend(conn, view, fd);
        }
        if view.mine.state.broken().is_some() {
            return broken(conn, view, fd);
        }
        relayed::note_reset(conn, view, true);
        let error = conn.take_error();
        if error != 0 {
            return Step::Error(error);
        }
        // The kernel answers: its socket is closed as well, or serves somebody without a ring.
        let_the_end_come(fd);
        recv::ask_kernel(conn, view, fd);
        let error = conn.take_error();
        if error != 0 {
            return Step::Error(error);
        }
        tx.set_state(TxState::Done);
        return Step::Native;
    }
    let ring = Producer::of(view);
    let mut cursor = tx.cursor();
    let Ok(free) = ring.refresh(&mut cursor) else {
        break_conn(conn, view, Reason::RingCorrupt);
        return broken(conn, view, fd);
    };
    tx.set_cursor(&cursor);
    let len = buffers
        .left()
        .min(usize::try_from(free).unwrap_or(usize::MAX));
    if len == 0 {
        return Step::Full;
    }
    let len = buffers.sound_to_fill(len);
    if len == 0 {
        return Step::Error(libc::EFAULT);
    }
    buffers.fill(&ring, &mut cursor, len);
    publish(conn, view, &ring, &cursor);
    Step::Moved
}

/// What is told of a connection that is broken.
#[cold]
fn broken(conn: &Conn, view: &ConnView, fd: c_int) -> Step {
    match take_break(conn, view, fd) {
        0 => Step::Error(libc::EPIPE),
        error => Step::Error(error),
    }
}

/// The far end says that it reads no more, and is about to close its socket. What the kernel brings there before that is
/// unread, and answered by a reset at once; behind the FIN it is lost first, as without a ring.
#[cold]
fn let_the_end_come(fd: c_int) {
    if kernel::poll_now(fd, libc::POLLRDHUP) == 0 {
        let end = libc::pollfd {
            fd,
            events: libc::POLLRDHUP,
            revents: 0,
        };
        // Interrupted or too late: then so be it.
        let _ = ready::kernel_poll(&mut [end], Some(END_NS));
    }
}

/// As [`look`], for what the far end left in the ring.
fn resend(conn: &'static Conn, view: &ConnView, fd: c_int) -> Step {
    match resend::go_on(conn, view, fd) {
        Resent::All => {
            epoll::on_change(conn, fd);
            Step::Native
        }
        Resent::Full => {
            epoll::on_change(conn, fd);
            Step::KernelFull
        }
        Resent::Failed(error) => Step::Error(error),
    }
}

/// Ends the direction: no byte after what was sent so far. The kernel's FIN or RST follows.
///
/// `fd` names the socket, if anything still does: what the far end left in the ring goes first.
pub(crate) fn end(conn: &'static Conn, fd: Option<c_int>) {
    let Some(view) = conn.view() else { return };
    let tx = &conn.slot().tx;
    let mut locked = false;
    for _ in 0..2 {
        if let Some(fd) = fd
            && !resend::flush(conn, view, fd)
        {
            // A FIN would say that these were all bytes.
            let reason = if conn.is_relayed() {
                Reason::LinkTimeout
            } else {
                Reason::FarEnd
            };
            break_conn(conn, view, reason);
            kernel::abort(fd);
        }
        locked = lock::take_tx(conn).is_ok();
        // Also if nothing ever went to the ring: FIN without an announced end means a killed program.
        view.mine.state.end(tx.cursor().tail);
        // A receiver that left meanwhile did not know of the end, and counts on us; so does a backend that
        // has made us ask where it left.
        let counts = match tx.state() {
            // Somebody has begun since, the daemon for one.
            TxState::Returning => true,
            TxState::Ring if conn.is_relayed() => !view.mine.state.finish(),
            _ => resend::is_wanted(conn, view),
        };
        if fd.is_none() || !locked || !counts {
            break;
        }
        lock::free(&tx.lock);
        locked = false;
    }
    tx.set_state(TxState::Done);
    if locked {
        lock::free(&tx.lock);
    }
    kick::wake_all(conn, view);
}
