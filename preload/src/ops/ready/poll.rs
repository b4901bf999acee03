//! poll and ppoll with descriptors that involve a ring; the loop serves select as well.

#![expect(unsafe_code, reason = "the program's array of entries")]

use core::ffi::c_int;

use libc::{POLLERR, POLLHUP, POLLNVAL, pollfd, sigset_t};

use super::sleep::{OWN_ENTRIES, sleep};
use super::time::{deadline_in, is_past, kernel_ppoll};
use super::{involves_ring, kernel_interest, merge, news, note_delivered, ring_conn, room};
use crate::conn::{Conn, conn};
use crate::ops::epoll;
use crate::{control, errno, fds, probe, relayed, renew, wait};

/// poll and ppoll. `None`: no descriptor involves a ring (the caller asks the kernel, by
/// [`poll_in_kernel`](super::poll_in_kernel)).
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

fn poll_mixed(
    entries: &[pollfd],
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
    tell: impl Fn(&[pollfd]) -> bool,
) -> c_int {
    let finish = |result: c_int, answers: &[pollfd]| {
        // After a signal the kernel still writes its answers, all zero.
        let tells = result >= 0 || errno::get() == libc::EINTR;
        if !tells || tell(answers) {
            return result;
        }
        errno::set(libc::EFAULT);
        -1
    };
    let deadline = timeout_ns.map(deadline_in);
    let count = entries.len();
    room::lend(count + OWN_ENTRIES, count, |copy, bits| {
        let result = poll_with(entries, copy, bits, deadline, mask);
        finish(result, &copy[..count])
    })
    .unwrap_or_else(|| {
        errno::set(libc::ENOMEM);
        -1
    })
}

/// Waits for `entries`; their answers are then the `revents` of `copy`, which has [`OWN_ENTRIES`] more. `bits` has as
/// many as `entries`.
pub(super) fn poll_with(
    entries: &[pollfd],
    copy: &mut [pollfd],
    bits: &mut [i16],
    deadline: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    let bell = entries.len();
    let far = far_cpu(entries).filter(|far| wait::may_spin(*far));
    let mut spun = far.is_none();
    epoll::refresh_watched();
    loop {
        let mut asks = Asks::Rarely(None);
        let (ring_ready, mut deaf) = prepare(entries, copy, bits, &mut asks);
        // Asked once in a round: a wait is not over before a round that let in what its mask lets in.
        let expired = is_past(deadline);
        let sleeps = !ring_ready && spun && !expired;
        if sleeps && deaf && !news::sleeps_briskly() {
            deaf = prepare(entries, copy, bits, &mut Asks::All).1;
        }
        let result = if sleeps {
            let result = sleep(entries, copy, deadline, deaf, mask);
            if let Asks::Rarely(Some(tick)) = asks {
                news::slept(tick);
            }
            result
        } else {
            // The signal mask belongs to the wait: with something ready the kernel never applies it.
            let last = !ring_ready && expired;
            let mask = if last { mask } else { core::ptr::null() };
            kernel_ppoll(&mut copy[..bell], Some(0), mask)
        };
        if let Err(error) = result {
            errno::set(error);
            return -1;
        }
        // What rings had before a sleep is old.
        let ready = collect(entries, copy, (!sleeps).then_some(&*bits));
        if ready > 0 || expired || sleeps && is_past(deadline) {
            return c_int::try_from(ready).unwrap_or(c_int::MAX);
        }
        if !spun {
            spun = true;
            if let Some(far) = far {
                spin(entries, far);
            }
        }
    }
}

/// What a round asks the kernel about relayed connections.
enum Asks {
    All,
    /// Each once in a tick of its clock: this one, read at the first of them.
    Rarely(Option<u64>),
}

/// Writes what the kernel is to be asked into `copy`, and what rings have, as long as the kernel has nothing to say,
/// into `bits`; whether some ring has something, and whether the kernel is not asked about some because it has been asked
/// in this tick.
fn prepare(
    entries: &[pollfd],
    copy: &mut [pollfd],
    bits: &mut [i16],
    asks: &mut Asks,
) -> (bool, bool) {
    let mut ready = false;
    let mut deaf = false;
    for ((entry, ask), bits) in entries.iter().zip(copy).zip(bits) {
        *ask = pollfd {
            fd: entry.fd,
            events: entry.events,
            revents: 0,
        };
        *bits = 0;
        let Some(index) = fds::lookup(entry.fd).as_conn() else {
            continue;
        };
        let conn = conn(index);
        if !involves_ring(conn) {
            renew::let_go(conn);
            continue;
        }
        // This follows the far end, so that the kernel is asked for what it may have to say by now.
        *bits = ring_bits(conn, entry);
        ready |= *bits != 0;
        ask.events = kernel_interest(conn, entry.events);
        if is_put_off(conn) {
            ask.fd = -1;
        } else if conn.is_relayed()
            && let (Asks::Rarely(tick), Some(view)) = (&mut *asks, conn.view())
            && news::is_known(
                conn,
                view,
                ask.events,
                *tick.get_or_insert_with(control::coarse_ns),
            )
        {
            ask.fd = -1;
            deaf = true;
        }
    }
    (ready, deaf)
}

/// Whether the kernel would report again what waits for a backend's word.
fn is_put_off(conn: &Conn) -> bool {
    conn.view()
        .is_some_and(|view| relayed::put_off_until(conn, view).is_some())
}

/// What the kernel is to be asked about an entry now.
pub(super) fn asked(entry: &pollfd) -> i16 {
    ring_conn(entry.fd).map_or(entry.events, |conn| kernel_interest(conn, entry.events))
}

pub(super) fn ring_bits(conn: &Conn, entry: &pollfd) -> i16 {
    merge(conn, entry.fd, 0) & (entry.events | POLLERR | POLLHUP)
}

/// Adds what rings have to what the kernel told; how many answers are not zero. `bits`: what they had just now, as
/// long as the kernel had nothing to say.
fn collect(entries: &[pollfd], copy: &mut [pollfd], bits: Option<&[i16]>) -> usize {
    let mut ready = 0;
    for (i, (entry, told)) in entries.iter().zip(copy).enumerate() {
        if told.revents == 0
            && let Some(bits) = bits
        {
            told.revents = bits[i];
        } else if let Some(conn) = ring_conn(entry.fd)
            && told.revents & POLLNVAL == 0
        {
            told.revents = merge(conn, entry.fd, told.revents) & (entry.events | POLLERR | POLLHUP);
        }
        if told.revents != 0 {
            ready += 1;
            note_delivered(entry.fd);
        }
    }
    ready
}

/// The processor of a far end, if any of the connections asked about goes by ring.
fn far_cpu(entries: &[pollfd]) -> Option<u32> {
    let view = entries
        .iter()
        .find_map(|entry| ring_conn(entry.fd)?.view())?;
    Some(wait::far_cpu(view))
}

/// Spins on the rings of the connections asked about; `far` is the processor of one far end.
fn spin(entries: &[pollfd], far: u32) {
    let ready = || {
        entries
            .iter()
            .any(|entry| ring_conn(entry.fd).is_some_and(|conn| ring_bits(conn, entry) != 0))
    };
    if !wait::glance(far, wait::Pace::Answer, ready) {
        wait::spin(far, wait::Pace::Answer, ready);
    }
}
