//! Sockets: making, naming, connecting, options.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::mem::{MaybeUninit, zeroed};
use core::ptr::null_mut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libc::{c_int, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t, timeval};

use super::{Ret, ret, size};

/// An address as the kernel wants it, and its length.
pub(super) fn sockaddr(address: SocketAddr) -> (sockaddr_storage, socklen_t) {
    // SAFETY: zero is a valid sockaddr_storage.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let at = &raw mut storage;
    let len = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the storage is larger than any address and aligned for all.
            let out = unsafe { &mut *at.cast::<sockaddr_in>() };
            out.sin_family = u16::try_from(libc::AF_INET).unwrap_or(0);
            out.sin_port = v4.port().to_be();
            out.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            size::<sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            // SAFETY: as above.
            let out = unsafe { &mut *at.cast::<sockaddr_in6>() };
            out.sin6_family = u16::try_from(libc::AF_INET6).unwrap_or(0);
            out.sin6_port = v6.port().to_be();
            out.sin6_addr.s6_addr = v6.ip().octets();
            size::<sockaddr_in6>()
        }
    };
    (storage, len)
}

fn address(storage: &sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says sockaddr_in.
            let v4 = unsafe { &*(&raw const *storage).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says sockaddr_in6.
            let v6 = unsafe { &*(&raw const *storage).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

/// socket(2) for TCP, or whatever `domain` and `kind` say.
pub fn socket(domain: c_int, kind: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::socket(domain, kind, 0) })
}

/// bind(2).
pub fn bind(fd: c_int, to: SocketAddr) -> Ret {
    let (storage, len) = sockaddr(to);
    // SAFETY: a local address of that length.
    ret(unsafe { libc::bind(fd, (&raw const storage).cast(), len) })
}

/// listen(2).
pub fn listen(fd: c_int, backlog: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::listen(fd, backlog) })
}

/// connect(2).
pub fn connect(fd: c_int, to: SocketAddr) -> Ret {
    let (storage, len) = sockaddr(to);
    // SAFETY: a local address of that length.
    ret(unsafe { libc::connect(fd, (&raw const storage).cast(), len) })
}

/// connect(2) to no address: ends the connection.
pub fn dissolve(fd: c_int) -> Ret {
    // SAFETY: zero is a valid address: AF_UNSPEC.
    let nowhere: sockaddr_storage = unsafe { zeroed() };
    // SAFETY: a local address of that length.
    ret(unsafe { libc::connect(fd, (&raw const nowhere).cast(), size::<sockaddr_in>()) })
}

/// accept4(2) without an address.
pub fn accept4(fd: c_int, flags: c_int) -> Ret {
    // SAFETY: null means no address.
    ret(unsafe { libc::accept4(fd, null_mut(), null_mut(), flags) })
}

/// accept(2) with an address.
pub fn accept_from(fd: c_int) -> (Ret, Option<SocketAddr>) {
    let mut storage = MaybeUninit::<sockaddr_storage>::zeroed();
    let mut len = size::<sockaddr_storage>();
    // SAFETY: the storage has `len` bytes.
    let fd = ret(unsafe { libc::accept(fd, storage.as_mut_ptr().cast(), &raw mut len) });
    // SAFETY: zero was a valid value, and the kernel wrote an address.
    (fd, address(unsafe { storage.assume_init_ref() }))
}

/// getsockname(2) (`far` false) or getpeername(2).
pub fn name(fd: c_int, far: bool) -> Result<SocketAddr, i32> {
    let mut storage = MaybeUninit::<sockaddr_storage>::zeroed();
    let mut len = size::<sockaddr_storage>();
    let at = storage.as_mut_ptr().cast();
    // SAFETY: the storage has `len` bytes.
    let rc = unsafe {
        if far {
            libc::getpeername(fd, at, &raw mut len)
        } else {
            libc::getsockname(fd, at, &raw mut len)
        }
    };
    ret(rc)?;
    // SAFETY: zero was a valid value, and the kernel wrote an address.
    address(unsafe { storage.assume_init_ref() }).ok_or(libc::EAFNOSUPPORT)
}

/// shutdown(2).
pub fn shutdown(fd: c_int, how: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::shutdown(fd, how) })
}

/// An integer option.
pub fn getsockopt(fd: c_int, level: c_int, name: c_int) -> Ret {
    let mut value: c_int = 0;
    let mut len = size::<c_int>();
    // SAFETY: one int.
    let rc = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    ret(rc).map(|_| i64::from(value))
}

/// setsockopt(2) with an int.
pub fn setsockopt(fd: c_int, level: c_int, name: c_int, value: c_int) -> Ret {
    let at = (&raw const value).cast();
    // SAFETY: one int.
    ret(unsafe { libc::setsockopt(fd, level, name, at, size::<c_int>()) })
}

/// SO_RCVTIMEO or SO_SNDTIMEO.
pub fn set_timeout(fd: c_int, name: c_int, ms: i64) -> Ret {
    let time = timeval {
        tv_sec: ms / 1000,
        tv_usec: ms % 1000 * 1000,
    };
    let at = (&raw const time).cast();
    // SAFETY: one timeval.
    ret(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, name, at, size::<timeval>()) })
}

/// SO_LINGER.
pub fn set_linger(fd: c_int, on: c_int, seconds: c_int) -> Ret {
    let linger = libc::linger {
        l_onoff: on,
        l_linger: seconds,
    };
    let at = (&raw const linger).cast();
    // SAFETY: one linger.
    ret(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            at,
            size::<libc::linger>(),
        )
    })
}

/// Payload bytes that the kernel's TCP has ever sent on this socket.
pub fn kernel_bytes_sent(fd: c_int) -> Option<u64> {
    let mut info = [0u64; 32];
    let mut len = size::<[u64; 32]>();
    let at = info.as_mut_ptr().cast();
    // SAFETY: a buffer of `len` bytes.
    let rc = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut len) };
    // tcpi_bytes_sent, at byte 200 (Linux 4.19).
    (rc == 0 && len >= 208).then_some(info[25])
}

/// The first byte of an option that is longer.
pub fn getsockopt_byte(fd: c_int, level: c_int, name: c_int) -> Ret {
    let mut value = 0u8;
    let mut len = size::<u8>();
    // SAFETY: one byte.
    let rc = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    ret(rc).map(|_| i64::from(value))
}
