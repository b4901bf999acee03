//! How messages about pairing lie in bytes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BadPairing, Names, PAIRING_MAX, Sample};

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSample {
    send_scale: u8,
    receive_scale: u8,
    reserved: [u8; 2],
    send_mss: U32,
    advertised_mss: U32,
    acked: U64,
    received: U64,
    sent: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawOffer {
    pub(super) kind: u8,
    pub(super) ring_log2: u8,
    pub(super) family: u8,
    pub(super) reserved: u8,
    pub(super) own_port: U16,
    pub(super) far_port: U16,
    pub(super) id: U64,
    pub(super) own: [u8; 16],
    pub(super) far: [u8; 16],
    pub(super) sample: RawSample,
}

/// [`Names`] by themselves, in messages that are not of this module.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub(crate) struct RawNames {
    family: u8,
    reserved: [u8; 3],
    own_port: U16,
    far_port: U16,
    own: [u8; 16],
    far: [u8; 16],
}

impl From<Names> for RawNames {
    fn from(names: Names) -> Self {
        Self {
            family: family(&names),
            reserved: [0; 3],
            own_port: names.own.port().into(),
            far_port: names.far.port().into(),
            own: octets(names.own.ip()),
            far: octets(names.far.ip()),
        }
    }
}

impl TryFrom<RawNames> for Names {
    type Error = BadPairing;

    fn try_from(raw: RawNames) -> Result<Self, BadPairing> {
        Ok(Self {
            own: address(raw.family, raw.own, raw.own_port)?,
            far: address(raw.family, raw.far, raw.far_port)?,
        })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawCandidate {
    pub(super) kind: u8,
    pub(super) ring_log2: u8,
    pub(super) reserved: [u8; 2],
    pub(super) offer: U64,
    pub(super) id: U64,
    pub(super) sample: RawSample,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawPair {
    pub(super) kind: u8,
    pub(super) ring_log2: u8,
    pub(super) reserved: [u8; 2],
    pub(super) endpoint: U32,
    pub(super) rkey: U32,
    pub(super) id: U64,
    pub(super) offer: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawResume {
    pub(super) kind: u8,
    pub(super) reserved: [u8; 3],
    pub(super) endpoint: U32,
    pub(super) rkey: U32,
    pub(super) far: U32,
    pub(super) received: U64,
    pub(super) consumed: U64,
}

/// PAIRED, REFUSE, WITHDRAW and GONE; what a kind has no use for is zero.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawShort {
    pub(super) kind: u8,
    pub(super) reserved: [u8; 3],
    pub(super) first: U32,
    pub(super) second: U32,
    pub(super) id: U64,
}

pub(super) const OFFER: u8 = 1;
pub(super) const CANDIDATE: u8 = 2;
pub(super) const PAIR: u8 = 3;
pub(super) const PAIRED: u8 = 4;
pub(super) const REFUSE: u8 = 5;
pub(super) const WITHDRAW: u8 = 6;
pub(super) const RESUME: u8 = 7;
pub(super) const GONE: u8 = 8;

impl From<Sample> for RawSample {
    fn from(sample: Sample) -> Self {
        Self {
            send_scale: sample.send_scale,
            receive_scale: sample.receive_scale,
            reserved: [0; 2],
            send_mss: sample.send_mss.into(),
            advertised_mss: sample.advertised_mss.into(),
            acked: sample.acked.into(),
            received: sample.received.into(),
            sent: sample.sent.into(),
        }
    }
}

impl From<RawSample> for Sample {
    fn from(raw: RawSample) -> Self {
        Self {
            send_scale: raw.send_scale,
            receive_scale: raw.receive_scale,
            send_mss: raw.send_mss.into(),
            advertised_mss: raw.advertised_mss.into(),
            acked: raw.acked.into(),
            received: raw.received.into(),
            sent: raw.sent.into(),
        }
    }
}

pub(super) const fn family(names: &Names) -> u8 {
    if names.own.is_ipv4() { 4 } else { 6 }
}

pub(super) fn octets(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

pub(super) fn address(family: u8, bytes: [u8; 16], port: U16) -> Result<SocketAddr, BadPairing> {
    let ip = match (family, bytes) {
        (4, [a, b, c, d, rest @ ..]) if rest == [0; 12] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        (6, bytes) => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return Err(BadPairing::Field("address")),
    };
    Ok(SocketAddr::new(ip, port.into()))
}

const _: () = assert!(size_of::<RawOffer>() <= PAIRING_MAX);
