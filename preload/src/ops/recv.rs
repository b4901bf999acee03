//! Receiving: from the kernel, across the switch, from the ring, to the end.
//!
//! * This file: the call's entry, and the fast path: bytes are in the ring.
//! * [`call`]: a whole call that the fast path could not serve. [`mod@look`]: one look at wherever the bytes
//!   come from now. [`mod@block`]: waiting for the next look.
//! * [`by_kernel`]: calls and rests of calls that the kernel serves.
//! * [`ends`]: what ends or breaks the ring's stream. [`ask`]: what others ask of the direction.

mod ask;
mod block;
mod by_kernel;
mod call;
mod ends;
mod look;

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL};
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::ring::{Consumer, RxCursor};
use rdma_core::slot::RxState;

pub(super) use ask::is_on_ring;
pub(crate) use ask::{is_ring_ahead, left_to_read, notice_return, readable};
pub(super) use block::block;
pub(super) use by_kernel::from_kernel;
pub(crate) use ends::{
    ask_kernel, ask_kernel_at_times, break_conn, is_break_untold, on_kernel_event, reset_broken,
    take_break,
};
pub(super) use look::look;

use super::lock;
use crate::conn::{Conn, conn};
use crate::fds::{self, Entry};
use crate::user::Buffers;
use crate::{kick, tls, wait};
use call::slow;

/// Flags that the fast path may ignore.
const FAST_FLAGS: c_int = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC;

/// Receives on connection `index`, which `fd` named when the caller looked. `native` is the libc call
/// that the program made.
#[inline(always)]
pub(crate) fn recv(
    fd: c_int,
    entry: Entry,
    index: u32,
    buffers: &mut Buffers,
    flags: c_int,
    native: impl Fn() -> isize,
) -> isize {
    let conn = conn(index);
    if flags & !FAST_FLAGS == 0
        && let Some(view) = conn.view()
        && let Some(len) = from_ring(conn, view, fd, entry, buffers)
    {
        return len;
    }
    // Only what is passed on has to stand in memory.
    let (mut rest, native) = (*buffers, native);
    let got = slow(fd, entry, conn, &mut rest, flags, &native);
    *buffers = rest;
    got
}

/// The fast path: bytes are in the ring. `None`: anything else.
#[inline(always)]
fn from_ring(
    conn: &Conn,
    view: &ConnView,
    fd: c_int,
    entry: Entry,
    buffers: &mut Buffers,
) -> Option<isize> {
    let rx = &conn.slot().rx;
    if rx.state() != RxState::Ring || rx.lock.try_lock(tls::token()).is_err() {
        return None;
    }
    let mut len = 0;
    let mut space = false;
    if fds::lookup(fd) == entry && rx.state() == RxState::Ring {
        let ring = Consumer::of(view);
        let mut cursor = rx.cursor();
        let left = buffers.left();
        let known = cursor.available() >= left as u64
            || (ring.refresh(&mut cursor).is_ok() && gather(conn, view, &ring, &mut cursor, left));
        if known && left > 0 && rx.lowat.load(Ordering::Relaxed) <= 1 {
            len = left.min(usize::try_from(cursor.available()).unwrap_or(usize::MAX));
            // A call that empties a ring which the stream has left goes on in the kernel.
            let whole = len == left || view.theirs.state.returned_at().is_none();
            if len > 0 {
                if !whole
                    || !buffers.can_drain(len)
                    || buffers.drain(&ring, &mut cursor, len).is_err()
                {
                    len = 0;
                } else {
                    space = publish(conn, &ring, &cursor);
                }
            }
        }
    }
    lock::free(&rx.lock);
    if space {
        kick::after_publish(conn, view, WaitFor::Space);
    }
    // 0 is never answered here: it would say end of stream.
    if len > 0 {
        isize::try_from(len).ok()
    } else {
        None
    }
}

/// Lets a stream of small messages gather for a moment before the few that are there are taken. Every
/// look takes the line with the tail away from the writer; one look for many messages is what makes
/// them cheap. False: corrupt.
#[inline(always)]
fn gather(
    conn: &Conn,
    view: &ConnView,
    ring: &Consumer,
    cursor: &mut RxCursor,
    left: usize,
) -> bool {
    if cursor.available() == 0 {
        return true;
    }
    let sent = conn.slot().tx.cursor().tail;
    // Something was sent since the last receive: a dialogue, in which every nanosecond counts.
    if conn.sent_at_recv.swap_relaxed(sent) != sent
        || cursor.available() >= (left as u64).min(GATHER_BYTES)
        || !wait::may_pause(wait::far_cpu(view))
    {
        return true;
    }
    wait::pause(GATHER_PAUSES);
    ring.refresh(cursor).is_ok()
}

/// A stream whose next bytes are at least this many need not gather.
const GATHER_BYTES: u64 = 4096;
/// How long bytes gather, in spin hints: a fraction of a microsecond.
const GATHER_PAUSES: u32 = 16;

/// Makes consumption visible; true if a waiting writer should be woken (half of the ring is free).
#[inline(always)]
pub(super) fn publish(conn: &Conn, ring: &Consumer, cursor: &RxCursor) -> bool {
    let rx = &conn.slot().rx;
    rx.set_cursor(cursor);
    rx.note_ack(ring.ack());
    ring.publish(cursor);
    cursor.available() <= ring.capacity() / 2
}

/// No errno: the descriptor names another file by now.
pub(super) const STALE: c_int = -1;

/// What one look gave.
pub(super) enum Step {
    /// Nothing of ours: call the kernel as the program did.
    Native,
    /// Some bytes were taken (or looked at).
    Moved,
    /// End of stream.
    End,
    /// An errno.
    Error(c_int),
    /// Nothing there now.
    Empty,
}
