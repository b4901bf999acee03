//! Connections that a daemon has taken back to TCP before it left: they let go of its memory, and offer themselves
//! again to the daemon that comes after it.
//!
//! Whether it was for a time only stands in the end slot: reason `drained`, or none where a backend relays and the far
//! one has left. A connection that the program itself wants in the kernel, or that `viaduct revoke` took back, stays there.
//!
//! The connection keeps its place and its end slot and is a candidate again, as on the day it was made: positions begin
//! at zero, and the kernel's counts say where the next switch is. A thread that was on its way through a call may still
//! have the old memory in hand: it finds both directions in the kernel, and does not arm or switch there
//! ([`crate::upgrade`]); the memory stays mapped, and nothing is registered before such a thread is long through.

use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::control::{Message, SlotRef};
use rdma_core::ring::{RxCursor, TxCursor};
use rdma_core::slot::{RxState, Slot, Stage, TxState};

use crate::conn::{Conn, NO_FINAL};
use crate::ops::{epoll, lock};
use crate::trace::{self, Level};
use crate::{control, errno, forsaken, holders, lifecycle, pins, relayed};

/// How long a connection that has let go stays where it is. What comes after that is asked after twice as long, and so on.
const PAUSE_NS: u64 = 2_000_000_000;
/// Pauses double so often.
const DOUBLINGS: u32 = 4;

/// A thread is about to go to the kernel, in which it may stay for long: a connection that is off the ring in both
/// directions lets go of its memory.
#[inline]
pub(crate) fn let_go(conn: &'static Conn) {
    let slot = conn.slot();
    if slot.stage() == Stage::Attached && is_off(slot) {
        errno::preserved(|| try_let_go(conn, slot));
    }
}

/// Whether both directions are off the ring for good.
pub(crate) fn is_off(slot: &Slot) -> bool {
    let (tx, rx) = (slot.tx.state(), slot.rx.state());
    matches!(
        (tx, rx),
        (TxState::Returned, RxState::Returned | RxState::Kernel)
            | (TxState::Kernel, RxState::Returned)
    )
}

/// Whether the connection may come back.
fn may_return(conn: &Conn) -> bool {
    let told = conn.slot().meta.reason.load(Ordering::Relaxed);
    conn.vetoed().is_none()
        && (told == Reason::Drained.code() || told == 0 && conn.is_relayed())
        && conn.shut() == 0
        && holders::is_alone(conn)
}

#[cold]
fn try_let_go(conn: &'static Conn, slot: &'static Slot) {
    let Some(view) = conn.view() else { return };
    if !may_return(conn)
        || conn.slot_index.load(Ordering::Relaxed) == u32::MAX
        || conn.pending_error.load(Ordering::Relaxed) != 0
        || conn.is_dead()
        || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
        || relayed::is_broken(view)
        || relayed::is_unconfirmed(conn, view)
        || pins::others(conn)
    {
        return;
    }
    // Whoever is busy on the connection, perhaps this very thread further up, looks again at its next call.
    if !lock::try_both(conn) {
        return;
    }
    let mut gone = None;
    if slot.stage() == Stage::Attached
        && is_off(slot)
        && slot.tx.inside.nobody()
        && slot.rx.inside.nobody()
    {
        gone = Some(detach(conn, slot));
    }
    lock::free(&slot.rx.lock);
    lock::free(&slot.tx.lock);
    if let Some((session, place)) = gone {
        trace::event(Level::Info, conn, "lets go", "");
        // The daemon keeps the memory until it hears of this.
        lifecycle::tell(control::session(session), &Message::Unregister(place));
    }
}

/// Under both locks: forgets the memory. The session in which the daemon is to be told, and how it calls the
/// connection.
fn detach(conn: &'static Conn, slot: &Slot) -> (u32, SlotRef) {
    let meta = &slot.meta;
    let place = SlotRef {
        slot: conn.slot_index.load(Ordering::Relaxed),
        generation: meta.generation.load(Ordering::Relaxed),
    };
    if let Some(arena) = control::arena() {
        // The slot counts anew.
        let counters = &arena.header().counters;
        let (sent, received) = (slot.tx.cursor().tail, slot.rx.cursor().head);
        counters.ring_tx_bytes.fetch_add(sent, Ordering::Relaxed);
        counters
            .ring_rx_bytes
            .fetch_add(received, Ordering::Relaxed);
    }
    epoll::forget_ring(conn);
    // Whatever is still said of the old registration means nobody.
    meta.generation.fetch_add(1, Ordering::SeqCst);
    slot.tx.set_cursor(&TxCursor::default());
    slot.rx.set_cursor(&RxCursor::default());
    for word in [
        &slot.tx.resend,
        &slot.rx.kernel_left,
        &slot.rx.far_ack,
        &meta.conn_id,
    ] {
        word.store(0, Ordering::Relaxed);
    }
    conn.over_since.store(0, Ordering::Relaxed);
    conn.sent_at_recv.swap_relaxed(u64::MAX);
    conn.lull.reset();
    meta.reason.store(Reason::Drained.code(), Ordering::Relaxed);
    forsaken::note_let_go(conn);
    conn.detach();
    conn.returns.store(0, Ordering::Relaxed);
    wait_again(conn);
    slot.set_stage(Stage::Plain);
    slot.tx.set_state(TxState::Kernel);
    slot.rx.set_state(RxState::Kernel);
    (conn.session.load(Ordering::Relaxed), place)
}

/// The connection asks again after a pause.
fn wait_again(conn: &Conn) {
    let pauses = conn.returns.load(Ordering::Relaxed).min(DOUBLINGS);
    conn.returns.store(pauses + 1, Ordering::Relaxed);
    let at = control::monotonic_ns() + (PAUSE_NS << pauses);
    conn.return_at.store(at, Ordering::Relaxed);
}

/// A data call on a connection that stays on TCP has gone through the kernel: it may be time to ask again.
#[inline]
pub(crate) fn consider(conn: &Conn) {
    if is_due(conn) {
        ask_again(conn);
    }
}

/// Whether the connection's pause is over.
#[inline]
fn is_due(conn: &Conn) -> bool {
    let at = conn.return_at.load(Ordering::Relaxed);
    at != 0 && control::monotonic_ns() >= at
}

#[cold]
fn ask_again(conn: &Conn) {
    // Who wins asks.
    if conn.return_at.swap(0, Ordering::Relaxed) == 0 {
        return;
    }
    if conn.slot().stage() == Stage::Plain && may_return(conn) {
        begin_anew(conn);
        trace::event(Level::Info, conn, "may come back", "");
    }
}

/// The same, on a connection that is registered. One that was on the ring before does not wait for ever: its far end's
/// daemon may not have answered when it was looked for.
#[inline]
pub(crate) fn consider_registered(conn: &Conn) {
    if is_due(conn) {
        register_again(conn);
    }
}

#[cold]
fn register_again(conn: &Conn) {
    control::locked(|| {
        let slot = conn.slot();
        let index = conn.slot_index.load(Ordering::Relaxed);
        if slot.stage() != Stage::Registered || index == u32::MAX {
            return;
        }
        lifecycle::unregister(conn, slot, index);
        // An answer that is on its way means nobody.
        slot.meta.generation.fetch_add(1, Ordering::SeqCst);
        begin_anew(conn);
    });
}

/// A candidate, as on the day it was made.
fn begin_anew(conn: &Conn) {
    conn.calls.store(0, Ordering::Relaxed);
    conn.bytes.store(0, Ordering::Relaxed);
    conn.slot().set_stage(Stage::Candidate);
    wait_again(conn);
}

/// A registration was refused. True if that is no last word: the daemon is leaving, or the far end of a connection
/// that was on the ring before is not back yet.
pub(crate) fn is_put_off(conn: &Conn, reason: Reason) -> bool {
    let was_here = conn.returns.load(Ordering::Relaxed) != 0;
    let later = match reason {
        Reason::Drained => true,
        Reason::Unreachable | Reason::FarEnd | Reason::LinkReset | Reason::LinkTimeout => was_here,
        // The far end has begun anew at the same time.
        Reason::NotEstablished => was_here,
        _ => false,
    };
    if !later || conn.vetoed().is_some() {
        return false;
    }
    conn.slot()
        .meta
        .reason
        .store(Reason::Drained.code(), Ordering::Relaxed);
    wait_again(conn);
    conn.slot().set_stage(Stage::Plain);
    true
}
