//! Which interrupt of the device wakes which waiting context.
//!
//! A context of a program has a vector of its own as long as there are any: the kernel then writes the program's own
//! eventfd when the vector rings, and nobody else has to run. The contexts beyond share the last vector, which
//! `viaduct-guest` passes on to all of them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use frontend_drv::device::Device;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rdma_core::channel::CONTROL_VECTOR;

use crate::ids::Process;

/// See the module documentation.
#[derive(Debug)]
pub struct Vectors {
    free: Vec<u16>,
    own: HashMap<(Process, u32), u16>,
    common: u16,
    common_bell: EventFd,
    shared: HashSet<(Process, u32)>,
}

impl Vectors {
    /// Divides the device's vectors up: the first is the control ring's, the last is shared.
    ///
    /// # Errors
    /// No descriptor, or the device does not do it.
    pub fn new(device: &dyn Device) -> io::Result<Self> {
        let count = device.vectors();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let common_bell = EventFd::from_flags(flags)?;
        let common = count.saturating_sub(1);
        if common > CONTROL_VECTOR {
            device.bind(common, common_bell.as_fd())?;
        }
        Ok(Self {
            free: (CONTROL_VECTOR + 1..common).rev().collect(),
            own: HashMap::new(),
            common,
            common_bell,
            shared: HashSet::new(),
        })
    }

    /// The vector that wakes a context from now on.
    pub fn bind(
        &mut self,
        process: Process,
        context: u32,
        bell: BorrowedFd<'_>,
        device: &dyn Device,
    ) -> u16 {
        let key = (process, context);
        let known = self.own.get(&key).copied();
        if let Some(vector) = known.or_else(|| self.free.pop()) {
            match device.bind(vector, bell) {
                Ok(()) => {
                    self.own.insert(key, vector);
                    return vector;
                }
                Err(error) => {
                    tracing::warn!(vector, %error, "vector");
                    self.own.remove(&key);
                    self.free.push(vector);
                }
            }
        }
        self.shared.insert(key);
        self.common
    }

    /// The vector that wakes a context.
    pub fn of(&self, process: Process, context: u32) -> u16 {
        let own = self.own.get(&(process, context));
        own.copied().unwrap_or(self.common)
    }

    /// A program has left.
    pub fn free_all(&mut self, process: Process, device: &dyn Device) {
        self.shared.retain(|(owner, _)| *owner != process);
        let freed = &mut self.free;
        let nobody = self.common_bell.as_fd();
        self.own.retain(|(owner, _), vector| {
            if *owner != process {
                return true;
            }
            // The program's eventfd is let go of; whoever rings late is not heard but here.
            if device.bind(*vector, nobody).is_ok() {
                freed.push(*vector);
            }
            false
        });
    }

    /// Readable when the shared vector has rung.
    pub fn common_bell(&self) -> BorrowedFd<'_> {
        self.common_bell.as_fd()
    }

    /// Silences the shared vector; everybody who may have been meant.
    pub fn take_common(&self) -> Vec<(Process, u32)> {
        let _ = self.common_bell.read();
        self.shared.iter().copied().collect()
    }
}
