//! An ELF file: for which machine, how it is linked, with what.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::Endianness;
use object::elf::{self, FileHeader32, FileHeader64, Machine};
use object::read::elf::{FileHeader, ProgramHeader, SectionTable, Sym};
use object::read::{FileKind, ReadCache, ReadRef};

/// What is worth knowing of an ELF file. Where it has no section table (some packers remove it),
/// the lists are empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Image {
    machine: u16,
    bits: u8,
    big_endian: bool,
    /// The dynamic loader it asks for; none if it is a library or statically linked.
    pub(crate) interpreter: Option<String>,
    /// Libraries that it names itself.
    pub(crate) needed: Vec<String>,
    /// Built by Go's compiler.
    pub(crate) is_go: bool,
    /// Functions of io_uring that it takes from elsewhere.
    pub(crate) uring: Vec<String>,
    /// Socket functions that it takes from elsewhere.
    pub(crate) sockets_used: usize,
    /// Socket functions that it defines: our library defines them all.
    pub(crate) sockets_defined: usize,
    /// What stands in its symbol `viaduct_version`, which our library exports.
    pub(crate) version: Option<String>,
}

impl Image {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // Read piece by piece as needed: programs can be large.
        let file = ReadCache::new(File::open(path)?);
        match FileKind::parse(&file) {
            Ok(FileKind::Elf32) => Self::read::<FileHeader32<Endianness>, _>(&file, 32),
            Ok(FileKind::Elf64) => Self::read::<FileHeader64<Endianness>, _>(&file, 64),
            _ => bail!("not an ELF file"),
        }
        .context("damaged ELF file")
    }

    fn read<'data, E, R>(data: R, bits: u8) -> Result<Self>
    where
        E: FileHeader<Endian = Endianness>,
        R: ReadRef<'data>,
    {
        let header = E::parse(data)?;
        let endian = header.endian()?;
        let segments = header.program_headers(endian, data)?;
        let interpreter = segments
            .iter()
            .find_map(|segment| segment.interpreter(endian, data).transpose())
            .transpose()?;
        let mut image = Self {
            machine: header.e_machine(endian).0,
            bits,
            big_endian: endian == Endianness::Big,
            interpreter: interpreter.map(text),
            ..Self::default()
        };
        // The loader does without sections, so a program without them is not damaged.
        if let Ok(sections) = header.sections(endian, data) {
            image.read_sections::<E, R>(endian, data, &sections);
            image.version = version_address::<E, R>(endian, data, &sections)
                .and_then(|address| string_at::<E, R>(endian, data, segments, address));
        }
        Ok(image)
    }

    fn read_sections<'data, E, R>(
        &mut self,
        endian: Endianness,
        data: R,
        sections: &SectionTable<'data, E, R>,
    ) where
        E: FileHeader<Endian = Endianness>,
        R: ReadRef<'data>,
    {
        let has = |name: &[u8]| sections.section_by_name(endian, name).is_some();
        self.is_go = has(b".go.buildinfo") || has(b".note.go.buildid");
        if let Ok(dynamic) = sections.dynamic_table(endian, data) {
            let needed = dynamic.iter().filter(|entry| entry.tag == elf::DT_NEEDED);
            let names = needed.filter_map(|entry| dynamic.string(entry).ok());
            self.needed = names.map(text).collect();
        }
        let Ok(symbols) = sections.symbols(endian, data, elf::SHT_DYNSYM) else {
            return;
        };
        for symbol in symbols.iter() {
            let Ok(name) = symbols.symbol_name(endian, symbol) else {
                continue;
            };
            let is_socket = SOCKET_FUNCTIONS
                .iter()
                .any(|known| known.as_bytes() == name);
            match (symbol.is_undefined(endian), is_socket) {
                (true, true) => self.sockets_used += 1,
                (false, true) => self.sockets_defined += 1,
                (true, false) if name.starts_with(b"io_uring_") => self.uring.push(text(name)),
                _ => {}
            }
        }
    }

    /// The machine it is for: `64-bit x86-64`.
    pub(crate) fn machine(&self) -> String {
        let name = match Machine(self.machine) {
            elf::EM_X86_64 => "x86-64",
            elf::EM_386 => "x86",
            elf::EM_AARCH64 => "AArch64",
            elf::EM_ARM => "Arm",
            elf::EM_RISCV => "RISC-V",
            elf::EM_PPC64 => "POWER",
            elf::EM_S390 => "s390",
            other => return format!("{}-bit machine {}", self.bits, other.0),
        };
        let order = if self.big_endian { ", big-endian" } else { "" };
        format!("{}-bit {name}{order}", self.bits)
    }

    /// Whether it is linked with musl.
    pub(crate) fn is_musl(&self) -> bool {
        let asks = |name: &str| name.contains("ld-musl") || name.contains("libc.musl");
        self.interpreter.as_deref().is_some_and(asks) || self.needed.iter().any(|name| asks(name))
    }

    /// Why connections that it drives by io_uring stay on TCP; none if it does not seem to.
    pub(crate) fn uses_uring(&self) -> Option<String> {
        let library = self.needed.iter().find(|name| name.starts_with("liburing"));
        library.or_else(|| self.uring.first()).cloned()
    }
}

fn version_address<'data, E, R>(
    endian: Endianness,
    data: R,
    sections: &SectionTable<'data, E, R>,
) -> Option<u64>
where
    E: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM).ok()?;
    let symbol = symbols.iter().find(|symbol| {
        !symbol.is_undefined(endian)
            && symbols.symbol_name(endian, symbol) == Ok(VERSION_SYMBOL.as_bytes())
    })?;
    Some(symbol.st_value(endian).into())
}

/// The text at an address of the program's memory, up to its NUL.
fn string_at<'data, E, R>(
    endian: Endianness,
    data: R,
    segments: &[E::ProgramHeader],
    address: u64,
) -> Option<String>
where
    E: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let segment = segments.iter().find(|segment| {
        let start = segment.p_vaddr(endian).into();
        let size: u64 = segment.p_filesz(endian).into();
        segment.p_type(endian) == elf::PT_LOAD
            && address
                .checked_sub(start)
                .is_some_and(|offset| offset < size)
    })?;
    let offset = address - segment.p_vaddr(endian).into();
    let left = segment.p_filesz(endian).into().checked_sub(offset)?;
    let at = segment.p_offset(endian).into().checked_add(offset)?;
    let bytes = data.read_bytes_at(at, left.min(VERSION_MAX)).ok()?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some(text(bytes.get(..end)?))
}

/// A name from the file, fit to be printed.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(char::is_control, "?")
}

/// Functions that a program of ours cannot do without.
const SOCKET_FUNCTIONS: &[&str] = &[
    "connect", "accept", "accept4", "send", "recv", "sendmsg", "recvmsg", "sendto", "recvfrom",
];
const VERSION_SYMBOL: &str = "viaduct_version";
const VERSION_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn our_own_program_is_dynamic() {
        let image = Image::open(&std::env::current_exe().unwrap()).unwrap();
        assert!(image.interpreter.is_some() || cfg!(target_feature = "crt-static"));
        assert!(!image.is_go && image.version.is_none());
        assert!(image.machine().ends_with("-64") || !cfg!(target_arch = "x86_64"));
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for bytes in [b"".as_slice(), b"\x7fELF", b"#!/bin/sh\n", &[0; 64]] {
            fs::write(&path, bytes).unwrap();
            assert!(Image::open(&path).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_damaged_file_never_panics() {
        let whole = fs::read("/bin/true").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for cut in [16, 63, 64, 100, 1000, whole.len() / 2] {
            fs::write(&path, whole.get(..cut).unwrap_or(&whole)).unwrap();
            let _ = Image::open(&path);
        }
        for at in 16..64 {
            let mut bytes = whole.clone();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = 0xff;
            }
            fs::write(&path, bytes).unwrap();
            let _ = Image::open(&path);
        }
    }
}
