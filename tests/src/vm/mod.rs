//! Virtual machines, built from Debian's packages alone.
//!
//! * [`kernel`]: the kernel of the meta-package, unpacked and never installed.
//! * [`cpio`], [`initramfs`]: the whole file system of a guest: busybox, modules, and programs of this machine with
//!   the libraries that they need.
//! * [`guest`]: QEMU around it, and commands that run inside; [`monitor`]: what QEMU itself is told.
//! * [`control`]: how such commands get in and what they say gets out.
//! * [`turn`]: not too many guests at once.
//! * [`region`], [`window`]: memory shared with them, as the daemon hands it out and as a program sees it;
//!   [`slots`]: what tests write there.
//!
//! Guests run on an emulated processor, on any machine and as any user. Two settings of [`guest`] are not for speed
//! but for correctness: more than one possible processor and a thread for each, because with one alone QEMU takes
//! atomic instructions apart, which breaks memory that is shared with the host.
//!
//! `cargo run -p viaduct-tests --bin vm` does the same by hand, and for scripts.

pub mod control;
pub mod cpio;
pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod monitor;
pub mod region;
pub mod slots;
pub mod turn;
pub mod window;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What is not part of a minimal Debian, and the package it is in.
const TOOLS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("ldd", "libc-bin"),
];

/// Where everything that can be made again is kept.
pub fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let usual = || {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        package.parent().unwrap_or(package).join("target")
    };
    target.unwrap_or_else(usual).join("vm")
}

/// What guests need of this machine.
///
/// # Errors
/// The first thing that is missing.
pub fn check_tools() -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("guests need a machine with an x86-64 processor");
    }
    for (tool, package) in TOOLS {
        if program(tool).is_none() {
            bail!("{tool} not found: install {package}");
        }
    }
    Ok(())
}

/// Where a program of this machine is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// What a program that must succeed prints.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name}: {}: {}", output.status, said.trim());
    }
    Ok(output.stdout)
}
