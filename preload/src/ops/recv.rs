//! Receiving: from the kernel, across the switch, from the ring, to the end.

#![expect(unsafe_code, reason = "receives into the program's buffers")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{
    MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_OOB, MSG_PEEK, MSG_TRUNC,
    MSG_WAITALL,
};
use rdma_core::Reason;
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::ring::{Consumer, RxCursor};
use rdma_core::slot::{RxState, Stage, TxState};

use super::lock;
use crate::conn::{Conn, NO_FINAL, SHUT_READ, SHUT_WRITE, conn};
use crate::fds::{self, Entry};
use crate::pins::{self, Call};
use crate::trace::{self, Level};
use crate::user::Buffers;
use crate::wait::{self, Pace, Woken};
use crate::{control, downgrade, errno, kernel, kick, lifecycle, real, relayed, tls, upgrade};

/// Flags that the fast path may ignore.
const FAST_FLAGS: c_int = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC;

/// Receives on connection `index`, which `fd` named when the caller looked. `native` is the libc call
/// that the program made.
#[inline(always)]
pub(crate) fn recv(
    fd: c_int,
    entry: Entry,
    index: u32,
    buffers: &mut Buffers,
    flags: c_int,
    native: impl Fn() -> isize,
) -> isize {
    let conn = conn(index);
    if flags & !FAST_FLAGS == 0
        && let Some(view) = conn.view()
        && let Some(len) = from_ring(conn, view, fd, entry, buffers)
    {
        return len;
    }
    // Only what is passed on has to stand in memory.
    let (mut rest, native) = (*buffers, native);
    let got = slow(fd, entry, conn, &mut rest, flags, &native);
    *buffers = rest;
    got
}

/// The fast path: bytes are in the ring. `None`: anything else.
#[inline(always)]
fn from_ring(
    conn: &Conn,
    view: &ConnView,
    fd: c_int,
    entry: Entry,
    buffers: &mut Buffers,
) -> Option<isize> {
    let rx = &conn.slot().rx;
    if rx.state() != RxState::Ring || rx.lock.try_lock(tls::token()).is_err() {
        return None;
    }
    tls::took_lock();
    let mut len = 0;
    let mut space = false;
    if fds::lookup(fd) == entry && rx.state() == RxState::Ring {
        let ring = Consumer::of(view);
        let mut cursor = rx.cursor();
        let left = buffers.left();
        let known = cursor.available() >= left as u64
            || (ring.refresh(&mut cursor).is_ok() && gather(conn, view, &ring, &mut cursor, left));
        if known && left > 0 && rx.lowat.load(Ordering::Relaxed) <= 1 {
            len = left.min(usize::try_from(cursor.available()).unwrap_or(usize::MAX));
            // A call that empties a ring which the stream has left goes on in the kernel.
            let whole = len == left || view.theirs.state.returned_at().is_none();
            if len > 0 {
                if !whole
                    || !buffers.can_drain(len)
                    || buffers.drain(&ring, &mut cursor, len).is_err()
                {
                    len = 0;
                } else {
                    space = publish(conn, &ring, &cursor);
                }
            }
        }
    }
    lock::free(&rx.lock);
    if space {
        kick::after_publish(conn, view, WaitFor::Space);
    }
    // 0 is never answered here: it would say end of stream.
    if len > 0 {
        isize::try_from(len).ok()
    } else {
        None
    }
}

/// Lets a stream of small messages gather for a moment before the few that are there are taken. Every
/// look takes the line with the tail away from the writer; one look for many messages is what makes
/// them cheap. False: corrupt.
#[inline(always)]
fn gather(
    conn: &Conn,
    view: &ConnView,
    ring: &Consumer,
    cursor: &mut RxCursor,
    left: usize,
) -> bool {
    if cursor.available() == 0 {
        return true;
    }
    let sent = conn.slot().tx.cursor().tail;
    // Something was sent since the last receive: a dialogue, in which every nanosecond counts.
    if conn.sent_at_recv.swap_relaxed(sent) != sent
        || cursor.available() >= (left as u64).min(GATHER_BYTES)
        || !wait::may_pause(wait::far_cpu(view))
    {
        return true;
    }
    wait::pause(GATHER_PAUSES);
    ring.refresh(cursor).is_ok()
}

/// A stream whose next bytes are at least this many need not gather.
const GATHER_BYTES: u64 = 4096;
/// How long bytes gather, in spin hints: a fraction of a microsecond.
const GATHER_PAUSES: u32 = 16;

/// Makes consumption visible; true if a waiting writer should be woken (half of the ring is free).
#[inline(always)]
pub(super) fn publish(conn: &Conn, ring: &Consumer, cursor: &RxCursor) -> bool {
    let rx = &conn.slot().rx;
    rx.set_cursor(cursor);
    rx.note_ack(ring.ack());
    ring.publish(cursor);
    cursor.available() <= ring.capacity() / 2
}

/// No errno: the descriptor names another file by now.
pub(super) const STALE: c_int = -1;

/// What one look gave.
pub(super) enum Step {
    /// Nothing of ours: call the kernel as the program did.
    Native,
    /// Some bytes were taken (or looked at).
    Moved,
    /// End of stream.
    End,
    /// An errno.
    Error(c_int),
    /// Nothing there now.
    Empty,
}

#[cold]
#[inline(never)]
fn slow(
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
        if before > 0 && conn.slot().rx.state() == RxState::Armed && has_only_an_error(fd) {
            // The error is for the next call, of whatever kind: do not take it from the kernel.
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
            Step::Native => match from_kernel(conn, fd, native) {
                Some(result) => return result,
                None => continue,
            },
            Step::Moved => {
                note_tcp(conn, fd);
                if flags & MSG_PEEK != 0 {
                    let all = flags & MSG_WAITALL != 0 && buffers.done() < target;
                    if all && flags & MSG_DONTWAIT == 0 && may_peek_more(conn, fd, call) {
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
        match block(conn, fd, flags, target - buffers.done(), call) {
            Ok(()) => slept = true,
            Err(STALE) if buffers.done() == 0 => return native(),
            Err(_) if buffers.done() > 0 => return count(buffers),
            Err(error) => {
                // A look that hoped for more gets what there is.
                let hoped = flags & MSG_PEEK != 0 && flags & MSG_WAITALL != 0;
                if hoped
                    && matches!(
                        step(conn, fd, buffers, flags & !MSG_WAITALL, 1),
                        Step::Moved
                    )
                {
                    return count(buffers);
                }
                return errno::fail(error);
            }
        }
    }
}

/// MSG_PEEK with MSG_WAITALL while bytes stand on both sides of the border between kernel and ring: no
/// event says that there are enough, so a moment is waited. False: no more will come.
#[cold]
fn may_peek_more(conn: &Conn, fd: c_int, call: &mut Call) -> bool {
    let now = control::monotonic_ns();
    let deadline = *call
        .deadline
        .get_or_insert_with(|| kernel::timeout_ns(fd, libc::SO_RCVTIMEO).map(|ns| now + ns));
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
    super::ready::kernel_poll(&mut [], Some(PEEK_PAUSE_NS)).is_ok()
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

/// The program's own call, counted. `None`: the direction was armed meanwhile; look again.
pub(super) fn from_kernel(
    conn: &'static Conn,
    fd: c_int,
    native: &dyn Fn() -> isize,
) -> Option<isize> {
    let rx = &conn.slot().rx;
    rx.inside.enter();
    let state = rx.state();
    if !matches!(state, RxState::Kernel | RxState::Done | RxState::Returned) {
        rx.inside.leave();
        return None;
    }
    let got = pins::inside(conn, fd, native);
    rx.inside.leave();
    let got = got?;
    if let Ok(bytes) = usize::try_from(got)
        && state != RxState::Done
        && fds::lookup(fd) == conn.entry()
    {
        rx.tcp_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        upgrade::note(conn, fd, bytes);
    }
    Some(got)
}

/// The program's call, which began with a descriptor that another thread has closed.
fn from_kept(conn: &Conn, kept: c_int, buffers: &mut Buffers, flags: c_int) -> isize {
    let (mut parts, used) = buffers.rest::<64>(usize::MAX);
    // SAFETY: zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = used;
    // SAFETY: the parts are the program's buffers.
    let got = unsafe { real::recvmsg(kept, &raw mut message, flags) };
    if let Ok(bytes) = u64::try_from(got) {
        let total = &conn.slot().rx.tcp_bytes;
        total.fetch_add(bytes, Ordering::Relaxed);
    }
    got
}

/// Whether the direction is on the ring or about to be, arming it if it can be: for calls that receive
/// several times.
pub(super) fn is_on_ring(conn: &'static Conn, fd: c_int, dont_wait: bool) -> bool {
    let Some(view) = conn.view() else {
        return false;
    };
    downgrade::service(conn, view, fd);
    let rx = &conn.slot().rx;
    if rx.state() == RxState::Kernel && lock::take_rx(conn).is_ok() {
        if rx.state() == RxState::Kernel {
            upgrade::try_arm(conn, view, fd, dont_wait);
        }
        lock::free(&rx.lock);
    }
    !matches!(
        rx.state(),
        RxState::Kernel | RxState::Done | RxState::Returned
    )
}

/// Whether the kernel has an error to tell, and no bytes before it.
fn has_only_an_error(fd: c_int) -> bool {
    kernel::poll_now(fd, 0) & libc::POLLERR != 0 && kernel::readable(fd) == Some(0)
}

/// Whether the ring's stream goes on in the kernel after the next `bytes` bytes.
fn stream_returns_at(conn: &Conn, bytes: usize) -> bool {
    let rx = &conn.slot().rx;
    rx.state() == RxState::Ring
        && conn
            .view()
            .and_then(|view| view.theirs.state.returned_at())
            .is_some_and(|at| at == rx.cursor().head + bytes as u64)
}

/// The rest of a call whose first bytes came from the ring, which the stream has left. Waits only for what
/// `target` lacks.
fn rest_from_kernel(
    conn: &Conn,
    fd: c_int,
    buffers: &mut Buffers,
    mut flags: c_int,
    target: usize,
) {
    while buffers.left() > 0 {
        if buffers.done() >= target {
            flags |= MSG_DONTWAIT;
        }
        if has_only_an_error(fd) {
            // For the next call.
            return;
        }
        let (mut parts, used) = buffers.rest::<64>(usize::MAX);
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = used;
        let before = errno::get();
        // SAFETY: the parts are the program's buffers.
        let got = unsafe { real::recvmsg(fd, &raw mut message, flags) };
        match usize::try_from(got) {
            Ok(bytes) if bytes > 0 => {
                let total = &conn.slot().rx.tcp_bytes;
                total.fetch_add(bytes as u64, Ordering::Relaxed);
                buffers.skip(bytes);
            }
            end => {
                let error = errno::get();
                errno::set(before);
                // Behind the bytes that the program gets first.
                if end.is_err() && !matches!(error, libc::EAGAIN | libc::EINTR | libc::EFAULT) {
                    conn.defer_error(error);
                }
                return;
            }
        }
        if flags & MSG_WAITALL == 0 {
            return;
        }
    }
}

/// One look at wherever the bytes come from now.
fn step(
    conn: &'static Conn,
    fd: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    target: usize,
) -> Step {
    let rx = &conn.slot().rx;
    let Some(view) = conn.view() else {
        return Step::Native;
    };
    downgrade::service(conn, view, fd);
    if lock::take_rx(conn).is_err() {
        return Step::Error(libc::EINTR);
    }
    let (step, space) = look(conn, view, fd, buffers, flags, target);
    lock::free(&rx.lock);
    if space {
        kick::after_publish(conn, view, WaitFor::Space);
    }
    step
}

/// As [`step`], under the lock; also whether a waiting writer should be woken.
pub(super) fn look(
    conn: &'static Conn,
    view: &ConnView,
    fd: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    target: usize,
) -> (Step, bool) {
    let rx = &conn.slot().rx;
    loop {
        // An error that came behind bytes already given to the program; in the ring, after its bytes.
        if !matches!(rx.state(), RxState::Kernel | RxState::Ring) {
            let error = conn.take_error();
            if error != 0 {
                return (Step::Error(error), false);
            }
        }
        match rx.state() {
            RxState::Kernel => {
                if !upgrade::try_arm(conn, view, fd, flags & MSG_DONTWAIT != 0) {
                    return (Step::Native, false);
                }
            }
            RxState::Armed => match view.theirs.state.accept() {
                Some(at) => {
                    if !upgrade::begin_draining(conn, fd, at) {
                        break_conn(conn, view, Reason::UnseenWriter);
                        return (Step::Error(libc::ECONNRESET), false);
                    }
                    if rx.state() == RxState::Armed {
                        return (Step::Empty, false);
                    }
                }
                None => {
                    let step = kernel_now(conn, fd, buffers, flags, usize::MAX).0;
                    if !matches!(step, Step::End) {
                        return (step, false);
                    }
                    if let Some(step) = end_before_switch(conn, view) {
                        return (step, false);
                    }
                }
            },
            RxState::Draining => {
                let left = rx.kernel_left.load(Ordering::Relaxed);
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                let (step, got) = kernel_now(conn, fd, buffers, flags, most);
                if matches!(step, Step::End) {
                    break_conn(conn, view, Reason::UnseenWriter);
                    return (Step::Error(libc::ECONNRESET), false);
                }
                if flags & MSG_PEEK != 0 && left == got as u64 && buffers.left() > 0 {
                    // The look goes on behind the border.
                    ring_now(conn, view, fd, buffers, flags & !MSG_WAITALL, target);
                }
                if flags & MSG_PEEK == 0 {
                    rx.kernel_left.store(left - got as u64, Ordering::Relaxed);
                    if left == got as u64 {
                        rx.set_state(RxState::Ring);
                        super::epoll::on_change(conn, fd);
                        continue;
                    }
                }
                return (step, false);
            }
            RxState::Ring => return ring_now(conn, view, fd, buffers, flags, target),
            RxState::Done | RxState::Returned => return (Step::Native, false),
        }
    }
}

/// The kernel's stream has ended, and no switch to the ring was seen. `None`: there is one after all.
#[cold]
fn end_before_switch(conn: &Conn, view: &ConnView) -> Option<Step> {
    let far = &view.theirs.state;
    // Ends first: what was said before is then surely seen.
    let ended = far.ended_at().is_some();
    if far.is_switched() {
        return None;
    }
    if ended || !conn.is_relayed() {
        return Some(Step::End);
    }
    if relayed::is_broken(view) {
        // Whether anything went by ring, nobody will ever say.
        return Some(Step::Error(relayed::errno_of_break(view)));
    }
    // A switch may still be on its way over the link.
    Some(if relayed::is_early(conn, view) {
        Step::Empty
    } else {
        Step::End
    })
}

/// Takes from the kernel what is there now, at most `most` bytes; the step and the bytes.
fn kernel_now(
    conn: &Conn,
    fd: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    most: usize,
) -> (Step, usize) {
    let (mut parts, used) = buffers.rest::<64>(most);
    // SAFETY: zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = used;
    let flags = (flags & (MSG_PEEK | MSG_TRUNC)) | MSG_DONTWAIT;
    let before = errno::get();
    // SAFETY: the parts are the program's buffers.
    let got = unsafe { real::recvmsg(fd, &raw mut message, flags) };
    match usize::try_from(got) {
        Ok(0) => (Step::End, 0),
        Ok(bytes) => {
            if flags & MSG_PEEK == 0 {
                conn.slot()
                    .rx
                    .tcp_bytes
                    .fetch_add(bytes as u64, Ordering::Relaxed);
            }
            buffers.skip(bytes);
            (Step::Moved, bytes)
        }
        Err(_) => {
            let error = errno::get();
            errno::set(before);
            if error == libc::EAGAIN {
                (Step::Empty, 0)
            } else {
                (Step::Error(error), 0)
            }
        }
    }
}

/// Takes from the ring what is there now.
fn ring_now(
    conn: &'static Conn,
    view: &ConnView,
    fd: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    target: usize,
) -> (Step, bool) {
    let rx = &conn.slot().rx;
    let ring = Consumer::of(view);
    let mut cursor = rx.cursor();
    // Ends first, then the tail: what was written before the end is then surely seen.
    let ended = view.theirs.state.ended_at();
    let returned = view.theirs.state.returned_at();
    let last = conn.final_tail.load(Ordering::Acquire);
    let Ok(available) = ring.refresh(&mut cursor) else {
        break_conn(conn, view, Reason::RingCorrupt);
        return (Step::Error(libc::ECONNRESET), false);
    };
    rx.set_cursor(&cursor);
    let end = returned.or(ended).or((last != NO_FINAL).then_some(last));
    if end.is_some_and(|end| end < cursor.tail) {
        break_conn(conn, view, Reason::RingCorrupt);
        return (Step::Error(libc::ECONNRESET), false);
    }
    if available == 0 {
        let error = conn.take_error();
        if error != 0 {
            return (Step::Error(error), false);
        }
        if returned == Some(cursor.head) {
            back_in_kernel(conn, fd);
            return (Step::Native, false);
        }
        if end == Some(cursor.head) {
            if conn.is_dead() {
                return (Step::End, false);
            }
            rx.set_state(RxState::Done);
            return (Step::Native, false);
        }
        if view
            .theirs
            .state
            .broken()
            .or(view.mine.state.broken())
            .is_some()
        {
            return (Step::Error(relayed::errno_of_break(view)), false);
        }
        if last != NO_FINAL {
            // The far end has closed, but announced bytes that it never wrote.
            break_conn(conn, view, Reason::RingCorrupt);
            return (Step::Error(libc::ECONNRESET), false);
        }
        if conn.shut() & SHUT_READ != 0 {
            // Behind bytes, an error is left to the next call, of whatever kind.
            if buffers.done() > 0 {
                return (Step::End, false);
            }
            return match kernel::peek(fd) {
                Err(error) if error != libc::EAGAIN => (Step::Error(error), false),
                _ => (Step::End, false),
            };
        }
        return (Step::Empty, false);
    }
    let available = usize::try_from(available).unwrap_or(usize::MAX);
    // The look goes on behind the border.
    let looks_behind = flags & MSG_PEEK != 0 && returned == Some(cursor.tail);
    // SO_RCVLOWAT and MSG_WAITALL|MSG_PEEK: not yet enough to look at.
    let more_may_come = end.is_none()
        && conn.shut() & SHUT_READ == 0
        && view.theirs.state.broken().is_none()
        && view.mine.state.broken().is_none();
    if flags & MSG_PEEK != 0 && flags & MSG_WAITALL != 0 && available < target {
        let more = if looks_behind {
            more_in_kernel(fd)
        } else {
            more_may_come.then_some(0)
        };
        if more.is_some_and(|more| available.saturating_add(more) < target) {
            return (Step::Empty, false);
        }
    }
    let mut len = available.min(buffers.left());
    if flags & MSG_TRUNC == 0 && len > 0 {
        len = buffers.sound_to_drain(len);
        if len == 0 {
            return (Step::Error(libc::EFAULT), false);
        }
    }
    let result = if flags & MSG_TRUNC != 0 {
        // Counted as if it were copied; the buffer stays as it is.
        if flags & MSG_PEEK == 0 {
            ring.discard(&mut cursor, len);
        }
        buffers.skip(len);
        Ok(())
    } else if flags & MSG_PEEK != 0 {
        buffers.peek(&ring, &cursor, len)
    } else {
        buffers.drain(&ring, &mut cursor, len)
    };
    if result.is_err() {
        break_conn(conn, view, Reason::RingCorrupt);
        return (Step::Error(libc::ECONNRESET), false);
    }
    if looks_behind && len == available && buffers.left() > 0 {
        kernel_now(conn, fd, buffers, flags, usize::MAX);
    }
    let space = flags & MSG_PEEK == 0 && publish(conn, &ring, &cursor);
    (Step::Moved, space)
}

/// Bytes that the kernel has of a stream that goes on there; `None` if no more will come.
fn more_in_kernel(fd: c_int) -> Option<usize> {
    let over = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    if kernel::poll_now(fd, libc::POLLRDHUP) & over != 0 {
        return None;
    }
    usize::try_from(kernel::readable(fd)?).ok()
}

/// Waits until there may be `need` bytes more.
///
/// # Errors
/// The errno for the program: EAGAIN (non-blocking or timed out) or EINTR.
pub(super) fn block(
    conn: &'static Conn,
    fd: c_int,
    flags: c_int,
    need: usize,
    call: &mut Call,
) -> Result<(), c_int> {
    let Some(view) = conn.view() else {
        return Ok(());
    };
    let slot = conn.slot();
    if flags & MSG_DONTWAIT != 0
        || (slot.meta.nonblocking.load(Ordering::Relaxed) != 0 && kernel::is_nonblocking(fd))
    {
        return Err(libc::EAGAIN);
    }
    let state = slot.rx.state();
    let ready = || {
        has_news(
            conn,
            view,
            state,
            if flags & MSG_PEEK != 0 { need } else { 1 },
        )
    };
    let far = wait::far_cpu(view);
    // Nothing was sent since the last receive: bytes are streaming in, nobody awaits an answer.
    let streaming = conn.sent_at_recv.swap_relaxed(slot.tx.cursor().tail) == slot.tx.cursor().tail;
    let pace = if streaming {
        Pace::Stream
    } else {
        Pace::Answer
    };
    if wait::glance(far, pace, ready) {
        return Ok(());
    }
    let started = control::monotonic_ns();
    if wait::spin(far, pace, ready) {
        return Ok(());
    }
    if !call.note(conn) {
        return Ok(());
    }
    if lifecycle::is_stale(conn, fd) {
        return Err(STALE);
    }
    if kernel::is_nonblocking(fd) {
        slot.meta.nonblocking.store(1, Ordering::Relaxed);
        return Err(libc::EAGAIN);
    }
    let deadline = *call
        .deadline
        .get_or_insert_with(|| kernel::timeout_ns(fd, libc::SO_RCVTIMEO).map(|ns| started + ns));
    let interrupts = tls::interrupts();
    let mut events = libc::POLLIN | libc::POLLRDHUP;
    if slot.tx.state() == TxState::Returning {
        events |= libc::POLLOUT;
    }
    let mut until = deadline;
    let mut watched = fd;
    if matches!(state, RxState::Ring | RxState::Armed)
        && let Some(soon) = relayed::put_off_until(conn, view)
    {
        // It would report the same again and again.
        watched = -1;
        until = Some(deadline.map_or(soon, |at| at.min(soon)));
    }
    if flags & MSG_PEEK != 0 && state == RxState::Ring && view.theirs.state.returned_at().is_some()
    {
        // What is missing comes by the kernel, which says at once that there is something.
        events = 0;
        let soon = started + NAP_NS;
        until = Some(deadline.map_or(soon, |at| at.min(soon)));
    }
    match wait::sleep(conn, view, watched, WaitFor::Data, events, until, ready) {
        Woken::Again => Ok(()),
        Woken::Timeout if until != deadline => Ok(()),
        // Of another file that has the number now.
        Woken::Kernel(_) if call.descriptor(conn) != Some(fd) => Ok(()),
        Woken::Kernel(bits) => {
            on_kernel_event(conn, view, fd, bits & !libc::POLLOUT);
            Ok(())
        }
        Woken::Timeout => Err(libc::EAGAIN),
        // With a timeout the kernel never restarts; without, SA_RESTART decides.
        Woken::Interrupted if deadline.is_some() || tls::interrupts() != interrupts => {
            Err(libc::EINTR)
        }
        Woken::Interrupted => Ok(()),
    }
}

/// Between two looks at whether the kernel has as much as is asked for.
const NAP_NS: u64 = 1_000_000;

/// Whether another look can give something new.
fn has_news(conn: &Conn, view: &ConnView, state: RxState, need: usize) -> bool {
    let rx = &conn.slot().rx;
    let now = rx.state();
    if now != state || downgrade::is_wanted(conn, view) {
        return true;
    }
    match now {
        RxState::Kernel | RxState::Done | RxState::Returned => true,
        RxState::Armed => view.theirs.state.is_switched() || relayed::has_come(conn, view),
        RxState::Draining => false,
        RxState::Ring => {
            let ring = Consumer::of(view);
            let cursor = rx.cursor();
            if need > 1 {
                let mut copy = cursor;
                if ring
                    .refresh(&mut copy)
                    .is_ok_and(|available| available >= need as u64)
                {
                    return true;
                }
            } else if cursor.available() > 0 || ring.moved(&cursor) {
                return true;
            }
            is_over(conn, view, &cursor)
        }
    }
}

/// Whether no more bytes will come, for whatever reason.
fn is_over(conn: &Conn, view: &ConnView, cursor: &RxCursor) -> bool {
    view.theirs.state.ended_at() == Some(cursor.head)
        || view.theirs.state.returned_at() == Some(cursor.head)
        || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
        || view.theirs.state.broken().is_some()
        || view.mine.state.broken().is_some()
        || conn.shut() & SHUT_READ != 0
}

/// The kernel reports something on a socket whose bytes come from the ring: end of stream, an error,
/// or a writer that nobody saw.
pub(crate) fn on_kernel_event(conn: &Conn, view: &ConnView, fd: c_int, bits: i16) {
    let rx = &conn.slot().rx;
    // After a far end's return to the kernel, the kernel is asked when the ring has been read.
    if rx.state() != RxState::Ring
        || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
        || view.theirs.state.returned_at().is_some()
    {
        return;
    }
    let shut = conn.shut();
    if bits & libc::POLLERR == 0
        && bits & libc::POLLHUP != 0
        && shut == SHUT_READ | SHUT_WRITE
        && kernel::state(fd).is_some_and(|state| state != kernel::TCP_CLOSE)
    {
        // Our own shutdown of both directions.
        return;
    }
    if bits & (libc::POLLERR | libc::POLLHUP) == 0 {
        if conn.shut() & SHUT_READ != 0 {
            return;
        }
        match kernel::peek(fd) {
            Ok(false) => {}
            // Its return was announced before it sent anything.
            Ok(true) if view.theirs.state.returned_at().is_some() => return,
            Ok(true) => return break_conn(conn, view, Reason::UnseenWriter),
            Err(libc::EAGAIN | libc::EINTR) => return,
            Err(error) => conn.pending_error.store(error, Ordering::Relaxed),
        }
    }
    if relayed::is_early(conn, view) {
        return;
    }
    // Hung up by RST, not by a FIN in each direction: the kernel has told or will tell.
    let reset = bits & libc::POLLERR != 0
        || bits & libc::POLLHUP != 0 && shut & (SHUT_READ | SHUT_WRITE) != SHUT_WRITE;
    finish(conn, view, reset);
}

/// The far end's kernel has said FIN or RST: whatever it wrote to the ring, it wrote before. `reset`: RST,
/// which the kernel reports itself.
fn finish(conn: &Conn, view: &ConnView, reset: bool) {
    // An honest end said where its stream ends before it closed; a killed one did not.
    let killed = view.theirs.state.ended_at().is_none();
    let tail = view.rx_words.tail.load(Ordering::Acquire);
    if killed && conn.pending_error.load(Ordering::Relaxed) == 0 {
        let tx = &conn.slot().tx;
        let sent = tx.cursor().tail;
        let read = view.theirs.consumer.head.load(Ordering::Acquire);
        if read < sent && !reset {
            // Unread bytes at a dead end: TCP would have answered RST.
            conn.pending_error
                .store(libc::ECONNRESET, Ordering::Relaxed);
        } else if lock::take_tx(conn).is_ok() {
            // Nobody reads the ring: what is sent from now on, the kernel answers.
            if tx.state() == TxState::Ring {
                tx.set_state(TxState::Done);
            }
            lock::free(&tx.lock);
        }
    }
    let end = view.theirs.state.ended_at().unwrap_or(tail);
    conn.final_tail.store(end, Ordering::Release);
}

/// Breaks the connection at both ends.
#[cold]
pub(crate) fn break_conn(conn: &Conn, view: &ConnView, reason: Reason) {
    if view.mine.state.broken().is_some() {
        return;
    }
    view.mine.state.break_with(reason);
    trace::event(Level::Warn, conn, "broken:", reason.name());
    conn.slot()
        .meta
        .reason
        .store(reason.code(), Ordering::Relaxed);
    if let Some(arena) = control::arena() {
        arena.header().counters.count_reason(reason);
    }
    kick::wake_all(conn, view);
}

/// Bytes that a receive call could get now, for FIONREAD; `None`: ask the kernel.
pub(crate) fn readable(conn: &'static Conn, fd: c_int) -> Option<u64> {
    let view = conn.view()?;
    let rx = &conn.slot().rx;
    let in_ring = || {
        let mut cursor = rx.cursor();
        Consumer::of(view).refresh(&mut cursor).unwrap_or(0)
    };
    upgrade::notice_switch(conn, view, fd);
    match rx.state() {
        RxState::Kernel | RxState::Armed | RxState::Done | RxState::Returned => None,
        RxState::Draining => {
            let left = rx.kernel_left.load(Ordering::Relaxed);
            let there = kernel::readable(fd)?;
            if there < left {
                return Some(there);
            }
            let ring = in_ring();
            let returned = view.theirs.state.returned_at() == Some(rx.cursor().head + ring);
            Some(left + ring + if returned { there - left } else { 0 })
        }
        RxState::Ring => {
            let there = in_ring();
            // What a far end that has returned sent by the kernel is readable as well.
            let behind = (view.theirs.state.returned_at() == Some(rx.cursor().head + there))
                .then(|| kernel::readable(fd))
                .flatten();
            Some(there + behind.unwrap_or(0))
        }
    }
}

/// What TCP_INQ tells beside a message: the bytes that are left, and one more for an end of stream.
pub(crate) fn left_to_read(conn: &'static Conn, fd: c_int) -> c_int {
    let there = readable(conn, fd);
    let over = match conn.view().filter(|_| there.is_some()) {
        Some(view) => {
            view.theirs.state.ended_at().is_some()
                || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
        }
        None => kernel::poll_now(fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0,
    };
    let there = there.or_else(|| kernel::readable(fd)).unwrap_or(0);
    c_int::try_from(there + u64::from(over)).unwrap_or(c_int::MAX)
}

/// Under the receive lock: the ring has been read to where the far end's stream goes back to the kernel.
pub(crate) fn back_in_kernel(conn: &'static Conn, fd: c_int) {
    conn.slot().rx.set_state(RxState::Returned);
    trace::event(Level::Info, conn, "receives by TCP again", "");
    super::epoll::on_change(conn, fd);
}

/// Notices that the far end's stream goes back to the kernel without receiving, for those who only ask
/// what is there.
pub(crate) fn notice_return(conn: &'static Conn, view: &ConnView, fd: c_int) {
    let rx = &conn.slot().rx;
    let is_there =
        || rx.state() == RxState::Ring && view.theirs.state.returned_at() == Some(rx.cursor().head);
    if is_there() && lock::take_rx(conn).is_ok() {
        if is_there() {
            back_in_kernel(conn, fd);
        }
        lock::free(&rx.lock);
    }
}
