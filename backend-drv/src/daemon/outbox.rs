//! Messages on their way to a client. Nobody waits: what the socket does not take is kept, up to a
//! bound.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rdma_core::control::Message;

use crate::packet;

/// Longest message without text.
const MESSAGE_BYTES: usize = 256;

/// Messages not yet sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Packet>,
}

#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    fd: Option<Arc<OwnedFd>>,
}

/// How far sending got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Progress {
    /// Messages that the client can read now.
    pub(super) sent: usize,
    /// Why some are left.
    pub(super) left: Left,
}

/// What keeps messages waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// Nothing is left.
    Nothing,
    /// The client has not read what is there: go on when the socket takes more.
    Full,
    /// The system has no memory, or too many descriptors are under way to too many clients.
    Later,
}

/// Whether an error is the system's and passes, and not the client's.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ETOOMANYREFS | nix::libc::ENOMEM | nix::libc::ENOBUFS)
    )
}

impl Outbox {
    /// Puts a message behind the others. False if it has no room, or has more than a message can.
    #[must_use]
    pub(super) fn push(
        &mut self,
        message: &Message<'_>,
        fd: Option<Arc<OwnedFd>>,
        limit: u32,
    ) -> bool {
        let mut bytes = vec![0; MESSAGE_BYTES];
        let Some(length) = message.emit(&mut bytes) else {
            return false;
        };
        bytes.truncate(length);
        self.waiting.push_back(Packet { bytes, fd });
        self.waiting.len() <= usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The client is gone, or cannot be sent to.
    pub(super) fn flush(&mut self, socket: impl AsFd) -> io::Result<Progress> {
        let mut progress = Progress {
            sent: 0,
            left: Left::Nothing,
        };
        while let Some(packet) = self.waiting.front() {
            let result = match &packet.fd {
                Some(fd) => packet::send(&socket, &packet.bytes, &[fd.as_fd()]),
                None => packet::send(&socket, &packet.bytes, &[]),
            };
            match result {
                Ok(()) => {
                    progress.sent += 1;
                    self.waiting.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    progress.left = Left::Full;
                    break;
                }
                Err(error) if is_shortage(&error) => {
                    progress.left = Left::Later;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(progress)
    }
}
