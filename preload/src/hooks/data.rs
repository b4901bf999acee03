//! Bytes: read, write and their many relatives.

use core::cell::Cell;
use core::ffi::{c_int, c_void};

use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};

use crate::conn::conn;
use crate::ops::{file, options, ready, recv, send};
use crate::user::Buffers;
use crate::{config, errno, fds, lifecycle, probe, real};

// SAFETY (whole file): each hook passes on exactly the arguments that the program gave to the libc
// function of the same name, whose contract is therefore the program's to keep.

macro_rules! receive_one {
    ($fd:expr, $buf:expr, $len:expr, $flags:expr, $native:expr) => {{
        let entry = fds::lookup($fd);
        match entry.as_conn() {
            None => $native(),
            Some(index) => recv::recv(
                $fd,
                entry,
                index,
                &mut Buffers::one($buf, $len),
                $flags,
                $native,
            ),
        }
    }};
}

macro_rules! send_one {
    ($fd:expr, $buf:expr, $len:expr, $flags:expr, $native:expr) => {{
        let entry = fds::lookup($fd);
        match entry.as_conn() {
            None => $native(),
            Some(index) => {
                let buffers = Buffers::one($buf.cast_mut(), $len);
                send::send($fd, entry, index, &buffers, $flags, $native)
            }
        }
    }};
}

export! {
    unsafe fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::read(fd, buf, len) };
        // Unlike recv, read of nothing does not wait.
        if len == 0 { native() } else { receive_one!(fd, buf, len, 0, native) }
    }

    unsafe fn recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        receive_one!(fd, buf, len, flags, move || unsafe { real::recv(fd, buf, len, flags) })
    }

    unsafe fn recvfrom(
        fd: c_int, buf: *mut c_void, len: size_t, flags: c_int, addr: *mut sockaddr, alen: *mut socklen_t,
    ) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::recvfrom(fd, buf, len, flags, addr, alen) };
        let got = receive_one!(fd, buf, len, flags, native);
        if got >= 0 && !addr.is_null() && fds::lookup(fd).as_conn().is_some() {
            // SAFETY: see the top of the file.
            return unsafe { named_nobody(got, alen) };
        }
        got
    }

    unsafe fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t) -> ssize_t {
        // SAFETY: see the top of the file. libc's version ends the program when len > room.
        let native = move || unsafe { real::__read_chk(fd, buf, len, room) };
        if len > room || len == 0 { native() } else { receive_one!(fd, buf, len, 0, native) }
    }

    unsafe fn __recv_chk(fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::__recv_chk(fd, buf, len, room, flags) };
        if len > room { native() } else { receive_one!(fd, buf, len, flags, native) }
    }

    unsafe fn __recvfrom_chk(
        fd: c_int, buf: *mut c_void, len: size_t, room: size_t, flags: c_int,
        addr: *mut sockaddr, alen: *mut socklen_t,
    ) -> ssize_t {
        if len > room {
            // SAFETY: see the top of the file.
            return unsafe { real::__recvfrom_chk(fd, buf, len, room, flags, addr, alen) };
        }
        // SAFETY: see the top of the file.
        unsafe { recvfrom(fd, buf, len, flags, addr, alen) }
    }

    unsafe fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::readv(fd, iov, count) };
        let entry = fds::lookup(fd);
        let Some(index) = entry.as_conn() else { return native() };
        // SAFETY: see the top of the file.
        match unsafe { Buffers::vector(iov, count) } {
            Ok(mut buffers) if buffers.left() > 0 => recv::recv(fd, entry, index, &mut buffers, 0, native),
            Ok(_) | Err(_) => native(),
        }
    }

    unsafe fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { receive_message(fd, msg, flags) }
    }

    unsafe fn recvmmsg(
        fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int, timeout: *mut timespec,
    ) -> c_int {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::recvmmsg(fd, msgs, count, flags, timeout) };
        if fds::lookup(fd).as_conn().is_none() {
            let got = native();
            if got > 0 && config::config().is_some() {
                for i in 0..got.unsigned_abs() as usize {
                    // SAFETY: the kernel has just written it.
                    unsafe { note_received(&raw const (*msgs.add(i)).msg_hdr) };
                }
            }
            return got;
        }
        // SAFETY: see the top of the file.
        unsafe { receive_messages(fd, msgs, count, flags, timeout) }
    }

    unsafe fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
        // SAFETY: see the top of the file.
        send_one!(fd, buf, len, 0, move || unsafe { real::write(fd, buf, len) })
    }

    unsafe fn send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        send_one!(fd, buf, len, flags, move || unsafe { real::send(fd, buf, len, flags) })
    }

    unsafe fn sendto(
        fd: c_int, buf: *const c_void, len: size_t, flags: c_int, addr: *const sockaddr, alen: socklen_t,
    ) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::sendto(fd, buf, len, flags, addr, alen) };
        // Linux TCP ignores the address of a connected socket (except with MSG_FASTOPEN), but not one
        // that is none.
        if !addr.is_null() && fds::lookup(fd).as_conn().is_some() && !is_address(addr, alen) {
            return native();
        }
        send_one!(fd, buf, len, flags, native)
    }

    unsafe fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::writev(fd, iov, count) };
        let entry = fds::lookup(fd);
        let Some(index) = entry.as_conn() else { return native() };
        // SAFETY: see the top of the file.
        match unsafe { Buffers::vector(iov, count) } {
            Ok(buffers) => send::send(fd, entry, index, &buffers, 0, native),
            Err(_) => native(),
        }
    }

    unsafe fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { send_message(fd, msg, flags) }
    }

    unsafe fn sendmmsg(fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int) -> c_int {
        if fds::lookup(fd).as_conn().is_none() {
            if may_pass_ours() {
                for i in 0..count.min(1024) as usize {
                    // SAFETY: see the top of the file.
                    unsafe { note_passed(&raw const (*msgs.wrapping_add(i)).msg_hdr) };
                }
            }
            // SAFETY: see the top of the file.
            return unsafe { real::sendmmsg(fd, msgs, count, flags) };
        }
        // SAFETY: see the top of the file.
        unsafe { send_messages(fd, msgs, count, flags) }
    }

    unsafe fn sendfile(out: c_int, input: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { file::sendfile(out, input, offset, count) }
    }

    unsafe fn sendfile64(out: c_int, input: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        // SAFETY: see the top of the file; off_t has 64 bits here.
        unsafe { file::sendfile(out, input, offset, count) }
    }

    unsafe fn splice(
        input: c_int, in_offset: *mut i64, out: c_int, out_offset: *mut i64, len: size_t, flags: u32,
    ) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { file::splice(input, in_offset, out, out_offset, len, flags) }
    }

    unsafe fn preadv2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::preadv2(fd, iov, count, offset, flags) };
        let entry = fds::lookup(fd);
        let Some(index) = entry.as_conn().filter(|_| offset == -1) else { return native() };
        let wait = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: see the top of the file.
        match unsafe { Buffers::vector(iov, count) } {
            Ok(mut buffers) if buffers.left() > 0 => recv::recv(fd, entry, index, &mut buffers, wait, native),
            Ok(_) | Err(_) => native(),
        }
    }

    unsafe fn pwritev2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        let native = move || unsafe { real::pwritev2(fd, iov, count, offset, flags) };
        let entry = fds::lookup(fd);
        let Some(index) = entry.as_conn().filter(|_| offset == -1) else { return native() };
        let wait = if flags & libc::RWF_NOWAIT != 0 { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: see the top of the file.
        match unsafe { Buffers::vector(iov, count) } {
            Ok(buffers) => send::send(fd, entry, index, &buffers, wait, native),
            Err(_) => native(),
        }
    }
}

/// # Safety
/// As recvmsg.
unsafe fn receive_message(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: by contract.
    let native = move || unsafe { real::recvmsg(fd, msg, flags) };
    let entry = fds::lookup(fd);
    let Some(index) = entry.as_conn() else {
        let got = native();
        if got >= 0 && config::config().is_some() {
            // SAFETY: the kernel has just written it.
            unsafe { note_received(msg) };
        }
        return got;
    };
    // SAFETY: any bytes are a header of numbers and addresses.
    let Some(header) = (unsafe { probe::read(msg) }) else {
        return native();
    };
    let Ok(count) = c_int::try_from(header.msg_iovlen) else {
        return native();
    };
    // SAFETY: by contract.
    let Ok(mut buffers) = (unsafe { Buffers::vector(header.msg_iov, count) }) else {
        return native();
    };
    let got = recv::recv(fd, entry, index, &mut buffers, flags, native);
    if got == 0 || got > 0 && buffers.done() > 0 {
        // Not written by the kernel: what TCP reports beside data.
        // SAFETY: words of the program's header, which the kernel would overwrite.
        let told = unsafe {
            (header.msg_name.is_null() || probe::write(&raw mut (*msg).msg_namelen, 0))
                && probe::write(&raw mut (*msg).msg_flags, 0)
                && probe::write(&raw mut (*msg).msg_controllen, 0)
        };
        if !told {
            // The bytes are taken, as on TCP.
            return errno::fail(libc::EFAULT);
        }
    }
    got
}

/// recvmmsg by single receives, as the kernel does it: after the first message without waiting if
/// MSG_WAITFORONE is given; an error after the first message is left for the next call.
///
/// # Safety
/// As recvmmsg.
unsafe fn receive_messages(
    fd: c_int,
    msgs: *mut mmsghdr,
    count: u32,
    mut flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let fail = |error| {
        errno::set(error);
        -1
    };
    let mut deadline = None;
    if !timeout.is_null() {
        // SAFETY: any bytes are a time.
        let Some(time) = (unsafe { probe::read(timeout) }) else {
            return fail(libc::EFAULT);
        };
        let Some(ns) = ready::from_timespec(time) else {
            return fail(libc::EINVAL);
        };
        deadline = Some(crate::control::monotonic_ns().saturating_add(ns));
    }
    let Some(conn) = fds::lookup(fd).as_conn().map(conn) else {
        errno::set(libc::EBADF);
        return -1;
    };
    if recv::is_in_kernel(conn, fd, flags) {
        let told = Cell::new(-1);
        let native = || {
            // SAFETY: by contract.
            told.set(unsafe { real::recvmmsg(fd, msgs, count, flags, timeout) });
            let messages = 0..u32::try_from(told.get()).unwrap_or(0) as usize;
            // SAFETY: the kernel has written so many entries.
            let bytes = messages
                .map(|i| unsafe { (*msgs.add(i)).msg_len } as usize)
                .sum::<usize>();
            if told.get() < 0 {
                -1
            } else {
                bytes.cast_signed()
            }
        };
        if recv::from_kernel(conn, fd, &native).is_some() {
            return told.get();
        }
    }
    // As the kernel does it: an error of the socket comes before what lies in its queue.
    match options::take_error(conn, fd) {
        0 => {}
        error => {
            errno::set(error);
            return -1;
        }
    }
    let one = flags & libc::MSG_WAITFORONE != 0;
    flags &= !libc::MSG_WAITFORONE;
    let mut done = 0;
    while done < count.min(1024) {
        let entry = msgs.wrapping_add(done as usize);
        // SAFETY: the address of an entry's header, which is touched before it is used.
        let got = unsafe { receive_message(fd, &raw mut (*entry).msg_hdr, flags) };
        let Ok(len) = u32::try_from(got) else {
            let error = errno::get();
            if done > 0 && !matches!(error, libc::EAGAIN | libc::EINTR | libc::EFAULT) {
                conn.defer_error(error);
            }
            break;
        };
        // SAFETY: a word of the program's entry, which the kernel would overwrite.
        if !unsafe { probe::write(&raw mut (*entry).msg_len, len) } {
            errno::set(libc::EFAULT);
            break;
        }
        done += 1;
        if one {
            flags |= libc::MSG_DONTWAIT;
        }
        if deadline.is_some_and(|at| crate::control::monotonic_ns() >= at) {
            break;
        }
    }
    if let Some(at) = deadline.filter(|_| done > 0) {
        // Linux tells the time that is left.
        let left = at.saturating_sub(crate::control::monotonic_ns());
        // SAFETY: the program's time, which the kernel would overwrite.
        if !unsafe { probe::write(timeout, ready::to_timespec(left)) } {
            return fail(libc::EFAULT);
        }
    }
    if done == 0 && count > 0 {
        -1
    } else {
        done.cast_signed()
    }
}

/// # Safety
/// As sendmsg.
unsafe fn send_message(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: by contract.
    let native = move || unsafe { real::sendmsg(fd, msg, flags) };
    let entry = fds::lookup(fd);
    let Some(index) = entry.as_conn() else {
        if may_pass_ours() {
            // SAFETY: by contract.
            unsafe { note_passed(msg) };
        }
        return native();
    };
    // SAFETY: any bytes are a header of numbers and addresses.
    let Some(header) = (unsafe { probe::read(msg) }) else {
        return native();
    };
    let Ok(count) = c_int::try_from(header.msg_iovlen) else {
        return native();
    };
    if !is_sound(&header) {
        return native();
    }
    // SAFETY: by contract.
    match unsafe { Buffers::vector(header.msg_iov, count) } {
        Ok(buffers) => send::send(fd, entry, index, &buffers, flags, native),
        Err(_) => native(),
    }
}

/// Whether an address that the program gives beside the data of a connected socket can be one; what
/// cannot, the kernel refuses.
fn is_address(addr: *const sockaddr, len: socklen_t) -> bool {
    len as usize <= size_of::<libc::sockaddr_storage>() && is_there(addr.cast(), len as usize)
}

/// As [`is_address`], for all that a message carries beside its data.
fn is_sound(header: &msghdr) -> bool {
    let name_len = (header.msg_namelen as usize).min(size_of::<libc::sockaddr_storage>());
    let is_named = !header.msg_name.is_null();
    !(is_named
        && (c_int::try_from(header.msg_namelen).is_err() || !is_there(header.msg_name, name_len)))
        && is_there(header.msg_control, header.msg_controllen)
}

/// Whether bytes beside the data can be read: those that the kernel would copy in any case.
fn is_there(at: *const c_void, len: usize) -> bool {
    probe::readable(at.cast(), len.min(CONTROL_MAX))
}

/// More control data than the kernel takes.
const CONTROL_MAX: usize = 1 << 20;

/// Tells that a connected TCP socket names nobody; `got` or an error.
///
/// # Safety
/// `alen` is the program's word for the length of an address.
unsafe fn named_nobody(got: ssize_t, alen: *mut socklen_t) -> ssize_t {
    // SAFETY: any bytes are a length.
    match unsafe { probe::read(alen) } {
        // SAFETY: by contract a word to be overwritten.
        Some(room) if room <= i32::MAX as u32 && unsafe { probe::write(alen, 0) } => got,
        Some(room) if room > i32::MAX as u32 => errno::fail(libc::EINVAL),
        _ => errno::fail(libc::EFAULT),
    }
}

/// Whether a message may carry a descriptor of ours.
fn may_pass_ours() -> bool {
    config::config().is_some() && lifecycle::any_known()
}

/// Descriptors that are passed to another process stay on TCP. Only if connections are known: the header
/// and what it points to are touched.
///
/// # Safety
/// Nobody changes the header, if it is one.
unsafe fn note_passed(msg: *const msghdr) {
    // SAFETY: any bytes are a header of numbers and addresses.
    let Some(header) = (unsafe { probe::read(msg) }) else {
        return;
    };
    if header.msg_controllen <= CONTROL_MAX && is_there(header.msg_control, header.msg_controllen) {
        // SAFETY: the control data was found readable.
        unsafe { each_descriptor(&header, lifecycle::passed_on) };
    }
}

/// Gives each descriptor that stands in a message (SCM_RIGHTS) to `found`.
///
/// # Safety
/// The control data can be read.
unsafe fn each_descriptor(header: &msghdr, found: impl Fn(c_int)) {
    if header.msg_control.is_null() {
        return;
    }
    let end = header.msg_control.addr() + header.msg_controllen;
    let header = core::ptr::from_ref(header);
    // SAFETY: by contract.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !at.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers inside the control data.
        let part = unsafe { &*at };
        if part.cmsg_level == libc::SOL_SOCKET && part.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: only computes a length.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(at) };
            let room = end.saturating_sub(data.addr());
            let fds = part.cmsg_len.saturating_sub(overhead).min(room) / size_of::<c_int>();
            for i in 0..fds {
                // SAFETY: i is inside the part's data.
                let bytes = unsafe { data.add(i * size_of::<c_int>()).cast::<[u8; 4]>().read() };
                found(c_int::from_ne_bytes(bytes));
            }
        }
        // SAFETY: as above.
        at = unsafe { libc::CMSG_NXTHDR(header, at) };
    }
}

/// Descriptors that came from another process, in a message that the kernel has just written.
///
/// # Safety
/// `msg` points to a header.
unsafe fn note_received(msg: *const msghdr) {
    // SAFETY: by contract.
    let header = unsafe { msg.read() };
    // SAFETY: the kernel has just written the control data.
    unsafe {
        each_descriptor(&header, |fd| {
            lifecycle::created(fd);
            lifecycle::adopt_unknown(fd);
        });
    };
}

/// # Safety
/// As sendmmsg.
unsafe fn send_messages(fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int) -> c_int {
    let mut done = 0;
    while done < count.min(1024) {
        let entry = msgs.wrapping_add(done as usize);
        // SAFETY: the address of an entry's header, which is touched before it is used.
        let sent = unsafe { send_message(fd, &raw const (*entry).msg_hdr, flags) };
        let Ok(len) = u32::try_from(sent) else { break };
        // SAFETY: a word of the program's entry, which the kernel would overwrite.
        if !unsafe { probe::write(&raw mut (*entry).msg_len, len) } {
            errno::set(libc::EFAULT);
            break;
        }
        done += 1;
    }
    if done == 0 && count > 0 {
        -1
    } else {
        done.cast_signed()
    }
}
