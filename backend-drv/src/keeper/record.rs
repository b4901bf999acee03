//! What a daemon must know of a relayed connection to go on with it: one fixed record each, in memory that no
//! program ever gets. The record of endpoint `n` is the `n`th.
//!
//! The relay writes it, in one system call, before the program can know of the connection, and erases it when it
//! has let go. Of a daemon that was killed in between, a check sum tells a record that is whole. That of a guest's end
//! is longer by the places in the guest's region, where all of its memory lies; and its first word is another.

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
/// In front of a record: of a program of this host, and of a guest's. Another number is one of another version.
const MAGIC: u32 = 0x5645_4331;
const MAGIC_OF_GUEST: u32 = 0x5645_4731;

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

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOfGuest {
    record: Raw,
    arena_at: U64,
    events_at: U64,
    port_at: U64,
    check: U64,
}

const _: () = assert!(size_of::<RawOfGuest>() <= STRIDE);

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

/// Of all but the last word, which is to be the same.
fn check(bytes: &[u8]) -> u64 {
    hash(bytes.get(..bytes.len() - size_of::<U64>()).unwrap_or(&[]))
}

impl Record {
    fn emit(&self) -> Raw {
        let socket = |at| RawAddress::from(Address::Udp(at));
        let (link, backend) = match self.beyond {
            Beyond::Backend { link, address } => (link, address.into()),
            Beyond::Here => (0, RawAddress::HERE),
        };
        let mut raw = Raw {
            magic: match self.guest {
                None => MAGIC,
                Some(_) => MAGIC_OF_GUEST,
            }
            .into(),
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
        raw.check = check(raw.as_bytes()).into();
        raw
    }

    fn emit_of_guest(&self, places: &InRegion) -> RawOfGuest {
        let mut raw = RawOfGuest {
            record: self.emit(),
            arena_at: places.arena.into(),
            events_at: places.events.into(),
            port_at: places.port.into(),
            check: 0.into(),
        };
        raw.check = check(raw.as_bytes()).into();
        raw
    }

    /// `None`: there is none.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, BadRecord> {
        let magic = U32::read_from_prefix(bytes).map_or(0, |(magic, _)| magic.get());
        let found = match magic {
            0 => return Ok(None),
            MAGIC => Raw::read_from_prefix(bytes)
                .ok()
                .and_then(|(raw, _)| raw.parse(None)),
            MAGIC_OF_GUEST => {
                let found = RawOfGuest::read_from_prefix(bytes).ok();
                found.and_then(|(raw, _)| raw.parse())
            }
            other => return Err(BadRecord::Version(other)),
        };
        found.map(Some).ok_or(BadRecord::Garbled)
    }
}

impl RawOfGuest {
    fn parse(&self) -> Option<Record> {
        let places = InRegion {
            arena: self.arena_at.into(),
            events: self.events_at.into(),
            port: self.port_at.into(),
        };
        let is_whole = self.check.get() == check(self.as_bytes());
        is_whole.then(|| self.record.parse(Some(places))).flatten()
    }
}

impl Raw {
    fn parse(&self, guest: Option<InRegion>) -> Option<Record> {
        let raw = self;
        let ring_log2 = u32::from(raw.ring_log2);
        let is_whole = raw.check.get() == check(raw.as_bytes());
        if !is_whole || !(RING_LOG2_MIN..=RING_LOG2_MAX).contains(&ring_log2) {
            return None;
        }
        Some(Record {
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
            guest,
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
            guest: None,
        }
    }

    fn of_guest(connection: u64) -> Record {
        Record {
            guest: Some(InRegion {
                arena: 1 << 40,
                events: 5 << 20,
                port: 8 << 20,
            }),
            ..record(connection, "10.0.0.1:7447")
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
        let guest = of_guest(5);
        let written = [
            (0, first),
            (highest, last),
            (9, other),
            (10, here),
            (11, guest),
        ];
        for (endpoint, record) in written {
            records.write(endpoint, &record).unwrap();
        }
        records.write(highest + 1, &first).unwrap_err();
        let again = Records::of(records.memory.try_clone().unwrap()).unwrap();
        let all = [
            (0, first),
            (9, other),
            (10, here),
            (11, guest),
            (highest, last),
        ];
        assert_eq!(again.read().unwrap(), all);
        records.erase(9);
        let rest = [(0, first), (10, here), (11, guest), (highest, last)];
        assert_eq!(again.read().unwrap(), rest);
        assert!(Records::of(sealed_memory("other", 4096).unwrap()).is_none());
    }

    #[test]
    fn a_record_that_is_not_whole_is_refused() {
        let own = record(1, "10.0.0.1:7447");
        let guest = of_guest(1);
        let raw = own.emit();
        let raw_of_guest = guest.emit_of_guest(&guest.guest.unwrap());
        let all = [(own, raw.as_bytes()), (guest, raw_of_guest.as_bytes())];
        for (record, bytes) in all {
            assert_eq!(Record::parse(bytes), Ok(Some(record)));
            for at in 0..bytes.len() {
                let mut bad = bytes.to_vec();
                bad[at] ^= 1;
                assert!(Record::parse(&bad).is_err(), "{at}");
                let cut = Record::parse(&bytes[..at]);
                assert!(matches!(cut, Ok(None) | Err(_)), "{at}");
            }
        }
        // One kind is not taken for the other.
        let mut bad = raw_of_guest.as_bytes().to_vec();
        bad[..4].copy_from_slice(&MAGIC.to_le_bytes());
        assert_eq!(Record::parse(&bad), Err(BadRecord::Garbled));
    }

    #[test]
    fn what_is_of_another_version_is_not_looked_at_again() {
        let records = Records::create().unwrap();
        records.write(3, &record(1, "10.0.0.1:7447")).unwrap();
        let at = Records::offset(3).unwrap();
        rustix::io::pwrite(&records.memory, &0x5645_4332u32.to_le_bytes(), at).unwrap();
        assert_eq!(records.read().unwrap(), []);
        let mut magic = [1; 4];
        rustix::io::pread(&records.memory, &mut magic, at).unwrap();
        assert_eq!(magic, [0; 4]);
    }
}
