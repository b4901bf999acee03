//! What a guest's frontend driver and its backend tell each other.

mod body;
mod down;
mod format;
mod up;

pub use body::{Bell, Grant, GuestContext, GuestHello, GuestWelcome};
pub use down::Down;
pub use up::Up;

use super::CHANNEL_VERSION;
use crate::layout::LAYOUT_VERSION;
use crate::wire::pairing::{BadPairing, PAIRING_MAX};

/// Longest message in bytes.
pub const MESSAGE_BYTES: usize = 8 + PAIRING_MAX;

/// Why bytes are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadMessage {
    /// Another version.
    #[error("channel version {0} is not {CHANNEL_VERSION}")]
    Version(u32),
    /// Another layout.
    #[error("layout version {0} is not {LAYOUT_VERSION}")]
    Layout(u32),
    /// An unknown kind.
    #[error("channel message of unknown kind {0}")]
    Kind(u32),
    /// Too short or too long for its kind.
    #[error("channel message of kind {kind} with {len} bytes")]
    Length {
        /// Its kind.
        kind: u32,
        /// Bytes behind the kind.
        len: usize,
    },
    /// A field outside its range.
    #[error("channel message with a bad {0}")]
    Field(&'static str),
    /// What it carries is none.
    #[error(transparent)]
    Pairing(#[from] BadPairing),
}

#[cfg(all(test, not(loom)))]
mod tests;
