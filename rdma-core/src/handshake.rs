//! How one direction of a connection moves from the kernel's TCP to the ring, and how it ends.
//!
//! ```text
//! receiver                                   sender
//!   arm: "I look at the ring too"  ------->    sees `armed` at its next send, nobody of its end is
//!                                              inside the kernel on this socket:
//!                                              counts the bytes ever sent through the kernel,
//!   sees `switched`:               <-------    publishes them as `switch_at`; from now on: ring
//!   reads the kernel socket up to
//!   `switch_at`, then the ring
//!   reads the ring up to `end_at`, <-------    shutdown or last close: `end_at` = bytes sent by ring,
//!   then asks the kernel (EOF, error)          then the kernel's own FIN or RST
//!   last close: `reader_gone`      ------->    leaves the ring; the kernel answers every later send
//! ```
//!
//! Directions are independent. Each word has one writer end; values are published with release
//! order behind what they announce. "Nobody inside the kernel" is a Dekker handshake in the end slot
//! (see [`crate::slot::Inside`]).

#![forbid(unsafe_code)]

use crate::layout::EndState;
use crate::reason::Reason;
use crate::sync::{Ordering, full_barrier};

impl EndState {
    /// Receiver: from now on every call of this end that waits or reads looks at the ring.
    pub fn arm(&self) {
        self.armed.store(1, Ordering::SeqCst);
        full_barrier();
    }

    /// Sender: whether the far end has armed.
    #[inline(always)]
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Acquire) == 1
    }

    /// Sender: everything after `kernel_bytes` bytes goes to the ring. Once per connection.
    ///
    /// Like a message, a switch may have to wake a sleeping receiver: the caller goes on as after
    /// publishing bytes.
    pub fn switch(&self, kernel_bytes: u64) {
        self.switch_at.store(kernel_bytes, Ordering::Relaxed);
        self.switched.store(1, Ordering::Release);
        full_barrier();
    }

    /// Receiver: bytes that the far end sent through the kernel before it switched.
    #[inline(always)]
    pub fn switched_at(&self) -> Option<u64> {
        (self.switched.load(Ordering::Acquire) == 1).then(|| self.switch_at.load(Ordering::Relaxed))
    }

    /// Sender: no byte after `ring_bytes` will come through the ring.
    pub fn end(&self, ring_bytes: u64) {
        self.end_at.store(ring_bytes, Ordering::Relaxed);
        self.ended.store(1, Ordering::Release);
        full_barrier();
    }

    /// Receiver: where the far end's ring stream ends, if it has ended.
    #[inline(always)]
    pub fn ended_at(&self) -> Option<u64> {
        (self.ended.load(Ordering::Acquire) == 1).then(|| self.end_at.load(Ordering::Relaxed))
    }

    /// Last close of this end: nobody will read its ring any more.
    pub fn leave(&self) {
        self.reader_gone.store(1, Ordering::SeqCst);
        full_barrier();
    }

    /// This end leaves its ring, but its kernel socket lives on in somebody who knows no rings: what
    /// follows goes through the kernel again.
    pub fn hand_over(&self) {
        self.reader_gone.store(HANDED_OVER, Ordering::SeqCst);
        full_barrier();
    }

    /// Whether the far end left its ring by [`EndState::hand_over`]: bytes that it had not read are lost,
    /// and no reset of the kernel's will say so.
    pub fn is_handed_over(&self) -> bool {
        self.reader_gone.load(Ordering::Acquire) == HANDED_OVER
    }

    /// Whether the far end's readers are gone.
    #[inline(always)]
    pub fn is_reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Acquire) != 0
    }

    /// Breaks the connection: both ends answer ECONNRESET from now on.
    pub fn break_with(&self, reason: Reason) {
        self.broken.store(reason.code(), Ordering::SeqCst);
        full_barrier();
    }

    /// Why this end broke the connection, if it did. An unknown code is still a broken connection.
    #[inline(always)]
    pub fn broken(&self) -> Option<Reason> {
        match self.broken.load(Ordering::Acquire) {
            0 => None,
            code => Some(Reason::from_code(code).unwrap_or(Reason::RingCorrupt)),
        }
    }
}

/// [`EndState::reader_gone`] after [`EndState::hand_over`].
const HANDED_OVER: u32 = 2;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::layout::{ConnView, End, RING_LOG2_MIN, conn_bytes};
    use crate::mem::HeapRegion;

    #[test]
    fn a_direction_is_switched_and_ended_once_published() {
        let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_MIN));
        let view = ConnView::new(&heap.region(), End::Zero, RING_LOG2_MIN).unwrap();
        let state = &view.mine.state;
        assert!(!state.is_armed());
        assert_eq!(state.switched_at(), None);
        state.arm();
        state.switch(12_345);
        state.end(99);
        assert!(state.is_armed());
        assert_eq!(state.switched_at(), Some(12_345));
        assert_eq!(state.ended_at(), Some(99));
        assert!(!state.is_reader_gone());
        state.leave();
        assert!(state.is_reader_gone() && !state.is_handed_over());
        state.hand_over();
        assert!(state.is_reader_gone() && state.is_handed_over());
    }

    #[test]
    fn garbage_in_the_broken_word_is_a_broken_connection() {
        let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_MIN));
        let view = ConnView::new(&heap.region(), End::Zero, RING_LOG2_MIN).unwrap();
        view.mine.state.broken.store(0xffff_ffff, Ordering::Relaxed);
        assert_eq!(view.mine.state.broken(), Some(Reason::RingCorrupt));
    }
}
