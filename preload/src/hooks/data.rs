//! Bytes: read, write and their many relatives.

use core::ffi::{c_int, c_void};

use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};

use crate::ops::{file, message, recv, send, vector};
use crate::user::Buffers;
use crate::{fds, real};

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
            return unsafe { message::named_nobody(got, alen) };
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
        unsafe { message::receive(fd, msg, flags) }
    }

    unsafe fn recvmmsg(
        fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int, timeout: *mut timespec,
    ) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { message::receive_batch(fd, msgs, count, flags, timeout) }
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
        if !addr.is_null() && fds::lookup(fd).as_conn().is_some() && !message::is_address(addr, alen) {
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
        unsafe { message::send(fd, msg, flags) }
    }

    unsafe fn sendmmsg(fd: c_int, msgs: *mut mmsghdr, count: u32, flags: c_int) -> c_int {
        // SAFETY: see the top of the file.
        unsafe { message::send_batch(fd, msgs, count, flags) }
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
        unsafe { vector::read(fd, iov, count, offset, flags) }
    }

    unsafe fn preadv64v2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file; off_t has 64 bits here.
        unsafe { vector::read(fd, iov, count, offset, flags) }
    }

    unsafe fn pwritev2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file.
        unsafe { vector::write(fd, iov, count, offset, flags) }
    }

    unsafe fn pwritev64v2(fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t {
        // SAFETY: see the top of the file; off_t has 64 bits here.
        unsafe { vector::write(fd, iov, count, offset, flags) }
    }
}
