//! Descriptors and connections: birth, duplication, closing, and what other processes get.
//!
//! * This file: the numbers of slots, and whether the process knows of any connection.
//! * [`births`]: sockets before they are connections. [`mod@adopt`]: a connection becomes a candidate.
//!   [`descriptors`]: numbers that name it, and other files later. [`close`]: shutdown, and the last close.
//! * [`fork`], [`exec`]: forked children; other programs, and the process's own end.
//! * [`leave`]: connections that must be the kernel's for good, and what the daemon is told.

mod adopt;
mod births;
mod close;
mod descriptors;
mod exec;
mod fork;
mod leave;

use core::sync::atomic::{AtomicU32, Ordering};

use rdma_core::slot::SLOTS;

pub(crate) use adopt::{Side, adopt, adopt_inherited, move_to_own_arena};
pub(crate) use births::born;
pub(crate) use close::{
    after_copy, after_shutdown, before_dissolve, before_shutdown, begin_close, close_kept,
};
pub(crate) use descriptors::{created, duplicated, fetched, is_stale, make_way, received};
pub(crate) use exec::{at_exit, before_exec, exec_failed, forget, spawned, spawning};
pub(crate) use fork::{
    any_on_ring, before_fork, each_conn, fork_failed, in_forked_child, is_own_memory, own_pid,
};
pub(crate) use leave::{
    all_to_kernel, members_to_kernel, passed_on, tell, tell_retracted, to_kernel, to_stdio,
    unregister,
};

use crate::conn::Numbers;

/// Free slots of this process's arena.
static SLOT_NUMBERS: Numbers<{ SLOTS as usize }> = Numbers::new();

/// Whether this process ever had a connection of which the library took note.
#[inline]
pub(crate) fn any_known() -> bool {
    KNOWN.load(Ordering::Acquire) != 0
}

/// From now on the library has never heard of any connection.
pub(crate) fn know_nothing() {
    KNOWN.store(0, Ordering::Relaxed);
}

static KNOWN: AtomicU32 = AtomicU32::new(0);
