//! Sending: to the kernel, across the switch, to the ring.

#![expect(unsafe_code, reason = "raises SIGPIPE as the kernel would")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{
    MSG_CONFIRM, MSG_DONTROUTE, MSG_DONTWAIT, MSG_EOR, MSG_MORE, MSG_NOSIGNAL, MSG_OOB,
    MSG_ZEROCOPY,
};
use rdma_core::Reason;
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::ring::{Consumer, Producer, TxCursor};
use rdma_core::slot::TxState;

use super::lock;
use super::recv::{STALE, break_conn, on_kernel_event};
use crate::conn::{Conn, SHUT_READ, conn};
use crate::downgrade::{self, Resent};
use crate::fds::{self, Entry};
use crate::pins::{self, Call};
use crate::user::Buffers;
use crate::wait::{self, Woken};
use crate::{control, errno, kernel, kick, lifecycle, real, relayed, tls, upgrade};

/// Flags that change nothing for a ring.
const RING_FLAGS: c_int =
    MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_EOR | MSG_CONFIRM | MSG_DONTROUTE;

/// Sends on connection `index`, which `fd` named when the caller looked. `native` is the libc call
/// that the program made.
#[inline(always)]
pub(crate) fn send(
    fd: c_int,
    entry: Entry,
    index: u32,
    buffers: &Buffers,
    flags: c_int,
    native: impl Fn() -> isize,
) -> isize {
    let conn = conn(index);
    let mut fast = *buffers;
    if flags & !RING_FLAGS == 0
        && let Some(view) = conn.view()
        && let Some(len) = to_ring(conn, view, fd, entry, &mut fast)
    {
        return len;
    }
    // Only what is passed on has to stand in memory.
    let (mut rest, native) = (*buffers, native);
    slow(fd, entry, conn, &mut rest, flags, &native)
}

/// The fast path: all bytes fit into the ring. `None`: anything else, and nothing was sent.
#[inline(always)]
fn to_ring(
    conn: &Conn,
    view: &ConnView,
    fd: c_int,
    entry: Entry,
    buffers: &mut Buffers,
) -> Option<isize> {
    let tx = &conn.slot().tx;
    if tx.state() != TxState::Ring || tx.lock.try_lock(tls::token()).is_err() {
        return None;
    }
    tls::took_lock();
    let left = buffers.left();
    let mut sent = false;
    if fds::lookup(fd) == entry && tx.state() == TxState::Ring && left > 0 && !is_over(conn, view) {
        let ring = Producer::of(view);
        let mut cursor = tx.cursor();
        cursor.hint(conn.slot().rx.noted_ack());
        let fits = ring.free(&cursor) >= left as u64
            || ring
                .refresh(&mut cursor)
                .is_ok_and(|free| free >= left as u64);
        if fits && buffers.can_fill(left) {
            buffers.fill(&ring, &mut cursor, left);
            publish(conn, view, &ring, &cursor);
            sent = true;
        }
    }
    lock::free(&tx.lock);
    if !sent {
        return None;
    }
    kick::after_publish(conn, view, WaitFor::Data);
    isize::try_from(left).ok()
}

#[inline(always)]
pub(super) fn publish(conn: &Conn, view: &ConnView, ring: &Producer, cursor: &TxCursor) {
    conn.slot().tx.set_cursor(cursor);
    ring.publish(cursor, Consumer::of(view).published(), tls::cpu());
}

/// Whether the ring leads nowhere any more.
#[inline(always)]
pub(super) fn is_over(conn: &Conn, view: &ConnView) -> bool {
    view.theirs.state.is_reader_gone()
        || view.theirs.state.broken().is_some()
        || view.mine.state.broken().is_some()
        || conn.pending_error.load(Ordering::Relaxed) != 0
        || conn.is_dead()
}

/// What one look gave.
enum Step {
    /// Call the kernel as the program did.
    Native,
    /// Some bytes were sent.
    Moved,
    /// An errno.
    Error(c_int),
    /// No space now.
    Full,
    /// The kernel takes no more now of what must go before.
    KernelFull,
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
    if let Some(result) = unservable(conn, fd, buffers, flags, native) {
        return result;
    }
    if buffers.is_refused(fd) {
        return errno::fail(libc::EFAULT);
    }
    let mut call = Call::new(fd, entry);
    let sent = deliver(conn, fd, buffers, flags, &mut call, native);
    call.end(conn);
    sent
}

/// Sends until nothing is left, or no more can be sent.
fn deliver(
    conn: &'static Conn,
    named: c_int,
    buffers: &mut Buffers,
    flags: c_int,
    call: &mut Call,
    native: &dyn Fn() -> isize,
) -> isize {
    let dont_wait = flags & MSG_DONTWAIT != 0;
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
        match step(conn, fd, buffers, dont_wait) {
            // The kernel says what happens to the rest at the program's next call.
            Step::Native if buffers.done() > 0 => {
                if conn.slot().tx.state() == TxState::Returned {
                    rest_to_kernel(conn, fd, buffers, flags);
                }
                return count(buffers);
            }
            // A signal that came between the sleep and the kernel's own.
            Step::Native if slept && tls::interrupts() != interrupts => {
                return errno::fail(libc::EINTR);
            }
            Step::Native if fd != named => return to_kept(conn, fd, buffers, flags),
            Step::Native => match to_kernel(conn, fd, native) {
                Some(result) => return result,
                None => continue,
            },
            Step::Moved if buffers.left() == 0 => return count(buffers),
            Step::Moved => continue,
            // A bad address is said again by the next call that gives it.
            Step::Error(libc::EFAULT) if buffers.done() > 0 => return count(buffers),
            Step::Error(error) if buffers.done() > 0 => {
                conn.defer_error(error);
                return count(buffers);
            }
            Step::Error(error) => {
                if error == libc::EPIPE && flags & MSG_NOSIGNAL == 0 {
                    raise_sigpipe();
                }
                return errno::fail(error);
            }
            Step::Full | Step::KernelFull => {}
        }
        match block(conn, fd, dont_wait, buffers.left(), call) {
            Ok(()) => slept = true,
            Err(STALE) if buffers.done() == 0 => return native(),
            Err(_) if buffers.done() > 0 => return count(buffers),
            Err(error) => return errno::fail(error),
        }
    }
}

/// In the calling thread, as the kernel does.
pub(super) fn raise_sigpipe() {
    // SAFETY: no memory.
    unsafe { libc::raise(libc::SIGPIPE) };
}

fn count(buffers: &Buffers) -> isize {
    isize::try_from(buffers.done()).unwrap_or(isize::MAX)
}

/// Calls that never go to a ring: out-of-band data, zero-copy, nothing to send.
fn unservable(
    conn: &'static Conn,
    fd: c_int,
    buffers: &Buffers,
    flags: c_int,
    native: &dyn Fn() -> isize,
) -> Option<isize> {
    if flags & (MSG_OOB | MSG_ZEROCOPY) != 0 {
        // The urgent mark and the notification are the kernel's: the stream goes back there first.
        let reason = if flags & MSG_OOB != 0 {
            Reason::OutOfBand
        } else {
            Reason::ZeroCopy
        };
        lifecycle::to_kernel(conn, fd, reason);
        return Some(native());
    }
    if buffers.left() == 0 {
        // The kernel still reports errors for an empty send, and so do we.
        let error = conn.take_error();
        if error != 0 {
            return Some(errno::fail(error));
        }
        return Some(native());
    }
    None
}

/// The program's own call, counted. `None`: the direction was switched meanwhile; look again.
pub(super) fn to_kernel(
    conn: &'static Conn,
    fd: c_int,
    native: &dyn Fn() -> isize,
) -> Option<isize> {
    let tx = &conn.slot().tx;
    tx.inside.enter();
    let state = tx.state();
    if !matches!(state, TxState::Kernel | TxState::Done | TxState::Returned) {
        tx.inside.leave();
        return None;
    }
    let sent = pins::inside(conn, fd, native);
    tx.inside.leave();
    let sent = sent?;
    if sent > 0 {
        kick::went_by_kernel();
    }
    if let Ok(bytes) = usize::try_from(sent)
        && state != TxState::Done
        && fds::lookup(fd) == conn.entry()
    {
        tx.tcp_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        upgrade::note(conn, fd, bytes);
    }
    Some(sent)
}

/// The program's call, which began with a descriptor that another thread has closed.
fn to_kept(conn: &Conn, kept: c_int, buffers: &mut Buffers, flags: c_int) -> isize {
    let (mut parts, used) = buffers.rest::<64>(usize::MAX);
    // SAFETY: zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = used;
    // SAFETY: the parts are the program's buffers.
    let sent = unsafe { real::sendmsg(kept, &raw const message, flags) };
    if let Ok(bytes) = u64::try_from(sent) {
        let total = &conn.slot().tx.tcp_bytes;
        total.fetch_add(bytes, Ordering::Relaxed);
    }
    sent
}

/// The rest of a call whose first bytes went to the ring, which the stream has left.
fn rest_to_kernel(conn: &Conn, fd: c_int, buffers: &mut Buffers, flags: c_int) {
    while buffers.left() > 0 {
        let (mut parts, used) = buffers.rest::<64>(usize::MAX);
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = used;
        let before = errno::get();
        // SAFETY: the parts are the program's buffers.
        let sent = unsafe { real::sendmsg(fd, &raw const message, flags | MSG_NOSIGNAL) };
        let Ok(bytes) = usize::try_from(sent) else {
            let error = errno::get();
            errno::set(before);
            // What the kernel says once only; all else it says again.
            if matches!(
                error,
                libc::ECONNRESET | libc::ETIMEDOUT | libc::EHOSTUNREACH
            ) {
                conn.defer_error(error);
            }
            return;
        };
        let total = &conn.slot().tx.tcp_bytes;
        total.fetch_add(bytes as u64, Ordering::Relaxed);
        buffers.skip(bytes);
    }
}

/// Whether the direction is on the ring, switching it now if the far end has armed: for calls whose bytes
/// do not come from the program's memory.
pub(super) fn is_on_ring(conn: &'static Conn, fd: c_int) -> bool {
    let Some(view) = conn.view() else {
        return false;
    };
    downgrade::service(conn, view, fd);
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
pub(super) fn room(conn: &Conn) -> usize {
    let Some(view) = conn.view() else { return 0 };
    let mut cursor = conn.slot().tx.cursor();
    let free = Producer::of(view).refresh(&mut cursor).unwrap_or(0);
    usize::try_from(free).unwrap_or(usize::MAX)
}

/// What keeps a call that moves its bytes by itself from sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hindrance {
    error: c_int,
    /// Not only for now.
    last: bool,
}

impl Hindrance {
    /// No errno: the descriptor names another file by now.
    pub(super) const fn is_stale(self) -> bool {
        self.error == STALE
    }

    /// The errno for the program, as after any send: behind bytes that were sent the error waits for
    /// the next call, else EPIPE comes with its signal.
    pub(super) fn tell(self, conn: &Conn, sent: bool) -> c_int {
        if self.last && sent {
            conn.defer_error(self.error);
        } else if self.error == libc::EPIPE {
            raise_sigpipe();
        }
        self.error
    }
}

/// Waits for room for `left` bytes, or a good part of the ring. False: the direction is not on the ring
/// any more.
///
/// # Errors
/// What a send would have failed with.
pub(super) fn wait_for_room(
    conn: &'static Conn,
    fd: c_int,
    entry: Entry,
    left: usize,
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

/// One look at wherever the bytes go now.
fn step(conn: &'static Conn, fd: c_int, buffers: &mut Buffers, dont_wait: bool) -> Step {
    let tx = &conn.slot().tx;
    let Some(view) = conn.view() else {
        return Step::Native;
    };
    if lock::take_tx(conn).is_err() {
        return Step::Error(libc::EINTR);
    }
    let step = look(conn, view, fd, buffers, dont_wait);
    lock::free(&tx.lock);
    if matches!(step, Step::Moved) {
        kick::after_publish(conn, view, WaitFor::Data);
    }
    step
}

/// As [`step`], under the lock.
fn look(
    conn: &'static Conn,
    view: &ConnView,
    fd: c_int,
    buffers: &mut Buffers,
    dont_wait: bool,
) -> Step {
    let tx = &conn.slot().tx;
    if tx.state() != TxState::Kernel {
        if view.theirs.state.broken().is_some() || view.mine.state.broken().is_some() {
            return Step::Error(relayed::errno_of_break(view));
        }
        let error = conn.take_error();
        if error != 0 {
            return Step::Error(error);
        }
        if conn.is_dead() {
            return Step::Error(libc::EPIPE);
        }
    }
    match tx.state() {
        // What is in the kernel stays there if the ring is of no use any more.
        TxState::Kernel if view.theirs.state.is_armed() && !relayed::is_broken(view) => {
            if !upgrade::try_switch(conn, view, fd, dont_wait) {
                return Step::Native;
            }
        }
        TxState::Kernel | TxState::Switching | TxState::Done | TxState::Returned => {
            return Step::Native;
        }
        TxState::Returning => return resend(conn, view, fd),
        TxState::Ring => {}
    }
    if view.theirs.state.is_reader_gone() {
        if downgrade::begin_resending(conn, view) {
            return resend(conn, view, fd);
        }
        if view.mine.state.broken().is_some() {
            return Step::Error(libc::ECONNRESET);
        }
        // The kernel answers: its socket is closed as well, or serves somebody without a ring.
        tx.set_state(TxState::Done);
        return Step::Native;
    }
    let ring = Producer::of(view);
    let mut cursor = tx.cursor();
    let Ok(free) = ring.refresh(&mut cursor) else {
        break_conn(conn, view, Reason::RingCorrupt);
        return Step::Error(libc::ECONNRESET);
    };
    tx.set_cursor(&cursor);
    let len = buffers
        .left()
        .min(usize::try_from(free).unwrap_or(usize::MAX));
    if len == 0 {
        return Step::Full;
    }
    let len = buffers.sound_to_fill(len);
    if len == 0 {
        return Step::Error(libc::EFAULT);
    }
    buffers.fill(&ring, &mut cursor, len);
    publish(conn, view, &ring, &cursor);
    Step::Moved
}

/// As [`look`], for what the far end left in the ring.
fn resend(conn: &'static Conn, view: &ConnView, fd: c_int) -> Step {
    match downgrade::resend(conn, view, fd) {
        Resent::All => {
            super::epoll::on_change(conn, fd);
            Step::Native
        }
        Resent::Full => {
            super::epoll::on_change(conn, fd);
            Step::KernelFull
        }
        Resent::Failed(error) => Step::Error(error),
    }
}

/// Waits for space.
///
/// # Errors
/// EAGAIN (non-blocking or timed out) or EINTR.
fn block(
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
        super::epoll::want_space(conn);
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
    if !call.note(conn) {
        return Ok(());
    }
    if lifecycle::is_stale(conn, fd) {
        return Err(STALE);
    }
    if kernel::is_nonblocking(fd) {
        slot.meta.nonblocking.store(1, Ordering::Relaxed);
        super::epoll::want_space(conn);
        return Err(libc::EAGAIN);
    }
    let deadline = *call
        .deadline
        .get_or_insert_with(|| kernel::timeout_ns(fd, libc::SO_SNDTIMEO).map(|ns| started + ns));
    let interrupts = tls::interrupts();
    // A far end that only shut its sending side down still reads: ask for errors and hang-up only,
    // unless its fate is not known yet.
    let known =
        view.theirs.state.ended_at().is_some() || conn.shut() & SHUT_READ != 0 || conn.is_relayed();
    let events = if known { 0 } else { libc::POLLRDHUP };
    match wait::sleep(conn, view, fd, WaitFor::Space, events, deadline, ready) {
        Woken::Again => Ok(()),
        Woken::Kernel(_) if call.descriptor(conn) != Some(fd) => Ok(()),
        Woken::Kernel(bits) => {
            on_kernel_event(conn, view, fd, bits);
            // FIN from an end that never said one: it was killed, and nobody reads the ring.
            let died = bits & libc::POLLRDHUP != 0 && view.theirs.state.ended_at().is_none();
            if bits & (libc::POLLERR | libc::POLLHUP) != 0 || died {
                slot.tx.set_state(TxState::Done);
            }
            Ok(())
        }
        Woken::Timeout => Err(libc::EAGAIN),
        Woken::Interrupted if deadline.is_some() || tls::interrupts() != interrupts => {
            Err(libc::EINTR)
        }
        Woken::Interrupted => Ok(()),
    }
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
    let deadline = *call
        .deadline
        .get_or_insert_with(|| kernel::timeout_ns(fd, libc::SO_SNDTIMEO).map(|ns| started + ns));
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
        Woken::Interrupted if deadline.is_some() || tls::interrupts() != interrupts => {
            Err(libc::EINTR)
        }
        Woken::Interrupted => Ok(()),
    }
}

/// Ends the direction: no byte after what was sent so far. The kernel's FIN or RST follows.
///
/// `fd` names the socket, if anything still does: what the far end left in the ring goes first.
pub(crate) fn end(conn: &'static Conn, fd: Option<c_int>) {
    let Some(view) = conn.view() else { return };
    let tx = &conn.slot().tx;
    let mut locked = false;
    for _ in 0..2 {
        if let Some(fd) = fd {
            downgrade::flush(conn, view, fd);
        }
        locked = lock::take_tx(conn).is_ok();
        // Also if nothing ever went to the ring: FIN without an announced end means a killed program.
        view.mine.state.end(tx.cursor().tail);
        // A receiver that left meanwhile did not know of the end, and counts on us; so does a backend that
        // has made us ask where it left.
        let counts = downgrade::is_wanted(conn, view) || relayed::has_to_wait(conn, view);
        if fd.is_none() || !locked || !counts {
            break;
        }
        lock::free(&tx.lock);
        locked = false;
    }
    tx.set_state(TxState::Done);
    if locked {
        lock::free(&tx.lock);
    }
    kick::wake_all(conn, view);
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
        Ok(free) => free >= ring.capacity() / 3 || is_over(conn, view),
        Err(_) => true,
    })
}
