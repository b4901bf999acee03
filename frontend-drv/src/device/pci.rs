//! PCI devices as sysfs shows them: finding ours, giving it to a driver, opening its BARs.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{DeviceError, failed};

/// Where the kernel shows the bus.
pub(super) const BUS: &str = "/sys/bus/pci";

/// Vendor and device number of ivshmem.
const VENDOR: &str = "0x1af4";
const DEVICE: &str = "0x1110";

const VFIO: &str = "vfio-pci";

/// A device in its place.
#[derive(Debug)]
pub(super) struct Slot {
    bus: PathBuf,
    address: String,
}

impl Slot {
    /// The ivshmem device at an address, or the only one of the bus.
    pub(super) fn find(bus: &Path, address: Option<&str>) -> Result<Self, DeviceError> {
        let slot = |address: &str| Self {
            bus: bus.to_owned(),
            address: address.to_owned(),
        };
        if let Some(address) = address {
            let slot = slot(address);
            return if slot.is_ivshmem() {
                Ok(slot)
            } else {
                Err(DeviceError::Unfit(address.to_owned()))
            };
        }
        let listing = fs::read_dir(bus.join("devices"));
        let names = match listing {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DeviceError::Absent);
            }
            listing => listing.map_err(failed::<io::Error>("listing PCI devices"))?,
        };
        let mut found: Vec<_> = names
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|address| slot(address).is_ivshmem())
            .collect();
        found.sort();
        match found.as_slice() {
            [] => Err(DeviceError::Absent),
            [address] => Ok(slot(address)),
            _ => Err(DeviceError::Ambiguous(found.join(", "))),
        }
    }

    /// Its address.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it is still there.
    pub(super) fn is_there(&self) -> bool {
        self.path("vendor").exists()
    }

    /// The number of its IOMMU group. Without one there is no vfio.
    pub(super) fn group(&self) -> Option<String> {
        self.target("iommu_group")
    }

    /// Has vfio-pci drive it, whatever drove it so far.
    pub(super) fn give_to_vfio(&self) -> Result<(), DeviceError> {
        if self.target("driver").as_deref() == Some(VFIO) {
            return Ok(());
        }
        if self.path("driver").exists() {
            write(&self.path("driver/unbind"), &self.address)?;
        }
        write(&self.path("driver_override"), VFIO)?;
        write(&self.bus.join("drivers_probe"), &self.address)?;
        if self.target("driver").as_deref() == Some(VFIO) {
            return Ok(());
        }
        Err(DeviceError::System(
            format!(
                "{VFIO} did not take {}: is that module loaded?",
                self.address
            ),
            io::ErrorKind::NotFound.into(),
        ))
    }

    /// Has it answer accesses to its memory, where no driver does that.
    pub(super) fn enable(&self) -> Result<(), DeviceError> {
        write(&self.path("enable"), "1")
    }

    /// Opens a BAR; also says its size.
    pub(super) fn bar(&self, number: u8) -> Result<(OwnedFd, u64), DeviceError> {
        let path = self.path(&format!("resource{number}"));
        let doing = || failed::<io::Error>(format!("opening {}", path.display()));
        let mut options = fs::OpenOptions::new();
        let file = match options.read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DeviceError::Unfit(self.address.clone()));
            }
            opened => opened.map_err(doing())?,
        };
        let bytes = file.metadata().map_err(doing())?.len();
        Ok((file.into(), bytes))
    }

    fn is_ivshmem(&self) -> bool {
        let says = |name, what| {
            let text = fs::read_to_string(self.path(name));
            text.is_ok_and(|text| text.trim() == what)
        };
        says("vendor", VENDOR) && says("device", DEVICE)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bus.join("devices").join(&self.address).join(name)
    }

    /// The last part of where a link leads.
    fn target(&self, link: &str) -> Option<String> {
        let target = fs::read_link(self.path(link)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// Writes a file of sysfs: opened once and written once, never created.
fn write(path: &Path, what: &str) -> Result<(), DeviceError> {
    let doing = failed::<io::Error>(format!("writing {what} to {}", path.display()));
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, what.as_bytes()))
        .map_err(doing)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A bus with devices: address, vendor, device.
    fn bus(devices: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let bus = tempfile::tempdir().unwrap();
        for (address, vendor, device) in devices {
            let path = bus.path().join("devices").join(address);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("vendor"), format!("{vendor}\n")).unwrap();
            fs::write(path.join("device"), format!("{device}\n")).unwrap();
        }
        bus
    }

    #[test]
    fn the_only_one_is_found() {
        let one = bus(&[
            ("0000:00:01.0", "0x1af4", "0x1000"),
            ("0000:00:04.0", VENDOR, DEVICE),
            ("0000:00:05.0", "0x8086", "0x1110"),
        ]);
        let slot = Slot::find(one.path(), None).unwrap();
        assert_eq!(slot.address(), "0000:00:04.0");
        assert!(slot.is_there() && slot.group().is_none());
        let other = Slot::find(one.path(), Some("0000:00:05.0"));
        assert!(matches!(other, Err(DeviceError::Unfit(_))));
        fs::remove_dir_all(one.path().join("devices/0000:00:04.0")).unwrap();
        assert!(!slot.is_there());
        let none = Slot::find(one.path(), None);
        assert!(matches!(none, Err(DeviceError::Absent)));
        let nothing = Slot::find(&one.path().join("absent"), None);
        assert!(matches!(nothing, Err(DeviceError::Absent)));
    }

    #[test]
    fn of_several_one_must_be_named() {
        let two = bus(&[
            ("0000:00:05.0", VENDOR, DEVICE),
            ("0000:00:04.0", VENDOR, DEVICE),
        ]);
        let Err(DeviceError::Ambiguous(list)) = Slot::find(two.path(), None) else {
            panic!("one of two was taken");
        };
        assert_eq!(list, "0000:00:04.0, 0000:00:05.0");
        let named = Slot::find(two.path(), Some("0000:00:05.0")).unwrap();
        assert_eq!(named.address(), "0000:00:05.0");
    }

    #[test]
    fn vfio_is_asked_to_take_it_and_must_do_so() {
        let bus = bus(&[("0000:00:04.0", VENDOR, DEVICE)]);
        let device = bus.path().join("devices/0000:00:04.0");
        fs::create_dir_all(bus.path().join("drivers/other")).unwrap();
        for file in ["drivers_probe", "drivers/other/unbind"] {
            fs::write(bus.path().join(file), "").unwrap();
        }
        fs::write(device.join("driver_override"), "").unwrap();
        symlink("../../drivers/other", device.join("driver")).unwrap();
        symlink("../../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
        let slot = Slot::find(bus.path(), None).unwrap();
        assert_eq!(slot.group().as_deref(), Some("7"));
        // Nothing drives this bus.
        assert!(slot.give_to_vfio().is_err());
        let said = |file: &Path| fs::read_to_string(file).unwrap();
        assert_eq!(
            said(&bus.path().join("drivers/other/unbind")),
            "0000:00:04.0"
        );
        assert_eq!(said(&device.join("driver_override")), "vfio-pci");
        assert_eq!(said(&bus.path().join("drivers_probe")), "0000:00:04.0");
        fs::remove_file(device.join("driver")).unwrap();
        symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
        slot.give_to_vfio().unwrap();
    }

    #[test]
    fn bars_have_sizes() {
        let bus = bus(&[("0000:00:04.0", VENDOR, DEVICE)]);
        let slot = Slot::find(bus.path(), None).unwrap();
        assert!(matches!(slot.bar(2), Err(DeviceError::Unfit(_))));
        fs::write(bus.path().join("devices/0000:00:04.0/resource2"), [0; 512]).unwrap();
        assert_eq!(slot.bar(2).unwrap().1, 512);
    }
}
