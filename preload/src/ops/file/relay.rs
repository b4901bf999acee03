//! A pipe of our own between a ring and a pipe of the program that cannot be written to without
//! waiting: bytes go into ours and from there, by a splice that does not wait, into the program's.
//!
//! One for the process, made at first need. It is empty between two uses; whoever finds it in use (by
//! another thread, or by the thread that a signal handler interrupted) does without.

#![expect(
    unsafe_code,
    reason = "pages of our own, and memory given to the kernel"
)]

use core::ffi::c_int;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use frontend_drv::descriptor::lift;
use libc::{MAP_ANONYMOUS, MAP_POPULATE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
use rustix::pipe::{PipeFlags, pipe_with};

use super::sys;
use crate::contexts;
use crate::fds::{self, Entry};

/// Whether somebody uses the pipe.
static BUSY: AtomicU32 = AtomicU32::new(0);
/// Its two ends, plus one; 0: not made.
static READ_END: AtomicI32 = AtomicI32::new(0);
static WRITE_END: AtomicI32 = AtomicI32::new(0);

/// Bytes moved at once: what a pipe holds by default.
const AT_ONCE: usize = 64 * 1024;

/// Puts up to `len` bytes into the pipe `to`, without waiting.
///
/// # Errors
/// EAGAIN if it is full, EPIPE (and SIGPIPE) if nobody reads it.
///
/// # Safety
/// `from` is readable for `len` bytes.
pub(super) unsafe fn put(to: c_int, from: *const u8, len: usize) -> Result<usize, c_int> {
    let len = len.min(AT_ONCE);
    if BUSY.swap(1, Ordering::Acquire) != 0 {
        // SAFETY: by contract.
        return unsafe { put_pages(to, from, len) };
    }
    let result = match ends() {
        // SAFETY: by contract.
        Some((read, write)) => unsafe { put_through(read, write, to, from, len) },
        // SAFETY: by contract.
        None => unsafe { put_pages(to, from, len) },
    };
    BUSY.store(0, Ordering::Release);
    result
}

/// # Safety
/// As [`put`]; `read` and `write` are the ends of our own pipe.
unsafe fn put_through(
    read: RawFd,
    write: RawFd,
    to: c_int,
    from: *const u8,
    len: usize,
) -> Result<usize, c_int> {
    // SAFETY: by contract.
    let inside = unsafe { sys::write(write, from, len) }?;
    let out = sys::splice(read, to, inside);
    let mut left = inside - out.unwrap_or(0);
    let mut scratch = [0u8; 1024];
    while left > 0 {
        // SAFETY: a buffer of ours.
        match unsafe { sys::read(read, scratch.as_mut_ptr(), scratch.len()) } {
            Ok(got) if got > 0 => left = left.saturating_sub(got),
            Ok(_) | Err(_) => break,
        }
    }
    out
}

/// Without a pipe of our own: copies the bytes into fresh pages and gives those to the pipe.
///
/// # Safety
/// As [`put`].
unsafe fn put_pages(to: c_int, from: *const u8, len: usize) -> Result<usize, c_int> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    // SAFETY: a fresh mapping.
    let pages = unsafe { libc::mmap(null_mut(), len, PROT_READ | PROT_WRITE, flags, -1, 0) };
    if pages == libc::MAP_FAILED {
        return Err(libc::ENOMEM);
    }
    // SAFETY: `len` bytes by contract, and as many fresh ones.
    unsafe { from.copy_to_nonoverlapping(pages.cast(), len) };
    // SAFETY: the mapping made above, which is not written to any more.
    let put = unsafe { sys::vmsplice(to, pages.cast(), len) };
    // SAFETY: as above.
    unsafe { libc::munmap(pages, len) };
    put
}

/// The two ends, made if need be. The caller has the pipe for itself.
fn ends() -> Option<(RawFd, RawFd)> {
    match (
        READ_END.load(Ordering::Relaxed),
        WRITE_END.load(Ordering::Relaxed),
    ) {
        (0, _) | (_, 0) => {}
        (read, write) => return Some((read - 1, write - 1)),
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    let (read, write) = (lift(read).ok()?, lift(write).ok()?);
    contexts::keep(&read);
    contexts::keep(&write);
    let pair = (read.as_raw_fd(), write.as_raw_fd());
    READ_END.store(read.into_raw_fd() + 1, Ordering::Relaxed);
    WRITE_END.store(write.into_raw_fd() + 1, Ordering::Relaxed);
    Some(pair)
}

/// The program wants this number for a descriptor of its own: true if it was ours. A new pipe is made
/// at the next need.
pub(crate) fn make_way(fd: RawFd) -> bool {
    if READ_END.load(Ordering::Relaxed) != fd + 1 && WRITE_END.load(Ordering::Relaxed) != fd + 1 {
        return false;
    }
    // Uses are short and never wait.
    for _ in 0..TRIES {
        if BUSY.swap(1, Ordering::Acquire) == 0 {
            close_both();
            BUSY.store(0, Ordering::Release);
            break;
        }
        rustix::thread::sched_yield();
    }
    true
}

/// Looks at a pipe that is in use by a thread that we may have interrupted ourselves.
const TRIES: u32 = 1000;

/// In a forked child: the pipe is the parent's, which may be using it.
pub(crate) fn after_fork() {
    close_both();
    BUSY.store(0, Ordering::Relaxed);
}

fn close_both() {
    for end in [&READ_END, &WRITE_END] {
        let fd = end.swap(0, Ordering::Relaxed) - 1;
        if fd >= 0 && fds::take(fd, Entry::INTERNAL) {
            // SAFETY: our own descriptor, taken out of the table just now.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
