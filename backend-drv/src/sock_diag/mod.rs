//! Asks the kernel, in a client's network namespace, which socket a 4-tuple belongs to.
//!
//! In the daemon's own namespace it uses a socket of its own. Elsewhere the question goes over the
//! client's NETLINK_SOCK_DIAG socket, of which the daemon holds a duplicate. The client may read, fill or filter that socket at will; so an answer counts only if
//! the kernel sent it (port 0), it repeats a number that nobody can guess, and it carries the very
//! 4-tuple. The kernel answers inside the send call: there is nothing to wait for.

mod message;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zerocopy::IntoBytes;

use self::message::{Answer, Request, WITH_COUNTS};
use crate::pairing::{Sample, Tuple};

/// Where a client's sockets are.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// SO_NETNS_COOKIE.
    pub cookie: u64,
    /// The client's NETLINK_SOCK_DIAG socket in it.
    pub netlink: Arc<OwnedFd>,
}

/// Looks sockets up. One per thread.
#[derive(Debug)]
pub struct SockDiag {
    secret: RandomState,
    asked: u64,
    /// Our own socket, and the namespace that it can answer for.
    own: Option<(OwnedFd, u64)>,
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

impl Default for SockDiag {
    fn default() -> Self {
        Self::new()
    }
}

impl SockDiag {
    /// Makes a socket of our own; in its namespace no client can interfere.
    pub fn new() -> Self {
        let own = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(rustix::net::netlink::SOCK_DIAG),
        );
        let own = own.ok().and_then(|socket| {
            let cookie = crate::memory::netns_cookie(&socket).ok()?;
            Some((socket, cookie))
        });
        Self {
            secret: RandomState::new(),
            asked: 0,
            own,
        }
    }

    /// Whether this kernel answers at all; `None` if that cannot be tried here.
    pub fn works(&mut self) -> Option<bool> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).ok()?;
        let connection = TcpStream::connect(listener.local_addr().ok()?).ok()?;
        let tuple = Tuple {
            own: connection.local_addr().ok()?,
            far: connection.peer_addr().ok()?,
        };
        let (netlink, cookie) = self.own.as_ref()?;
        let namespace = Namespace {
            cookie: *cookie,
            netlink: Arc::new(netlink.try_clone().ok()?),
        };
        let found = self.sample(&namespace, &tuple, None);
        Some(matches!(found, Ok(Some(sample)) if sample.stream.is_some()))
    }

    /// The socket of `tuple` in `namespace`, without its counts; `None` if there is none, or if it
    /// does not have this `cookie`. Never waits.
    ///
    /// # Errors
    /// [`DiagError`] says nothing about the socket.
    pub fn lookup(
        &mut self,
        namespace: &Namespace,
        tuple: &Tuple,
        cookie: Option<u64>,
    ) -> Result<Option<Sample>, DiagError> {
        self.ask_patiently(namespace, tuple, cookie, 0)
    }

    /// As [`SockDiag::lookup`], with the counts. Waits for whoever is inside a call on that socket.
    ///
    /// # Errors
    /// As [`SockDiag::lookup`].
    pub fn sample(
        &mut self,
        namespace: &Namespace,
        tuple: &Tuple,
        cookie: Option<u64>,
    ) -> Result<Option<Sample>, DiagError> {
        self.ask_patiently(namespace, tuple, cookie, WITH_COUNTS)
    }

    /// Another thread of ours may be asking over the same socket, and take our answer for a stray.
    fn ask_patiently(
        &mut self,
        namespace: &Namespace,
        tuple: &Tuple,
        cookie: Option<u64>,
        extensions: u8,
    ) -> Result<Option<Sample>, DiagError> {
        for _ in 1..ATTEMPTS {
            match self.ask(namespace, tuple, cookie, extensions) {
                Err(DiagError::Silent) => {}
                other => return other,
            }
        }
        self.ask(namespace, tuple, cookie, extensions)
    }

    fn ask(
        &mut self,
        namespace: &Namespace,
        tuple: &Tuple,
        cookie: Option<u64>,
        extensions: u8,
    ) -> Result<Option<Sample>, DiagError> {
        self.asked += 1;
        let hash = self.secret.hash_one(self.asked).to_ne_bytes();
        let sequence = u32::from_ne_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let netlink = match &self.own {
            Some((own, cookie)) if *cookie == namespace.cookie => own.as_fd(),
            _ => namespace.netlink.as_fd(),
        };
        discard(netlink);
        let request = Request::new(sequence, tuple, cookie, extensions);
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

/// Questions before a client's silence is taken for an answer.
const ATTEMPTS: usize = 4;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    const LET_GO_TRIES: u32 = 1000;
    const LET_GO_PAUSE: Duration = Duration::from_millis(10);

    /// A namespace as a client presents it; `foreign`: we have no socket there ourselves.
    fn namespace(foreign: bool) -> Namespace {
        let (netlink, cookie) = SockDiag::new().own.unwrap();
        Namespace {
            cookie: if foreign { 0 } else { cookie },
            netlink: Arc::new(netlink),
        }
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
        let namespace = namespace(true);
        let mut diag = SockDiag::default();
        for socket in [&client, &server] {
            let cookie = rustix::net::sockopt::socket_cookie(socket).unwrap();
            let found = diag
                .lookup(&namespace, &tuple(socket), Some(cookie))
                .unwrap()
                .unwrap();
            assert_eq!(u64::from(found.inode), inode(socket));
            assert_eq!(found.state, Sample::ESTABLISHED);
            assert!(
                diag.lookup(&namespace, &tuple(socket), Some(cookie + 1_000_000))
                    .unwrap()
                    .is_none()
            );
        }
        let mut ask = |socket: &TcpStream| {
            diag.sample(&namespace, &tuple(socket), None)
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
        // Closed by the client last: no socket, or one that nobody holds. A child that another test
        // has just forked may hold both ends a moment longer.
        let let_go = (0..LET_GO_TRIES).any(|_| {
            std::thread::sleep(LET_GO_PAUSE);
            let last = diag.lookup(&namespace, &gone, None).unwrap();
            last.is_none_or(|last| last.inode == 0)
        });
        assert!(let_go, "{gone} is still held");
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
        let found = SockDiag::default()
            .lookup(&namespace(false), &tuple, None)
            .unwrap();
        assert_eq!(found, None);
    }

    #[test]
    fn stray_messages_are_thrown_away() {
        let (client, _server) = pair("127.0.0.1:0", "127.0.0.1");
        let namespace = namespace(true);
        let mut diag = SockDiag::default();
        for _ in 0..20 {
            let request = Request::new(7, &tuple(&client), None, 0);
            rustix::net::sendto(
                &*namespace.netlink,
                request.as_bytes(),
                SendFlags::empty(),
                &SocketAddrNetlink::new(0, 0),
            )
            .unwrap();
        }
        assert!(
            diag.lookup(&namespace, &tuple(&client), None)
                .unwrap()
                .is_some()
        );
    }
}
