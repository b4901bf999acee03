//! sendfile and splice on a socket.

#![expect(
    unsafe_code,
    reason = "libc's own calls and a buffer of ours on the stack"
)]

use core::ffi::c_int;

use libc::off_t;
use rdma_core::Reason;

use super::ready::involves_ring;
use super::send;
use crate::conn::conn;
use crate::user::{Buffers, LENGTH_MAX};
use crate::{errno, fds, probe, real};

/// Bytes read from the file at once. On the stack of whoever calls sendfile.
const CHUNK: usize = 64 * 1024;

/// sendfile(2).
///
/// # Safety
/// As sendfile itself.
pub(crate) unsafe fn sendfile(out: c_int, input: c_int, offset: *mut off_t, count: usize) -> isize {
    // SAFETY: by contract.
    let native = || unsafe { real::sendfile(out, input, offset, count) };
    let Some(index) = fds::lookup(out).as_conn() else {
        return native();
    };
    let socket = conn(index);
    if !send::is_on_ring(socket, out) {
        // Counted as any other send, so that a file server's connections prove their worth.
        if let Some(sent) = send::to_kernel(socket, out, &native) {
            return sent;
        }
    }
    // SAFETY: by contract.
    unsafe { through_ring(out, input, offset, count.min(LENGTH_MAX)) }
}

/// Reads the file and sends what was read, with the file's position or `*offset` moved by exactly
/// what the socket took.
///
/// # Safety
/// `offset` is null or points to an offset.
unsafe fn through_ring(out: c_int, input: c_int, offset: *mut off_t, count: usize) -> isize {
    let mut chunk = [0u8; CHUNK];
    let own_position = offset.is_null();
    let mut at = if own_position {
        // SAFETY: lseek only reads the position.
        unsafe { libc::lseek(input, 0, libc::SEEK_CUR) }
    } else {
        // SAFETY: any bytes are an offset.
        match unsafe { probe::read(offset) } {
            Some(at) => at,
            None => return errno::fail(libc::EFAULT),
        }
    };
    if at < 0 {
        // Not seekable: the kernel refuses most of these, and we cannot take bytes back.
        let error = errno::get();
        return errno::fail(if error == libc::ESPIPE {
            libc::EINVAL
        } else {
            error
        });
    }
    let mut total = 0usize;
    while total < count {
        let want = (count - total).min(CHUNK);
        // SAFETY: the chunk has room for `want` bytes.
        let read = unsafe { real::pread(input, chunk.as_mut_ptr().cast(), want, at) };
        let Ok(read) = usize::try_from(read) else {
            if total == 0 {
                return -1;
            }
            break;
        };
        if read == 0 {
            break;
        }
        let entry = fds::lookup(out);
        let base = chunk.as_mut_ptr().cast();
        // SAFETY: the chunk holds `read` bytes.
        let plain = || unsafe { real::send(out, base, read, 0) };
        let sent = match entry.as_conn() {
            Some(index) => send::send(out, entry, index, &Buffers::one(base, read), 0, plain),
            None => plain(),
        };
        let Ok(sent) = usize::try_from(sent) else {
            if total == 0 {
                return -1;
            }
            break;
        };
        total += sent;
        at += off_t::try_from(sent).unwrap_or(0);
        if sent < read {
            break;
        }
    }
    if own_position {
        // SAFETY: moves the position of the file that the program gave.
        unsafe { libc::lseek(input, at, libc::SEEK_SET) };
    // SAFETY: the program's offset, which sendfile overwrites.
    } else if !unsafe { probe::write(offset, at) } {
        // The bytes are sent, as on TCP.
        return errno::fail(libc::EFAULT);
    }
    isize::try_from(total).unwrap_or(isize::MAX)
}

/// splice(2): a socket that is spliced stays on TCP; one whose stream has left the kernel cannot be.
///
/// # Safety
/// As splice itself.
pub(crate) unsafe fn splice(
    input: c_int,
    in_offset: *mut i64,
    out: c_int,
    out_offset: *mut i64,
    len: usize,
    flags: u32,
) -> isize {
    for fd in [input, out] {
        if let Some(index) = fds::lookup(fd).as_conn() {
            let conn = conn(index);
            if involves_ring(conn) {
                return errno::fail(libc::EINVAL);
            }
            conn.veto(Reason::Splice);
        }
    }
    // SAFETY: by contract.
    unsafe { real::splice(input, in_offset, out, out_offset, len, flags) }
}
