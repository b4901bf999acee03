//! The device's registers, mapped: the only memory of a device that this process itself touches.

#![expect(unsafe_code, reason = "mapped registers of a device")]

use core::ptr::NonNull;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What is mapped. Registers take the first bytes of it.
const PAGE: usize = 4096;

/// Registers of 32 bits each, which come and go as the device likes.
#[derive(Debug)]
pub(super) struct Registers {
    base: NonNull<u32>,
}

// SAFETY: the pointer is only used for single accesses by `read` and `write`, which every thread may make.
unsafe impl Send for Registers {}
// SAFETY: as for `Send`; the device takes accesses from several processors at once.
unsafe impl Sync for Registers {}

impl Registers {
    /// Those at the beginning of `file`, a BAR.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(super) fn map(file: impl AsFd) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let nowhere = core::ptr::null_mut();
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let base = unsafe { mmap(nowhere, PAGE, protection, MapFlags::SHARED, file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base })
    }

    /// What a register says.
    pub(super) fn read(&self, offset: usize) -> u32 {
        let register = self.at(offset);
        // SAFETY: inside the mapped page and aligned, see `at`.
        unsafe { register.read_volatile() }
    }

    /// Writes a register. Memory written before is there when the device learns of it: the store is not
    /// reordered with earlier ones, since x86 keeps stores in order and the compiler is fenced.
    pub(super) fn write(&self, offset: usize, value: u32) {
        rdma_core::sync::full_barrier();
        let register = self.at(offset);
        // SAFETY: inside the mapped page and aligned, see `at`.
        unsafe { register.write_volatile(value) };
    }

    fn at(&self, offset: usize) -> *mut u32 {
        let word = offset / size_of::<u32>() % (PAGE / size_of::<u32>());
        self.base.as_ptr().wrapping_add(word)
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; nobody has a reference into it.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), PAGE) };
    }
}
