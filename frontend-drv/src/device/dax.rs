//! Memory from persistent-memory hardware that QEMU imitates; the beginning of the region, with the control rings, and
//! doorbells from an ivshmem device.
//!
//! The guest may cache such memory like its own, while the memory of a PCI device is cached or not as guest and
//! processor agree; see `docs/deploy.md`. Few bytes pass through control rings.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rdma_core::channel::CACHED_START;

use super::ivshmem::Ivshmem;
use super::{Device, DeviceError, failed};

/// Where the kernel shows such devices.
const DEVICES: &str = "/sys/bus/dax/devices";

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Dax {
    memory: Arc<OwnedFd>,
    bytes: u64,
    doorbells: Ivshmem,
}

impl Dax {
    /// Opens the memory at `path`, and the only ivshmem device.
    pub(super) fn open(
        path: &Path,
        kept: &mut Vec<(String, OwnedFd)>,
    ) -> Result<Self, DeviceError> {
        let doing = failed::<io::Error>(format!("opening {}", path.display()));
        let memory = fs::OpenOptions::new().read(true).write(true).open(path);
        let memory = memory.map_err(doing)?;
        let bytes = size(Path::new(DEVICES), path)?.saturating_add(CACHED_START);
        let doorbells = Ivshmem::open(None, kept)?;
        if bytes != doorbells.memory_bytes() {
            return Err(DeviceError::Unlike {
                memory: path.display().to_string(),
                bytes,
                other: doorbells.memory_bytes(),
            });
        }
        Ok(Self {
            memory: Arc::new(memory.into()),
            bytes,
            doorbells,
        })
    }
}

/// The size of a device: its file says nothing of it.
fn size(devices: &Path, path: &Path) -> Result<u64, DeviceError> {
    let unfit = || DeviceError::Unfit(path.display().to_string());
    let name = path.file_name().ok_or_else(unfit)?;
    let text = fs::read_to_string(devices.join(name).join("size")).map_err(|_| unfit())?;
    text.trim().parse().map_err(|_| unfit())
}

impl Device for Dax {
    fn memory(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    fn memory_start(&self) -> u64 {
        CACHED_START
    }

    fn front(&self) -> Option<&Arc<OwnedFd>> {
        Some(self.doorbells.memory())
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    fn id(&self) -> u16 {
        self.doorbells.id()
    }

    fn vectors(&self) -> u16 {
        self.doorbells.vectors()
    }

    fn register(&self) -> Option<&Arc<OwnedFd>> {
        self.doorbells.register()
    }

    fn ring(&self, target: u16, vector: u16) {
        self.doorbells.ring(target, vector);
    }

    fn bind(&self, vector: u16, bell: BorrowedFd<'_>) -> io::Result<()> {
        self.doorbells.bind(vector, bell)
    }

    fn keep(&self) -> Vec<(String, BorrowedFd<'_>)> {
        self.doorbells.keep()
    }

    fn is_present(&self) -> bool {
        self.doorbells.is_present()
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        self.doorbells.news()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_the_size() {
        let devices = tempfile::tempdir().unwrap();
        fs::create_dir(devices.path().join("dax0.0")).unwrap();
        fs::write(devices.path().join("dax0.0/size"), "266338304\n").unwrap();
        let size_of = |path: &str| size(devices.path(), Path::new(path));
        assert_eq!(size_of("/dev/dax0.0").unwrap(), 266_338_304);
        assert!(matches!(size_of("/dev/dax1.0"), Err(DeviceError::Unfit(_))));
        assert!(matches!(size_of("/"), Err(DeviceError::Unfit(_))));
    }
}
