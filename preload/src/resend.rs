//! What the far end left unread in the ring on which this end sends: it is sent once more, by the kernel. Calls that come by do
//! it, whichever they are, and none waits for it but [`flush`].

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::layout::ConnView;
use rdma_core::ring::Producer;
use rdma_core::slot::TxState;

use crate::conn::Conn;
use crate::ops::recv::break_conn;
use crate::ops::{epoll, lock, ready};
use crate::trace::{self, Level};
use crate::{control, kernel, relayed};

/// How long a program that is about to close, exec or give the socket away waits for the kernel to take
/// what the far end left in the ring. Longer than any far end that reads at all needs.
pub(crate) const FLUSH_NS: u64 = 2_000_000_000;
/// Between two looks at whether a backend or a far end has answered.
pub(crate) const NAP_NS: u64 = 200_000;

/// What sending ring bytes by the kernel has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resent {
    /// All of them.
    All,
    /// The kernel takes no more now.
    Full,
    /// An errno that the kernel reported, for the program's next call.
    Failed(c_int),
}

/// Under the send lock: the far end has left the ring that this end sends on. False: it has not, or says
/// nonsense (then the connection is broken).
pub(crate) fn begin(conn: &'static Conn, view: &ConnView) -> bool {
    let tx = &conn.slot().tx;
    if relayed::awaits_grant(conn, view) {
        return false;
    }
    let Some(at) = view.mine.state.retracted_at(&view.theirs.state) else {
        return false;
    };
    let mut cursor = tx.cursor();
    let known = Producer::of(view).refresh(&mut cursor).is_ok();
    if !known || at < cursor.head || at > cursor.tail {
        break_conn(conn, view, Reason::RingCorrupt);
        return false;
    }
    tx.resend.store(at, Ordering::Relaxed);
    tx.set_state(TxState::Returning);
    trace::event(Level::Info, conn, "sends by TCP again", "");
    true
}

/// Under the send lock: sends what the far end left in the ring, as far as the kernel takes it now.
pub(crate) fn go_on(conn: &Conn, view: &ConnView, fd: c_int) -> Resent {
    let tx = &conn.slot().tx;
    let ring = Producer::of(view);
    let cursor = tx.cursor();
    loop {
        let from = tx.resend.load(Ordering::Relaxed);
        let (bytes, len) = ring.sent_run(&cursor, from);
        if len == 0 {
            tx.set_state(TxState::Returned);
            return Resent::All;
        }
        match kernel::send_now(fd, bytes, len) {
            Ok(sent) => {
                tx.resend.store(from + sent as u64, Ordering::Relaxed);
                tx.tcp_bytes.fetch_add(sent as u64, Ordering::Relaxed);
            }
            Err(libc::EAGAIN) => return Resent::Full,
            Err(libc::EINTR) => {}
            Err(error) => {
                // The connection is over, and the rest with it.
                tx.set_state(TxState::Returned);
                return Resent::Failed(error);
            }
        }
    }
}

/// Whether the far end has left a ring on which this end still sends: somebody must look.
#[inline]
pub(crate) fn is_wanted(conn: &Conn, view: &ConnView) -> bool {
    conn.slot().tx.state() == TxState::Ring
        && view.theirs.state.is_reader_gone()
        && view.mine.state.retracted_at(&view.theirs.state).is_some()
        && !relayed::awaits_grant(conn, view)
}

/// Does what the far end's departure from the ring asks of this end, without waiting. For calls that are
/// not sends, and so would not notice.
#[inline]
pub(crate) fn service(conn: &'static Conn, view: &ConnView, fd: c_int) {
    if is_wanted(conn, view) || conn.slot().tx.state() == TxState::Returning {
        work_off(conn, view, fd);
    }
}

#[cold]
fn work_off(conn: &'static Conn, view: &ConnView, fd: c_int) {
    let tx = &conn.slot().tx;
    if lock::take_tx(conn).is_err() {
        return;
    }
    if tx.state() == TxState::Ring {
        begin(conn, view);
    }
    let begun = tx.state() == TxState::Returning;
    let resent = if begun {
        go_on(conn, view, fd)
    } else {
        Resent::All
    };
    lock::free(&tx.lock);
    if let Resent::Failed(error) = resent {
        conn.defer_error(error);
    }
    if begun {
        epoll::on_change(conn, fd);
    }
}

/// Whether everything that the far end left in the ring has been sent, and nothing is to be waited for. Sends what the kernel
/// takes now.
pub(crate) fn is_flushed(conn: &'static Conn, view: &ConnView, fd: c_int) -> bool {
    service(conn, view, fd);
    conn.slot().tx.state() != TxState::Returning && !relayed::has_to_wait(conn, view)
}

/// Sends everything that the far end left in the ring, waiting for the kernel a little. False: it does not
/// take it.
pub(crate) fn flush(conn: &'static Conn, view: &ConnView, fd: c_int) -> bool {
    let deadline = control::monotonic_ns() + FLUSH_NS;
    while !is_flushed(conn, view, fd) {
        let mut left = deadline.saturating_sub(control::monotonic_ns());
        if left == 0 {
            return false;
        }
        let awaits = relayed::has_to_wait(conn, view);
        if awaits {
            left = left.min(NAP_NS);
        }
        let mut entry = [libc::pollfd {
            fd: if awaits { -1 } else { fd },
            events: libc::POLLOUT,
            revents: 0,
        }];
        let _ = ready::kernel_poll(&mut entry, Some(left));
    }
    true
}
