//! QEMU's ivshmem device with doorbells: registers in BAR 0, memory in BAR 2, interrupts by MSI-X.
//!
//! Memory and registers are the files that sysfs shows, because any process can map those that gets their
//! descriptors. Interrupts need vfio, and vfio an IOMMU; without one nobody can interrupt this guest.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rdma_core::control::DOORBELL_REGISTER;
use rustix::io::Errno;

use super::pci::{BUS, Slot};
use super::sys::Registers;
use super::vfio::Interrupts;
use super::{Device, DeviceError, failed};

/// Offset of the register that says which member we are; negative while nobody has told the device.
const POSITION: usize = 8;

/// BARs.
const REGISTERS: u8 = 0;
const MEMORY: u8 = 2;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Ivshmem {
    slot: Slot,
    id: u16,
    memory: Arc<OwnedFd>,
    bytes: u64,
    register: Arc<OwnedFd>,
    registers: Registers,
    interrupts: Option<Interrupts>,
}

impl Ivshmem {
    /// Opens the device at an address, or the only one.
    pub(super) fn open(
        address: Option<&str>,
        kept: &mut Vec<(String, OwnedFd)>,
    ) -> Result<Self, DeviceError> {
        let slot = Slot::find(Path::new(BUS), address)?;
        let interrupts = match slot.group() {
            Some(group) => {
                slot.give_to_vfio()?;
                let resumed = Interrupts::resume(slot.address(), kept);
                // Whatever does not belong to it keeps others from opening it.
                kept.clear();
                Some(match resumed {
                    Some(resumed) => resumed,
                    None => Interrupts::open(slot.address(), &group)?,
                })
            }
            None => {
                slot.enable()?;
                None
            }
        };
        let (memory, bytes) = slot.bar(MEMORY)?;
        let (register, _) = slot.bar(REGISTERS)?;
        let registers = Registers::map(&register).map_err(failed::<Errno>("mapping BAR 0"))?;
        let id = registers.read(POSITION);
        let id = u16::try_from(id).map_err(|_| DeviceError::Nameless)?;
        Ok(Self {
            slot,
            id,
            memory: Arc::new(memory),
            bytes,
            register: Arc::new(register),
            registers,
            interrupts,
        })
    }
}

impl Device for Ivshmem {
    fn memory(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    fn id(&self) -> u16 {
        self.id
    }

    fn vectors(&self) -> u16 {
        self.interrupts.as_ref().map_or(0, Interrupts::vectors)
    }

    fn register(&self) -> Option<&Arc<OwnedFd>> {
        Some(&self.register)
    }

    fn ring(&self, target: u16, vector: u16) {
        let value = u32::from(target) << 16 | u32::from(vector);
        self.registers.write(DOORBELL_REGISTER, value);
    }

    fn bind(&self, vector: u16, bell: BorrowedFd<'_>) -> io::Result<()> {
        match &self.interrupts {
            Some(interrupts) => interrupts.bind(vector, bell),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn keep(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let interrupts = self.interrupts.as_ref();
        interrupts.map_or_else(Vec::new, |found| found.keep(self.slot.address()))
    }

    fn is_present(&self) -> bool {
        let interrupts = self.interrupts.as_ref();
        self.slot.is_there() && !interrupts.is_some_and(Interrupts::is_wanted_back)
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        self.interrupts.as_ref().map(Interrupts::request)
    }
}
