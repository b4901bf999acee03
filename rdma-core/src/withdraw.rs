//! Off the ring from outside: what the daemon does to the two ends of a connection, under the locks of
//! their directions, so that the programs need not take part.
//!
//! A program finds the state of its direction changed as if another thread of its own had changed it. It
//! must be woken, because it may sleep where only the ring was going to wake it. What the receiver has
//! not read when it leaves is sent once more through the sender's socket: by the sender's program at its
//! next call ([`TxState::Ring`] while the far end has left), or by the daemon with [`begin_resending`].
//!
//! All of it may be called again and again; what is done already is left alone.

#![forbid(unsafe_code)]

use crate::handshake::Route;
use crate::layout::EndState;
use crate::slot::{RxSlot, RxState, TxSlot, TxState};
use crate::sync::Ordering;

/// Where a sending direction stands afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sending {
    /// Off the ring.
    Off,
    /// On the ring: its switch has not been accepted yet. It will be, or the receiver leaves.
    Unaccepted,
    /// The receiver has left the ring, and the sender has yet to send what lies behind once more.
    Behind,
}

/// Where a receiving direction stands afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receiving {
    /// Off the ring.
    Off,
    /// It has yet to read what was sent by ring, and then leaves by itself.
    Reading,
    /// On the ring, and nobody has told its sender to go back.
    Engaged,
}

/// Under the lock of the sending direction of an end that says `own`: sends no more by ring.
pub fn stop_sending(tx: &TxSlot, own: &EndState) -> Sending {
    match tx.state() {
        TxState::Kernel => {
            tx.set_state(TxState::Returned);
            Sending::Off
        }
        TxState::Ring if own.give_back(tx.cursor().tail) => {
            tx.set_state(TxState::Returned);
            Sending::Off
        }
        TxState::Ring if own.route() == Route::Switched => Sending::Unaccepted,
        TxState::Ring | TxState::Returning => Sending::Behind,
        TxState::Switching | TxState::Done | TxState::Returned => Sending::Off,
    }
}

/// Under the lock of the receiving direction of an end that says `own`, after [`stop_sending`] at the far
/// end, which says `far`: reads no more from the ring than was sent there.
pub fn stop_receiving(rx: &RxSlot, own: &EndState, far: &EndState) -> Receiving {
    let head = rx.cursor().head;
    match rx.state() {
        RxState::Kernel => rx.set_state(RxState::Returned),
        // Nothing was accepted, so nothing was read from the ring, and nothing need be.
        RxState::Armed if !matches!(far.route(), Route::Accepted | Route::Returned) => {
            // After its end the far end sends nothing again.
            let ended = far.route() == Route::Switched && far.ended_at().is_some();
            if ended || own.retract(far, head).is_err() {
                return Receiving::Reading;
            }
            rx.set_state(RxState::Returned);
        }
        RxState::Armed | RxState::Draining | RxState::Ring => match far.route() {
            Route::Returned if rx.state() == RxState::Ring && far.returned_at() == Some(head) => {
                rx.set_state(RxState::Returned);
            }
            // Whoever left was killed before he noted it here.
            Route::Retracted => rx.set_state(RxState::Returned),
            Route::Returned => return Receiving::Reading,
            _ if far.ended_at().is_some() => return Receiving::Reading,
            _ => return Receiving::Engaged,
        },
        RxState::Done | RxState::Returned => {}
    }
    Receiving::Off
}

/// Under the lock of the receiving direction of an end that says `own`: leaves the ring where it stands,
/// for an end that has nobody left who reads rings. `sent` is what the far end has published.
///
/// False: bytes are lost, because the far end does not send them again.
#[must_use]
pub fn leave_receiving(rx: &RxSlot, own: &EndState, far: &EndState, sent: u64) -> bool {
    let head = rx.cursor().head;
    let kept = match rx.state() {
        RxState::Kernel => true,
        RxState::Armed | RxState::Draining | RxState::Ring => {
            match own.retract(far, head) {
                // Looked at afterwards, as the far end looks at its route after it has ended.
                Ok(()) => far.ended_at().is_none() || sent == head,
                Err(at) => at == head,
            }
        }
        RxState::Done | RxState::Returned => return true,
    };
    rx.set_state(RxState::Returned);
    kept
}

/// Bytes of a ring that are to be sent once more by the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rest {
    /// Position of the first.
    pub from: u64,
    /// Position behind the last.
    pub to: u64,
    /// Index of the first in the ring's data.
    pub index: usize,
}

impl Rest {
    /// How many.
    pub const fn len(&self) -> u64 {
        self.to - self.from
    }

    /// None.
    pub const fn is_empty(&self) -> bool {
        self.from == self.to
    }
}

/// Under the lock of the sending direction of an end that says `own`, whose ring holds `capacity` bytes (a
/// power of two): what its far end, which says `far`, left in the ring, as far as it has not been sent
/// again. `None`: the far end has not left, or somebody wrote nonsense.
///
/// The direction is [`TxState::Returning`] then; follow with [`note_resent`].
pub fn begin_resending(
    tx: &TxSlot,
    own: &EndState,
    far: &EndState,
    capacity: usize,
) -> Option<Rest> {
    let from = match tx.state() {
        TxState::Ring => own.retracted_at(far)?,
        TxState::Returning => tx.resend.load(Ordering::Relaxed),
        _ => return None,
    };
    let cursor = tx.cursor();
    let left = cursor.tail.checked_sub(from)?;
    if left > capacity as u64 || from < cursor.head {
        return None;
    }
    tx.resend.store(from, Ordering::Relaxed);
    tx.set_state(TxState::Returning);
    let distance = from.wrapping_sub(cursor.base) & (capacity as u64 - 1);
    Some(Rest {
        from,
        to: cursor.tail,
        index: usize::try_from(distance).ok()?,
    })
}

/// Under the same lock: `bytes` of the rest were sent. The direction is off the ring after the last.
pub fn note_resent(tx: &TxSlot, rest: &Rest, bytes: u64) {
    let from = rest.from.saturating_add(bytes).min(rest.to);
    tx.resend.store(from, Ordering::Relaxed);
    tx.tcp_bytes.fetch_add(from - rest.from, Ordering::Relaxed);
    if from == rest.to {
        tx.set_state(TxState::Returned);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::layout::{ConnView, End, RING_LOG2_MIN, conn_bytes};
    use crate::mem::HeapRegion;
    use crate::ring::{RxCursor, TxCursor};

    const CAPACITY: usize = 1 << RING_LOG2_MIN;

    /// One direction: who sends, who receives.
    struct Direction {
        _heap: HeapRegion,
        own: &'static EndState,
        far: &'static EndState,
        tx: TxSlot,
        rx: RxSlot,
    }

    impl Direction {
        fn new() -> Self {
            let heap = HeapRegion::new(conn_bytes(CAPACITY));
            let view = ConnView::new(&heap.region(), End::Zero, RING_LOG2_MIN).expect("it fits");
            Self {
                _heap: heap,
                own: &view.mine.state,
                far: &view.theirs.state,
                tx: TxSlot::default(),
                rx: RxSlot::default(),
            }
        }

        fn armed() -> Self {
            let direction = Self::new();
            direction.far.arm();
            direction.rx.set_state(RxState::Armed);
            direction
        }

        fn switched(tail: u64) -> Self {
            let direction = Self::armed();
            assert!(direction.own.switch(5));
            direction.tx.set_state(TxState::Ring);
            direction.set_tail(tail, 0);
            direction
        }

        fn accepted(tail: u64, head: u64) -> Self {
            let direction = Self::switched(tail);
            assert_eq!(direction.own.accept(), Some(5));
            direction.rx.set_state(RxState::Ring);
            direction.rx.set_cursor(&RxCursor { head, tail });
            direction
        }

        fn set_tail(&self, tail: u64, head: u64) {
            let base = 0;
            self.tx.set_cursor(&TxCursor { tail, head, base });
        }

        fn stop(&self) -> (Sending, Receiving) {
            let sending = stop_sending(&self.tx, self.own);
            (sending, stop_receiving(&self.rx, self.far, self.own))
        }

        fn states(&self) -> (TxState, RxState) {
            (self.tx.state(), self.rx.state())
        }

        fn rest(&self) -> Option<Rest> {
            begin_resending(&self.tx, self.own, self.far, CAPACITY)
        }
    }

    const BACK: (TxState, RxState) = (TxState::Returned, RxState::Returned);

    #[test]
    fn what_never_left_the_kernel_stays_there() {
        for direction in [Direction::new(), Direction::armed()] {
            assert_eq!(direction.stop(), (Sending::Off, Receiving::Off));
            assert_eq!(direction.states(), BACK);
        }
    }

    #[test]
    fn a_reader_first_reads_what_was_sent_by_ring() {
        let direction = Direction::accepted(40, 30);
        assert_eq!(direction.stop(), (Sending::Off, Receiving::Reading));
        assert_eq!(direction.own.returned_at(), Some(40));
        direction.rx.set_cursor(&RxCursor { head: 40, tail: 40 });
        assert_eq!(direction.stop(), (Sending::Off, Receiving::Off));
        assert_eq!(direction.states(), BACK);
    }

    #[test]
    fn a_switch_that_nobody_accepted_leaves_bytes_to_be_sent_again() {
        let direction = Direction::switched(40);
        assert_eq!(direction.stop(), (Sending::Unaccepted, Receiving::Off));
        assert_eq!(direction.stop(), (Sending::Behind, Receiving::Off));
        let rest = direction.rest().expect("the receiver has left");
        assert_eq!((rest.from, rest.to, rest.index), (0, 40, 0));
        note_resent(&direction.tx, &rest, 10);
        assert_eq!(direction.tx.state(), TxState::Returning);
        let rest = direction.rest().expect("there is more");
        assert_eq!((rest.from, rest.len(), rest.index), (10, 30, 10));
        note_resent(&direction.tx, &rest, 30);
        assert_eq!(direction.states(), BACK);
        assert_eq!(direction.rest(), None);
        assert_eq!(direction.tx.tcp_bytes.load(Ordering::Relaxed), 40);
    }

    #[test]
    fn a_switch_that_is_accepted_meanwhile_is_given_back_the_next_time() {
        let direction = Direction::switched(40);
        assert_eq!(
            stop_sending(&direction.tx, direction.own),
            Sending::Unaccepted
        );
        assert_eq!(direction.own.accept(), Some(5));
        direction.rx.set_state(RxState::Draining);
        let receiving = stop_receiving(&direction.rx, direction.far, direction.own);
        assert_eq!(receiving, Receiving::Engaged);
        assert_eq!(direction.stop(), (Sending::Off, Receiving::Reading));
    }

    #[test]
    fn a_direction_that_has_ended_is_read_to_its_end() {
        let direction = Direction::accepted(40, 30);
        direction.own.end(40);
        direction.tx.set_state(TxState::Done);
        assert_eq!(direction.stop(), (Sending::Off, Receiving::Reading));
        assert_eq!(direction.states(), (TxState::Done, RxState::Ring));
        let unseen = Direction::switched(40);
        unseen.own.end(40);
        unseen.tx.set_state(TxState::Done);
        assert_eq!(unseen.stop(), (Sending::Off, Receiving::Reading));
        assert_eq!(unseen.own.accept(), Some(5));
    }

    #[test]
    fn an_end_that_leaves_loses_only_what_nobody_sends_again() {
        let leave = |direction: &Direction, sent| {
            leave_receiving(&direction.rx, direction.far, direction.own, sent)
        };
        let direction = Direction::accepted(40, 30);
        assert!(leave(&direction, 40));
        assert_eq!(direction.rx.state(), RxState::Returned);
        assert_eq!(direction.rest().map(|rest| rest.from), Some(30));

        let ended = Direction::accepted(40, 30);
        ended.own.end(40);
        assert!(!leave(&ended, 40));
        let read = Direction::accepted(40, 40);
        read.own.end(40);
        assert!(leave(&read, 40));
        let back = Direction::accepted(40, 30);
        assert!(back.own.give_back(40));
        assert!(!leave(&back, 40));
        assert!(leave(&Direction::new(), 0));
    }

    #[test]
    fn a_place_outside_the_ring_is_not_believed() {
        for (tail, head, at) in [
            (40, 0, 41),
            (40, 35, 34),
            (CAPACITY as u64 + 40, 0, 39),
            (40, 0, u64::MAX),
        ] {
            let direction = Direction::accepted(40, 30);
            direction.set_tail(tail, head);
            assert_eq!(direction.far.retract(direction.own, at), Ok(()));
            assert_eq!(direction.rest(), None, "{tail} {head} {at}");
            assert_eq!(direction.tx.state(), TxState::Ring);
        }
    }

    #[test]
    fn the_index_counts_from_the_base() {
        let direction = Direction::accepted(40, 30);
        let tail = CAPACITY as u64 + 7;
        direction.tx.set_cursor(&TxCursor {
            tail,
            head: 8,
            base: 3,
        });
        assert_eq!(direction.far.retract(direction.own, tail - 5), Ok(()));
        let rest = direction.rest().expect("inside the ring");
        assert_eq!((rest.len(), rest.index), (5, CAPACITY - 1));
    }
}
