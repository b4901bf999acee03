//! Room in the ring: asking for it, and waiting for it in calls that move their bytes by themselves.

use core::ffi::c_int;

use rdma_core::ring::Producer;
use rdma_core::slot::TxState;

use super::block::block;
use super::call::raise_sigpipe;
use super::look::step;
use super::{Step, is_over};
use crate::conn::Conn;
use crate::fds::Entry;
use crate::ops::{lock, recv::STALE};
use crate::pins::Call;
use crate::user::Buffers;
use crate::{relayed, resend, upgrade};

/// Whether the direction is on the ring, switching it now if the far end has armed: for calls whose bytes
/// do not come from the program's memory.
pub(in crate::ops) fn is_on_ring(conn: &'static Conn, fd: c_int) -> bool {
    let Some(view) = conn.view() else {
        return false;
    };
    resend::service(conn, view, fd);
    let tx = &conn.slot().tx;
    if tx.state() == TxState::Kernel
        && view.theirs.state.is_armed()
        && !relayed::is_broken(view)
        && lock::take_tx(conn).is_ok()
    {
        if tx.state() == TxState::Kernel {
            upgrade::try_switch(conn, view, fd, false);
        }
        lock::free(&tx.lock);
    }
    tx.state() == TxState::Ring
}

/// Free bytes of the ring; 0 too if the direction is not on it.
pub(in crate::ops) fn room(conn: &Conn) -> usize {
    let Some(view) = conn.view() else { return 0 };
    let mut cursor = conn.slot().tx.cursor();
    let free = Producer::of(view).refresh(&mut cursor).unwrap_or(0);
    usize::try_from(free).unwrap_or(usize::MAX)
}

/// What keeps a call that moves its bytes by itself from sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ops) struct Hindrance {
    error: c_int,
    /// Not only for now.
    last: bool,
}

impl Hindrance {
    /// No errno: the descriptor names another file by now.
    pub(in crate::ops) const fn is_stale(self) -> bool {
        self.error == STALE
    }

    /// The errno for the program, as after any send: behind bytes that were sent the error waits for
    /// the next call, else EPIPE comes with its signal.
    pub(in crate::ops) fn tell(self, conn: &Conn, sent: bool) -> c_int {
        if self.last && sent {
            conn.defer_error(self.error);
        } else if self.error == libc::EPIPE {
            raise_sigpipe();
        }
        self.error
    }
}

/// Waits for room for `left` bytes, or a good part of the ring. `begun`: the call has sent some. False: the direction is
/// not on the ring any more.
///
/// # Errors
/// What a send would have failed with.
pub(in crate::ops) fn wait_for_room(
    conn: &'static Conn,
    fd: c_int,
    entry: Entry,
    left: usize,
    begun: bool,
    deadline: &mut Option<Option<u64>>,
) -> Result<bool, Hindrance> {
    let mut nothing = Buffers::one(core::ptr::null_mut(), 0);
    match step(conn, fd, &mut nothing, false) {
        Step::Native => Ok(false),
        Step::Error(error) => Err(Hindrance {
            error,
            last: error != libc::EINTR,
        }),
        Step::Moved | Step::Full | Step::KernelFull => {
            let mut call = Call::new(fd, entry);
            call.begun = begun;
            call.deadline = *deadline;
            let waited = block(conn, fd, false, left, &mut call);
            *deadline = call.deadline;
            call.end(conn);
            waited
                .map(|()| true)
                .map_err(|error| Hindrance { error, last: false })
        }
    }
}

/// So many free bytes of a ring are space, of `capacity` bytes: a third, as of the kernel's send buffer.
pub(in crate::ops) const fn space_wanted(capacity: u64) -> u64 {
    capacity / 3
}

/// Whether a send would find space: what POLLOUT means. `None`: ask the kernel.
pub(crate) fn writable(conn: &Conn) -> Option<bool> {
    let view = conn.view()?;
    let tx = &conn.slot().tx;
    if tx.state() != TxState::Ring {
        return None;
    }
    let ring = Producer::of(view);
    let mut cursor = tx.cursor();
    Some(match ring.refresh(&mut cursor) {
        Ok(free) => free >= space_wanted(ring.capacity()) || is_over(conn, view),
        Err(_) => true,
    })
}
