//! A sender's pause that lets its reader run dry.
//!
//! A reader arms when it has waited inside the library: at a blocking call that finds nothing, or after its readiness was
//! delivered ([`crate::upgrade::try_arm`]). One that is always behind, as where both programs share a core, never waits, and
//! the stream would stay on TCP for as long as it lives. So a sender that may wait does that for some milliseconds, as if
//! the socket were full, when much has gone through the kernel since the connection was attached: in its call, or, if it
//! has asked for readiness, in a `poll` for room in this descriptor alone.
//!
//! Pauses are rare (each after four times as many bytes as the one before) and short (a small part of the time that the
//! stream has taken, within bounds), so that a far end that never arms costs next to nothing.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};

use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SO_SNDTIMEO, pollfd};
use rdma_core::layout::ConnView;
use rdma_core::slot::{Stage, TxState};
use rustix::io::Errno;

use crate::conn::{Conn, SHUT_WRITE, conn};
use crate::ops::ready;
use crate::{control, fds, kernel, pins, relayed, upgrade};

/// Bytes through the kernel, since the connection was attached, before the first pause.
const FIRST_BYTES: u64 = 256 << 10;
/// How many times as many come before the next.
const FACTOR: u64 = 4;
/// A pause may last this part of the time since the connection was attached.
const PART: u64 = 32;
/// But so long in any case: a reader that shares its core with others gets its turn.
const SHORTEST_NS: u64 = 5_000_000;
/// And never longer.
const LONGEST_NS: u64 = 200_000_000;
/// Waits shorter than this are not for pauses, which would make them longer.
const PATIENCE_NS: u64 = 20 * LONGEST_NS;
/// Between two looks at the far end.
const LOOK_NS: i64 = 200_000;

/// When a connection's sender pauses next.
#[derive(Debug)]
pub(crate) struct Lull {
    /// After how many bytes through the kernel.
    at: AtomicU64,
    /// How many of them come between the last pause and that; 0: not attached yet.
    apart: AtomicU64,
    /// Monotonic nanoseconds when the first send after the attachment was seen.
    since: AtomicU64,
    /// Nanoseconds of a pause for the next wait; 0: none is due.
    owed: AtomicU64,
}

impl Lull {
    pub(crate) const fn new() -> Self {
        Self {
            at: AtomicU64::new(0),
            apart: AtomicU64::new(0),
            since: AtomicU64::new(0),
            owed: AtomicU64::new(0),
        }
    }

    /// As if nothing had been sent yet.
    pub(crate) fn reset(&self) {
        self.at.store(0, Ordering::Relaxed);
        self.apart.store(0, Ordering::Relaxed);
        self.owed.store(0, Ordering::Relaxed);
    }

    /// `sent` bytes have gone through the kernel by `now`: how long to pause, in nanoseconds.
    fn due(&self, sent: u64, now: u64) -> Option<u64> {
        let apart = self.apart.load(Ordering::Relaxed);
        let next = if apart == 0 {
            self.since.store(now, Ordering::Relaxed);
            FIRST_BYTES
        } else {
            apart.saturating_mul(FACTOR)
        };
        self.apart.store(next, Ordering::Relaxed);
        self.at.store(sent.saturating_add(next), Ordering::Relaxed);
        let passed = now.saturating_sub(self.since.load(Ordering::Relaxed));
        (apart != 0).then(|| (passed / PART).clamp(SHORTEST_NS, LONGEST_NS))
    }
}

/// The kernel has taken bytes of a call, which is otherwise done: pauses if it is time, and the call may wait; `may_wait`:
/// unless the descriptor says otherwise. The caller holds no lock, and is [pinned](crate::pins) to the connection.
#[inline]
pub(crate) fn after_send(conn: &'static Conn, fd: c_int, may_wait: bool) {
    let sent = conn.slot().tx.tcp_bytes.load(Ordering::Relaxed);
    if sent >= conn.lull.at.load(Ordering::Relaxed)
        && let Some(view) = conn.view()
    {
        consider(conn, view, fd, sent, may_wait);
    }
}

#[cold]
fn consider(conn: &'static Conn, view: &ConnView, fd: c_int, sent: u64, may_wait: bool) {
    let Some(pause) = conn.lull.due(sent, control::monotonic_ns()) else {
        return;
    };
    // Who asks for readiness does not expect that a call waits that was told of room.
    if !may_wait || upgrade::is_watched(conn) || kernel::is_nonblocking(fd) {
        conn.lull.owed.store(pause, Ordering::Relaxed);
    } else if is_patient(kernel::timeout_ns(fd, SO_SNDTIMEO)) && !conn.never_waits(SO_SNDTIMEO) {
        wait(conn, view, fd, pause, POLLIN | POLLRDHUP);
    }
}

fn is_patient(timeout_ns: Option<u64>) -> bool {
    timeout_ns.is_none_or(|ns| ns >= PATIENCE_NS)
}

/// Before a wait for what `entry` asks for alone, of `timeout_ns` at most: a pause that is owed, if the wait is one for room.
/// True: a signal was handled, and there is nothing to report.
#[inline]
pub(crate) fn before_wait(entry: &pollfd, timeout_ns: Option<u64>) -> bool {
    entry.events & POLLOUT != 0
        && is_patient(timeout_ns)
        && fds::lookup(entry.fd)
            .as_conn()
            .map(conn)
            .is_some_and(|conn| {
                conn.lull.owed.load(Ordering::Relaxed) != 0 && make_good(conn, entry)
            })
}

#[cold]
fn make_good(conn: &'static Conn, entry: &pollfd) -> bool {
    let pause = conn.lull.owed.swap(0, Ordering::Relaxed);
    let paused = pins::inside(conn, entry.fd, || {
        conn.view()
            .is_some_and(|view| wait(conn, view, entry.fd, pause, entry.events & !POLLOUT))
    });
    paused == Some(true) && !has(conn, entry.fd, entry.events)
}

/// Whether the descriptor is ready for one of `events`, or has an error.
fn has(conn: &'static Conn, fd: c_int, events: i16) -> bool {
    let bits = kernel::poll_now(fd, events);
    let bits = if ready::involves_ring(conn) {
        ready::merge(conn, fd, bits)
    } else {
        bits
    };
    bits & (events | POLLERR | POLLHUP) != 0
}

/// Whether only the far end's arming is missing.
fn would_switch(conn: &Conn, view: &ConnView) -> bool {
    let slot = conn.slot();
    slot.stage() == Stage::Attached
        && slot.tx.state() == TxState::Kernel
        && conn.shut() & SHUT_WRITE == 0
        && conn.vetoed().is_none()
        && !view.theirs.state.is_armed()
        && !view.theirs.state.is_reader_gone()
        && !relayed::is_broken(view)
}

/// Waits until the far end has armed, there is something of `events`, or for `pause` nanoseconds in which the far end's
/// kernel has found no more room: what its program reads is told ever more rarely, each time that the room has doubled.
/// True: a signal was handled, and what that asks for is not put off.
fn wait(conn: &'static Conn, view: &ConnView, fd: c_int, pause: u64, events: i16) -> bool {
    let start = control::monotonic_ns();
    let last = start.saturating_add(LONGEST_NS);
    // The first look is news of any sort, from which the pause counts.
    let (mut end, mut progress) = (0, start);
    let (mut least, mut most) = (u64::MAX, 0);
    let look = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: LOOK_NS,
    };
    loop {
        let now = control::monotonic_ns();
        let (queued, room) = kernel::under_way(fd).unwrap_or_default();
        if queued < least || room > most {
            end = now.saturating_add(pause.max(2 * (now - progress)));
            (least, most, progress) = (queued, room, now);
        }
        if now >= end.min(last)
            || !would_switch(conn, view)
            || fds::lookup(fd) != conn.entry()
            || has(conn, fd, events)
        {
            return false;
        }
        // Not libc's, in which a thread may be cancelled: the bytes are sent.
        if rustix::event::poll(&mut [], Some(&look)) == Err(Errno::INTR) {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_rare_and_a_small_part_of_the_time() {
        let lull = Lull::new();
        let (mut now, mut paused, mut pauses) = (1_000, 0, 0);
        // 64 GiB at 1 GiB/s.
        for sent in (0..64 << 30).step_by(64 << 10) {
            now += 61_035;
            if sent >= lull.at.load(Ordering::Relaxed)
                && let Some(pause) = lull.due(sent, now)
            {
                assert!((SHORTEST_NS..=LONGEST_NS).contains(&pause), "{pause}");
                now += pause;
                paused += pause;
                pauses += 1;
            }
        }
        assert!((7..=10).contains(&pauses), "{pauses}");
        assert!(paused < now / 100, "{paused} of {now}");
    }

    #[test]
    fn the_first_pause_is_counted_from_the_attachment() {
        let lull = Lull::new();
        let already = 9 << 30;
        assert_eq!(lull.due(already, 5), None);
        assert_eq!(lull.at.load(Ordering::Relaxed), already + FIRST_BYTES);
        assert_eq!(
            lull.due(already + FIRST_BYTES, 6),
            Some(SHORTEST_NS),
            "soon after"
        );
        lull.reset();
        assert_eq!(lull.due(already, 7), None, "attached anew");
    }
}
