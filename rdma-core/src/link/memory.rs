//! Where arriving bytes go.

use super::Endpoint;

/// The rings of this side, as a link sees them.
pub trait Memory {
    /// Checks key and range, and copies. Called for bytes beyond the contiguous edge only, possibly out of
    /// order, and possibly more than once for the same ones.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was written then.
    fn place(
        &mut self,
        endpoint: Endpoint,
        rkey: u32,
        offset: u64,
        payload: &[u8],
    ) -> Result<(), Refusal>;
}

/// Why bytes have no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The key is unknown, revoked, or not for this memory: the bytes are dropped for good.
    Key,
    /// The range is outside the memory: the bytes are dropped for good.
    Range,
    /// Not now: the bytes must come again.
    Busy,
}
