//! Further names under which glibc exports the same functions.

use core::ffi::{c_char, c_int, c_void};

use libc::{
    fd_set, nfds_t, pid_t, pollfd, sigaction as SigAction, size_t, sockaddr, socklen_t, ssize_t,
    timeval,
};

use super::{data, fd as descriptors, process, ready, socket};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

export! {
    unsafe fn __read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { data::read(fd, buf, len) }
    }

    unsafe fn __write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { data::write(fd, buf, len) }
    }

    unsafe fn __send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { data::send(fd, buf, len, flags) }
    }

    unsafe fn __connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { socket::connect(fd, addr, len) }
    }

    unsafe fn __close(fd: c_int) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { descriptors::close(fd) }
    }

    unsafe fn __fcntl(fd: c_int, command: c_int, arg: usize) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { descriptors::fcntl(fd, command, arg) }
    }

    unsafe fn __dup2(old: c_int, new: c_int) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { descriptors::viaduct_dup2(old, new) }
    }

    unsafe fn __open(path: *const c_char, flags: c_int, mode: usize) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { descriptors::open(path, flags, mode) }
    }

    unsafe fn __open64(path: *const c_char, flags: c_int, mode: usize) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { descriptors::open64(path, flags, mode) }
    }

    unsafe fn __pipe(pair: *mut c_int) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { descriptors::viaduct_pipe(pair) }
    }

    unsafe fn __poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { ready::poll(fds, count, timeout) }
    }

    unsafe fn __select(
        count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, time: *mut timeval,
    ) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { ready::select(count, read, write, except, time) }
    }

    unsafe fn __fork() -> pid_t {
        // SAFETY: no arguments.
        unsafe { process::fork() }
    }

    unsafe fn __sigaction(number: c_int, new: *const SigAction, old: *mut SigAction) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { process::viaduct_sigaction(number, new, old) }
    }
}
