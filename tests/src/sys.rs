//! libc's calls, as a C program makes them: through the symbols that a preload library hooks.
//!
//! Nothing is interpreted here: a result is what the call returned, or its errno. Descriptors are plain
//! numbers, because what happens to a wrong one is part of what is tested.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]
#![expect(
    clippy::cast_ptr_alignment,
    reason = "control data is aligned for its header"
)]

use core::mem::{MaybeUninit, zeroed};
use core::ptr::{null, null_mut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libc::{
    c_int, c_ulong, c_void, epoll_event, fd_set, iovec, itimerval, mmsghdr, msghdr, pollfd,
    sigset_t, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t, timespec, timeval,
};

/// What a call returned, or its errno.
pub type Ret = Result<i64, i32>;

/// The calling thread's errno.
pub fn errno() -> i32 {
    // SAFETY: libc returns a valid pointer to this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn ret(value: impl Into<i64>) -> Ret {
    let value = value.into();
    if value < 0 { Err(errno()) } else { Ok(value) }
}

fn long(value: isize) -> Ret {
    ret(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A descriptor out of a result; -1 if it is none.
pub fn fd_of(ret: Ret) -> c_int {
    ret.ok()
        .and_then(|fd| c_int::try_from(fd).ok())
        .unwrap_or(-1)
}

fn size<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// An address as the kernel wants it, and its length.
fn sockaddr(address: SocketAddr) -> (sockaddr_storage, socklen_t) {
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

/// close(2).
pub fn close(fd: c_int) -> Ret {
    // SAFETY: descriptors of the test are plain numbers; nothing owns them.
    ret(unsafe { libc::close(fd) })
}

/// shutdown(2).
pub fn shutdown(fd: c_int, how: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::shutdown(fd, how) })
}

/// send(2).
pub fn send(fd: c_int, data: &[u8], flags: c_int) -> Ret {
    send_at(fd, data.as_ptr().addr(), data.len(), flags)
}

/// recv(2).
pub fn recv(fd: c_int, out: &mut [u8], flags: c_int) -> Ret {
    // SAFETY: the buffer is a slice.
    long(unsafe { libc::recv(fd, out.as_mut_ptr().cast(), out.len(), flags) })
}

/// write(2).
pub fn write(fd: c_int, data: &[u8]) -> Ret {
    // SAFETY: the buffer is a slice.
    long(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })
}

/// read(2).
pub fn read(fd: c_int, out: &mut [u8]) -> Ret {
    // SAFETY: the buffer is a slice.
    long(unsafe { libc::read(fd, out.as_mut_ptr().cast(), out.len()) })
}

/// send(2) from any address: the kernel checks it.
pub fn send_at(fd: c_int, at: usize, len: usize, flags: c_int) -> Ret {
    let from = core::ptr::with_exposed_provenance::<c_void>(at);
    // SAFETY: a kernel call with a bad address fails; what is under test must not do worse.
    long(unsafe { libc::send(fd, from, len, flags) })
}

/// recv(2) to any address.
pub fn recv_at(fd: c_int, at: usize, len: usize, flags: c_int) -> Ret {
    let to = core::ptr::with_exposed_provenance_mut::<c_void>(at);
    // SAFETY: as in `send_at`; good addresses are never used here.
    long(unsafe { libc::recv(fd, to, len, flags) })
}

/// sendto(2).
pub fn sendto(fd: c_int, data: &[u8], flags: c_int, to: SocketAddr) -> Ret {
    let (storage, len) = sockaddr(to);
    let at = (&raw const storage).cast();
    // SAFETY: a slice and a local address.
    long(unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), flags, at, len) })
}

/// recvfrom(2) with an address buffer; the length that came back.
pub fn recvfrom(fd: c_int, out: &mut [u8], flags: c_int) -> (Ret, socklen_t) {
    let mut storage = MaybeUninit::<sockaddr_storage>::zeroed();
    let mut len = size::<sockaddr_storage>();
    let at = storage.as_mut_ptr().cast();
    // SAFETY: a slice, and a storage of `len` bytes.
    let got = unsafe {
        libc::recvfrom(
            fd,
            out.as_mut_ptr().cast(),
            out.len(),
            flags,
            at,
            &raw mut len,
        )
    };
    (long(got), len)
}

fn parts_of(data: &[&[u8]]) -> Vec<iovec> {
    let part = |d: &&[u8]| iovec {
        iov_base: d.as_ptr().cast_mut().cast(),
        iov_len: d.len(),
    };
    data.iter().map(part).collect()
}

fn parts_of_mut(out: &mut [&mut [u8]]) -> Vec<iovec> {
    let part = |d: &mut &mut [u8]| iovec {
        iov_base: d.as_mut_ptr().cast(),
        iov_len: d.len(),
    };
    out.iter_mut().map(part).collect()
}

fn count_of(parts: &[iovec]) -> c_int {
    c_int::try_from(parts.len()).unwrap_or(c_int::MAX)
}

/// writev(2).
pub fn writev(fd: c_int, data: &[&[u8]]) -> Ret {
    let parts = parts_of(data);
    // SAFETY: the parts are slices.
    long(unsafe { libc::writev(fd, parts.as_ptr(), count_of(&parts)) })
}

/// readv(2).
pub fn readv(fd: c_int, out: &mut [&mut [u8]]) -> Ret {
    let parts = parts_of_mut(out);
    // SAFETY: the parts are slices.
    long(unsafe { libc::readv(fd, parts.as_ptr(), count_of(&parts)) })
}

/// readv (`write` false) or writev with a vector at any address and any count.
pub fn vector_at(fd: c_int, at: usize, count: c_int, write: bool) -> Ret {
    let vec = core::ptr::with_exposed_provenance::<iovec>(at);
    // SAFETY: as in `send_at`.
    long(unsafe {
        if write {
            libc::writev(fd, vec, count)
        } else {
            libc::readv(fd, vec, count)
        }
    })
}

/// A vector whose entries are (address, length), for [`vector_at`]; lives for ever.
pub fn raw_vector(entries: &[(usize, usize)]) -> usize {
    let part = |&(at, iov_len): &(usize, usize)| iovec {
        iov_base: core::ptr::with_exposed_provenance_mut(at),
        iov_len,
    };
    let vec: Vec<iovec> = entries.iter().map(part).collect();
    vec.leak().as_ptr().expose_provenance()
}

/// preadv2 (`write` false) or pwritev2 at offset -1.
pub fn vector2(fd: c_int, buffer: &mut [u8], flags: c_int, write: bool) -> Ret {
    let part = iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let vec = &raw const part;
    // SAFETY: one part, which is a slice.
    long(unsafe {
        if write {
            libc::pwritev2(fd, vec, 1, -1, flags)
        } else {
            libc::preadv2(fd, vec, 1, -1, flags)
        }
    })
}

/// pread(2).
pub fn pread(fd: c_int, out: &mut [u8], offset: i64) -> Ret {
    // SAFETY: a slice.
    long(unsafe { libc::pread(fd, out.as_mut_ptr().cast(), out.len(), offset) })
}

/// sendmsg(2).
pub fn sendmsg(fd: c_int, data: &[&[u8]], flags: c_int) -> Ret {
    let mut parts = parts_of(data);
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: the parts are slices.
    long(unsafe { libc::sendmsg(fd, &raw const message, flags) })
}

/// What recvmsg(2) left in its header.
#[derive(Debug)]
pub struct Header {
    /// msg_flags.
    pub flags: c_int,
    /// msg_namelen.
    pub name_len: socklen_t,
    /// msg_controllen.
    pub control_len: usize,
}

/// recvmsg(2) with room for an address and control data.
pub fn recvmsg(fd: c_int, out: &mut [&mut [u8]], flags: c_int) -> (Ret, Header) {
    let mut parts = parts_of_mut(out);
    let mut name = MaybeUninit::<sockaddr_storage>::zeroed();
    let mut control = [0u64; 16];
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size::<sockaddr_storage>();
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    message.msg_flags = -1;
    // SAFETY: the parts are slices; name and control have the lengths said.
    let got = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    let header = Header {
        flags: message.msg_flags,
        name_len: message.msg_namelen,
        control_len: message.msg_controllen,
    };
    (long(got), header)
}

fn batch(parts: &mut [iovec]) -> Vec<mmsghdr> {
    let one = |part: &mut iovec| {
        // SAFETY: zero is a valid mmsghdr.
        let mut message: mmsghdr = unsafe { zeroed() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_len = 77;
        message
    };
    parts.iter_mut().map(one).collect()
}

/// sendmmsg(2), one part each; the lengths that came back.
pub fn sendmmsg(fd: c_int, data: &[&[u8]], flags: c_int) -> (Ret, Vec<u32>) {
    let mut parts = parts_of(data);
    let mut messages = batch(&mut parts);
    let count = u32::try_from(messages.len()).unwrap_or(0);
    // SAFETY: the parts are slices.
    let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, flags) };
    (ret(sent), messages.iter().map(|m| m.msg_len).collect())
}

/// recvmmsg(2), one part each; the lengths that came back.
pub fn recvmmsg(
    fd: c_int,
    out: &mut [&mut [u8]],
    flags: c_int,
    timeout_ms: Option<i64>,
) -> (Ret, Vec<u32>) {
    let mut parts = parts_of_mut(out);
    let mut messages = batch(&mut parts);
    let count = u32::try_from(messages.len()).unwrap_or(0);
    let mut time = timeout_ms.map(spec);
    let time = time.as_mut().map_or(null_mut(), core::ptr::from_mut);
    // SAFETY: the parts are slices, the timeout is null or local.
    let got = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, time) };
    (ret(got), messages.iter().map(|m| m.msg_len).collect())
}

fn spec(ms: i64) -> timespec {
    timespec {
        tv_sec: ms / 1000,
        tv_nsec: ms % 1000 * 1_000_000,
    }
}

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
        fds.iter()
            // SAFETY: the descriptors are below FD_SETSIZE.
            .map(|&fd| unsafe { libc::FD_ISSET(fd, set) })
            .collect()
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

/// fcntl(2) with an int.
pub fn fcntl(fd: c_int, command: c_int, arg: c_int) -> Ret {
    // SAFETY: the commands used here take an int.
    ret(unsafe { libc::fcntl(fd, command, arg) })
}

/// Sets or clears O_NONBLOCK, leaving the other flags.
pub fn set_nonblocking(fd: c_int, on: bool) -> Ret {
    let flags = fd_of(fcntl(fd, libc::F_GETFL, 0));
    let flags = if on {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    fcntl(fd, libc::F_SETFL, flags)
}

/// ioctl(2) with an int that goes in and comes back.
pub fn ioctl(fd: c_int, request: c_ulong, value: c_int) -> (Ret, c_int) {
    let mut value = value;
    // SAFETY: the requests used here take an int's address.
    let rc = unsafe { libc::ioctl(fd, request, &raw mut value) };
    (ret(rc), value)
}

/// ioctl(2) with an argument at any address.
pub fn ioctl_at(fd: c_int, request: c_ulong, at: usize) -> Ret {
    let value = core::ptr::with_exposed_provenance_mut::<c_int>(at);
    // SAFETY: as in `send_at`.
    ret(unsafe { libc::ioctl(fd, request, value) })
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

/// sendfile(2); the offset that came back, if one was given.
pub fn sendfile(out: c_int, input: c_int, offset: Option<i64>, count: usize) -> (Ret, Option<i64>) {
    let mut offset = offset;
    let at = offset.as_mut().map_or(null_mut(), core::ptr::from_mut);
    // SAFETY: the offset is null or local.
    let sent = unsafe { libc::sendfile(out, input, at, count) };
    (long(sent), offset)
}

/// splice(2) without offsets.
pub fn splice(input: c_int, out: c_int, len: usize, flags: u32) -> Ret {
    // SAFETY: no offsets.
    long(unsafe { libc::splice(input, null_mut(), out, null_mut(), len, flags) })
}

/// lseek(2).
pub fn lseek(fd: c_int, offset: i64, whence: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::lseek(fd, offset, whence) })
}

/// dup(2).
pub fn dup(fd: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::dup(fd) })
}

/// dup2(2).
pub fn dup2(fd: c_int, new: c_int) -> Ret {
    // SAFETY: descriptors of the test are plain numbers; nothing owns them.
    ret(unsafe { libc::dup2(fd, new) })
}

/// dup3(2).
pub fn dup3(fd: c_int, new: c_int, flags: c_int) -> Ret {
    // SAFETY: as in `dup2`.
    ret(unsafe { libc::dup3(fd, new, flags) })
}

/// close_range(2).
pub fn close_range(first: u32, last: u32) -> Ret {
    // SAFETY: as in `dup2`.
    ret(unsafe { libc::close_range(first, last, 0) })
}

/// closefrom(3).
pub fn closefrom(first: c_int) {
    unsafe extern "C" {
        safe fn closefrom(first: c_int);
    }
    closefrom(first);
}

/// A pipe: reading end, writing end.
pub fn pipe() -> (c_int, c_int) {
    let mut pair = [-1; 2];
    // SAFETY: room for two descriptors.
    unsafe { libc::pipe2(pair.as_mut_ptr(), libc::O_CLOEXEC) };
    (pair[0], pair[1])
}

/// A connected pair of Unix sockets.
pub fn socketpair() -> (c_int, c_int) {
    let mut pair = [-1; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors.
    unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
    (pair[0], pair[1])
}

/// A file without a name, holding `data`, its position at the start.
pub fn file_with(data: &[u8]) -> c_int {
    // SAFETY: a terminated name.
    let fd = unsafe { libc::memfd_create(c"data".as_ptr(), libc::MFD_CLOEXEC) };
    let written = write(fd, data);
    assert_eq!(
        written,
        Ok(i64::try_from(data.len()).unwrap_or(-1)),
        "writing a memory file"
    );
    assert_eq!(
        lseek(fd, 0, libc::SEEK_SET),
        Ok(0),
        "rewinding a memory file"
    );
    fd
}

/// fork(2): 0 in the child. The test has one thread when it forks.
pub fn fork() -> Ret {
    // SAFETY: the caller has one thread.
    ret(unsafe { libc::fork() })
}

/// Ends the process without destructors, as a forked child does.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: no pointers.
    unsafe { libc::_exit(code) }
}

/// Becomes `cat` with `fd` as its standard input and output; false if that cannot be done.
pub fn exec_cat(fd: c_int) -> bool {
    let (_, _) = (dup2(fd, 0), dup2(fd, 1));
    let arguments = [c"cat".as_ptr(), null()];
    // SAFETY: terminated strings in a terminated list.
    unsafe { libc::execv(c"/bin/cat".as_ptr(), arguments.as_ptr()) };
    false
}

/// The calling thread, for [`signal_thread`].
pub fn this_thread() -> libc::pthread_t {
    // SAFETY: no arguments.
    unsafe { libc::pthread_self() }
}

/// Sends a signal to a thread that has not been joined.
pub fn signal_thread(thread: libc::pthread_t, signal: c_int) {
    // SAFETY: the thread has not been joined, so its handle is valid.
    unsafe { libc::pthread_kill(thread, signal) };
}

/// Waits for a child: `exit N` or `signal N`.
pub fn wait_for(pid: Ret) -> String {
    let Ok(pid) = pid else {
        return "no child".to_owned();
    };
    let mut status = 0;
    let pid = libc::pid_t::try_from(pid).unwrap_or(-2);
    loop {
        // SAFETY: one int.
        let rc = ret(unsafe { libc::waitpid(pid, &raw mut status, 0) });
        match rc {
            Err(libc::EINTR) => {}
            Err(error) => return format!("waitpid: {error}"),
            Ok(_) if libc::WIFEXITED(status) => {
                return format!("exit {}", libc::WEXITSTATUS(status));
            }
            Ok(_) => return format!("signal {}", libc::WTERMSIG(status)),
        }
    }
}

/// Kills a process group of ours.
pub fn kill_group(leader: u32) {
    if let Ok(group) = libc::pid_t::try_from(leader) {
        // SAFETY: no pointers; the leader is our child and not yet waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// Sends `data` with descriptors beside it over a Unix socket.
pub fn send_fds(fd: c_int, data: &[u8], fds: &[c_int]) -> Ret {
    let mut control = [0u64; 16];
    let mut part = iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    let bytes = u32::try_from(size_of_val(fds)).unwrap_or(0);
    // SAFETY: only computes a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(bytes) } as usize;
    // SAFETY: the control buffer has room for the header and the descriptors.
    unsafe {
        let header = &mut *libc::CMSG_FIRSTHDR(&raw const message);
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        header.cmsg_len = libc::CMSG_LEN(bytes) as usize;
        let out = libc::CMSG_DATA(header).cast::<c_int>();
        core::ptr::copy_nonoverlapping(fds.as_ptr(), out, fds.len());
    }
    // SAFETY: a header made above.
    long(unsafe { libc::sendmsg(fd, &raw const message, 0) })
}

/// Receives one descriptor over a Unix socket; -1 if none came.
pub fn recv_fd(fd: c_int) -> c_int {
    let mut control = [0u64; 16];
    let mut byte = 0u8;
    let mut part = iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: a header made above.
    let got = unsafe { libc::recvmsg(fd, &raw mut message, 0) };
    // SAFETY: the header was filled by the kernel.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if got < 0 || header.is_null() {
        return -1;
    }
    // SAFETY: a control message of SCM_RIGHTS holds at least one descriptor.
    unsafe { libc::CMSG_DATA(header).cast::<c_int>().read_unaligned() }
}

/// Signals caught by [`catch`], all threads together.
static CAUGHT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

extern "C" fn count_signal(_signal: c_int) {
    CAUGHT.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
}

/// Catches `signal` and counts it.
pub fn catch(signal: c_int, flags: c_int) -> Ret {
    CAUGHT.store(0, core::sync::atomic::Ordering::SeqCst);
    let handler: extern "C" fn(c_int) = count_signal;
    disposition(signal, handler as *const () as usize, flags)
}

/// Default handling of `signal`, or ignoring it.
pub fn uncatch(signal: c_int, ignore: bool) -> Ret {
    disposition(
        signal,
        if ignore { libc::SIG_IGN } else { libc::SIG_DFL },
        0,
    )
}

fn disposition(signal: c_int, handler: usize, flags: c_int) -> Ret {
    // SAFETY: zero is a valid action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: a local action; the handler only counts.
    ret(unsafe { libc::sigaction(signal, &raw const action, null_mut()) })
}

/// Whether `signal` is handled as [`catch`] with these flags said.
pub fn is_caught(signal: c_int, flags: c_int) -> bool {
    // SAFETY: zero is a valid action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    // SAFETY: a local action.
    let rc = unsafe { libc::sigaction(signal, null(), &raw mut action) };
    let handler: extern "C" fn(c_int) = count_signal;
    // SA_RESTORER is libc's own.
    rc == 0
        && action.sa_sigaction == handler as *const () as usize
        && action.sa_flags & !0x0400_0000 == flags
}

/// How often a caught signal has come.
pub fn caught() -> u32 {
    CAUGHT.load(core::sync::atomic::Ordering::SeqCst)
}

/// SIGALRM after `first_ms`, then every `every_ms` (0: once). Both 0: never.
pub fn alarm(first_ms: i64, every_ms: i64) {
    let time = |ms: i64| timeval {
        tv_sec: ms / 1000,
        tv_usec: ms % 1000 * 1000,
    };
    let timer = itimerval {
        it_interval: time(every_ms),
        it_value: time(first_ms),
    };
    // SAFETY: a local timer.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, null_mut()) };
}

/// A set with one signal in it, or none.
pub fn signal_set(signal: Option<c_int>) -> sigset_t {
    let mut set = MaybeUninit::<sigset_t>::zeroed();
    // SAFETY: initialises a set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    if let Some(signal) = signal {
        // SAFETY: an initialised set.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

/// Blocks or unblocks one signal in this thread.
pub fn mask(signal: c_int, block: bool) {
    let set = signal_set(Some(signal));
    let how = if block {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a local set.
    unsafe { libc::pthread_sigmask(how, &raw const set, null_mut()) };
}

/// fdopen(3) for reading and writing; null if it failed.
#[derive(Debug)]
pub struct Stream(*mut libc::FILE);

impl Stream {
    /// fdopen.
    pub fn open(fd: c_int) -> Self {
        // SAFETY: a terminated mode.
        Self(unsafe { libc::fdopen(fd, c"r+".as_ptr()) })
    }

    /// fputs and fflush.
    pub fn put(&self, line: &str) -> Ret {
        let line = std::ffi::CString::new(line).unwrap_or_default();
        // SAFETY: a terminated string and an open stream.
        ret(unsafe { libc::fputs(line.as_ptr(), self.0) })?;
        // SAFETY: an open stream.
        ret(unsafe { libc::fflush(self.0) })
    }

    /// fgets.
    pub fn line(&self) -> Option<String> {
        let mut out = [0u8; 256];
        // SAFETY: a buffer of 256 bytes and an open stream.
        let got = unsafe { libc::fgets(out.as_mut_ptr().cast(), 256, self.0) };
        let text = core::ffi::CStr::from_bytes_until_nul(&out).ok()?;
        (!got.is_null()).then(|| text.to_string_lossy().into_owned())
    }

    /// close(2).
    pub fn close(self) -> Ret {
        // SAFETY: an open stream, not used after this.
        ret(unsafe { libc::fclose(self.0) })
    }
}

/// Two pages, of which only the first can be touched; the address of the second.
pub fn guarded_page() -> usize {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping.
    let base = unsafe { libc::mmap(null_mut(), 8192, prot, flags, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED, "mapping two pages");
    let second = base.expose_provenance() + 4096;
    // SAFETY: the second page of the mapping above.
    unsafe {
        libc::mprotect(
            core::ptr::with_exposed_provenance_mut(second),
            4096,
            libc::PROT_NONE,
        )
    };
    second
}

/// FIONREAD.
pub const FIONREAD: c_ulong = libc::FIONREAD;
/// Sets O_NONBLOCK.
pub const FIONBIO: c_ulong = libc::FIONBIO;
/// Bytes sent and not acknowledged.
pub const SIOCOUTQ: c_ulong = 0x5411;
