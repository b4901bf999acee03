//! A frame that is to be sent, as the engine gets it.

use super::Endpoint;

/// The frame that is about to be sent, but for its payload. Its memory is used again and again.
#[derive(Debug, Default)]
pub struct Head {
    pub(super) bytes: Vec<u8>,
}

impl Head {
    /// Empty.
    pub fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(256),
        }
    }

    /// What [`super::Link::poll_transmit`] wrote.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Bytes in the [`Head`].
    pub head_len: usize,
    /// What follows them on the wire.
    pub payload: Option<Payload>,
    /// Head and payload must be put together, followed by room for a tag, and go through [`super::Link::seal`].
    pub sealed: bool,
    /// Bytes in all: head, payload, tag.
    pub size: usize,
}

/// Bytes of a stream, to be read from its ring when the frame is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    /// This side's number of the stream.
    pub endpoint: Endpoint,
    /// Offset of the first byte.
    pub offset: u64,
    /// At least 1.
    pub len: usize,
}
