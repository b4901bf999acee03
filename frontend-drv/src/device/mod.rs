//! The device through which a virtual machine shares memory with its host (feature `device`).
//!
//! Unlike the rest of this crate it runs in a process of its own, `viaduct-guest`, and may allocate.
//! Programs only get its descriptors: its memory, to map parts of it, and its register, to ring.
//!
//! * [`Device`]: what such a device can do; [`open`] finds one.
//! * `ivshmem`: the PCI device of QEMU: `pci` finds and binds it in sysfs, `vfio` brings its interrupts.
//! * `dax`: memory that the guest may cache, with the doorbells of an ivshmem device.
//! * `client`: no VM at all: a member of the region by its server's socket, for containers and tests.
//! * `sys`: mapped registers.

mod client;
mod dax;
mod ivshmem;
mod mute;
mod pci;
mod sys;
mod vfio;

use core::fmt::Debug;
use core::str::FromStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// Memory shared with the host and with other members of its region, and doorbells both ways.
pub trait Device: Send + Sync + Debug {
    /// The memory, to be mapped from offset 0 and handed to programs.
    fn memory(&self) -> &Arc<OwnedFd>;
    /// Where in the region it begins.
    fn memory_start(&self) -> u64 {
        0
    }
    /// What lies before that, if anything does; also to be mapped from offset 0.
    fn front(&self) -> Option<&Arc<OwnedFd>> {
        None
    }
    /// Size of the region.
    fn memory_bytes(&self) -> u64;
    /// Our id among the members of the region.
    fn id(&self) -> u16;
    /// How many vectors we have. None means that nobody can interrupt us, so that memory must be looked at.
    fn vectors(&self) -> u16;
    /// The file whose first page holds the doorbell register, for programs to map: they ring by storing
    /// `target << 16 | vector` at [`DOORBELL_REGISTER`](rdma_core::control::DOORBELL_REGISTER). Without one only [`Device::ring`] rings.
    fn register(&self) -> Option<&Arc<OwnedFd>>;
    /// Rings a vector of another member. One that does not exist is nobody's.
    fn ring(&self, target: u16, vector: u16);
    /// From now on a vector of ours signals this eventfd. What rang before is not lost if nothing was
    /// bound to the vector yet.
    ///
    /// # Errors
    /// `Unsupported` without interrupts, `InvalidInput` for a vector that we do not have.
    fn bind(&self, vector: u16, bell: BorrowedFd<'_>) -> io::Result<()>;
    /// What must stay open, by whomever, so that the device and the interrupts that programs are woken by outlive this
    /// process. As long as it does, nobody can open the device but by [`open_kept`].
    fn keep(&self) -> Vec<(String, BorrowedFd<'_>)> {
        Vec::new()
    }
    /// An eventfd by which a program rings a vector of another member, where there is no [register](Device::register).
    fn bell(&self, _target: u16, _vector: u16) -> Option<OwnedFd> {
        None
    }
    /// Whether the device is there: false from when the host wants it back.
    fn is_present(&self) -> bool;
    /// Readable when [`Device::is_present`] should be asked again; none means from time to time.
    fn news(&self) -> Option<BorrowedFd<'_>>;
}

/// Which device to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// The only one that there is.
    #[default]
    Auto,
    /// The one at this address of the PCI bus.
    Pci(String),
    /// Memory of this device file, doorbells of the only PCI device.
    Dax(PathBuf),
    /// The server of the region listens here.
    Socket(PathBuf),
}

/// How to open a device.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which.
    pub choice: Choice,
    /// Leave its interrupts alone: memory is looked at instead.
    pub no_interrupts: bool,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// None on the bus.
    #[error("this machine has no ivshmem device")]
    Absent,
    /// Several on the bus.
    #[error("several ivshmem devices, one must be named: {0}")]
    Ambiguous(String),
    /// There is something else at that address.
    #[error("{0} is not an ivshmem device with memory")]
    Unfit(String),
    /// Two devices that are not of one region.
    #[error(
        "{memory} and what belongs before it are {bytes} bytes, the memory of the ivshmem device {other}: give QEMU the same region for both"
    )]
    Unlike {
        /// The one.
        memory: String,
        /// Size of the region by it.
        bytes: u64,
        /// Size of the other.
        other: u64,
    },
    /// The host has not said which member we are.
    #[error("the device has no id yet")]
    Nameless,
    /// What the server of the region said is not the protocol.
    #[error("the server of the region broke its protocol: {0}")]
    Protocol(&'static str),
    /// A system call or a file of the kernel's failed.
    #[error("{0}")]
    System(String, #[source] io::Error),
}

/// Opens a device.
///
/// # Errors
/// [`DeviceError`].
pub fn open(options: &Options) -> Result<Box<dyn Device>, DeviceError> {
    open_kept(options, &mut Vec::new())
}

/// Opens a device, as the one before us has left it if that was [kept](Device::keep). `kept` is taken.
///
/// # Errors
/// [`DeviceError`].
pub fn open_kept(
    options: &Options,
    kept: &mut Vec<(String, OwnedFd)>,
) -> Result<Box<dyn Device>, DeviceError> {
    let device = open_choice(&options.choice, kept)?;
    Ok(if options.no_interrupts {
        Box::new(mute::Mute(device))
    } else {
        device
    })
}

fn open_choice(
    choice: &Choice,
    kept: &mut Vec<(String, OwnedFd)>,
) -> Result<Box<dyn Device>, DeviceError> {
    match choice {
        Choice::Socket(path) => Ok(Box::new(client::Member::connect(path)?)),
        Choice::Auto => Ok(Box::new(ivshmem::Ivshmem::open(None, kept)?)),
        Choice::Pci(address) => Ok(Box::new(ivshmem::Ivshmem::open(Some(address), kept)?)),
        Choice::Dax(path) => Ok(Box::new(dax::Dax::open(path, kept)?)),
    }
}

/// A reason for [`DeviceError::System`] where something failed.
fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> DeviceError {
    move |error| DeviceError::System(what.into(), error.into())
}

impl FromStr for Choice {
    type Err = String;

    /// `auto`, an address like `0000:00:04.0`, `dax:PATH` or `socket:PATH`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            Ok(Self::Auto)
        } else if let Some(path) = text.strip_prefix("dax:") {
            Ok(Self::Dax(path.into()))
        } else if let Some(path) = text.strip_prefix("socket:") {
            Ok(Self::Socket(path.into()))
        } else {
            address(text).map(Self::Pci).ok_or_else(|| {
                format!(
                    "\"{text}\" is neither auto, nor dax:PATH, nor socket:PATH, nor a PCI address"
                )
            })
        }
    }
}

/// A PCI address as sysfs writes it; the domain may be missing.
fn address(text: &str) -> Option<String> {
    let full = match text.split(':').count() {
        2 => format!("0000:{text}"),
        _ => text.to_owned(),
    };
    let (slot, function) = full.split_once('.')?;
    let parts: Vec<_> = slot.split(':').collect();
    let is_hex = |part: &str, digits| {
        part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let [domain, bus, device] = parts.as_slice() else {
        return None;
    };
    (is_hex(domain, 4) && is_hex(bus, 2) && is_hex(device, 2) && is_hex(function, 1))
        .then(|| full.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        let choices = [
            ("auto", Choice::Auto),
            ("00:04.0", Choice::Pci("0000:00:04.0".into())),
            ("0001:0A:1f.7", Choice::Pci("0001:0a:1f.7".into())),
            ("dax:/dev/dax0.0", Choice::Dax("/dev/dax0.0".into())),
            ("socket:/run/a", Choice::Socket("/run/a".into())),
        ];
        for (text, choice) in choices {
            assert_eq!(text.parse(), Ok(choice));
        }
        for text in [
            "",
            "4.0",
            "00:04",
            "00:04.00",
            "x0:04.0",
            "0:0:0:0.0",
            "/dev/dax0.0",
        ] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }
}
