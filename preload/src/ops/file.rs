//! sendfile and splice on a connection that may be on a ring.
//!
//! * [`mod@sendfile`]: from a file. [`mod@splice`]: between a pipe and a connection, both ways.
//! * [`pipe`] and [`relay`]: the program's pipes, without ever waiting for them under a lock.
//! * [`sys`]: system calls by number.
//!
//! The kernel copies straight between its pages and the ring where it can do so without waiting. A
//! byte is taken from a pipe or a file only when the ring has room for it, and from the ring only when
//! the pipe has taken it: nothing is ever in between.

mod pipe;
pub(crate) mod relay;
mod sendfile;
mod splice;
mod sys;

pub(crate) use sendfile::sendfile;
pub(crate) use splice::splice;

use core::ffi::c_int;

use rdma_core::event::WaitFor;
use rdma_core::ring::Producer;
use rdma_core::slot::TxState;

use super::{lock, send};
use crate::conn::Conn;
use crate::fds::{self, Entry};
use crate::kick;

/// Bytes moved under one hold of a lock.
const AT_ONCE: usize = 128 * 1024;

/// Bytes on the stack of whoever calls, where a copy of ours is needed: the smallest stack of a thread has 16 KiB.
const CHUNK: usize = 4 * 1024;

/// What filling the ring gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Filled {
    /// So many bytes, and whether the call filled all the memory that it was offered.
    Bytes(usize, bool),
    /// The call returned 0.
    Nothing,
    /// The call failed.
    Error(c_int),
    /// The ring takes nothing now, for whatever reason.
    NoRoom,
}

/// Sends up to `want` bytes that `call` puts into the ring's own memory (address, length). It runs
/// under the direction's lock and must not wait.
fn fill(
    conn: &Conn,
    fd: c_int,
    entry: Entry,
    want: usize,
    call: impl FnOnce(*mut u8, usize) -> Result<usize, c_int>,
) -> Filled {
    let tx = &conn.slot().tx;
    let Some(view) = conn.view() else {
        return Filled::NoRoom;
    };
    if tx.state() != TxState::Ring || lock::take_tx(conn).is_err() {
        return Filled::NoRoom;
    }
    let mut filled = Filled::NoRoom;
    if fds::lookup(fd) == entry && tx.state() == TxState::Ring && !send::is_over(conn, view) {
        let ring = Producer::of(view);
        let mut cursor = tx.cursor();
        if ring.refresh(&mut cursor).is_ok_and(|free| free > 0) {
            let (at, run) = ring.raw_run(&mut cursor, want.min(AT_ONCE));
            filled = match call(at, run) {
                Ok(0) => Filled::Nothing,
                Ok(len) => Filled::Bytes(len, len == run),
                Err(error) => Filled::Error(error),
            };
            if let Filled::Bytes(len, _) = filled {
                ring.advance(&mut cursor, len);
                send::publish(conn, view, &ring, &cursor);
            } else {
                // Asking for the memory may have restarted the ring.
                tx.set_cursor(&cursor);
            }
        }
    }
    lock::free(&tx.lock);
    if matches!(filled, Filled::Bytes(..)) {
        kick::after_publish(conn, view, WaitFor::Data);
    }
    filled
}

/// A count as the program gets it.
fn count(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}
