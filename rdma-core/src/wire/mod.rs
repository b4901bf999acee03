//! The frames between two backends: total parsers and emitters, no state.
//!
//! A frame is a [`Header`] and, by its kind, a [`Hello`], an [`Announce`], nothing, or a sequence of
//! [`Operation`]s. Everything is big-endian. docs/protocol.md is normative.
//!
//! Parsing is total: any bytes give a value or a [`ParseError`], never a panic, and a reader may rely
//! on every documented range. What is emitted parses to the same value.

#![forbid(unsafe_code)]

mod ack;
mod announce;
mod header;
mod hello;
mod operation;
pub mod pairing;

pub use ack::{Ack, AckRanges, emit_ack};
pub use announce::{Announce, AnnouncedAddresses};
pub use header::{Header, Kind, flag};
pub use hello::{Hello, HelloTag};
pub use operation::{Consumed, Control, Operation, Operations, State, StateUpdate, Write, kind};

/// Version of the protocol between backends.
pub const WIRE_VERSION: u8 = 1;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;

/// Bytes of a HELLO, its header included.
pub const HELLO_BYTES: usize = 120;

/// Bytes in front of every operation: kind, flags, length.
pub const OPERATION_BYTES: usize = 4;

/// Bytes of a WRITE in front of its payload, the operation's own four included.
pub const WRITE_BYTES: usize = OPERATION_BYTES + 16;

/// Bytes of the authentication tag behind a sealed frame.
pub const TAG_BYTES: usize = 16;

/// Shortest DATA frame: what an Ethernet frame carries at least, so that no driver pads one and the
/// place of the tag is certain.
pub const FRAME_MIN: usize = 46;

/// Longest frame: what a UDP datagram over IPv4 carries.
pub const FRAME_MAX: usize = 65_507;

/// Most ranges in one acknowledgement: enough for any sane reordering, and half of the smallest frame.
pub const ACK_RANGES_MAX: usize = 64;

/// Longest control message.
pub const CONTROL_BYTES_MAX: usize = 1024;

/// Most addresses in one ANNOUNCE: they fit the smallest frame.
pub const ANNOUNCED_MAX: usize = 64;

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than the kind needs.
    #[error("{0} bytes are too short")]
    Short(usize),
    /// Another version of the protocol.
    #[error("wire version {0} is not {WIRE_VERSION}")]
    Version(u8),
    /// A frame kind that this version does not have.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// An operation that this version does not have.
    #[error("operation {0} is unknown")]
    Operation(u8),
    /// A field outside its documented range.
    #[error("field {0} is out of range")]
    Field(&'static str),
}
