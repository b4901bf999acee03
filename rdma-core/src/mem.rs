//! Memory that somebody else writes, and the only unsafe code of the crate, with `mem/long.rs` for long copies.
//!
//! A [`Region`] is a range of mapped memory. Typed access goes through [`Shared`] types, which are
//! made of atomics only, so that any bit pattern is valid and no data race exists in the language's
//! terms. Payload bytes are copied in and out through [`RingBytes`] with raw copies and are never
//! visible as a slice: the far end may change them at any time, and then the reader merely gets
//! other bytes, as from any hostile sender.

#![expect(
    unsafe_code,
    reason = "typed views and copies over memory that other processes write"
)]

#[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
mod long;

use core::ptr::NonNull;

#[cfg(loom)]
use crate::sync::UnsafeCell;

/// A type that may be viewed in memory which other processes write.
///
/// # Safety
/// The type is `repr(C)`, consists of atomics (and padding) only, is valid for every bit pattern,
/// holds no pointers and is `Sync`.
pub unsafe trait Shared: Sync {}

/// A range of mapped memory, `len` bytes from `base`.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a Region is an address and a length; all access goes through atomics or raw copies.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Names `len` bytes of mapped memory at `base`.
    ///
    /// # Safety
    /// The range is mapped readable and writable, and stays so for as long as the region, any
    /// reference obtained from it, or any [`RingBytes`] over it is used. The mapping cannot shrink
    /// (the memory is sealed or anonymous).
    pub const unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The part from `offset`, `len` bytes long; `None` if it does not lie inside.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset <= self.len, so the result stays inside the mapped range.
        let base = unsafe { self.base.add(offset) };
        Some(Self { base, len })
    }

    /// The `T` at `offset`; `None` if it would not lie inside or is misaligned.
    #[inline]
    pub fn get<T: Shared>(&self, offset: usize) -> Option<&'static T> {
        let part = self.part(offset, size_of::<T>())?;
        let at = part.base.cast::<T>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: in bounds, aligned, mapped (contract of `new`), and every bit pattern of a
        // `Shared` type is valid. The lifetime is bounded by the contract of `new`.
        Some(unsafe { at.as_ref() })
    }

    /// The bytes of a ring of `bytes` bytes (a power of two) at `offset`.
    pub fn ring_bytes(&self, offset: usize, bytes: usize) -> Option<RingBytes> {
        if !bytes.is_power_of_two() {
            return None;
        }
        let part = self.part(offset, bytes)?;
        #[cfg(not(loom))]
        return Some(RingBytes {
            base: part.base,
            mask: bytes - 1,
        });
        #[cfg(loom)]
        {
            let _ = part;
            None
        }
    }
}

/// The payload bytes of a ring: a power of two of them, addressed by position modulo size.
#[derive(Clone, Copy, Debug)]
pub struct RingBytes {
    #[cfg(not(loom))]
    base: NonNull<u8>,
    #[cfg(loom)]
    base: &'static [UnsafeCell<u8>],
    mask: usize,
}

// SAFETY: the bytes are only copied, never referenced; see the module documentation.
unsafe impl Send for RingBytes {}
// SAFETY: as above.
unsafe impl Sync for RingBytes {}

impl RingBytes {
    /// Ring bytes for a loom model: loom reports any two accesses to a byte, one of them a write,
    /// that no synchronisation orders.
    ///
    /// # Panics
    /// If the number of bytes is not a power of two.
    #[cfg(loom)]
    pub fn for_loom(bytes: &'static [UnsafeCell<u8>]) -> Self {
        assert!(bytes.len().is_power_of_two());
        Self {
            base: bytes,
            mask: bytes.len() - 1,
        }
    }

    /// Capacity in bytes.
    #[inline(always)]
    pub const fn capacity(&self) -> usize {
        self.mask + 1
    }

    /// The longest run of bytes from `index` (taken modulo capacity) that does not wrap, at most
    /// `len` long.
    #[inline(always)]
    #[cfg(not(loom))]
    const fn run(&self, index: usize, len: usize) -> (usize, usize) {
        let at = index & self.mask;
        let until_end = self.capacity() - at;
        (at, if len < until_end { len } else { until_end })
    }

    /// Copies `len` bytes from `src` to position `index` (modulo capacity), wrapping as needed.
    ///
    /// # Safety
    /// `src` is readable for `len` bytes, and `len` is at most the capacity.
    #[inline(always)]
    #[cfg(not(loom))]
    pub unsafe fn copy_in(&self, index: usize, src: *const u8, len: usize) {
        let (at, first) = self.run(index, len);
        // SAFETY: at + first <= capacity; src is readable for len >= first bytes.
        unsafe { copy_to_others(src, self.base.as_ptr().add(at), first) };
        if first < len {
            // SAFETY: the rest starts at the ring's beginning and is shorter than the capacity.
            unsafe { copy_to_others(src.add(first), self.base.as_ptr(), len - first) };
        }
    }

    /// Copies `len` bytes from position `index` (modulo capacity) to `dst`.
    ///
    /// # Safety
    /// `dst` is writable for `len` bytes, and `len` is at most the capacity.
    #[inline(always)]
    #[cfg(not(loom))]
    pub unsafe fn copy_out(&self, index: usize, dst: *mut u8, len: usize) {
        let (at, first) = self.run(index, len);
        // SAFETY: at + first <= capacity; dst is writable for len >= first bytes.
        unsafe { copy_from_others(self.base.as_ptr().add(at), dst, first) };
        if first < len {
            // SAFETY: the rest starts at the ring's beginning and is shorter than the capacity.
            unsafe { copy_from_others(self.base.as_ptr(), dst.add(first), len - first) };
        }
    }

    /// Asks for ownership of the lines that the next writes of about `len` bytes will touch.
    ///
    /// The reader has them in its cache from the last time around; fetched one by one at the store,
    /// each would stall the writer for a round trip between processors.
    #[inline(always)]
    #[cfg(not(loom))]
    pub fn prefetch_for_write(&self, index: usize, len: usize) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..=len / LINE {
            let at = (index + PREFETCH_AHEAD + line * LINE) & self.mask;
            // SAFETY: at <= mask, so the address lies inside the ring.
            let address = unsafe { self.base.as_ptr().add(at) };
            // SAFETY: a hint about an address inside the ring; no memory is changed.
            unsafe {
                core::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags));
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (index, len);
    }

    /// As the production version: nothing.
    #[cfg(loom)]
    pub fn prefetch_for_write(&self, _index: usize, _len: usize) {}

    /// The run of memory from position `index`, at most `len` bytes, for a system call that fills or
    /// empties the ring directly (sendfile, splice). The address is only ever given to the kernel.
    #[cfg(not(loom))]
    pub fn raw_run(&self, index: usize, len: usize) -> (*mut u8, usize) {
        let (at, run) = self.run(index, len);
        // SAFETY: at < capacity, so the address lies inside the ring.
        (unsafe { self.base.as_ptr().add(at) }, run)
    }

    /// Copies bytes from position `from` of another ring to position `index` (both modulo capacity), at
    /// most `len` and at most what either ring holds. Whatever lies there by now is what is copied.
    #[cfg(not(loom))]
    pub fn copy_across(&self, index: usize, other: &Self, from: usize, len: usize) {
        let len = len.min(self.capacity()).min(other.capacity());
        let mut done = 0;
        while done < len {
            let (src, there) = other.raw_run(from.wrapping_add(done), len - done);
            let (dst, room) = self.raw_run(index.wrapping_add(done), there);
            if src.addr().abs_diff(dst.addr()) < room {
                // SAFETY: `room` bytes from either address lie inside its ring, which is mapped readable and
                // writable; `copy` allows the two to be the same memory.
                unsafe { core::ptr::copy(src.cast_const(), dst, room) };
            } else {
                // SAFETY: as above, and the two are apart.
                unsafe { copy_to_others(src.cast_const(), dst, room) };
            }
            done += room;
        }
    }

    /// As the production version, byte by byte through loom's cells.
    ///
    /// # Safety
    /// `src` is readable for `len` bytes.
    #[cfg(loom)]
    pub unsafe fn copy_in(&self, index: usize, src: *const u8, len: usize) {
        for i in 0..len {
            let cell = &self.base[index.wrapping_add(i) & self.mask];
            // SAFETY: src by contract; loom has checked that nobody else uses the cell.
            cell.with_mut(|byte| unsafe { byte.write(src.add(i).read()) });
        }
    }

    /// As the production version, byte by byte through loom's cells.
    ///
    /// # Safety
    /// `dst` is writable for `len` bytes.
    #[cfg(loom)]
    pub unsafe fn copy_out(&self, index: usize, dst: *mut u8, len: usize) {
        for i in 0..len {
            let cell = &self.base[index.wrapping_add(i) & self.mask];
            // SAFETY: dst by contract; loom has checked that nobody writes the cell.
            cell.with(|byte| unsafe { dst.add(i).write(byte.read()) });
        }
    }
}

/// Bytes of a cache line.
#[cfg(all(target_arch = "x86_64", not(loom)))]
const LINE: usize = 64;

/// How far ahead of the tail lines are fetched: a few messages.
#[cfg(all(target_arch = "x86_64", not(loom)))]
const PREFETCH_AHEAD: usize = 512;

/// Copies bytes that somebody else will read, maybe on another processor.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
#[cfg(not(loom))]
unsafe fn copy_to_others(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len >= long::LONG {
        // SAFETY: as promised by the caller.
        return unsafe { long::copy_in(src, dst, len) };
    }
    // SAFETY: as promised by the caller.
    unsafe { copy(src, dst, len) };
}

/// Copies bytes that somebody else has written, maybe on another processor.
///
/// # Safety
/// As [`copy`].
#[inline(always)]
#[cfg(not(loom))]
unsafe fn copy_from_others(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len >= long::LONG {
        // SAFETY: as promised by the caller.
        return unsafe { long::copy_out(src, dst, len) };
    }
    // SAFETY: as promised by the caller.
    unsafe { copy(src, dst, len) };
}

/// Copies bytes; up to 16 of them without a call, since small messages are what a ring is judged by.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
#[inline(always)]
#[cfg(not(loom))]
unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    if len == 1 {
        // SAFETY: one byte is readable at src and writable at dst.
        unsafe { dst.write(src.read()) };
    } else if len <= 16 {
        // SAFETY: as promised by the caller.
        unsafe { copy_short(src, dst, len) };
    } else {
        // SAFETY: as promised by the caller.
        unsafe { core::ptr::copy_nonoverlapping(src, dst, len) };
    }
}

/// Copies 0 to 16 bytes by two possibly overlapping moves.
///
/// # Safety
/// As [`copy`], and `len` is at most 16.
#[inline(always)]
#[cfg(not(loom))]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "unaligned reads and writes of one idea: head and tail of a short copy"
)]
unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: each branch reads and writes only inside [0, len), which the caller promised.
    unsafe {
        if len >= 8 {
            let head = src.cast::<u64>().read_unaligned();
            let tail = src.add(len - 8).cast::<u64>().read_unaligned();
            dst.cast::<u64>().write_unaligned(head);
            dst.add(len - 8).cast::<u64>().write_unaligned(tail);
        } else if len >= 4 {
            let head = src.cast::<u32>().read_unaligned();
            let tail = src.add(len - 4).cast::<u32>().read_unaligned();
            dst.cast::<u32>().write_unaligned(head);
            dst.add(len - 4).cast::<u32>().write_unaligned(tail);
        } else if len > 0 {
            let first = src.read();
            let middle = src.add(len / 2).read();
            let last = src.add(len - 1).read();
            dst.write(first);
            dst.add(len / 2).write(middle);
            dst.add(len - 1).write(last);
        }
    }
}

/// Heap memory that looks like a shared region, for tests, fuzzing and benches.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct HeapRegion {
    region: Region,
    layout: std::alloc::Layout,
}

#[cfg(not(loom))]
impl HeapRegion {
    /// `len` zeroed bytes, page-aligned.
    ///
    /// # Panics
    /// If `len` is zero or the memory cannot be had.
    #[expect(clippy::expect_used, reason = "documented panic of a test helper")]
    pub fn new(len: usize) -> Self {
        let layout = std::alloc::Layout::from_size_align(len, 4096).expect("a sane length");
        assert!(len > 0, "an empty region");
        // SAFETY: the layout has a non-zero size.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(base).expect("memory");
        // SAFETY: freshly allocated, freed only when self is dropped.
        let region = unsafe { Region::new(base, len) };
        Self { region, layout }
    }

    /// The region; valid while `self` lives.
    pub const fn region(&self) -> Region {
        self.region
    }
}

#[cfg(not(loom))]
impl Drop for HeapRegion {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { std::alloc::dealloc(self.region.base.as_ptr(), self.layout) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::AtomicU64;

    // SAFETY: an atomic.
    unsafe impl Shared for AtomicU64 {}

    #[test]
    fn parts_and_views_stay_inside() {
        let heap = HeapRegion::new(4096);
        let region = heap.region();
        assert!(region.part(4096, 0).is_some());
        assert!(region.part(4096, 1).is_none());
        assert!(region.part(usize::MAX, 2).is_none());
        assert!(region.get::<AtomicU64>(4088).is_some());
        assert!(region.get::<AtomicU64>(4089).is_none());
        assert!(region.get::<AtomicU64>(1).is_none(), "misaligned");
        assert!(region.ring_bytes(0, 100).is_none(), "not a power of two");
    }

    #[test]
    fn short_copies_are_exact_for_every_length() {
        for len in 0..=17 {
            let src: Vec<u8> = (1..=17).collect();
            let mut dst = [0u8; 20];
            // SAFETY: both buffers are longer than len.
            unsafe { copy(src.as_ptr(), dst.as_mut_ptr(), len) };
            assert_eq!(dst[..len], src[..len]);
            assert!(
                dst[len..].iter().all(|&b| b == 0),
                "length {len} wrote beyond"
            );
        }
    }

    #[test]
    fn copies_wrap() {
        let heap = HeapRegion::new(4096);
        let ring = heap.region().ring_bytes(0, 64).unwrap();
        let src: Vec<u8> = (0..64).collect();
        let mut dst = vec![0u8; 64];
        // SAFETY: 64 bytes each.
        unsafe { ring.copy_in(40, src.as_ptr(), 64) };
        // SAFETY: 64 bytes each.
        unsafe { ring.copy_out(40 + 64, dst.as_mut_ptr(), 64) };
        assert_eq!(src, dst);
    }

    #[test]
    fn rings_are_copied_across_wherever_they_wrap() {
        let heap = HeapRegion::new(4096);
        let one = heap.region().ring_bytes(0, 64).unwrap();
        let other = heap.region().ring_bytes(128, 64).unwrap();
        let src: Vec<u8> = (1..=64).collect();
        for from in [0, 1, 40, 63] {
            for to in [0, 2, 40, 63] {
                for len in [0, 1, 30, 64, 1000] {
                    let mut dst = vec![0u8; 64];
                    // SAFETY: 64 bytes each.
                    unsafe { one.copy_in(from, src.as_ptr(), 64) };
                    // SAFETY: 64 bytes each.
                    unsafe { other.copy_in(to, dst.as_ptr(), 64) };
                    other.copy_across(to, &one, from, len);
                    // SAFETY: 64 bytes each.
                    unsafe { other.copy_out(to, dst.as_mut_ptr(), 64) };
                    let len = len.min(64);
                    assert_eq!(dst[..len], src[..len], "{from} {to}");
                    assert!(
                        dst[len..].iter().all(|byte| *byte == 0),
                        "{from} {to} {len}"
                    );
                }
            }
        }
    }
}
