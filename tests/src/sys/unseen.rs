//! System calls that no preload library sees: for tests that move or measure bytes behind its back.
//!
//! rustix makes them without libc; what it has not goes by `syscall`, whose numbers used here nobody hooks.

#![expect(
    unsafe_code,
    reason = "raw system calls, which libc's symbols do not show"
)]

use std::os::fd::BorrowedFd;

use libc::c_int;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};

use super::{Ret, size};

/// What the kernel's TCP says of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// The state, as the kernel numbers it.
    pub state: u8,
    /// Positions given out to what was written, the FIN among them and the SYN not.
    pub written: u64,
    /// Positions received, the FIN among them.
    pub received: u64,
    /// Positions written and not acknowledged.
    pub queued: u64,
}

/// TCP_INFO and SIOCOUTQ. `connected`: this end's SYN counts as acknowledged.
pub fn counts(fd: c_int, connected: bool) -> Option<Counts> {
    let mut info = [0u64; 17];
    let mut len = size::<[u64; 17]>();
    let get = libc::SYS_getsockopt;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: a buffer of `len` bytes.
    let rc = unsafe { libc::syscall(get, fd, level, name, info.as_mut_ptr(), &raw mut len) };
    if rc != 0 {
        return None;
    }
    let mut queued: c_int = 0;
    // SAFETY: one int.
    let rc = unsafe { libc::syscall(libc::SYS_ioctl, fd, super::SIOCOUTQ, &raw mut queued) };
    let queued = u64::try_from(queued).ok().filter(|_| rc == 0)?;
    // tcpi_bytes_acked and tcpi_bytes_received (Linux 4.2).
    let [state, .., acked, received] = info;
    Some(Counts {
        state: state.to_le_bytes()[0],
        written: (acked + queued).saturating_sub(u64::from(connected)),
        received,
        queued,
    })
}

/// send(2).
pub fn send_unseen(fd: c_int, data: &[u8]) -> Ret {
    // SAFETY: the caller's descriptor is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    counted(rustix::net::send(fd, data, SendFlags::empty()))
}

/// recv(2) with MSG_WAITALL.
pub fn recv_unseen(fd: c_int, out: &mut [u8]) -> Ret {
    // SAFETY: the caller's descriptor is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    counted(rustix::net::recv(fd, out, RecvFlags::WAITALL).map(|(bytes, _)| bytes))
}

/// poll(2) for bytes to read: how many descriptors are ready.
pub fn poll_unseen(fd: c_int, timeout_ms: c_int) -> usize {
    // SAFETY: the caller's descriptor is open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let timeout = Timespec {
        tv_sec: i64::from(timeout_ms / 1000),
        tv_nsec: i64::from(timeout_ms % 1000) * 1_000_000,
    };
    let mut wants = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut wants, Some(&timeout)).unwrap_or(0)
}

fn counted(done: rustix::io::Result<usize>) -> Ret {
    done.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
        .map_err(rustix::io::Errno::raw_os_error)
}

/// Ends the process as exit(3) does.
pub fn exit(code: c_int) -> ! {
    std::process::exit(code)
}

/// dprintf(3), with a number, a fraction and a text.
pub fn print_to(fd: c_int, number: i32, fraction: f64) -> Ret {
    unsafe extern "C" {
        fn dprintf(fd: c_int, format: *const libc::c_char, ...) -> c_int;
    }
    let format = c"%d and %.2f and %s\n".as_ptr();
    // SAFETY: the arguments that the format asks for.
    super::ret(unsafe { dprintf(fd, format, number, fraction, c"text".as_ptr()) })
}

/// One request of POSIX's asynchronous I/O, by itself or in a list, to its end.
pub fn asynchronously(fd: c_int, bytes: &mut [u8], write: bool, listed: bool) -> Ret {
    // SAFETY: zero is a valid request.
    let mut request: libc::aiocb = unsafe { core::mem::zeroed() };
    request.aio_fildes = fd;
    request.aio_buf = bytes.as_mut_ptr().cast();
    request.aio_nbytes = bytes.len();
    request.aio_sigevent.sigev_notify = libc::SIGEV_NONE;
    request.aio_lio_opcode = if write {
        libc::LIO_WRITE
    } else {
        libc::LIO_READ
    };
    let mut list = [&raw mut request];
    // SAFETY: the request and its bytes live until it is over, see below.
    let begun = unsafe {
        match (listed, write) {
            (true, _) => libc::lio_listio(
                libc::LIO_NOWAIT,
                list.as_mut_ptr(),
                1,
                core::ptr::null_mut(),
            ),
            (false, true) => libc::aio_write(&raw mut request),
            (false, false) => libc::aio_read(&raw mut request),
        }
    };
    super::ret(begun)?;
    let waited = [(&raw const request)];
    loop {
        // SAFETY: the request that was begun.
        match unsafe { libc::aio_error(&raw const request) } {
            libc::EINPROGRESS => {
                // SAFETY: the same.
                unsafe { libc::aio_suspend(waited.as_ptr(), 1, core::ptr::null()) };
            }
            // SAFETY: the request is over.
            0 => return super::long(unsafe { libc::aio_return(&raw mut request) }),
            error => return Err(error),
        }
    }
}

/// The other names of libc's calls: a duplicate at number 444 with `__dup2` and `__fcntl`, bytes by
/// `__write` and `__send`, a wait by `__poll` and `__select`, a receive by `__read`, an end by `__close`.
/// What each returned; the descriptor that was received is left as it is.
pub fn by_other_names(fd: c_int, out: &mut [u8]) -> Vec<Ret> {
    unsafe extern "C" {
        fn __read(fd: c_int, buf: *mut u8, len: usize) -> isize;
        fn __write(fd: c_int, buf: *const u8, len: usize) -> isize;
        fn __send(fd: c_int, buf: *const u8, len: usize, flags: c_int) -> isize;
        fn __poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int;
        fn __select(
            count: c_int,
            read: *mut libc::fd_set,
            write: *mut libc::fd_set,
            except: *mut libc::fd_set,
            time: *mut libc::timeval,
        ) -> c_int;
        safe fn __dup2(old: c_int, new: c_int) -> c_int;
        safe fn __fcntl(fd: c_int, command: c_int, arg: c_int) -> c_int;
        safe fn __close(fd: c_int) -> c_int;
    }
    use super::{long, ret};
    let data = b"by other names";
    let new = __dup2(fd, 444);
    let flags = __fcntl(new, libc::F_GETFD, 0);
    // SAFETY: bytes of their length.
    let written = long(unsafe { __write(new, data.as_ptr(), data.len()) });
    // SAFETY: the same.
    let sent = long(unsafe { __send(new, data.as_ptr(), data.len(), 0) });
    let mut entry = libc::pollfd {
        fd: new,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry.
    let polled = ret(unsafe { __poll(&raw mut entry, 1, -1) });
    let mut set = core::mem::MaybeUninit::<libc::fd_set>::zeroed();
    // SAFETY: a set of its own, and a number below FD_SETSIZE.
    unsafe { libc::FD_SET(new, set.as_mut_ptr()) };
    let none = core::ptr::null_mut::<libc::fd_set>();
    // SAFETY: one set, nothing else.
    let selected =
        ret(unsafe { __select(445, set.as_mut_ptr(), none, none, core::ptr::null_mut()) });
    // SAFETY: a buffer of its length.
    let got = long(unsafe { __read(new, out.as_mut_ptr(), out.len()) });
    let closed = __close(new);
    vec![
        ret(new),
        ret(flags),
        written,
        sent,
        polled,
        selected,
        got,
        ret(closed),
    ]
}

/// execve(2) by the instruction itself: the library follows `syscall(3)`. Returns the error if it fails.
#[cfg(target_arch = "x86_64")]
pub fn become_unseen(program: &core::ffi::CStr, arguments: &[&core::ffi::CStr]) -> c_int {
    let mut list: Vec<*const libc::c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
    list.push(core::ptr::null());
    let environment = [core::ptr::null::<libc::c_char>()];
    let addresses = [
        program.as_ptr().expose_provenance(),
        list.as_ptr().expose_provenance(),
        environment.as_ptr().expose_provenance(),
    ];
    // SAFETY: terminated strings in terminated lists.
    let result = unsafe { call_unseen(libc::SYS_execve, addresses) };
    c_int::try_from(-result).unwrap_or(libc::EINVAL)
}

/// dup2(2) by the instruction itself. Returns the error if it fails.
#[cfg(target_arch = "x86_64")]
pub fn dup2_unseen(old: c_int, new: c_int) -> Result<(), c_int> {
    let numbers = [old, new, 0].map(|number| number.cast_unsigned() as usize);
    // SAFETY: no pointers.
    let result = unsafe { call_unseen(libc::SYS_dup2, numbers) };
    if result < 0 {
        return Err(c_int::try_from(-result).unwrap_or(libc::EINVAL));
    }
    Ok(())
}

/// A system call by the instruction itself; what the kernel gives.
///
/// # Safety
/// As of the call.
#[cfg(target_arch = "x86_64")]
unsafe fn call_unseen(number: libc::c_long, arguments: [usize; 3]) -> i64 {
    let result: i64;
    // SAFETY: by contract; the kernel changes no registers but those named.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}
