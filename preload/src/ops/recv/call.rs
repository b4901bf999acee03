//! A whole receive call beyond the fast path: looks and waits until there is enough.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{MSG_DONTWAIT, MSG_ERRQUEUE, MSG_OOB, MSG_PEEK, MSG_WAITALL};
use rdma_core::slot::{RxState, Stage};

use super::block::block;
use super::by_kernel::{
    from_kept, from_kernel, must_end_before, rest_from_kernel, stream_returns_at,
};
use super::ends::ask_kernel;
use super::look::{kernel_now, step};
use super::{STALE, Step};
use crate::conn::Conn;
use crate::fds::Entry;
use crate::ops::ready;
use crate::pins::Call;
use crate::user::Buffers;
use crate::{control, errno, forsaken, kernel, renew, tls, upgrade};

#[cold]
#[inline(never)]
pub(super) fn slow(
    fd: c_int,
    entry: Entry,
    conn: &'static Conn,
    buffers: &mut Buffers,
    flags: c_int,
    native: &dyn Fn() -> isize,
) -> isize {
    // Not for the ring, and the kernel knows the answer.
    if flags & (MSG_OOB | MSG_ERRQUEUE) != 0 {
        return native();
    }
    if buffers.is_refused(fd) {
        return errno::fail(libc::EFAULT);
    }
    if buffers.left() == 0 {
        return nothing(fd, entry, conn, buffers, flags, native);
    }
    let lowat = conn.slot().rx.lowat.load(Ordering::Relaxed).max(1) as usize;
    let target = if flags & MSG_WAITALL != 0 {
        buffers.left()
    } else {
        lowat.min(buffers.left())
    };
    let mut call = Call::new(fd, entry);
    let got = receive(conn, fd, buffers, flags, target, &mut call, native);
    call.end(conn);
    got
}

/// Receives until there are `target` bytes, or no more can come.
fn receive(
    conn: &'static Conn,
    named: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    target: usize,
    call: &mut Call,
    native: &dyn Fn() -> isize,
) -> isize {
    let mut slept = false;
    let interrupts = tls::interrupts();
    loop {
        let Some(fd) = call.descriptor(conn) else {
            // Closed by another thread. After a wait the number may name something else by now.
            return match buffers.done() {
                0 if slept => errno::fail(libc::EBADF),
                0 => native(),
                _ => count(buffers),
            };
        };
        let before = buffers.done();
        if before > 0 && conn.slot().rx.state() == RxState::Armed && must_end_before(fd) {
            return count(buffers);
        }
        match step(conn, fd, buffers, flags, target) {
            Step::Native if buffers.done() > 0 => {
                if conn.slot().rx.state() == RxState::Returned {
                    rest_from_kernel(conn, fd, buffers, flags, target);
                }
                return count(buffers);
            }
            // A signal that came between the sleep and the kernel's own.
            Step::Native if slept && tls::interrupts() != interrupts => {
                return errno::fail(libc::EINTR);
            }
            Step::Native if fd != named => return from_kept(conn, fd, buffers, flags),
            Step::Native => {
                forsaken::look(false);
                renew::let_go(conn);
                match from_kernel(conn, fd, native) {
                    Some(result) => return result,
                    None => continue,
                }
            }
            Step::Moved => {
                note_tcp(conn, fd);
                if flags & MSG_PEEK != 0 {
                    let lacks = buffers.done() < target;
                    if lacks && flags & MSG_DONTWAIT == 0 && may_peek_more(conn, fd, call) {
                        buffers.rewind();
                        continue;
                    }
                    if stream_returns_at(conn, buffers.done()) {
                        rest_from_kernel(conn, fd, buffers, flags | MSG_DONTWAIT, 0);
                    }
                    return count(buffers);
                }
                if buffers.left() == 0 {
                    return count(buffers);
                }
                if buffers.done() > before && buffers.done() < target {
                    continue;
                }
                // Enough; but take what else is there, as the kernel would.
                if buffers.done() > before && flags & MSG_WAITALL == 0 {
                    continue;
                }
                return count(buffers);
            }
            Step::End => return count(buffers),
            // A bad address is said again by the next call that gives it.
            Step::Error(libc::EFAULT) if buffers.done() > 0 => return count(buffers),
            Step::Error(error) if buffers.done() > 0 => {
                conn.defer_error(error);
                return count(buffers);
            }
            Step::Error(error) => return errno::fail(error),
            Step::Empty => {}
        }
        if buffers.done() >= target && buffers.done() > 0 {
            return count(buffers);
        }
        call.begun = buffers.done() > 0;
        match block(conn, fd, flags, target - buffers.done(), call) {
            Ok(()) => slept = true,
            Err(STALE) if buffers.done() == 0 => return native(),
            Err(_) if buffers.done() > 0 => return count(buffers),
            Err(error) => {
                // A look that hoped for more gets what there is.
                let hoped = flags & MSG_PEEK != 0 && target > 1;
                if hoped && matches!(step(conn, fd, buffers, flags, 1), Step::Moved) {
                    return count(buffers);
                }
                return errno::fail(error);
            }
        }
    }
}

/// MSG_PEEK with MSG_WAITALL or SO_RCVLOWAT while bytes stand on both sides of the border between kernel and ring: no
/// event says that there are enough, so a moment is waited. False: no more will come.
#[cold]
fn may_peek_more(conn: &Conn, fd: c_int, call: &mut Call) -> bool {
    let now = control::monotonic_ns();
    let deadline = call.gives_up_at(conn, fd, libc::SO_RCVTIMEO, now);
    let ends = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    let over = conn.view().is_some_and(|view| {
        view.theirs.state.ended_at().is_some() || view.theirs.state.broken().is_some()
    });
    if over
        || deadline.is_some_and(|at| at <= now)
        || kernel::is_nonblocking(fd)
        || kernel::poll_now(fd, libc::POLLRDHUP) & ends != 0
    {
        return false;
    }
    ready::kernel_poll(&mut [], Some(PEEK_PAUSE_NS)).is_ok()
}

/// See [`may_peek_more`].
const PEEK_PAUSE_NS: u64 = 1_000_000;

/// recv of no bytes: waits until there is something, and takes nothing. As in the kernel, a wait that ends
/// in any way at all is a success.
fn nothing(
    fd: c_int,
    entry: Entry,
    conn: &'static Conn,
    buffers: &mut Buffers,
    flags: c_int,
    native: &dyn Fn() -> isize,
) -> isize {
    let mut call = Call::new(fd, entry);
    let result = wait_for_any(conn, fd, buffers, flags, &mut call, native);
    call.end(conn);
    result
}

fn wait_for_any(
    conn: &'static Conn,
    named: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    call: &mut Call,
    native: &dyn Fn() -> isize,
) -> isize {
    loop {
        // Set by the first wait.
        let waited = call.deadline.is_some();
        let Some((fd, view)) = call.descriptor(conn).zip(conn.view()) else {
            return if waited { 0 } else { native() };
        };
        upgrade::notice_switch(conn, view, fd);
        let looked = match conn.slot().rx.state() {
            RxState::Kernel | RxState::Done | RxState::Returned => Step::Native,
            RxState::Armed | RxState::Draining => kernel_now(conn, fd, buffers, flags, 0).0,
            RxState::Ring => step(conn, fd, buffers, flags, 1),
        };
        match looked {
            Step::Native if waited || fd != named => return 0,
            Step::Native => match from_kernel(conn, fd, native) {
                Some(result) => return result,
                None => continue,
            },
            Step::Moved | Step::End => return 0,
            Step::Error(error) if waited => {
                conn.defer_error(error);
                return 0;
            }
            Step::Error(error) => return errno::fail(error),
            Step::Empty if !waited && ask_kernel(conn, view, fd) => continue,
            Step::Empty => {}
        }
        match block(conn, fd, flags, 1, call) {
            Ok(()) => {}
            Err(_) if call.deadline.is_some() => return 0,
            Err(error) => return errno::fail(error),
        }
    }
}

fn count(buffers: &Buffers) -> isize {
    isize::try_from(buffers.done()).unwrap_or(isize::MAX)
}

fn note_tcp(conn: &'static Conn, fd: c_int) {
    if conn.slot().stage() != Stage::Attached {
        upgrade::note(conn, fd, 0);
    }
}
