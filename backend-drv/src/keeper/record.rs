//! What a daemon must know of a relayed connection to go on with it: one fixed record each, in memory that no
//! program ever gets. The record of endpoint `n` is the `n`th.
//!
//! The relay writes it, in one system call, before the program can know of the connection, and erases it when it
//! has let go. Of a daemon that was killed in between, a check sum tells a record that is whole.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use rdma_core::layout::{End, RING_LOG2_MAX, RING_LOG2_MIN};
use rdma_core::mr::Regions;
use rdma_core::wire::pairing::Place as FarPlace;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::broker::Proof;
use crate::carving::Place;
use crate::ids::{ArenaId, ConnectionId, Process};
use crate::nic::Address;
use crate::pairing::Tuple;
use crate::shared::sealed_memory;

/// Distance between two records.
const STRIDE: usize = 256;
/// Bytes of all records; most of them are never touched.
const BYTES: usize = STRIDE * Regions::MAX;
/// Records that are read at once.
const BATCH: usize = 256;
/// In front of a record.
const MAGIC: u32 = 0x5645_4331;

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

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawAddress {
    kind: u8,
    reserved: u8,
    port: U16,
    scope: U32,
    bytes: [u8; 16],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: U32,
    ring_log2: u8,
    end: u8,
    bit: U16,
    connection: U64,
    arena: U32,
    process: U32,
    port: U32,
    domain: U32,
    offset: U64,
    arena_bytes: U64,
    rkey: U32,
    far_endpoint: U32,
    far_rkey: U32,
    uid: U32,
    link: U64,
    netns: U64,
    cookie: U64,
    inode: U32,
    reserved: U32,
    backend: RawAddress,
    own: RawAddress,
    far: RawAddress,
    check: U64,
}

const _: () = assert!(size_of::<Raw>() <= STRIDE);

const UDP_V4: u8 = 4;
const UDP_V6: u8 = 6;
const MAC: u8 = 1;
const HERE: u8 = 0;

/// FNV-1a: the same in every build.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Names a link over restarts.
pub fn link_number(name: &str) -> u64 {
    hash(name.as_bytes())
}

impl From<Address> for RawAddress {
    fn from(address: Address) -> Self {
        let mut raw = Self {
            kind: MAC,
            reserved: 0,
            port: 0.into(),
            scope: 0.into(),
            bytes: [0; 16],
        };
        match address {
            Address::Mac(mac) => raw.bytes[..6].copy_from_slice(&mac),
            Address::Udp(at) => {
                raw.port = at.port().into();
                match at {
                    SocketAddr::V4(at) => {
                        raw.kind = UDP_V4;
                        raw.bytes[..4].copy_from_slice(&at.ip().octets());
                    }
                    SocketAddr::V6(at) => {
                        raw.kind = UDP_V6;
                        raw.scope = at.scope_id().into();
                        raw.bytes = at.ip().octets();
                    }
                }
            }
        }
        raw
    }
}

impl RawAddress {
    /// In the place of a backend's.
    const HERE: Self = Self {
        kind: HERE,
        reserved: 0,
        port: U16::ZERO,
        scope: U32::ZERO,
        bytes: [0; 16],
    };

    fn address(&self) -> Option<Address> {
        let [a, b, c, d, e, g, ..] = self.bytes;
        match self.kind {
            MAC => Some(Address::Mac([a, b, c, d, e, g])),
            UDP_V4 => {
                let ip = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
                Some(Address::Udp(SocketAddr::new(ip, self.port.into())))
            }
            UDP_V6 => {
                let ip = Ipv6Addr::from(self.bytes);
                let at = SocketAddrV6::new(ip, self.port.into(), 0, self.scope.into());
                Some(Address::Udp(at.into()))
            }
            _ => None,
        }
    }

    fn socket(&self) -> Option<SocketAddr> {
        match self.address()? {
            Address::Udp(at) => Some(at),
            Address::Mac(_) => None,
        }
    }
}

impl Raw {
    fn check(&self) -> u64 {
        let bytes = self.as_bytes();
        hash(bytes.get(..bytes.len() - size_of::<U64>()).unwrap_or(&[]))
    }
}

impl Record {
    fn emit(&self) -> Raw {
        let socket = |at| RawAddress::from(Address::Udp(at));
        let (link, backend) = match self.beyond {
            Beyond::Backend { link, address } => (link, address.into()),
            Beyond::Here => (0, RawAddress::HERE),
        };
        let mut raw = Raw {
            magic: MAGIC.into(),
            ring_log2: u8::try_from(self.place.ring_log2).unwrap_or(0),
            end: u8::from(self.end == End::One),
            bit: self.bit.into(),
            connection: self.connection.0.into(),
            arena: self.place.arena.0.into(),
            process: self.process.0.into(),
            port: self.port.0.into(),
            domain: self.domain.into(),
            offset: self.place.offset.into(),
            arena_bytes: self.place.arena_bytes.into(),
            rkey: self.rkey.into(),
            far_endpoint: self.far.endpoint.into(),
            far_rkey: self.far.rkey.into(),
            uid: self.origin.uid.into(),
            link: link.into(),
            netns: self.origin.netns.into(),
            cookie: self.origin.proof.cookie.into(),
            inode: self.origin.proof.inode.into(),
            reserved: 0.into(),
            backend,
            own: socket(self.origin.tuple.own),
            far: socket(self.origin.tuple.far),
            check: 0.into(),
        };
        raw.check = raw.check().into();
        raw
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
        let ring_log2 = u32::from(raw.ring_log2);
        let is_whole = raw.magic.get() == MAGIC && raw.check.get() == raw.check();
        if !is_whole || !(RING_LOG2_MIN..=RING_LOG2_MAX).contains(&ring_log2) {
            return None;
        }
        Some(Self {
            connection: ConnectionId(raw.connection.into()),
            place: Place {
                arena: ArenaId(raw.arena.into()),
                offset: raw.offset.into(),
                ring_log2,
                arena_bytes: raw.arena_bytes.into(),
                fresh: false,
            },
            end: if raw.end == 0 { End::Zero } else { End::One },
            process: Process(raw.process.into()),
            port: Process(raw.port.into()),
            bit: raw.bit.into(),
            domain: raw.domain.into(),
            rkey: raw.rkey.into(),
            far: FarPlace {
                endpoint: raw.far_endpoint.into(),
                rkey: raw.far_rkey.into(),
            },
            beyond: match raw.backend.kind {
                HERE => Beyond::Here,
                _ => Beyond::Backend {
                    link: raw.link.into(),
                    address: raw.backend.address()?,
                },
            },
            origin: Origin {
                tuple: Tuple {
                    own: raw.own.socket()?,
                    far: raw.far.socket()?,
                },
                netns: raw.netns.into(),
                uid: raw.uid.into(),
                proof: Proof {
                    inode: raw.inode.into(),
                    cookie: raw.cookie.into(),
                },
            },
        })
    }
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
        let raw = record.emit();
        match rustix::io::pwrite(&self.memory, raw.as_bytes(), at)? {
            written if written == size_of::<Raw>() => Ok(()),
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

    /// All records that are there, and their endpoints.
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
                if let Some(record) = Record::parse(record) {
                    found.push((endpoint, record));
                }
                endpoint += 1;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(connection: u64, backend: &str) -> Record {
        Record {
            connection: ConnectionId(connection),
            place: Place {
                arena: ArenaId(3),
                offset: 1 << 33,
                ring_log2: 22,
                arena_bytes: 1 << 40,
                fresh: false,
            },
            end: End::One,
            process: Process(5),
            port: Process(6),
            bit: 700,
            domain: 2,
            rkey: 0xdead_beef,
            far: FarPlace {
                endpoint: 8,
                rkey: 9,
            },
            beyond: Beyond::Backend {
                link: link_number("lan"),
                address: Address::Udp(backend.parse().unwrap()),
            },
            origin: Origin {
                tuple: Tuple {
                    own: "127.0.0.1:1".parse().unwrap(),
                    far: "[fd00::1]:2".parse().unwrap(),
                },
                netns: 1 << 60,
                uid: 1000,
                proof: Proof {
                    inode: 77,
                    cookie: 1 << 50,
                },
            },
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let records = Records::create().unwrap();
        assert_eq!(records.read().unwrap(), []);
        let first = record(1, "10.0.0.1:7447");
        let mut last = record(2, "[fe80::1%5]:7447");
        last.end = End::Zero;
        let mut other = record(3, "10.0.0.1:7447");
        other.beyond = Beyond::Backend {
            link: 5,
            address: Address::Mac([1, 2, 3, 4, 5, 6]),
        };
        let mut here = record(4, "10.0.0.1:7447");
        here.beyond = Beyond::Here;
        let highest = u32::try_from(Regions::MAX - 1).unwrap();
        let written = [(0, first), (highest, last), (9, other), (10, here)];
        for (endpoint, record) in written {
            records.write(endpoint, &record).unwrap();
        }
        records.write(highest + 1, &first).unwrap_err();
        let again = Records::of(records.memory.try_clone().unwrap()).unwrap();
        let all = [(0, first), (9, other), (10, here), (highest, last)];
        assert_eq!(again.read().unwrap(), all);
        records.erase(9);
        let rest = [(0, first), (10, here), (highest, last)];
        assert_eq!(again.read().unwrap(), rest);
        assert!(Records::of(sealed_memory("other", 4096).unwrap()).is_none());
    }

    #[test]
    fn a_record_that_is_not_whole_is_none() {
        let raw = record(1, "10.0.0.1:7447").emit();
        let bytes = raw.as_bytes();
        assert!(Record::parse(bytes).is_some());
        for at in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert_eq!(Record::parse(&bad), None, "{at}");
            assert_eq!(Record::parse(&bytes[..at]), None, "{at}");
        }
    }
}
