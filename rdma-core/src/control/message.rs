//! Framing: header, kinds, and the total parser.

#[cfg(test)]
mod tests;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::body::{
    Context, ContextRef, Hello, Paired, Peer, PeerRegister, Query, Refused, Register, Revoke,
    SlotRef, Text, Welcome,
};
use super::{CONTROL_MAGIC, CONTROL_VERSION, MESSAGE_MAX, kind};
use crate::event::{CONTEXTS, WaitRef};
use crate::layout::{End, MACHINES, RING_LOG2_MAX, RING_LOG2_MIN, conn_bytes};
use crate::slot::SLOTS;

/// In front of every message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// [`CONTROL_MAGIC`].
    pub magic: u32,
    /// [`CONTROL_VERSION`].
    pub version: u16,
    /// One of [`kind`].
    pub kind: u16,
    /// Bytes of the whole message, this header included.
    pub length: u32,
    /// Zero.
    pub reserved: u32,
}

/// How many descriptors may come beside a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FdCount {
    /// At least.
    pub min: usize,
    /// At most.
    pub max: usize,
}

/// A parsed message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each variant is documented at its body")]
pub enum Message<'a> {
    Hello(Hello),
    Context(Context),
    Register(Register),
    Unregister(SlotRef),
    Kick(ContextRef),
    Query(Query),
    Retracted(SlotRef),
    Revoke(Revoke),
    Welcome(Welcome),
    Refused(Refused),
    Peer(Peer),
    PeerContext(ContextRef),
    PeerRegister(PeerRegister),
    Paired(Paired),
    PeerGone(Peer),
    ContextKnown(Context),
    Report(Text, &'a str),
    Failure(Text, &'a str),
}

/// Why bytes are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than a header, or than the kind needs.
    #[error("{0} bytes are too short")]
    Short(usize),
    /// More bytes than the header says, or than any message has.
    #[error("{0} bytes are too long")]
    Long(usize),
    /// Not our protocol.
    #[error("magic {0:#010x} is not a Viaduct control message")]
    Magic(u32),
    /// Another version of our protocol.
    #[error("control version {0} is not {CONTROL_VERSION}")]
    Version(u16),
    /// A kind that this version does not have.
    #[error("message kind {0} is unknown")]
    Kind(u16),
    /// A field outside its documented range.
    #[error("field {0} is out of range")]
    Field(&'static str),
    /// Wrong number of descriptors beside the message.
    #[error("{0} descriptors came beside the message")]
    Fds(usize),
}

impl Message<'_> {
    /// The kind, for the header.
    pub const fn kind(&self) -> u16 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::Context(_) => kind::CONTEXT,
            Self::Register(_) => kind::REGISTER,
            Self::Unregister(_) => kind::UNREGISTER,
            Self::Kick(_) => kind::KICK,
            Self::Query(_) => kind::QUERY,
            Self::Retracted(_) => kind::RETRACTED,
            Self::Revoke(_) => kind::REVOKE,
            Self::Welcome(_) => kind::WELCOME,
            Self::Refused(_) => kind::REFUSED,
            Self::Peer(_) => kind::PEER,
            Self::PeerContext(_) => kind::PEER_CONTEXT,
            Self::PeerRegister(_) => kind::PEER_REGISTER,
            Self::Paired(_) => kind::PAIRED,
            Self::PeerGone(_) => kind::PEER_GONE,
            Self::ContextKnown(_) => kind::CONTEXT_KNOWN,
            Self::Report(..) => kind::REPORT,
            Self::Failure(..) => kind::FAILURE,
        }
    }

    /// How many descriptors go beside the message.
    pub const fn fds(&self) -> FdCount {
        match self {
            Self::Hello(_) => FdCount { min: 2, max: 2 },
            Self::Context(_)
            | Self::Register(_)
            | Self::Welcome(_)
            | Self::Peer(_)
            | Self::PeerContext(_)
            | Self::PeerRegister(_) => FdCount { min: 1, max: 1 },
            Self::Paired(_) => FdCount { min: 0, max: 1 },
            _ => FdCount { min: 0, max: 0 },
        }
    }

    /// Writes the message into `buffer` and returns its length; `None` if it does not fit.
    pub fn emit(&self, buffer: &mut [u8]) -> Option<usize> {
        let (body, text): (&[u8], &[u8]) = match self {
            Self::Hello(body) => (body.as_bytes(), &[]),
            Self::Context(body) | Self::ContextKnown(body) => (body.as_bytes(), &[]),
            Self::Register(body) => (body.as_bytes(), &[]),
            Self::Unregister(body) | Self::Retracted(body) => (body.as_bytes(), &[]),
            Self::Kick(body) | Self::PeerContext(body) => (body.as_bytes(), &[]),
            Self::Query(body) => (body.as_bytes(), &[]),
            Self::Revoke(body) => (body.as_bytes(), &[]),
            Self::Welcome(body) => (body.as_bytes(), &[]),
            Self::Refused(body) => (body.as_bytes(), &[]),
            Self::Peer(body) | Self::PeerGone(body) => (body.as_bytes(), &[]),
            Self::Paired(body) => (body.as_bytes(), &[]),
            Self::PeerRegister(body) => (body.as_bytes(), &[]),
            Self::Report(body, text) | Self::Failure(body, text) => {
                (body.as_bytes(), text.as_bytes())
            }
        };
        let length = size_of::<Header>() + body.len() + text.len();
        if length > MESSAGE_MAX {
            return None;
        }
        let header = Header {
            magic: CONTROL_MAGIC,
            version: CONTROL_VERSION,
            kind: self.kind(),
            length: u32::try_from(length).ok()?,
            reserved: 0,
        };
        let out = buffer.get_mut(..length)?;
        let (head, rest) = out.split_at_mut(size_of::<Header>());
        head.copy_from_slice(header.as_bytes());
        let (middle, end) = rest.split_at_mut(body.len());
        middle.copy_from_slice(body);
        end.copy_from_slice(text);
        Some(length)
    }
}

/// Reads one message. `fds` is the number of descriptors that came beside it.
///
/// # Errors
/// [`ParseError`]; the descriptors must then be closed by the caller.
pub fn parse(bytes: &[u8], fds: usize) -> Result<Message<'_>, ParseError> {
    let (header, rest) =
        Header::read_from_prefix(bytes).map_err(|_| ParseError::Short(bytes.len()))?;
    if header.magic != CONTROL_MAGIC {
        return Err(ParseError::Magic(header.magic));
    }
    if header.version != CONTROL_VERSION {
        return Err(ParseError::Version(header.version));
    }
    let said = header.length as usize;
    if bytes.len() > MESSAGE_MAX || said < bytes.len() {
        return Err(ParseError::Long(bytes.len()));
    }
    if said > bytes.len() {
        return Err(ParseError::Short(bytes.len()));
    }
    let message = match header.kind {
        kind::HELLO => Message::Hello(whole(rest)?),
        kind::CONTEXT => Message::Context(whole(rest)?),
        kind::REGISTER => Message::Register(whole(rest)?),
        kind::UNREGISTER => Message::Unregister(whole(rest)?),
        kind::KICK => Message::Kick(whole(rest)?),
        kind::QUERY => Message::Query(whole(rest)?),
        kind::RETRACTED => Message::Retracted(whole(rest)?),
        kind::REVOKE => Message::Revoke(whole(rest)?),
        kind::WELCOME => Message::Welcome(whole(rest)?),
        kind::REFUSED => Message::Refused(whole(rest)?),
        kind::PEER => Message::Peer(whole(rest)?),
        kind::PEER_CONTEXT => Message::PeerContext(whole(rest)?),
        kind::PAIRED => Message::Paired(whole(rest)?),
        kind::PEER_REGISTER => Message::PeerRegister(whole(rest)?),
        kind::PEER_GONE => Message::PeerGone(whole(rest)?),
        kind::CONTEXT_KNOWN => Message::ContextKnown(whole(rest)?),
        kind::REPORT | kind::FAILURE => {
            let (body, text) =
                Text::read_from_prefix(rest).map_err(|_| ParseError::Short(rest.len()))?;
            let text = core::str::from_utf8(text).map_err(|_| ParseError::Field("text"))?;
            if header.kind == kind::REPORT {
                Message::Report(body, text)
            } else {
                Message::Failure(body, text)
            }
        }
        other => return Err(ParseError::Kind(other)),
    };
    check(&message)?;
    let count = message.fds();
    if fds < count.min || fds > count.max {
        return Err(ParseError::Fds(fds));
    }
    Ok(message)
}

/// A body of exactly the right length.
fn whole<T: FromBytes>(bytes: &[u8]) -> Result<T, ParseError> {
    if bytes.len() > size_of::<T>() {
        return Err(ParseError::Long(bytes.len()));
    }
    T::read_from_bytes(bytes).map_err(|_| ParseError::Short(bytes.len()))
}

/// The documented ranges.
fn check(message: &Message<'_>) -> Result<(), ParseError> {
    let require = |good: bool, field: &'static str| {
        if good {
            Ok(())
        } else {
            Err(ParseError::Field(field))
        }
    };
    match message {
        Message::Hello(_) | Message::Query(_) | Message::Report(..) | Message::Failure(..) => {
            Ok(())
        }
        Message::Context(body) | Message::ContextKnown(body) => {
            require(body.context < CONTEXTS, "context")
        }
        Message::Register(body) => {
            require(body.slot < SLOTS, "slot")?;
            require(matches!(body.side, 1 | 2), "side")?;
            require(matches!(body.family, 4 | 6), "family")
        }
        Message::Unregister(body) | Message::Retracted(body) => require(body.slot < SLOTS, "slot"),
        Message::Revoke(body) => {
            require(body.what & !Revoke::KNOWN == 0, "what")?;
            let bits = match body.family {
                4 => 32,
                6 => 128,
                _ if body.what & Revoke::ADDRESS == 0 => u8::MAX,
                _ => return Err(ParseError::Field("family")),
            };
            require(body.prefix <= bits, "prefix")
        }
        Message::Kick(body) | Message::PeerContext(body) => {
            require(body.process <= WaitRef::PROCESS_MAX, "process")?;
            require(body.context < CONTEXTS, "context")
        }
        Message::Welcome(body) => {
            require(body.process <= WaitRef::PROCESS_MAX, "process")?;
            require(body.at.is_multiple_of(4096), "at")?;
            require(body.machine < MACHINES, "machine")
        }
        Message::PeerRegister(body) => {
            require(body.process <= WaitRef::PROCESS_MAX, "process")?;
            require(body.context < CONTEXTS, "context")?;
            require(body.value < 1 << 31, "value")
        }
        Message::Refused(body) => require(body.slot < SLOTS, "slot"),
        Message::Peer(body) | Message::PeerGone(body) => {
            require(body.process <= WaitRef::PROCESS_MAX, "process")?;
            require(body.at.is_multiple_of(4096), "at")
        }
        Message::Paired(body) => {
            require(body.slot < SLOTS, "slot")?;
            require(body.conn_id != 0, "conn_id")?;
            require(body.peer <= WaitRef::PROCESS_MAX, "peer")?;
            require(End::try_from(body.end).is_ok(), "end")?;
            require(body.relayed <= 1, "relayed")?;
            require(
                (RING_LOG2_MIN..=RING_LOG2_MAX).contains(&body.ring_log2),
                "ring_log2",
            )?;
            require(body.offset.is_multiple_of(4096), "offset")?;
            require(body.at.is_multiple_of(4096), "at")?;
            let file_end = body.at.checked_add(body.arena_bytes);
            require(file_end.is_some(), "at")?;
            let end = body
                .offset
                .checked_add(conn_bytes(1 << body.ring_log2) as u64);
            require(
                end.is_some_and(|end| end <= body.arena_bytes),
                "arena_bytes",
            )
        }
    }
}
