//! Calls by number, and what confines a process to a few of them.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::mem::MaybeUninit;
use core::ptr::null_mut;

use libc::{c_int, c_long, sock_filter, sock_fprog};

use super::{Ret, ret};

/// read(2) by number.
pub fn raw_read(fd: c_int, out: &mut [u8]) -> Ret {
    // SAFETY: a buffer of its length.
    ret(unsafe { libc::syscall(libc::SYS_read, fd, out.as_mut_ptr(), out.len()) })
}

/// write(2) by number.
pub fn raw_write(fd: c_int, data: &[u8]) -> Ret {
    // SAFETY: a buffer of its length.
    ret(unsafe { libc::syscall(libc::SYS_write, fd, data.as_ptr(), data.len()) })
}

/// recvfrom(2) by number.
pub fn raw_recv(fd: c_int, out: &mut [u8], flags: c_int) -> Ret {
    let none = null_mut::<u8>();
    let (at, len) = (out.as_mut_ptr(), out.len());
    // SAFETY: a buffer of its length.
    ret(unsafe { libc::syscall(libc::SYS_recvfrom, fd, at, len, flags, none, none) })
}

/// sendto(2) by number.
pub fn raw_send(fd: c_int, data: &[u8], flags: c_int) -> Ret {
    let none = null_mut::<u8>();
    let (at, len) = (data.as_ptr(), data.len());
    // SAFETY: a buffer of its length.
    ret(unsafe { libc::syscall(libc::SYS_sendto, fd, at, len, flags, none, 0) })
}

/// sendto(2) by number, to an address of no family.
pub fn raw_sendto(fd: c_int, data: &[u8]) -> Ret {
    let name = [0u8; 16];
    let (at, len) = (data.as_ptr(), data.len());
    // SAFETY: a buffer of its length, and an address.
    ret(unsafe { libc::syscall(libc::SYS_sendto, fd, at, len, 0, name.as_ptr(), 16) })
}

/// recvfrom(2) by number with room for an address; what is said of its length.
pub fn raw_recvfrom(fd: c_int, out: &mut [u8]) -> (Ret, u32) {
    let mut name = [0u8; 128];
    let mut room = 128u32;
    let (at, len) = (out.as_mut_ptr(), out.len());
    let named = name.as_mut_ptr();
    // SAFETY: a buffer of its length, and room for an address.
    let got = unsafe { libc::syscall(libc::SYS_recvfrom, fd, at, len, 0, named, &raw mut room) };
    (ret(got), room)
}

/// preadv2(2) (`write` false) or pwritev2(2) by number, at no offset.
pub fn raw_vector2(fd: c_int, buffer: &mut [u8], flags: c_int, write: bool) -> Ret {
    let part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let number = if write {
        libc::SYS_pwritev2
    } else {
        libc::SYS_preadv2
    };
    // SAFETY: one part, which is a slice.
    ret(unsafe { libc::syscall(number, fd, &raw const part, 1_usize, -1_i64, 0_usize, flags) })
}

/// sendmmsg(2) by number, of one message.
pub fn raw_sendmmsg(fd: c_int, data: &[u8]) -> Ret {
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: zero is a valid mmsghdr.
    let mut message: libc::mmsghdr = unsafe { core::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    // SAFETY: one message of one part, which is a slice.
    ret(unsafe { libc::syscall(libc::SYS_sendmmsg, fd, &raw mut message, 1, 0) })
}

/// recvmmsg(2) by number, of one message.
pub fn raw_recvmmsg(fd: c_int, out: &mut [u8]) -> Ret {
    let mut part = libc::iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    // SAFETY: zero is a valid mmsghdr.
    let mut message: libc::mmsghdr = unsafe { core::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    let none = null_mut::<u8>();
    // SAFETY: one message of one part, which is a slice.
    ret(unsafe { libc::syscall(libc::SYS_recvmmsg, fd, &raw mut message, 1, 0, none) })
        .map(|_| i64::from(message.msg_len))
}

/// splice(2) by number, without offsets.
pub fn raw_splice(input: c_int, out: c_int, len: usize) -> Ret {
    let none = null_mut::<i64>();
    // SAFETY: no offsets.
    ret(unsafe { libc::syscall(libc::SYS_splice, input, none, out, none, len, 0) })
}

/// sendfile(2) by number, from the file's position.
pub fn raw_sendfile(out: c_int, input: c_int, count: usize) -> Ret {
    let none = null_mut::<i64>();
    // SAFETY: no offset.
    ret(unsafe { libc::syscall(libc::SYS_sendfile, out, input, none, count) })
}

/// connect(2) by number, to no address.
pub fn raw_dissolve(fd: c_int) -> Ret {
    let nowhere = [0u8; 16];
    // SAFETY: an address of its length.
    ret(unsafe { libc::syscall(libc::SYS_connect, fd, nowhere.as_ptr(), 16) })
}

/// dup(2) and close(2) by number.
pub fn raw_dup(fd: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::syscall(libc::SYS_dup, fd) })
}

/// close(2) by number.
pub fn raw_close(fd: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::syscall(libc::SYS_close, fd) })
}

/// io_uring_setup(2) by number: whether there is one is the machine's affair.
pub fn io_uring_setup() {
    let mut params = [0u64; 15];
    // SAFETY: 120 bytes of parameters.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if let Ok(ring) = c_int::try_from(ring)
        && ring >= 0
    {
        let _ = super::close(ring);
    }
}

/// Asks by the kernel's older asynchronous I/O (io_setup and its relatives, by number) whether there is
/// something to read; what it told, which comes at once or when something is there.
pub fn polled_by_number(fd: c_int) -> Ret {
    // In `struct iocb` the operation and the descriptor are one word, and the events are the one after it.
    const POLL: u64 = 5;
    let mut context = 0u64;
    // SAFETY: a word for the context.
    ret(unsafe { libc::syscall(libc::SYS_io_setup, 4, &raw mut context) })?;
    let number = u64::from(fd.cast_unsigned());
    let events = u64::from(libc::POLLIN.cast_unsigned());
    let request = [0, 0, POLL | number << 32, events, 0, 0, 0, 0u64];
    let list = [&raw const request];
    // SAFETY: one request, which lives until it is over.
    let begun = ret(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_ptr()) });
    let mut told = [0u64; 4];
    let got = begun.and_then(|_| {
        let time = super::spec(10_000);
        let (told, time) = (told.as_mut_ptr(), &raw const time);
        // SAFETY: room for one event.
        ret(unsafe { libc::syscall(libc::SYS_io_getevents, context, 1, 1, told, time) })
    });
    // SAFETY: the context that was made.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    got.map(|count| count << 32 | told[2].cast_signed())
}

/// From now on every system call but these kills the process.
pub fn allow_only(calls: &[c_long]) -> Ret {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut program = vec![step(LOAD_NUMBER, 0, 0, 0)];
    for call in calls {
        let number = u32::try_from(*call).unwrap_or(u32::MAX);
        program.push(step(JUMP_IF_EQUAL, 0, 1, number));
        program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS));
    let filter = sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: no pointers.
    ret(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: a program of its length, which outlives the call.
    ret(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter, 0, 0) })
}

/// A filter of the socket that takes everything.
pub fn attach_open_filter(fd: c_int) -> Ret {
    const RETURN: u16 = 0x06;
    let mut program = [sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: u32::MAX,
    }];
    let filter = sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    let len = super::size::<sock_fprog>();
    // SAFETY: a program of its length, which outlives the call.
    ret(unsafe { libc::setsockopt(fd, level, name, (&raw const filter).cast(), len) })
}

/// ppoll by number, for `events` on one descriptor; the readiness, and whether time is left.
pub fn raw_ppoll(fd: c_int, events: i16, timeout_ms: i64) -> (Ret, i16, bool) {
    let mut entry = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let mut time = super::spec(timeout_ms);
    let none = null_mut::<u8>();
    // SAFETY: one entry, a local time, no mask.
    let rc = unsafe { libc::syscall(libc::SYS_ppoll, &raw mut entry, 1, &raw mut time, none, 8) };
    (ret(rc), entry.revents, time.tv_sec > 0 || time.tv_nsec > 0)
}

/// select and pselect6 by number, for reading from one descriptor; whether time is left.
pub fn raw_select(fd: c_int, timeout_ms: i64, six: bool) -> (Ret, bool) {
    let mut set = MaybeUninit::<libc::fd_set>::zeroed();
    // SAFETY: a set of its own, and a descriptor below FD_SETSIZE.
    unsafe { libc::FD_SET(fd, set.as_mut_ptr()) };
    // Nanoseconds or microseconds: none either way.
    let mut time = super::spec(timeout_ms / 1000 * 1000);
    let number = if six {
        libc::SYS_pselect6
    } else {
        libc::SYS_select
    };
    let none = null_mut::<u8>();
    // SAFETY: a local set and time, nothing else.
    let rc = unsafe {
        libc::syscall(
            number,
            fd + 1,
            set.as_mut_ptr(),
            none,
            none,
            &raw mut time,
            none,
        )
    };
    (ret(rc), time.tv_sec > 0 || time.tv_nsec > 0)
}

/// epoll_pwait and epoll_pwait2 by number; events and data of what is ready.
pub fn raw_epoll_pwait(epfd: c_int, timeout_ms: i64, two: bool) -> Result<Vec<(u32, u64)>, i32> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
    let time = super::spec(timeout_ms);
    let none = null_mut::<u8>();
    // SAFETY: local events and time, no mask.
    let rc = unsafe {
        if two {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epfd,
                events.as_mut_ptr(),
                4,
                &raw const time,
                none,
                8,
            )
        } else {
            libc::syscall(
                libc::SYS_epoll_pwait,
                epfd,
                events.as_mut_ptr(),
                4,
                timeout_ms,
                none,
                8,
            )
        }
    };
    let count = usize::try_from(ret(rc)?).unwrap_or(0);
    Ok(events
        .iter()
        .take(count)
        .map(|event| (event.events, event.u64))
        .collect())
}

/// setsockopt and getsockopt by number, of TCP_NODELAY.
pub fn raw_nodelay(fd: c_int, on: c_int) -> (Ret, c_int) {
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_NODELAY);
    let (mut value, mut len) = (-1, super::size::<c_int>());
    // SAFETY: a local int and its length.
    let set = unsafe { libc::syscall(libc::SYS_setsockopt, fd, level, name, &raw const on, len) };
    // SAFETY: the same.
    unsafe {
        libc::syscall(
            libc::SYS_getsockopt,
            fd,
            level,
            name,
            &raw mut value,
            &raw mut len,
        )
    };
    (ret(set), value)
}

/// fork by number: 0 in the child.
pub fn raw_fork() -> Ret {
    // SAFETY: no arguments; the caller has one thread.
    ret(unsafe { libc::syscall(libc::SYS_fork) })
}
