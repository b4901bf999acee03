//! A connection is made or found: it becomes a candidate, with a slot in the process's arena.

use core::ffi::c_int;
use core::net::SocketAddr;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::policy::Verdict;
use rdma_core::slot::{Slot, Stage};

use super::births;
use super::descriptors::forget_stale;
use super::{KNOWN, SLOT_NUMBERS};
use crate::conn::{CONN_NUMBERS, Conn, conn};
use crate::fds::{self, Entry};
use crate::ops::epoll;
use crate::{config, control, errno, faults, holders, kernel, kick, upgrade};

/// Which side of the handshake a socket was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// It called connect.
    Connected = 1,
    /// It was accepted.
    Accepted = 2,
    /// Somebody else made the connection; the kernel's counts tell later.
    Unknown = 0,
}

/// A connection was made (or, for a non-blocking connect, begun): if its far end is a peer, it becomes
/// a candidate. Not if others may have had the socket before.
pub(crate) fn adopt(fd: c_int, far: SocketAddr, side: Side, nonblocking: bool) {
    let Some(config) = config::config() else {
        return;
    };
    let entry = fds::lookup(fd);
    if entry.as_conn().is_some() {
        if side == Side::Connected {
            // The second connect of a non-blocking socket, or a reconnect.
            if let Some(index) = entry.as_conn() {
                conn(index)
                    .slot()
                    .meta
                    .connects
                    .fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        // A close that we did not see: the number is another socket's now.
        forget_stale(fd);
    }
    // A port in the list is the service's: the far end's for who connects, our own for who accepts.
    let judged = if side == Side::Accepted && config.policy.has_ports() {
        let own = kernel::addresses(fd).map_or(0, |(own, _)| own.port());
        SocketAddr::new(far.ip(), own)
    } else {
        far
    };
    let plain = match config.policy.judge(judged) {
        Verdict::Peer(_) if side == Side::Connected => {
            errno::preserved(|| births::is_elsewhere(fd).filter(|_| kernel::is_tcp(fd)))
        }
        Verdict::Peer(_) => None,
        Verdict::Plain(reason, _) => Some(reason),
    };
    let Some(reason) = plain else {
        errno::preserved(|| make_candidate(fd, side, nonblocking));
        return;
    };
    if let Some(arena) = control::arena() {
        arena.header().counters.count_reason(reason);
    }
    if fds::fits(fd) && fds::lookup(fd).is_none() {
        fds::insert(fd, Entry::PLAIN);
    }
}

/// A descriptor came from elsewhere (inherited over exec, received from another process): if it is a
/// connection to a peer, it becomes a candidate.
pub(crate) fn adopt_unknown(fd: c_int) {
    let Some(config) = config::config() else {
        return;
    };
    errno::preserved(|| {
        if !kernel::is_tcp(fd)
            || fds::lookup(fd).as_conn().is_some()
            || kernel::state(fd) != Some(kernel::TCP_ESTABLISHED)
        {
            return;
        }
        let Some((own, far)) = kernel::addresses(fd) else {
            return;
        };
        // A port in the list is the service's, and which end that is we do not know.
        let service = SocketAddr::new(far.ip(), own.port());
        let is_peer = |judged| matches!(config.policy.judge(judged), Verdict::Peer(_));
        if is_peer(far) && (!config.policy.has_ports() || is_peer(service)) {
            make_candidate(fd, Side::Unknown, kernel::is_nonblocking(fd));
        }
    });
}

/// What was inherited over exec, as far as a program that starts another one hands descriptors on.
pub(crate) fn adopt_inherited() {
    for fd in 0..INHERITED {
        adopt_unknown(fd);
    }
}

/// Descriptors looked at when the program starts.
const INHERITED: c_int = 16;

fn make_candidate(fd: c_int, side: Side, nonblocking: bool) {
    // What was accepted has a connection; whether it is TCP's is asked when it registers.
    if !fds::fits(fd) || side == Side::Connected && !kernel::is_tcp(fd) {
        return;
    }
    let Some(arena) = control::make_arena() else {
        return;
    };
    let Some((index, slot)) = new_slot(&arena) else {
        arena.header().counters.count_reason(Reason::SlotLimit);
        return;
    };
    let Some(number) = CONN_NUMBERS.take() else {
        SLOT_NUMBERS.give(index);
        return;
    };
    let conn = conn(number);
    holders::begin(slot);
    slot.meta.side.store(side as u32, Ordering::Relaxed);
    slot.meta.connects.store(1, Ordering::Relaxed);
    slot.meta
        .nonblocking
        .store(u32::from(nonblocking), Ordering::Relaxed);
    slot.set_stage(Stage::Candidate);
    conn.begin(slot, index);
    control::bind_slot(index, Some(number));
    if side == Side::Connected {
        kick::went_by_kernel();
    }
    // Before anybody finds the connection and touches what the program gives.
    faults::install();
    KNOWN.store(1, Ordering::Release);
    if let Some(first) = fds::insert(fd, conn.entry()).as_watched() {
        epoll::adopt_watched(fd, first, conn);
    }
    // Who accepts may fork for it: that end registers at its first data call, in whichever process
    // makes it.
    if side == Side::Connected && config::upgrade_after().0 == 0 {
        upgrade::register(conn, fd);
    }
}

fn new_slot(arena: &rdma_core::slot::ArenaView) -> Option<(u32, &'static Slot)> {
    let index = SLOT_NUMBERS.take()?;
    let slot = arena.slot(index)?;
    arena
        .header()
        .slots_used
        .fetch_max(index + 1, Ordering::Relaxed);
    slot.reset();
    Some((index, slot))
}

/// A forked child is the only holder left of a connection that its parent made: from now on the
/// connection lives in the child's own arena. `None`: no slot free.
pub(crate) fn move_to_own_arena(conn: &'static Conn) -> Option<u32> {
    let arena = control_arena_locked()?;
    let old = conn.slot();
    let (index, slot) = new_slot(&arena)?;
    let (from, to) = (&old.meta, &slot.meta);
    for (from, to) in [
        (&from.side, &to.side),
        (&from.nonblocking, &to.nonblocking),
        (&from.delivered, &to.delivered),
        (&from.waited, &to.waited),
        (&from.connects, &to.connects),
        (&from.shut, &to.shut),
    ] {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    holders::begin(slot);
    slot.rx
        .inq
        .store(old.rx.inq.load(Ordering::Relaxed), Ordering::Relaxed);
    slot.rx
        .lowat
        .store(old.rx.lowat.load(Ordering::Relaxed), Ordering::Relaxed);
    // Moved, so that they are counted once if the daemon knows the parent too.
    for (from, to) in [
        (&old.rx.tcp_bytes, &slot.rx.tcp_bytes),
        (&old.tx.tcp_bytes, &slot.tx.tcp_bytes),
    ] {
        to.store(from.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
    slot.set_stage(Stage::Candidate);
    conn.move_slot(slot, index);
    control::bind_slot(index, Some(conn.index()));
    Some(index)
}

/// The arena, also when the caller holds the control lock.
fn control_arena_locked() -> Option<rdma_core::slot::ArenaView> {
    control::arena().or_else(control::make_arena_locked)
}
