//! The control socket: messages and descriptors to and from the daemon.
//!
//! All calls are non-blocking except [`Client::receive_blocking`], which takes a timeout. Received
//! descriptors are close-on-exec; those that a message should not have are closed.

#![expect(
    unsafe_code,
    reason = "the control socket's number can change under the program's dup2"
)]

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, Ordering};
use core::time::Duration;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rdma_core::control::{FDS_MAX, Message, ParseError, parse};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recvmsg, sendmsg, socket_with,
};

use crate::descriptor::lift;

/// Bytes that a program's side needs for any message but a tool's report.
pub const BUFFER_BYTES: usize = 1024;

/// Descriptors that came beside a message; closed when dropped.
pub type Fds = [Option<OwnedFd>; FDS_MAX];

/// A control socket.
#[derive(Debug)]
pub struct Client {
    socket: AtomicI32,
}

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Nothing there now.
    #[error("no message")]
    Empty,
    /// The daemon has left.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon sent something that is not a message.
    #[error("the daemon sent nonsense")]
    Parse(#[from] ParseError),
    /// The system call failed.
    #[error("receiving failed")]
    System(#[from] Errno),
}

impl Client {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2): `ENOENT` and `ECONNREFUSED` mean that no daemon is there.
    pub fn connect(path: &str) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self {
            socket: AtomicI32::new(lift(socket)?.into_raw_fd()),
        })
    }

    /// The descriptor's number.
    pub fn raw(&self) -> RawFd {
        self.socket.load(Ordering::Acquire)
    }

    /// Moves to another number, because the program wants this one. The old descriptor stays open:
    /// what the program does with its number replaces it. Returns the new number.
    ///
    /// # Errors
    /// `EMFILE`: the client is unusable from now on.
    pub fn relocate(&self) -> Result<RawFd, Errno> {
        let new = fcntl_dupfd_cloexec(self.fd(), 3)
            .and_then(lift)
            .map(IntoRawFd::into_raw_fd);
        self.socket
            .store(*new.as_ref().unwrap_or(&-1), Ordering::Release);
        new
    }

    fn fd(&self) -> BorrowedFd<'_> {
        let raw = self.raw().max(0);
        // SAFETY: our own descriptor, or standard input after `relocate` failed, on which the socket
        // calls below only ever answer ENOTSOCK.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }

    /// Sends a message with descriptors beside it.
    ///
    /// # Errors
    /// `EAGAIN` if the daemon is behind, `EPIPE` or `ECONNRESET` if it has left.
    pub fn send(&self, message: &Message<'_>, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut buffer = [0u8; BUFFER_BYTES];
        let length = message.emit(&mut buffer).ok_or(Errno::MSGSIZE)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL);
        }
        sendmsg(
            self.fd(),
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        Ok(())
    }

    /// Waits up to `timeout` until a message can be sent.
    pub fn wait_for_room(&self, timeout: Duration) {
        let wait = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let fd = self.fd();
        let mut entry = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
        let _ = poll(&mut entry, Some(&wait));
    }

    /// The process that listens at the other end.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn daemon_pid(&self) -> Result<i32, Errno> {
        let credentials = rustix::net::sockopt::socket_peercred(self.fd())?;
        Ok(credentials.pid.as_raw_nonzero().get())
    }

    /// Waits up to `timeout` until the daemon has closed the connection. True if it has.
    pub fn wait_for_end(&self, timeout: Duration) -> bool {
        let wait = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let fd = self.fd();
        let mut entry = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
        matches!(poll(&mut entry, Some(&wait)), Ok(1..))
    }

    /// Receives one message into `buffer`, if one is there.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<(Message<'b>, Fds), ReceiveError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            self.fd(),
            &mut [IoSliceMut::new(buffer)],
            &mut ancillary,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        );
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Err(ReceiveError::Empty),
            Err(Errno::CONNRESET | Errno::PIPE) => return Err(ReceiveError::Closed),
            Err(error) => return Err(error.into()),
        };
        if received.bytes == 0 {
            return Err(ReceiveError::Closed);
        }
        let mut fds: Fds = [const { None }; FDS_MAX];
        let mut count = 0;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                for fd in rights {
                    if let Some(place) = fds.get_mut(count) {
                        *place = Some(fd);
                    }
                    count += 1;
                }
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC)
            || received.flags.contains(ReturnFlags::CTRUNC)
        {
            return Err(ParseError::Long(received.bytes).into());
        }
        let message = parse(buffer.get(..received.bytes).unwrap_or_default(), count)?;
        Ok((message, fds))
    }

    /// Receives one message, waiting for it up to `timeout`.
    ///
    /// # Errors
    /// [`ReceiveError::Empty`] after the timeout, else as [`Client::receive`].
    pub fn receive_blocking<'b>(
        &self,
        buffer: &'b mut [u8],
        timeout: Duration,
    ) -> Result<(Message<'b>, Fds), ReceiveError> {
        let wait = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut entry = [PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)];
        let _ = poll(&mut entry, Some(&wait));
        self.receive(buffer)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let raw = self.raw();
        if raw >= 0 {
            // SAFETY: our own descriptor, not used after this.
            drop(unsafe { OwnedFd::from_raw_fd(raw) });
        }
    }
}
