//! The region as a guest maps it: by one device, or its beginning by one and the rest by another.

use std::io;

use frontend_drv::device::Device;
use rdma_core::channel::{REGION_MAGIC, RegionHeader};
use rdma_core::sync::Ordering;

use crate::memory::Mapping;

/// Maps all of the region that `device` brings.
///
/// # Errors
/// What mmap says; `InvalidData` if the two parts are not of one region.
pub(super) fn map(device: &dyn Device) -> io::Result<Mapping> {
    let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    let bytes = usize::try_from(device.memory_bytes()).map_err(too_large)?;
    let memory = &**device.memory();
    let Some(front) = device.front() else {
        return Mapping::of_device(memory, bytes);
    };
    let start = usize::try_from(device.memory_start()).map_err(too_large)?;
    let mapping = Mapping::of_devices(&**front, start, memory, bytes)?;
    match [0, start].map(|at| id_at(&mapping, at)) {
        [Some(one), Some(other)] if one == other => Ok(mapping),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the persistent memory is not that of the ivshmem device; give QEMU the same region for both",
        )),
    }
}

/// Which region's header stands at `at`; `None` if none does.
fn id_at(mapping: &Mapping, at: usize) -> Option<u64> {
    let header = mapping.get::<RegionHeader>(at)?;
    let is_one = header.magic.load(Ordering::Acquire) == REGION_MAGIC;
    is_one.then(|| header.id.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::sync::Arc;

    use rdma_core::channel::{CACHED_START, REGION_MIN};
    use rdma_core::layout::ConsumerWords;

    use super::*;
    use crate::shared::sealed_memory;
    use crate::vm::region::Region;

    /// A machine with two devices.
    #[derive(Debug)]
    struct Two {
        front: Arc<OwnedFd>,
        memory: Arc<OwnedFd>,
    }

    impl Device for Two {
        fn memory(&self) -> &Arc<OwnedFd> {
            &self.memory
        }

        fn memory_start(&self) -> u64 {
            CACHED_START
        }

        fn front(&self) -> Option<&Arc<OwnedFd>> {
            Some(&self.front)
        }

        fn memory_bytes(&self) -> u64 {
            REGION_MIN
        }

        fn id(&self) -> u16 {
            1
        }

        fn vectors(&self) -> u16 {
            0
        }

        fn register(&self) -> Option<&Arc<OwnedFd>> {
            None
        }

        fn ring(&self, _: u16, _: u16) {}

        fn bind(&self, _: u16, _: BorrowedFd<'_>) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn is_present(&self) -> bool {
            true
        }

        fn news(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    /// What a device has that begins where a region's cached part does: a copy of its first page.
    fn cached_part(region: &Region) -> Arc<OwnedFd> {
        let memory = sealed_memory("test", REGION_MIN - CACHED_START).unwrap();
        let mut page = [0; 4096];
        rustix::io::pread(region.memory().as_fd(), &mut page, CACHED_START).unwrap();
        assert_eq!(rustix::io::pwrite(&memory, &page, 0).unwrap(), 4096);
        Arc::new(memory)
    }

    #[test]
    fn two_devices_are_one_region_or_refused() {
        let [one, other] = [1, 2].map(|index| Region::create(index, REGION_MIN).unwrap());
        let device = |memory: Arc<OwnedFd>| Two {
            front: Arc::clone(one.memory()),
            memory,
        };
        let memory = cached_part(&one);
        let mapping = map(&device(Arc::clone(&memory))).unwrap();
        assert_eq!(mapping.len() as u64, REGION_MIN);
        let word = |at: u64| mapping.get::<ConsumerWords>(usize::try_from(at).unwrap());
        // Each part leads to its own device.
        let last = REGION_MIN - size_of::<ConsumerWords>() as u64;
        word(8192).unwrap().head.store(5, Ordering::Relaxed);
        word(last).unwrap().head.store(6, Ordering::Relaxed);
        let read = |file: &OwnedFd, at| {
            let mut bytes = [0; 8];
            rustix::io::pread(file, &mut bytes, at).unwrap();
            u64::from_ne_bytes(bytes)
        };
        assert_eq!(read(one.memory(), 8192), 5);
        assert_eq!(read(&memory, last - CACHED_START), 6);
        assert!(word(REGION_MIN).is_none());

        let error = map(&device(cached_part(&other))).unwrap_err();
        assert!(error.to_string().contains("same region"), "{error}");
        let nothing = sealed_memory("test", REGION_MIN - CACHED_START).unwrap();
        assert!(map(&device(Arc::new(nothing))).is_err());
    }
}
