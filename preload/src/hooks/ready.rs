//! Readiness: poll, select, epoll.

use core::ffi::c_int;

use libc::{epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};

use crate::ops::{epoll, ready};
use crate::{config, control, errno, lifecycle, lull, probe, real};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

/// Milliseconds of poll and epoll as nanoseconds; negative is for ever.
fn from_ms(timeout: c_int) -> Option<u64> {
    u64::try_from(timeout).ok().map(|ms| ms * 1_000_000)
}

/// What ppoll and the like were given as timeout; `Err` if that is none, which the kernel then says.
fn from_timespec(time: *const timespec) -> Result<Option<u64>, ()> {
    if time.is_null() {
        return Ok(None);
    }
    // SAFETY: any bytes are a time.
    let time = unsafe { probe::read(time) }.ok_or(())?;
    ready::from_timespec(time).map(Some).ok_or(())
}

/// Whether some descriptor may be one of ours.
#[inline]
fn may_be_ours() -> bool {
    config::config().is_some() && lifecycle::any_known()
}

/// poll and its relatives.
///
/// # Safety
/// As ppoll.
#[inline]
unsafe fn poll_any(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: Option<u64>,
    mask: *const sigset_t,
    native: impl Fn() -> c_int,
) -> c_int {
    if !may_be_ours() {
        return native();
    }
    let Some(entries) = usize::try_from(count)
        .ok()
        .filter(|&entries| ready::is_sound(fds, entries, mask))
    else {
        return native();
    };
    if entries == 1 && mask.is_null() {
        // SAFETY: by contract one entry, which can be read.
        let entry = unsafe { fds.read() };
        if lull::before_wait(&entry, timeout) {
            errno::set(libc::EINTR);
            return -1;
        }
    }
    loop {
        // SAFETY: by contract.
        if let Some(result) = unsafe { ready::poll(fds, entries, timeout, mask) } {
            return result;
        }
        // SAFETY: by contract.
        let result = unsafe { ready::poll_in_kernel(fds, entries, &native) };
        if result != ready::LOOK_AGAIN {
            return result;
        }
    }
}

export! {
    unsafe fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::poll(fds, count, timeout) };
        // SAFETY: see the top of the file.
        unsafe { poll_any(fds, count, from_ms(timeout), core::ptr::null(), native) }
    }

    unsafe fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: size_t) -> c_int {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::__poll_chk(fds, count, timeout, room) };
        if room / size_of::<pollfd>() < usize::try_from(count).unwrap_or(usize::MAX) {
            return native();
        }
        // SAFETY: see the top of the file.
        unsafe { poll_any(fds, count, from_ms(timeout), core::ptr::null(), native) }
    }

    unsafe fn ppoll(fds: *mut pollfd, count: nfds_t, time: *const timespec, mask: *const sigset_t) -> c_int {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::ppoll(fds, count, time, mask) };
        if !may_be_ours() {
            return native();
        }
        match from_timespec(time) {
            // SAFETY: see the top of the file.
            Ok(timeout) => unsafe { poll_any(fds, count, timeout, mask, native) },
            Err(()) => native(),
        }
    }

    unsafe fn __ppoll_chk(
        fds: *mut pollfd, count: nfds_t, time: *const timespec, mask: *const sigset_t, room: size_t,
    ) -> c_int {
        if room / size_of::<pollfd>() < usize::try_from(count).unwrap_or(usize::MAX) {
            // SAFETY: see the top of the file.
            return unsafe { real::__ppoll_chk(fds, count, time, mask, room) };
        }
        // SAFETY: see the top of the file.
        unsafe { ppoll(fds, count, time, mask) }
    }

    unsafe fn select(
        count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, time: *mut timeval,
    ) -> c_int {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::select(count, read, write, except, time) };
        if !may_be_ours() || !ready::are_sets(count, [read, write, except], core::ptr::null()) {
            return native();
        }
        let mut timeout = None;
        if !time.is_null() {
            // SAFETY: any bytes are a time.
            let Some(asked) = (unsafe { probe::read(time) }) else { return native() };
            let (Ok(seconds), Ok(micros)) = (u64::try_from(asked.tv_sec), u64::try_from(asked.tv_usec)) else {
                return native();
            };
            timeout = Some(seconds.saturating_mul(1_000_000_000).saturating_add(micros.saturating_mul(1000)));
        }
        let started = control::monotonic_ns();
        let sets = [read, write, except];
        let result = loop {
            // SAFETY: see the top of the file.
            if let Some(result) = unsafe { ready::select(count, sets, timeout, core::ptr::null()) } {
                break result;
            }
            // SAFETY: see the top of the file.
            let result = unsafe { ready::select_in_kernel(count, sets, native) };
            if result != ready::LOOK_AGAIN {
                return result;
            }
        };
        if let Some(timeout) = timeout {
            // Linux tells the time that is left.
            let left = timeout.saturating_sub(control::monotonic_ns() - started);
            let left = ready::to_timespec(left);
            let left = timeval { tv_sec: left.tv_sec, tv_usec: left.tv_nsec / 1000 };
            // A time that cannot be written does not spoil the result.
            // SAFETY: the program's time, which select overwrites.
            unsafe { probe::write(time, left) };
        }
        result
    }

    unsafe fn pselect(
        count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set,
        time: *const timespec, mask: *const sigset_t,
    ) -> c_int {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::pselect(count, read, write, except, time, mask) };
        if !may_be_ours() || !ready::are_sets(count, [read, write, except], mask) {
            return native();
        }
        let Ok(timeout) = from_timespec(time) else { return native() };
        let sets = [read, write, except];
        loop {
            // SAFETY: see the top of the file.
            if let Some(result) = unsafe { ready::select(count, sets, timeout, mask) } {
                return result;
            }
            // SAFETY: see the top of the file.
            let result = unsafe { ready::select_in_kernel(count, sets, native) };
            if result != ready::LOOK_AGAIN {
                return result;
            }
        }
    }

    unsafe fn epoll_wait(epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int {
        match epoll::known_set(epfd) {
            // SAFETY: see the top of the file.
            None => unsafe { real::epoll_wait(epfd, events, max, timeout) },
            // SAFETY: see the top of the file.
            Some(set) => unsafe { epoll::wait(set, epfd, events, max, from_ms(timeout), core::ptr::null()) },
        }
    }

    unsafe fn epoll_pwait(
        epfd: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t,
    ) -> c_int {
        match epoll::known_set(epfd) {
            // SAFETY: see the top of the file.
            None => unsafe { real::epoll_pwait(epfd, events, max, timeout, mask) },
            // SAFETY: see the top of the file.
            Some(set) => unsafe { epoll::wait(set, epfd, events, max, from_ms(timeout), mask) },
        }
    }

    unsafe fn epoll_pwait2(
        epfd: c_int, events: *mut epoll_event, max: c_int, time: *const timespec, mask: *const sigset_t,
    ) -> c_int {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::epoll_pwait2(epfd, events, max, time, mask) };
        let Some(set) = epoll::known_set(epfd) else { return native() };
        // As long as nothing catches faults, the kernel is asked: it reads the time before it looks at
        // the set, which is none.
        let is_there = || errno::preserved(|| {
            // SAFETY: waits for nothing.
            let rc = unsafe { real::epoll_pwait2(-1, events, max, time, mask) };
            rc < 0 && errno::get() == libc::EBADF
        });
        if !lifecycle::any_known() && !is_there() {
            return native();
        }
        match from_timespec(time) {
            // SAFETY: see the top of the file.
            Ok(timeout) => unsafe { epoll::wait(set, epfd, events, max, timeout, mask) },
            Err(()) => native(),
        }
    }
}

redhook::hook! {
    unsafe fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int => viaduct_epoll_ctl {
        if config::config().is_none() {
            // SAFETY: see the top of the file.
            return unsafe { real::epoll_ctl(epfd, op, fd, event) };
        }
        // SAFETY: see the top of the file.
        unsafe { epoll::control(epfd, op, fd, event) }
    }
}

redhook::hook! {
    unsafe fn epoll_create(size: c_int) -> c_int => viaduct_epoll_create {
        // SAFETY: no pointers.
        let epfd = unsafe { real::epoll_create(size) };
        lifecycle::created(epfd);
        epoll::create(epfd);
        epfd
    }
}

redhook::hook! {
    unsafe fn epoll_create1(flags: c_int) -> c_int => viaduct_epoll_create1 {
        // SAFETY: no pointers.
        let epfd = unsafe { real::epoll_create1(flags) };
        lifecycle::created(epfd);
        epoll::create(epfd);
        epfd
    }
}
