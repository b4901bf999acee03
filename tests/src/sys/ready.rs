//! Readiness: poll, select, epoll.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::mem::zeroed;
use core::ptr::{null, null_mut};

use libc::{c_int, epoll_event, fd_set, pollfd, sigset_t, timespec, timeval};

use super::{Ret, ret, spec};

/// poll(2) on (descriptor, events); the revents.
pub fn poll(wants: &[(c_int, i16)], timeout_ms: c_int) -> (Ret, Vec<i16>) {
    let mut entries = entries_of(wants);
    let count = libc::nfds_t::try_from(entries.len()).unwrap_or(0);
    // SAFETY: the entries are a vector of that length.
    let rc = ret(unsafe { libc::poll(entries.as_mut_ptr(), count, timeout_ms) });
    (rc, entries.iter().map(|e| e.revents).collect())
}

/// ppoll(2) with a timeout and a signal mask.
pub fn ppoll(
    wants: &[(c_int, i16)],
    timeout_ms: Option<i64>,
    mask: Option<&sigset_t>,
) -> (Ret, Vec<i16>) {
    let mut entries = entries_of(wants);
    let count = libc::nfds_t::try_from(entries.len()).unwrap_or(0);
    let time = timeout_ms.map(spec);
    let time = time.as_ref().map_or(null(), core::ptr::from_ref);
    let mask = mask.map_or(null(), core::ptr::from_ref);
    // SAFETY: the entries are a vector of that length; time and mask are null or valid.
    let rc = ret(unsafe { libc::ppoll(entries.as_mut_ptr(), count, time, mask) });
    (rc, entries.iter().map(|e| e.revents).collect())
}

/// poll(2) on an array at any address.
pub fn poll_at(at: usize, count: u64, timeout_ms: c_int) -> Ret {
    let entries = core::ptr::with_exposed_provenance_mut::<pollfd>(at);
    // SAFETY: as in `send_at`.
    ret(unsafe { libc::poll(entries, count, timeout_ms) })
}

fn entries_of(wants: &[(c_int, i16)]) -> Vec<pollfd> {
    let entry = |&(fd, events): &(c_int, i16)| pollfd {
        fd,
        events,
        revents: -1,
    };
    wants.iter().map(entry).collect()
}

/// What select(2) left: which of the asked are in each set, and the time that remains.
#[derive(Debug)]
pub struct Selected {
    /// What the call returned.
    pub ret: Ret,
    /// Readable.
    pub read: Vec<bool>,
    /// Writable.
    pub write: Vec<bool>,
    /// Exceptional.
    pub except: Vec<bool>,
    /// Milliseconds left; -1 if none were given.
    pub left_ms: i64,
}

/// select(2), or pselect(2) if `mask` is given.
pub fn select(
    read: &[c_int],
    write: &[c_int],
    except: &[c_int],
    timeout_ms: Option<i64>,
    mask: Option<&sigset_t>,
) -> Selected {
    let mut sets = [set_of(read), set_of(write), set_of(except)];
    let highest = [read, write, except]
        .into_iter()
        .flatten()
        .max()
        .map_or(0, |fd| fd + 1);
    let [r, w, e] = &mut sets;
    let mut time = timeout_ms.map(|ms| timeval {
        tv_sec: ms / 1000,
        tv_usec: ms % 1000 * 1000,
    });
    let exact = timeout_ms.map(spec);
    // SAFETY: three sets, and a timeout that is null or local.
    let rc = unsafe {
        match mask {
            None => libc::select(
                highest,
                r,
                w,
                e,
                time.as_mut().map_or(null_mut(), core::ptr::from_mut),
            ),
            Some(mask) => libc::pselect(
                highest,
                r,
                w,
                e,
                exact.as_ref().map_or(null(), core::ptr::from_ref),
                mask,
            ),
        }
    };
    let ret = ret(rc);
    let members = |set: &fd_set, fds: &[c_int]| {
        // SAFETY: every descriptor asked for is below FD_SETSIZE; see `set_of`.
        let is_member = |&fd: &c_int| unsafe { libc::FD_ISSET(fd, set) };
        fds.iter().map(is_member).collect()
    };
    let [r, w, e] = &sets;
    Selected {
        ret,
        read: members(r, read),
        write: members(w, write),
        except: members(e, except),
        left_ms: time.map_or(-1, |t| t.tv_sec * 1000 + t.tv_usec / 1000),
    }
}

fn set_of(fds: &[c_int]) -> fd_set {
    // SAFETY: zero is an empty set.
    let mut set: fd_set = unsafe { zeroed() };
    for &fd in fds {
        assert!(fd >= 0 && usize::try_from(fd).unwrap_or(usize::MAX) < libc::FD_SETSIZE);
        // SAFETY: checked above.
        unsafe { libc::FD_SET(fd, &raw mut set) };
    }
    set
}

/// epoll_create1(2).
pub fn epoll_create() -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

/// epoll_ctl(2).
pub fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, events: c_int, data: u64) -> Ret {
    let mut event = epoll_event {
        events: events.cast_unsigned(),
        u64: data,
    };
    // SAFETY: a local event.
    ret(unsafe { libc::epoll_ctl(epfd, op, fd, &raw mut event) })
}

/// epoll_ctl(2) with a null event.
pub fn epoll_ctl_null(epfd: c_int, op: c_int, fd: c_int) -> Ret {
    // SAFETY: as in `send_at`.
    ret(unsafe { libc::epoll_ctl(epfd, op, fd, null_mut()) })
}

/// epoll_wait(2); (events, data) of each.
pub fn epoll_wait(epfd: c_int, max: usize, timeout_ms: c_int) -> Result<Vec<(u32, u64)>, i32> {
    epoll_pwait(epfd, max, timeout_ms, None)
}

/// epoll_pwait(2); as [`epoll_wait`] without a mask.
pub fn epoll_pwait(
    epfd: c_int,
    max: usize,
    timeout_ms: c_int,
    mask: Option<&sigset_t>,
) -> Result<Vec<(u32, u64)>, i32> {
    let mut events = vec![epoll_event { events: 0, u64: 0 }; max];
    let room = c_int::try_from(max).unwrap_or(c_int::MAX);
    // SAFETY: the events are a vector of that length; the mask is null or valid.
    let rc = unsafe {
        match mask {
            None => libc::epoll_wait(epfd, events.as_mut_ptr(), room, timeout_ms),
            Some(mask) => libc::epoll_pwait(epfd, events.as_mut_ptr(), room, timeout_ms, mask),
        }
    };
    let count = usize::try_from(ret(rc)?).unwrap_or(0);
    Ok(events
        .iter()
        .take(count)
        .map(|e| (e.events, e.u64))
        .collect())
}

/// epoll_pwait2(2) with a timeout in nanoseconds.
pub fn epoll_pwait2(epfd: c_int, max: usize, ns: i64) -> Result<Vec<(u32, u64)>, i32> {
    let mut events = vec![epoll_event { events: 0, u64: 0 }; max];
    let room = c_int::try_from(max).unwrap_or(c_int::MAX);
    let time = timespec {
        tv_sec: ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    };
    // SAFETY: the events are a vector of that length; the timeout is local.
    let rc =
        unsafe { libc::epoll_pwait2(epfd, events.as_mut_ptr(), room, &raw const time, null()) };
    let count = usize::try_from(ret(rc)?).unwrap_or(0);
    Ok(events
        .iter()
        .take(count)
        .map(|e| (e.events, e.u64))
        .collect())
}

/// epoll_wait(2) with any address and room.
pub fn epoll_wait_at(epfd: c_int, at: usize, max: c_int, timeout_ms: c_int) -> Ret {
    let events = core::ptr::with_exposed_provenance_mut::<epoll_event>(at);
    // SAFETY: as in `send_at`.
    ret(unsafe { libc::epoll_wait(epfd, events, max, timeout_ms) })
}

/// Which call [`wait_masked`] waits by.
#[derive(Clone, Copy, Debug)]
pub enum Waiting {
    /// ppoll(2).
    Poll,
    /// pselect(2).
    Select,
    /// epoll_pwait(2), with the time in whole milliseconds, rounded up.
    Set,
    /// epoll_pwait2(2).
    SetInNs,
}

/// Waits until `fd`, or what stands in `set`, is readable, with a timeout in nanoseconds and a signal mask.
pub fn wait_masked(
    what: Waiting,
    fd: c_int,
    set: c_int,
    ns: Option<i64>,
    mask: Option<&sigset_t>,
) -> Ret {
    let time = ns.map(|ns| timespec {
        tv_sec: ns / 1_000_000_000,
        tv_nsec: ns % 1_000_000_000,
    });
    wait_by(what, fd, set, time, mask)
}

/// The same with a time that may be none.
pub fn wait_for_time(what: Waiting, fd: c_int, set: c_int, tv_sec: i64, tv_nsec: i64) -> Ret {
    wait_by(what, fd, set, Some(timespec { tv_sec, tv_nsec }), None)
}

fn wait_by(
    what: Waiting,
    fd: c_int,
    set: c_int,
    time: Option<timespec>,
    mask: Option<&sigset_t>,
) -> Ret {
    let at = time.as_ref().map_or(null(), core::ptr::from_ref);
    let mask = mask.map_or(null(), core::ptr::from_ref);
    let mut events = [epoll_event { events: 0, u64: 0 }; 4];
    let events = events.as_mut_ptr();
    match what {
        Waiting::Poll => {
            let mut entries = entries_of(&[(fd, libc::POLLIN)]);
            // SAFETY: one entry; time and mask are null or valid.
            ret(unsafe { libc::ppoll(entries.as_mut_ptr(), 1, at, mask) })
        }
        Waiting::Select => {
            let mut read = set_of(&[fd]);
            // SAFETY: a local set; time and mask are null or valid.
            ret(unsafe { libc::pselect(fd + 1, &raw mut read, null_mut(), null_mut(), at, mask) })
        }
        Waiting::Set => {
            let ms = time.map_or(-1, |time| {
                time.tv_sec * 1000 + (time.tv_nsec + 999_999) / 1_000_000
            });
            let ms = c_int::try_from(ms).unwrap_or(c_int::MAX);
            // SAFETY: room for four events; the mask is null or valid.
            ret(unsafe { libc::epoll_pwait(set, events, 4, ms, mask) })
        }
        // SAFETY: room for four events; time and mask are null or valid.
        Waiting::SetInNs => ret(unsafe { libc::epoll_pwait2(set, events, 4, at, mask) }),
    }
}
