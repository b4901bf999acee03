//! The messages of NETLINK_SOCK_DIAG, as far as they are used, in the kernel's layout.

use core::net::{IpAddr, SocketAddr};

use rustix::net::AddressFamily;
use zerocopy::byteorder::network_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::pairing::{Sample, Stream, Tuple};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// The attribute with the counts, and its bit in a request.
const INET_DIAG_INFO: u16 = 2;
pub(super) const WITH_COUNTS: u8 = 1 << (INET_DIAG_INFO - 1);
const NO_COOKIE: [u32; 2] = [u32::MAX; 2];

/// `struct nlmsghdr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct NetlinkHeader {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_sockid`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SocketId {
    own_port: network_endian::U16,
    far_port: network_endian::U16,
    own_addr: [u8; 16],
    far_addr: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2` behind its header.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Request {
    header: NetlinkHeader,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

impl Request {
    pub(super) fn new(sequence: u32, tuple: &Tuple, cookie: Option<u64>, extensions: u8) -> Self {
        // Finds IPv4 connections of AF_INET6 sockets too: they are hashed by their IPv4 addresses.
        let family = if tuple.own.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let cookie = cookie.map_or(NO_COOKIE, |cookie| {
            let [a, b, c, d, e, f, g, h] = cookie.to_le_bytes();
            [
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
            ]
        });
        Self {
            header: NetlinkHeader {
                length: u32::try_from(size_of::<Self>()).unwrap_or(0),
                kind: SOCK_DIAG_BY_FAMILY,
                flags: NLM_F_REQUEST,
                sequence,
                port: 0,
            },
            family: u8::try_from(family.as_raw()).unwrap_or(0),
            protocol: 6,
            extensions,
            pad: 0,
            states: u32::MAX,
            id: SocketId {
                own_port: tuple.own.port().into(),
                far_port: tuple.far.port().into(),
                own_addr: octets(tuple.own.ip()),
                far_addr: octets(tuple.far.ip()),
                interface: 0,
                cookie,
            },
        }
    }
}

fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&[a, b, c, d]);
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// `struct inet_diag_msg`.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SocketMessage {
    family: u8,
    state: u8,
    timer: u8,
    retransmissions: u8,
    id: SocketId,
    expires: u32,
    receive_queue: u32,
    send_queue: u32,
    uid: u32,
    inode: u32,
}

/// The beginning of `struct tcp_info`, as far as it is used.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct TcpInfo {
    bytes: [u8; 6],
    scales: u8,
    flags: u8,
    times: [u32; 2],
    send_mss: u32,
    receive_mss: u32,
    words: [u32; 15],
    advertised_mss: u32,
    more_words: [u32; 4],
    rates: [u64; 2],
    acked: u64,
    received: u64,
    segments: [u32; 6],
    delivery_rate: u64,
    busy: [u64; 3],
    delivered: [u32; 2],
    sent: u64,
}

const _: () = assert!(size_of::<Request>() == 72);
const _: () = assert!(size_of::<SocketMessage>() == 72);
const _: () = assert!(core::mem::offset_of!(TcpInfo, advertised_mss) == 84);
const _: () = assert!(core::mem::offset_of!(TcpInfo, acked) == 120);
const _: () = assert!(core::mem::offset_of!(TcpInfo, sent) == 200);

pub(super) enum Answer {
    /// Not an answer to this question, or not one at all.
    Stray,
    /// A negative answer: an errno.
    Error(i32),
    /// The kernel's word on one socket.
    Socket { found: Tuple, sample: Sample },
}

impl Answer {
    /// Total on any bytes.
    pub(super) fn parse(bytes: &[u8], sequence: u32) -> Self {
        let Ok((header, body)) = NetlinkHeader::read_from_prefix(bytes) else {
            return Self::Stray;
        };
        if header.sequence != sequence {
            return Self::Stray;
        }
        if header.kind == NLMSG_ERROR {
            return i32::read_from_prefix(body)
                .map_or(Self::Stray, |(code, _)| Self::Error(code.saturating_neg()));
        }
        let body = (header.length as usize)
            .checked_sub(size_of::<NetlinkHeader>())
            .and_then(|length| body.get(..length));
        let (Some(body), SOCK_DIAG_BY_FAMILY) = (body, header.kind) else {
            return Self::Stray;
        };
        let Ok((message, attributes)) = SocketMessage::read_from_prefix(body) else {
            return Self::Stray;
        };
        let addr = |octets: [u8; 16], port: network_endian::U16| {
            let ip = if i32::from(message.family) == nix::libc::AF_INET {
                let [a, b, c, d, ..] = octets;
                IpAddr::from([a, b, c, d])
            } else {
                IpAddr::from(octets).to_canonical()
            };
            SocketAddr::new(ip, port.get())
        };
        let [low, high] = message.id.cookie;
        Self::Socket {
            found: Tuple {
                own: addr(message.id.own_addr, message.id.own_port),
                far: addr(message.id.far_addr, message.id.far_port),
            },
            sample: Sample {
                inode: message.inode,
                cookie: u64::from(low) | u64::from(high) << 32,
                state: message.state,
                stream: stream(attributes),
            },
        }
    }
}

/// The TCP counts among the attributes.
fn stream(mut attributes: &[u8]) -> Option<Stream> {
    loop {
        let (length, rest) = u16::read_from_prefix(attributes).ok()?;
        let (kind, _) = u16::read_from_prefix(rest).ok()?;
        let payload = attributes.get(4..usize::from(length))?;
        if kind == INET_DIAG_INFO {
            let (info, _) = TcpInfo::read_from_prefix(payload).ok()?;
            return Some(Stream {
                send_scale: info.scales & 0xf,
                receive_scale: info.scales >> 4,
                send_mss: info.send_mss,
                advertised_mss: info.advertised_mss,
                acked: info.acked,
                received: info.received,
                sent: info.sent,
            });
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_parsed() {
        let mut bytes = [0u8; 300];
        for seed in 0..2000u32 {
            for (i, byte) in bytes.iter_mut().enumerate() {
                let mixed = (seed ^ u32::try_from(i).unwrap()).wrapping_mul(0x9e37_79b9);
                *byte = mixed.to_be_bytes()[0];
            }
            bytes[8..12].fill(0);
            bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            bytes[0..4].copy_from_slice(&300u32.to_ne_bytes());
            for cut in [0, 10, 16, 60, 88, 92, 100, 300] {
                let _ = Answer::parse(&bytes[..cut], 0);
            }
        }
    }
}
