//! Archives as the kernel unpacks them at boot (cpio, the format "newc").

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive in the making. Paths are absolute; directories come by themselves.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        self.add(path, DIRECTORY, &[]);
    }

    /// Adds a file that may be executed.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.parents(path);
        self.add(path, PROGRAM, contents);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.add(path, LINK, target.as_bytes());
    }

    /// Whether there is something at a path.
    pub fn has(&self, path: &str) -> bool {
        self.names.contains(path)
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        let cuts: Vec<_> = path.match_indices('/').skip(1).map(|(at, _)| at).collect();
        for cut in cuts {
            self.add(path.get(..cut).unwrap_or_default(), DIRECTORY, &[]);
        }
    }

    fn add(&mut self, path: &str, mode: u32, contents: &[u8]) {
        if self.names.insert(path.to_owned()) {
            self.write(path.trim_start_matches('/'), mode, contents);
        }
    }

    fn write(&mut self, name: &str, mode: u32, contents: &[u8]) {
        let inode = self.names.len();
        let (size, name_size) = (contents.len(), name.len() + 1);
        // Magic, inode, mode, owner, group, links, time, size, device and its like, size of the name, sum.
        let head = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_come_once() {
        let mut archive = Archive::default();
        archive.file("/etc/a", b"12345");
        archive.file("/etc/a", b"again");
        archive.link("/bin/sh", "busybox");
        archive.directory("/etc");
        assert!(archive.has("/etc") && archive.has("/bin") && !archive.has("/"));
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        // etc, etc/a, bin, bin/sh, the trailer.
        assert_eq!(text.matches("070701").count(), 5);
        let head = &text[text.match_indices("070701").nth(1).unwrap().0..];
        assert_eq!(&head[54..62], "00000005");
        assert_eq!(&head[94..102], "00000006");
        assert_eq!(&head[110..116], "etc/a\0");
        assert_eq!(&head[116..121], "12345");
        assert!(!text.contains("again"));
    }
}
