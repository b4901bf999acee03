//! In a guest: the end of the daemon through which far ends outside wake us.
//!
//! Interrupts of the device go to doorbells of this process, but they belong to the guest's daemon, and die with it. What
//! is on rings whose far end is outside then goes back to TCP, as if the daemon had drained: by this process itself,
//! when one of its sleepers sees the daemon's line hang up. Connections inside the guest need no daemon.
//!
//! What lies unread in a ring is for the program to read first. Until then all sleeps here are short.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use libc::pollfd;
use rdma_core::Reason;
use rdma_core::control::is_outside_guest;
use rdma_core::layout::ConnView;
use rdma_core::ring::Consumer;
use rdma_core::slot::RxState;
use rustix::thread::Timespec;

use crate::conn::{Conn, conn};
use crate::control::{self, Peer, SESSIONS, Session};
use crate::downgrade::{break_unconfirmed, leave_receiving, leave_sending};
use crate::ops::recv::{break_conn, reset_broken};
use crate::ops::{epoll, lock};
use crate::resend::is_flushed;
use crate::trace::{self, Level};
use crate::{contexts, errno, fds, kick, relayed, renew};

/// What this process has to do with a guest's daemon: [`NOWHERE`], [`SERVED`] or [`PENDING`].
static STATE: AtomicU32 = AtomicU32::new(NOWHERE);
/// It has not met any.
const NOWHERE: u32 = 0;
/// It has.
const SERVED: u32 = 1;
/// One has died, and connections have yet to go back.
const PENDING: u32 = 2;

/// While connections have yet to go back: not to look before this moment (monotonic nanoseconds), with however many
/// descriptors.
static NEXT: AtomicU64 = AtomicU64::new(0);
const LOOK_EVERY_NS: u64 = 2_000_000;

/// How often somebody has wanted to look.
static WANTED: AtomicU32 = AtomicU32::new(0);
/// Somebody looks.
static BUSY: AtomicU32 = AtomicU32::new(0);

/// The daemon of a session is a guest's.
pub(crate) fn note_guest(session: &Session) {
    session.set_in_guest(true);
    STATE.fetch_max(SERVED, Ordering::SeqCst);
}

/// Whether connections have yet to go back, for whose sake nobody may sleep long. Whoever sleeps asks once more after
/// [`entry`], which leaves the line of a daemon out that has ended.
#[inline]
pub(crate) fn is_pending() -> bool {
    match STATE.load(Ordering::Relaxed) {
        NOWHERE => false,
        PENDING => true,
        _ => is_one_over(),
    }
}

/// Whether a guest's daemon has died that nobody has looked at: a message to it may have told first.
fn is_one_over() -> bool {
    let mut sessions = SESSIONS.iter();
    sessions.any(|session| session.is_in_guest() && session.has_ended())
}

/// What a sleep in the kernel looks at beside everything else: whether the daemon dies.
#[inline]
pub(crate) fn entry() -> pollfd {
    let line = match STATE.load(Ordering::Relaxed) {
        NOWHERE => None,
        _ => control::current().and_then(line_of),
    };
    pollfd {
        fd: line.unwrap_or(-1),
        // Its end is always reported.
        events: 0,
        revents: 0,
    }
}

/// The line of a guest's daemon that has not ended.
pub(crate) fn line_of(session: &Session) -> Option<c_int> {
    (session.is_in_guest() && session.is_live())
        .then(|| session.line())
        .flatten()
}

/// Before a sleep, and after one that a daemon's [line](entry) `may` have ended: if the guest's daemon has died, what
/// depended on it goes back to TCP. The caller holds no lock.
#[inline]
pub(crate) fn look(may: bool) {
    match STATE.load(Ordering::Relaxed) {
        NOWHERE => {}
        SERVED if !may && !is_one_over() => {}
        PENDING if !may && control::monotonic_ns() < NEXT.load(Ordering::Relaxed) => {}
        _ => look_around(),
    }
}

#[cold]
fn look_around() {
    WANTED.fetch_add(1, Ordering::SeqCst);
    errno::preserved(|| {
        // Whoever is at it looks again for us; it may be what this signal handler has interrupted.
        let mut seen = WANTED.load(Ordering::SeqCst);
        while BUSY.swap(1, Ordering::SeqCst) == 0 {
            take_back();
            BUSY.store(0, Ordering::SeqCst);
            let now = WANTED.load(Ordering::SeqCst);
            if now == seen {
                break;
            }
            seen = now;
        }
    });
}

fn take_back() {
    let mut pending = false;
    let next = control::monotonic_ns() + LOOK_EVERY_NS;
    for session in SESSIONS.iter().filter(|session| session.is_in_guest()) {
        if session.is_live() && session.has_hung_up() {
            session.end();
        }
        if !session.has_ended() {
            continue;
        }
        let all = step_back_all(session) == Stepped::Back;
        if all {
            session.set_in_guest(false);
        }
        pending |= !all;
    }
    // What was not possible just now is not possible at once.
    NEXT.store(next, Ordering::Relaxed);
    let state = if pending { PENDING } else { SERVED };
    STATE.store(state, Ordering::SeqCst);
}

/// Has all connections step back that depended on the daemon of a session. Their backends are asked at once, and all have
/// the same time to answer, however many they are.
fn step_back_all(session: &Session) -> Stepped {
    let since = control::monotonic_ns();
    loop {
        let now = control::monotonic_ns().saturating_sub(since);
        let stepped = step_back(session, now);
        if stepped != Stepped::Soon {
            return stepped;
        }
        let _ = rustix::thread::nanosleep(&MOMENT);
    }
}

/// As [`step_back_all`], what is possible after `waited` nanoseconds.
fn step_back(session: &Session, waited: u64) -> Stepped {
    let mut all = Stepped::Back;
    fds::each(0, u32::MAX, |fd, entry| {
        if let Some(index) = entry.as_conn()
            && depends(conn(index), session)
        {
            all = all.max(step_back_one(conn(index), fd, waited));
        }
    });
    all
}

/// Between two looks at what has been asked for.
const MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000,
};
/// So long is the backend's word on the direction that an end receives waited for, and then on the other one.
const CONFIRMATION_NS: u64 = 2_000_000_000;
const GRANT_NS: u64 = 2 * CONFIRMATION_NS;

/// Whether the far end of a connection is outside, and woke us through the daemon of this session.
fn depends(conn: &Conn, session: &Session) -> bool {
    let far = control::peer(conn.peer.load(Ordering::Relaxed));
    // One that has left is nobody's, and may have been anybody's.
    let far = far.map(Peer::process).filter(|far| *far != 0);
    let own = session.process.load(Ordering::Relaxed);
    conn.view().is_some()
        && conn.session.load(Ordering::Relaxed) == session.index()
        && is_outside_guest(own, far.unwrap_or(u32::MAX))
}

/// What stepping back has come to; of several connections, the last of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stepped {
    /// Both directions are off the ring, or soon will be by themselves.
    Back,
    /// Something has to happen first.
    Later,
    /// A backend or the kernel has been asked, or the far end has been told just now.
    Soon,
}

/// Both directions of a connection go back for a time. The caller comes again until they have; it has `waited` so many
/// nanoseconds.
///
/// The direction that this end receives goes first, once the program has read what lies in the ring. Only when nothing
/// can be left behind there does the other one follow: as long as the far end reads its ring, it waits where it can be
/// woken to send again.
fn step_back_one(conn: &'static Conn, fd: c_int, waited: u64) -> Stepped {
    let Some(view) = conn.view() else {
        return Stepped::Back;
    };
    let slot = conn.slot();
    let since = conn.stepped_at.load(Ordering::Relaxed);
    let begins = since == 0;
    // The daemon did that before it left, and has given the memory back; or it has been done.
    if begins && renew::is_off(slot) || since == DONE {
        renew::let_go(conn);
        return Stepped::Back;
    }
    if relayed::is_broken(view) {
        return step_back_broken(conn, view, fd);
    }
    if !lock::try_both(conn) {
        return Stepped::Later;
    }
    let unread = has_unread(conn, view);
    lock::free(&slot.rx.lock);
    lock::free(&slot.tx.lock);
    if unread {
        return Stepped::Later;
    }
    if begins {
        note_begin(conn);
        leave_receiving(conn, view, fd, Reason::Drained);
        tell_all(conn, view, fd);
    }
    if relayed::is_unconfirmed(conn, view) {
        if waited < CONFIRMATION_NS {
            return Stepped::Soon;
        }
        break_unconfirmed(conn, view, fd, Reason::Drained);
        return step_back_broken(conn, view, fd);
    }
    if let Some(stepped) = lags_behind(conn, view) {
        return stepped;
    }
    leave_sending(conn, view, fd, Reason::Drained);
    if !is_flushed(conn, view, fd) {
        if waited < GRANT_NS {
            return Stepped::Soon;
        }
        break_conn(conn, view, Reason::Drained);
    }
    if relayed::is_broken(view) {
        return step_back_broken(conn, view, fd);
    }
    trace::event(Level::Info, conn, "steps back to TCP", "");
    // It may come back, unless something else is told.
    let _ = slot.meta.reason.compare_exchange(
        0,
        Reason::Drained.code(),
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    conn.stepped_at.store(DONE, Ordering::Relaxed);
    tell_all(conn, view, fd);
    renew::let_go(conn);
    Stepped::Back
}

/// The connection is broken: whoever waits for it, in the kernel too, here or at the far end, is to hear of it.
fn step_back_broken(conn: &Conn, view: &ConnView, fd: c_int) -> Stepped {
    conn.stepped_at.store(DONE, Ordering::Relaxed);
    reset_broken(conn, view, fd);
    contexts::ring_own(&view.mine.waits);
    Stepped::Back
}

/// This end begins to step back, and with that looks after the memory itself.
fn note_begin(conn: &Conn) {
    let before = conn.slot().rx.tcp_bytes.load(Ordering::Relaxed);
    conn.stepped_bytes.store(before, Ordering::Relaxed);
    let now = control::monotonic_ns();
    let _ = conn
        .stepped_at
        .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
}

/// This end is about to let go of the memory. The host is to know of it where the daemon cannot say so any more; where it can,
/// or could before it left, the memory may be somebody else's by now.
pub(crate) fn note_let_go(conn: &Conn) {
    if conn.stepped_at.load(Ordering::Relaxed) != 0
        && let Some(view) = conn.view()
    {
        view.mine.state.let_go();
    }
}

/// Whoever waits for the connection, here or there, is to look.
fn tell_all(conn: &'static Conn, view: &ConnView, fd: c_int) {
    kick::wake_without_daemon(conn, view);
    contexts::ring_own(&view.mine.waits);
    epoll::on_change(conn, fd);
}

/// Whether the program has yet to read from its ring, and more may come there.
fn has_unread(conn: &Conn, view: &ConnView) -> bool {
    let rx = &conn.slot().rx;
    let is_on = matches!(
        rx.state(),
        RxState::Armed | RxState::Draining | RxState::Ring
    );
    is_on
        && view.theirs.state.ended_at().is_none()
        && Consumer::of(view).refresh(&mut rx.cursor()).unwrap_or(0) > 0
}

/// What is to be waited for if the far end may have something to send once more, of what it put into the ring that this end
/// has left. The backend of a relayed connection has said that it has not.
fn lags_behind(conn: &Conn, view: &ConnView) -> Option<Stepped> {
    let rx = &conn.slot().rx;
    if conn.is_relayed() || !view.mine.state.has_left_ring() {
        return None;
    }
    let since = conn.stepped_at.load(Ordering::Relaxed);
    if control::monotonic_ns().saturating_sub(since) < STILL_NS {
        // It may have been about to put something there.
        return Some(Stepped::Soon);
    }
    let tail = view.rx_words.tail.load(Ordering::Acquire);
    let left = tail.saturating_sub(rx.cursor().head);
    let came = rx.tcp_bytes.load(Ordering::Relaxed);
    let still = came.saturating_sub(conn.stepped_bytes.load(Ordering::Relaxed)) < left;
    still.then_some(Stepped::Later)
}

/// In [`Conn::stepped_at`]: this end has stepped back, or is broken.
const DONE: u64 = u64::MAX;
/// A far end that is sending as its receiver leaves has noticed that by then.
const STILL_NS: u64 = 5_000_000;

/// In a forked child: its parent's daemon is none that wakes it.
pub(crate) fn after_fork() {
    BUSY.store(0, Ordering::Relaxed);
    STATE.store(NOWHERE, Ordering::Relaxed);
    for session in &SESSIONS {
        session.set_in_guest(false);
    }
}
