//! The ways of copying.

use super::choice::Way;

const LINE: usize = 64;
const WORD: usize = size_of::<u64>();

/// Copies bytes.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
#[inline(always)]
pub(super) unsafe fn copy(way: Way, src: *const u8, dst: *mut u8, len: usize) {
    match way {
        // SAFETY: as promised by the caller.
        Way::Ordinary => unsafe { core::ptr::copy_nonoverlapping(src, dst, len) },
        // SAFETY: as promised by the caller.
        Way::Streamed => unsafe { stream(src, dst, len) },
        // SAFETY: as promised by the caller.
        Way::Words => unsafe { by_lines(src, dst, len, word_line) },
    }
}

/// Copies by non-temporal stores.
///
/// # Safety
/// As [`copy`].
unsafe fn stream(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: as promised by the caller.
    unsafe { by_lines(src, dst, len, stream_line) };
    // Non-temporal stores are ordered by nothing else.
    // SAFETY: every x86-64 processor has it.
    unsafe { core::arch::x86_64::_mm_sfence() };
}

/// Copies whole lines of the destination by `line`, and what is left by ordinary stores.
///
/// # Safety
/// As [`copy`]. `line` copies [`LINE`] bytes to a multiple of that.
#[inline(always)]
unsafe fn by_lines(src: *const u8, dst: *mut u8, len: usize, line: unsafe fn(*const u8, *mut u8)) {
    let head = dst.align_offset(LINE).min(len);
    let lines = (len - head) / LINE;
    let tail = head + lines * LINE;
    // SAFETY: head <= len.
    unsafe { core::ptr::copy_nonoverlapping(src, dst, head) };
    for at in (head..tail).step_by(LINE) {
        // SAFETY: the line lies inside both, and begins at a multiple of its size in `dst`.
        unsafe { line(src.add(at), dst.add(at)) };
    }
    // SAFETY: tail <= len.
    unsafe { core::ptr::copy_nonoverlapping(src.add(tail), dst.add(tail), len - tail) };
}

/// Copies one line by non-temporal stores.
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

/// Copies one line word by word. The stores are volatile, so that the compiler does not make vectors of them.
///
/// # Safety
/// As [`stream_line`].
#[inline(always)]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    clippy::cast_ptr_alignment,
    reason = "the eight words of one line; loads are unaligned ones, stores are aligned by contract"
)]
unsafe fn word_line(src: *const u8, dst: *mut u8) {
    let (src, dst) = (src.cast::<u64>(), dst.cast::<u64>());
    for at in 0..LINE / WORD {
        // SAFETY: eight times eight bytes, inside the line by contract.
        unsafe { dst.add(at).write_volatile(src.add(at).read_unaligned()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_copy_the_same() {
        let src: Vec<u8> = (0..=250).cycle().take(10_000).collect();
        for way in [Way::Ordinary, Way::Streamed, Way::Words] {
            for (from, to, len) in [
                (0, 0, 9000),
                (1, 0, 4096),
                (0, 1, 4097),
                (7, 63, 8000),
                (3, 64, 63),
                (5, 9, 0),
            ] {
                let mut dst = vec![0xee; 10_000];
                // SAFETY: both have more than from or to + len bytes.
                unsafe { copy(way, src[from..].as_ptr(), dst[to..].as_mut_ptr(), len) };
                assert_eq!(dst[to..to + len], src[from..from + len]);
                let mut around = dst[..to].iter().chain(&dst[to + len..]);
                assert!(around.all(|byte| *byte == 0xee));
            }
        }
    }
}
