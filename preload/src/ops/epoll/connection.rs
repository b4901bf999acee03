//! The sets that hold a connection: whether they can serve a ring, and what of its changes reaches them.

#![expect(unsafe_code, reason = "epoll_ctl on the program's sets")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::event::{WaitFor, WaitRef};

use super::interest::{Interest, cookie};
use super::membership::interests_of;
use super::registered::carries;
use super::set::Set;
use super::shared::dissolve;
use super::{channel, interest, membership, news, set};
use crate::conn::{Conn, conn};
use crate::ops::ready::involves_ring;
use crate::ops::send;
use crate::{control, errno, fds, kernel, real, renew};

/// Makes the far end reach an interest whose connection involves a ring, and looks at it once.
pub(super) fn engage(interest: &'static Interest) {
    let Some(conn) = interest.conn() else { return };
    if !involves_ring(conn) {
        if interest.is_outdated(conn) {
            put_in_kernel(interest);
        }
        renew::let_go(conn);
        return;
    }
    let (Some(set), Some(view)) = (interest.set(), conn.view()) else {
        return;
    };
    if set.is_given_up() {
        // Its registrations are about to be the kernel's alone.
        return;
    }
    // Until every peer surely has the channel's doorbell, the set's waits look again by themselves.
    let session = conn.session.load(Ordering::Relaxed);
    set.watch_line(session);
    if !set.open_channel() || !set.channel_known(session) {
        set.blind.store(session + 1, Ordering::Relaxed);
    }
    if let Some(who) = reference(set, conn) {
        let waits = &view.mine.waits;
        while waits.leave(WaitFor::Data, who) {}
        while waits.leave(WaitFor::Space, who) {}
        let mut entered = true;
        // Also for a far end that leaves the ring on which this end sends.
        entered &= waits.enter(WaitFor::Data, who);
        interest.space.store(0, Ordering::Relaxed);
        if !entered {
            // More waiters than entries: the far end cannot ring this set.
            set.blind.store(set::ALWAYS_BLIND, Ordering::Relaxed);
        }
    }
    set.push(interest);
    set.wake_sleepers();
}

/// A send was refused or readiness for sending was denied: from now on the sets that ask for space hear
/// of it, once. (Asking earlier would report edges that the kernel does not.)
pub(crate) fn want_space(conn: &Conn) {
    let Some(view) = conn.view() else { return };
    for interest in interests_of(conn) {
        let Some(set) = interest.set() else { continue };
        if !interest.asks_for_space() || interest.space.swap(1, Ordering::Relaxed) != 0 {
            continue;
        }
        let entered =
            reference(set, conn).is_some_and(|who| view.mine.waits.enter(WaitFor::Space, who));
        if !entered {
            set.blind.store(set::ALWAYS_BLIND, Ordering::Relaxed);
        }
        if send::writable(conn) == Some(true) {
            // The space came before the entry was seen.
            set.push(interest);
            set.wake_sleepers();
        }
    }
}

/// Space was reported to the program: it is not asked for again before a send is refused. True if one was.
pub(super) fn had_space(interest: &Interest, conn: &Conn) -> bool {
    let missed = interest.space.swap(0, Ordering::Relaxed) != 0;
    if missed
        && let (Some(set), Some(view)) = (interest.set(), conn.view())
        && let Some(who) = reference(set, conn)
    {
        view.mine.waits.leave(WaitFor::Space, who);
    }
    missed
}

/// How the far end of `conn` names this set.
fn reference(set: &Set, conn: &Conn) -> Option<WaitRef> {
    let session = control::session(conn.session.load(Ordering::Relaxed))?;
    let process = session.process.load(Ordering::Acquire);
    if process == 0 || session.is_inherited() {
        return None;
    }
    let bit = u16::try_from(conn.index()).ok()?;
    Some(WaitRef {
        process,
        context: set.context()?,
        bit: Some(bit),
    })
}

/// Whether all sets that hold the connection could serve it from a ring.
pub(crate) fn may_arm(conn: &Conn) -> bool {
    for interest in interests_of(conn) {
        let Some(set) = interest.set() else {
            return false;
        };
        if set.is_shared() {
            conn.veto(Reason::SharedEpoll);
            return false;
        }
        let session = conn.session.load(Ordering::Relaxed);
        if !set.open_channel() || !set.channel_known(session) {
            return false;
        }
    }
    true
}

/// Whether the connection stands in a set that this process alone uses, through us. Who waits on that set
/// behind our back gets cookies instead of the program's data, on TCP too; so nobody does.
pub(crate) fn is_registered(conn: &Conn) -> bool {
    interests_of(conn).any(|interest| {
        interest.live.load(Ordering::Acquire) != 0
            && interest.set().is_some_and(|set| !set.is_shared())
    })
}

/// The connection was armed, switched or has reached its ring: adjusts the kernel's registrations
/// and posts one edge.
pub(crate) fn on_change(conn: &'static Conn, _fd: c_int) {
    for interest in interests_of(conn) {
        // Closed, and the number may be another's in the same set.
        if fds::lookup(interest.fd()) != conn.entry() {
            engage(interest);
            continue;
        }
        put_in_kernel(interest);
        let events = libc::POLLIN | libc::POLLRDHUP | libc::POLLOUT;
        let bits = kernel::poll_now(interest.fd(), events);
        conn.kernel_bits
            .store(u32::from(bits.cast_unsigned()), Ordering::Relaxed);
        engage(interest);
    }
}

/// As [`on_change`], if somebody else has changed the connection's states, who could not adjust anything
/// here. True if so: the kernel reports anew what there is.
pub(super) fn catch_up(interest: &Interest, conn: &'static Conn) -> bool {
    let outdated = interest.is_outdated(conn);
    if outdated {
        on_change(conn, interest.fd());
    }
    outdated
}

/// Adjusts the kernel's registration.
fn put_in_kernel(interest: &Interest) {
    let Some(set) = interest.set() else { return };
    let mut event = interest.as_needed();
    let (epfd, fd) = (set.epfd(), interest.fd());
    errno::preserved(|| {
        // An exclusive registration cannot be modified, only replaced.
        let ops: &[c_int] = if interest.is_exclusive() {
            &[libc::EPOLL_CTL_DEL, libc::EPOLL_CTL_ADD]
        } else {
            &[libc::EPOLL_CTL_MOD]
        };
        for op in ops {
            // SAFETY: a local event.
            unsafe { real::epoll_ctl(epfd, *op, fd, &raw mut event) };
        }
    });
}

/// Something has happened to the connection that the kernel reports to every registration.
pub(crate) fn post_edge(conn: &Conn) {
    if !involves_ring(conn) {
        return;
    }
    for interest in interests_of(conn) {
        if let Some(set) = interest.set() {
            interest.told.store(0, Ordering::Relaxed);
            set.push(interest);
            set.wake_sleepers();
        }
    }
}

/// Puts the program's own registrations back into the kernel, takes what is ours out of it, and forgets all sets.
pub(crate) fn dissolve_all() {
    interest::each_live(|interest| {
        if let Some(set) = interest.set() {
            dissolve(set, interest);
        }
    });
    channel::withdraw_all();
}

/// Takes the interest's set out of what the far end wakes.
fn unlink(interest: &Interest, conn: &Conn) {
    if let (Some(set), Some(view)) = (interest.set(), conn.view())
        && let Some(who) = reference(set, conn)
    {
        while view.mine.waits.leave(WaitFor::Data, who) {}
        while view.mine.waits.leave(WaitFor::Space, who) {}
    }
}

/// The connection forgets its memory: nobody there reaches the sets any more.
pub(crate) fn forget_ring(conn: &Conn) {
    for interest in interests_of(conn) {
        unlink(interest, conn);
        interest.space.store(0, Ordering::Relaxed);
        interest.seen.store(u64::MAX, Ordering::Relaxed);
    }
}

/// The last descriptor of the connection, `socket`, is about to be closed: its interests go from the kernel
/// too. If the socket was passed on it may live, and the registration with it; who has it may have made that anew by now, in a
/// set that a child of ours shares, and then it stays as it is.
pub(crate) fn forget_conn(conn: &Conn, socket: Option<c_int>) {
    let passed_on = conn.vetoed() == Some(Reason::FdPassed);
    for interest in interests_of(conn) {
        unlink(interest, conn);
        match interest.set() {
            Some(set)
                if passed_on
                    && socket == Some(interest.fd())
                    && carries(set.epfd(), interest.fd(), cookie(interest.number())) =>
            {
                dissolve(set, interest);
            }
            _ => membership::drop_interest(interest),
        }
    }
}

/// Puts every interest of the connection in `set` on its ready list: a pending bit was found.
pub(super) fn post_conn(set: &'static Set, index: u16) {
    let conn = conn(u32::from(index));
    for interest in interests_of(conn) {
        let is_here = interest
            .set()
            .is_some_and(|owner| core::ptr::eq(owner, set));
        if is_here && concerns(conn, interest) && !news::is_too_little(conn, interest) {
            set.push_for(interest, true);
        }
    }
}

/// Whether a doorbell's bit is an edge of something that the interest asks for: data, space that was
/// missed, or an end of any kind.
fn concerns(conn: &Conn, interest: &Interest) -> bool {
    !interest.is_edge()
        || interest.asks_for_data()
        || interest.space.load(Ordering::Relaxed) != 0
        || conn.view().is_none_or(|view| {
            let far = &view.theirs.state;
            far.ended_at().is_some() || far.is_reader_gone() || far.broken().is_some()
        })
}
