//! epoll_wait: the kernel's events and the rings', O(ready).

#![expect(unsafe_code, reason = "libc's epoll_pwait into the program's array")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{epoll_event, sigset_t};
use rdma_core::event::WaitFor;
use rdma_core::ring::Consumer;
use rdma_core::slot::{RxState, TxState};

use super::set::{Interest, Set, is_cookie};
use super::{catch_up, had_space, interest_of_cookie, post_conn, want_space};
use crate::conn::{Conn, NO_FINAL};
use crate::ops::ready::{self, involves_ring};
use crate::{contexts, control, errno, kernel, probe, real, relayed, wait};

/// epoll_wait, epoll_pwait and epoll_pwait2 on a set that we know.
///
/// # Safety
/// `events` is the program's array, to be overwritten.
pub(crate) unsafe fn wait(
    set: &'static Set,
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    if super::set::is_kernels_alone(set) {
        // SAFETY: by contract.
        return unsafe { kernel_wait(epfd, events, max, timeout_ns, mask) };
    }
    // SAFETY: by contract.
    let told = unsafe { wait_for_both(set, epfd, events, max, timeout_ns, mask) };
    set.announce_if_polled();
    // What is left is the next sleeper's, as in the kernel.
    if !set.is_quiet() {
        set.wake_sleepers();
    }
    told
}

/// Waits for the kernel's events and the rings'.
///
/// # Safety
/// As [`wait()`].
unsafe fn wait_for_both(
    set: &'static Set,
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    let deadline = timeout_ns.map(ready::deadline_in);
    super::set::refresh_watched();
    // SAFETY: by contract; what the kernel refuses (max, addresses) it refuses.
    let kernel = |at: usize, end: usize, timeout: Option<u64>| unsafe {
        let room = number_of(end) - number_of(at);
        kernel_wait(epfd, events.wrapping_add(at), room, timeout, mask)
    };
    if max <= 0 || set.context().is_some() && !ready::is_mask(mask) {
        // SAFETY: by contract; what the kernel refuses it refuses.
        return unsafe { kernel_wait(epfd, events, max, timeout_ns, mask) };
    }
    let out = Events {
        at: events,
        room: max.cast_unsigned() as usize,
    };
    let mut spun = false;
    // Never 0, which no interest was reported by.
    let call = set.calls.fetch_add(1, Ordering::Relaxed) | 1 << 31;
    loop {
        // Half for rings first, so that busy rings do not starve what the kernel has; a single place
        // goes to either by turns.
        let share = if out.room == 1 {
            usize::from(call & 1 == 0)
        } else {
            out.room.div_ceil(2)
        };
        let mut count = 0;
        // Half for the kernel first, if a far end has used it before its ring.
        let kernel_first = out.room > 1 && is_behind_kernel(set);
        if kernel_first {
            let told = kernel(0, share, Some(0));
            if told < 0 {
                return told;
            }
            count = translate(set, call, &out, 0, told.cast_unsigned() as usize).0;
        }
        take_pending(set);
        let most = if kernel_first { out.room } else { share };
        match collect(set, call, &out, count, most) {
            Some(all) => count = all,
            None => return fault(),
        }
        if kernel_first && count > 0 {
            return number_of(count);
        }
        let expired = ready::is_past(deadline);
        let sleeps = count == 0 && !expired && set.is_quiet() && (set.context().is_none() || spun);
        let told = if sleeps {
            sleep(set, deadline, &|timeout| kernel(0, out.room, timeout))
        } else if count < out.room {
            kernel(count, out.room, Some(0))
        } else {
            0
        };
        if told < 0 {
            if count > 0 {
                return number_of(count);
            }
            return told;
        }
        let (by_kernel, rung) = translate(set, call, &out, count, told.cast_unsigned() as usize);
        take_pending(set);
        match collect(set, call, &out, by_kernel, out.room) {
            Some(all) => count = all,
            None => return fault(),
        }
        // Where the doorbell stands among what the kernel had is where the first ring's news came.
        if let Some(rung) = rung.filter(|_| sleeps) {
            out.turn(rung, by_kernel, count);
        }
        if count > 0 || expired {
            return number_of(count);
        }
        if !spun && set.context().is_some() {
            spun = true;
            spin(set);
        }
    }
}

/// The program's array of events.
#[derive(Clone, Copy, Debug)]
struct Events {
    at: *mut epoll_event,
    room: usize,
}

impl Events {
    /// Writes event `index`; false if that cannot be done.
    fn put(&self, index: usize, event: epoll_event) -> bool {
        // SAFETY: the program gave the array to be overwritten (contract of `wait`).
        index < self.room && unsafe { probe::write(self.at.wrapping_add(index), event) }
    }

    /// Event `index`, which the kernel has just written.
    fn told(&self, index: usize) -> Option<epoll_event> {
        // SAFETY: the kernel found it writable (packed on x86-64, so read unaligned).
        (index < self.room).then(|| unsafe { self.at.wrapping_add(index).read_unaligned() })
    }

    /// Exchanges events `from..middle` with `middle..end`.
    fn turn(&self, from: usize, middle: usize, end: usize) {
        let reverse = |from: usize, end: usize| {
            for i in 0..(end - from) / 2 {
                let (low, high) = (from + i, end - 1 - i);
                if let (Some(first), Some(last)) = (self.told(low), self.told(high)) {
                    self.put_back(low, last);
                    self.put_back(high, first);
                }
            }
        };
        if from < middle && middle < end {
            reverse(from, middle);
            reverse(middle, end);
            reverse(from, end);
        }
    }

    /// As [`Events::put`] where the kernel has just written: events only move forward.
    fn put_back(&self, index: usize, event: epoll_event) {
        if index < self.room {
            // SAFETY: as in `told`.
            unsafe { self.at.wrapping_add(index).write_unaligned(event) };
        }
    }
}

fn fault() -> c_int {
    errno::set(libc::EFAULT);
    -1
}

/// A number of events as epoll_wait returns it; never more than the `max` it was given.
fn number_of(events: usize) -> c_int {
    c_int::try_from(events).unwrap_or(c_int::MAX)
}

/// libc's epoll wait with a timeout in nanoseconds.
///
/// # Safety
/// As [`wait()`].
unsafe fn kernel_wait(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    let whole = timeout_ns.is_none_or(|ns| ns % 1_000_000 == 0 && ns < 1_000_000_000_000);
    if whole {
        let ms = timeout_ns.map_or(-1, |ns| {
            c_int::try_from(ns / 1_000_000).unwrap_or(c_int::MAX)
        });
        // SAFETY: by contract.
        return unsafe { real::epoll_pwait(epfd, events, max, ms, mask) };
    }
    let time = ready::to_timespec(timeout_ns.unwrap_or(0));
    let before = errno::get();
    // SAFETY: by contract.
    let rc = unsafe { real::epoll_pwait2(epfd, events, max, &raw const time, mask) };
    if rc < 0 && errno::get() == libc::ENOSYS {
        errno::set(before);
        let ms = timeout_ns.map_or(-1, |ns| {
            c_int::try_from(ns.div_ceil(1_000_000)).unwrap_or(c_int::MAX)
        });
        // SAFETY: by contract.
        return unsafe { real::epoll_pwait(epfd, events, max, ms, mask) };
    }
    rc
}

/// For a set that some far end cannot ring: what has changed since it was last looked at goes to the ready
/// list.
#[cold]
fn look_at_all(set: &'static Set) {
    super::set::each_live(|interest| {
        let Some(conn) = interest.conn() else { return };
        let has_news = || {
            involves_ring(conn) && interest.seen.load(Ordering::Relaxed) != news(conn)
                || interest.is_outdated(conn)
        };
        if interest
            .set()
            .is_some_and(|owner| core::ptr::eq(owner, set))
            && has_news()
            && !is_too_little(conn, interest)
        {
            set.push(interest);
        }
    });
}

/// The bits of [`news`] that are not the tail.
const OVER: u64 = 0x3f;

/// A number that changes with whatever a far end may have to say.
fn news(conn: &Conn) -> u64 {
    let Some(view) = conn.view() else { return 0 };
    let state = &view.theirs.state;
    let over = u64::from(state.ended_at().is_some())
        | u64::from(state.is_reader_gone()) << 1
        | u64::from(state.broken().is_some()) << 2
        | u64::from(state.is_switched()) << 3
        | u64::from(state.returned_at().is_some()) << 4
        | u64::from(crate::ops::send::writable(conn) == Some(true)) << 5;
    view.rx_words.tail.load(Ordering::Acquire) << 6 | over
}

/// Whether, for an edge-triggered interest, the far end has done nothing but send less than SO_RCVLOWAT
/// asks for, which is no edge.
pub(super) fn is_too_little(conn: &Conn, interest: &Interest) -> bool {
    let rx = &conn.slot().rx;
    let lowat = u64::from(rx.lowat.load(Ordering::Relaxed));
    let Some(view) = conn.view().filter(|_| interest.is_edge()) else {
        return false;
    };
    if lowat <= 1 || rx.state() != RxState::Ring || view.mine.waits.any(WaitFor::Space) {
        return false;
    }
    let mut cursor = rx.cursor();
    let there = Consumer::of(view).refresh(&mut cursor).unwrap_or(lowat);
    there < lowat && (news(conn) ^ interest.seen.load(Ordering::Relaxed)) & OVER == 0
}

/// Moves pending bits to the ready list.
fn take_pending(set: &'static Set) {
    let Some(number) = set.context() else { return };
    for session in &control::SESSIONS {
        let Some(events) = session.events.get() else {
            continue;
        };
        if let Some(words) = contexts::words(&events, number)
            && words.has_pending()
        {
            words.take_pending(|bit| post_conn(set, bit));
        }
    }
}

/// Whether a far end has used the kernel before what is pending.
fn is_behind_kernel(set: &Set) -> bool {
    set.context().is_some_and(|number| {
        control::SESSIONS.iter().any(|session| {
            session
                .events
                .get()
                .and_then(|events| contexts::words(&events, number))
                .is_some_and(rdma_core::event::EventContext::is_behind_kernel)
        })
    })
}

/// Whether a bit is pending or the list is not empty.
pub(super) fn has_news(set: &Set) -> bool {
    let Some(number) = set.context() else {
        return false;
    };
    !set.is_quiet()
        || control::SESSIONS.iter().any(|session| {
            session
                .events
                .get()
                .and_then(|events| contexts::words(&events, number))
                .is_some_and(rdma_core::event::EventContext::has_pending)
        })
}

/// For a set that is watched as a descriptor: its doorbell, which makes it readable, stands exactly as
/// long as something would be reported.
pub(super) fn show_readiness(set: &'static Set) {
    let Some(bell) = set.bell() else { return };
    let rung = kernel::poll_now(bell, libc::POLLIN) != 0;
    if rung == keep_ready(set) {
        return;
    }
    if !rung {
        set.ring();
        return;
    }
    if let Some(context) = set.context().and_then(contexts::context) {
        context.silence();
    }
    // What came before the silence is not announced again.
    if keep_ready(set) {
        set.ring();
    }
}

/// Takes what is not ready off the list; true if something is left.
fn keep_ready(set: &'static Set) -> bool {
    take_pending(set);
    let mut first: Option<&'static Interest> = None;
    while let Some(interest) = set.pop() {
        if first.is_some_and(|first| core::ptr::eq(first, interest)) {
            set.push(interest);
            break;
        }
        let Some(conn) = interest.conn() else {
            continue;
        };
        if interest.live.load(Ordering::Acquire) == 0 {
            continue;
        }
        catch_up(interest, conn);
        let ready = bits(conn, interest.fd());
        if ready & OUT == 0 {
            want_space(conn);
        }
        if ready & interest.wanted() != 0 {
            set.push(interest);
            first = first.or(Some(interest));
        }
    }
    first.is_some()
}

/// Reports ready interests behind the first `count` events, up to `most` events; level-triggered ones go
/// to the end of the list again, and none is reported twice by one `call`. The number of events now in
/// `out`; `None` if the first could not be written.
fn collect(
    set: &'static Set,
    call: u32,
    out: &Events,
    mut count: usize,
    most: usize,
) -> Option<usize> {
    let mut turned: Option<&'static Interest> = None;
    while count < most {
        let Some(interest) = set.pop() else { break };
        if interest.live.load(Ordering::Acquire) == 0 {
            continue;
        }
        if interest.reported.load(Ordering::Relaxed) == call {
            set.push(interest);
            if turned.is_some_and(|first| core::ptr::eq(first, interest)) {
                // Once around.
                break;
            }
            turned = turned.or(Some(interest));
            continue;
        }
        match report(set, call, interest, out, count) {
            Some(true) => count += 1,
            Some(false) => {}
            None => return (count > 0).then_some(count),
        }
    }
    Some(count)
}

/// Reports an interest as event `at`, if it is ready; `None` if the event could not be written.
fn report(
    set: &'static Set,
    call: u32,
    interest: &'static Interest,
    out: &Events,
    at: usize,
) -> Option<bool> {
    let Some(conn) = interest.conn() else {
        return Some(false);
    };
    if catch_up(interest, conn) {
        // On the list again, or the kernel reports it from now on.
        return Some(false);
    }
    interest.seen.store(news(conn), Ordering::Relaxed);
    let ready = bits(conn, interest.fd());
    if ready & OUT != 0 {
        had_space(interest, conn);
    } else {
        want_space(conn);
    }
    let bits = ready & interest.wanted();
    if bits == 0 {
        return Some(false);
    }
    let event = epoll_event {
        events: bits,
        u64: interest.data(),
    };
    if !out.put(at, event) {
        // It stays ready, as in the kernel.
        set.push(interest);
        return None;
    }
    interest.reported.store(call, Ordering::Relaxed);
    interest.told.store(bits, Ordering::Relaxed);
    conn.slot().meta.delivered.store(1, Ordering::Relaxed);
    if !interest.spend() && !interest.is_edge() {
        set.push(interest);
    }
    Some(true)
}

/// Whether both directions are on rings and nothing announces that the kernel has something to say.
fn is_quiet_in_kernel(conn: &Conn) -> bool {
    let slot = conn.slot();
    slot.rx.state() == RxState::Ring
        && slot.tx.state() == TxState::Ring
        && conn.final_tail.load(Ordering::Relaxed) == NO_FINAL
        && conn.shut() == 0
        && conn.view().is_some_and(|view| {
            view.theirs.state.ended_at().is_none()
                && view.theirs.state.returned_at().is_none()
                && !view.theirs.state.is_reader_gone()
        })
}

/// Whether the kernel's word on the far end waits for a backend's, which will be an edge of its own.
fn is_put_off(conn: &Conn, events: u32) -> bool {
    let slot = conn.slot();
    let over = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();
    events & over != 0
        && slot.rx.state() == RxState::Ring
        && slot.tx.state() != TxState::Kernel
        && conn
            .view()
            .is_some_and(|view| relayed::is_early(conn, view))
}

/// EPOLLOUT.
const OUT: u32 = 4;

/// Present readiness as epoll bits.
fn bits(conn: &Conn, fd: c_int) -> u32 {
    let kernel = if is_quiet_in_kernel(conn) {
        // Edges keep this current: nothing but the end of stream and errors can still happen there.
        let bits = conn.kernel_bits.load(Ordering::Relaxed) & 0xffff;
        u16::try_from(bits).unwrap_or(0).cast_signed()
    } else {
        ready::kernel_now(fd)
    };
    let merged = if involves_ring(conn) {
        ready::merge(conn, fd, kernel)
    } else {
        kernel
    };
    u32::from(merged.cast_unsigned())
}

/// Gives the kernel's events, which stand in `out[from..from + told]`, the program's data; what those of
/// connections on rings tell is computed. The number of events now in `out`, and how many of them stood
/// before the doorbell's.
fn translate(
    set: &'static Set,
    call: u32,
    out: &Events,
    from: usize,
    told: usize,
) -> (usize, Option<usize>) {
    let mut count = from;
    let mut rung = None;
    for i in from..from + told {
        let Some(event) = out.told(i) else {
            break;
        };
        let data = event.u64;
        if is_cookie(data) {
            if Set::is_bell(data) {
                rung = Some(count);
                if set.is_watched()
                    && let Some(context) = set.context().and_then(contexts::context)
                {
                    // Level-triggered: it would end every sleep at once.
                    context.silence();
                }
            }
            let Some(interest) = interest_of_cookie(data) else {
                continue;
            };
            if let Some(conn) = interest.conn() {
                if catch_up(interest, conn) && !involves_ring(conn) {
                    continue;
                }
                if involves_ring(conn) {
                    conn.kernel_bits.store(event.events, Ordering::Relaxed);
                    // The kernel's edge of an end that was reported when the far end announced it, or of
                    // what this very call has reported already.
                    let slot = conn.slot();
                    if is_put_off(conn, event.events) {
                        continue;
                    }
                    let announced = conn
                        .view()
                        .is_some_and(|view| view.theirs.state.ended_at().is_some())
                        && slot.rx.state() == RxState::Ring
                        && slot.tx.state() != TxState::Kernel;
                    let reported = interest.reported.load(Ordering::Relaxed) == call;
                    let told = interest.told.load(Ordering::Relaxed);
                    let known = interest.is_edge()
                        && (announced || reported)
                        && event.events & interest.wanted() & !told == 0;
                    if known || interest.live.load(Ordering::Acquire) == 0 {
                        continue;
                    }
                    if reported || interest.listed.load(Ordering::Relaxed) != 0 {
                        set.push(interest);
                        continue;
                    }
                    // In its place, so that the kernel's order is kept.
                    if report(set, call, interest, out, count) == Some(true) {
                        count += 1;
                    }
                    continue;
                }
                conn.slot().meta.delivered.store(1, Ordering::Relaxed);
            }
            if interest.reported.swap(call, Ordering::Relaxed) == call {
                continue;
            }
            // An edge of the time before a ring was involved may carry more than was asked for.
            let events = event.events & interest.wanted();
            if events == 0 {
                continue;
            }
            interest.spend();
            let data = interest.data();
            out.put_back(count, epoll_event { events, u64: data });
        } else {
            out.put_back(count, event);
        }
        count += 1;
    }
    (count, rung)
}

/// Spins for rings while that pays.
fn spin(set: &'static Set) {
    let ready = || has_news(set);
    if !wait::glance(0, wait::Pace::Answer, ready) {
        wait::spin(0, wait::Pace::Answer, ready);
    }
}

/// Longest sleep of a set without an event channel.
const BLIND_NS: u64 = 8_000_000;

/// Sleeps in the kernel, announced to all far ends.
fn sleep(set: &'static Set, deadline: Option<u64>, kernel: &dyn Fn(Option<u64>) -> c_int) -> c_int {
    let blind = set.is_blind();
    if blind {
        look_at_all(set);
        if !set.is_quiet() {
            return kernel(Some(0));
        }
    }
    let left = || {
        let left = deadline.map(|at| at.saturating_sub(control::monotonic_ns()));
        if blind {
            Some(left.map_or(BLIND_NS, |left| left.min(BLIND_NS)))
        } else {
            left
        }
    };
    // Counted first: who opens the event channel afterwards rings it, and we look again.
    set.sleepers.fetch_add(1, Ordering::SeqCst);
    let Some(number) = set.context() else {
        let told = kernel(left());
        set.sleepers.fetch_sub(1, Ordering::SeqCst);
        return told;
    };
    let each = |work: &dyn Fn(&rdma_core::event::EventContext)| {
        for session in &control::SESSIONS {
            if let Some(words) = session
                .events
                .get()
                .and_then(|events| contexts::words(&events, number))
            {
                work(words);
            }
        }
    };
    each(&|words| words.prepare_sleep());
    let told = if has_news(set) {
        kernel(Some(0))
    } else {
        kernel(left())
    };
    // Awake first, then out of the count: a thread that counts itself meanwhile sets the word again.
    each(&|words| {
        words.finish_sleep();
    });
    if set.sleepers.fetch_sub(1, Ordering::SeqCst) > 1 {
        // Others still sleep here: later posts must ring again.
        each(&|words| words.prepare_sleep());
    }
    told
}
