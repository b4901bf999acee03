//! Waiting until another look can send more.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::ring::Producer;
use rdma_core::slot::TxState;

use super::is_over;
use crate::conn::{Conn, SHUT_READ};
use crate::ops::{
    epoll,
    recv::{STALE, ask_kernel_at_times, on_kernel_event},
};
use crate::pins::Call;
use crate::wait::{self, Woken};
use crate::{control, kernel, lifecycle, relayed, tls};

/// Waits for space.
///
/// # Errors
/// EAGAIN (non-blocking or timed out) or EINTR.
pub(super) fn block(
    conn: &'static Conn,
    fd: c_int,
    dont_wait: bool,
    left: usize,
    call: &mut Call,
) -> Result<(), c_int> {
    let Some(view) = conn.view() else {
        return Ok(());
    };
    let slot = conn.slot();
    if dont_wait
        || (slot.meta.nonblocking.load(Ordering::Relaxed) != 0 && kernel::is_nonblocking(fd))
    {
        if leaves_for_a_timeout(conn, fd) {
            return Ok(());
        }
        epoll::want_space(conn);
        if ask_kernel_at_times(conn, view, fd) {
            return Ok(());
        }
        return Err(libc::EAGAIN);
    }
    if slot.tx.state() == TxState::Returning {
        return block_in_kernel(conn, view, fd, call);
    }
    let ring = Producer::of(view);
    // Not at the first free byte: a copy should be worth the wake-up.
    let enough = (left as u64).min(ring.capacity() / 4);
    let ready = || {
        let mut cursor = slot.tx.cursor();
        slot.tx.state() != TxState::Ring
            || ring
                .refresh(&mut cursor)
                .map_or(true, |free| free >= enough)
            || is_over(conn, view)
    };
    let far = wait::far_cpu(view);
    if wait::glance(far, wait::Pace::Stream, ready) {
        return Ok(());
    }
    let started = control::monotonic_ns();
    if wait::spin(far, wait::Pace::Stream, ready) {
        return Ok(());
    }
    if leaves_for_a_timeout(conn, fd) || !call.note(conn) {
        return Ok(());
    }
    if lifecycle::is_stale(conn, fd) {
        return Err(STALE);
    }
    if kernel::is_nonblocking(fd) {
        slot.meta.nonblocking.store(1, Ordering::Relaxed);
        epoll::want_space(conn);
        return Err(libc::EAGAIN);
    }
    let deadline = call.gives_up_at(conn, fd, libc::SO_SNDTIMEO, started);
    let interrupts = tls::interrupts();
    // A far end that only shut its sending side down still reads: ask for errors and hang-up only,
    // unless its fate is not known yet.
    let known = view.theirs.state.ended_at().is_some()
        || conn.shut() & SHUT_READ != 0
        || relayed::is_put_off(conn);
    let events = if known { 0 } else { libc::POLLRDHUP };
    match wait::sleep(conn, view, fd, WaitFor::Space, events, deadline, ready) {
        Woken::Again => Ok(()),
        Woken::Kernel(_) if call.descriptor(conn) != Some(fd) => Ok(()),
        Woken::Kernel(bits) => {
            on_kernel_event(conn, view, fd, bits);
            // FIN from an end that never said one: it was killed, and nobody reads the ring. Of a relayed one the
            // backend says that.
            let died = bits & libc::POLLRDHUP != 0
                && view.theirs.state.ended_at().is_none()
                && !relayed::is_early(conn, view);
            if bits & (libc::POLLERR | libc::POLLHUP) != 0 || died {
                slot.tx.set_state(TxState::Done);
            }
            Ok(())
        }
        Woken::Timeout => Err(libc::EAGAIN),
        Woken::Interrupted
            if call.begun || deadline.is_some() || tls::interrupts() != interrupts =>
        {
            Err(libc::EINTR)
        }
        Woken::Interrupted => Ok(()),
    }
}

/// A ring does not measure how long its far end reads nothing (TCP_USER_TIMEOUT): where that is to be measured,
/// what does not fit goes by the kernel. True: the direction has left its ring.
#[cold]
fn leaves_for_a_timeout(conn: &'static Conn, fd: c_int) -> bool {
    let tx = &conn.slot().tx;
    if tx.state() != TxState::Ring || !kernel::has_user_timeout(fd) {
        return false;
    }
    lifecycle::to_kernel(conn, fd, Reason::SocketOption);
    tx.state() != TxState::Ring
}

/// Waits until the kernel takes more of what must go before.
///
/// # Errors
/// As [`block`].
fn block_in_kernel(
    conn: &'static Conn,
    view: &ConnView,
    fd: c_int,
    call: &mut Call,
) -> Result<(), c_int> {
    if kernel::is_nonblocking(fd) {
        return Err(libc::EAGAIN);
    }
    if !call.note(conn) {
        return Ok(());
    }
    let started = control::monotonic_ns();
    let deadline = call.gives_up_at(conn, fd, libc::SO_SNDTIMEO, started);
    let interrupts = tls::interrupts();
    let done = || conn.slot().tx.state() != TxState::Returning;
    match wait::sleep(
        conn,
        view,
        fd,
        WaitFor::Space,
        libc::POLLOUT,
        deadline,
        done,
    ) {
        Woken::Again | Woken::Kernel(_) => Ok(()),
        Woken::Timeout => Err(libc::EAGAIN),
        Woken::Interrupted
            if call.begun || deadline.is_some() || tls::interrupts() != interrupts =>
        {
            Err(libc::EINTR)
        }
        Woken::Interrupted => Ok(()),
    }
}
