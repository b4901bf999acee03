//! How often the kernel is asked about connections that a backend relays.
//!
//! While what is received goes by ring, the kernel can only say how the far end went, and that waits for the backend's
//! word in any case ([`crate::relayed`]). So a program that asks about many such connections again and again,
//! since bytes keep coming, asks the kernel about each only once in a tick of its clock: to look at a socket, whose state
//! is in nobody's cache by then, costs as much as to look at a ring. Asleep it hears the kernel, too, unless it is woken so
//! often that its sleeps are shorter than a tick.

use core::sync::atomic::{AtomicBool, Ordering};

use libc::POLLPRI;
use rdma_core::layout::ConnView;
use rdma_core::slot::{RxState, TxState};

use super::WRITE_BITS;
use crate::conn::{Conn, NO_FINAL};
use crate::{control, relayed};

/// The longest sleep that does not hear the kernel about all; one that begins in another tick does.
pub(super) const DEAF_NS: u64 = 4_000_000;

/// The last sleep of a thread of this process was over within a tick.
static BRISK: AtomicBool = AtomicBool::new(false);

/// Whether a sleep is expected to be so short that it need not hear the kernel.
pub(super) fn sleeps_briskly() -> bool {
    BRISK.load(Ordering::Relaxed)
}

/// A sleep that began in the tick `since` is over.
pub(super) fn slept(since: u64) {
    let brisk = control::coarse_ns() == since;
    if brisk != sleeps_briskly() {
        BRISK.store(brisk, Ordering::Relaxed);
    }
}

/// Whether the kernel need not be asked about `events` of a relayed connection in the tick `now`, since it has been asked in it
/// and its answer would wait. If false, the caller asks.
pub(super) fn is_known(conn: &Conn, view: &ConnView, events: i16, now: u64) -> bool {
    // Where this end sends through the kernel, that knows whether there is room.
    let foreign = match conn.slot().tx.state() {
        TxState::Ring => POLLPRI,
        TxState::Kernel => POLLPRI | WRITE_BITS,
        _ => return false,
    };
    events & foreign == 0 && would_wait(conn, view) && conn.is_asked_in(now)
}

/// Whether all the kernel's news of a connection would wait for the backend's word.
fn would_wait(conn: &Conn, view: &ConnView) -> bool {
    let far = &view.theirs.state;
    far.ended_at().is_none()
        && far.returned_at().is_none()
        && !relayed::is_broken(view)
        && conn.slot().rx.state() == RxState::Ring
        && conn.shut() == 0
        && conn.final_tail.load(Ordering::Relaxed) == NO_FINAL
        && conn.over_since.load(Ordering::Relaxed) == 0
        && conn.pending_error.load(Ordering::Relaxed) == 0
        && !conn.is_reset()
        && !conn.is_dead()
}
