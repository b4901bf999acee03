//! Which socket is in which set: interests come, are found by descriptor or connection, and go.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::epoll_event;
use rdma_core::Reason;

use super::interest::{INTEREST_NUMBERS, INTEREST_TABLE, Interest, interest};
use super::list::unlist;
use super::set::Set;
use crate::conn::{Conn, conn};
use crate::fds::{self, Entry};
use crate::kernel;

/// The interests of a connection.
pub(super) fn interests_of(conn: &Conn) -> impl Iterator<Item = &'static Interest> {
    conn.sets
        .iter()
        .filter_map(|place| interest(place.load(Ordering::Acquire).checked_sub(1)?))
}

/// The interest of `fd` in `set`.
pub(super) fn find(set: &Set, fd: c_int) -> Option<(u32, &'static Interest)> {
    let index = set.index();
    let fits = |interest: &&'static Interest| {
        interest.set.load(Ordering::Relaxed) == index && interest.fd() == fd
    };
    let entry = fds::lookup(fd);
    let found = match (entry.as_conn(), entry.as_watched()) {
        (Some(number), _) => interests_of(conn(number)).find(fits)?,
        (None, Some(first)) => watched_interests(fd, first).find(fits)?,
        (None, None) => return None,
    };
    Some((found.number(), found))
}

/// A new interest, bound to the connection if the socket has one. `None`: no room.
pub(super) fn new_interest(
    set: &Set,
    fd: c_int,
    asked: epoll_event,
) -> Option<(u32, &'static Interest)> {
    let number = INTEREST_NUMBERS.take()?;
    let interest = INTEREST_TABLE.get(number as usize)?;
    interest.set.store(set.index(), Ordering::Relaxed);
    interest.fd.store(fd, Ordering::Relaxed);
    interest.conn.store(0, Ordering::Relaxed);
    // Of an earlier registration, perhaps by a call of the same number in another set.
    interest.reported.store(0, Ordering::Relaxed);
    interest.seen.store(u64::MAX, Ordering::Relaxed);
    interest.ask(asked);
    let entry = fds::lookup(fd);
    if let Some(index) = entry.as_conn() {
        if !interest.bind(conn(index)) {
            INTEREST_NUMBERS.give(number);
            return None;
        }
    } else if entry.as_watched().is_some() {
        SEVERAL.store(1, Ordering::Relaxed);
    } else {
        fds::insert(fd, Entry::watched(number));
    }
    Some((number, interest))
}

/// From now on events that carry the interest's cookie are understood.
pub(super) fn go_live(set: &Set, interest: &Interest) {
    set.interests.fetch_add(1, Ordering::Relaxed);
    interest.live.store(1, Ordering::Release);
}

/// Frees an interest. On the ready list it stays until it is popped and found dead.
pub(super) fn drop_interest(interest: &'static Interest) {
    if let Some(conn) = interest.conn() {
        for place in &conn.sets {
            let _ = place.compare_exchange(
                interest.number() + 1,
                0,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }
    fds::take(interest.fd(), Entry::watched(interest.number()));
    if interest.live.swap(0, Ordering::AcqRel) != 0
        && let Some(set) = interest.set()
    {
        set.interests.fetch_sub(1, Ordering::Relaxed);
        set.locked(|| unlist(set, interest));
    }
    interest.generation.fetch_add(1, Ordering::Relaxed);
    INTEREST_NUMBERS.give(interest.number());
}

/// Whether `fd` is a TCP socket that may be connected later (or listens).
pub(super) fn is_unconnected_tcp(fd: c_int, entry: Entry) -> bool {
    entry.is_none() && fds::fits(fd) && kernel::is_tcp(fd)
}

/// Interests of a socket that is no connection: the first stands in its entry, others (in further
/// sets) are looked for only if there are any.
fn watched_interests(fd: c_int, first: u32) -> impl Iterator<Item = &'static Interest> {
    let several = SEVERAL.load(Ordering::Relaxed) != 0;
    let used = if several {
        INTEREST_NUMBERS.used() as usize
    } else {
        0
    };
    let others = INTEREST_TABLE
        .iter()
        .take(used)
        .filter(move |other| other.number() != first);
    interest(first)
        .into_iter()
        .chain(others.filter(|other| other.live.load(Ordering::Relaxed) != 0))
        .filter(move |found| found.fd() == fd && found.conn.load(Ordering::Relaxed) == 0)
}

/// Some unconnected socket stands in more than one set.
static SEVERAL: AtomicU32 = AtomicU32::new(0);

/// A watched socket has become a connection: its interests are the connection's.
pub(crate) fn adopt_watched(fd: c_int, first: u32, conn: &Conn) {
    for found in watched_interests(fd, first) {
        if !found.bind(conn) {
            conn.veto(Reason::Waiters);
        }
    }
}

/// A watched socket was closed without ever being a connection.
pub(crate) fn forget_watched(fd: c_int, first: u32) {
    for found in watched_interests(fd, first) {
        drop_interest(found);
    }
}
