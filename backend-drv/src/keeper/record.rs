//! What a daemon must know of a relayed connection to go on with it: one fixed record each, in memory that no
//! program ever gets. The record of endpoint `n` is the `n`th.
//!
//! The relay writes it, in one system call, before the program can know of the connection, and erases it when it
//! has let go. Of a daemon that was killed in between, a check sum tells a record that is whole. That of a guest's end
//! is longer by the places in the guest's region, where all of its memory lies; and its first word is another.

mod raw;

use std::io;
use std::os::fd::OwnedFd;

use rdma_core::layout::End;
use rdma_core::mr::Regions;
use rdma_core::wire::pairing::Place as FarPlace;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::broker::Proof;
use crate::carving::Place;
use crate::ids::{ConnectionId, Process};
use crate::nic::Address;
use crate::pairing::Tuple;
use crate::shared::sealed_memory;

/// Distance between two records.
const STRIDE: usize = 256;
/// Bytes of all records; most of them are never touched.
const BYTES: usize = STRIDE * Regions::MAX;
/// Records that are read at once.
const BATCH: usize = 256;

/// Which socket a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Its addresses.
    pub tuple: Tuple,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The user of the program that registered it.
    pub uid: u32,
    /// What the kernel said of it.
    pub proof: Proof,
}

/// See the module documentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The connection.
    pub connection: ConnectionId,
    /// Its memory.
    pub place: Place,
    /// The program's end.
    pub end: End,
    /// The program.
    pub process: Process,
    /// How it knows the relay.
    pub port: Process,
    /// How it wakes the relay for this connection.
    pub bit: u16,
    /// The domain that is charged.
    pub domain: u32,
    /// The key that the far backend writes with.
    pub rkey: u32,
    /// Where that takes bytes.
    pub far: FarPlace,
    /// Who serves the far end.
    pub beyond: Beyond,
    /// The socket.
    pub origin: Origin,
    /// For a program of a guest.
    pub guest: Option<InRegion>,
}

/// Where in the guest's region lies what others have as memory of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InRegion {
    /// The arena of the connection.
    pub arena: u64,
    /// The program's memory for events.
    pub events: u64,
    /// That by which the program wakes the relay.
    pub port: u64,
}

/// Why there is no record where one should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRecord {
    /// Another daemon's.
    #[error("a record of another version ({0:#x})")]
    Version(u32),
    /// Not what was written.
    #[error("a record that is not whole")]
    Garbled,
}

/// Who serves the far end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beyond {
    /// Another host's backend.
    Backend {
        /// The link, by [`link_number`].
        link: u64,
        /// Where it is.
        address: Address,
    },
    /// This one, as a connection of its own.
    Here,
}

/// Names a link over restarts.
pub fn link_number(name: &str) -> u64 {
    raw::hash(name.as_bytes())
}

/// All records.
#[derive(Debug)]
pub struct Records {
    memory: OwnedFd,
}

impl Records {
    /// None yet.
    ///
    /// # Errors
    /// No memory.
    pub fn create() -> io::Result<Self> {
        let memory = sealed_memory("viaduct-records", BYTES as u64)?;
        Ok(Self { memory })
    }

    /// Those of a daemon before us; `None` if `memory` is none of a daemon's.
    pub fn of(memory: OwnedFd) -> Option<Self> {
        let size = rustix::fs::fstat(&memory).ok()?.st_size;
        (usize::try_from(size) == Ok(BYTES)).then_some(Self { memory })
    }

    /// The memory.
    pub const fn memory(&self) -> &OwnedFd {
        &self.memory
    }

    fn offset(endpoint: u32) -> Option<u64> {
        let at = u64::from(endpoint) * STRIDE as u64;
        (at < BYTES as u64).then_some(at)
    }

    /// Writes the record of an endpoint.
    ///
    /// # Errors
    /// It cannot be kept.
    pub fn write(&self, endpoint: u32, record: &Record) -> io::Result<()> {
        let at = Self::offset(endpoint).ok_or(io::ErrorKind::InvalidInput)?;
        let (own, of_guest);
        let bytes = match &record.guest {
            None => {
                own = record.emit();
                own.as_bytes()
            }
            Some(places) => {
                of_guest = record.emit_of_guest(places);
                of_guest.as_bytes()
            }
        };
        match rustix::io::pwrite(&self.memory, bytes, at)? {
            written if written == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// The connection is over, or not to be gone on with.
    pub fn erase(&self, endpoint: u32) {
        if let Some(at) = Self::offset(endpoint)
            && let Err(error) = rustix::io::pwrite(&self.memory, &[0; size_of::<U32>()], at)
        {
            tracing::warn!(endpoint, %error, "the record of a connection stays");
        }
    }

    /// All records that are there, and their endpoints. Those of no use are named in the log, and erased.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(&self) -> io::Result<Vec<(u32, Record)>> {
        let mut found = Vec::new();
        let mut bytes = vec![0; BATCH * STRIDE];
        let mut endpoint = 0u32;
        while let Some(at) = Self::offset(endpoint) {
            if rustix::io::pread(&self.memory, &mut *bytes, at)? != bytes.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for record in bytes.chunks_exact(STRIDE) {
                match Record::parse(record) {
                    Ok(None) => {}
                    Ok(Some(record)) => found.push((endpoint, record)),
                    Err(error) => {
                        tracing::error!(endpoint, %error, "a connection is not gone on with");
                        self.erase(endpoint);
                    }
                }
                endpoint += 1;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
pub(crate) mod tests;
