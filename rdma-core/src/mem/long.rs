//! Long copies into and out of rings, in whichever way is fastest on this machine.
//!
//! Whoever reads a ring on another processor keeps its lines in that processor's cache. A store to such a line waits
//! until the other cache has given it up; between processors that share no cache that takes so long that a copy of
//! 64 KiB does 2 to 9 GB/s instead of 45 (measured on an AMD EPYC of two such processors, docs/costs.md). A *non-temporal*
//! store waits for nobody, and the reader then fetches the bytes from memory: 14 GB/s for both together. On one
//! processor, or where caches are shared, it would be the slower way. And a processor that is emulated (QEMU's TCG) may have
//! vectors of 16 bytes in pieces, by way of memory: copying word by word is twice as fast there.
//!
//! So copies are timed, by the time-stamp counter, and [`choice`] decides by what was measured. What makes copies slow
//! (where the scheduler has put the two ends, how far these are apart, what the processor is) holds for a process's rings
//! alike, so there is one choice for all of them in each direction.

mod choice;
mod ways;

use choice::{Choice, Way};

/// Copies from this length on are long: shorter ones are not worth being timed.
pub(super) const LONG: usize = 4096;

/// Into rings. Threads that copy at the same time may lose a count, which only shifts the next try.
static INTO: Choice = Choice::of(&[Way::Streamed, Way::Words]);
/// Out of rings, into memory that the program itself will read.
static OUT_OF: Choice = Choice::of(&[Way::Words]);

/// Copies bytes into a ring. What is stored is seen by others in the order of the program, as after any other copy.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
#[inline(never)]
pub(super) unsafe fn copy_in(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: as promised by the caller.
    unsafe { copy(&INTO, src, dst, len) };
}

/// Copies bytes out of a ring.
///
/// # Safety
/// As [`copy_in`].
#[inline(never)]
pub(super) unsafe fn copy_out(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: as promised by the caller.
    unsafe { copy(&OUT_OF, src, dst, len) };
}

/// # Safety
/// As [`copy_in`].
#[inline(always)]
unsafe fn copy(choice: &Choice, src: *const u8, dst: *mut u8, len: usize) {
    if let Some(way) = choice.chosen(len) {
        // SAFETY: as promised by the caller.
        return unsafe { ways::copy(way, src, dst, len) };
    }
    let way = choice.tried();
    let start = ticks();
    // SAFETY: as promised by the caller.
    unsafe { ways::copy(way, src, dst, len) };
    choice.took(way, len, ticks().saturating_sub(start));
}

/// The time-stamp counter.
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
