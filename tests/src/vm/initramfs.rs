//! The file system of a guest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use super::cpio::Archive;
use super::kernel::{Kernel, contents};
use super::{cache, output, program};

/// What every guest loads: its network, the channel for commands, the device, questions about sockets.
const MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "vfio-pci",
    "vfio_iommu_type1",
    "tcp_diag",
    "inet_diag",
    "unix_diag",
];

/// Programs with more than this are copied without what only debuggers want.
const STRIP_FROM: u64 = 4 << 20;

/// Directories are followed so deep: a link may lead to where it stands.
const DEPTH: u32 = 8;

const ETC: [(&str, &str); 6] = [
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    ),
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n"),
    (
        "/etc/protocols",
        "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n",
    ),
    ("/etc/nsswitch.conf", "hosts: files\n"),
    ("/etc/ld.so.conf", ""),
];

/// What is to be in it, besides busybox.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// More modules.
    pub modules: Vec<String>,
    /// Programs of this machine, by name or path; they come into `/usr/bin`.
    pub programs: Vec<PathBuf>,
    /// Files and where they come.
    pub files: Vec<(PathBuf, String)>,
    /// Directories and where what is in them comes, with the libraries of the programs and plugins there.
    pub directories: Vec<(PathBuf, String)>,
}

impl Contents {
    /// Writes it to `path`.
    ///
    /// # Errors
    /// Something is missing on this machine.
    pub fn write(&self, kernel: &Kernel, path: &Path) -> Result<()> {
        let mut archive = Archive::default();
        for directory in [
            "/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var/run", "/var/log",
        ] {
            archive.directory(directory);
        }
        archive.file("/init", include_bytes!("init.sh"));
        archive.file("/usr/bin/remote", include_bytes!("remote.sh"));
        for (path, text) in ETC {
            archive.file(path, text.as_bytes());
        }
        busybox(&mut archive)?;
        self.add_modules(kernel, &mut archive)?;
        for name in &self.programs {
            let path = find(name)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            add(&mut archive, &path, &format!("/usr/bin/{file}"))?;
        }
        for (path, place) in &self.files {
            add(&mut archive, path, place)?;
        }
        for (path, place) in &self.directories {
            add_directory(&mut archive, path, place, DEPTH)?;
        }
        fs::write(path, archive.finish()).with_context(|| format!("writing {}", path.display()))
    }

    fn add_modules(&self, kernel: &Kernel, archive: &mut Archive) -> Result<()> {
        let more = self.modules.iter().map(String::as_str);
        let wanted: Vec<_> = MODULES.into_iter().chain(more).collect();
        let mut list = String::new();
        for module in kernel.modules(&wanted)? {
            let file = module.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{}.ko", file.split(".ko").next().unwrap_or_default());
            archive.file(&format!("/modules/{name}"), &contents(&module)?);
            list += &name;
            list.push('\n');
        }
        archive.file("/modules/list", list.as_bytes());
        Ok(())
    }
}

fn busybox(archive: &mut Archive) -> Result<()> {
    let busybox = find(Path::new("busybox"))?;
    add(archive, &busybox, "/bin/busybox")?;
    let applets = output(Command::new(&busybox).arg("--list"))?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        archive.link(&format!("/bin/{applet}"), "busybox");
    }
    Ok(())
}

fn find(name: &Path) -> Result<PathBuf> {
    // Not where a link leads: some programs go by the name that they are called by.
    if name.components().count() > 1 {
        return Ok(name.to_owned());
    }
    let name = name.to_string_lossy();
    program(&name).ok_or_else(|| anyhow!("{name} not found on this machine"))
}

/// Adds a file, and what it needs to run if it is a program or a library.
fn add(archive: &mut Archive, path: &Path, place: &str) -> Result<()> {
    if archive.has(place) {
        return Ok(());
    }
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        archive.file(place, &bytes);
        return Ok(());
    }
    archive.file(place, &stripped(path)?.unwrap_or(bytes));
    for library in libraries(path) {
        let place = library.to_string_lossy().into_owned();
        if !archive.has(&place) {
            archive.file(&place, &fs::read(&library)?);
        }
    }
    Ok(())
}

/// Adds what is in a directory, and below it.
fn add_directory(archive: &mut Archive, path: &Path, place: &str, depth: u32) -> Result<()> {
    let entries = fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    // The same archive each time.
    paths.sort();
    archive.directory(place);
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let place = format!("{place}/{name}");
        // What a link leads to is meant, if it leads anywhere.
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => add(archive, &path, &place)?,
            Ok(meta) if meta.is_dir() && depth > 0 => {
                add_directory(archive, &path, &place, depth - 1)?;
            }
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// A large program without its debug information, if that can be had. Kept, because it takes a while.
fn stripped(path: &Path) -> Result<Option<Vec<u8>>> {
    let meta = fs::metadata(path)?;
    let Some(strip) = program("strip").filter(|_| meta.len() > STRIP_FROM) else {
        return Ok(None);
    };
    let directory = cache().join("stripped");
    fs::create_dir_all(&directory)?;
    let kept = directory.join(
        path.to_string_lossy()
            .trim_start_matches('/')
            .replace('/', "%"),
    );
    let is_current = fs::metadata(&kept).is_ok_and(|kept| {
        let times = kept.modified().ok().zip(meta.modified().ok());
        times.is_some_and(|(kept, original)| kept > original)
    });
    if !is_current {
        // Others may be at it too.
        let part = directory.join(format!("part.{}", std::process::id()));
        output(Command::new(strip).arg("-g").arg("-o").arg(&part).arg(path))?;
        fs::rename(&part, &kept)?;
    }
    Ok(Some(fs::read(&kept)?))
}

/// The libraries that a program or library is loaded with, the loader too; none for a static one.
fn libraries(path: &Path) -> BTreeSet<PathBuf> {
    let said = Command::new("ldd").arg(path).output();
    let said = said.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said)
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_bring_their_libraries() {
        let own = std::env::current_exe().unwrap();
        let names: Vec<_> = libraries(&own)
            .into_iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(
            names.iter().any(|name| name.starts_with("libc.so")),
            "{names:?}"
        );
        assert!(
            names.iter().any(|name| name.starts_with("ld-linux")),
            "{names:?}"
        );
        assert!(libraries(Path::new("/etc/passwd")).is_empty());
        assert!(find(Path::new("no-such-program")).is_err());
    }

    #[test]
    fn directories_come_with_what_is_below_them_and_its_libraries() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("one/two");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("text"), "words").unwrap();
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), below.join("program"))
            .unwrap();
        std::os::unix::fs::symlink("nowhere", below.join("broken")).unwrap();
        std::os::unix::fs::symlink("..", below.join("round")).unwrap();
        let mut archive = Archive::default();
        add_directory(&mut archive, directory.path(), "/opt", DEPTH).unwrap();
        assert!(archive.has("/opt/one/two/text") && archive.has("/opt/one/two/program"));
        assert!(!archive.has("/opt/one/two/broken"));
        let libraries = libraries(&std::env::current_exe().unwrap());
        assert!(
            libraries
                .iter()
                .all(|path| archive.has(&path.to_string_lossy()))
        );
        let missing = directory.path().join("three");
        assert!(add_directory(&mut archive, &missing, "/opt", DEPTH).is_err());
    }
}
