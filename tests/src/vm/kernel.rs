//! The kernel of the guests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::{cache, output, program};

/// The package that names the current one. Its kernel has what virtual machines need, and little else.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The file in the cache that names the kernel in use.
const CURRENT: &str = "kernel";

/// A kernel that is ready for booting.
#[derive(Debug, Clone)]
pub struct Kernel {
    directory: PathBuf,
}

impl Kernel {
    /// The one that was prepared last.
    pub fn prepared() -> Option<Self> {
        let name = fs::read_to_string(cache().join(CURRENT)).ok()?;
        let directory = cache().join(name.trim());
        directory
            .join("vmlinux")
            .is_file()
            .then_some(Self { directory })
    }

    /// Prepares the current one: downloads and unpacks it if that was not done before. Without a network, one that
    /// was prepared before has to do.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn prepare() -> Result<Self> {
        match Self::fetch() {
            Ok(kernel) => Ok(kernel),
            Err(error) => Self::prepared().ok_or(error),
        }
    }

    fn fetch() -> Result<Self> {
        let package = package()?;
        let directory = cache().join(&package);
        if !directory.join("vmlinux").is_file() {
            let part = cache().join(format!("{package}.part"));
            let _ = fs::remove_dir_all(&part);
            fs::create_dir_all(&part)?;
            unpack(&package, &part).with_context(|| format!("preparing {package}"))?;
            let _ = fs::remove_dir_all(&directory);
            fs::rename(&part, &directory)?;
        }
        fs::write(cache().join(CURRENT), package)?;
        Ok(Self { directory })
    }

    /// The image: not compressed, because the guest would be slow at that.
    pub fn image(&self) -> PathBuf {
        self.directory.join("vmlinux")
    }

    /// The modules of these names and those that they need, in the order in which they are to be loaded. What is built
    /// in is left out.
    ///
    /// # Errors
    /// The kernel has no such module.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let root = modules_of(&self.directory)?;
        let list = |name| fs::read_to_string(root.join(name)).with_context(|| format!("no {name}"));
        let dependencies = list("modules.dep")?;
        let built_in = list("modules.builtin")?;
        let order = Order::of(&dependencies, &built_in).load(wanted)?;
        Ok(order.iter().map(|path| root.join(path)).collect())
    }
}

/// The name of a module, by its file or as people write it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split(".ko").next().unwrap_or(file);
    name.replace('-', "_")
}

/// Contents of a module's file, as the kernel wants it.
///
/// # Errors
/// It cannot be read, or is compressed and the program for it is missing.
pub fn contents(module: &Path) -> Result<Vec<u8>> {
    match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => output(Command::new("xz").arg("-dc").arg(module)),
        Some("zst") => output(Command::new("zstd").arg("-dcq").arg(module)),
        _ => Ok(fs::read(module)?),
    }
}

/// What needs what.
struct Order<'a> {
    modules: BTreeMap<String, (&'a str, Vec<&'a str>)>,
    built_in: BTreeSet<String>,
}

impl<'a> Order<'a> {
    fn of(dependencies: &'a str, built_in: &str) -> Self {
        let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
        Self {
            modules: lines
                .map(|(path, needs)| {
                    (
                        module_name(path),
                        (path, needs.split_whitespace().collect()),
                    )
                })
                .collect(),
            built_in: built_in.lines().map(module_name).collect(),
        }
    }

    fn load(&self, wanted: &[&str]) -> Result<Vec<&'a str>> {
        let mut order = Vec::new();
        for name in wanted.iter().map(|name| module_name(name)) {
            if self.built_in.contains(&name) {
                continue;
            }
            let known = self.modules.get(&name);
            let (path, needs) = known.ok_or_else(|| anyhow!("the kernel has no module {name}"))?;
            // The nearest dependency stands first there.
            for path in needs.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }
}

/// The package that the meta-package stands for: its name changes with every security update.
fn package() -> Result<String> {
    let text = output(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .ok_or_else(|| {
            anyhow!("no package {META_PACKAGE}: is this Debian, and has it its package lists?")
        })
}

fn unpack(package: &str, into: &Path) -> Result<()> {
    output(
        Command::new("apt-get")
            .args(["-q", "download", package])
            .current_dir(into),
    )?;
    let file = entries(into)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| anyhow!("apt-get has downloaded nothing"))?;
    output(Command::new("dpkg-deb").arg("-x").arg(&file).arg(into))?;
    fs::remove_file(&file)?;
    let compressed = entries(&into.join("boot"))?
        .into_iter()
        .find(|path| path.to_string_lossy().contains("vmlinuz"))
        .ok_or_else(|| anyhow!("the package has no kernel"))?;
    fs::write(into.join("vmlinux"), decompressed(&fs::read(compressed)?)?)?;
    let version = modules_of(into)?;
    let version = version.file_name().unwrap_or_default();
    let depmod = program("depmod").ok_or_else(|| anyhow!("depmod not found: install kmod"))?;
    output(Command::new(depmod).arg("-b").arg(into).arg(version))?;
    Ok(())
}

/// The directory of the modules, named by the kernel's version.
fn modules_of(directory: &Path) -> Result<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .find_map(|place| entries(&directory.join(place)).ok()?.into_iter().next())
        .ok_or_else(|| anyhow!("no modules in {}", directory.display()))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(directory)?;
    Ok(list
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?)
}

/// The kernel inside a bzImage. Its header says where it is (the kernel's `Documentation/arch/x86/boot.rst`).
fn decompressed(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = || {
        let sectors = usize::from(*image.get(0x1f1)?).max(1);
        let start = (sectors + 1) * 512 + word(0x248)?;
        image.get(start..start + word(0x24c)?)
    };
    let payload = payload().ok_or_else(|| anyhow!("not a kernel image"))?;
    let (program, arguments): (_, &[&str]) = match payload {
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"]),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"]),
        _ => bail!("a compression that is not known here"),
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{program} not found"))?;
    let mut input = child.stdin.take().context("no pipe")?;
    let payload = payload.to_vec();
    // Some of them complain about what stands behind the end; what came out counts.
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, &payload));
    let kernel = child.wait_with_output()?.stdout;
    let _ = writer.join();
    if !kernel.starts_with(b"\x7fELF") {
        bail!("{program} has found no kernel");
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let dependencies = "\
kernel/net/a-b.ko: kernel/net/c.ko.xz kernel/net/d.ko
kernel/net/c.ko.xz: kernel/net/d.ko
kernel/net/d.ko:
";
        let order = Order::of(dependencies, "kernel/lib/e.ko\n");
        let all = ["kernel/net/d.ko", "kernel/net/c.ko.xz", "kernel/net/a-b.ko"];
        assert_eq!(order.load(&["e", "a-b"]).unwrap(), all);
        assert_eq!(order.load(&["d", "a_b"]).unwrap(), all);
        assert!(order.load(&["f"]).is_err());
    }

    #[test]
    fn a_kernel_is_taken_out_of_its_image() {
        let mut image = vec![0; 1024];
        *image.get_mut(0x1f1).unwrap() = 1;
        let packed =
            output(Command::new("sh").args(["-c", "printf '\\177ELF!' | gzip -c"])).unwrap();
        let length = u32::try_from(packed.len()).unwrap().to_le_bytes();
        image
            .get_mut(0x24c..0x250)
            .unwrap()
            .copy_from_slice(&length);
        image.extend(packed);
        assert_eq!(decompressed(&image).unwrap(), b"\x7fELF!");
        assert!(decompressed(&[]).is_err());
        assert!(decompressed(&[0; 4096]).is_err());
    }
}
