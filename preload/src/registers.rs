//! The registers of the device through which a guest shares memory with others: how a context of a program in
//! another virtual machine is woken. One store, without a system call.

#![expect(unsafe_code, reason = "the registers are mapped memory")]

use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::OwnedFd;

use frontend_drv::memory;
use rdma_core::control::DOORBELL_REGISTER;
use rdma_core::mem::Region;

use crate::contexts::RegionCell;

/// The first page of the file that the daemon passes.
const PAGE: usize = 4096;

static REGISTERS: RegionCell = RegionCell::new();
/// The session that they were mapped in, plus one.
static SESSION: AtomicU32 = AtomicU32::new(0);

/// Maps the registers, unless that was done in this session: with the next daemon the device may be another. False if
/// they cannot be. The page before is left to whoever is using it just now. Called under the control lock.
pub(crate) fn map_once(session: u32, file: &OwnedFd) -> bool {
    if SESSION.load(Ordering::Relaxed) == session + 1 {
        return true;
    }
    match memory::map_registers(file, PAGE) {
        Ok(region) => {
            REGISTERS.set_from(&region, file);
            SESSION.store(session + 1, Ordering::Relaxed);
            true
        }
        Err(_) => false,
    }
}

/// Whether an address lies in them. For a signal handler.
pub(crate) fn is_at(address: usize) -> bool {
    REGISTERS.is_device_at(address)
}

/// Stores `value` to the doorbell register. False if there is none.
pub(crate) fn ring(value: u32) -> bool {
    let Some(at) = REGISTERS.get().and_then(|page| register(&page)) else {
        return false;
    };
    // SAFETY: a mapped, aligned register of the device, which is never unmapped; a store to it has no effect on
    // memory.
    unsafe { at.write_volatile(value) };
    true
}

fn register(page: &Region) -> Option<*mut u32> {
    let part = page.part(DOORBELL_REGISTER, size_of::<u32>())?;
    Some(part.base().as_ptr().cast())
}
