//! The options of `viaduct run` as the library's environment variables.

use std::env;
use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use rdma_core::layout::{RING_LOG2_MAX, RING_LOG2_MIN};

use super::RunArgs;
use crate::failure::Failure;
use crate::peers::PeerList;
use crate::units;

/// Checked options.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) peers: PeerList,
    variables: Vec<(&'static str, String)>,
}

impl Settings {
    pub(super) fn new(args: &RunArgs) -> Result<Self> {
        let peers = PeerList::resolve(args.peers.as_deref())?;
        let mut variables = vec![("VIADUCT_PEERS", peers.text.clone())];
        if let Some(text) = &args.upgrade_after {
            variables.push(("VIADUCT_UPGRADE_AFTER", upgrade_after(text)?));
        }
        if let Some(text) = &args.ring_bytes {
            variables.push(("VIADUCT_RING_BYTES", ring_bytes(text)?));
        }
        if let Some(text) = &args.spin_us {
            variables.push(("VIADUCT_SPIN_US", spin_us(text)?));
        }
        if args.strict {
            variables.push(("VIADUCT_STRICT", "1".to_owned()));
        }
        Ok(Self { peers, variables })
    }

    pub(super) fn apply(&self, command: &mut Command, socket: &Path, session: u64) {
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env("VIADUCT_SOCKET", socket);
        command.env("VIADUCT_SESSION", format!("{session:016x}"));
    }
}

/// The session that the program's connections are counted under. One inside another is counted with
/// the outer one, unless it asks for statistics of its own.
pub(super) fn session(wants_stats: bool) -> u64 {
    let outer = env::var("VIADUCT_SESSION").ok();
    let outer = outer.and_then(|text| u64::from_str_radix(&text, 16).ok());
    match outer.filter(|&session| session != 0 && !wants_stats) {
        Some(outer) => outer,
        // The standard library seeds its hashers from the system's random numbers.
        None => RandomState::new().build_hasher().finish().max(1),
    }
}

/// LD_PRELOAD with our library in front and no other copy of it behind.
pub(super) fn preload_list(library: &Path) -> OsString {
    let before = env::var_os("LD_PRELOAD").unwrap_or_default();
    preload_before(library, &before.to_string_lossy())
}

fn preload_before(library: &Path, before: &str) -> OsString {
    let others = before
        .split([' ', ':'])
        .filter(|entry| !entry.is_empty() && Path::new(entry).file_name() != library.file_name());
    let mut list = library.as_os_str().to_owned();
    for entry in others {
        list.push(":");
        list.push(entry);
    }
    list
}

fn upgrade_after(text: &str) -> Result<String, Failure> {
    let good = match text.split_once(',') {
        Some((calls, bytes)) => {
            let bytes = units::parse_bytes(bytes);
            calls.trim().parse::<u32>().ok().zip(bytes)
        }
        None => text.trim().parse::<u32>().ok().zip(Some(0)),
    };
    match (good, text.contains(',')) {
        (Some((calls, bytes)), true) => Ok(format!("{calls},{bytes}")),
        (Some((calls, _)), false) => Ok(calls.to_string()),
        (None, _) => Err(Failure::bad_input(format!(
            "--upgrade-after: \"{text}\" is not CALLS[,BYTES], as in 16,16384 (0 is at once)"
        ))),
    }
}

fn ring_bytes(text: &str) -> Result<String, Failure> {
    let (min, max) = (1 << RING_LOG2_MIN, 1 << RING_LOG2_MAX);
    let bytes = units::parse_bytes(text).filter(|bytes| (min..=max).contains(bytes));
    match bytes {
        Some(bytes) => Ok(bytes.next_power_of_two().to_string()),
        None => Err(Failure::bad_input(format!(
            "--ring-bytes: \"{text}\" is not a number of bytes from {min} to {max}, as in 4m"
        ))),
    }
}

fn spin_us(text: &str) -> Result<String, Failure> {
    let spin = text
        .trim()
        .parse()
        .ok()
        .filter(|&us: &u32| us <= SPIN_MAX_US);
    match spin {
        Some(spin) => Ok(spin.to_string()),
        None => Err(Failure::bad_input(format!(
            "--spin-us: \"{text}\" is not a number of microseconds from 0 to {SPIN_MAX_US}"
        ))),
    }
}

/// A waiter that spins for longer than a second is a bug, not a setting; the library agrees.
const SPIN_MAX_US: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_values_are_normalised() {
        assert_eq!(upgrade_after("16").unwrap(), "16");
        assert_eq!(upgrade_after("0").unwrap(), "0");
        assert_eq!(upgrade_after("4, 64k").unwrap(), "4,65536");
        assert_eq!(ring_bytes("64k").unwrap(), "65536");
        assert_eq!(ring_bytes("100000").unwrap(), "131072");
        assert_eq!(spin_us("0").unwrap(), "0");
    }

    #[test]
    fn bad_values_are_named_with_the_form() {
        for bad in ["", "x", "-1", "1,", "1,x", "1,2,3"] {
            assert!(upgrade_after(bad).is_err(), "{bad}");
        }
        for bad in ["", "1k", "2g", "x"] {
            let error = ring_bytes(bad).unwrap_err().to_string();
            assert!(error.contains("65536 to 1073741824"), "{error}");
        }
        for bad in ["", "1.5", "1000001"] {
            assert!(spin_us(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_library_comes_first_and_once() {
        let list = |before| preload_before(Path::new("/a/libviaduct.so"), before);
        assert_eq!(list(""), "/a/libviaduct.so");
        assert_eq!(list("/x.so /y.so"), "/a/libviaduct.so:/x.so:/y.so");
        assert_eq!(list("/b/libviaduct.so:/y.so"), "/a/libviaduct.so:/y.so");
    }
}
