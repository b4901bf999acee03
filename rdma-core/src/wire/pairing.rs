//! What two backends say to each other to find the two ends of one connection. Each message is one control
//! message of their link: it comes once, and in order.
//!
//! ```text
//! leader (its end has the smaller address)         follower
//!   its program has registered
//!   OFFER(tuple, sample)            ------------>   waits until its own program registers, and looks at
//!                                                   the socket after that
//!                                   <------------   CANDIDATE(sample)
//!   looks at its socket once more, compares:
//!   one stream? makes memory
//!   PAIR(endpoint, rkey)            ------------>   makes memory
//!   tells its program               <------------   PAIRED(endpoint, rkey); tells its program
//! ```
//!
//! Either side may say REFUSE at any time before the end, and the leader WITHDRAW. Numbers of registrations
//! are those of the backend that gave them.
//!
//! When a backend has started anew and still has its connections, each side says RESUME for every connection
//! that it had with the other, as soon as the new session of their link is up. Whoever is asked for a connection
//! that it does not have answers GONE.

#![forbid(unsafe_code)]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::{RING_LOG2_MAX, RING_LOG2_MIN};

/// Largest message in bytes.
pub const PAIRING_MAX: usize = 128;

/// The two addresses of a connection, as the sender's end sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    /// The sender's end.
    pub own: SocketAddr,
    /// The receiver's end.
    pub far: SocketAddr,
}

/// What TCP says of one end at one moment; see `struct tcp_info` in tcp(7).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Shift of the windows that this end receives.
    pub send_scale: u8,
    /// Shift of the windows that this end announces.
    pub receive_scale: u8,
    /// Largest segment this end sends.
    pub send_mss: u32,
    /// Largest segment this end said it takes.
    pub advertised_mss: u32,
    /// Bytes that the far end acknowledged; the connecting side's SYN counts as one.
    pub acked: u64,
    /// Bytes received in order.
    pub received: u64,
    /// Bytes ever sent, repetitions included.
    pub sent: u64,
}

/// Which memory takes what the far end sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The endpoint, as the sender of this message numbers it.
    pub endpoint: u32,
    /// The key of its receive ring.
    pub rkey: u32,
}

impl Place {
    /// Said where the hearer needs no place: whoever is between knows it.
    pub const NOWHERE: Self = Self {
        endpoint: 0,
        rkey: 0,
    };
}

/// A message about one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pairing {
    /// A program of the leader's has registered its end.
    Offer {
        /// The leader's registration.
        id: u64,
        /// Which connection.
        names: Names,
        /// Ring size that suits the leader, as a power of two.
        ring_log2: u8,
        /// Taken before the message was sent.
        sample: Sample,
    },
    /// The follower has the other end.
    Candidate {
        /// The leader's registration.
        offer: u64,
        /// The follower's.
        id: u64,
        /// Ring size that suits the follower.
        ring_log2: u8,
        /// Taken after the offer had come.
        sample: Sample,
    },
    /// They are one stream, and the leader has its memory.
    Pair {
        /// The follower's registration.
        id: u64,
        /// The leader's.
        offer: u64,
        /// Ring size of both.
        ring_log2: u8,
        /// Where the leader takes bytes.
        place: Place,
    },
    /// The follower has its memory too.
    Paired {
        /// The leader's registration.
        offer: u64,
        /// Where the follower takes bytes.
        place: Place,
    },
    /// The receiver's registration stays on TCP.
    Refuse {
        /// The receiver's registration.
        id: u64,
        /// A [`crate::Reason`] code.
        reason: u32,
    },
    /// The leader's registration is over before it was paired.
    Withdraw {
        /// The leader's registration.
        offer: u64,
    },
    /// The sender still has a connection of an earlier session, and goes on from here.
    Resume {
        /// Where the sender takes bytes.
        own: Place,
        /// The receiver's endpoint.
        far: u32,
        /// The sender has everything up to here.
        received: u64,
        /// The sender's program has read up to here.
        consumed: u64,
    },
    /// The sender does not have the connection that it was asked to resume.
    Gone {
        /// The receiver's endpoint.
        endpoint: u32,
        /// A [`crate::Reason`] code.
        reason: u32,
    },
}

/// Why bytes are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPairing {
    /// The kind is unknown.
    #[error("pairing message of unknown kind {0}")]
    Kind(u8),
    /// Too short or too long.
    #[error("pairing message of kind {kind} with {len} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Its length.
        len: usize,
    },
    /// A field is out of range.
    #[error("pairing message with a bad {0}")]
    Field(&'static str),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSample {
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
struct RawOffer {
    kind: u8,
    ring_log2: u8,
    family: u8,
    reserved: u8,
    own_port: U16,
    far_port: U16,
    id: U64,
    own: [u8; 16],
    far: [u8; 16],
    sample: RawSample,
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
struct RawCandidate {
    kind: u8,
    ring_log2: u8,
    reserved: [u8; 2],
    offer: U64,
    id: U64,
    sample: RawSample,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPair {
    kind: u8,
    ring_log2: u8,
    reserved: [u8; 2],
    endpoint: U32,
    rkey: U32,
    id: U64,
    offer: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawResume {
    kind: u8,
    reserved: [u8; 3],
    endpoint: U32,
    rkey: U32,
    far: U32,
    received: U64,
    consumed: U64,
}

/// PAIRED, REFUSE, WITHDRAW and GONE; what a kind has no use for is zero.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawShort {
    kind: u8,
    reserved: [u8; 3],
    first: U32,
    second: U32,
    id: U64,
}

const OFFER: u8 = 1;
const CANDIDATE: u8 = 2;
const PAIR: u8 = 3;
const PAIRED: u8 = 4;
const REFUSE: u8 = 5;
const WITHDRAW: u8 = 6;
const RESUME: u8 = 7;
const GONE: u8 = 8;

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

const fn family(names: &Names) -> u8 {
    if names.own.is_ipv4() { 4 } else { 6 }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

fn address(family: u8, bytes: [u8; 16], port: U16) -> Result<SocketAddr, BadPairing> {
    let ip = match (family, bytes) {
        (4, [a, b, c, d, rest @ ..]) if rest == [0; 12] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        (6, bytes) => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return Err(BadPairing::Field("address")),
    };
    Ok(SocketAddr::new(ip, port.into()))
}

impl Pairing {
    /// Writes the message; how many bytes of `out` it takes.
    pub fn emit(&self, out: &mut [u8; PAIRING_MAX]) -> usize {
        let short = |kind, id: u64, first: u32, second: u32| RawShort {
            kind,
            reserved: [0; 3],
            first: first.into(),
            second: second.into(),
            id: id.into(),
        };
        match *self {
            Self::Offer {
                id,
                names,
                ring_log2,
                sample,
            } => put(
                out,
                &RawOffer {
                    kind: OFFER,
                    ring_log2,
                    family: family(&names),
                    reserved: 0,
                    own_port: names.own.port().into(),
                    far_port: names.far.port().into(),
                    id: id.into(),
                    own: octets(names.own.ip()),
                    far: octets(names.far.ip()),
                    sample: sample.into(),
                },
            ),
            Self::Candidate {
                offer,
                id,
                ring_log2,
                sample,
            } => put(
                out,
                &RawCandidate {
                    kind: CANDIDATE,
                    ring_log2,
                    reserved: [0; 2],
                    offer: offer.into(),
                    id: id.into(),
                    sample: sample.into(),
                },
            ),
            Self::Pair {
                id,
                offer,
                ring_log2,
                place,
            } => put(
                out,
                &RawPair {
                    kind: PAIR,
                    ring_log2,
                    reserved: [0; 2],
                    endpoint: place.endpoint.into(),
                    rkey: place.rkey.into(),
                    id: id.into(),
                    offer: offer.into(),
                },
            ),
            Self::Paired { offer, place } => {
                put(out, &short(PAIRED, offer, place.endpoint, place.rkey))
            }
            Self::Refuse { id, reason } => put(out, &short(REFUSE, id, reason, 0)),
            Self::Withdraw { offer } => put(out, &short(WITHDRAW, offer, 0, 0)),
            Self::Resume {
                own,
                far,
                received,
                consumed,
            } => put(
                out,
                &RawResume {
                    kind: RESUME,
                    reserved: [0; 3],
                    endpoint: own.endpoint.into(),
                    rkey: own.rkey.into(),
                    far: far.into(),
                    received: received.into(),
                    consumed: consumed.into(),
                },
            ),
            Self::Gone { endpoint, reason } => put(out, &short(GONE, 0, endpoint, reason)),
        }
    }

    /// Reads a message; total: any bytes give a message or an error.
    ///
    /// # Errors
    /// [`BadPairing`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPairing> {
        let kind = *bytes
            .first()
            .ok_or(BadPairing::Length { kind: 0, len: 0 })?;
        let wrong = BadPairing::Length {
            kind,
            len: bytes.len(),
        };
        match kind {
            OFFER => {
                let raw = RawOffer::read_from_bytes(bytes).map_err(|_| wrong)?;
                let names = Names {
                    own: address(raw.family, raw.own, raw.own_port)?,
                    far: address(raw.family, raw.far, raw.far_port)?,
                };
                Ok(Self::Offer {
                    id: raw.id.into(),
                    names,
                    ring_log2: ring_log2(raw.ring_log2)?,
                    sample: raw.sample.into(),
                })
            }
            CANDIDATE => {
                let raw = RawCandidate::read_from_bytes(bytes).map_err(|_| wrong)?;
                Ok(Self::Candidate {
                    offer: raw.offer.into(),
                    id: raw.id.into(),
                    ring_log2: ring_log2(raw.ring_log2)?,
                    sample: raw.sample.into(),
                })
            }
            PAIR => {
                let raw = RawPair::read_from_bytes(bytes).map_err(|_| wrong)?;
                Ok(Self::Pair {
                    id: raw.id.into(),
                    offer: raw.offer.into(),
                    ring_log2: ring_log2(raw.ring_log2)?,
                    place: Place {
                        endpoint: raw.endpoint.into(),
                        rkey: raw.rkey.into(),
                    },
                })
            }
            RESUME => {
                let raw = RawResume::read_from_bytes(bytes).map_err(|_| wrong)?;
                let (received, consumed) = (raw.received.into(), raw.consumed.into());
                if consumed > received {
                    return Err(BadPairing::Field("position"));
                }
                Ok(Self::Resume {
                    own: Place {
                        endpoint: raw.endpoint.into(),
                        rkey: raw.rkey.into(),
                    },
                    far: raw.far.into(),
                    received,
                    consumed,
                })
            }
            PAIRED | REFUSE | WITHDRAW | GONE => {
                let raw = RawShort::read_from_bytes(bytes).map_err(|_| wrong)?;
                let id = raw.id.into();
                let (first, second) = (raw.first.into(), raw.second.into());
                Ok(match kind {
                    PAIRED => Self::Paired {
                        offer: id,
                        place: Place {
                            endpoint: first,
                            rkey: second,
                        },
                    },
                    REFUSE => Self::Refuse { id, reason: first },
                    GONE => Self::Gone {
                        endpoint: first,
                        reason: second,
                    },
                    _ => Self::Withdraw { offer: id },
                })
            }
            other => Err(BadPairing::Kind(other)),
        }
    }
}

fn put(out: &mut [u8; PAIRING_MAX], raw: &(impl IntoBytes + Immutable)) -> usize {
    let bytes = raw.as_bytes();
    let (head, _) = out.split_at_mut(bytes.len());
    head.copy_from_slice(bytes);
    bytes.len()
}

const _: () = assert!(size_of::<RawOffer>() <= PAIRING_MAX);

fn ring_log2(value: u8) -> Result<u8, BadPairing> {
    if (RING_LOG2_MIN..=RING_LOG2_MAX).contains(&value.into()) {
        Ok(value)
    } else {
        Err(BadPairing::Field("ring size"))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn all() -> Vec<Pairing> {
        let sample = Sample {
            send_scale: 7,
            receive_scale: 9,
            send_mss: 1448,
            advertised_mss: 1460,
            acked: 1 << 40,
            received: 2,
            sent: u64::MAX,
        };
        let names = |own: &str, far: &str| Names {
            own: own.parse().expect("an address"),
            far: far.parse().expect("an address"),
        };
        let place = Place {
            endpoint: 5,
            rkey: 0xdead_beef,
        };
        vec![
            Pairing::Offer {
                id: 1,
                names: names("10.9.0.1:40000", "10.9.0.2:80"),
                ring_log2: 22,
                sample,
            },
            Pairing::Offer {
                id: 1,
                names: names("[fd00::1]:40000", "[fd00::2]:80"),
                ring_log2: 16,
                sample,
            },
            Pairing::Candidate {
                offer: 1,
                id: 2,
                ring_log2: 30,
                sample,
            },
            Pairing::Pair {
                id: 2,
                offer: 1,
                ring_log2: 22,
                place,
            },
            Pairing::Paired { offer: 1, place },
            Pairing::Refuse { id: 2, reason: 10 },
            Pairing::Withdraw { offer: u64::MAX },
            Pairing::Resume {
                own: place,
                far: 9,
                received: 1 << 50,
                consumed: 7,
            },
            Pairing::Gone {
                endpoint: 9,
                reason: 10,
            },
        ]
    }

    #[test]
    fn every_message_survives_the_wire_and_no_part_of_one_does() {
        for message in all() {
            let mut out = [0; PAIRING_MAX];
            let len = message.emit(&mut out);
            assert_eq!(Pairing::parse(&out[..len]), Ok(message));
            for cut in 0..len {
                assert!(Pairing::parse(&out[..cut]).is_err(), "{cut} of {message:?}");
            }
            assert!(len == PAIRING_MAX || Pairing::parse(&out[..=len]).is_err());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut out = [0; PAIRING_MAX];
        let len = all()[0].emit(&mut out);
        for (at, value, what) in [
            (1, 15, "ring size"),
            (1, 31, "ring size"),
            (2, 5, "address"),
        ] {
            let mut bad = out;
            bad[at] = value;
            assert_eq!(Pairing::parse(&bad[..len]), Err(BadPairing::Field(what)));
        }
        let unread = Pairing::Resume {
            own: Place {
                endpoint: 1,
                rkey: 2,
            },
            far: 3,
            received: 4,
            consumed: 5,
        };
        let len = unread.emit(&mut out);
        let bad = BadPairing::Field("position");
        assert_eq!(Pairing::parse(&out[..len]), Err(bad));
        assert_eq!(Pairing::parse(&[9]), Err(BadPairing::Kind(9)));
        assert!(Pairing::parse(&[]).is_err());
    }
}
