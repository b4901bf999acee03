//! Files on a disk and in the kernel, pipes, and what moves bytes between them and sockets.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::ptr::null_mut;
use std::ffi::CString;

use libc::{c_int, iovec};

use super::data::{lseek, write};
use super::{Ret, fd_of, long, ret};

/// open(2) of an existing file.
pub fn open(path: &str, flags: c_int) -> Ret {
    let path = CString::new(path).unwrap_or_default();
    // SAFETY: a terminated path.
    ret(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
}

/// The same pipe (or file) opened once more, with other flags.
pub fn reopen(fd: c_int, flags: c_int) -> c_int {
    fd_of(open(&format!("/proc/self/fd/{fd}"), flags))
}

/// A file without a name on a disk, holding `data`, of which nothing is in memory any more; its
/// position is at the start.
pub fn cold_file_with(data: &[u8]) -> c_int {
    let directory = CString::new(std::env::temp_dir().to_string_lossy().as_bytes());
    let directory = directory.unwrap_or_default();
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    // SAFETY: a terminated path.
    let fd = unsafe { libc::open(directory.as_ptr(), flags, 0o600) };
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        let written = write(fd, rest);
        assert!(written.is_ok(), "writing a temporary file: {written:?}");
        done += usize::try_from(written.unwrap_or(0)).unwrap_or(0);
    }
    // SAFETY: no pointers.
    unsafe { libc::fsync(fd) };
    // SAFETY: no pointers.
    unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(lseek(fd, 0, libc::SEEK_SET), Ok(0), "rewinding a file");
    fd
}

/// ftruncate(2).
pub fn truncate(fd: c_int, len: i64) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::ftruncate(fd, len) })
}

/// splice(2) with offsets, which neither pipes nor sockets have.
pub fn splice_with(
    input: c_int,
    in_offset: Option<i64>,
    out: c_int,
    out_offset: Option<i64>,
    len: usize,
    flags: u32,
) -> Ret {
    let (mut from, mut to) = (in_offset, out_offset);
    let from = from.as_mut().map_or(null_mut(), core::ptr::from_mut);
    let to = to.as_mut().map_or(null_mut(), core::ptr::from_mut);
    // SAFETY: the offsets are null or local.
    long(unsafe { libc::splice(input, from, out, to, len, flags) })
}

/// tee(2).
pub fn tee(input: c_int, out: c_int, len: usize, flags: u32) -> Ret {
    // SAFETY: no pointers.
    long(unsafe { libc::tee(input, out, len, flags) })
}

/// vmsplice(2) of memory that is never written to again.
pub fn vmsplice(fd: c_int, data: &'static [u8]) -> Ret {
    let part = iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: one part, a slice.
    long(unsafe { libc::vmsplice(fd, &raw const part, 1, 0) })
}

/// Lowers the soft limit of descriptors to those that are open now, nearly.
pub fn no_more_descriptors() -> Ret {
    let next = fd_of(super::dup(0));
    let _ = super::close(next);
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one limit.
    ret(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = u64::try_from(next).unwrap_or(0);
    // SAFETY: as above.
    ret(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}
