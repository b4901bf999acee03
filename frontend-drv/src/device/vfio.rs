//! Interrupts of a PCI device as eventfds, through the kernel's vfio-pci.
//!
//! vfio also offers the BARs. They are not mapped through it: it would reserve them, and a reserved BAR
//! cannot be mapped from sysfs, which is what programs do.

#![expect(unsafe_code, reason = "the ioctls of vfio")]

use core::ffi::{c_int, c_void};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, pread, pwrite};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use super::{DeviceError, failed};

/// Numbers of calls, from the kernel's `linux/vfio.h`.
const SET_IOMMU: u8 = 102;
const GROUP_SET_CONTAINER: u8 = 104;
const GROUP_GET_DEVICE_FD: u8 = 106;
const DEVICE_GET_REGION_INFO: u8 = 108;
const DEVICE_GET_IRQ_INFO: u8 = 109;
const DEVICE_SET_IRQS: u8 = 110;

const TYPE1_V2: usize = 3;
const CONFIGURATION: u32 = 7;
const MSIX: u32 = 2;
/// Tells that the kernel wants the device back.
const REQUEST: u32 = 4;
/// The data are eventfds, which are triggered.
const TRIGGER_EVENTFDS: u32 = 1 << 2 | 1 << 5;

/// The command register of the PCI configuration, and its bits for memory and for bus mastering.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 2 | 4;

/// The device, opened for its interrupts.
#[derive(Debug)]
pub(super) struct Interrupts {
    device: OwnedFd,
    vectors: u16,
    request: OwnedFd,
    group: OwnedFd,
    container: OwnedFd,
}

/// Names of what is kept; behind that of the device its address and its vectors.
const KEPT: [&str; 4] = ["device", "request", "group", "container"];

impl Interrupts {
    /// Opens the device at `address`, which vfio-pci drives, in its IOMMU group.
    pub(super) fn open(address: &str, group: &str) -> Result<Self, DeviceError> {
        let container = node(Path::new("/dev/vfio/vfio"))?;
        let group = node(&Path::new("/dev/vfio").join(group))?;
        let mut number = container.as_raw_fd();
        let joined = Call::pointing(GROUP_SET_CONTAINER, (&raw mut number).cast());
        // SAFETY: the kernel reads one int.
        unsafe { ioctl(&group, joined) }.map_err(failed("putting the group into a container"))?;
        // SAFETY: the argument is a number.
        unsafe { ioctl(&container, Call::number(SET_IOMMU, TYPE1_V2)) }.map_err(failed(
            "setting up the IOMMU (it must remap interrupts, or vfio_iommu_type1 be told to allow unsafe ones)",
        ))?;
        let name = CString::new(address).map_err(|_| DeviceError::Unfit(address.to_owned()))?;
        let opening = Call::pointing(GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut().cast());
        // SAFETY: the kernel reads a string that ends with a zero.
        let device = unsafe { ioctl(&group, opening) }
            .map_err(failed(format!("opening {address} through vfio")))?;
        // SAFETY: a new descriptor that is nobody else's.
        let device = unsafe { OwnedFd::from_raw_fd(device) };
        let request = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(failed("making an eventfd"))?;
        let mut this = Self {
            device,
            vectors: 0,
            request,
            group,
            container,
        };
        this.let_it_send()
            .map_err(failed("making the device a bus master"))?;
        this.vectors = this.enable().map_err(failed("enabling the interrupts"))?;
        let mut told = [
            0,
            TRIGGER_EVENTFDS,
            REQUEST,
            0,
            1,
            word(this.request.as_fd()),
        ];
        // A kernel that does not tell is no reason to do without.
        let _ = words(&this.device, DEVICE_SET_IRQS, &mut told);
        Ok(this)
    }

    /// What must stay open so that the device stays as it is.
    pub(super) fn keep(&self, address: &str) -> Vec<(String, BorrowedFd<'_>)> {
        let [device, request, group, container] = KEPT;
        let device = format!("{device} {address} {}", self.vectors);
        vec![
            (device, self.device.as_fd()),
            (request.to_owned(), self.request.as_fd()),
            (group.to_owned(), self.group.as_fd()),
            (container.to_owned(), self.container.as_fd()),
        ]
    }

    /// The device at `address` as somebody before us had it, if that is what was [kept](Self::keep).
    pub(super) fn resume(address: &str, kept: &mut Vec<(String, OwnedFd)>) -> Option<Self> {
        let [name, request, group, container] = KEPT;
        let mut take = |wanted: &str| {
            let at = kept
                .iter()
                .position(|(name, _)| name.split(' ').next() == Some(wanted))?;
            Some(kept.swap_remove(at))
        };
        let (name, device) = take(name)?;
        let mut parts = name.split(' ').skip(1);
        let (found, vectors) = (parts.next()?, parts.next()?.parse().ok()?);
        let this = Self {
            device,
            vectors,
            request: take(request)?.1,
            group: take(group)?.1,
            container: take(container)?.1,
        };
        let mut info = [0, 0, MSIX, 0];
        let answers = words(&this.device, DEVICE_GET_IRQ_INFO, &mut info).is_ok();
        (found == address && answers).then_some(this)
    }

    /// How many vectors there are.
    pub(super) const fn vectors(&self) -> u16 {
        self.vectors
    }

    /// From now on a vector signals `bell`.
    pub(super) fn bind(&self, vector: u16, bell: BorrowedFd<'_>) -> io::Result<()> {
        if vector >= self.vectors {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut one = [0, TRIGGER_EVENTFDS, MSIX, vector.into(), 1, word(bell)];
        words(&self.device, DEVICE_SET_IRQS, &mut one)?;
        Ok(())
    }

    /// Whether the kernel has asked for the device, because it is being unplugged.
    pub(super) fn is_wanted_back(&self) -> bool {
        let mut entry = [PollFd::new(&self.request, PollFlags::IN)];
        poll(&mut entry, Some(&Timespec::default())) == Ok(1)
    }

    /// Readable once the kernel asks for the device.
    pub(super) fn request(&self) -> BorrowedFd<'_> {
        self.request.as_fd()
    }

    /// An interrupt is a write of the device's to memory. A device that is no bus master drops them all.
    fn let_it_send(&self) -> Result<(), Errno> {
        let mut info = [0, 0, CONFIGURATION, 0, 0, 0, 0, 0];
        words(&self.device, DEVICE_GET_REGION_INFO, &mut info)?;
        let [.., low, high] = info;
        let place = (u64::from(high) << 32 | u64::from(low)) + COMMAND;
        let mut command = [0; 2];
        pread(&self.device, &mut command, place)?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        pwrite(&self.device, &command.to_le_bytes(), place)?;
        Ok(())
    }

    /// Enables as many vectors as can be had, all at once, because older kernels cannot add some later.
    /// Nothing is bound to them yet; the device remembers what rings before that.
    fn enable(&self) -> Result<u16, Errno> {
        let mut info = [0, 0, MSIX, 0];
        words(&self.device, DEVICE_GET_IRQ_INFO, &mut info)?;
        let [.., mut count] = info;
        while count > 0 {
            let mut all = vec![0, TRIGGER_EVENTFDS, MSIX, 0, count];
            all.extend((0..count).map(|_| NOTHING));
            // What is not negative and not zero is the number that there could have been.
            match words(&self.device, DEVICE_SET_IRQS, &mut all)? {
                0 => break,
                fewer => count = u32::try_from(fewer).unwrap_or(0).min(count - 1),
            }
        }
        Ok(u16::try_from(count).unwrap_or(u16::MAX))
    }
}

/// An eventfd's place in the data of a call, when there is none.
const NOTHING: u32 = u32::MAX;

/// A descriptor as one word of a call.
fn word(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn node(path: &Path) -> Result<OwnedFd, DeviceError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let doing = failed::<io::Error>(format!("opening {}", path.display()));
    Ok(opened.map_err(doing)?.into())
}

/// A call on the device whose argument is a structure of words, of which the first is its size in bytes.
fn words(device: &OwnedFd, number: u8, argument: &mut [u32]) -> Result<c_int, Errno> {
    let bytes = u32::try_from(size_of_val(argument)).map_err(|_| Errno::INVAL)?;
    *argument.first_mut().ok_or(Errno::INVAL)? = bytes;
    let call = Call::pointing(number, argument.as_mut_ptr().cast());
    // SAFETY: the kernel reads and writes no more than the size that the first word says.
    unsafe { ioctl(device, call) }
}

/// One of vfio's calls. Its argument is a number or an address.
struct Call {
    number: u8,
    argument: *mut c_void,
}

impl Call {
    const fn pointing(number: u8, argument: *mut c_void) -> Self {
        Self { number, argument }
    }

    const fn number(number: u8, argument: usize) -> Self {
        Self::pointing(number, core::ptr::without_provenance_mut(argument))
    }
}

// SAFETY: the opcode is that of a call of vfio with one argument, which is handed on as it is; the result is
// the call's own. Whoever makes one answers for the argument.
unsafe impl Ioctl for Call {
    type Output = c_int;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::none(b';', self.number)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<c_int, Errno> {
        Ok(output)
    }
}
