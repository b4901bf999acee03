//! What the kernel knows of a socket: exact byte counts, states, options.
//!
//! The numbers at which a direction is switched come from here and nowhere else, so they are right
//! whoever read or wrote the socket before (fork, exec, calls that we did not see):
//!
//! * sent so far = `tcpi_bytes_acked` + SIOCOUTQ, less the SYN on the connecting side,
//! * read so far = `tcpi_bytes_received` - SIOCINQ, less the FIN once it has come.
//!
//! The two values of a sum are read by two system calls, so the first is read again until it has
//! not moved in between.

#![expect(unsafe_code, reason = "system calls on the program's descriptors")]

use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libc::{c_void, pollfd, sockaddr, sockaddr_storage, socklen_t};

use crate::{errno, probe, real};

const SO_COOKIE: c_int = 57;
const TCP_ULP: c_int = 31;
const SIOCINQ: u64 = 0x541b;
const SIOCOUTQ: u64 = 0x5411;
pub(crate) const SIOCATMARK: u64 = 0x8905;
const SIOCOUTQNSD: u64 = 0x894b;

/// TCP states as the kernel numbers them.
pub(crate) const TCP_ESTABLISHED: u8 = 1;
const TCP_TIME_WAIT: u8 = 6;
/// As [`TCP_ESTABLISHED`].
pub(crate) const TCP_CLOSE: u8 = 7;
/// As [`TCP_ESTABLISHED`]: the far end has ended its direction.
pub(crate) const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_CLOSING: u8 = 11;

/// Tries before a moving count is given up (the caller then simply tries at its next call).
const SAMPLES: usize = 8;

/// The first 256 bytes of `struct tcp_info`.
struct TcpInfo([u8; 256]);

impl TcpInfo {
    fn of(fd: c_int) -> Option<Self> {
        let mut info = Self([0; 256]);
        let len = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info.0)?;
        // Up to and including tcpi_bytes_retrans (Linux 4.19).
        (len >= 216).then_some(info)
    }

    fn u64_at(&self, at: usize) -> u64 {
        self.0
            .get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    }

    fn state(&self) -> u8 {
        self.0[0]
    }

    fn bytes_acked(&self) -> u64 {
        self.u64_at(120)
    }

    fn bytes_received(&self) -> u64 {
        self.u64_at(128)
    }

    /// Data bytes sent, those sent again included (Linux 4.19).
    fn bytes_sent(&self) -> u64 {
        self.u64_at(200)
    }

    fn bytes_retransmitted(&self) -> u64 {
        self.u64_at(208)
    }

    /// What the far end has room for.
    fn send_window(&self) -> u32 {
        let bytes = self.0.get(228..232).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }
}

/// Reads an option into `value`; the length that the kernel wrote.
fn option<const N: usize>(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: &mut [u8; N],
) -> Option<usize> {
    errno::preserved(|| {
        let mut len = socklen_t::try_from(N).ok()?;
        // SAFETY: value has N writable bytes.
        let rc =
            unsafe { real::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) };
        (rc == 0).then_some(len as usize)
    })
}

/// An integer option.
pub(crate) fn option_int(fd: c_int, level: c_int, name: c_int) -> Option<c_int> {
    let mut value = [0u8; 4];
    option(fd, level, name, &mut value).map(|_| c_int::from_ne_bytes(value))
}

/// SO_COOKIE: names the socket for as long as the machine runs.
pub(crate) fn cookie(fd: c_int) -> Option<u64> {
    let mut value = [0u8; 8];
    option(fd, libc::SOL_SOCKET, SO_COOKIE, &mut value).map(|_| u64::from_ne_bytes(value))
}

/// Whether the socket is TCP's.
pub(crate) fn is_tcp(fd: c_int) -> bool {
    option_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP)
}

/// The socket's error, which is taken by being told; 0: none.
pub(crate) fn take_error(fd: c_int) -> c_int {
    option_int(fd, libc::SOL_SOCKET, libc::SO_ERROR).unwrap_or(0)
}

/// A receive or send timeout in nanoseconds; `None` for none.
pub(crate) fn timeout_ns(fd: c_int, name: c_int) -> Option<u64> {
    let mut value = [0u8; 16];
    option(fd, libc::SOL_SOCKET, name, &mut value)?;
    let seconds = value.get(..8)?.try_into().ok().map(u64::from_ne_bytes)?;
    let micros = value.get(8..)?.try_into().ok().map(u64::from_ne_bytes)?;
    let ns = seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(micros.saturating_mul(1000));
    (ns != 0).then_some(ns)
}

/// Whether an upper layer protocol (kTLS) sits on the socket.
pub(crate) fn has_ulp(fd: c_int) -> bool {
    let mut value = [0u8; 16];
    option(fd, libc::IPPROTO_TCP, TCP_ULP, &mut value).is_some_and(|len| len > 0 && value[0] != 0)
}

/// Whether TCP_USER_TIMEOUT is set.
pub(crate) fn has_user_timeout(fd: c_int) -> bool {
    option_int(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT).is_some_and(|ms| ms != 0)
}

/// The TCP state.
pub(crate) fn state(fd: c_int) -> Option<u8> {
    TcpInfo::of(fd).map(|info| info.state())
}

fn queue(fd: c_int, request: u64) -> Option<u64> {
    errno::preserved(|| {
        let mut value: c_int = 0;
        // SAFETY: the request writes one int.
        let rc = unsafe { real::ioctl(fd, request, (&raw mut value).addr()) };
        if rc == 0 {
            u64::try_from(value).ok()
        } else {
            None
        }
    })
}

/// Bytes that can be read from the kernel socket now.
pub(crate) fn readable(fd: c_int) -> Option<u64> {
    queue(fd, SIOCINQ)
}

/// What tells that the far end goes on to take what it is sent: bytes that its kernel has not acknowledged yet, and how many
/// more that has room for, 0 if this kernel does not say (Linux before 6.2).
pub(crate) fn under_way(fd: c_int) -> Option<(u64, u32)> {
    Some((queue(fd, SIOCOUTQ)?, TcpInfo::of(fd)?.send_window()))
}

/// Whether the next byte to be read is an urgent one, or was before it was read.
pub(crate) fn is_at_mark(fd: c_int) -> bool {
    queue(fd, SIOCATMARK) == Some(1)
}

/// Whether this end of an established connection called connect: `bytes_acked` then counts the SYN beside
/// the data. `None`: data is under way, so it cannot be told now.
pub(crate) fn has_connected(fd: c_int) -> Option<bool> {
    let info = TcpInfo::of(fd)?;
    if queue(fd, SIOCOUTQ)? != 0 || TcpInfo::of(fd)?.bytes_acked() != info.bytes_acked() {
        return None;
    }
    match info
        .bytes_acked()
        .checked_sub(info.bytes_sent() - info.bytes_retransmitted())?
    {
        side @ 0..=1 => Some(side == 1),
        _ => None,
    }
}

/// Bytes ever sent through the kernel on an established connection. `connected`: this end called
/// connect, so its count includes the SYN.
pub(crate) fn bytes_sent(fd: c_int, connected: bool) -> Option<u64> {
    let mut info = TcpInfo::of(fd)?;
    for _ in 0..SAMPLES {
        let queued = queue(fd, SIOCOUTQ)?;
        let again = TcpInfo::of(fd)?;
        if again.state() != TCP_ESTABLISHED && again.state() != TCP_CLOSE_WAIT {
            return None;
        }
        if again.bytes_acked() == info.bytes_acked() {
            return (again.bytes_acked() + queued).checked_sub(u64::from(connected));
        }
        info = again;
    }
    None
}

/// How many of the first `at` bytes of the stream are still to be read from the kernel socket; the caller
/// sees to it that nobody reads meanwhile. `Ok(None)`: the counts moved, ask again.
///
/// # Errors
/// The counts contradict `at`: more bytes were read or have come than the far end sent.
pub(crate) fn left_to_read(fd: c_int, at: u64) -> Result<Option<u64>, ()> {
    let Some(mut info) = TcpInfo::of(fd) else {
        return Ok(None);
    };
    for _ in 0..SAMPLES {
        let (Some(queued), Some(again)) = (queue(fd, SIOCINQ), TcpInfo::of(fd)) else {
            return Ok(None);
        };
        if again.bytes_received() == info.bytes_received() && again.state() == info.state() {
            return left(at, again.bytes_received(), queued, again.state()).ok_or(());
        }
        info = again;
    }
    Ok(None)
}

/// `Some(Some(n))`: n bytes are left. A FIN counts as one byte received; in state CLOSE it may or may not
/// have come, but nothing more will.
fn left(at: u64, received: u64, queued: u64, state: u8) -> Option<Option<u64>> {
    let fin = match state {
        TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING | TCP_TIME_WAIT => 1,
        TCP_CLOSE => match received.checked_sub(at)? {
            fin @ 0..=1 => fin,
            _ => return None,
        },
        _ => 0,
    };
    let read = received.checked_sub(queued + fin)?;
    at.checked_sub(read).map(Some)
}

/// Sends what the kernel holds back (MSG_MORE, TCP_CORK, Nagle), leaving the options as they were.
pub(crate) fn push(fd: c_int) {
    if queue(fd, SIOCOUTQNSD) == Some(0) {
        return;
    }
    let Some(before) = option_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY) else {
        return;
    };
    set_option_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    if before == 0 {
        set_option_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 0);
    }
}

fn set_option_int(fd: c_int, level: c_int, name: c_int, value: c_int) {
    errno::preserved(|| {
        // SAFETY: an int option.
        unsafe { real::setsockopt(fd, level, name, (&raw const value).cast::<c_void>(), 4) };
    });
}

/// shutdown(2) of the kernel's socket. Leaves errno alone.
pub(crate) fn shutdown(fd: c_int, how: c_int) {
    // SAFETY: no pointers.
    errno::preserved(|| unsafe { real::shutdown(fd, how) });
}

/// Makes the coming close send RST, as TCP does when unread bytes are thrown away.
pub(crate) fn reset_on_close(fd: c_int) {
    errno::preserved(|| {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: a linger structure of its size.
        unsafe {
            real::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast::<c_void>(),
                8,
            )
        };
    });
}

/// Resets the connection, whoever holds the socket: the far end gets RST, and this socket answers as if it had got one. What
/// lies unread in the socket is lost.
pub(crate) fn abort(fd: c_int) {
    errno::preserved(|| {
        // SAFETY: zero is a valid sockaddr; its family is AF_UNSPEC.
        let nowhere: sockaddr = unsafe { core::mem::zeroed() };
        let len = socklen_t::try_from(size_of::<sockaddr>()).unwrap_or(16);
        // SAFETY: an address of its length.
        unsafe { real::connect(fd, &raw const nowhere, len) };
        // ENOTCONN; but the socket reads and sends no more, as after a reset.
        // SAFETY: no memory.
        unsafe { real::shutdown(fd, libc::SHUT_RDWR) };
    });
}

/// Whether O_NONBLOCK is set.
pub(crate) fn is_nonblocking(fd: c_int) -> bool {
    has_flag(fd, libc::O_NONBLOCK)
}

/// Whether O_ASYNC is set: signals tell what happens on the kernel's socket.
pub(crate) fn is_asynchronous(fd: c_int) -> bool {
    has_flag(fd, libc::O_ASYNC)
}

fn has_flag(fd: c_int, flag: c_int) -> bool {
    errno::preserved(|| {
        // SAFETY: F_GETFL takes no argument.
        let flags = unsafe { real::fcntl(fd, libc::F_GETFL, 0) };
        flags >= 0 && flags & flag != 0
    })
}

/// Whether exec closes the descriptor.
pub(crate) fn is_close_on_exec(fd: c_int) -> bool {
    errno::preserved(|| {
        // SAFETY: F_GETFD takes no argument.
        let flags = unsafe { real::fcntl(fd, libc::F_GETFD, 0) };
        flags < 0 || flags & libc::FD_CLOEXEC != 0
    })
}

/// What the kernel says of the socket now: poll(2) bits.
pub(crate) fn poll_now(fd: c_int, events: i16) -> i16 {
    errno::preserved(|| {
        let mut entry = pollfd {
            fd,
            events,
            revents: 0,
        };
        // SAFETY: one entry.
        unsafe { real::poll(&raw mut entry, 1, 0) };
        entry.revents
    })
}

/// Sends what the kernel takes now of memory of ours.
///
/// # Errors
/// The errno; EAGAIN if it takes nothing.
pub(crate) fn send_now(fd: c_int, bytes: *const u8, len: usize) -> Result<usize, c_int> {
    errno::preserved(|| {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the kernel only reads, and answers EFAULT if it cannot.
        let sent = unsafe { real::send(fd, bytes.cast(), len, flags) };
        usize::try_from(sent).map_err(|_| errno::get())
    })
}

/// Looks at the next byte of the kernel socket without taking it: `Ok(true)` a byte, `Ok(false)` end
/// of stream, else the errno (EAGAIN: nothing yet).
pub(crate) fn peek(fd: c_int) -> Result<bool, c_int> {
    errno::preserved(|| {
        let mut byte = 0u8;
        // SAFETY: one writable byte.
        let rc = unsafe {
            real::recv(
                fd,
                (&raw mut byte).cast(),
                1,
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        };
        match rc {
            0 => Ok(false),
            1.. => Ok(true),
            _ => Err(errno::get()),
        }
    })
}

/// Whether the kernel refuses buffers for where they lie: a look at urgent data, which a buffer is not
/// touched for, is refused for that reason before any other.
pub(crate) fn refuses(fd: c_int, parts: *mut libc::iovec, count: usize) -> bool {
    // SAFETY: zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = parts;
    message.msg_iovlen = count;
    let flags = libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    errno::preserved(|| {
        // SAFETY: the kernel checks the parts itself.
        let rc = unsafe { real::recvmsg(fd, &raw mut message, flags) };
        rc < 0 && errno::get() == libc::EFAULT
    })
}

/// The two addresses of a connected socket: own, far.
pub(crate) fn addresses(fd: c_int) -> Option<(SocketAddr, SocketAddr)> {
    // Neither function is hooked.
    Some((name(fd, libc::getsockname)?, far_address(fd)?))
}

/// The far address of a connected socket.
pub(crate) fn far_address(fd: c_int) -> Option<SocketAddr> {
    name(fd, libc::getpeername)
}

fn name(
    fd: c_int,
    ask: unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int,
) -> Option<SocketAddr> {
    errno::preserved(|| {
        // SAFETY: zero is a valid sockaddr_storage.
        let mut storage: sockaddr_storage = unsafe { core::mem::zeroed() };
        let mut len = socklen_t::try_from(size_of::<sockaddr_storage>()).ok()?;
        // SAFETY: storage has len bytes, and `ask` is one of the two functions above, which write no more.
        let rc = unsafe { ask(fd, (&raw mut storage).cast(), &raw mut len) };
        if rc == 0 { address(&storage) } else { None }
    })
}

/// Whether the program asks connect to dissolve the connection (AF_UNSPEC). Only for connections of ours:
/// the address is touched.
pub(crate) fn is_unspecified(addr: *const sockaddr, len: socklen_t) -> bool {
    // SAFETY: any bytes are a family.
    len >= 2 && unsafe { probe::read(addr.cast::<u16>()) } == Some(0)
}

/// An address given by the program.
///
/// # Safety
/// `addr` points to `len` readable bytes (the kernel has just read or written them), or is null.
pub(crate) unsafe fn address_of(addr: *const sockaddr, len: socklen_t) -> Option<SocketAddr> {
    if addr.addr() < 4096 || (len as usize) < size_of::<libc::sockaddr_in>() {
        return None;
    }
    // SAFETY: zero is a valid sockaddr_storage.
    let mut storage: sockaddr_storage = unsafe { core::mem::zeroed() };
    let take = (len as usize).min(size_of::<libc::sockaddr_in6>());
    // SAFETY: `take` bytes are readable by contract and fit the storage.
    unsafe {
        core::ptr::copy_nonoverlapping(addr.cast::<u8>(), (&raw mut storage).cast::<u8>(), take);
    };
    if storage.ss_family != AF_INET && take < size_of::<libc::sockaddr_in6>() {
        return None;
    }
    address(&storage)
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The Internet address in `storage`.
pub(crate) fn address(storage: &sockaddr_storage) -> Option<SocketAddr> {
    match storage.ss_family {
        AF_INET => {
            // SAFETY: the family says sockaddr_in, which is smaller than the storage.
            let v4: &libc::sockaddr_in = unsafe { &*(&raw const *storage).cast() };
            let ip = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
        }
        AF_INET6 => {
            // SAFETY: the family says sockaddr_in6, which is smaller than the storage.
            let v6: &libc::sockaddr_in6 = unsafe { &*(&raw const *storage).cast() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fin_is_not_a_byte_of_the_stream() {
        // 100 bytes sent, 40 of them read, 60 queued.
        assert_eq!(left(100, 100, 60, TCP_ESTABLISHED), Some(Some(60)));
        assert_eq!(left(100, 101, 60, TCP_CLOSE_WAIT), Some(Some(60)));
        assert_eq!(
            left(100, 101, 60, TCP_CLOSE),
            Some(Some(60)),
            "both FINs are through"
        );
        assert_eq!(
            left(100, 100, 60, TCP_CLOSE),
            Some(Some(60)),
            "reset without FIN"
        );
        assert_eq!(
            left(100, 30, 10, TCP_ESTABLISHED),
            Some(Some(80)),
            "70 still on the way"
        );
        assert_eq!(
            left(100, 150, 0, TCP_ESTABLISHED),
            None,
            "a writer that nobody saw"
        );
        assert_eq!(
            left(100, 90, 0, TCP_CLOSE),
            None,
            "bytes that can no longer come"
        );
    }
}
