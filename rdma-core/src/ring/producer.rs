//! The producing side of a ring.

use super::Corrupt;
use crate::layout::{ConnView, ConsumerWords, INLINE_BYTES, ProducerWords};
use crate::mem::RingBytes;
use crate::sync::Ordering;

/// An empty ring whose next byte lies this far in restarts at its beginning, so that a stream whose
/// reader keeps up stays inside a processor's private cache.
pub(crate) const RESTART_BYTES: usize = 128 * 1024;

/// Larger messages fetch their lines in parallel by themselves.
const PREFETCH_MAX: usize = 1024;

/// Where the producer stands. Kept where the far end cannot write.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct TxCursor {
    /// Bytes written so far.
    pub tail: u64,
    /// The consumer's position as last seen and checked.
    pub head: u64,
    /// Position that lies at the ring's beginning.
    pub base: u64,
}

impl TxCursor {
    /// Takes a consumer position learned elsewhere (the `ack` of the far end's own ring). Nonsense
    /// is ignored: it is only a hint.
    #[inline(always)]
    pub fn hint(&mut self, ack: u64) {
        if ack > self.head && ack <= self.tail {
            self.head = ack;
        }
    }

    /// Bytes that are written and, as far as is known, not yet consumed.
    #[inline(always)]
    pub const fn used(&self) -> u64 {
        self.tail - self.head
    }
}

/// [`Producer::place`] was asked to write where it must not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the bytes do not lie in the free part of the ring")]
pub struct OutOfRing;

/// The producing side.
#[derive(Clone, Copy, Debug)]
pub struct Producer {
    words: &'static ProducerWords,
    far: &'static ConsumerWords,
    data: RingBytes,
}

impl Producer {
    /// The ring that this end of the connection produces.
    #[inline(always)]
    pub const fn of(conn: &ConnView) -> Self {
        Self {
            words: conn.tx_words,
            far: &conn.theirs.consumer,
            data: conn.tx_data,
        }
    }

    /// A ring from its parts.
    pub const fn new(
        words: &'static ProducerWords,
        far: &'static ConsumerWords,
        data: RingBytes,
    ) -> Self {
        Self { words, far, data }
    }

    /// Our own words.
    pub const fn words(&self) -> &'static ProducerWords {
        self.words
    }

    /// Bytes the ring holds.
    #[inline(always)]
    pub const fn capacity(&self) -> u64 {
        self.data.capacity() as u64
    }

    /// Free bytes as far as the cursor knows; [`Producer::refresh`] may find more.
    #[inline(always)]
    pub const fn free(&self, cursor: &TxCursor) -> u64 {
        self.capacity() - cursor.used()
    }

    /// Reads the consumer's position and returns the free bytes.
    ///
    /// A position behind the cursor's is no news, not a lie: a [`TxCursor::hint`] may have told more
    /// already, since at an end with two threads one may send an acknowledgement before the other has
    /// published the head that it acknowledges.
    ///
    /// # Errors
    /// [`Corrupt::Head`] if it lies beyond our tail, or further behind it than the ring holds.
    #[inline(always)]
    pub fn refresh(&self, cursor: &mut TxCursor) -> Result<u64, Corrupt> {
        let head = self.far.head.load(Ordering::Acquire);
        if head > cursor.tail || cursor.tail - head > self.capacity() {
            return Err(Corrupt::Head {
                head,
                seen: cursor.tail.saturating_sub(self.capacity()),
                tail: cursor.tail,
            });
        }
        cursor.head = cursor.head.max(head);
        Ok(self.free(cursor))
    }

    /// Moves the ring's beginning to the next byte when the ring is empty and that helps.
    #[inline(always)]
    fn restart(&self, cursor: &mut TxCursor, len: usize) {
        if cursor.head == cursor.tail
            && cursor.base != cursor.tail
            && (len <= INLINE_BYTES || cursor.tail - cursor.base >= RESTART_BYTES as u64)
        {
            cursor.base = cursor.tail;
            // Seen by the consumer before the bytes, because `publish` is a release store.
            self.words.base.store(cursor.base, Ordering::Relaxed);
        }
    }

    /// Copies `len` bytes behind the tail and moves the cursor. Nothing is visible before
    /// [`Producer::publish`].
    ///
    /// # Safety
    /// `src` is readable for `len` bytes, and `len` is at most [`Producer::free`].
    #[inline(always)]
    #[expect(unsafe_code, reason = "raw copies from the application's buffer")]
    pub unsafe fn write(&self, cursor: &mut TxCursor, src: *const u8, len: usize) {
        debug_assert!(len as u64 <= self.free(cursor));
        self.restart(cursor, len);
        let at = index(cursor);
        // SAFETY: src by contract; len <= free <= capacity.
        unsafe { self.data.copy_in(at, src, len) };
        // A stream of small messages: more will follow.
        if len <= PREFETCH_MAX && cursor.used() != 0 {
            self.data.prefetch_for_write(at.wrapping_add(len), len);
        }
        cursor.tail += len as u64;
    }

    /// Copies as much of `src` as fits and moves the cursor; 0 means full.
    ///
    /// # Errors
    /// [`Corrupt`] as [`Producer::refresh`].
    #[expect(unsafe_code, reason = "the safe form of `write`")]
    pub fn write_slice(&self, cursor: &mut TxCursor, src: &[u8]) -> Result<usize, Corrupt> {
        let free = if self.free(cursor) < src.len() as u64 || cursor.used() != 0 {
            self.refresh(cursor)?
        } else {
            self.free(cursor)
        };
        let len = src.len().min(usize::try_from(free).unwrap_or(usize::MAX));
        // SAFETY: len <= src.len() and len <= free.
        unsafe { self.write(cursor, src.as_ptr(), len) };
        Ok(len)
    }

    /// Copies `src` to `position`, which need not be the tail: bytes may come in any order. Nothing moves
    /// and nothing is visible; follow with [`Producer::advance`] when there is no gap before. `restart`:
    /// nothing lies in the ring, neither published nor placed.
    ///
    /// # Errors
    /// The bytes lie before the tail or beyond what is free.
    #[expect(unsafe_code, reason = "a copy into the ring")]
    pub fn place(
        &self,
        cursor: &mut TxCursor,
        position: u64,
        src: &[u8],
        restart: bool,
    ) -> Result<(), OutOfRing> {
        let len = src.len() as u64;
        let end = position.checked_add(len).ok_or(OutOfRing)?;
        if position < cursor.tail || end - cursor.head > self.capacity() {
            return Err(OutOfRing);
        }
        if restart && position == cursor.tail {
            self.restart(cursor, src.len());
        }
        let at = TxCursor {
            tail: position,
            ..*cursor
        };
        // SAFETY: a slice; end - head <= capacity, so len is at most the capacity.
        unsafe { self.data.copy_in(index(&at), src.as_ptr(), src.len()) };
        Ok(())
    }

    /// Copies `len` bytes behind the tail that stand at index `from` of another ring, and moves the cursor.
    /// Nothing is visible before [`Producer::publish`].
    ///
    /// # Errors
    /// They are more than is free.
    #[cfg(not(loom))]
    pub fn write_across(
        &self,
        cursor: &mut TxCursor,
        other: &RingBytes,
        from: usize,
        len: usize,
    ) -> Result<(), OutOfRing> {
        if len as u64 > self.free(cursor) || len > other.capacity() {
            return Err(OutOfRing);
        }
        self.restart(cursor, len);
        self.data.copy_across(index(cursor), other, from, len);
        cursor.tail += len as u64;
        Ok(())
    }

    /// The bytes from position `from` to the tail in one run, as they stand in the ring, for a system call
    /// that sends them once more. `from` is not behind the consumer's position.
    #[cfg(not(loom))]
    pub fn sent_run(&self, cursor: &TxCursor, from: u64) -> (*const u8, usize) {
        let left = usize::try_from(cursor.tail.saturating_sub(from)).unwrap_or(usize::MAX);
        let at = TxCursor {
            tail: from,
            ..*cursor
        };
        let (bytes, len) = self.data.raw_run(index(&at), left);
        (bytes.cast_const(), len)
    }

    /// Free memory behind the tail in one run, at most `len` bytes, for a system call that fills the
    /// ring itself. Follow with [`Producer::advance`].
    #[cfg(not(loom))]
    pub fn raw_run(&self, cursor: &mut TxCursor, len: usize) -> (*mut u8, usize) {
        self.restart(cursor, len);
        let free = usize::try_from(self.free(cursor)).unwrap_or(usize::MAX);
        self.data.raw_run(index(cursor), len.min(free))
    }

    /// Counts `len` bytes that were put at [`Producer::raw_run`]'s address.
    pub const fn advance(&self, cursor: &mut TxCursor, len: usize) {
        debug_assert!(len as u64 <= self.free(cursor));
        cursor.tail += len as u64;
    }

    /// Makes all bytes up to the cursor visible to the consumer. `ack` is what this end has consumed of
    /// the other ring ([`Consumer::published`](super::Consumer::published)), `cpu` the processor plus
    /// one (0: unknown).
    ///
    /// The caller follows with a full barrier and a look at who must be woken.
    #[inline(always)]
    pub fn publish(&self, cursor: &TxCursor, ack: u64, cpu: u32) {
        // Release: the far end may overwrite bytes of its ring as soon as it sees this.
        self.words.ack.store(ack, Ordering::Release);
        if self.words.cpu.load(Ordering::Relaxed) != cpu {
            self.words.cpu.store(cpu, Ordering::Relaxed);
        }
        self.words.tail.store(cursor.tail, Ordering::Release);
    }
}

/// Index of the tail in the data (taken modulo the capacity by the copy).
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "taken modulo a capacity that fits in usize"
)]
const fn index(cursor: &TxCursor) -> usize {
    cursor.tail.wrapping_sub(cursor.base) as usize
}
