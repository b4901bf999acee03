//! One look at wherever the bytes come from now: kernel, border or ring.

#![expect(unsafe_code, reason = "receives into the program's buffers")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC};
use rdma_core::Reason;
use rdma_core::event::WaitFor;
use rdma_core::handshake::Route;
use rdma_core::layout::ConnView;
use rdma_core::ring::Consumer;
use rdma_core::slot::RxState;

use super::ends::{back_in_kernel, break_conn, take_break};
use super::{Step, publish};
use crate::conn::{Conn, NO_FINAL, SHUT_READ};
use crate::ops::{epoll, lock};
use crate::user::Buffers;
use crate::{errno, kernel, kick, real, relayed, resend, upgrade};

/// One look at wherever the bytes come from now.
pub(super) fn step(
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
    resend::service(conn, view, fd);
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
pub(in crate::ops) fn look(
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
                        return (broken_by(conn, view, fd, Reason::UnseenWriter), false);
                    }
                    if rx.state() == RxState::Armed {
                        return (Step::Empty, false);
                    }
                }
                // The sender took its switch back before this end saw it: it will not switch again.
                None if view.theirs.state.route() == Route::Retracted => back_in_kernel(conn, fd),
                None => {
                    match kernel_now(conn, fd, buffers, flags, usize::MAX).0 {
                        Step::End => {
                            if let Some(step) = end_before_switch(conn, view, fd) {
                                return (step, false);
                            }
                        }
                        // A switch may never be heard of.
                        Step::Empty if relayed::is_broken(view) => {
                            return (broken(conn, view, fd), false);
                        }
                        step => return (step, false),
                    }
                }
            },
            RxState::Draining => {
                let left = rx.kernel_left.load(Ordering::Relaxed);
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                let (step, got) = kernel_now(conn, fd, buffers, flags, most);
                if matches!(step, Step::End) {
                    return (broken_by(conn, view, fd, Reason::UnseenWriter), false);
                }
                if flags & MSG_PEEK != 0 && left == got as u64 && buffers.left() > 0 {
                    // The look goes on behind the border.
                    ring_now(conn, view, fd, buffers, flags, 1);
                }
                if flags & MSG_PEEK == 0 {
                    rx.kernel_left.store(left - got as u64, Ordering::Relaxed);
                    if left == got as u64 {
                        rx.set_state(RxState::Ring);
                        epoll::on_change(conn, fd);
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
fn end_before_switch(conn: &Conn, view: &ConnView, fd: c_int) -> Option<Step> {
    let far = &view.theirs.state;
    // Ends first: what was said before is then surely seen.
    let ended = far.ended_at().is_some();
    if far.is_switched() {
        return None;
    }
    if ended || !conn.is_relayed() {
        relayed::note_reset(conn, view, ended);
        let error = conn.take_error();
        return Some(if error == 0 {
            Step::End
        } else {
            Step::Error(error)
        });
    }
    if relayed::is_broken(view) {
        // Whether anything went by ring, nobody will ever say.
        return Some(broken(conn, view, fd));
    }
    // A switch may still be on its way over the link.
    if relayed::is_early(conn, view) {
        return Some(Step::Empty);
    }
    // Nobody can say whether these were all bytes.
    Some(broken_by(conn, view, fd, Reason::LinkTimeout))
}

/// What is told of a connection that is broken.
#[cold]
fn broken(conn: &Conn, view: &ConnView, fd: c_int) -> Step {
    match take_break(conn, view, fd) {
        0 => Step::End,
        error => Step::Error(error),
    }
}

/// This end breaks the connection; what is told of it.
#[cold]
fn broken_by(conn: &Conn, view: &ConnView, fd: c_int, reason: Reason) -> Step {
    break_conn(conn, view, reason);
    broken(conn, view, fd)
}

/// Takes from the kernel what is there now, at most `most` bytes; the step and the bytes.
pub(super) fn kernel_now(
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
        return (broken_by(conn, view, fd, Reason::RingCorrupt), false);
    };
    rx.set_cursor(&cursor);
    let end = returned.or(ended).or((last != NO_FINAL).then_some(last));
    if end.is_some_and(|end| end < cursor.tail) {
        return (broken_by(conn, view, fd, Reason::RingCorrupt), false);
    }
    if available == 0 {
        relayed::note_reset(conn, view, end == Some(cursor.head));
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
        if relayed::is_broken(view) {
            return (broken(conn, view, fd), false);
        }
        if last != NO_FINAL {
            // The far end has closed, but announced bytes that it never wrote.
            return (broken_by(conn, view, fd, Reason::RingCorrupt), false);
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
    // SO_RCVLOWAT or MSG_WAITALL, with MSG_PEEK: not yet enough to look at.
    let more_may_come = end.is_none()
        && conn.shut() & SHUT_READ == 0
        && view.theirs.state.broken().is_none()
        && view.mine.state.broken().is_none();
    if flags & MSG_PEEK != 0 && available < target {
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
    } else if buffers.is_suspect() {
        buffers.drain_suspect(&ring, &mut cursor, len, flags & MSG_PEEK != 0)
    } else if flags & MSG_PEEK != 0 {
        buffers.peek(&ring, &cursor, len)
    } else {
        buffers.drain(&ring, &mut cursor, len)
    };
    if result.is_err() {
        return (broken_by(conn, view, fd, Reason::RingCorrupt), false);
    }
    if looks_behind && len == available && buffers.left() > 0 && !kernel::is_at_mark(fd) {
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
