//! Other programs in place of this one or beside it: exec, posix_spawn, and the orderly exit.

use core::sync::atomic::{AtomicU32, Ordering};

use rdma_core::Reason;
use rdma_core::slot::Stage;

use super::any_known;
use super::close::{self, take_out};
use super::fork::{each_conn, is_own_memory};
use super::leave::{all_to_kernel, unregister};
use crate::conn::{Conn, conn};
use crate::ops::{epoll, lock};
use crate::{errno, fds, holders, kernel, pins, resend};

/// The process exits in an orderly way, and closes its connections thereby. Those that other threads are
/// blocked on it holds no more, so that the close of whoever shares them by fork is the last.
pub(crate) extern "C" fn at_exit() {
    if !any_known() || !is_own_memory() {
        return;
    }
    fds::each(0, u32::MAX, |fd, entry| {
        let Some(conn) = entry.as_conn().map(conn) else {
            return;
        };
        // What a signal handler has interrupted is as if it had never begun.
        if !pins::others(conn) && !lock::is_inside(conn) {
            // The kernel closes the descriptors, and the daemon sees the process leave.
            let _ = take_out(fd, Some(fd), false);
        } else if let Some(view) = conn.view() {
            // What a far end left in its ring goes with the rest of what the kernel still has to send.
            resend::service(conn, view, fd);
        }
    });
    each_conn(|conn| {
        // Not if another thread has just closed it.
        if conn.refs.swap(0, Ordering::AcqRel) != 0 && holders::leave(conn.slot()) {
            close::count(conn);
        }
    });
}

/// Another program is started by a call that duplicates all descriptors and that shows us nothing of what
/// becomes of them: posix_spawn, vfork, system, popen.
pub(crate) extern "C" fn spawning() {
    SPAWNED.fetch_add(1, Ordering::Relaxed);
}

/// How often that has happened.
pub(crate) fn spawned() -> u32 {
    SPAWNED.load(Ordering::Relaxed)
}

static SPAWNED: AtomicU32 = AtomicU32::new(0);

/// Before exec: the new program knows nothing of rings. What it inherits goes back to the kernel, unless
/// other processes go on with it and it merely stays open in the new program: a descriptor beyond
/// standard error that nobody takes the trouble to close.
///
/// Connections whose descriptors exec closes lose a holder.
pub(crate) fn before_exec() {
    if !any_known() || !is_own_memory() {
        return;
    }
    errno::preserved(|| {
        fds::each(0, u32::MAX, |fd, entry| {
            if let Some(index) = entry.as_conn() {
                let kept = !kernel::is_close_on_exec(fd);
                let meta = &conn(index).exec;
                meta.fetch_or(KNOWN_TO_EXEC, Ordering::Relaxed);
                if kept {
                    meta.fetch_or(KEPT_BY_EXEC, Ordering::Relaxed);
                }
                if kept && fd <= 2 {
                    meta.fetch_or(USED_BY_EXEC, Ordering::Relaxed);
                }
            } else if let Some(index) = entry.as_epoll()
                && !kernel::is_close_on_exec(fd)
            {
                epoll::leave_to_program(index);
            }
        });
        fds::each(0, u32::MAX, |_, entry| {
            if let Some(conn) = entry.as_conn().map(conn)
                && goes_to_program(conn)
            {
                conn.exec.fetch_or(GIVEN_TO_EXEC, Ordering::Relaxed);
            }
        });
        let is_given = |conn: &Conn| conn.exec.load(Ordering::Relaxed) & GIVEN_TO_EXEC != 0;
        all_to_kernel(is_given, Reason::Exec);
        fds::each(0, u32::MAX, |_, entry| {
            if let Some(index) = entry.as_conn() {
                give_to_program(conn(index));
            }
        });
    });
}

/// Bits of [`Conn::exec`]: it has a descriptor; one that exec keeps; one that the new program will use; it
/// was left to the new program, among others or alone; the new program is to find it in the kernel.
const KNOWN_TO_EXEC: u32 = 1;
const KEPT_BY_EXEC: u32 = 2;
const USED_BY_EXEC: u32 = 4;
const LEFT_TO_EXEC: u32 = 8;
const LEFT_A_STRANGER: u32 = 16;
const GIVEN_TO_EXEC: u32 = 32;

fn goes_to_program(conn: &'static Conn) -> bool {
    let bits = conn.exec.load(Ordering::Relaxed);
    bits & KEPT_BY_EXEC != 0
        && bits & LEFT_TO_EXEC == 0
        && (holders::is_alone(conn) || bits & USED_BY_EXEC != 0 || conn.view().is_none())
}

fn give_to_program(conn: &'static Conn) {
    let slot = conn.slot();
    let bits = conn.exec.load(Ordering::Relaxed);
    if bits & KNOWN_TO_EXEC == 0 || bits & LEFT_TO_EXEC != 0 {
        return;
    }
    let shared = !holders::is_alone(conn);
    if !shared {
        if bits & KEPT_BY_EXEC != 0 {
            forget_before_exec(conn);
        }
        // Alone, and closed by exec: as if the process ended.
        return;
    }
    let mut left = LEFT_TO_EXEC;
    if bits & KEPT_BY_EXEC != 0 {
        // The last of the others who closes it leaves it to the new program.
        slot.meta.strangers.fetch_add(1, Ordering::AcqRel);
        left |= LEFT_A_STRANGER;
    }
    conn.exec.fetch_or(left, Ordering::Relaxed);
    holders::leave(slot);
}

/// The exec failed: the program goes on, with what is left of its connections.
pub(crate) fn exec_failed() {
    if !any_known() || !is_own_memory() {
        return;
    }
    fds::each(0, u32::MAX, |_, entry| {
        let Some(index) = entry.as_conn() else { return };
        let conn = conn(index);
        let bits = conn.exec.swap(0, Ordering::Relaxed);
        if bits & LEFT_A_STRANGER != 0 {
            conn.slot().meta.strangers.fetch_sub(1, Ordering::AcqRel);
        }
        if bits & LEFT_TO_EXEC != 0 {
            holders::expect_one(conn.slot());
            holders::enter(conn.slot());
        }
    });
}

/// This process has nothing to do with the connection any more, which is the kernel's.
pub(crate) fn forget(conn: &'static Conn) {
    if holders::is_alone(conn) {
        forget_before_exec(conn);
    }
}

/// The daemon must not take the end of this program for the end of a connection that lives on.
fn forget_before_exec(conn: &'static Conn) {
    let slot = conn.slot();
    let left = conn
        .view()
        .is_some_and(|view| view.mine.state.broken().is_none());
    if left && slot.stage() == Stage::Attached {
        unregister(conn, slot, conn.slot_index.load(Ordering::Relaxed));
        conn.detach();
        slot.set_stage(Stage::Plain);
    }
}
