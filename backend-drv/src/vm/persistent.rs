//! A region as persistent memory: what a guest's kernel reads at the beginning of an nvdimm or virtio-pmem device that QEMU
//! makes of it, and where QEMU finds it.
//!
//! Guests may cache such memory, while the memory of a PCI device is cached or not as guest and processor agree. The
//! info block tells Linux (`struct nd_pfn_sb`, drivers/nvdimm/pfn.h, version 1.4) that all behind
//! [`CACHED_START`] is to be a character device `/dev/daxN.N`, which programs can map.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rdma_core::channel::{CACHED_START, INFO_BLOCK_AT};
use rustix::io::DupFlags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::naming;

/// What the block is known by.
const SIGNATURE: [u8; 16] = *b"NVDIMM_DAX_INFO\0";
/// The guest's kernel keeps its notes about pages in memory of its own.
const MODE_RAM: u32 = 1;
const PAGE: u64 = 4096;
/// Bytes of such a note.
const PAGE_NOTE: u16 = 64;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct InfoBlock {
    signature: [u8; 16],
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    flags: U32,
    version_major: U16,
    version_minor: U16,
    data_offset: U64,
    pages: U64,
    mode: U32,
    start_pad: U32,
    end_trunc: U32,
    align: U32,
    page_size: U32,
    page_note: U16,
    padding: [u8; 3994],
    checksum: U64,
}
const _: () = assert!(size_of::<InfoBlock>() == 4096);

/// Writes the block into a region of `bytes` bytes that is named by `id`.
///
/// # Errors
/// The memory cannot be written.
pub(super) fn write_info(memory: impl AsFd, bytes: u64, id: u64) -> io::Result<()> {
    let block = info_block(bytes, id);
    let written = rustix::io::pwrite(memory, block.as_bytes(), INFO_BLOCK_AT)?;
    if written < size_of::<InfoBlock>() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

fn info_block(bytes: u64, id: u64) -> InfoBlock {
    let mut uuid = [0; 16];
    for half in uuid.chunks_exact_mut(8) {
        half.copy_from_slice(&id.to_le_bytes());
    }
    let mut block = InfoBlock {
        signature: SIGNATURE,
        uuid,
        // There is no label that could name a parent.
        parent_uuid: [0; 16],
        flags: 0.into(),
        version_major: 1.into(),
        version_minor: 4.into(),
        data_offset: CACHED_START.into(),
        pages: ((bytes - CACHED_START) / PAGE).into(),
        mode: MODE_RAM.into(),
        start_pad: 0.into(),
        end_trunc: 0.into(),
        // Any page can be mapped anywhere.
        align: 4096.into(),
        page_size: 4096.into(),
        page_note: PAGE_NOTE.into(),
        padding: [0; 3994],
        checksum: 0.into(),
    };
    block.checksum = fletcher64(block.as_bytes()).into();
    block
}

/// Fletcher's checksum of little-endian words of 32 bits, as libnvdimm takes it.
fn fletcher64(bytes: &[u8]) -> u64 {
    let (mut low, mut high) = (0u32, 0u64);
    for word in bytes.as_chunks().0 {
        low = low.wrapping_add(u32::from_le_bytes(*word));
        high = high.wrapping_add(low.into());
    }
    high << 32 | u64::from(low)
}

/// A name in the file system for memory that has none. It goes away with this.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    /// What it leads to.
    memory: OwnedFd,
}

impl Name {
    /// Lets `path` lead to `memory`. Who may open it is a question of this process (ptrace(2), access mode checks), and
    /// not of permissions.
    ///
    /// # Errors
    /// There is something else at that path, or it cannot be made.
    pub(super) fn new(path: &Path, memory: impl AsFd) -> io::Result<Self> {
        let named = naming(path);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(named)?;
        }
        match std::fs::symlink_metadata(path) {
            // Of a daemon before us.
            Ok(found) if found.is_symlink() => std::fs::remove_file(path).map_err(named)?,
            Ok(_) => {
                return Err(named(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is another file; name another path",
                )));
            }
            Err(_) => {}
        }
        let memory = memory.as_fd().try_clone_to_owned()?;
        let process = std::process::id();
        let target = format!("/proc/{process}/fd/{}", memory.as_raw_fd());
        std::os::unix::fs::symlink(target, path).map_err(named)?;
        let path = path.to_owned();
        Ok(Self { path, memory })
    }

    /// It leads to other memory from now on.
    ///
    /// # Errors
    /// What dup3(2) says.
    pub(super) fn lead_to(&mut self, memory: impl AsFd) -> io::Result<()> {
        Ok(rustix::io::dup3(
            memory,
            &mut self.memory,
            DupFlags::CLOEXEC,
        )?)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn sums_as_the_kernel_does() {
        assert_eq!(fletcher64(&[1, 0, 0, 0, 2, 0, 0, 0]), 4 << 32 | 3);
        // The lower sum wraps at 32 bits: 2^32 - 1, then 1. So does what is left of the higher one.
        assert_eq!(fletcher64(&[0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0]), 1);
    }

    #[test]
    fn the_block_stands_where_the_kernel_looks() {
        let block = info_block(64 << 20, 7);
        let bytes = block.as_bytes();
        assert_eq!(&bytes[..16], b"NVDIMM_DAX_INFO\0");
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!(word(16), 7);
        assert_eq!(word(56), CACHED_START);
        assert_eq!(word(64), ((64 << 20) - CACHED_START) / 4096);
        assert_eq!(bytes[72], 1);
        let sum = word(4088);
        let mut without = bytes.to_vec();
        without[4088..].fill(0);
        assert_eq!(fletcher64(&without), sum);
    }

    #[test]
    fn a_name_leads_to_the_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/a.mem");
        let memory = crate::shared::sealed_memory("test", 4096).unwrap();
        let inode = rustix::fs::fstat(&memory).unwrap().st_ino;
        let mut name = Name::new(&path, &memory).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        let other = crate::shared::sealed_memory("test", 4096).unwrap();
        name.lead_to(&other).unwrap();
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), inode);
        // A daemon that was killed has left one.
        std::mem::forget(name);
        drop(Name::new(&path, &memory).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, "mine").unwrap();
        let error = Name::new(&path, &memory).unwrap_err();
        assert!(error.to_string().contains("another file"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
