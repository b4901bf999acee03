//! Sealed shared memory and its mappings.

#![expect(unsafe_code, reason = "mmap")]

use core::ptr::NonNull;
use std::os::fd::{AsFd, OwnedFd};

use rdma_core::mem::Region;
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Seals without which no memory of another process is mapped: it can no longer shrink.
pub const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// New memory of `bytes` bytes, zero, sparse and sealed against resizing.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn create(name: &core::ffi::CStr, bytes: usize) -> Result<OwnedFd, Errno> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, bytes as u64)?;
    fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

/// Maps `bytes` bytes of memory made by somebody else, after checking size and seals. The mapping
/// lasts until [`unmap`] or the end of the process.
///
/// # Errors
/// `EINVAL` for memory that could still shrink or is too small; else those of mmap(2).
pub fn map(fd: impl AsFd, bytes: usize) -> Result<Region, Errno> {
    let seals = fcntl_get_seals(&fd)?;
    let size = fstat(&fd)?.st_size;
    if !seals.contains(SealFlags::SHRINK) || u64::try_from(size).unwrap_or(0) < bytes as u64 {
        return Err(Errno::INVAL);
    }
    // SAFETY: a fresh mapping at an address the kernel chooses.
    let base = unsafe {
        mmap(
            core::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            fd,
            0,
        )
    }?;
    region(base, bytes)
}

/// Private zero memory that is only backed where it is touched.
///
/// # Errors
/// Those of mmap(2).
pub fn reserve(bytes: usize) -> Result<Region, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh mapping at an address the kernel chooses.
    let base = unsafe {
        mmap_anonymous(
            core::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
        )
    }?;
    region(base, bytes)
}

/// Removes a mapping.
///
/// # Safety
/// Nothing uses the region, or anything obtained from it, any more.
pub unsafe fn unmap(region: Region) {
    // SAFETY: mapped by this module with this length, and unused by contract.
    let _ = unsafe { munmap(region.base().as_ptr().cast(), region.len()) };
}

fn region(base: *mut core::ffi::c_void, bytes: usize) -> Result<Region, Errno> {
    let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
    // SAFETY: just mapped with this length; it can't shrink (sealed, or anonymous).
    Ok(unsafe { Region::new(base, bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_memory_is_shared_and_cannot_shrink() {
        let fd = create(c"viaduct-test", 8192).unwrap();
        assert_eq!(ftruncate(&fd, 4096), Err(Errno::PERM));
        let region = map(&fd, 8192).unwrap();
        assert_eq!(region.len(), 8192);
        assert_eq!(map(&fd, 8193).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn unsealed_memory_is_refused() {
        let fd = memfd_create(c"viaduct-test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        assert_eq!(map(&fd, 4096).unwrap_err(), Errno::INVAL);
    }
}
