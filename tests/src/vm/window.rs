//! Mapped memory that others write at the same time, word by word.

#![expect(unsafe_code, reason = "a mapping of shared memory")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64};
use std::io;
use std::os::fd::AsFd;

use rdma_core::mem::Region;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The beginning of some memory.
#[derive(Debug)]
pub struct Window {
    base: NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: the words are atomics, and the mapping lives as long as this.
unsafe impl Send for Window {}
// SAFETY: as for `Send`.
unsafe impl Sync for Window {}

impl Window {
    /// Maps the first `bytes` of `memory`, which must not become shorter.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn map(memory: impl AsFd, bytes: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let nowhere = core::ptr::null_mut();
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let base = unsafe { mmap(nowhere, bytes, protection, MapFlags::SHARED, memory, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, bytes })
    }

    /// The word at an offset, which is rounded down.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        let index = offset / size_of::<u64>();
        assert!(
            (index + 1) * size_of::<u64>() <= self.bytes,
            "{offset} is outside"
        );
        // SAFETY: inside the mapping, just checked.
        let word = unsafe { self.base.add(index) };
        // SAFETY: mapped, aligned, and only ever used as an atomic here.
        unsafe { word.as_ref() }
    }

    /// The half word at an offset, for registers.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn half(&self, offset: usize) -> &AtomicU32 {
        let index = offset / size_of::<u32>();
        assert!(
            (index + 1) * size_of::<u32>() <= self.bytes,
            "{offset} is outside"
        );
        // SAFETY: inside the mapping, just checked.
        let half = unsafe { self.base.cast::<AtomicU32>().add(index) };
        // SAFETY: mapped, aligned, and only ever used as an atomic here.
        unsafe { half.as_ref() }
    }

    /// How much is mapped.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it, for what the library has for such memory. To be used no longer than this lives.
    pub const fn region(&self) -> Region {
        // SAFETY: mapped readable and writable with this length; whoever uses it keeps this.
        unsafe { Region::new(self.base.cast(), self.bytes) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; words borrow from `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
