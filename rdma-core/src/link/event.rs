//! What a link tells: events, and why frames were dropped.

use super::Endpoint;
use crate::wire::{ParseError, State};

/// What the engine should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A session has begun.
    Up {
        /// Identity of the far backend.
        far_backend: [u8; 16],
        /// Its run.
        far_epoch: u64,
        /// What both sides can do.
        capabilities: u32,
    },
    /// The session has ended, and with it all streams: they are closed already.
    Down(DownReason),
    /// The far backend is another one than before, or another run of it. All streams are closed; `Up`
    /// follows.
    Rebooted {
        /// Identity of the far backend.
        far_backend: [u8; 16],
        /// Its run.
        far_epoch: u64,
    },
    /// Nothing was heard for half the idle timeout although an answer is due.
    Silent,
    /// Something was heard again after `Silent`.
    Heard,
    /// A message of the control channel.
    Control(Box<[u8]>),
    /// Bytes of a stream are in place, without a gap, up to `edge`.
    Arrived {
        /// This side's number of the stream.
        endpoint: Endpoint,
        /// Behind the last byte.
        edge: u64,
    },
    /// The far program has read up to `head`.
    Consumed {
        /// This side's number of the stream.
        endpoint: Endpoint,
        /// Behind the last byte.
        head: u64,
    },
    /// The far end has said something.
    State {
        /// This side's number of the stream.
        endpoint: Endpoint,
        /// All that it has said.
        state: State,
    },
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DownReason {
    /// Nobody answered for the idle timeout. HELLOs are sent again.
    Silent,
    /// The far end closed it, for this reason. The link rests.
    Closed(u32),
    /// The far end, the same run of it, has forgotten the session. `Up` follows.
    Forgotten,
    /// Nobody answered the HELLOs. The link rests.
    NoAnswer,
    /// [`super::Link::shut_down`] was called. The link rests.
    ShutDown,
}

/// Why a frame changed nothing (or, for [`Dropped::Early`] and [`Dropped::NoRoom`], must come again).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Dropped {
    /// Not a frame.
    #[error("malformed: {0}")]
    Malformed(ParseError),
    /// For a session that is not there.
    #[error("unknown session")]
    Session,
    /// Not made with the key.
    #[error("forged")]
    Forged,
    /// Not sealed, though there is a key.
    #[error("not sealed")]
    Unsealed,
    /// Sealed, though there is no key.
    #[error("sealed, and there is no key")]
    Sealed,
    /// It was here before.
    #[error("duplicate")]
    Duplicate,
    /// Too old to know whether it was here before, or numbered far ahead of any other.
    #[error("old")]
    Old,
    /// A HELLO of this very host.
    #[error("own")]
    Own,
    /// A HELLO or RESET that says nothing new.
    #[error("stale")]
    Stale,
    /// Acknowledges what was never sent.
    #[error("acknowledges what was never sent")]
    BadAck,
    /// For a stream that is expected but not open yet. It will come again.
    #[error("early")]
    Early,
    /// There is no room for what it brings. It will come again.
    #[error("no room")]
    NoRoom,
    /// ANNOUNCE is not for a link.
    #[error("not for a link")]
    NotForLink,
}
