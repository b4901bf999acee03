//! Sealed shared memory and its mappings.

#![expect(unsafe_code, reason = "mmap")]

use core::ptr::NonNull;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rdma_core::mem::Region;
use rustix::fs::{
    FileType, FsWord, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatfs,
    ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};

/// Seals without which no memory of another process is mapped: it can no longer shrink.
pub const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// New memory of `bytes` bytes, zero, sparse and sealed against resizing.
///
/// # Errors
/// `EFBIG` beyond the file size limit; else those of memfd_create(2), ftruncate(2) and fcntl(2).
pub fn create(name: &core::ffi::CStr, bytes: usize) -> Result<OwnedFd, Errno> {
    // The kernel would say so by SIGXFSZ as well, which ends the program.
    let limit = getrlimit(Resource::Fsize).current;
    if limit.is_some_and(|limit| bytes as u64 > limit) {
        return Err(Errno::FBIG);
    }
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, bytes as u64)?;
    fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

/// Maps `bytes` bytes of memory made by somebody else, from byte `at` (a multiple of the page size) on, after
/// checking that they are there to stay. The mapping lasts until [`unmap`] or the end of the process.
///
/// # Errors
/// `EINVAL` for memory that could still shrink or is too small; else those of mmap(2).
pub fn map(fd: impl AsFd, at: u64, bytes: usize) -> Result<Region, Errno> {
    if !is_final(fd.as_fd(), at.saturating_add(bytes as u64))? {
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
            at,
        )
    }?;
    region(base, bytes)
}

/// Maps the first `bytes` bytes of a device's registers. The mapping lasts until the end of the process.
///
/// # Errors
/// `EINVAL` for what is not a device; else those of mmap(2).
pub fn map_registers(fd: impl AsFd, bytes: usize) -> Result<Region, Errno> {
    let is_device = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::CharacterDevice
        || fstatfs(&fd)?.f_type == SYSFS_MAGIC;
    if !is_device {
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

/// Whether a file that can be mapped is a device's: its memory vanishes with the device.
pub fn is_of_device(fd: impl AsFd) -> bool {
    fcntl_get_seals(fd).is_err()
}

/// Puts private zero memory in the place of the page at `address`, which is mapped and cannot be touched any more
/// because its device is gone. May be called in a signal handler.
///
/// # Errors
/// Those of mmap(2).
///
/// # Safety
/// The page is part of a mapping of [`map`] or [`map_registers`], whose memory only ever was what others write.
pub unsafe fn replace_page(address: usize) -> Result<(), Errno> {
    const PAGE: usize = 4096;
    let page = core::ptr::with_exposed_provenance_mut(address & !(PAGE - 1));
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: by contract the page is ours to replace, and whoever uses it expects any contents.
    unsafe { mmap_anonymous(page, PAGE, protection, flags) }?;
    Ok(())
}

/// Whether the first `bytes` bytes of a file stay what they are: sealed memory, or the memory of a device.
fn is_final(fd: BorrowedFd<'_>, bytes: u64) -> Result<bool, Errno> {
    let stat = fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
        // Its size is not to be had, and mmap refuses what is beyond it.
        return Ok(true);
    }
    let is_long_enough = u64::try_from(stat.st_size).unwrap_or(0) >= bytes;
    let is_sealed = match fcntl_get_seals(fd) {
        Ok(seals) => seals.contains(SealFlags::SHRINK),
        // A file without seals: the resource of a PCI device, whose size is the device's.
        Err(Errno::INVAL) => fstatfs(fd)?.f_type == SYSFS_MAGIC,
        Err(error) => return Err(error),
    };
    Ok(is_sealed && is_long_enough)
}

/// statfs(2): sysfs.
const SYSFS_MAGIC: FsWord = 0x6265_6572;

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

/// Puts private zero memory in the place of a mapping, which holds its file no more. Whoever uses it still, uses what
/// nobody else sees.
///
/// # Errors
/// Those of mmap(2).
///
/// # Safety
/// The region is a mapping of [`map`], whose memory only ever was what others write.
pub unsafe fn vacate(region: &Region) -> Result<(), Errno> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    let base = region.base().as_ptr().cast();
    // SAFETY: by contract the mapping is ours to replace, and whoever uses it expects any contents.
    unsafe { mmap_anonymous(base, region.len(), protection, flags) }?;
    Ok(())
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
        let region = map(&fd, 0, 8192).unwrap();
        assert_eq!(region.len(), 8192);
        assert_eq!(map(&fd, 0, 8193).unwrap_err(), Errno::INVAL);
        assert_eq!(map(&fd, 4096, 4096).unwrap().len(), 4096);
        assert_eq!(map(&fd, 4096, 4097).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn pages_of_what_has_gone_are_replaced() {
        let fd = create(c"viaduct-test", 3 * 4096).unwrap();
        assert!(!is_of_device(&fd));
        let region = map(&fd, 0, 3 * 4096).unwrap();
        let other = map(&fd, 0, 3 * 4096).unwrap();
        // SAFETY: inside a mapping of three pages.
        let at =
            |region: &Region, page: usize| unsafe { region.base().cast::<u64>().add(page * 512) };
        for page in 0..3 {
            // SAFETY: mapped, and nobody else's.
            unsafe { at(&region, page).write_volatile(7) };
        }
        let middle = region.base().as_ptr().expose_provenance() + 4096 + 9;
        // SAFETY: a page of a mapping of `map`, in which nothing but these words is used.
        unsafe { replace_page(middle) }.unwrap();
        let all = |region| {
            // SAFETY: as above.
            [0, 1, 2].map(|page| unsafe { at(region, page).read_volatile() })
        };
        assert_eq!((all(&region), all(&other)), ([7, 0, 7], [7, 7, 7]));
    }

    #[test]
    fn a_mapping_that_is_vacated_is_zeros_of_its_own() {
        let fd = create(c"viaduct-test", 8192).unwrap();
        let [region, other] = [0; 2].map(|at| map(&fd, at, 8192).unwrap());
        let last = |region: &Region| {
            // SAFETY: the last word of a mapping of two pages.
            unsafe { region.base().cast::<u64>().add(1023) }
        };
        // SAFETY: mapped, and nobody else's.
        unsafe { last(&region).write_volatile(7) };
        // SAFETY: nothing but these words is used.
        unsafe { vacate(&region) }.unwrap();
        // SAFETY: as above.
        let words = [&region, &other].map(|region| unsafe { last(region).read_volatile() });
        assert_eq!(words, [0, 7]);
    }

    #[test]
    fn unsealed_memory_is_refused() {
        let fd = memfd_create(c"viaduct-test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 4096).unwrap();
        assert_eq!(map(&fd, 0, 4096).unwrap_err(), Errno::INVAL);
    }
}
