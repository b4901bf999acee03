//! Long copies into a ring, past the cache where that is faster.
//!
//! Whoever reads a ring on another processor keeps its lines in that processor's cache. A store to such a line waits
//! until the other cache has given it up; between processors that share no cache that takes so long that a copy of
//! 64 KiB does 2 to 9 GB/s instead of 45 (measured on an AMD EPYC of two such processors, docs/costs.md). A *non-temporal*
//! store waits for nobody, and the reader then fetches the bytes from memory: 14 GB/s for both together. On one
//! processor, or where caches are shared, it would be the slower way.
//!
//! So ordinary copies are timed. When all were slow for a while the next are non-temporal, then for a while they are
//! ordinary again, to see. What makes copies slow (where the scheduler has put the two ends, and how far these are apart)
//! holds for a process's rings alike, so there is one such state for all of them.

use core::sync::atomic::{AtomicU32, Ordering};

/// Copies from this length on are long: shorter ones are not worth being timed.
pub(super) const LONG: usize = 4096;
/// An ordinary copy is slow if it takes more than this many ticks of the time-stamp counter for a cache line: 11 to
/// 21 GB/s, for counters of 2 to 4 GHz.
const SLOW_TICKS: u64 = 12;
const LINE: usize = 64;
/// Bytes of slow copies in a row that are no accident, as an interrupt or a page fault is. Enough for the ring to come
/// around: what non-temporal copies have sent to memory is slow to write to once.
const SLOW_BYTES: u32 = 2 << 20;
/// Bytes of non-temporal copies before ordinary ones are tried again.
const STREAMED_BYTES: u32 = 64 << 20;

/// How the copies of a process go.
#[derive(Debug)]
pub(super) struct Copying {
    /// Bytes of slow ordinary copies in a row.
    slow: AtomicU32,
    /// Bytes that are still to be copied by non-temporal stores.
    left: AtomicU32,
}

/// Of this process. Threads that write at the same time may lose a count, which only shifts the next try.
pub(super) static COPYING: Copying = Copying::new();

impl Copying {
    const fn new() -> Self {
        Self {
            slow: AtomicU32::new(0),
            left: AtomicU32::new(0),
        }
    }

    /// Whether the next copy, of `len` bytes, is to be non-temporal.
    fn streams(&self, len: usize) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return false;
        }
        self.left
            .store(left.saturating_sub(counted(len)), Ordering::Relaxed);
        true
    }

    /// An ordinary copy of `len` bytes took so many ticks.
    fn took(&self, len: usize, ticks: u64) {
        if ticks.saturating_mul(LINE as u64) <= SLOW_TICKS * len as u64 {
            self.slow.store(0, Ordering::Relaxed);
            return;
        }
        let slow = self.slow.load(Ordering::Relaxed);
        let slow = slow.saturating_add(counted(len));
        if slow < SLOW_BYTES {
            self.slow.store(slow, Ordering::Relaxed);
        } else {
            self.slow.store(0, Ordering::Relaxed);
            self.left.store(STREAMED_BYTES, Ordering::Relaxed);
        }
    }

    /// Copies bytes, whichever way is faster. What is stored is seen by others in the order of the program, as after
    /// any other copy.
    ///
    /// # Safety
    /// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
    #[inline(never)]
    pub(super) unsafe fn copy(&self, src: *const u8, dst: *mut u8, len: usize) {
        if self.streams(len) {
            // SAFETY: as promised by the caller.
            return unsafe { stream(src, dst, len) };
        }
        let start = ticks();
        // SAFETY: as promised by the caller.
        unsafe { core::ptr::copy_nonoverlapping(src, dst, len) };
        self.took(len, ticks().saturating_sub(start));
    }
}

/// A length as it is counted.
fn counted(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The time-stamp counter.
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Copies bytes by non-temporal stores, whole lines of the destination, and what is left by ordinary ones.
///
/// # Safety
/// As [`Copying::copy`].
unsafe fn stream(src: *const u8, dst: *mut u8, len: usize) {
    let head = dst.align_offset(LINE).min(len);
    let lines = (len - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: head <= len.
    unsafe { core::ptr::copy_nonoverlapping(src, dst, head) };
    for at in (head..tail).step_by(LINE) {
        // SAFETY: the line lies inside both, and begins at a multiple of its size in `dst`.
        unsafe { stream_line(src.add(at), dst.add(at)) };
    }
    // SAFETY: tail <= len.
    unsafe { core::ptr::copy_nonoverlapping(src.add(tail), dst.add(tail), len - tail) };
    // Non-temporal stores are ordered by nothing else.
    // SAFETY: every x86-64 processor has it.
    unsafe { core::arch::x86_64::_mm_sfence() };
}

/// Copies one line.
///
/// # Safety
/// `src` is readable and `dst` writable for [`LINE`] bytes, and `dst` is a multiple of that.
#[inline(always)]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    clippy::cast_ptr_alignment,
    reason = "the four quarters of one line; loads may be unaligned, stores are aligned by contract"
)]
unsafe fn stream_line(src: *const u8, dst: *mut u8) {
    use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    let (src, dst) = (src.cast::<__m128i>(), dst.cast::<__m128i>());
    // SAFETY: four times sixteen bytes, inside the line by contract.
    unsafe {
        let quarters = [
            _mm_loadu_si128(src),
            _mm_loadu_si128(src.add(1)),
            _mm_loadu_si128(src.add(2)),
            _mm_loadu_si128(src.add(3)),
        ];
        _mm_stream_si128(dst, quarters[0]);
        _mm_stream_si128(dst.add(1), quarters[1]);
        _mm_stream_si128(dst.add(2), quarters[2]);
        _mm_stream_si128(dst.add(3), quarters[3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 65_536;

    /// Ordinary copies until the next is to be non-temporal.
    fn tries(copying: &Copying, ticks: u64) -> usize {
        let copies = 0..SLOW_BYTES as usize;
        let tries = copies.take_while(|_| copying.left.load(Ordering::Relaxed) == 0);
        tries.map(|_| copying.took(LEN, ticks)).count()
    }

    #[test]
    fn slow_copies_in_a_row_are_followed_by_non_temporal_ones() {
        let copying = Copying::new();
        for _ in 0..2 {
            assert!(!copying.streams(LEN));
            assert_eq!(tries(&copying, 65_536), SLOW_BYTES as usize / LEN);
            let streamed = (0..SLOW_BYTES).take_while(|_| copying.streams(LEN));
            assert_eq!(streamed.count(), STREAMED_BYTES as usize / LEN);
        }
        // Now they are fast after the first: a line takes four ticks.
        copying.took(LEN, 65_536);
        assert_eq!(tries(&copying, 4_096), SLOW_BYTES as usize);
    }

    #[test]
    fn single_slow_copies_are_accidents() {
        let copying = Copying::new();
        for _ in 0..100 {
            copying.took(8192, 100_000);
            copying.took(8192, 1_000);
            assert!(!copying.streams(8192));
        }
    }

    #[test]
    fn both_ways_copy_the_same() {
        let src: Vec<u8> = (0..=250).cycle().take(10_000).collect();
        for streams in [false, true] {
            let copying = Copying::new();
            for (from, to, len) in [
                (0, 0, 9000),
                (1, 0, 4096),
                (0, 1, 4097),
                (7, 63, 8000),
                (3, 64, 63),
                (5, 9, 0),
            ] {
                copying.left.store(u32::from(streams), Ordering::Relaxed);
                let mut dst = vec![0xee; 10_000];
                // SAFETY: both have more than from or to + len bytes.
                unsafe { copying.copy(src[from..].as_ptr(), dst[to..].as_mut_ptr(), len) };
                assert_eq!(dst[to..to + len], src[from..from + len]);
                assert!(
                    dst[..to]
                        .iter()
                        .chain(&dst[to + len..])
                        .all(|byte| *byte == 0xee)
                );
            }
        }
    }
}
