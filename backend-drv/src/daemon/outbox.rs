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
    /// Some are left: go on when the socket takes more.
    pub(super) blocked: bool,
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
            blocked: false,
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
                    progress.blocked = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(progress)
    }
}
