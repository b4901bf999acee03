//! The registers of the device through which a guest shares memory with others: how a context of a program in
//! another virtual machine is woken. One store, without a system call.

#![expect(unsafe_code, reason = "the registers are mapped memory")]

use std::os::fd::OwnedFd;

use frontend_drv::memory;
use rdma_core::control::DOORBELL_REGISTER;
use rdma_core::mem::Region;

use crate::contexts::RegionCell;

/// The first page of the file that the daemon passes.
const PAGE: usize = 4096;

static REGISTERS: RegionCell = RegionCell::new();

/// Maps the registers, unless they are mapped. False if they cannot be. Called under the control lock.
pub(crate) fn map_once(file: &OwnedFd) -> bool {
    if REGISTERS.get().is_some() {
        return true;
    }
    match memory::map_registers(file, PAGE) {
        Ok(region) => {
            REGISTERS.set(&region);
            true
        }
        Err(_) => false,
    }
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
