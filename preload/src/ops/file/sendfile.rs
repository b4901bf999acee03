//! sendfile(2) to a connection that may be on a ring.
//!
//! The bytes of a file that lie in memory go straight into the ring; what would have to wait for a disk
//! goes by a buffer, outside of the lock. Much of a file that cannot be asked what lies in memory, and
//! everything that is not a plain file, goes by splice and a pipe, as in the kernel's own sendfile: many
//! files of the latter kind can be read and not spliced, or have a position of their own. What the kernel refuses, it refuses for a count of zero too, without touching the
//! socket: so it is asked as soon as something is not as usual.

#![expect(
    unsafe_code,
    reason = "libc's own calls, a buffer of ours on the stack, and rings given to the kernel"
)]

use core::cell::Cell;
use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::ptr::null_mut;
use std::os::fd::IntoRawFd;

use frontend_drv::descriptor::lift;
use libc::{S_IFBLK, S_IFMT, S_IFREG, off_t};
use rdma_core::slot::TxState;
use rustix::pipe::{PipeFlags, pipe_with};

use super::pipe::appends;
use super::{CHUNK, Filled, fill, splice, sys};
use crate::conn::{Conn, conn};
use crate::fds::{self, Entry};
use crate::ops::send;
use crate::user::{Buffers, LENGTH_MAX};
use crate::{contexts, errno, kernel, probe, real};

/// sendfile(2).
///
/// # Safety
/// As sendfile itself.
pub(crate) unsafe fn sendfile(out: c_int, input: c_int, offset: *mut off_t, count: usize) -> isize {
    // SAFETY: by contract.
    let native = || unsafe { real::sendfile(out, input, offset, count) };
    let entry = fds::lookup(out);
    let Some(index) = entry.as_conn() else {
        let from = fds::lookup(input);
        return match from.as_conn() {
            // Into a pipe this is a splice.
            Some(index) if offset.is_null() && count > 0 && isize::try_from(count).is_ok() => {
                splice::to_pipe(input, from, index, out, count, 0, &native)
            }
            _ => native(),
        };
    };
    let conn = conn(index);
    while !send::is_on_ring(conn, out) {
        // Counted as any other send, so that a file server's connections prove their worth.
        if let Some(sent) = send::to_kernel(conn, out, true, &native) {
            return sent;
        }
    }
    let Some(start) = position(input, offset) else {
        let error = refusal(out, input, None).unwrap_or(libc::EINVAL);
        return errno::fail(if offset.is_null() {
            error
        } else {
            libc::EFAULT
        });
    };
    let refused = || refusal(out, input, (!offset.is_null()).then_some(start));
    let end = isize::try_from(count)
        .ok()
        .and_then(|count| start.checked_add(off_t::try_from(count).ok()?));
    if count == 0 || start < 0 || end.is_none() || conn.appends(|| appends(out)) {
        // For certain nothing is sent.
        return native();
    }
    let mut transfer = Transfer {
        conn,
        out,
        entry,
        index,
        input,
        at: start,
        left: count.min(LENGTH_MAX),
        total: 0,
    };
    // A position of the file's own is set right by the file itself.
    let usual = offset.is_null() || kernel::readable(input).is_some();
    let mut ended = transfer.by_reading(usual, &refused);
    if matches!(ended, Ended::Odd) {
        ended = transfer.by_splicing().unwrap_or(Ended::Error(libc::ENOMEM));
    }
    if matches!(ended, Ended::Native) {
        if transfer.total == 0 {
            return send::to_kernel(conn, out, true, &native).unwrap_or_else(native);
        }
        transfer.by_kernel();
    }
    let Transfer { at, total, .. } = transfer;
    if total == 0 {
        return match ended {
            Ended::Error(error) => errno::fail(error),
            _ => 0,
        };
    }
    if !offset.is_null() {
        // SAFETY: the program's offset, which sendfile overwrites.
        if !unsafe { probe::write(offset, at) } {
            // The bytes are sent, as on TCP.
            return errno::fail(libc::EFAULT);
        }
    } else if at != start {
        // SAFETY: moves the position of the file that the program gave.
        errno::preserved(|| unsafe { libc::lseek(input, at, libc::SEEK_SET) });
    }
    super::count(total)
}

/// The errno with which the kernel refuses a sendfile, whatever its count.
fn refusal(out: c_int, input: c_int, offset: Option<off_t>) -> Option<c_int> {
    let mut offset = offset;
    let at = offset.as_mut().map_or(null_mut(), core::ptr::from_mut);
    errno::preserved(|| {
        // SAFETY: the offset is null or local.
        let rc = unsafe { real::sendfile(out, input, at, 0) };
        (rc < 0).then(errno::get)
    })
}

/// Where in the file to begin; `None` if there is no such place.
fn position(input: c_int, offset: *const off_t) -> Option<off_t> {
    if !offset.is_null() {
        // SAFETY: any bytes are an offset.
        return unsafe { probe::read(offset) };
    }
    // SAFETY: only reads the position.
    let at = errno::preserved(|| unsafe { libc::lseek(input, 0, libc::SEEK_CUR) });
    (at >= 0).then_some(at)
}

/// Whether `input` is a file with contents, or a disk: read and splice then give the same.
fn is_plain(input: c_int) -> bool {
    errno::preserved(|| {
        // SAFETY: zero is a valid stat.
        let mut stat: libc::stat = unsafe { core::mem::zeroed() };
        // SAFETY: a local stat.
        let known = unsafe { libc::fstat(input, &raw mut stat) } == 0;
        match stat.st_mode & S_IFMT {
            S_IFREG => known && stat.st_size > 0,
            S_IFBLK => known,
            _ => false,
        }
    })
}

/// Bytes for which a pipe of our own is worth making, where a file cannot be read without waiting.
const LARGE: usize = 32 * 1024;

/// Bytes that such a pipe holds.
const PIPE: usize = 64 * 1024;

/// Why a transfer ended.
enum Ended {
    /// Everything was sent that is to be sent by this call.
    Done,
    /// The direction is not on the ring any more.
    Native,
    /// Not a plain file.
    Odd,
    /// An errno, of which the program hears if nothing was sent.
    Error(c_int),
}

/// A transfer under way.
struct Transfer {
    conn: &'static Conn,
    out: c_int,
    entry: Entry,
    index: u32,
    input: c_int,
    /// Where in the file.
    at: off_t,
    left: usize,
    total: usize,
}

impl Transfer {
    fn advance(&mut self, bytes: usize) {
        self.total += bytes;
        self.left -= bytes;
        self.at += off_t::try_from(bytes).unwrap_or(0);
    }

    /// From a plain file or a disk. `usual`: it looks like one; `refused` asks the kernel for its errno.
    fn by_reading(&mut self, usual: bool, refused: &dyn Fn() -> Option<c_int>) -> Ended {
        let mut known = false;
        let mut at_once = true;
        let mut deadline = None;
        while self.left > 0 {
            let filled = if !usual && !known {
                Filled::NoRoom
            } else if at_once {
                let (input, at) = (self.input, self.at);
                fill(self.conn, self.out, self.entry, self.left, |to, room| {
                    // SAFETY: the ring's memory, which is only given to the kernel.
                    unsafe { sys::read_now(input, to, room, at) }
                })
            } else if send::room(self.conn) > 0 {
                Filled::Error(libc::EAGAIN)
            } else {
                Filled::NoRoom
            };
            if let Filled::Bytes(bytes, _) = filled {
                self.advance(bytes);
                continue;
            }
            if !known {
                if let Some(error) = refused() {
                    return Ended::Error(error);
                }
                if !is_plain(self.input) {
                    return Ended::Odd;
                }
                known = true;
                if !usual {
                    continue;
                }
            }
            let ended = match filled {
                // Not in memory.
                Filled::Error(libc::EAGAIN) => self.by_buffer(),
                // Not a file system that knows how to be asked.
                Filled::Error(_) => {
                    at_once = false;
                    (self.left >= LARGE).then(|| self.by_splicing()).flatten()
                }
                Filled::NoRoom => match self.has_more() {
                    Ok(true) => self.wait_for_room(&mut deadline),
                    Ok(false) => Some(Ended::Done),
                    Err(error) => Some(Ended::Error(error)),
                },
                Filled::Nothing | Filled::Bytes(..) => Some(Ended::Done),
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
        Ended::Done
    }

    /// As much as a buffer of ours holds, read outside of the lock.
    fn by_buffer(&mut self) -> Option<Ended> {
        let mut chunk = MaybeUninit::<[u8; CHUNK]>::uninit();
        let base = chunk.as_mut_ptr().cast();
        let most = CHUNK.min(self.left).min(send::room(self.conn).max(1));
        // SAFETY: the chunk has room for that many bytes.
        match unsafe { self.read(base, most) } {
            Ok(0) => Some(Ended::Done),
            // SAFETY: so many bytes were read.
            Ok(len) => unsafe { self.send(base, len) },
            Err(error) => Some(Ended::Error(error)),
        }
    }

    /// Whether there is anything to send, which the kernel looks at before it looks for room.
    fn has_more(&self) -> Result<bool, c_int> {
        let mut byte = 0u8;
        // SAFETY: one byte.
        unsafe { self.read(&raw mut byte, 1) }.map(|read| read > 0)
    }

    /// Waits for room; why to stop.
    fn wait_for_room(&self, deadline: &mut Option<Option<u64>>) -> Option<Ended> {
        let begun = self.total > 0;
        match send::wait_for_room(self.conn, self.out, self.entry, self.left, begun, deadline) {
            Ok(true) => None,
            Ok(false) => Some(Ended::Native),
            Err(hindrance) if hindrance.is_stale() => Some(Ended::Native),
            Err(hindrance) => Some(Ended::Error(hindrance.tell(self.conn, self.total > 0))),
        }
    }

    /// Reads from the file; may wait.
    ///
    /// # Safety
    /// `to` is writable for `len` bytes.
    unsafe fn read(&self, to: *mut u8, len: usize) -> Result<usize, c_int> {
        errno::preserved(|| {
            // SAFETY: by contract.
            let got = unsafe { real::pread(self.input, to.cast(), len, self.at) };
            usize::try_from(got).map_err(|_| errno::get())
        })
    }

    /// The rest by the kernel, to which the stream has gone back.
    fn by_kernel(&mut self) {
        if self.conn.slot().tx.state() != TxState::Returned {
            return;
        }
        let at = Cell::new(self.at);
        let (out, input, left) = (self.out, self.input, self.left);
        // SAFETY: a local offset.
        let rest = || errno::preserved(|| unsafe { real::sendfile(out, input, at.as_ptr(), left) });
        if let Some(sent) = send::to_kernel(self.conn, out, true, &rest) {
            self.advance(usize::try_from(sent).unwrap_or(0));
        }
    }

    /// From anything that the kernel's sendfile takes; `None` if there is no pipe to be had.
    fn by_splicing(&mut self) -> Option<Ended> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).ok()?;
        let (read, write) = (lift(read).ok()?, lift(write).ok()?);
        contexts::keep(&read);
        contexts::keep(&write);
        // Plain numbers: a thread may be cancelled while it waits for the file.
        let (read, write) = (read.into_raw_fd(), write.into_raw_fd());
        let ended = self.through(read, write);
        for fd in [read, write] {
            if fds::take(fd, Entry::INTERNAL) {
                // SAFETY: our own descriptor, taken out of the table just now.
                errno::preserved(|| unsafe { real::close(fd) });
            }
        }
        Some(ended)
    }

    fn through(&mut self, read: c_int, write: c_int) -> Ended {
        let mut deadline = None;
        while self.left > 0 {
            let most = self.left.min(PIPE);
            let mut after = self.at;
            let got = errno::preserved(|| {
                // SAFETY: a local offset, and a pipe of our own.
                let got =
                    unsafe { real::splice(self.input, &raw mut after, write, null_mut(), most, 0) };
                usize::try_from(got).map_err(|_| errno::get())
            });
            let mut inside = match got {
                Ok(0) => return Ended::Done,
                Ok(got) => got,
                Err(error) => return Ended::Error(error),
            };
            while inside > 0 {
                let filled = fill(self.conn, self.out, self.entry, inside, |to, room| {
                    // SAFETY: the ring's memory, which is only given to the kernel.
                    unsafe { sys::vmsplice(read, to, room) }
                });
                match filled {
                    Filled::Bytes(bytes, _) => {
                        self.advance(bytes);
                        inside -= bytes;
                    }
                    Filled::NoRoom => {
                        if let Some(ended) = self.wait_for_room(&mut deadline) {
                            return ended;
                        }
                    }
                    Filled::Error(error) => return Ended::Error(error),
                    Filled::Nothing => return Ended::Done,
                }
            }
            self.at = after;
        }
        Ended::Done
    }

    /// Sends bytes of ours as any other; why to stop, if not all were taken.
    ///
    /// # Safety
    /// `base` is readable for `len` bytes.
    unsafe fn send(&mut self, base: *mut u8, len: usize) -> Option<Ended> {
        let (out, entry) = (self.out, self.entry);
        // SAFETY: by contract.
        let plain = || unsafe { real::send(out, base.cast(), len, 0) };
        let buffers = Buffers::one(base.cast(), len);
        let before = errno::get();
        let sent = send::send(out, entry, self.index, &buffers, 0, plain);
        let Ok(sent) = usize::try_from(sent) else {
            let error = errno::get();
            errno::set(before);
            return Some(Ended::Error(error));
        };
        self.advance(sent);
        (sent < len).then_some(Ended::Done)
    }
}
