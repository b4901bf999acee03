//! How a record lies in bytes, and whether bytes are one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use rdma_core::layout::{End, RING_LOG2_MAX, RING_LOG2_MIN};
use rdma_core::wire::pairing::Place as FarPlace;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BadRecord, Beyond, InRegion, Origin, Record, STRIDE};
use crate::broker::Proof;
use crate::carving::Place;
use crate::ids::{ArenaId, ConnectionId, Process};
use crate::nic::Address;
use crate::pairing::Tuple;

/// In front of a record: of a program of this host, and of a guest's. Another number is one of another version.
pub(super) const MAGIC: u32 = 0x5645_4331;
const MAGIC_OF_GUEST: u32 = 0x5645_4731;

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
pub(super) struct Raw {
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
pub(super) struct RawOfGuest {
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
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
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
    pub(super) fn emit(&self) -> Raw {
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

    pub(super) fn emit_of_guest(&self, places: &InRegion) -> RawOfGuest {
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
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, BadRecord> {
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
