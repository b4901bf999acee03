//! poll and select over kernel and ring descriptors alike.

#![expect(
    unsafe_code,
    reason = "arrays and sets of the program, and libc's ppoll"
)]
#![expect(
    clippy::cast_ptr_alignment,
    reason = "memory from mmap is aligned to a page"
)]

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::{
    POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, POLLRDHUP, fd_set, pollfd, sigset_t,
    timespec,
};
use rdma_core::event::WaitFor;
use rdma_core::layout::ConnView;
use rdma_core::ring::Consumer;
use rdma_core::slot::{RxState, TxState};

use super::{recv, send};
use crate::conn::{Conn, NO_FINAL, SHUT_READ, conn};
use crate::fds::{self};
use crate::wait::{self, Sleeper};
use crate::{control, downgrade, errno, kernel, probe, real, relayed, upgrade};

/// POLLIN and its synonym.
const READ_BITS: i16 = POLLIN | 0x40;
/// POLLOUT and its synonyms.
const WRITE_BITS: i16 = POLLOUT | 0x100 | 0x200;

/// What a socket with space reports: TCP knows no bands.
const SPACE_BITS: i16 = POLLOUT | 0x100;
/// What a socket reports for good after a reset.
const RESET_BITS: i16 = READ_BITS | SPACE_BITS | POLLRDHUP | POLLHUP;

/// Entries handled without asking for memory.
const ON_STACK: usize = 128;

/// Longest sleep while some far end cannot be relied on to ring.
const BLIND_NS: u64 = 8_000_000;

/// `ppoll` with a timeout in nanoseconds and the signal mask as it is.
///
/// # Errors
/// The errno.
pub(crate) fn kernel_poll(entries: &mut [pollfd], timeout_ns: Option<u64>) -> Result<usize, c_int> {
    kernel_ppoll(entries, timeout_ns, core::ptr::null())
}

fn kernel_ppoll(
    entries: &mut [pollfd],
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> Result<usize, c_int> {
    let time = timeout_ns.map(to_timespec);
    let time = time.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let before = errno::get();
    // SAFETY: the entries are a slice; time and mask are null or valid.
    let rc = unsafe {
        real::ppoll(
            entries.as_mut_ptr(),
            entries.len() as libc::nfds_t,
            time,
            mask,
        )
    };
    match usize::try_from(rc) {
        Ok(count) => Ok(count),
        Err(_) => {
            let error = errno::get();
            errno::set(before);
            Err(error)
        }
    }
}

/// Nanoseconds as a timespec.
pub(crate) fn to_timespec(ns: u64) -> timespec {
    timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    }
}

/// When a wait of so many nanoseconds from now ends. One of none has ended, whatever the clock says.
pub(crate) fn deadline_in(ns: u64) -> u64 {
    if ns == 0 {
        0
    } else {
        control::monotonic_ns().saturating_add(ns)
    }
}

/// Whether a wait that ends then has ended.
pub(crate) fn is_past(deadline: Option<u64>) -> bool {
    deadline.is_some_and(|at| at == 0 || at <= control::monotonic_ns())
}

/// A timespec as nanoseconds; `None` if it is no time.
pub(crate) fn from_timespec(time: timespec) -> Option<u64> {
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u64::try_from(time.tv_nsec)
        .ok()
        .filter(|&nanos| nanos < 1_000_000_000)?;
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Whether readiness of the connection is more than the kernel knows.
#[inline]
pub(crate) fn involves_ring(conn: &Conn) -> bool {
    if conn.view().is_none() {
        return false;
    }
    let slot = conn.slot();
    !matches!(
        slot.rx.state(),
        RxState::Kernel | RxState::Done | RxState::Returned
    ) || matches!(slot.tx.state(), TxState::Ring | TxState::Returning)
}

/// The readiness of a connection that involves a ring, given what the kernel says of the socket.
pub(crate) fn merge(conn: &Conn, fd: c_int, kernel_bits: i16) -> i16 {
    let Some(view) = conn.view() else {
        return kernel_bits;
    };
    let slot = conn.slot();
    let mut bits = kernel_bits;
    settle(conn_static(conn), view, fd);
    let lowat = u64::from(slot.rx.lowat.load(Ordering::Relaxed).max(1));
    // SO_RCVLOWAT counts bytes on both sides of a border.
    if slot.rx.state() == RxState::Draining
        && lowat > 1
        && recv::readable(conn_static(conn), fd).is_some_and(|there| there >= lowat)
    {
        bits |= READ_BITS;
    }
    if slot.rx.state() == RxState::Ring {
        if bits & (READ_BITS | POLLRDHUP | POLLERR | POLLHUP) != 0 {
            recv::on_kernel_event(conn, view, fd, bits);
            if relayed::put_off_until(conn, view).is_some() {
                bits &= !(POLLRDHUP | POLLERR | POLLHUP);
            }
        }
        let cursor = slot.rx.cursor();
        let mut fresh = cursor;
        let mut available = Consumer::of(view).refresh(&mut fresh).unwrap_or(1);
        if lowat > 1 {
            available = recv::readable(conn_static(conn), fd).unwrap_or(available);
        }
        let over = view.theirs.state.ended_at() == Some(fresh.head)
            || conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
            || conn.shut() & SHUT_READ != 0;
        bits &= !READ_BITS;
        if available >= lowat || over {
            bits |= READ_BITS;
        }
        // The far end says its end before its kernel sends the FIN.
        if conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
            || view.theirs.state.ended_at().is_some()
        {
            bits |= POLLRDHUP;
        }
    }
    if let Some(writable) = send::writable(conn) {
        bits &= !WRITE_BITS;
        if writable || kernel_bits & (POLLERR | POLLHUP) != 0 {
            bits |= SPACE_BITS;
        }
    }
    let broken = view.theirs.state.broken().is_some() || view.mine.state.broken().is_some();
    if broken || conn.pending_error.load(Ordering::Relaxed) != 0 {
        bits |= RESET_BITS | POLLERR;
    } else if conn.is_dead() {
        bits |= RESET_BITS;
    }
    bits
}

/// Follows what the far end has done to the routes of both directions; true if that changed something.
fn settle(conn: &'static Conn, view: &ConnView, fd: c_int) -> bool {
    let slot = conn.slot();
    let before = (slot.rx.state(), slot.tx.state());
    downgrade::service(conn, view, fd);
    upgrade::notice_switch(conn, view, fd);
    recv::notice_return(conn, view, fd);
    before != (slot.rx.state(), slot.tx.state())
}

fn conn_static(it: &Conn) -> &'static Conn {
    conn(it.index())
}

/// What the kernel is to be asked about a connection that involves a ring.
fn kernel_interest(conn: &Conn, events: i16) -> i16 {
    let mut ask = events;
    if conn.slot().tx.state() == TxState::Returning {
        ask |= POLLOUT;
    }
    if conn.slot().tx.state() == TxState::Ring {
        ask &= !WRITE_BITS;
    }
    if conn.slot().rx.state() == RxState::Ring
        && conn.final_tail.load(Ordering::Relaxed) != NO_FINAL
    {
        // Its end is known; asking again would only wake us.
        ask &= !(READ_BITS | POLLRDHUP);
    }
    ask
}

/// poll and ppoll. `None`: no descriptor involves a ring (the caller asks the kernel, by
/// [`poll_in_kernel`]).
///
/// # Safety
/// `fds` points to `count` entries that can be read.
pub(crate) unsafe fn poll(
    fds: *mut pollfd,
    count: usize,
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> Option<c_int> {
    if count == 0 {
        return None;
    }
    // SAFETY: by contract.
    let entries = unsafe { core::slice::from_raw_parts(fds, count) };
    let ours = entries.iter().any(|entry| ring_conn(entry.fd).is_some());
    // SAFETY: by contract.
    let tell = |answers: &[pollfd]| unsafe { tell(fds, answers) };
    ours.then(|| poll_mixed(entries, timeout_ns, mask, tell))
}

/// Gives the program its `revents`; false if they cannot be written.
///
/// # Safety
/// `fds` points to as many entries.
unsafe fn tell(fds: *mut pollfd, answers: &[pollfd]) -> bool {
    answers.iter().enumerate().all(|(i, answer)| {
        // SAFETY: by contract an entry.
        let place = unsafe { &raw mut (*fds.add(i)).revents };
        // SAFETY: a word of the program's entry, which the kernel would overwrite.
        unsafe { probe::write(place, answer.revents) }
    })
}

/// Whether poll's arguments can be read; if not, the kernel says so.
pub(crate) fn is_sound(fds: *const pollfd, count: usize, mask: *const sigset_t) -> bool {
    count <= ENTRIES_MAX
        && probe::readable(fds.cast(), count * size_of::<pollfd>())
        && is_mask(mask)
}

/// Whether a signal mask is none or can be read.
pub(crate) fn is_mask(mask: *const sigset_t) -> bool {
    mask.is_null() || probe::readable(mask.cast(), KERNEL_SIGSET)
}

/// Bytes that the kernel reads of a signal mask.
const KERNEL_SIGSET: usize = 8;

/// Descriptors that we look at in one call; there cannot be more.
const ENTRIES_MAX: usize = 1 << 20;

/// The connection behind `fd`, if its readiness involves a ring.
fn ring_conn(fd: c_int) -> Option<&'static Conn> {
    let conn = conn(fds::lookup(fd).as_conn()?);
    involves_ring(conn).then_some(conn)
}

/// Asks the kernel alone, for descriptors none of which involves a ring. Meanwhile the caller counts
/// as a reader inside the kernel, so that no other thread arms a direction that it waits for.
///
/// # Safety
/// As [`poll`].
pub(crate) unsafe fn poll_in_kernel(
    fds: *mut pollfd,
    count: usize,
    native: impl Fn() -> c_int,
) -> c_int {
    if count == 0 {
        return native();
    }
    // SAFETY: by contract.
    let entries = unsafe { core::slice::from_raw_parts(fds.cast_const(), count) };
    let result = as_reader(&mut entries.iter().map(|entry| entry.fd), &native);
    if result > 0 {
        // SAFETY: by contract.
        unsafe { delivered(fds, count) };
    }
    result
}

/// Answer of [`poll_in_kernel`] and [`select_in_kernel`]: some direction was armed meanwhile.
pub(crate) const LOOK_AGAIN: c_int = c_int::MIN;

/// As [`poll_in_kernel`], for select.
///
/// # Safety
/// As [`select`].
pub(crate) unsafe fn select_in_kernel(
    count: c_int,
    sets: [*mut fd_set; 3],
    native: impl Fn() -> c_int,
) -> c_int {
    let mut asked = (0..count.min(1 << 20)).filter(|&fd| {
        usize::try_from(fd).is_ok_and(|fd| {
            // SAFETY: fd < count.
            (0..3).any(|i| unsafe { is_set(sets[i], fd) })
        })
    });
    let result = as_reader(&mut asked, &native);
    if result > 0 {
        // SAFETY: by contract.
        unsafe { delivered_sets(count, sets) };
    }
    result
}

/// Runs `native` with the calling thread counted as a reader of every connection among `fds`; sets among
/// them are told that somebody watches them. The connections are remembered, because other threads may
/// close the descriptors meanwhile.
fn as_reader(fds: &mut dyn Iterator<Item = c_int>, native: &dyn Fn() -> c_int) -> c_int {
    let mut counted = [0u16; READERS];
    let mut used = 0;
    let mut armed = false;
    let mut complete = true;
    for fd in fds {
        let entry = fds::lookup(fd);
        if entry.as_epoll().is_some() {
            super::epoll::mark_polled(fd);
        }
        let Some(index) = entry.as_conn() else {
            continue;
        };
        match (counted.get_mut(used), u16::try_from(index)) {
            (Some(place), Ok(number)) => {
                *place = number;
                used += 1;
                conn(index).slot().rx.inside.enter();
                armed |= involves_ring(conn(index));
            }
            _ => complete = complete && conn(index).view().is_none(),
        }
    }
    if !complete {
        // Too many to count: those beyond must not be armed by others while we sleep.
        SLEEPERS_UNCOUNTED.fetch_add(1, Ordering::SeqCst);
    }
    let result = if armed { LOOK_AGAIN } else { native() };
    if !complete {
        SLEEPERS_UNCOUNTED.fetch_sub(1, Ordering::SeqCst);
    }
    for number in counted.iter().take(used) {
        conn(u32::from(*number)).slot().rx.inside.leave();
    }
    result
}

/// Connections that one waiting call is counted in.
const READERS: usize = 1024;

/// Waiting calls on more connections than are counted; while there are any, nothing is armed.
static SLEEPERS_UNCOUNTED: AtomicU32 = AtomicU32::new(0);

/// Whether arming must wait because some sleeping call is not counted.
pub(crate) fn has_uncounted_sleepers() -> bool {
    SLEEPERS_UNCOUNTED.load(Ordering::SeqCst) != 0
}

/// Whether a descriptor in the sets involves a ring.
///
/// # Safety
/// As [`select`].
unsafe fn any_ring(count: c_int, sets: [*mut fd_set; 3]) -> bool {
    (0..usize::try_from(count).unwrap_or(0)).any(|fd| {
        c_int::try_from(fd).is_ok_and(|number| ring_conn(number).is_some())
            // SAFETY: fd < count.
            && (0..3).any(|i| unsafe { is_set(sets[i], fd) })
    })
}

/// The program has been told the readiness of these descriptors, through us.
///
/// # Safety
/// As [`poll`].
unsafe fn delivered(fds: *const pollfd, count: usize) {
    // SAFETY: by contract.
    for entry in unsafe { core::slice::from_raw_parts(fds, count) } {
        if entry.revents != 0
            && let Some(index) = fds::lookup(entry.fd).as_conn()
        {
            conn(index)
                .slot()
                .meta
                .delivered
                .store(1, Ordering::Relaxed);
        }
    }
}

fn poll_mixed(
    entries: &[pollfd],
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
    tell: impl Fn(&[pollfd]) -> bool,
) -> c_int {
    let finish = |result: c_int, answers: &[pollfd]| {
        if result < 0 || tell(answers) {
            return result;
        }
        errno::set(libc::EFAULT);
        -1
    };
    let deadline = timeout_ns.map(deadline_in);
    if entries.len() < ON_STACK {
        let mut copy = [pollfd {
            fd: -1,
            events: 0,
            revents: 0,
        }; ON_STACK];
        let result = poll_with(entries, &mut copy, deadline, mask);
        return finish(result, &copy[..entries.len()]);
    }
    let bytes = (entries.len() + 1) * size_of::<pollfd>();
    let Ok(region) = frontend_drv::memory::reserve(bytes) else {
        errno::set(libc::ENOMEM);
        return -1;
    };
    // SAFETY: fresh zero memory of that size, aligned to a page.
    let copy = unsafe {
        core::slice::from_raw_parts_mut(region.base().as_ptr().cast::<pollfd>(), entries.len() + 1)
    };
    let result = poll_with(entries, copy, deadline, mask);
    let result = finish(result, &copy[..entries.len()]);
    // SAFETY: the copy is not used any more.
    unsafe { frontend_drv::memory::unmap(region) };
    result
}

/// Waits for `entries`; their answers are then the `revents` of `copy`, which is one longer.
fn poll_with(
    entries: &[pollfd],
    copy: &mut [pollfd],
    deadline: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    let bell = entries.len();
    let mut spun = false;
    super::epoll::refresh_watched();
    loop {
        let ring_ready = prepare(entries, copy);
        let at_once = ring_ready || !spun || is_past(deadline);
        let result = if at_once {
            // The signal mask belongs to the wait: with something ready the kernel never applies it.
            let last = !ring_ready && is_past(deadline);
            let mask = if last { mask } else { core::ptr::null() };
            kernel_ppoll(&mut copy[..bell], Some(0), mask)
        } else {
            sleep(entries, copy, deadline, mask)
        };
        if let Err(error) = result {
            errno::set(error);
            return -1;
        }
        let ready = collect(entries, copy);
        if ready > 0 || is_past(deadline) {
            return c_int::try_from(ready).unwrap_or(c_int::MAX);
        }
        if !spun {
            spun = true;
            spin(entries);
        }
    }
}

/// Writes what the kernel is to be asked into `copy`; true if some ring is ready already.
fn prepare(entries: &[pollfd], copy: &mut [pollfd]) -> bool {
    let mut ready = false;
    for (entry, ask) in entries.iter().zip(copy.iter_mut()) {
        *ask = pollfd {
            fd: entry.fd,
            events: entry.events,
            revents: 0,
        };
        if let Some(conn) = ring_conn(entry.fd) {
            if let Some(view) = conn.view() {
                settle(conn, view, entry.fd);
            }
            ask.events = asked(entry);
            if is_put_off(conn) {
                ask.fd = -1;
            }
            ready |= ring_bits(conn, entry) != 0;
        }
    }
    ready
}

/// Whether the kernel would report again what waits for a backend's word.
fn is_put_off(conn: &Conn) -> bool {
    conn.view()
        .is_some_and(|view| relayed::put_off_until(conn, view).is_some())
}

/// What the kernel is to be asked about an entry now.
fn asked(entry: &pollfd) -> i16 {
    ring_conn(entry.fd).map_or(entry.events, |conn| kernel_interest(conn, entry.events))
}

fn ring_bits(conn: &Conn, entry: &pollfd) -> i16 {
    merge(conn, entry.fd, 0) & (entry.events | POLLERR | POLLHUP)
}

/// Adds what rings have to what the kernel told; how many answers are not zero.
fn collect(entries: &[pollfd], copy: &mut [pollfd]) -> usize {
    let mut ready = 0;
    for (entry, told) in entries.iter().zip(copy) {
        if let Some(conn) = ring_conn(entry.fd)
            && told.revents & POLLNVAL == 0
        {
            told.revents = merge(conn, entry.fd, told.revents) & (entry.events | POLLERR | POLLHUP);
        }
        if told.revents != 0 {
            ready += 1;
            if let Some(index) = fds::lookup(entry.fd).as_conn() {
                conn(index)
                    .slot()
                    .meta
                    .delivered
                    .store(1, Ordering::Relaxed);
            }
        }
    }
    ready
}

/// Spins on the rings of the connections asked about.
fn spin(entries: &[pollfd]) {
    let Some(view) = entries.iter().find_map(|entry| ring_conn(entry.fd)?.view()) else {
        return;
    };
    let far = wait::far_cpu(view);
    let ready = || {
        entries
            .iter()
            .any(|entry| ring_conn(entry.fd).is_some_and(|conn| ring_bits(conn, entry) != 0))
    };
    if !wait::glance(far, wait::Pace::Answer, ready) {
        wait::spin(far, wait::Pace::Answer, ready);
    }
}

/// Sleeps on everything: rings by a doorbell, the rest in the kernel.
fn sleep(
    entries: &[pollfd],
    copy: &mut [pollfd],
    deadline: Option<u64>,
    mask: *const sigset_t,
) -> Result<usize, c_int> {
    let bell = entries.len();
    let sleeper = Sleeper::borrow();
    let mut blind = sleeper.is_none();
    if let Some(sleeper) = sleeper {
        for entry in entries {
            if let Some(conn) = ring_conn(entry.fd) {
                blind |= !enter(conn, &sleeper, entry.events);
                if let Some(words) = sleeper.words(conn) {
                    words.prepare_sleep();
                }
            }
        }
    }
    // A route that has changed since the kernel's part was prepared, by whomever: look again.
    let ready = entries.iter().zip(copy.iter()).any(|(entry, ask)| {
        asked(entry) != ask.events
            || ring_conn(entry.fd).is_some_and(|conn| {
                conn.view().is_some_and(|view| settle(conn, view, entry.fd))
                    || ring_bits(conn, entry) != 0
            })
    });
    let mut left = deadline.map(|at| at.saturating_sub(control::monotonic_ns()));
    if ready {
        left = Some(0);
    } else if blind {
        left = Some(left.map_or(BLIND_NS, |left| left.min(BLIND_NS)));
    }
    copy[bell] = pollfd {
        fd: sleeper.map_or(-1, |sleeper| sleeper.bell()),
        events: POLLIN,
        revents: 0,
    };
    let result = kernel_ppoll(&mut copy[..=bell], left, mask);
    if let Some(sleeper) = sleeper {
        if copy[bell].revents != 0
            && let Some(context) = crate::contexts::context(sleeper.number)
        {
            context.silence();
        }
        for entry in entries {
            if let Some(index) = fds::lookup(entry.fd).as_conn() {
                leave(conn(index), &sleeper);
            }
        }
        crate::contexts::give_back(sleeper.number);
    }
    result
}

/// Enters a sleeper into what a caller of poll waits for; false if the far end might not ring.
fn enter(conn: &Conn, sleeper: &Sleeper, events: i16) -> bool {
    let (Some(view), Some((who, known))) = (conn.view(), sleeper.reference(conn)) else {
        return false;
    };
    let mut good = known;
    // Also for a far end that leaves the ring on which this end sends.
    if events & (READ_BITS | POLLRDHUP) != 0
        || conn.slot().tx.state() == TxState::Ring && events & WRITE_BITS == 0
    {
        good &= view.mine.waits.enter(WaitFor::Data, who);
    }
    if events & WRITE_BITS != 0 && conn.slot().tx.state() == TxState::Ring {
        good &= view.mine.waits.enter(WaitFor::Space, who);
    }
    good
}

fn leave(conn: &Conn, sleeper: &Sleeper) {
    let (Some(view), Some((who, _))) = (conn.view(), sleeper.reference(conn)) else {
        return;
    };
    while view.mine.waits.leave(WaitFor::Data, who) {}
    while view.mine.waits.leave(WaitFor::Space, who) {}
    if let Some(words) = sleeper.words(conn) {
        words.finish_sleep();
    }
}

/// select and pselect. `None`: no descriptor involves a ring; the caller asks the kernel, by
/// [`select_in_kernel`]. Sets are written and the remaining time is left to the caller.
///
/// # Safety
/// The sets are null or hold `count` descriptors and can be read.
pub(crate) unsafe fn select(
    count: c_int,
    sets: [*mut fd_set; 3],
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> Option<c_int> {
    // SAFETY: by contract.
    if !unsafe { any_ring(count, sets) } {
        return None;
    }
    let count = usize::try_from(count).ok()?;
    let bytes = (2 * count + 1) * size_of::<pollfd>();
    let Ok(region) = frontend_drv::memory::reserve(bytes) else {
        errno::set(libc::ENOMEM);
        return Some(-1);
    };
    // SAFETY: fresh zero memory of that size, aligned to a page.
    let all = unsafe {
        core::slice::from_raw_parts_mut(region.base().as_ptr().cast::<pollfd>(), 2 * count + 1)
    };
    let (entries, copy) = all.split_at_mut(count);
    let mut used = 0;
    for fd in 0..count {
        let bits = [POLLIN, POLLOUT, POLLPRI];
        // SAFETY: fd < count.
        let events = (0..3)
            .filter(|&i| unsafe { is_set(sets[i], fd) })
            .fold(0, |all, i| all | bits[i]);
        if events != 0 {
            entries[used] = pollfd {
                fd: c_int::try_from(fd).unwrap_or(-1),
                events,
                revents: 0,
            };
            used += 1;
        }
    }
    let entries = &mut entries[..used];
    let deadline = timeout_ns.map(deadline_in);
    let rc = poll_with(entries, copy, deadline, mask);
    for (entry, told) in entries.iter_mut().zip(&*copy) {
        entry.revents = told.revents;
    }
    let result = if rc < 0 {
        -1
    } else if !can_write(count, sets) {
        errno::set(libc::EFAULT);
        -1
    } else if entries.iter().any(|entry| entry.revents & POLLNVAL != 0) {
        errno::set(libc::EBADF);
        -1
    } else {
        // SAFETY: as promised by the caller.
        unsafe { write_sets(entries, sets) }
    };
    // SAFETY: not used any more.
    unsafe { frontend_drv::memory::unmap(region) };
    Some(result)
}

/// Whether select's arguments can be read; if not, the kernel says so.
pub(crate) fn are_sets(count: c_int, sets: [*mut fd_set; 3], mask: *const sigset_t) -> bool {
    let bytes = usize::try_from(count).map_or(0, bytes_of_set);
    count <= SELECT_MAX
        && sets
            .iter()
            .all(|set| set.is_null() || probe::readable(set.cast(), bytes))
        && is_mask(mask)
}

/// Whether the sets, which are about to be overwritten, can be.
fn can_write(count: usize, sets: [*mut fd_set; 3]) -> bool {
    let bytes = bytes_of_set(count);
    // SAFETY: the program gave the sets to be overwritten.
    sets.iter()
        .all(|set| set.is_null() || unsafe { probe::writable(set.cast(), bytes) })
}

/// Bytes of a set of `count` descriptors: whole words.
const fn bytes_of_set(count: usize) -> usize {
    count.div_ceil(64) * 8
}

/// As [`ENTRIES_MAX`].
const SELECT_MAX: c_int = 1 << 20;

/// Writes results as select does; the number of bits set.
///
/// # Safety
/// As [`select`].
unsafe fn write_sets(entries: &[pollfd], sets: [*mut fd_set; 3]) -> c_int {
    let mut total = 0;
    for entry in entries {
        let Ok(fd) = usize::try_from(entry.fd) else {
            continue;
        };
        let hit = [
            entry.events & POLLIN != 0 && entry.revents & (READ_BITS | POLLHUP | POLLERR) != 0,
            entry.events & POLLOUT != 0 && entry.revents & (WRITE_BITS | POLLERR) != 0,
            entry.events & POLLPRI != 0 && entry.revents & POLLPRI != 0,
        ];
        for (set, hit) in sets.into_iter().zip(hit) {
            // SAFETY: the set has room for fd, or is null.
            if unsafe { is_set(set, fd) } {
                if hit {
                    total += 1;
                } else {
                    // SAFETY: as above.
                    unsafe { clear(set, fd) };
                }
            }
        }
    }
    total
}

/// The program has been told the readiness in these sets, through us.
///
/// # Safety
/// As [`select`].
unsafe fn delivered_sets(count: c_int, sets: [*mut fd_set; 3]) {
    for fd in 0..usize::try_from(count).unwrap_or(0).min(1 << 20) {
        let Ok(number) = c_int::try_from(fd) else {
            break;
        };
        if let Some(index) = fds::lookup(number).as_conn()
            // SAFETY: fd < count.
            && (0..2).any(|i| unsafe { is_set(sets[i], fd) })
        {
            conn(index)
                .slot()
                .meta
                .delivered
                .store(1, Ordering::Relaxed);
        }
    }
}

/// # Safety
/// The set is null or has room for `fd`.
unsafe fn is_set(set: *const fd_set, fd: usize) -> bool {
    if set.is_null() {
        return false;
    }
    // SAFETY: by contract; fd_set is an array of longs, whatever its declared length.
    let word = unsafe { set.cast::<u64>().add(fd / 64).read_unaligned() };
    word >> (fd % 64) & 1 != 0
}

/// # Safety
/// The set has room for `fd`.
unsafe fn clear(set: *mut fd_set, fd: usize) {
    // SAFETY: by contract.
    unsafe {
        let word = set.cast::<u64>().add(fd / 64);
        word.write_unaligned(word.read_unaligned() & !(1 << (fd % 64)));
    }
}

/// Asks the kernel now, for connections whose directions are not both on rings.
pub(crate) fn kernel_now(fd: c_int) -> i16 {
    kernel::poll_now(
        fd,
        POLLIN | POLLPRI | POLLOUT | POLLRDHUP | READ_BITS | WRITE_BITS,
    )
}
