//! Descriptors: closing, duplicating, flags; pipes, files and streams; pages that cannot be touched.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::ptr::null_mut;

use libc::{c_int, c_ulong};

use super::data::{lseek, write};
use super::{Ret, fd_of, ret};

/// close(2).
pub fn close(fd: c_int) -> Ret {
    // SAFETY: descriptors of the test are plain numbers; nothing owns them.
    ret(unsafe { libc::close(fd) })
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
pub fn close_range(first: u32, last: u32, flags: u32) -> Ret {
    // SAFETY: as in `dup2`.
    ret(unsafe { libc::close_range(first, last, flags.cast_signed()) })
}

/// unshare(2) of the descriptor table.
pub fn unshare_descriptors() -> Ret {
    // SAFETY: no pointers; the descriptors of the calling thread are those that it had.
    ret(unsafe { libc::unshare(libc::CLONE_FILES) })
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

/// fputs and fflush on standard output.
pub fn print(text: &str) -> Ret {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: libc's own stream, which nobody replaces.
    Stream(unsafe { stdout }).put(text)
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

/// Bytes that can be read.
pub const FIONREAD: c_ulong = libc::FIONREAD;

/// Sets O_NONBLOCK.
pub const FIONBIO: c_ulong = libc::FIONBIO;

/// Bytes sent and not acknowledged.
pub const SIOCOUTQ: c_ulong = 0x5411;
