//! What far ends have to say to a set: pending bits, and what has changed since the last look.

use core::sync::atomic::Ordering;

use rdma_core::event::{EventContext, WaitFor};
use rdma_core::handshake::Route;
use rdma_core::ring::Consumer;
use rdma_core::slot::RxState;

use super::connection::post_conn;
use super::interest::{self, Interest};
use super::set::Set;
use crate::conn::Conn;
use crate::ops::ready::{involves_ring, lowat};
use crate::{contexts, control};

/// For a set that some far end cannot ring: what has changed since it was last looked at goes to the ready
/// list.
#[cold]
pub(super) fn look_at_all(set: &'static Set) {
    interest::each_live(|interest| {
        let Some(conn) = interest.conn() else { return };
        let has_news = || {
            let has_space = || {
                interest.space.load(Ordering::Relaxed) != 0
                    && crate::ops::send::writable(conn) == Some(true)
            };
            involves_ring(conn)
                && (interest.seen.load(Ordering::Relaxed) != news(conn) || has_space())
                || interest.is_outdated(conn)
        };
        if interest
            .set()
            .is_some_and(|owner| core::ptr::eq(owner, set))
            && has_news()
            && !is_too_little(conn, interest)
        {
            set.push(interest);
        }
    });
}

/// The bits of [`news`] that are not the tail.
const OVER: u64 = 0x3f;

/// A number that changes with whatever a far end may have to say.
pub(super) fn news(conn: &Conn) -> u64 {
    let Some(view) = conn.view() else { return 0 };
    let state = &view.theirs.state;
    let over = u64::from(state.ended_at().is_some())
        | u64::from(state.is_reader_gone()) << 1
        | u64::from(state.broken().is_some()) << 2
        | u64::from(state.is_switched()) << 3
        | u64::from(matches!(state.route(), Route::Returned | Route::Retracted)) << 4
        | u64::from(crate::ops::send::writable(conn) == Some(true)) << 5;
    view.rx_words.tail.load(Ordering::Acquire) << 6 | over
}

/// Whether, for an edge-triggered interest, the far end has done nothing but send less than SO_RCVLOWAT
/// asks for, which is no edge.
pub(super) fn is_too_little(conn: &Conn, interest: &Interest) -> bool {
    let rx = &conn.slot().rx;
    let Some(view) = conn.view().filter(|_| interest.is_edge()) else {
        return false;
    };
    let lowat = lowat(conn, view);
    if lowat <= 1 || rx.state() != RxState::Ring || view.mine.waits.any(WaitFor::Space) {
        return false;
    }
    let mut cursor = rx.cursor();
    let there = Consumer::of(view).refresh(&mut cursor).unwrap_or(lowat);
    there < lowat && (news(conn) ^ interest.seen.load(Ordering::Relaxed)) & OVER == 0
}

/// Moves pending bits to the ready list.
pub(super) fn take_pending(set: &'static Set) {
    each_pending(set, |words| {
        words.take_pending(|bit| post_conn(set, bit));
    });
}

/// What [`take_before_kernel`] found.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Before {
    /// Some bit was taken.
    pub(super) any: bool,
    /// Others are left that come after something that their far end has given to the kernel.
    pub(super) more: bool,
}

/// Moves pending bits to the ready list, but for those that come after something that their far end has given
/// to the kernel.
pub(super) fn take_before_kernel(set: &'static Set) -> Before {
    let mut before = Before::default();
    each_pending(set, |words| {
        before.more |= words.take_before_kernel(|bit| {
            before.any = true;
            post_conn(set, bit);
        });
    });
    before
}

/// Calls `work` where bits are pending.
fn each_pending(set: &'static Set, mut work: impl FnMut(&EventContext)) {
    let Some(number) = set.context() else { return };
    for session in &control::SESSIONS {
        let Some(events) = session.events.get() else {
            continue;
        };
        if let Some(words) = contexts::words(&events, number)
            && words.has_pending()
        {
            work(words);
        }
    }
}

/// Whether a bit is pending or the list is not empty.
pub(super) fn has_news(set: &Set) -> bool {
    let Some(number) = set.context() else {
        return false;
    };
    !set.is_quiet()
        || control::SESSIONS.iter().any(|session| {
            session
                .events
                .get()
                .and_then(|events| contexts::words(&events, number))
                .is_some_and(EventContext::has_pending)
        })
}
