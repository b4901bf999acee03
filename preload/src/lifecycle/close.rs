//! The end: shutdown, and the close of the last descriptor in the last process.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::ring::Consumer;
use rdma_core::slot::{RxState, Stage};

use super::SLOT_NUMBERS;
use super::exec::spawned;
use super::leave::unregister;
use crate::conn::{CONN_NUMBERS, Conn, SHUT_READ, SHUT_WRITE, conn};
use crate::ops::{epoll, lock, recv, send};
use crate::{
    contexts, control, downgrade, errno, fds, forsaken, holders, kernel, kick, pins, retire, tls,
};

/// What remains to be done after a descriptor has really been closed.
#[must_use]
pub(crate) struct Closing {
    conn: Option<&'static Conn>,
}

/// Before the kernel closes `fd`: takes it out of the table and, if it was the last descriptor of the
/// last process, ends the connection. `None`: nothing of ours.
pub(crate) fn begin_close(fd: c_int) -> Option<Closing> {
    pins::sweep();
    take_out(fd, Some(fd), true)
}

/// As [`begin_close`]; `socket` is the descriptor if it still names the connection's socket. `lives_on`: the
/// socket itself may go on for those who are blocked on it.
pub(super) fn take_out(fd: c_int, socket: Option<c_int>, lives_on: bool) -> Option<Closing> {
    let entry = fds::lookup(fd);
    // Where threads have tables of their own, others may go on with the number, and it is the kernel's alone.
    if entry.is_none()
        || entry.is_internal()
        || retire::has_private_tables()
        || !fds::take(fd, entry)
    {
        return None;
    }
    if let Some(index) = entry.as_epoll() {
        epoll::forget_set(fd, index);
        return None;
    }
    if let Some(first) = entry.as_watched() {
        epoll::forget_watched(fd, first);
        return None;
    }
    let conn = conn(entry.as_conn()?);
    // A signal handler closes what its thread is in the middle of: as if that were another thread.
    let interrupted = lock::is_inside(conn) && lock::defer(conn) && pins::note(conn);
    let kept = interrupted || pins::others(conn);
    if kept {
        pins::keep(conn, fd, lives_on && socket.is_some());
        // They sleep on the number, which may soon be another file's.
        if let Some(view) = conn.view() {
            contexts::ring_own(&view.mine.waits);
        }
    }
    let last = conn.refs.fetch_sub(1, Ordering::AcqRel) == 1;
    if kept {
        // They may all be gone already.
        pins::settle(conn);
    }
    if !last {
        return None;
    }
    errno::preserved(|| last_descriptor(conn, socket));
    Some(Closing { conn: Some(conn) })
}

/// Closes `kept`, a duplicate for threads which are not blocked any more, by `close`.
pub(crate) fn close_kept(conn: &'static Conn, kept: c_int, close: impl FnOnce()) {
    errno::preserved(|| {
        let last = conn.refs.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            last_descriptor(conn, Some(kept));
        }
        close();
        if last {
            Closing { conn: Some(conn) }.finish();
        }
    });
}

/// The last descriptor of this process.
fn last_descriptor(conn: &'static Conn, socket: Option<c_int>) {
    let slot = conn.slot();
    epoll::forget_conn(conn, socket);
    if !holders::leave(slot) {
        return;
    }
    let by_others = slot.meta.strangers.load(Ordering::Acquire) > 0
        || conn.spawns.load(Ordering::Relaxed) != spawned();
    if let (Some(fd), true) = (socket, by_others) {
        // A program without the library may hold the socket, and goes on with it.
        downgrade::leave_ring(conn, fd, Reason::Exec);
    } else if let Some(view) = conn.view() {
        let rx = &slot.rx;
        let locked = lock::take_rx(conn).is_ok();
        // Before the end is said: who hears of that sends nothing more by ring, as TCP takes what comes
        // after a FIN for a reset, and not for unread bytes.
        view.mine.state.leave();
        let mut cursor = rx.cursor();
        // What its sender took back before we saw the switch came by the kernel.
        let unread = matches!(
            rx.state(),
            RxState::Ring | RxState::Armed | RxState::Draining
        ) && view.theirs.state.is_switched()
            && Consumer::of(view).refresh(&mut cursor).unwrap_or(0) > 0;
        if locked {
            lock::free(&rx.lock);
        }
        send::end(conn, socket);
        kick::wake_all(conn, view);
        // Threads of our own that sleep on the connection must not touch its memory later.
        contexts::ring_own(&view.mine.waits);
        if let Some(fd) = socket.filter(|_| unread) {
            kernel::reset_on_close(fd);
        }
    }
    count(conn);
}

/// Nobody holds the connection any more: adds what it did to the process's counters, if it has any.
pub(super) fn count(conn: &Conn) {
    let Some(arena) = control::arena() else {
        return;
    };
    let counters = &arena.header().counters;
    let slot = conn.slot();
    if !slot.begin_count() {
        return;
    }
    for (total, part) in [
        (&counters.ring_tx_bytes, slot.tx.cursor().tail),
        (&counters.ring_rx_bytes, slot.rx.cursor().head),
        (
            &counters.tcp_tx_bytes,
            slot.tx.tcp_bytes.load(Ordering::Relaxed),
        ),
        (
            &counters.tcp_rx_bytes,
            slot.rx.tcp_bytes.load(Ordering::Relaxed),
        ),
        (
            &counters.wakeups_sent,
            slot.tx.kicks.load(Ordering::Relaxed),
        ),
        (&counters.sleeps, slot.rx.sleeps.load(Ordering::Relaxed)),
    ] {
        if part != 0 {
            total.fetch_add(part, Ordering::Relaxed);
        }
    }
    let never = match slot.stage() {
        Stage::Candidate => {
            let known = slot.meta.reason.load(Ordering::Relaxed);
            Some(Reason::from_code(known).unwrap_or(Reason::Young))
        }
        Stage::Registered => Some(Reason::Unpaired),
        // Paired, but vetoed before anything went over the ring.
        Stage::Attached if slot.tx.cursor().tail == 0 && slot.rx.cursor().head == 0 => {
            let told = slot.meta.reason.load(Ordering::Relaxed);
            conn.vetoed().or_else(|| Reason::from_code(told))
        }
        Stage::Free | Stage::Attached | Stage::Plain => None,
    };
    if let Some(reason) = never {
        counters.declined.fetch_add(1, Ordering::Relaxed);
        counters.count_reason(reason);
    }
    slot.end_count();
}

impl Closing {
    /// After the kernel has closed the descriptor.
    pub(crate) fn finish(self) {
        let Some(conn) = self.conn else { return };
        let slot = conn.slot();
        let index = conn.slot_index.load(Ordering::Relaxed);
        let stage = slot.stage();
        let last = slot.meta.holders.load(Ordering::Acquire) == 0;
        let known = last && matches!(stage, Stage::Registered | Stage::Attached);
        if known {
            unregister(conn, slot, index);
        }
        // From here on nobody finds the connection through a descriptor; wait for those who did.
        conn.generation.fetch_add(1, Ordering::AcqRel);
        if lock::take_tx(conn).is_ok() {
            lock::free(&slot.tx.lock);
        }
        if lock::take_rx(conn).is_ok() {
            lock::free(&slot.rx.lock);
        }
        if known {
            forsaken::note_let_go(conn);
        }
        conn.detach();
        if last && index != u32::MAX {
            control::bind_slot(index, None);
            slot.set_stage(Stage::Free);
            SLOT_NUMBERS.give(index);
        }
        CONN_NUMBERS.give(conn.index());
    }
}

/// The thread is out of an operation that a signal handler interrupted: what the handler did to the connection and could
/// not be done then.
pub(crate) fn after_copy(conn: &'static Conn) {
    if let Some((named, how)) = tls::take_shutdown() {
        let kept = conn.kept.load(Ordering::SeqCst);
        if fds::lookup(named) == conn.entry() {
            shut_down(conn, named, how);
        } else if kept >= 0 {
            shut_down(conn, kept, how);
        }
    }
    pins::forget(conn);
}

fn shut_down(conn: &'static Conn, fd: c_int, how: c_int) {
    end_by_shutdown(conn, fd, how);
    kernel::shutdown(fd, how);
    told_by_kernel(conn);
}

/// shutdown(2), before the kernel's. False: it is done later, the kernel's too, and has worked.
pub(crate) fn before_shutdown(fd: c_int, how: c_int) -> bool {
    let Some(index) = fds::lookup(fd).as_conn() else {
        return true;
    };
    let conn = conn(index);
    let known = matches!(how, libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR);
    if known && lock::is_inside(conn) && lock::defer(conn) {
        // A signal handler: what its thread is about to send goes first.
        tls::defer_shutdown(fd, how);
        return false;
    }
    end_by_shutdown(conn, fd, how);
    true
}

fn end_by_shutdown(conn: &'static Conn, fd: c_int, how: c_int) {
    if conn.slot().stage() == Stage::Registered {
        // The far end may have its memory already, and wait for what is said there.
        errno::preserved(control::check_mailbox);
    }
    // Of a far end that was killed the kernel then says that there is nothing to shut down.
    if let Some(view) = conn.view() {
        recv::ask_kernel(conn, view, fd);
    }
    let shuts = match how {
        libc::SHUT_RD => SHUT_READ,
        libc::SHUT_WR => SHUT_WRITE,
        libc::SHUT_RDWR => SHUT_READ | SHUT_WRITE,
        _ => return,
    };
    // Linux answers what comes after both directions are shut with RST: the far end leaves its ring, and the kernel
    // sees to it. As for a close, said before the end is.
    let leaves = conn.shut() | shuts == SHUT_READ | SHUT_WRITE;
    if leaves && let Some(view) = conn.view() {
        view.mine.state.leave();
    }
    if shuts & SHUT_WRITE != 0 {
        conn.shut_down(SHUT_WRITE);
        errno::preserved(|| send::end(conn, Some(fd)));
    }
    if shuts & SHUT_READ != 0 {
        conn.shut_down(SHUT_READ);
    }
    if leaves && let Some(view) = conn.view() {
        kick::wake_all(conn, view);
    }
}

/// shutdown(2), after the kernel's, and whatever that said: to the kernel it is an edge.
pub(crate) fn after_shutdown(fd: c_int) {
    if let Some(index) = fds::lookup(fd).as_conn() {
        told_by_kernel(conn(index));
    }
}

fn told_by_kernel(conn: &'static Conn) {
    kick::went_by_kernel();
    errno::preserved(|| epoll::post_edge(conn));
}

/// connect(AF_UNSPEC), before the kernel's: the connection is dissolved, the descriptor stays.
pub(crate) fn before_dissolve(fd: c_int) -> Option<Closing> {
    fds::lookup(fd).as_conn()?;
    take_out(fd, Some(fd), false)
}
