//! A frame on its way out: where it goes, the head that the link wrote, and the payload in ring memory.

use super::Address;
pub use super::sys::Slice;

/// One frame to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// To whom.
    pub to: Address,
    /// Everything before the payload.
    pub head: &'a [u8],
    /// The payload: one run of ring memory, or two where the ring wraps; unused ones are empty.
    pub payload: [Slice<'a>; 2],
}

impl<'a> Outgoing<'a> {
    /// A frame without payload.
    pub const fn of_head(to: Address, head: &'a [u8]) -> Self {
        Self {
            to,
            head,
            payload: [Slice::EMPTY; 2],
        }
    }

    /// Bytes on the wire, without what the driver puts around them.
    pub const fn len(&self) -> usize {
        let [first, second] = &self.payload;
        self.head.len() + first.len() + second.len()
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the frame to the end of `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head);
        for run in &self.payload {
            run.append_to(out);
        }
    }
}
