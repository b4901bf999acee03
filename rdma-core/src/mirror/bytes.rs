//! The bytes of both directions: the far program's are placed into the ring that the near one reads, the near program's
//! are taken from the ring that it writes.

use super::Mirror;
use crate::mem::RingBytes;
use crate::ring::{Consumer, OutOfRing, Producer};
use crate::sync::full_barrier;

impl Mirror {
    /// Takes bytes of the far program; `edge` is what [`Mirror::arrived`] was last told. Bytes that nobody
    /// wants any more are dropped without a word.
    ///
    /// # Errors
    /// They would not lie in the free part of the ring.
    pub fn place(&mut self, position: u64, bytes: &[u8]) -> Result<(), OutOfRing> {
        if self.down_over {
            return Ok(());
        }
        let ring = Producer::of(&self.view);
        let end = position.checked_add(bytes.len() as u64).ok_or(OutOfRing)?;
        let fresh = self.placed == self.down.tail;
        if fresh || end.saturating_sub(self.down.head) > ring.capacity() {
            // The program may have read meanwhile.
            let _ = ring.refresh(&mut self.down);
        }
        let is_empty = fresh && self.down.head == self.down.tail;
        ring.place(&mut self.down, position, bytes, is_empty)?;
        self.placed = self.placed.max(end);
        Ok(())
    }

    /// If the program has read all that was put into its ring: puts nothing there from now on, so that somebody else can
    /// give its memory back, until [`Mirror::may_fill`]. False: there is something.
    #[must_use]
    pub fn keep_empty(&mut self) -> bool {
        // Nonsense is found by the next look.
        let _ = Producer::of(&self.view).refresh(&mut self.down);
        self.kept_empty = self.down.used() == 0 && self.placed == self.down.tail;
        self.kept_empty
    }

    /// Bytes may be put into the program's ring again.
    pub const fn may_fill(&mut self) {
        self.kept_empty = false;
    }

    /// Whether nothing may be [placed](Mirror::place) now.
    pub const fn is_kept_empty(&self) -> bool {
        self.kept_empty
    }

    /// All bytes up to `edge` have been placed: the program may read them. True: it may have to be woken.
    pub fn arrived(&mut self, edge: u64) -> bool {
        if self.down_over || edge <= self.down.tail || edge > self.placed {
            return false;
        }
        self.down.tail = edge;
        self.show();
        true
    }

    /// The far program has read our program's bytes up to `head`. True: whoever waits for space is to be
    /// woken.
    pub fn consumed(&mut self, head: u64) -> bool {
        if head <= self.up.head || head > self.up.tail {
            return false;
        }
        self.up.head = head;
        let ring = Consumer::of(&self.view);
        ring.publish(&self.up);
        full_barrier();
        // As any reader does: not at the first free byte, and whatever we knew of the tail. Nonsense in it is
        // found by the next look.
        ring.refresh(&mut self.up)
            .map_or(true, |used| used <= ring.capacity() / 2)
    }

    /// Where the bytes of the program's ring stand, and the index of `position` among them. They are there if
    /// `position` lies between what was consumed and what was produced.
    pub fn up_data(&self, position: u64) -> (&RingBytes, usize) {
        let distance = position.wrapping_sub(self.up_base) & (self.capacity() - 1);
        let index = usize::try_from(distance).unwrap_or(0);
        (&self.view.rx_data, index)
    }

    /// Lets the program read what lies before the tail.
    pub(super) fn show(&mut self) {
        let ring = Producer::of(&self.view);
        ring.publish(&self.down, self.up.head, self.cpu);
        full_barrier();
        self.settle();
    }
}
