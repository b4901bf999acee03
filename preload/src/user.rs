//! The program's buffers, as it gave them to us: addresses that are only as good as the program.
//!
//! What the kernel would have answered with EFAULT must not crash the program: a vector is touched
//! before it is read, and the bytes of a buffer before they are copied (see [`crate::probe`]). Where a
//! buffer is good up to some page only, as much of it counts as TCP would take.

#![expect(unsafe_code, reason = "copies between the program's buffers and rings")]

use core::ffi::c_int;

use libc::{c_void, iovec};
use rdma_core::ring::{Consumer, Corrupt, Producer, RxCursor, TxCursor};

use crate::{kernel, probe};

/// IOV_MAX of Linux.
const IOV_MAX: usize = 1024;

/// A list of buffers of the program and how far it has been worked off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    vec: *const iovec,
    count: usize,
    /// Some entry of the vector ends where the kernel may refuse it, or has the vector itself in it.
    is_suspect: bool,
    one: iovec,
    total: usize,
    done: usize,
    /// The entry at which `done` lies, and the offset in it.
    index: usize,
    offset: usize,
}

/// The longest transfer of one call: MAX_RW_COUNT of Linux.
pub(crate) const LENGTH_MAX: usize = 0x7fff_f000;

/// Bytes that TCP takes at once: it has all of them, or none.
const CHUNK: usize = 32 * 1024;

/// Where addresses begin that the kernel refuses without a look. Some machines have more room for
/// programs; who finds an address beyond asks the kernel.
const BEYOND: usize = (1 << 47) - 4096;

impl Buffers {
    /// One buffer.
    #[inline(always)]
    pub(crate) const fn one(base: *mut c_void, len: usize) -> Self {
        let total = if len > LENGTH_MAX { LENGTH_MAX } else { len };
        Self {
            vec: core::ptr::null(),
            count: 1,
            is_suspect: false,
            one: iovec {
                iov_base: base,
                iov_len: total,
            },
            total,
            done: 0,
            index: 0,
            offset: 0,
        }
    }

    /// A vector of buffers, checked as the kernel does.
    ///
    /// # Errors
    /// `EINVAL` for a count out of range or lengths that overflow, `EFAULT` for a vector that is not
    /// there.
    ///
    /// # Safety
    /// Nobody changes the `count` entries at `vec`, if there are any.
    pub(crate) unsafe fn vector(vec: *const iovec, count: c_int) -> Result<Self, c_int> {
        let count = usize::try_from(count)
            .ok()
            .filter(|&n| n <= IOV_MAX)
            .ok_or(libc::EINVAL)?;
        if !probe::readable(vec.cast(), count * size_of::<iovec>()) {
            return Err(libc::EFAULT);
        }
        let mut total = 0usize;
        let mut is_suspect = false;
        for i in 0..count {
            // SAFETY: i < count entries, just found readable.
            let entry = unsafe { vec.add(i).read_unaligned() };
            if isize::try_from(entry.iov_len).is_err() {
                return Err(libc::EINVAL);
            }
            total = total.saturating_add(entry.iov_len).min(LENGTH_MAX);
            is_suspect |= is_beyond(&entry) || has_in_it(&entry, vec, count);
        }
        let one = iovec {
            iov_base: core::ptr::null_mut(),
            iov_len: 0,
        };
        Ok(Self {
            vec,
            count,
            is_suspect,
            one,
            total,
            done: 0,
            index: 0,
            offset: 0,
        })
    }

    /// Bytes not yet worked off.
    #[inline(always)]
    pub(crate) const fn left(&self) -> usize {
        self.total - self.done
    }

    /// Bytes worked off.
    #[inline(always)]
    pub(crate) const fn done(&self) -> usize {
        self.done
    }

    /// Whether the next `len` bytes, which are about to be sent, are there.
    #[inline(always)]
    pub(crate) fn can_fill(&self, len: usize) -> bool {
        if self.vec.is_null() {
            return probe::readable(self.next().cast_const(), len);
        }
        self.all(len, |at, run| probe::readable(at, run))
    }

    /// Whether the next `len` bytes can be overwritten, which is what the caller is about to do.
    #[inline(always)]
    pub(crate) fn can_drain(&self, len: usize) -> bool {
        // SAFETY: the program gave them to be overwritten.
        let touch = |at, run| unsafe { probe::writable(at, run) };
        if self.vec.is_null() {
            touch(self.next(), len)
        } else {
            self.all(len, touch)
        }
    }

    #[inline(always)]
    fn all(&self, len: usize, touch: impl Fn(*mut u8, usize) -> bool) -> bool {
        // SAFETY: index <= count entries (contract of `vector`).
        let rest = unsafe { self.vec.add(self.index) };
        let count = self.count - self.index;
        // SAFETY: as above.
        !self.is_suspect && unsafe { all(rest, count, self.offset, len, touch) }
    }

    /// How many of the next `len` bytes a send takes; 0 is EFAULT.
    pub(crate) fn sound_to_fill(&self, len: usize) -> usize {
        whole_chunks(self.can(len, read_to), len)
    }

    /// How many of the next `len` bytes a receive fills; 0 is EFAULT.
    pub(crate) fn sound_to_drain(&self, len: usize) -> usize {
        whole_chunks(self.can(len, written_to), len)
    }

    /// Touches the next `len` bytes, run by run; how many are there before the first that is not.
    #[inline(never)]
    fn can(&self, len: usize, touch: impl Fn(*mut u8, usize) -> usize) -> usize {
        let mut copy = *self;
        while copy.done - self.done < len {
            let (at, run) = copy.run(len - (copy.done - self.done));
            let good = touch(at, run);
            copy.advance(good);
            if good < run || run == 0 {
                break;
            }
        }
        copy.done - self.done
    }

    /// Whether the kernel refuses the buffers for where they lie, without a look at them.
    pub(crate) fn is_refused(&mut self, fd: c_int) -> bool {
        if self.vec.is_null() {
            is_beyond(&self.one) && kernel::refuses(fd, &raw mut self.one, 1)
        } else {
            self.is_suspect && kernel::refuses(fd, self.vec.cast_mut(), self.count)
        }
    }

    /// The next byte of a single buffer.
    #[inline(always)]
    const fn next(&self) -> *mut u8 {
        self.one.iov_base.cast::<u8>().wrapping_add(self.done)
    }

    /// The next run of contiguous memory, at most `max` bytes; empty at the end.
    #[inline(always)]
    fn run(&mut self, max: usize) -> (*mut u8, usize) {
        if self.vec.is_null() {
            return (self.next(), max.min(self.left()));
        }
        while self.index < self.count {
            // SAFETY: index < count entries (contract of `vector`).
            let entry = unsafe { self.vec.add(self.index).read_unaligned() };
            if self.offset < entry.iov_len {
                let at = entry.iov_base.cast::<u8>().wrapping_add(self.offset);
                return (at, max.min(entry.iov_len - self.offset).min(self.left()));
            }
            self.index += 1;
            self.offset = 0;
        }
        (core::ptr::null_mut(), 0)
    }

    #[inline(always)]
    const fn advance(&mut self, len: usize) {
        self.done += len;
        self.offset += len;
    }

    /// Copies up to `max` bytes, which the caller has found to be there, into the ring.
    #[inline(always)]
    pub(crate) fn fill(&mut self, ring: &Producer, cursor: &mut TxCursor, max: usize) {
        let mut left = max;
        while left > 0 {
            let (at, len) = self.run(left);
            if len == 0 {
                break;
            }
            // SAFETY: the caller has touched the bytes and checked that the ring has `max` free ones.
            unsafe { ring.write(cursor, at, len) };
            self.advance(len);
            left -= len;
        }
    }

    /// Copies up to `max` available bytes out of the ring, for which the caller has found room.
    ///
    /// # Errors
    /// [`Corrupt`]; what was copied before stays counted.
    #[inline(always)]
    pub(crate) fn drain(
        &mut self,
        ring: &Consumer,
        cursor: &mut RxCursor,
        max: usize,
    ) -> Result<(), Corrupt> {
        let mut left = max;
        while left > 0 {
            let (at, len) = self.run(left);
            if len == 0 {
                break;
            }
            // SAFETY: the caller has touched the bytes and checked that `max` are available.
            unsafe { ring.read(cursor, at, len) }?;
            self.advance(len);
            left -= len;
        }
        Ok(())
    }

    /// As [`Buffers::drain`], for any vector, also one that its own buffers overwrite: by a copy of it, as the kernel
    /// does. Bytes for which the copy is too short stay in the ring, or are not looked at if `peek` leaves all there.
    ///
    /// # Errors
    /// As [`Buffers::drain`].
    #[cold]
    pub(crate) fn drain_suspect(
        &mut self,
        ring: &Consumer,
        cursor: &mut RxCursor,
        max: usize,
        peek: bool,
    ) -> Result<(), Corrupt> {
        let (parts, used) = self.rest::<64>(max);
        self.skip(parts.iter().map(|part| part.iov_len).sum());
        let mut skip = 0;
        for part in parts.iter().take(used) {
            let (at, len) = (part.iov_base.cast(), part.iov_len);
            if peek {
                // SAFETY: as in `drain`.
                unsafe { ring.peek(cursor, skip, at, len) }?;
                skip += len as u64;
            } else {
                // SAFETY: as in `drain`.
                unsafe { ring.read(cursor, at, len) }?;
            }
        }
        Ok(())
    }

    /// Whether [`Buffers::drain_suspect`] must be used.
    pub(crate) const fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// As [`Buffers::drain`], leaving the bytes in the ring.
    ///
    /// # Errors
    /// As [`Buffers::drain`].
    pub(crate) fn peek(
        &mut self,
        ring: &Consumer,
        cursor: &RxCursor,
        max: usize,
    ) -> Result<(), Corrupt> {
        let mut skip = 0;
        while skip < max {
            let (at, len) = self.run(max - skip);
            if len == 0 {
                break;
            }
            // SAFETY: as in `drain`.
            unsafe { ring.peek(cursor, skip as u64, at, len) }?;
            self.advance(len);
            skip += len;
        }
        Ok(())
    }

    /// Begins anew, after a look that was not enough.
    pub(crate) const fn rewind(&mut self) {
        self.done = 0;
        self.index = 0;
        self.offset = 0;
    }

    /// Counts `len` bytes that somebody else (the kernel, or nobody for MSG_TRUNC) has handled.
    pub(crate) fn skip(&mut self, len: usize) {
        let mut left = len.min(self.left());
        while left > 0 {
            let (_, run) = self.run(left);
            if run == 0 {
                break;
            }
            self.advance(run);
            left -= run;
        }
    }

    /// The rest as an array for a system call, at most `max` bytes in at most `N` parts.
    pub(crate) fn rest<const N: usize>(&self, max: usize) -> ([iovec; N], usize) {
        let mut copy = *self;
        let mut out = [iovec {
            iov_base: core::ptr::null_mut(),
            iov_len: 0,
        }; N];
        let mut used = 0;
        let mut left = max;
        for part in &mut out {
            let (at, len) = copy.run(left);
            if len == 0 {
                break;
            }
            *part = iovec {
                iov_base: at.cast(),
                iov_len: len,
            };
            copy.advance(len);
            left -= len;
            used += 1;
        }
        (out, used)
    }
}

/// Touches the next `len` bytes of a vector of `count` entries, `offset` of whose first entry are worked
/// off; whether all are there.
///
/// # Safety
/// As [`Buffers::vector`], which has found the entries readable.
#[inline(never)]
unsafe fn all(
    vec: *const iovec,
    count: usize,
    mut offset: usize,
    mut len: usize,
    touch: impl Fn(*mut u8, usize) -> bool,
) -> bool {
    for i in 0..count {
        // SAFETY: i < count entries.
        let entry = unsafe { vec.add(i).read_unaligned() };
        let run = entry.iov_len.saturating_sub(offset).min(len);
        if !touch(entry.iov_base.cast::<u8>().wrapping_add(offset), run) {
            return false;
        }
        len -= run;
        if len == 0 {
            break;
        }
        offset = 0;
    }
    true
}

/// Whether a buffer ends where the kernel may refuse it.
fn is_beyond(part: &iovec) -> bool {
    part.iov_base.addr().saturating_add(part.iov_len) > BEYOND
}

/// Whether a buffer has a part of the vector of `count` entries in it.
fn has_in_it(part: &iovec, vec: *const iovec, count: usize) -> bool {
    let (vec, part_at) = (vec.addr(), part.iov_base.addr());
    part_at < vec + count * size_of::<iovec>() && part_at.saturating_add(part.iov_len) > vec
}

/// For bytes that are about to be sent.
fn read_to(at: *mut u8, len: usize) -> usize {
    probe::readable_to(at, len)
}

/// For bytes that the program gave to be overwritten.
fn written_to(at: *mut u8, len: usize) -> usize {
    // SAFETY: the caller is about to overwrite them.
    unsafe { probe::writable_to(at, len) }
}

/// How much of `len` bytes counts if the first `good` are there.
const fn whole_chunks(good: usize, len: usize) -> usize {
    if good < len { good - good % CHUNK } else { len }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_checked_as_the_kernel_does() {
        let entry = iovec {
            iov_base: core::ptr::null_mut(),
            iov_len: usize::MAX,
        };
        // SAFETY: the vectors have as many entries as is said, or are refused before they are read.
        let check = |vec, count| unsafe { Buffers::vector(vec, count) }.map(|b| b.left());
        assert_eq!(check(&raw const entry, 1), Err(libc::EINVAL));
        assert_eq!(check(&raw const entry, -1), Err(libc::EINVAL));
        assert_eq!(check(core::ptr::null(), 1), Err(libc::EFAULT));
        assert_eq!(check(core::ptr::null(), 0), Ok(0));
    }

    #[test]
    fn runs_skip_empty_entries() {
        let mut data = [0u8; 10];
        let base = data.as_mut_ptr().cast();
        let vec = [
            iovec {
                iov_base: base,
                iov_len: 0,
            },
            iovec {
                iov_base: base,
                iov_len: 4,
            },
            iovec {
                iov_base: base,
                iov_len: 0,
            },
            iovec {
                iov_base: base,
                iov_len: 6,
            },
        ];
        // SAFETY: four entries.
        let mut buffers = unsafe { Buffers::vector(vec.as_ptr(), 4) }.unwrap();
        assert_eq!(buffers.left(), 10);
        buffers.skip(5);
        assert_eq!((buffers.left(), buffers.done()), (5, 5));
        let (parts, used) = buffers.rest::<4>(usize::MAX);
        assert_eq!((used, parts[0].iov_len), (1, 5));
        buffers.skip(100);
        assert_eq!(buffers.left(), 0);
    }
}
