//! The consuming side of a ring.

use super::Corrupt;
use crate::layout::{ConnView, ConsumerWords, ProducerWords};
use crate::mem::RingBytes;
use crate::sync::Ordering;

/// Where the consumer stands. Kept where the far end cannot write.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RxCursor {
    /// Bytes read so far.
    pub head: u64,
    /// The producer's position as last seen and checked.
    pub tail: u64,
}

impl RxCursor {
    /// Bytes that are known to be there.
    #[inline(always)]
    pub const fn available(&self) -> u64 {
        self.tail - self.head
    }
}

/// The consuming side.
#[derive(Clone, Copy, Debug)]
pub struct Consumer {
    far: &'static ProducerWords,
    words: &'static ConsumerWords,
    data: RingBytes,
}

impl Consumer {
    /// The ring that this end of the connection consumes.
    #[inline(always)]
    pub const fn of(conn: &ConnView) -> Self {
        Self {
            far: conn.rx_words,
            words: &conn.mine.consumer,
            data: conn.rx_data,
        }
    }

    /// A ring from its parts.
    pub const fn new(
        far: &'static ProducerWords,
        words: &'static ConsumerWords,
        data: RingBytes,
    ) -> Self {
        Self { far, words, data }
    }

    /// Our own words.
    pub const fn far_words(&self) -> &'static ConsumerWords {
        self.words
    }

    /// Bytes the ring holds.
    #[inline(always)]
    pub const fn capacity(&self) -> u64 {
        self.data.capacity() as u64
    }

    /// Whether the producer has published something beyond the cursor; no check, for spinning.
    #[inline(always)]
    pub fn moved(&self, cursor: &RxCursor) -> bool {
        self.far.tail.load(Ordering::Relaxed) != cursor.tail
    }

    /// Reads the producer's position and returns the bytes that can be read.
    ///
    /// # Errors
    /// [`Corrupt::Tail`] if it moved backwards or further than the ring holds.
    #[inline(always)]
    pub fn refresh(&self, cursor: &mut RxCursor) -> Result<u64, Corrupt> {
        let tail = self.far.tail.load(Ordering::Acquire);
        if tail < cursor.tail || tail.wrapping_sub(cursor.head) > self.capacity() {
            return Err(Corrupt::Tail {
                tail,
                seen: cursor.tail,
                head: cursor.head,
                capacity: self.capacity(),
            });
        }
        cursor.tail = tail;
        Ok(cursor.available())
    }

    /// What the far end had consumed of *our* ring when it last published; a hint.
    #[inline(always)]
    pub fn ack(&self) -> u64 {
        // Acquire: whoever takes the hint overwrites bytes that the far end has read.
        self.far.ack.load(Ordering::Acquire)
    }

    /// The processor the producer last ran on, plus one; 0 if unknown. A hint.
    #[inline(always)]
    pub fn producer_cpu(&self) -> u32 {
        self.far.cpu.load(Ordering::Relaxed)
    }

    /// Copies `len` bytes from `skip` bytes behind the head without moving the cursor.
    ///
    /// # Errors
    /// [`Corrupt::Base`]; nothing was copied then.
    ///
    /// # Safety
    /// `dst` is writable for `len` bytes, and `skip + len` is at most [`RxCursor::available`].
    #[inline(always)]
    #[expect(unsafe_code, reason = "raw copies to the application's buffer")]
    pub unsafe fn peek(
        &self,
        cursor: &RxCursor,
        skip: u64,
        dst: *mut u8,
        len: usize,
    ) -> Result<(), Corrupt> {
        // The base cannot move while bytes are unread, and `refresh` acquired them.
        let base = self.far.base.load(Ordering::Relaxed);
        if base > cursor.head {
            return Err(Corrupt::Base {
                base,
                head: cursor.head,
            });
        }
        debug_assert!(skip + len as u64 <= cursor.available());
        let from = index(cursor.head + skip, base);
        // SAFETY: dst by contract; len <= available <= capacity.
        unsafe { self.data.copy_out(from, dst, len) };
        Ok(())
    }

    /// Copies `len` bytes and moves the cursor. The producer sees the space after
    /// [`Consumer::publish`].
    ///
    /// # Errors
    /// As [`Consumer::peek`].
    ///
    /// # Safety
    /// As [`Consumer::peek`] with `skip` 0.
    #[inline(always)]
    #[expect(unsafe_code, reason = "raw copies to the application's buffer")]
    pub unsafe fn read(
        &self,
        cursor: &mut RxCursor,
        dst: *mut u8,
        len: usize,
    ) -> Result<(), Corrupt> {
        // SAFETY: by contract.
        unsafe { self.peek(cursor, 0, dst, len) }?;
        cursor.head += len as u64;
        Ok(())
    }

    /// The bytes at the head in one run, at most `len` of them, for a system call that reads the ring
    /// itself; the address is only ever given to the kernel. Follow with [`Consumer::discard`].
    ///
    /// # Errors
    /// As [`Consumer::peek`].
    #[cfg(not(loom))]
    pub fn raw_run(&self, cursor: &RxCursor, len: usize) -> Result<(*const u8, usize), Corrupt> {
        // As in `peek`.
        let base = self.far.base.load(Ordering::Relaxed);
        if base > cursor.head {
            return Err(Corrupt::Base {
                base,
                head: cursor.head,
            });
        }
        let there = usize::try_from(cursor.available()).unwrap_or(usize::MAX);
        let (at, run) = self.data.raw_run(index(cursor.head, base), len.min(there));
        Ok((at.cast_const(), run))
    }

    /// Moves the cursor over `len` available bytes without copying them (MSG_TRUNC on TCP).
    #[inline(always)]
    pub const fn discard(&self, cursor: &mut RxCursor, len: usize) {
        debug_assert!(len as u64 <= cursor.available());
        cursor.head += len as u64;
    }

    /// Reads what is there, at most `dst.len()` bytes; 0 means empty.
    ///
    /// # Errors
    /// [`Corrupt`] as [`Consumer::refresh`] and [`Consumer::peek`].
    #[expect(unsafe_code, reason = "the safe form of `read`")]
    pub fn read_slice(&self, cursor: &mut RxCursor, dst: &mut [u8]) -> Result<usize, Corrupt> {
        if cursor.available() < dst.len() as u64 {
            self.refresh(cursor)?;
        }
        let len = dst
            .len()
            .min(usize::try_from(cursor.available()).unwrap_or(usize::MAX));
        // SAFETY: len <= dst.len() and len <= available.
        unsafe { self.read(cursor, dst.as_mut_ptr(), len) }?;
        Ok(len)
    }

    /// Looks at what is there from `skip` bytes behind the head, at most `dst.len()` bytes; the
    /// cursor stays where it is.
    ///
    /// # Errors
    /// [`Corrupt`] as [`Consumer::refresh`] and [`Consumer::peek`].
    #[expect(unsafe_code, reason = "the safe form of `peek`")]
    pub fn peek_slice(
        &self,
        cursor: &mut RxCursor,
        skip: u64,
        dst: &mut [u8],
    ) -> Result<usize, Corrupt> {
        if cursor.available().saturating_sub(skip) < dst.len() as u64 {
            self.refresh(cursor)?;
        }
        let there = cursor.available().saturating_sub(skip);
        let len = dst.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        if len > 0 {
            // SAFETY: len <= dst.len() and skip + len <= available.
            unsafe { self.peek(cursor, skip, dst.as_mut_ptr(), len) }?;
        }
        Ok(len)
    }

    /// Gives the space up to the cursor back to the producer.
    ///
    /// The caller follows with a full barrier and a look at who waits for space.
    #[inline(always)]
    pub fn publish(&self, cursor: &RxCursor) {
        self.words.head.store(cursor.head, Ordering::Release);
    }

    /// The head that was last published: the `ack` to send along with this end's own bytes (see
    /// [`Producer::publish`](super::Producer::publish)), from any thread and without the lock. The
    /// cursor in the slot will not do for that: it says nothing of whether the bytes are copied.
    #[inline(always)]
    pub fn published(&self) -> u64 {
        self.words.head.load(Ordering::Acquire)
    }
}

/// Index of `position` in the data (taken modulo the capacity by the copy).
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "taken modulo a capacity that fits in usize"
)]
const fn index(position: u64, base: u64) -> usize {
    position.wrapping_sub(base) as usize
}
