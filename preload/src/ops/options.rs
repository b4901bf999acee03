//! Options and requests that concern the state of a connection: ioctl, fcntl, getsockopt, setsockopt.

#![expect(
    unsafe_code,
    reason = "the program's option values and libc's own calls"
)]

use core::ffi::{c_int, c_ulong};
use core::sync::atomic::Ordering;

use libc::{c_void, socklen_t};
use rdma_core::Reason;

use super::{ready, recv};
use crate::conn::{Conn, conn};
use crate::{fds, kernel, lifecycle, probe, real, relayed};

const SO_ZEROCOPY: c_int = 60;
const SO_PEEK_OFF: c_int = 42;
const TCP_ULP: c_int = 31;
const TCP_REPAIR: c_int = 19;
const TCP_ZEROCOPY_RECEIVE: c_int = 35;
/// A message tells how many bytes are left to be read.
pub(crate) const TCP_INQ: c_int = 36;
/// A message tells when its bytes came: SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING, each also with
/// times that last beyond 2038.
pub(crate) const TIMESTAMPS: [c_int; 6] = [29, 35, 37, 63, 64, 65];
/// Timeouts, by both their numbers.
const TIMEOUTS: [(c_int, c_int); 4] = [
    (libc::SO_RCVTIMEO, libc::SO_RCVTIMEO),
    (libc::SO_SNDTIMEO, libc::SO_SNDTIMEO),
    (66, libc::SO_RCVTIMEO),
    (67, libc::SO_SNDTIMEO),
];
const FIONREAD: c_ulong = 0x541b;
const FIONBIO: c_ulong = 0x5421;
const FIOASYNC: c_ulong = 0x5452;

/// No option that concerns us has a longer value.
const VALUE_MAX: usize = 16;

/// ioctl(2).
///
/// # Safety
/// As ioctl itself.
pub(crate) unsafe fn ioctl(fd: c_int, request: c_ulong, arg: usize) -> c_int {
    // SAFETY: by contract.
    let native = || unsafe { real::ioctl(fd, request, arg) };
    let Some(index) = fds::lookup(fd).as_conn() else {
        return native();
    };
    let conn = conn(index);
    match request {
        FIONREAD => {
            let place = core::ptr::with_exposed_provenance_mut::<c_int>(arg);
            let value =
                recv::readable(conn, fd).map(|bytes| c_int::try_from(bytes).unwrap_or(c_int::MAX));
            match value {
                // SAFETY: FIONREAD's argument points to an int that it overwrites.
                Some(value) if unsafe { probe::write(place, value) } => 0,
                _ => native(),
            }
        }
        kernel::SIOCATMARK if recv::is_ring_ahead(conn) => {
            let place = core::ptr::with_exposed_provenance_mut::<c_int>(arg);
            // SAFETY: the request's argument points to an int that it overwrites.
            if unsafe { probe::write(place, 0) } {
                0
            } else {
                native()
            }
        }
        FIONBIO => {
            let rc = native();
            if rc == 0 {
                refresh_nonblocking(conn, fd);
            }
            rc
        }
        FIOASYNC => {
            lifecycle::to_kernel(conn, fd, Reason::UnseenWaiter);
            native()
        }
        _ => native(),
    }
}

/// fcntl(2).
///
/// # Safety
/// As fcntl itself.
pub(crate) unsafe fn fcntl(fd: c_int, command: c_int, arg: usize) -> c_int {
    // SAFETY: by contract.
    let rc = unsafe { real::fcntl(fd, command, arg) };
    if rc < 0 {
        return rc;
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => lifecycle::duplicated(fd, rc),
        libc::F_SETFL => {
            if let Some(index) = fds::lookup(fd).as_conn() {
                let conn = conn(index);
                refresh_nonblocking(conn, fd);
                if arg & libc::O_ASYNC as usize != 0 {
                    lifecycle::to_kernel(conn, fd, Reason::UnseenWaiter);
                }
            }
        }
        _ => {}
    }
    rc
}

fn refresh_nonblocking(conn: &Conn, fd: c_int) {
    conn.forget_flags();
    let flag = u32::from(kernel::is_nonblocking(fd));
    conn.slot().meta.nonblocking.store(flag, Ordering::Relaxed);
}

/// setsockopt(2).
///
/// # Safety
/// As setsockopt itself.
pub(crate) unsafe fn set(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: by contract.
    let native = || unsafe { real::setsockopt(fd, level, name, value, len) };
    let Some(index) = fds::lookup(fd).as_conn() else {
        return native();
    };
    let conn = conn(index);
    // SAFETY: by contract.
    if let Some(reason) = unsafe { beyond_a_ring(level, name, value, len) } {
        // A ring knows nothing of this: the stream goes back to the kernel first.
        lifecycle::to_kernel(conn, fd, reason);
    }
    let rc = native();
    if rc == 0
        && (level, name) == (libc::SOL_SOCKET, libc::SO_RCVLOWAT)
        && let Some(lowat) = kernel::option_int(fd, level, name)
    {
        conn.slot()
            .rx
            .lowat
            .store(lowat.max(0).cast_unsigned(), Ordering::Relaxed);
    }
    if rc == 0
        && level == libc::SOL_SOCKET
        && let Some(&(_, which)) = TIMEOUTS.iter().find(|(number, _)| *number == name)
    {
        // SAFETY: any bytes are a number; the kernel has just read them.
        let seconds = unsafe { probe::read(value.cast::<i64>()) };
        conn.set_never_waits(which, seconds.is_some_and(|seconds| seconds < 0));
    }
    if rc == 0
        && (level, name) == (libc::IPPROTO_TCP, TCP_INQ)
        && let Some(inq) = kernel::option_int(fd, level, name)
    {
        conn.slot()
            .rx
            .inq
            .store(u32::from(inq != 0), Ordering::Relaxed);
    }
    rc
}

/// Why a connection on which this option is set cannot be on a ring. Switching something off that is
/// usually off is no reason.
///
/// # Safety
/// As setsockopt.
unsafe fn beyond_a_ring(
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> Option<Reason> {
    // SAFETY: any bytes are a number.
    let number = || (len >= 4).then(|| unsafe { probe::read(value.cast::<c_int>()) })?;
    let is_on = || number().is_some_and(|number| number != 0);
    match (level, name) {
        (libc::SOL_SOCKET, SO_ZEROCOPY) if is_on() => Some(Reason::ZeroCopy),
        (libc::SOL_SOCKET, SO_PEEK_OFF) if number().is_some_and(|number| number >= 0) => {
            Some(Reason::PeekOffset)
        }
        (libc::SOL_SOCKET, libc::SO_OOBINLINE) if is_on() => Some(Reason::OutOfBand),
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_BPF)
        | (libc::IPPROTO_TCP, TCP_ULP | TCP_REPAIR)
            if probe::readable(value.cast(), (len as usize).min(VALUE_MAX)) =>
        {
            Some(Reason::SocketOption)
        }
        (libc::SOL_SOCKET, _) if TIMESTAMPS.contains(&name) && is_on() => {
            Some(Reason::SocketOption)
        }
        _ => None,
    }
}

/// getsockopt(2).
///
/// # Safety
/// As getsockopt itself.
pub(crate) unsafe fn get(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    if (level, name) == (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE)
        && let Some(index) = fds::lookup(fd).as_conn()
    {
        // Pages of the kernel's receive queue are about to be mapped.
        lifecycle::to_kernel(conn(index), fd, Reason::ZeroCopy);
    }
    let asks_for_error = (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR);
    if asks_for_error && let Some(index) = fds::lookup(fd).as_conn() {
        expect_break(conn(index), fd);
    }
    // SAFETY: by contract.
    let rc = unsafe { real::getsockopt(fd, level, name, value, len) };
    if rc == 0
        && asks_for_error
        && let Some(index) = fds::lookup(fd).as_conn()
    {
        let conn = conn(index);
        if let Some(view) = conn.view() {
            relayed::note_reset(conn, view, view.theirs.state.ended_at().is_some());
        }
        let error = conn.take_error().to_ne_bytes();
        // The program may have room for a part of the number only.
        // SAFETY: the kernel has just written the length there.
        let room = unsafe { len.read_unaligned() } as usize;
        let mut known = [0; 4];
        let known = known.get_mut(..room).unwrap_or_default();
        // SAFETY: the kernel has just written so many bytes there.
        unsafe {
            value
                .cast::<u8>()
                .copy_to_nonoverlapping(known.as_mut_ptr(), known.len());
        };
        if error != [0; 4] && known.iter().all(|&byte| byte == 0) {
            // SAFETY: as above.
            unsafe {
                value
                    .cast::<u8>()
                    .copy_from_nonoverlapping(error.as_ptr(), known.len());
            };
        }
    }
    rc
}

/// The connection's error is asked for: that of a dead or broken one comes next.
fn expect_break(conn: &Conn, fd: c_int) {
    if let Some(view) = conn.view() {
        recv::ask_kernel(conn, view, fd);
    }
    let broken = conn.view().filter(|view| relayed::is_broken(view));
    if let Some(view) = broken.filter(|_| ready::involves_ring(conn)) {
        let error = recv::take_break(conn, view, fd);
        if error != 0 {
            conn.defer_error(error);
        }
    }
}
