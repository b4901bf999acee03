//! Asks the kernel, in a client's network namespace, which socket a 4-tuple belongs to.
//!
//! The question goes over the client's own NETLINK_SOCK_DIAG socket, of which the daemon holds a
//! duplicate. The client may read, fill or filter that socket at will; so an answer counts only if
//! the kernel sent it (port 0), it repeats a number that nobody can guess, and it carries the very
//! 4-tuple. The kernel answers inside the send call: there is nothing to wait for.

use core::net::{IpAddr, SocketAddr};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags};
use zerocopy::byteorder::network_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::pairing::{Sample, Stream, Tuple};

/// Looks sockets up.
#[derive(Debug, Default)]
pub struct SockDiag {
    secret: RandomState,
    asked: u64,
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// The kernel did not take the question.
    #[error("sock_diag request: {0}")]
    Send(io::Error),
    /// No valid answer: the client has read it, or left no room for it.
    #[error("no answer on the client's sock_diag socket")]
    Silent,
    /// The kernel cannot answer this kind of question.
    #[error("sock_diag answers: {0}")]
    Kernel(io::Error),
}

impl SockDiag {
    /// The established socket of `tuple` in the namespace of `netlink`; `None` if there is none, or
    /// if it does not have this `cookie`.
    ///
    /// # Errors
    /// [`DiagError`] says nothing about the socket.
    pub fn lookup(
        &mut self,
        netlink: impl AsFd,
        tuple: &Tuple,
        cookie: Option<u64>,
    ) -> Result<Option<Sample>, DiagError> {
        // Finds IPv4 connections of AF_INET6 sockets too: they are hashed by their IPv4 addresses.
        let family = if tuple.own.is_ipv4() {
            rustix::net::AddressFamily::INET
        } else {
            rustix::net::AddressFamily::INET6
        };
        let family = u8::try_from(family.as_raw()).unwrap_or(0);
        self.ask(netlink.as_fd(), family, tuple, cookie)
    }

    fn ask(
        &mut self,
        netlink: std::os::fd::BorrowedFd<'_>,
        family: u8,
        tuple: &Tuple,
        cookie: Option<u64>,
    ) -> Result<Option<Sample>, DiagError> {
        discard(netlink);
        self.asked += 1;
        let hash = self.secret.hash_one(self.asked).to_ne_bytes();
        let sequence = u32::from_ne_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let request = Request::new(sequence, family, tuple, cookie);
        rustix::net::sendto(
            netlink,
            request.as_bytes(),
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            &SocketAddrNetlink::new(0, 0),
        )
        .map_err(|error| DiagError::Send(error.into()))?;
        let mut buffer = [0u8; ANSWER_BYTES];
        for _ in 0..STRAY_MAX {
            let received = rustix::net::recvfrom(netlink, &mut buffer[..], RecvFlags::DONTWAIT);
            let (length, _, from) = match received {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(_) => return Err(DiagError::Silent),
            };
            let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            let Some(answer) = buffer.get(..length) else {
                continue;
            };
            match Answer::parse(answer, sequence) {
                Answer::Stray => {}
                Answer::Error(code) => return explain(code),
                Answer::Socket { found, sample } => return Ok((found == *tuple).then_some(sample)),
            }
        }
        Err(DiagError::Silent)
    }
}

/// Most messages that a client can make the daemon throw away per question.
const STRAY_MAX: usize = 64;
/// Room for the answer with all attributes the kernel sends unasked.
const ANSWER_BYTES: usize = 2048;

fn discard(netlink: std::os::fd::BorrowedFd<'_>) {
    let mut buffer = [0u8; 16];
    for _ in 0..STRAY_MAX {
        if rustix::net::recv(netlink, &mut buffer[..], RecvFlags::DONTWAIT).is_err() {
            return;
        }
    }
}

/// ENOENT: no such socket. ESTALE: another cookie.
fn explain(code: i32) -> Result<Option<Sample>, DiagError> {
    match Errno::from_raw_os_error(code) {
        Errno::NOENT | Errno::STALE => Ok(None),
        other => Err(DiagError::Kernel(other.into())),
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const INET_DIAG_INFO: u16 = 2;
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
#[derive(Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Request {
    header: NetlinkHeader,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

impl Request {
    fn new(sequence: u32, family: u8, tuple: &Tuple, cookie: Option<u64>) -> Self {
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
            family,
            protocol: 6,
            extensions: 1 << (INET_DIAG_INFO - 1),
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

enum Answer {
    /// Not an answer to this question, or not one at all.
    Stray,
    /// A negative answer: an errno.
    Error(i32),
    /// The kernel's word on one socket.
    Socket { found: Tuple, sample: Sample },
}

impl Answer {
    /// Total on any bytes.
    fn parse(bytes: &[u8], sequence: u32) -> Self {
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
        Self::Socket {
            found: Tuple {
                own: addr(message.id.own_addr, message.id.own_port),
                far: addr(message.id.far_addr, message.id.far_port),
            },
            sample: Sample {
                inode: message.inode,
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
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    fn netlink() -> OwnedFd {
        rustix::net::socket_with(
            rustix::net::AddressFamily::NETLINK,
            rustix::net::SocketType::DGRAM,
            rustix::net::SocketFlags::CLOEXEC,
            Some(rustix::net::netlink::SOCK_DIAG),
        )
        .unwrap()
    }

    fn inode(socket: impl AsFd) -> u64 {
        rustix::fs::fstat(socket).unwrap().st_ino
    }

    fn canonical(addr: SocketAddr) -> SocketAddr {
        SocketAddr::new(addr.ip().to_canonical(), addr.port())
    }

    fn tuple(socket: &TcpStream) -> Tuple {
        Tuple {
            own: canonical(socket.local_addr().unwrap()),
            far: canonical(socket.peer_addr().unwrap()),
        }
    }

    fn pair(listen: &str, connect: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((connect, port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    fn check(listen: &str, connect: &str) {
        let (mut client, mut server) = pair(listen, connect);
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        let netlink = netlink();
        let mut diag = SockDiag::default();
        for socket in [&client, &server] {
            let cookie = rustix::net::sockopt::socket_cookie(socket).unwrap();
            let found = diag
                .lookup(&netlink, &tuple(socket), Some(cookie))
                .unwrap()
                .unwrap();
            assert_eq!(u64::from(found.inode), inode(socket));
            assert_eq!(found.state, Sample::ESTABLISHED);
            assert!(
                diag.lookup(&netlink, &tuple(socket), Some(cookie + 1_000_000))
                    .unwrap()
                    .is_none()
            );
        }
        let mut ask = |socket: &TcpStream| {
            diag.lookup(&netlink, &tuple(socket), None)
                .unwrap()
                .unwrap()
                .stream
                .unwrap()
        };
        let (before, left, after) = (ask(&server), ask(&client), ask(&server));
        assert_eq!(after.received, 1000);
        assert_eq!(left.sent, 1000);
        assert!(crate::pairing::same_stream(&before, &left, &after));
        let gone = tuple(&client);
        drop(server);
        drop(client);
        // Closed by the client last: no socket, or one that nobody holds.
        let last = diag.lookup(&netlink, &gone, None).unwrap();
        assert!(last.is_none_or(|last| last.inode == 0));
    }

    #[test]
    fn finds_ipv4_connections() {
        check("127.0.0.1:0", "127.0.0.1");
    }

    #[test]
    fn finds_ipv4_connections_of_ipv6_sockets() {
        if TcpListener::bind("[::]:0").is_err() {
            println!("skipped: no IPv6");
            return;
        }
        check("[::]:0", "127.0.0.1");
        check("[::]:0", "::ffff:127.0.0.1");
    }

    #[test]
    fn finds_ipv6_connections() {
        if TcpListener::bind("[::1]:0").is_err() {
            println!("skipped: no IPv6");
            return;
        }
        check("[::1]:0", "::1");
    }

    #[test]
    fn a_listener_is_not_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tuple = Tuple {
            own: listener.local_addr().unwrap(),
            far: "127.0.0.1:9".parse().unwrap(),
        };
        let found = SockDiag::default().lookup(netlink(), &tuple, None).unwrap();
        assert_eq!(found, None);
    }

    #[test]
    fn stray_messages_are_thrown_away() {
        let (client, _server) = pair("127.0.0.1:0", "127.0.0.1");
        let netlink = netlink();
        let mut diag = SockDiag::default();
        for _ in 0..20 {
            let request = Request::new(7, 2, &tuple(&client), None);
            rustix::net::sendto(
                &netlink,
                request.as_bytes(),
                SendFlags::empty(),
                &SocketAddrNetlink::new(0, 0),
            )
            .unwrap();
        }
        assert!(
            diag.lookup(&netlink, &tuple(&client), None)
                .unwrap()
                .is_some()
        );
    }

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
