//! Payload by address and length. It is given to the kernel or copied, and never looked at as a slice: whoever
//! writes the ring may change it at any moment.

#![expect(unsafe_code, reason = "copies of memory that other processes write")]

use core::marker::PhantomData;
use core::ptr::NonNull;

use rdma_core::mem::RingBytes;

/// A run of bytes that stays mapped for `'a`.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Slice<'a> {
    /// No bytes.
    pub const EMPTY: Self = Self {
        base: NonNull::dangling(),
        len: 0,
        memory: PhantomData,
    };

    /// Bytes of our own.
    pub const fn of_bytes(bytes: &'a [u8]) -> Self {
        // A reference is never null.
        match NonNull::new(bytes.as_ptr().cast_mut()) {
            Some(base) => Self {
                base,
                len: bytes.len(),
                memory: PhantomData,
            },
            None => Self::EMPTY,
        }
    }

    /// The `len` bytes of `ring` from position `index`, which may wrap; at most its capacity.
    pub fn of_ring(ring: &'a RingBytes, index: usize, len: usize) -> [Self; 2] {
        let len = len.min(ring.capacity());
        let (base, first) = ring.raw_run(index, len);
        let (rest, second) = ring.raw_run(index.wrapping_add(first), len - first);
        let run = |base, len| {
            NonNull::new(base).map_or(Self::EMPTY, |base| Self {
                base,
                len,
                memory: PhantomData,
            })
        };
        [run(base, first), run(rest, second)]
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they begin, for the kernel.
    pub(super) const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Copies the bytes, as they are by then, to the end of `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.len);
        let to = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        // SAFETY: `len` bytes are reserved at `to`; the source is mapped for `len` bytes while `self` lives, and
        // lies elsewhere, since `out` owns its memory alone. Bytes that change meanwhile are merely other bytes.
        unsafe { core::ptr::copy_nonoverlapping(self.base.as_ptr(), to, self.len) };
        let len = out.len() + self.len;
        // SAFETY: within the capacity, and the bytes up to here have just been written.
        unsafe { out.set_len(len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdma_core::mem::HeapRegion;

    #[test]
    fn a_ring_wraps_into_two_runs() {
        let heap = HeapRegion::new(4096);
        let ring = heap.region().ring_bytes(0, 1024).unwrap();
        let runs = Slice::of_ring(&ring, 1000, 100);
        assert_eq!(runs.map(|run| run.len()), [24, 76]);
        let runs = Slice::of_ring(&ring, 1024 + 10, 100);
        assert_eq!(runs.map(|run| run.len()), [100, 0]);
        let whole = Slice::of_ring(&ring, 1, 5000);
        assert_eq!(whole.map(|run| run.len()), [1023, 1]);
        let mut out = vec![9];
        Slice::of_bytes(&[1, 2, 3]).append_to(&mut out);
        Slice::EMPTY.append_to(&mut out);
        assert_eq!(out, [9, 1, 2, 3]);
    }
}
