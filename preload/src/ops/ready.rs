//! poll and select over kernel and ring descriptors alike.
//!
//! * This file: the readiness of one connection, of the kernel's word and the ring's.
//! * [`mod@poll`], [`mod@select`]: the calls, in memory of [`room`]. [`mod@sleep`]: sleeping on rings and the kernel at once.
//! * [`news`]: how often the kernel is asked.
//! * [`by_kernel`]: calls none of whose descriptors involves a ring. [`time`]: timeouts.

mod by_kernel;
mod news;
mod poll;
mod room;
mod select;
mod sleep;
mod time;

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP};
use rdma_core::layout::ConnView;
use rdma_core::ring::Consumer;
use rdma_core::slot::{RxState, TxState};

pub(crate) use by_kernel::{LOOK_AGAIN, has_uncounted_sleepers, poll_in_kernel, select_in_kernel};
pub(crate) use poll::{is_mask, is_sound, poll};
pub(crate) use select::{are_sets, select};
pub(crate) use time::{deadline_in, from_timespec, is_past, kernel_poll, to_timespec};

use super::{recv, send};
use crate::conn::{Conn, NO_FINAL, SHUT_READ, conn};
use crate::{fds, kernel, relayed, resend, upgrade};

/// POLLIN and its synonym.
const READ_BITS: i16 = POLLIN | 0x40;
/// POLLOUT and its synonyms.
const WRITE_BITS: i16 = POLLOUT | 0x100 | 0x200;

/// What a socket with space reports: TCP knows no bands.
const SPACE_BITS: i16 = POLLOUT | 0x100;
/// What a socket reports for good after a reset.
const RESET_BITS: i16 = READ_BITS | SPACE_BITS | POLLRDHUP | POLLHUP;

/// Whether readiness of the connection is more than the kernel knows.
#[inline]
pub(crate) fn involves_ring(conn: &Conn) -> bool {
    if conn.view().is_none() {
        return false;
    }
    let slot = conn.slot();
    !matches!(
        slot.rx.state(),
        RxState::Kernel | RxState::Done | RxState::Returned
    ) || matches!(slot.tx.state(), TxState::Ring | TxState::Returning)
}

/// How many bytes make the connection readable (SO_RCVLOWAT). A ring in which the far end finds no space does in any
/// case, as the kernel's buffer does when its window is used up: no more may come.
pub(in crate::ops) fn lowat(conn: &Conn, view: &ConnView) -> u64 {
    let wanted = conn.slot().rx.lowat.load(Ordering::Relaxed).max(1);
    let capacity = Consumer::of(view).capacity();
    u64::from(wanted).min(capacity - send::space_wanted(capacity) + 1)
}

/// The readiness of a connection that involves a ring, given what the kernel says of the socket.
pub(crate) fn merge(conn: &Conn, fd: c_int, kernel_bits: i16) -> i16 {
    // The kernel enters a reset's error before it closes the socket, and the far end's word by ring may have led here
    // in between: half of it was seen.
    let kernel_bits = if kernel_bits & (POLLERR | POLLHUP) == POLLERR {
        kernel_bits | kernel::poll_now(fd, 0) & POLLHUP
    } else {
        kernel_bits
    };
    let Some(view) = conn.view() else {
        return kernel_bits;
    };
    let slot = conn.slot();
    let mut kernel_bits = kernel_bits;
    let mut bits = kernel_bits;
    settle(conn_static(conn), view, fd);
    let lowat = lowat(conn, view);
    let tx_was_done = slot.tx.state() == TxState::Done;
    // SO_RCVLOWAT counts bytes on both sides of a border.
    if slot.rx.state() == RxState::Draining
        && lowat > 1
        && recv::readable(conn_static(conn), fd).is_some_and(|there| there >= lowat)
    {
        bits |= READ_BITS;
    }
    // A switch may still be on the link: a receive call waits for the backend's word as well.
    if slot.rx.state() == RxState::Armed
        && bits & (POLLRDHUP | POLLERR | POLLHUP) != 0
        && kernel::readable(fd) == Some(0)
        && relayed::is_early(conn, view)
    {
        bits &= !(READ_BITS | POLLRDHUP | POLLERR | POLLHUP);
    }
    if slot.rx.state() == RxState::Ring {
        if bits & (READ_BITS | POLLRDHUP | POLLERR | POLLHUP) != 0 {
            recv::on_kernel_event(conn, view, fd, bits);
            if slot.tx.state() == TxState::Done && !tx_was_done {
                // The kernel was not asked for what the ring had to say until now, and says more since.
                kernel_bits = kernel_now(fd);
                bits |= kernel_bits;
            }
            if relayed::put_off_until(conn, view).is_some() {
                bits &= !(POLLRDHUP | POLLERR | POLLHUP);
            }
        }
        let cursor = slot.rx.cursor();
        let mut fresh = cursor;
        let mut available = Consumer::of(view).refresh(&mut fresh).unwrap_or(1);
        if lowat > 1 {
            available = recv::readable(conn_static(conn), fd).unwrap_or(available);
        }
        // Whatever SO_RCVLOWAT says, an end is enough; it is said when the bytes before it are there.
        let over = view.theirs.state.ended_at().is_some()
            || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
            || conn.shut() & SHUT_READ != 0;
        bits &= !READ_BITS;
        if available >= lowat || over {
            bits |= READ_BITS;
        }
        // The far end says its end before its kernel sends the FIN.
        if conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
            || view.theirs.state.ended_at().is_some()
        {
            bits |= POLLRDHUP;
        }
    }
    if let Some(writable) = send::writable(conn) {
        bits &= !WRITE_BITS;
        if writable || kernel_bits & (POLLERR | POLLHUP) != 0 {
            bits |= SPACE_BITS;
        }
    }
    let all_told = view.theirs.state.ended_at().is_some() && kernel_bits & POLLERR == 0;
    relayed::note_reset(conn, view, all_told);
    let broken = relayed::is_broken(view);
    if broken && recv::is_break_untold(conn, view, fd)
        || conn.pending_error.load(Ordering::Relaxed) != 0
    {
        bits |= RESET_BITS | POLLERR;
    } else if broken || conn.is_dead() {
        bits |= RESET_BITS;
    }
    bits
}

/// Follows what the far end has done to the routes of both directions; true if that changed something.
fn settle(conn: &'static Conn, view: &ConnView, fd: c_int) -> bool {
    let slot = conn.slot();
    let before = (slot.rx.state(), slot.tx.state());
    resend::service(conn, view, fd);
    upgrade::notice_switch(conn, view, fd);
    recv::notice_return(conn, view, fd);
    before != (slot.rx.state(), slot.tx.state())
}

fn conn_static(it: &Conn) -> &'static Conn {
    conn(it.index())
}

/// What the kernel is to be asked about a connection that involves a ring.
fn kernel_interest(conn: &Conn, events: i16) -> i16 {
    let mut ask = events;
    if conn.slot().tx.state() == TxState::Returning {
        ask |= POLLOUT;
    }
    if conn.slot().tx.state() == TxState::Ring {
        ask &= !WRITE_BITS;
    }
    if conn.slot().rx.state() == RxState::Ring {
        if conn.final_tail.load(Ordering::Relaxed) != NO_FINAL {
            // Its end is known; asking again would only wake us.
            ask &= !(READ_BITS | POLLRDHUP);
        } else if may_die_unheard(conn) {
            // A killed far end is to be heard of whatever is asked for: it may be a reset.
            ask |= POLLRDHUP;
        }
    }
    ask
}

/// Whether the kernel's word on the far end would be news, and would be told only once.
fn may_die_unheard(conn: &Conn) -> bool {
    conn.shut() & SHUT_READ == 0
        && conn.view().is_some_and(|view| {
            let far = &view.theirs.state;
            far.ended_at().is_none() && far.returned_at().is_none() && !relayed::is_broken(view)
        })
}

/// The connection behind `fd`, if its readiness involves a ring.
fn ring_conn(fd: c_int) -> Option<&'static Conn> {
    let conn = conn(fds::lookup(fd).as_conn()?);
    involves_ring(conn).then_some(conn)
}

/// The program has been told the readiness of a descriptor, through us.
fn note_delivered(fd: c_int) {
    if let Some(index) = fds::lookup(fd).as_conn() {
        let meta = &conn(index).slot().meta;
        meta.delivered.store(1, Ordering::Relaxed);
    }
}

/// Asks the kernel now, for connections whose directions are not both on rings.
pub(crate) fn kernel_now(fd: c_int) -> i16 {
    kernel::poll_now(
        fd,
        POLLIN | POLLPRI | POLLOUT | POLLRDHUP | READ_BITS | WRITE_BITS,
    )
}
