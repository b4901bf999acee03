//! How one direction of a connection moves from the kernel's TCP to the ring and back, and how it ends.
//!
//! ```text
//! receiver                                   sender
//!   arm: "I look at the ring too"  ------->    sees `armed` at its next send, nobody of its end is
//!                                              inside the kernel on this socket:
//!                                              counts the bytes ever sent through the kernel,
//!   sees Switched, accepts:        <-------    publishes them as `switch_at`; from now on: ring
//!   reads the kernel socket up to
//!   `switch_at`, then the ring
//!   reads the ring up to           <-------    goes back: `return_at` = bytes sent by ring; from now
//!   `return_at`, then the kernel               on: kernel
//!   leaves the ring at `retract_at`,
//!   then reads the kernel          ------->    sends what lies behind `retract_at` once more, by the
//!                                              kernel; from now on: kernel
//!   reads the ring up to `end_at`, <-------    shutdown or last close: `end_at` = bytes sent by ring,
//!   then asks the kernel (EOF, error)          then the kernel's own FIN or RST
//!   last close: `reader_gone`      ------->    leaves the ring; the kernel answers every later send
//! ```
//!
//! Directions are independent. Every position has one writer end, and is published with release order
//! behind what it announces. The one word that both ends write is the [`Route`] of a direction, by
//! compare-exchange: so exactly one of two contrary wishes (the sender goes back, the receiver leaves)
//! comes true. A direction goes to the ring and back at most once in a connection's memory.
//!
//! The acceptance matters: a receiver that has not yet seen the switch takes from the kernel whatever
//! is there. That is right as long as nothing follows the switch in the kernel, so a sender that wants to
//! go back before it was accepted cancels the switch and sends its ring bytes by the kernel itself.
//!
//! "Nobody inside the kernel" is a Dekker handshake in the end slot (see [`crate::slot::Inside`]).

#![forbid(unsafe_code)]

use crate::layout::EndState;
use crate::reason::Reason;
use crate::sync::{Ordering, full_barrier};

/// In `confirmed`: see [`EndState::let_go`].
const LET_GO: u32 = 2;

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

    /// Where the direction that this end sends goes. Both ends write the word: unknown values are
    /// [`Route::Kernel`], and each end acts on its own state first.
    #[inline(always)]
    pub fn route(&self) -> Route {
        Route::from_word(self.route.load(Ordering::Acquire))
    }

    fn reroute(&self, from: Route, to: Route) -> bool {
        self.route
            .compare_exchange(from as u32, to as u32, Ordering::SeqCst, Ordering::Acquire)
            .is_ok()
    }

    /// Sender: everything after `kernel_bytes` bytes goes to the ring. Once per connection. False: the
    /// far end has left its ring already.
    ///
    /// Like a message, a switch may have to wake a sleeping receiver: the caller goes on as after
    /// publishing bytes.
    #[must_use]
    pub fn switch(&self, kernel_bytes: u64) -> bool {
        self.switch_at.store(kernel_bytes, Ordering::Relaxed);
        let done = self.reroute(Route::Kernel, Route::Switched);
        full_barrier();
        done
    }

    /// Receiver, of the far end's words: whether there is a switch to accept.
    #[inline(always)]
    pub fn is_switched(&self) -> bool {
        matches!(
            self.route(),
            Route::Switched | Route::Accepted | Route::Returned
        )
    }

    /// Receiver, of the far end's words: accepts a switch. Bytes that the far end sent through the
    /// kernel before it; `None` if there is none (any more).
    pub fn accept(&self) -> Option<u64> {
        self.reroute(Route::Switched, Route::Accepted);
        matches!(self.route(), Route::Accepted | Route::Returned)
            .then(|| self.switch_at.load(Ordering::Relaxed))
    }

    /// Sender: the stream goes back to the kernel after `ring_bytes` bytes of the ring. False: not
    /// accepted yet (see [`EndState::cancel`]), or the receiver has left.
    #[must_use]
    pub fn give_back(&self, ring_bytes: u64) -> bool {
        self.return_at.store(ring_bytes, Ordering::Relaxed);
        let done = self.reroute(Route::Accepted, Route::Returned);
        full_barrier();
        done
    }

    /// Sender: takes a switch back that was not accepted. The receiver will not look at the ring: all
    /// its bytes must be sent by the kernel.
    #[must_use]
    pub fn cancel(&self) -> bool {
        self.reroute(Route::Switched, Route::Retracted)
    }

    /// Backend, for the sender of a relayed connection: the switch that it has just [taken back](Self::cancel) for
    /// that sender stands after all.
    pub fn resume_switch(&self) {
        let _ = self.reroute(Route::Retracted, Route::Switched);
    }

    /// Backend, for the sender of a relayed connection: a switch will never come. False: it has come.
    #[must_use]
    pub fn retract_never_switched(&self) -> bool {
        self.reroute(Route::Kernel, Route::Retracted)
    }

    /// Receiver, of the far end's words: where the ring's stream goes back to the kernel.
    #[inline(always)]
    pub fn returned_at(&self) -> Option<u64> {
        (self.route() == Route::Returned).then(|| self.return_at.load(Ordering::Relaxed))
    }

    /// Receiver: leaves its ring after `head` bytes of it; `far` is what the far end says. What lies
    /// behind is sent once more by the kernel.
    ///
    /// # Errors
    /// The far end went back to the kernel first, after so many bytes of the ring.
    pub fn retract(&self, far: &Self, head: u64) -> Result<(), u64> {
        self.retract_at.store(head, Ordering::Relaxed);
        let left = [Route::Kernel, Route::Switched, Route::Accepted]
            .into_iter()
            .any(|from| far.reroute(from, Route::Retracted));
        if !left && let Some(at) = far.returned_at() {
            return Err(at);
        }
        self.reader_gone.store(LEFT_RING, Ordering::SeqCst);
        full_barrier();
        Ok(())
    }

    /// Sender: where its far end left the ring; `far` is what the far end says. Its word, to be
    /// checked against what was sent.
    pub fn retracted_at(&self, far: &Self) -> Option<u64> {
        (self.route() == Route::Retracted).then(|| far.retract_at.load(Ordering::Acquire))
    }

    /// Backend, for the reader of a relayed connection: that reader has left its ring after `head` bytes of
    /// it, whatever the sender, which says `far`, wished meanwhile. False: too late, the sender has ended
    /// [for good](Self::finish).
    #[must_use]
    pub fn grant(&self, far: &Self, head: u64) -> bool {
        if far.route() == Route::Finished {
            return false;
        }
        self.retract_at.store(head, Ordering::Relaxed);
        self.granted.store(1, Ordering::Release);
        for from in [Route::Kernel, Route::Switched, Route::Accepted] {
            if far.reroute(from, Route::Retracted) {
                break;
            }
        }
        if far.route() == Route::Finished {
            // Nobody looks at it there.
            self.granted.store(0, Ordering::Relaxed);
            return false;
        }
        let _ =
            self.reader_gone
                .compare_exchange(0, LEFT_RING, Ordering::SeqCst, Ordering::Relaxed);
        full_barrier();
        true
    }

    /// Sender of a relayed connection, after it has [ended](Self::end): nothing will be sent again, whoever leaves
    /// the ring. False: its reader has left already, or a backend asks for that, and it has to be minded first.
    #[must_use]
    pub fn finish(&self) -> bool {
        self.reroute(Route::Switched, Route::Finished);
        self.route() != Route::Retracted
    }

    /// Backend, for the reader of a relayed connection, of whatever is behind the place where that reader left its
    /// ring: the far program sends it once more.
    pub fn confirm(&self) {
        self.confirmed.store(1, Ordering::Release);
    }

    /// Reader of a relayed connection that has left its ring: whether the backend has [said so](Self::confirm).
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire) != 0
    }

    /// Sender of a relayed connection that took its switch back: whether the far backend has said where
    /// the reader left the ring.
    pub fn is_granted(&self) -> bool {
        self.granted.load(Ordering::Acquire) != 0
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

    /// Backend, for a program that vanished: as [`EndState::leave`], with bytes unread, which TCP answers by RST.
    pub fn leave_unread(&self) {
        self.reader_gone.store(LEFT_UNREAD, Ordering::SeqCst);
        full_barrier();
    }

    /// Whether the far program vanished with bytes unread.
    pub fn has_left_unread(&self) -> bool {
        self.reader_gone.load(Ordering::Acquire) == LEFT_UNREAD
    }

    /// Program, of a relayed connection: the kernel says that the far end's stream is over. The far backend shall find
    /// out whether there is anybody left to say so by ring.
    pub fn doubt(&self) {
        self.doubts.store(1, Ordering::Release);
        full_barrier();
    }

    /// Whether the program has [said so](Self::doubt).
    pub fn is_doubting(&self) -> bool {
        self.doubts.load(Ordering::Acquire) != 0
    }

    /// Whether the far end's readers are gone.
    #[inline(always)]
    pub fn is_reader_gone(&self) -> bool {
        self.reader_gone.load(Ordering::Acquire) != 0
    }

    /// This end, which a guest's program has, uses the memory no more: for a host that nobody else could tell.
    pub fn let_go(&self) {
        self.confirmed.store(LET_GO, Ordering::Release);
    }

    /// Whether this end uses the memory no more.
    pub fn has_let_go(&self) -> bool {
        self.confirmed.load(Ordering::Acquire) == LET_GO
    }

    /// Whether this end has left its ring, and not closed since.
    pub fn has_left_ring(&self) -> bool {
        self.reader_gone.load(Ordering::Acquire) == LEFT_RING
    }

    /// Whether this end has closed, not only left its ring.
    pub fn is_closed(&self) -> bool {
        !matches!(self.reader_gone.load(Ordering::Acquire), 0 | LEFT_RING)
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

/// [`EndState::reader_gone`] after [`EndState::retract`].
const LEFT_RING: u32 = 2;
/// [`EndState::reader_gone`] after [`EndState::leave_unread`].
const LEFT_UNREAD: u32 = 3;

/// Where a direction goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum Route {
    /// Through the kernel; never was on the ring.
    Kernel = 0,
    /// By ring, says the sender.
    Switched = 1,
    /// By ring, and the receiver knows.
    Accepted = 2,
    /// Through the kernel again, after `return_at`.
    Returned = 3,
    /// The receiver has left the ring at its `retract_at`, or the sender has taken back a switch that
    /// nobody had seen.
    Retracted = 4,
    /// By ring, to its end: relayed connections only.
    Finished = 5,
}

impl Route {
    const fn from_word(word: u32) -> Self {
        match word {
            1 => Self::Switched,
            2 => Self::Accepted,
            3 => Self::Returned,
            4 => Self::Retracted,
            5 => Self::Finished,
            _ => Self::Kernel,
        }
    }
}

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
        assert_eq!(state.accept(), None);
        state.arm();
        assert!(state.switch(12_345));
        state.end(99);
        assert!(state.is_armed());
        assert_eq!(state.accept(), Some(12_345));
        assert_eq!(state.accept(), Some(12_345));
        assert_eq!(state.ended_at(), Some(99));
        assert!(!state.is_reader_gone());
        state.leave();
        assert!(state.is_reader_gone());
    }

    fn ends() -> (HeapRegion, ConnView, ConnView) {
        let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_MIN));
        let zero = ConnView::new(&heap.region(), End::Zero, RING_LOG2_MIN).expect("fits");
        let one = ConnView::new(&heap.region(), End::One, RING_LOG2_MIN).expect("fits");
        (heap, zero, one)
    }

    #[test]
    fn a_sender_goes_back_only_after_its_switch_was_accepted() {
        let (_heap, sender, receiver) = ends();
        let state = &sender.mine.state;
        assert!(state.switch(7));
        assert!(!state.give_back(0));
        assert_eq!(receiver.theirs.state.accept(), Some(7));
        assert!(!state.cancel());
        assert!(state.give_back(40));
        assert_eq!(receiver.theirs.state.returned_at(), Some(40));
        assert_eq!(
            receiver.mine.state.retract(&receiver.theirs.state, 30),
            Err(40)
        );
        assert!(!sender.theirs.state.is_reader_gone());
    }

    #[test]
    fn a_switch_that_was_taken_back_is_never_accepted() {
        let (_heap, sender, receiver) = ends();
        assert!(sender.mine.state.switch(7) && sender.mine.state.cancel());
        assert_eq!(receiver.theirs.state.accept(), None);
        assert!(!sender.mine.state.switch(8));
    }

    #[test]
    fn a_receiver_leaves_at_any_time_and_the_sender_hears() {
        for stage in 0..3 {
            let (_heap, sender, receiver) = ends();
            if stage > 0 {
                assert!(sender.mine.state.switch(7));
            }
            if stage > 1 {
                assert_eq!(receiver.theirs.state.accept(), Some(7));
            }
            assert_eq!(
                receiver.mine.state.retract(&receiver.theirs.state, 30),
                Ok(())
            );
            assert_eq!(
                sender.mine.state.retracted_at(&sender.theirs.state),
                Some(30)
            );
            assert!(sender.theirs.state.is_reader_gone());
            assert!(!sender.mine.state.switch(9) && !sender.mine.state.give_back(50));
        }
    }

    #[test]
    fn garbage_in_the_broken_word_is_a_broken_connection() {
        let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_MIN));
        let view = ConnView::new(&heap.region(), End::Zero, RING_LOG2_MIN).unwrap();
        view.mine.state.broken.store(0xffff_ffff, Ordering::Relaxed);
        assert_eq!(view.mine.state.broken(), Some(Reason::RingCorrupt));
    }
}
