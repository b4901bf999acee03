//! What differs where a backend relays: the far end of the memory is this host's backend, which writes what
//! the far program says when it hears it over the link.
//!
//! The kernel's own connection goes another way, so its FIN or RST may be early: bytes that were sent before
//! it may still be on the link. Until the backend has said how the far end's stream ends, such news is put
//! off.

use core::sync::atomic::Ordering;

use rdma_core::handshake::Route;
use rdma_core::layout::ConnView;
use rdma_core::slot::{RxState, TxState};

use crate::conn::{Conn, NO_FINAL, SHUT_READ};
use crate::control::monotonic_ns;
use crate::kick;
use crate::ops::ready;

/// How long the backend's word is waited for. It comes within a round trip, unless the link is down (the
/// backend says so when it gives the link up) or somebody else than the far program ended the kernel's
/// connection.
const PATIENCE_NS: u64 = 60_000_000_000;
/// How long an end that leaves its ring waits until it knows that nothing is lost. It takes a round trip.
const CONFIRMATION_NS: u64 = 2_000_000_000;
/// Between two looks at whether the backend has answered.
const NAP_NS: u64 = 200_000;

/// Whether the kernel's word on the far end, which has just come, must wait for the backend's.
#[inline]
pub(crate) fn is_early(conn: &Conn, view: &ConnView) -> bool {
    conn.is_relayed() && is_early_in(conn, view)
}

#[cold]
fn is_early_in(conn: &Conn, view: &ConnView) -> bool {
    let far = &view.theirs.state;
    if conn.shut() & SHUT_READ != 0 {
        // The kernel speaks of our own shutdown as well, and nothing more is to be read.
        return false;
    }
    if far.ended_at().is_some() || far.broken().is_some() {
        return false;
    }
    let since = conn.over_since.load(Ordering::Relaxed);
    if since == 0 {
        conn.over_since.store(monotonic_ns(), Ordering::Relaxed);
        // Nobody may be left there who could have said it by ring.
        view.mine.state.doubt();
        kick::wake_all(conn, view);
        return true;
    }
    monotonic_ns().saturating_sub(since) < PATIENCE_NS
}

/// Whether the kernel's word on the far end has come, and was put off.
pub(crate) fn is_put_off(conn: &Conn) -> bool {
    conn.over_since.load(Ordering::Relaxed) != 0
}

/// Whether the backend's word, for which the kernel's has been put off, has come.
#[inline]
pub(crate) fn has_come(conn: &Conn, view: &ConnView) -> bool {
    let far = &view.theirs.state;
    conn.over_since.load(Ordering::Relaxed) != 0
        && (far.ended_at().is_some() || far.broken().is_some())
}

/// The far program was killed with bytes unread: TCP would have answered RST. `now`: all that came before is there, or
/// the caller does not read, and the kernel itself tells of no reset.
#[inline]
pub(crate) fn note_reset(conn: &Conn, view: &ConnView, now: bool) {
    if now
        && conn.is_relayed()
        && view.theirs.state.has_left_unread()
        && !conn.is_dead()
        && conn.pending_error.load(Ordering::Relaxed) == 0
    {
        conn.pending_error
            .store(libc::ECONNRESET, Ordering::Relaxed);
    }
}

/// Until when the kernel need not be asked about the far end: its news has come and waits for the backend's.
#[inline]
pub(crate) fn put_off_until(conn: &Conn, view: &ConnView) -> Option<u64> {
    let since = conn.over_since.load(Ordering::Relaxed);
    if since == 0 || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL || !is_early(conn, view) {
        return None;
    }
    Some(since + PATIENCE_NS)
}

/// Whether either end has broken the connection.
pub(crate) fn is_broken(view: &ConnView) -> bool {
    view.theirs.state.broken().is_some() || view.mine.state.broken().is_some()
}

/// Whether this end wants to send by the kernel again, and the backend has yet to say from which byte on.
#[inline]
pub(crate) fn awaits_grant(conn: &Conn, view: &ConnView) -> bool {
    conn.is_relayed()
        && conn.slot().tx.state() == TxState::Ring
        && view.mine.state.route() == Route::Retracted
        // Both are set before the backend goes on.
        && !(view.theirs.state.is_granted() && view.theirs.state.is_reader_gone())
}

/// Whether this end has left its ring by itself, and the far backend has not said yet that the far program sends what
/// lies behind: an end of the kernel's stream need not be the end.
pub(crate) fn is_unconfirmed(conn: &Conn, view: &ConnView) -> bool {
    conn.is_relayed()
        && conn.slot().rx.state() == RxState::Returned
        && view.mine.state.has_left_ring()
        && !view.theirs.state.is_confirmed()
        && view.theirs.state.ended_at() != Some(conn.slot().rx.cursor().head)
}

/// Whether nothing more is to be waited for after this end has left its ring.
pub(crate) fn is_settled(conn: &Conn, view: &ConnView) -> bool {
    !is_unconfirmed(conn, view) || is_broken(view)
}

/// Waits, if need be, until the far backend has said that the far program sends what this end has left behind in its
/// ring. False: nobody does, or nobody says so in time.
#[cold]
pub(crate) fn is_confirmed(conn: &Conn, view: &ConnView) -> bool {
    let deadline = monotonic_ns() + CONFIRMATION_NS;
    while !is_settled(conn, view) && monotonic_ns() < deadline {
        let _ = ready::kernel_poll(&mut [], Some(NAP_NS));
    }
    !is_unconfirmed(conn, view)
}

/// Whether this end has to wait for that word: it does not come where nobody reads any more.
pub(crate) fn has_to_wait(conn: &Conn, view: &ConnView) -> bool {
    let far = &view.theirs.state;
    awaits_grant(conn, view) && !far.is_closed() && far.broken().is_none()
}
