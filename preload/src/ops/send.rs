//! Sending: to the kernel, across the switch, to the ring.
//!
//! * This file: the call's entry, and the fast path: all bytes fit into the ring.
//! * [`call`]: a whole call that the fast path could not serve. [`look`]: one look at wherever the bytes go
//!   now. [`mod@block`]: waiting for the next look.
//! * [`by_kernel`]: calls and rests of calls that the kernel serves.
//! * [`mod@room`]: room in the ring, for those who do not send, or who move their bytes by themselves.

mod block;
mod by_kernel;
mod call;
mod look;
mod room;

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{MSG_CONFIRM, MSG_DONTROUTE, MSG_DONTWAIT, MSG_EOR, MSG_MORE, MSG_NOSIGNAL};
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::ring::{Consumer, Producer, TxCursor};
use rdma_core::slot::TxState;

pub(super) use by_kernel::to_kernel;
pub(super) use call::raise_sigpipe;
pub(crate) use look::end;
pub(in crate::ops) use room::space_wanted;
pub(crate) use room::writable;
pub(super) use room::{is_on_ring, room, wait_for_room};

use super::lock;
use crate::conn::{Conn, conn};
use crate::fds::{self, Entry};
use crate::user::Buffers;
use crate::{kick, tls, wait};
use call::slow;

/// Flags that change nothing for a ring.
const RING_FLAGS: c_int =
    MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_EOR | MSG_CONFIRM | MSG_DONTROUTE;

/// Sends on connection `index`, which `fd` named when the caller looked. `native` is the libc call
/// that the program made.
#[inline(always)]
pub(crate) fn send(
    fd: c_int,
    entry: Entry,
    index: u32,
    buffers: &Buffers,
    flags: c_int,
    native: impl Fn() -> isize,
) -> isize {
    let conn = conn(index);
    let mut fast = *buffers;
    if flags & !RING_FLAGS == 0
        && let Some(view) = conn.view()
        && let Some(len) = to_ring(conn, view, fd, entry, &mut fast)
    {
        return len;
    }
    // Only what is passed on has to stand in memory.
    let (mut rest, native) = (*buffers, native);
    slow(fd, entry, conn, &mut rest, flags, &native)
}

/// The fast path: all bytes fit into the ring. `None`: anything else, and nothing was sent.
#[inline(always)]
fn to_ring(
    conn: &Conn,
    view: &ConnView,
    fd: c_int,
    entry: Entry,
    buffers: &mut Buffers,
) -> Option<isize> {
    let tx = &conn.slot().tx;
    if tx.state() != TxState::Ring || tx.lock.try_lock(tls::token()).is_err() {
        return None;
    }
    let left = buffers.left();
    let mut sent = false;
    if fds::lookup(fd) == entry && tx.state() == TxState::Ring && left > 0 && !is_over(conn, view) {
        let ring = Producer::of(view);
        let mut cursor = tx.cursor();
        cursor.hint(conn.slot().rx.noted_ack());
        let fits = ring.free(&cursor) >= left as u64
            || ring
                .refresh(&mut cursor)
                .is_ok_and(|free| free >= left as u64);
        if fits && buffers.can_fill(left) {
            buffers.fill(&ring, &mut cursor, left);
            publish(conn, view, &ring, &cursor);
            sent = true;
        }
    }
    lock::free(&tx.lock);
    if !sent {
        return None;
    }
    kick::after_publish(conn, view, WaitFor::Data);
    isize::try_from(left).ok()
}

#[inline(always)]
pub(super) fn publish(conn: &Conn, view: &ConnView, ring: &Producer, cursor: &TxCursor) {
    conn.slot().tx.set_cursor(cursor);
    ring.publish(cursor, Consumer::of(view).published(), wait::own_cpu());
}

/// Whether the ring leads nowhere any more.
#[inline(always)]
pub(super) fn is_over(conn: &Conn, view: &ConnView) -> bool {
    view.theirs.state.is_reader_gone()
        || view.theirs.state.broken().is_some()
        || view.mine.state.broken().is_some()
        || conn.pending_error.load(Ordering::Relaxed) != 0
        || conn.is_dead()
}

/// What one look gave.
enum Step {
    /// Call the kernel as the program did.
    Native,
    /// Some bytes were sent.
    Moved,
    /// An errno.
    Error(c_int),
    /// No space now.
    Full,
    /// The kernel takes no more now of what must go before.
    KernelFull,
}
