//! Fork: connections get a holder more, and the child leaves alone what is its parent's.

use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};

use rdma_core::slot::{RxState, TxState};

use super::{SLOT_NUMBERS, births};
use crate::conn::{CONN_NUMBERS, Conn, conn};
use crate::ops::{epoll, file::relay};
use crate::{contexts, control, faults, holders, kick, pins, tls};

/// Before fork: every connection gets one holder more, so that the parent's close in the meantime is
/// not the last.
pub(crate) fn before_fork() {
    births::note_fork();
    each_conn(|conn| holders::expect_one(conn.slot()));
}

/// Whether any connection moves bytes through a ring. For a signal handler.
pub(crate) fn any_on_ring() -> bool {
    let found = Cell::new(false);
    each_conn(|conn| {
        let slot = conn.slot();
        let sends = matches!(
            slot.tx.state(),
            TxState::Switching | TxState::Ring | TxState::Returning
        );
        let receives = matches!(slot.rx.state(), RxState::Draining | RxState::Ring);
        if conn.view().is_some() && (sends || receives) {
            found.set(true);
        }
    });
    found.get()
}

/// The fork failed.
pub(crate) fn fork_failed() {
    each_conn(|conn| holders::nobody_came(conn.slot()));
}

/// Calls `work` for each connection of the process.
pub(crate) fn each_conn(work: impl Fn(&'static Conn)) {
    for number in 0..CONN_NUMBERS.used() {
        let conn = conn(number);
        if conn.refs.load(Ordering::Acquire) > 0 {
            work(conn);
        }
    }
}

/// In a forked child: what belongs to the parent is left alone.
pub(crate) extern "C" fn in_forked_child() {
    // Before a child of this one, which may borrow this memory, is taken for its owner.
    OWN_PID.store(running_pid(), Ordering::Relaxed);
    tls::after_fork();
    crate::retire::after_fork();
    crate::forsaken::after_fork();
    faults::after_fork();
    CONN_NUMBERS.after_fork(false);
    SLOT_NUMBERS.after_fork(true);
    control::after_fork();
    kick::after_fork();
    contexts::after_fork();
    relay::after_fork();
    epoll::after_fork();
    pins::after_fork();
    each_conn(|conn| {
        conn.inherit();
        holders::enter(conn.slot());
    });
    pins::sweep();
}

/// Whether this process's memory is its own: false in a vfork child, which must not change it.
pub(crate) fn is_own_memory() -> bool {
    let pid = running_pid();
    match OWN_PID.load(Ordering::Relaxed) {
        0 => {
            OWN_PID.store(pid, Ordering::Relaxed);
            true
        }
        own => own == pid,
    }
}

/// The number of the process whose memory this is.
pub(crate) fn own_pid() -> u32 {
    match OWN_PID.load(Ordering::Relaxed) {
        0 => running_pid(),
        own => own,
    }
}

fn running_pid() -> u32 {
    let pid = rustix::process::getpid();
    pid.as_raw_nonzero().get().unsigned_abs()
}

static OWN_PID: AtomicU32 = AtomicU32::new(0);
