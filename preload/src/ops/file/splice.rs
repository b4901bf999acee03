//! splice(2) between a pipe and a connection that may be on a ring.
//!
//! As in the kernel, the pipe is looked at first: a full one (or one without readers) decides before
//! it matters whether bytes have come, an empty one before it matters whether any could be sent. The
//! flag SPLICE_F_NONBLOCK and the pipe's O_NONBLOCK concern waiting for the pipe, the socket's O_NONBLOCK
//! and timeouts waiting for the socket.

#![expect(unsafe_code, reason = "libc's own call, and rings given to the kernel")]

use core::ffi::c_int;
use core::mem::MaybeUninit;

use libc::{MSG_PEEK, MSG_TRUNC, SPLICE_F_NONBLOCK};
use rdma_core::event::WaitFor;
use rdma_core::ring::Consumer;
use rdma_core::slot::RxState;

use super::pipe::{Contents, Pipe, appends};
use super::{AT_ONCE, CHUNK, Filled, count, fill};
use crate::conn::{Conn, conn};
use crate::fds::{self, Entry};
use crate::ops::{lock, recv, send};
use crate::pins::Call;
use crate::user::Buffers;
use crate::{errno, kick, real, resend, tls};

/// Flags that the kernel knows.
const FLAGS: u32 =
    libc::SPLICE_F_MOVE | SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE | libc::SPLICE_F_GIFT;

/// splice(2).
///
/// # Safety
/// As splice itself.
pub(crate) unsafe fn splice(
    input: c_int,
    in_offset: *mut i64,
    out: c_int,
    out_offset: *mut i64,
    len: usize,
    flags: u32,
) -> isize {
    // SAFETY: by contract.
    let native = || unsafe { real::splice(input, in_offset, out, out_offset, len, flags) };
    // Neither a pipe nor a socket has offsets; what is refused moves nothing.
    let refused = !in_offset.is_null()
        || !out_offset.is_null()
        || flags & !FLAGS != 0
        || isize::try_from(len).is_err();
    let (from, to) = (fds::lookup(input), fds::lookup(out));
    if refused || len == 0 {
        native()
    } else if let Some(index) = from.as_conn() {
        to_pipe(input, from, index, out, len, flags, &native)
    } else if let Some(index) = to.as_conn() {
        to_socket(out, to, index, input, len, flags, &native)
    } else {
        native()
    }
}

/// From a connection into the pipe `out`. `native` is the libc call that the program made.
pub(super) fn to_pipe(
    fd: c_int,
    entry: Entry,
    index: u32,
    out: c_int,
    len: usize,
    flags: u32,
    native: &dyn Fn() -> isize,
) -> isize {
    let conn = conn(index);
    let mut slept = false;
    let mut deadline = None;
    if conn.view().is_none() {
        return recv::from_kernel(conn, fd, native).unwrap_or_else(native);
    }
    let Some(pipe) = Pipe::to_fill(out) else {
        return native();
    };
    match pour(conn, fd, entry, &pipe, len) {
        Ok(0) | Err(libc::EAGAIN) => {}
        Ok(bytes) => return count(bytes),
        Err(error) => return errno::fail(error),
    }
    loop {
        if fds::lookup(fd) != entry {
            // Closed by another thread. After a wait the number may name something else by now.
            return if slept {
                errno::fail(libc::EBADF)
            } else {
                native()
            };
        }
        match pipe.has_room() {
            Ok(true) => {}
            Ok(false) if !pipe.waits(flags) => return errno::fail(libc::EAGAIN),
            Ok(false) => match pipe.wait_for_room() {
                Ok(()) => {
                    slept = true;
                    continue;
                }
                Err(error) => return errno::fail(error),
            },
            Err(error) => {
                send::raise_sigpipe();
                return errno::fail(error);
            }
        }
        if slept {
            match pour(conn, fd, entry, &pipe, len) {
                Ok(0) | Err(libc::EAGAIN) => {}
                Ok(bytes) => return count(bytes),
                Err(error) => return errno::fail(error),
            }
        }
        match step(conn, fd, &pipe, len) {
            Step::Native => match recv::from_kernel(conn, fd, native) {
                Some(result) => return result,
                None => continue,
            },
            Step::Moved(bytes) => return count(bytes),
            Step::End => return 0,
            // The pipe was filled by somebody else meanwhile.
            Step::Error(libc::EAGAIN) => continue,
            Step::Error(error) => return errno::fail(error),
            Step::Empty => {}
        }
        let mut call = Call::new(fd, entry);
        call.deadline = deadline;
        let waited = recv::block(conn, fd, 0, 1, &mut call);
        deadline = call.deadline;
        call.end(conn);
        match waited {
            Ok(()) => slept = true,
            Err(recv::STALE) => return native(),
            Err(error) => return errno::fail(error),
        }
    }
}

/// Bytes straight from the ring's memory into the pipe, as many as are there and fit; 0: the slow way.
fn pour(conn: &Conn, fd: c_int, entry: Entry, pipe: &Pipe, len: usize) -> Result<usize, c_int> {
    let rx = &conn.slot().rx;
    let Some(view) = conn.view() else {
        return Ok(0);
    };
    let mut total = 0;
    while total < len {
        if rx.state() != RxState::Ring || rx.lock.try_lock(tls::token()).is_err() {
            break;
        }
        let mut put = Ok(0);
        let mut full = true;
        let mut space = false;
        let ring = Consumer::of(view);
        let mut cursor = rx.cursor();
        if fds::lookup(fd) == entry
            && rx.state() == RxState::Ring
            && ring.refresh(&mut cursor).is_ok_and(|there| there > 0)
            && let Ok((at, run)) = ring.raw_run(&cursor, (len - total).min(AT_ONCE))
        {
            // SAFETY: a run of the ring's memory, which is only given to the kernel.
            put = unsafe { pipe.put(at, run) };
            if let Ok(bytes) = put {
                ring.discard(&mut cursor, bytes);
                space = recv::publish(conn, &ring, &cursor);
                full = bytes < run;
            }
        }
        lock::free(&rx.lock);
        if space {
            kick::after_publish(conn, view, WaitFor::Space);
        }
        match put {
            Ok(bytes) => total += bytes,
            Err(_) if total > 0 => break,
            Err(error) => return Err(error),
        }
        if full {
            break;
        }
    }
    Ok(total)
}

/// What one look gave.
enum Step {
    /// Nothing of ours: call the kernel as the program did.
    Native,
    /// So many bytes were moved.
    Moved(usize),
    /// End of stream.
    End,
    /// An errno.
    Error(c_int),
    /// Nothing there now.
    Empty,
}

/// One look at wherever the bytes come from now: they are looked at as by MSG_PEEK, and what the pipe has
/// taken of them is taken from the connection.
fn step(conn: &'static Conn, fd: c_int, pipe: &Pipe, len: usize) -> Step {
    let rx = &conn.slot().rx;
    let Some(view) = conn.view() else {
        return Step::Native;
    };
    resend::service(conn, view, fd);
    if lock::take_rx(conn).is_err() {
        return Step::Error(libc::EINTR);
    }
    let mut chunk = MaybeUninit::<[u8; CHUNK]>::uninit();
    let base = chunk.as_mut_ptr();
    let mut seen = Buffers::one(base.cast(), len.min(CHUNK));
    let (look, _) = recv::look(conn, view, fd, &mut seen, MSG_PEEK, 1);
    let mut space = false;
    let step = match look {
        recv::Step::Native => Step::Native,
        recv::Step::End => Step::End,
        recv::Step::Error(error) => Step::Error(error),
        recv::Step::Empty => Step::Empty,
        // SAFETY: so many bytes were copied into the chunk.
        recv::Step::Moved => match unsafe { pipe.put(base.cast(), seen.done()) } {
            Err(error) => Step::Error(error),
            Ok(bytes) => {
                let mut taken = Buffers::one(base.cast(), bytes);
                while taken.left() > 0 {
                    match recv::look(conn, view, fd, &mut taken, MSG_TRUNC, bytes) {
                        (recv::Step::Moved, freed) => space |= freed,
                        // Behind these bytes: for the next call.
                        (recv::Step::Error(error), _) => {
                            conn.defer_error(error);
                            break;
                        }
                        _ => break,
                    }
                }
                Step::Moved(bytes)
            }
        },
    };
    lock::free(&rx.lock);
    if space {
        kick::after_publish(conn, view, WaitFor::Space);
    }
    step
}

/// From the pipe `input` into a connection.
fn to_socket(
    fd: c_int,
    entry: Entry,
    index: u32,
    input: c_int,
    len: usize,
    flags: u32,
    native: &dyn Fn() -> isize,
) -> isize {
    let conn = conn(index);
    let mut deadline = None;
    let mut slept = false;
    let mut total = 0;
    let mut known = None;
    while total < len {
        if fds::lookup(fd) != entry {
            return match total {
                0 if slept => errno::fail(libc::EBADF),
                0 => native(),
                _ => count(total),
            };
        }
        if !send::is_on_ring(conn, fd) {
            if total > 0 {
                return count(total);
            }
            match send::to_kernel(conn, fd, flags & SPLICE_F_NONBLOCK == 0, native) {
                Some(result) => return result,
                None => continue,
            }
        }
        let pipe = match known {
            Some(pipe) => pipe,
            None if conn.appends(|| appends(fd)) => return native(),
            None => match Pipe::to_empty(input) {
                Some(pipe) => *known.insert(pipe),
                None => return native(),
            },
        };
        match pipe.contents() {
            Contents::Bytes => {}
            Contents::Ended => return count(total),
            Contents::Empty if total > 0 => return count(total),
            Contents::Empty if !pipe.waits(flags) => return errno::fail(libc::EAGAIN),
            Contents::Empty => {
                if let Err(error) = pipe.wait_for_bytes() {
                    return errno::fail(error);
                }
                slept = true;
                continue;
            }
        }
        // SAFETY: the ring's memory, which is only given to the kernel.
        let taken = fill(conn, fd, entry, len - total, |to, room| unsafe {
            pipe.take(to, room)
        });
        match taken {
            Filled::Bytes(bytes, true) => {
                total += bytes;
                continue;
            }
            Filled::Bytes(bytes, false) => return count(total + bytes),
            Filled::Nothing => return count(total),
            // Somebody else took them.
            Filled::Error(libc::EAGAIN) => continue,
            Filled::Error(_) if total > 0 => return count(total),
            Filled::Error(error) => return errno::fail(error),
            Filled::NoRoom => {}
        }
        let left = pipe.bytes().min(len - total);
        match send::wait_for_room(conn, fd, entry, left, total > 0, &mut deadline) {
            Ok(true) => slept = true,
            Ok(false) => {}
            Err(hindrance) if hindrance.is_stale() && total == 0 => return native(),
            Err(hindrance) => {
                let error = hindrance.tell(conn, total > 0);
                return if total > 0 {
                    count(total)
                } else {
                    errno::fail(error)
                };
            }
        }
    }
    count(total)
}
