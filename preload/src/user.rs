//! The program's buffers, as it gave them to us: addresses that are only as good as the program.
//!
//! What the kernel would have answered with EFAULT must not crash the program: addresses in the first
//! page and lengths that overflow are refused here; a pointer into unmapped memory faults in our copy
//! as it would in the program's own.

#![expect(unsafe_code, reason = "copies between the program's buffers and rings")]

use core::ffi::c_int;

use libc::{c_void, iovec};
use rdma_core::ring::{Consumer, Corrupt, Producer, RxCursor, TxCursor};

/// IOV_MAX of Linux.
const IOV_MAX: usize = 1024;

/// A list of buffers of the program and how far it has been worked off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    vec: *const iovec,
    count: usize,
    one: iovec,
    total: usize,
    done: usize,
    /// The entry at which `done` lies, and the offset in it.
    index: usize,
    offset: usize,
}

/// The longest transfer of one call: MAX_RW_COUNT of Linux.
pub(crate) const LENGTH_MAX: usize = 0x7fff_f000;

impl Buffers {
    /// One buffer.
    #[inline(always)]
    pub(crate) const fn one(base: *mut c_void, len: usize) -> Self {
        let total = if len > LENGTH_MAX { LENGTH_MAX } else { len };
        Self {
            vec: core::ptr::null(),
            count: 1,
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
    /// `EINVAL` for a count out of range or lengths that overflow, `EFAULT` for a null vector.
    ///
    /// # Safety
    /// `vec` points to `count` entries, or is null.
    pub(crate) unsafe fn vector(vec: *const iovec, count: c_int) -> Result<Self, c_int> {
        let count = usize::try_from(count)
            .ok()
            .filter(|&n| n <= IOV_MAX)
            .ok_or(libc::EINVAL)?;
        if count > 0 && vec.addr() < 4096 {
            return Err(libc::EFAULT);
        }
        let mut total = 0usize;
        for i in 0..count {
            // SAFETY: i < count entries.
            let len = unsafe { (*vec.add(i)).iov_len };
            if isize::try_from(len).is_err() {
                return Err(libc::EINVAL);
            }
            total = total.saturating_add(len).min(LENGTH_MAX);
        }
        let one = iovec {
            iov_base: core::ptr::null_mut(),
            iov_len: 0,
        };
        Ok(Self {
            vec,
            count,
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

    /// Whether the first buffer cannot be one: the kernel would say EFAULT.
    #[inline(always)]
    pub(crate) fn is_bad(&mut self) -> bool {
        self.left() > 0 && self.run(1).0.addr() < 4096
    }

    /// The next run of contiguous memory, at most `max` bytes; empty at the end.
    #[inline(always)]
    fn run(&mut self, max: usize) -> (*mut u8, usize) {
        if self.vec.is_null() {
            // SAFETY: done <= iov_len.
            let at = unsafe { self.one.iov_base.cast::<u8>().add(self.done) };
            return (at, max.min(self.left()));
        }
        while self.index < self.count {
            // SAFETY: index < count entries (contract of `vector`).
            let entry = unsafe { *self.vec.add(self.index) };
            if self.offset < entry.iov_len {
                // SAFETY: offset < iov_len.
                let at = unsafe { entry.iov_base.cast::<u8>().add(self.offset) };
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

    /// Copies up to `max` bytes into the ring.
    #[inline(always)]
    pub(crate) fn fill(&mut self, ring: &Producer, cursor: &mut TxCursor, max: usize) {
        let mut left = max;
        while left > 0 {
            let (at, len) = self.run(left);
            if len == 0 {
                break;
            }
            // SAFETY: the program promised `len` readable bytes; the caller checked that the ring
            // has `max` free bytes.
            unsafe { ring.write(cursor, at, len) };
            self.advance(len);
            left -= len;
        }
    }

    /// Copies up to `max` available bytes out of the ring.
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
            // SAFETY: the program promised `len` writable bytes; the caller checked that `max` are
            // available.
            unsafe { ring.read(cursor, at, len) }?;
            self.advance(len);
            left -= len;
        }
        Ok(())
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
