//! epoll_wait: the kernel's events and the rings', O(ready).

#![expect(unsafe_code, reason = "libc's epoll_pwait into the program's array")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{epoll_event, sigset_t};

use super::events::{Events, translate};
use super::news::{has_news, look_at_all, take_before_kernel, take_pending};
use super::report::collect;
use super::set::Set;
use super::{channel, shared};
use crate::ops::ready;
use crate::{contexts, control, errno, forsaken, real, wait};

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
    if shared::is_kernels_alone(set) {
        // SAFETY: by contract.
        return unsafe { wait_for_kernel(epfd, events, max, timeout_ns, mask) };
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

/// Waits for the kernel's events alone, in a set that two processes share. The other one's doorbell may be in it until that
/// notices.
///
/// # Safety
/// As [`wait()`].
unsafe fn wait_for_kernel(
    epfd: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ns: Option<u64>,
    mask: *const sigset_t,
) -> c_int {
    let deadline = timeout_ns.map(ready::deadline_in);
    let mut left = timeout_ns;
    loop {
        // SAFETY: by contract.
        let told = unsafe { kernel_wait(epfd, events, max, left, mask) };
        let Some(count) = usize::try_from(told).ok().filter(|count| *count > 0) else {
            return told;
        };
        let out = Events {
            at: events,
            room: count,
        };
        let kept = out.leave_out_bells();
        if kept > 0 || ready::is_past(deadline) {
            return number_of(kept);
        }
        let _ = ready::kernel_poll(&mut [], Some(BELL_NAP_NS));
        left = deadline.map(|at| at.saturating_sub(control::monotonic_ns()));
    }
}

/// Between two looks at a set of which only a doorbell was told.
const BELL_NAP_NS: u64 = 200_000;

/// More events than this the kernel refuses to be asked for.
const EVENTS_MAX: usize = c_int::MAX.cast_unsigned() as usize / size_of::<epoll_event>();

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
    channel::refresh_watched();
    // SAFETY: by contract; what the kernel refuses (max, addresses) it refuses.
    let kernel = |at: usize, end: usize, timeout: Option<u64>| unsafe {
        let room = number_of(end) - number_of(at);
        kernel_wait(epfd, events.wrapping_add(at), room, timeout, mask)
    };
    let room = usize::try_from(max).unwrap_or(0);
    if room == 0 || room > EVENTS_MAX || set.context().is_some() && !ready::is_mask(mask) {
        // SAFETY: by contract; what the kernel refuses it refuses.
        return unsafe { kernel_wait(epfd, events, max, timeout_ns, mask) };
    }
    let out = Events { at: events, room };
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
        // Only what came before anything that a far end has given to the kernel; the rest comes after that.
        let mut behind = false;
        if out.room > 1 {
            behind = take_before_kernel(set).more;
        } else {
            take_pending(set);
        }
        let Some(mut count) = collect(set, call, &out, 0, share) else {
            return fault();
        };
        let expired = ready::is_past(deadline);
        let sleeps = count == 0
            && !behind
            && !expired
            && set.is_quiet()
            && (set.context().is_none() || spun);
        let told = if sleeps {
            sleep(set, deadline, &|timeout| kernel(0, out.room, timeout))
        } else if behind {
            // Not all places, so that a busy kernel does not starve the rings either.
            let end = count + (out.room - count).div_ceil(2);
            kernel(count, end, Some(0))
        } else if count < out.room {
            // A wait that is over lets in what its mask lets in, as it does from its beginning, unless it never was
            // one: the kernel looks for signals only if there is any time at all.
            let lets_in = expired && count == 0 && deadline != Some(0) && !mask.is_null();
            kernel(count, out.room, Some(u64::from(lets_in)))
        } else {
            0
        };
        if told < 0 {
            if count > 0 {
                return number_of(count);
            }
            return told;
        }
        let told = translate(set, call, &out, count, told.cast_unsigned() as usize);
        count = told.count;
        forsaken::look(told.hung_up);
        let mut rung = told.rung;
        if !behind {
            let before = take_before_kernel(set);
            behind = before.more;
            let Some(all) = collect(set, call, &out, count, out.room) else {
                return fault();
            };
            if let Some(rung) = rung.filter(|_| sleeps) {
                // Where the doorbell stands among what the kernel had is where the first ring's news came.
                out.turn(rung, count, all);
            }
            // That was not the first of the rest, then.
            rung = rung.filter(|_| !before.any);
            count = all;
        }
        if behind {
            take_pending(set);
            let Some(all) = collect(set, call, &out, count, out.room) else {
                return fault();
            };
            if let Some(rung) = rung {
                out.turn(rung, count, all);
            }
            count = all;
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
    forsaken::look(false);
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
