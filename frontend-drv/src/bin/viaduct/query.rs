//! Asking the daemon: one socket, questions one after the other, JSON for an answer.
//!
//! The daemon counts every open socket as a client, so a [`Connection`] that is kept also keeps an
//! embedded daemon alive.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use rdma_core::control::{MESSAGE_MAX, Message, ParseError, Query, parse};

/// A connection to a daemon.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// Nobody listens there.
    #[error("{}", .0.desc())]
    Absent(Errno),
    /// Somebody listens, and this user may not ask.
    #[error("permission denied")]
    Denied,
    /// The path cannot be a socket's.
    #[error("not usable as a socket: {}", .0.desc())]
    Path(Errno),
    /// No answer in time.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// It hung up.
    #[error("it closed the connection without an answer")]
    Closed,
    /// It speaks another version.
    #[error("it is another version of Viaduct ({0})")]
    Version(String),
    /// It said no.
    #[error("it says: {0}")]
    Refused(String),
    /// Not a daemon of ours.
    #[error("it does not answer as a daemon of Viaduct does ({0})")]
    Nonsense(String),
    /// A system call failed that should not.
    #[error("{}", .0.desc())]
    System(Errno),
}

impl QueryError {
    /// Nobody is there to be asked, now or any more.
    pub(crate) const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Closed)
    }
}

impl Connection {
    /// Connects to the daemon at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, QueryError> {
        let address = UnixAddr::new(path).map_err(QueryError::Path)?;
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let socket =
            socket(family, kind, SockFlag::SOCK_CLOEXEC, None).map_err(QueryError::System)?;
        // The send timeout also bounds a connect to a daemon whose backlog is full.
        let wait = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::SendTimeout, &wait).map_err(QueryError::System)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait).map_err(QueryError::System)?;
        loop {
            return match connect(socket.as_raw_fd(), &address) {
                Ok(()) => Ok(Self { socket }),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Err(QueryError::Silent),
                Err(Errno::EACCES | Errno::EPERM) => Err(QueryError::Denied),
                Err(error @ (Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR)) => {
                    Err(QueryError::Absent(error))
                }
                Err(Errno::EPROTOTYPE) => {
                    Err(QueryError::Nonsense("another type of socket".to_owned()))
                }
                Err(error) => Err(QueryError::System(error)),
            };
        }
    }

    /// Asks one of [`Query::STATUS`], [`Query::TOTALS`], [`Query::LIMITS`].
    pub(crate) fn ask(&self, what: u32, session: u64) -> Result<String, QueryError> {
        let query = Query {
            what,
            reserved: 0,
            session,
        };
        let answer = self.converse(&Message::Query(query))?;
        tracing::debug!(what, session, bytes = answer.len(), "answered");
        Ok(answer)
    }

    /// Sends a message that is answered by a report, and returns that.
    pub(crate) fn converse(&self, message: &Message<'_>) -> Result<String, QueryError> {
        self.send(message)?;
        let deadline = Instant::now() + PATIENCE * 5;
        let mut answer = String::new();
        // One byte more than the longest message, so that a longer one is seen to be.
        let mut buffer = vec![0; MESSAGE_MAX + 1];
        while Instant::now() < deadline {
            let length = self.receive(&mut buffer)?;
            match parse(buffer.get(..length).unwrap_or_default(), 0) {
                Ok(Message::Report(head, text)) => {
                    if answer.len() + text.len() > ANSWER_MAX {
                        return Err(QueryError::Nonsense(format!(
                            "more than {ANSWER_MAX} bytes of answer"
                        )));
                    }
                    answer.push_str(text);
                    if head.more == 0 {
                        return Ok(answer);
                    }
                }
                Ok(Message::Failure(_, text)) => return Err(QueryError::Refused(text.to_owned())),
                Ok(other) => {
                    let kind = other.kind();
                    return Err(QueryError::Nonsense(format!("message kind {kind}")));
                }
                Err(ParseError::Version(theirs)) => {
                    return Err(QueryError::Version(format!("control version {theirs}")));
                }
                Err(error) => return Err(QueryError::Nonsense(error.to_string())),
            }
        }
        Err(QueryError::Silent)
    }

    fn send(&self, message: &Message<'_>) -> Result<(), QueryError> {
        let mut buffer = [0; 256];
        let length = message
            .emit(&mut buffer)
            .ok_or(QueryError::System(Errno::EMSGSIZE))?;
        let bytes = buffer.get(..length).unwrap_or_default();
        loop {
            return match send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => Ok(()),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Err(QueryError::Silent),
                Err(Errno::EPIPE | Errno::ECONNRESET) => Err(QueryError::Closed),
                Err(error) => Err(QueryError::System(error)),
            };
        }
    }

    /// One packet; its descriptors, which no answer has, are dropped by the kernel.
    fn receive(&self, buffer: &mut [u8]) -> Result<usize, QueryError> {
        loop {
            return match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(0) | Err(Errno::ECONNRESET) => Err(QueryError::Closed),
                Ok(length) => Ok(length),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Err(QueryError::Silent),
                Err(error) => Err(QueryError::System(error)),
            };
        }
    }
}

/// How long one packet may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of one answer: 16,384 connections of 1000 processes would be a tenth of it.
const ANSWER_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_daemon_is_told_apart() {
        let absent = Connection::open(Path::new("/nonexistent/socket")).unwrap_err();
        assert!(absent.is_absent(), "{absent}");
        let long = format!("/{}", "x".repeat(200));
        let path = Connection::open(Path::new(&long)).unwrap_err();
        assert!(matches!(path, QueryError::Path(_)), "{path}");
    }
}
