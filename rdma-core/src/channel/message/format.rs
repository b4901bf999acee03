//! How a message is laid out: its kind, a word, its body; and which values a body may have.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{BadMessage, Grant, GuestContext, MESSAGE_BYTES};
use crate::channel::MEMBERS;
use crate::event::{CONTEXTS, WaitRef};
use crate::layout::{End, RING_LOG2_MAX, RING_LOG2_MIN, conn_bytes};
use crate::wire::pairing::{PAIRING_MAX, Pairing, RawNames};

/// Memory and whose it is.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Held {
    pub(super) grant: Grant,
    pub(super) names: RawNames,
}

/// A connection and something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct About {
    pub(super) connection: u64,
    pub(super) what: u32,
    reserved: u32,
}

/// A program and something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Program {
    process: u32,
    reserved: u32,
    at: u64,
}

pub(super) const HELLO: u32 = 1;
pub(super) const PROGRAM: u32 = 2;
pub(super) const PROGRAM_GONE: u32 = 3;
pub(super) const CONTEXT: u32 = 4;
pub(super) const PAIRING: u32 = 5;
pub(super) const ENDED: u32 = 6;
pub(super) const DEPARTED: u32 = 7;
pub(super) const WITHDRAW: u32 = 8;
pub(super) const RETRACTED: u32 = 9;
pub(super) const KICK: u32 = 10;
pub(super) const WELCOME: u32 = 11;
pub(super) const REFUSED: u32 = 12;
pub(super) const GRANT: u32 = 13;
pub(super) const AGAIN: u32 = 14;
pub(super) const EXAMINE: u32 = 15;
pub(super) const HOLDS: u32 = 16;
pub(super) const TOLD: u32 = 17;
pub(super) const LOST: u32 = 18;

/// A message under construction: kind, a word, body.
pub(super) struct Out<'a>(pub(super) &'a mut [u8; MESSAGE_BYTES]);

impl Out<'_> {
    pub(super) fn put<T: IntoBytes + Immutable>(self, kind: u32, word: u32, body: &T) -> usize {
        self.put_bytes(kind, word, body.as_bytes())
    }

    fn put_bytes(self, kind: u32, word: u32, body: &[u8]) -> usize {
        let parts = [&kind.to_ne_bytes()[..], &word.to_ne_bytes()[..], body];
        let mut length = 0;
        for part in parts {
            if let Some(place) = self.0.get_mut(length..length + part.len()) {
                place.copy_from_slice(part);
                length += part.len();
            }
        }
        length
    }
}

pub(super) fn about(connection: u64, what: u32) -> About {
    About {
        connection,
        what,
        reserved: 0,
    }
}

pub(super) fn program(process: u32, at: u64) -> Program {
    Program {
        process,
        reserved: 0,
        at,
    }
}

pub(super) fn put_pairing(out: Out<'_>, word: u32, message: &Pairing) -> usize {
    let mut bytes = [0; PAIRING_MAX];
    let length = message.emit(&mut bytes);
    out.put_bytes(PAIRING, word, bytes.get(..length).unwrap_or_default())
}

/// A message as it came.
pub(super) struct In<'a> {
    pub(super) kind: u32,
    pub(super) word: u32,
    pub(super) body: &'a [u8],
}

impl<'a> In<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, BadMessage> {
        let short = BadMessage::Length {
            kind: 0,
            len: bytes.len(),
        };
        let (kind, rest) = u32::read_from_prefix(bytes).map_err(|_| short)?;
        let (word, body) = u32::read_from_prefix(rest).map_err(|_| short)?;
        Ok(Self { kind, word, body })
    }

    pub(super) fn body<T: FromBytes>(&self) -> Result<T, BadMessage> {
        T::read_from_bytes(self.body).map_err(|_| BadMessage::Length {
            kind: self.kind,
            len: self.body.len(),
        })
    }

    pub(super) fn connection(&self) -> Result<(u64, u32), BadMessage> {
        let body: About = self.body()?;
        require(body.connection != 0, "connection")?;
        Ok((body.connection, body.what))
    }

    pub(super) fn connection_and_flag(
        &self,
        name: &'static str,
    ) -> Result<(u64, bool), BadMessage> {
        let (connection, what) = self.connection()?;
        require(what <= 1, name)?;
        Ok((connection, what == 1))
    }

    pub(super) fn process(&self) -> Result<u32, BadMessage> {
        let body: Program = self.body()?;
        process_number(body.process)
    }

    pub(super) fn program(&self) -> Result<(u32, u64), BadMessage> {
        let Program { process, at, .. } = self.body()?;
        Ok((process_number(process)?, page(at)?))
    }

    pub(super) fn context(&self) -> Result<GuestContext, BadMessage> {
        let body: GuestContext = self.body()?;
        process_number(body.process)?;
        require(body.context < CONTEXTS, "context")?;
        require(body.member < MEMBERS, "member")?;
        Ok(body)
    }

    pub(super) fn kick(&self) -> Result<(u32, u32), BadMessage> {
        let process = self.process()?;
        require(self.word < CONTEXTS, "context")?;
        Ok((process, self.word))
    }
}

pub(super) fn require(good: bool, field: &'static str) -> Result<(), BadMessage> {
    if good {
        Ok(())
    } else {
        Err(BadMessage::Field(field))
    }
}

pub(super) fn process_number(process: u32) -> Result<u32, BadMessage> {
    require(process != 0 && process <= WaitRef::PROCESS_MAX, "process")?;
    Ok(process)
}

pub(super) fn page(at: u64) -> Result<u64, BadMessage> {
    require(at.is_multiple_of(4096), "place")?;
    Ok(at)
}

pub(super) fn grant_of(body: Grant) -> Result<Grant, BadMessage> {
    require(body.connection != 0, "connection")?;
    process_number(body.peer)?;
    page(body.at)?;
    page(body.offset)?;
    require(End::try_from(body.end).is_ok(), "end")?;
    require(body.relayed <= 1, "relayed")?;
    let known = (RING_LOG2_MIN..=RING_LOG2_MAX).contains(&body.ring_log2);
    require(known, "ring_log2")?;
    let end = body
        .offset
        .checked_add(conn_bytes(1 << body.ring_log2) as u64);
    require(end.is_some_and(|end| end <= body.arena_bytes), "arena")?;
    require(body.at.checked_add(body.arena_bytes).is_some(), "arena")?;
    Ok(body)
}
