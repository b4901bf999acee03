//! Descriptors: close, dup, fcntl, and the calls that hand out numbers.

use core::ffi::{c_char, c_int, c_void};

use rustix::process::{Resource, getrlimit};

use crate::ops::options;
use crate::{config, errno, fds, kick, lifecycle, real, retire};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

export! {
    unsafe fn close(fd: c_int) -> c_int {
        let entry = fds::lookup(fd);
        if entry.is_none() {
            // SAFETY: see the top of the file.
            return unsafe { real::close(fd) };
        }
        close_ours(fd)
    }

    unsafe fn fcntl(fd: c_int, command: c_int, arg: usize) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { options::fcntl(fd, command, arg) }
    }

    unsafe fn fcntl64(fd: c_int, command: c_int, arg: usize) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { options::fcntl(fd, command, arg) }
    }

    unsafe fn open(path: *const c_char, flags: c_int, mode: usize) -> c_int {
        // SAFETY: see the top of the file.
        handed_out(unsafe { real::open(path, flags, mode) })
    }

    unsafe fn open64(path: *const c_char, flags: c_int, mode: usize) -> c_int {
        // SAFETY: see the top of the file.
        handed_out(unsafe { real::open64(path, flags, mode) })
    }

    unsafe fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: usize) -> c_int {
        // SAFETY: see the top of the file.
        handed_out(unsafe { real::openat(dir, path, flags, mode) })
    }

    unsafe fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: usize) -> c_int {
        // SAFETY: see the top of the file.
        handed_out(unsafe { real::openat64(dir, path, flags, mode) })
    }

    unsafe fn close_range(first: u32, last: u32, flags: c_int) -> c_int {
        if config::config().is_none() || first > last || flags & !RANGE_FLAGS != 0 {
            // SAFETY: no pointers.
            return unsafe { real::close_range(first, last, flags) };
        }
        if flags & UNSHARE != 0 && retire::before_private_descriptors() {
            // Before anything is closed: the other threads keep it.
            // SAFETY: no pointers.
            if unsafe { real::unshare(libc::CLONE_FILES) } != 0 {
                return -1;
            }
        }
        close_between(first, last, flags & !UNSHARE)
    }

    unsafe fn unshare(flags: c_int) -> c_int {
        if flags & libc::CLONE_FILES != 0 {
            retire::before_private_descriptors();
        }
        // SAFETY: no pointers.
        unsafe { real::unshare(flags) }
    }

    unsafe fn closefrom(first: c_int) -> () {
        let first = u32::try_from(first).unwrap_or(0);
        let done = if config::config().is_some() {
            close_between(first, u32::MAX, 0)
        } else {
            // SAFETY: no pointers.
            unsafe { real::close_range(first, u32::MAX, 0) }
        };
        debug_assert!(done == 0, "close_range is older than every kernel we run on");
    }
}

redhook::hook! {
    unsafe fn dup(fd: c_int) -> c_int => viaduct_dup {
        // SAFETY: no pointers.
        let new = unsafe { real::dup(fd) };
        if new >= 0 {
            lifecycle::duplicated(fd, new);
        }
        new
    }
}

redhook::hook! {
    unsafe fn dup2(old: c_int, new: c_int) -> c_int => viaduct_dup2 {
        // SAFETY: no pointers.
        over(old, new, 0, || unsafe { real::dup2(old, new) })
    }
}

redhook::hook! {
    unsafe fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int => viaduct_dup3 {
        // SAFETY: no pointers.
        over(old, new, flags, || unsafe { real::dup3(old, new, flags) })
    }
}

redhook::hook! {
    unsafe fn pipe(pair: *mut c_int) -> c_int => viaduct_pipe {
        // SAFETY: see the top of the file.
        pair_handed_out(unsafe { real::pipe(pair) }, pair)
    }
}

redhook::hook! {
    unsafe fn pipe2(pair: *mut c_int, flags: c_int) -> c_int => viaduct_pipe2 {
        // SAFETY: see the top of the file.
        pair_handed_out(unsafe { real::pipe2(pair, flags) }, pair)
    }
}

redhook::hook! {
    unsafe fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int => viaduct_socketpair {
        // SAFETY: see the top of the file.
        pair_handed_out(unsafe { real::socketpair(domain, kind, protocol, pair) }, pair)
    }
}

redhook::hook! {
    unsafe fn creat(path: *const c_char, mode: usize) -> c_int => viaduct_creat {
        // SAFETY: see the top of the file.
        handed_out(unsafe { real::creat(path, mode) })
    }
}

redhook::hook! {
    unsafe fn creat64(path: *const c_char, mode: usize) -> c_int => viaduct_creat64 {
        // SAFETY: see the top of the file.
        handed_out(unsafe { real::creat64(path, mode) })
    }
}

redhook::hook! {
    unsafe fn eventfd(count: u32, flags: c_int) -> c_int => viaduct_eventfd {
        // SAFETY: no pointers.
        handed_out(unsafe { real::eventfd(count, flags) })
    }
}

redhook::hook! {
    unsafe fn timerfd_create(clock: c_int, flags: c_int) -> c_int => viaduct_timerfd_create {
        // SAFETY: no pointers.
        handed_out(unsafe { real::timerfd_create(clock, flags) })
    }
}

redhook::hook! {
    unsafe fn memfd_create(name: *const c_char, flags: u32) -> c_int => viaduct_memfd_create {
        // SAFETY: see the top of the file.
        handed_out(unsafe { real::memfd_create(name, flags) })
    }
}

redhook::hook! {
    unsafe fn inotify_init() -> c_int => viaduct_inotify_init {
        // SAFETY: no arguments.
        handed_out(unsafe { real::inotify_init() })
    }
}

redhook::hook! {
    unsafe fn inotify_init1(flags: c_int) -> c_int => viaduct_inotify_init1 {
        // SAFETY: no pointers.
        handed_out(unsafe { real::inotify_init1(flags) })
    }
}

redhook::hook! {
    unsafe fn signalfd(
        fd: c_int, mask: *const libc::sigset_t, flags: c_int
    ) -> c_int => viaduct_signalfd {
        // SAFETY: see the top of the file.
        let new = unsafe { real::signalfd(fd, mask, flags) };
        // Given a signalfd, it changes that one and hands nothing out.
        if fd == -1 { handed_out(new) } else { new }
    }
}

export! {
    unsafe fn fclose(stream: *mut c_void) -> c_int {
        // SAFETY: see the top of the file.
        closing_stream(stream, || unsafe { real::fclose(stream) })
    }

    unsafe fn pclose(stream: *mut c_void) -> c_int {
        // SAFETY: see the top of the file.
        closing_stream(stream, || unsafe { real::pclose(stream) })
    }
}

/// A stream takes its descriptor along, by a call that no hook sees.
fn closing_stream(stream: *mut c_void, native: impl Fn() -> c_int) -> c_int {
    if stream.is_null() || !lifecycle::any_known() {
        return native();
    }
    // SAFETY: the program's open stream.
    let fd = errno::preserved(|| unsafe { libc::fileno(stream.cast()) });
    if fds::lookup(fd).is_none() || !lifecycle::is_own_memory() {
        return native();
    }
    let closing = lifecycle::begin_close(fd);
    let rc = native();
    if let Some(closing) = closing {
        errno::preserved(|| closing.finish());
    }
    rc
}

redhook::hook! {
    unsafe fn fdopen(fd: c_int, mode: *const c_char) -> isize => viaduct_fdopen {
        lifecycle::to_stdio(fd);
        // SAFETY: see the top of the file.
        unsafe { real::fdopen(fd, mode) }
    }
}

#[inline]
fn handed_out(fd: c_int) -> c_int {
    lifecycle::created(fd);
    fd
}

fn pair_handed_out(rc: c_int, pair: *const c_int) -> c_int {
    if rc == 0 {
        // SAFETY: the kernel has just written two descriptors.
        let (first, second) = unsafe { (pair.read(), pair.add(1).read()) };
        lifecycle::created(first);
        lifecycle::created(second);
    }
    rc
}

#[cold]
fn close_ours(fd: c_int) -> c_int {
    if fds::lookup(fd).is_internal() {
        // The program never opened it.
        errno::set(libc::EBADF);
        return -1;
    }
    if !lifecycle::is_own_memory() {
        // A vfork child shares our memory, not our descriptors.
        // SAFETY: no pointers.
        return unsafe { real::close(fd) };
    }
    let closing = lifecycle::begin_close(fd);
    // SAFETY: no pointers.
    let rc = unsafe { real::close(fd) };
    if let Some(closing) = closing {
        kick::went_by_kernel();
        errno::preserved(|| closing.finish());
    }
    rc
}

/// dup2 and dup3: what stood at `new` is closed by the same call.
fn over(old: c_int, new: c_int, flags: c_int, native: impl Fn() -> c_int) -> c_int {
    let there = fds::lookup(new);
    if old == new || (there.is_none() && fds::lookup(old).is_none()) || !lifecycle::is_own_memory()
    {
        return native();
    }
    // A call that fails closes nothing. What it fails for, with `new` open, is known before.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // SAFETY: F_GETFD takes no argument.
    let is_open = || errno::preserved(|| unsafe { real::fcntl(old, libc::F_GETFD, 0) }) >= 0;
    if flags & !libc::O_CLOEXEC != 0
        || u64::try_from(new).map_or(true, |new| new >= limit)
        || !is_open()
    {
        return native();
    }
    if there.is_internal() {
        lifecycle::make_way(new);
    }
    let closing = lifecycle::begin_close(new);
    let rc = native();
    if let Some(closing) = closing {
        errno::preserved(|| closing.finish());
    }
    if rc >= 0 {
        lifecycle::duplicated(old, rc);
    }
    rc
}

const UNSHARE: c_int = libc::CLOSE_RANGE_UNSHARE.cast_signed();
const RANGE_FLAGS: c_int = UNSHARE | libc::CLOSE_RANGE_CLOEXEC.cast_signed();

/// close_range: our own descriptors in the range stay.
fn close_between(first: u32, last: u32, flags: c_int) -> c_int {
    let closes = flags & libc::CLOSE_RANGE_CLOEXEC.cast_signed() == 0 && lifecycle::is_own_memory();
    let mut from = first;
    let mut result = 0;
    let mut close = |from: u32, to: u32| {
        if from <= to && result == 0 {
            // SAFETY: no pointers.
            result = unsafe { real::close_range(from, to, flags) };
        }
    };
    fds::each(first, last, |fd, entry| {
        let number = fd.cast_unsigned();
        if entry.is_internal() {
            if number > from {
                close(from, number - 1);
            }
            from = number + 1;
        } else if closes {
            close_ours(fd);
        }
    });
    close(from, last);
    result
}
