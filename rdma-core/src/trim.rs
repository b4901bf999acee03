//! Which part of a ring's memory is given back while the ring is empty, and when that may be done.
//!
//! A burst that its reader did not keep up with leaves up to the whole ring in memory. A ring that is empty and quiet
//! needs no more than its beginning, where the next message goes (see [`crate::ring`]). The rest may be taken away
//! under the lock of the sending direction, while the far end has read everything: nobody writes then, and what lies
//! there will not be read again. It reads as zeros afterwards, as it did before it was first used.

#![forbid(unsafe_code)]

use core::ops::Range;

use crate::layout::{ProducerWords, ring_offset, ring_span};
use crate::ring::RESTART_BYTES;
use crate::slot::{TxSlot, TxState};

/// Bytes of a ring that are kept, its words included, in whole pages: what a stream needs whose reader keeps up.
pub const KEPT_BYTES: usize = (size_of::<ProducerWords>() + RESTART_BYTES).next_multiple_of(4096);

/// What the ring that end `end` produces can do without while it is empty, in the memory of the connection.
pub const fn spare(end: usize, ring_bytes: usize) -> Range<usize> {
    let start = ring_offset(end, ring_bytes);
    let kept = if KEPT_BYTES < ring_span(ring_bytes) {
        KEPT_BYTES
    } else {
        ring_span(ring_bytes)
    };
    start + kept..start + ring_span(ring_bytes)
}

/// Under the lock of a sending direction, whose far end has published that it has read up to `head`: whether nothing
/// lies in the ring. If so its memory may be given back before the lock is freed, and the direction knows from now on
/// that all was read, so that its next message goes to the ring's beginning.
#[must_use]
pub fn settle(tx: &TxSlot, head: u64) -> bool {
    let mut cursor = tx.cursor();
    let is_whole = matches!(
        tx.state(),
        TxState::Ring | TxState::Done | TxState::Returned
    );
    if !is_whole || cursor.tail != head {
        return false;
    }
    if cursor.head != head {
        cursor.head = head;
        tx.set_cursor(&cursor);
    }
    true
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::layout::{ConnView, End, RING_LOG2_MAX, RING_LOG2_MIN, conn_bytes};
    use crate::mem::HeapRegion;
    use crate::ring::{Consumer, Producer, RxCursor, TxCursor};

    #[test]
    fn what_is_spare_lies_behind_what_is_kept_and_inside_the_ring() {
        for log2 in RING_LOG2_MIN..=RING_LOG2_MAX {
            let bytes = 1usize << log2;
            for end in 0..2 {
                let spare = spare(end, bytes);
                let start = ring_offset(end, bytes);
                assert_eq!(spare.end, start + ring_span(bytes));
                assert!(spare.start.is_multiple_of(4096) && spare.start > start);
                assert_eq!(spare.is_empty(), bytes <= 128 * 1024, "{bytes}");
            }
        }
    }

    #[test]
    fn a_ring_is_empty_only_if_all_was_read_and_nothing_is_to_be_sent_again() {
        let tx = TxSlot::default();
        let cursor = TxCursor {
            tail: 40,
            head: 10,
            base: 0,
        };
        tx.set_cursor(&cursor);
        for state in [TxState::Kernel, TxState::Switching, TxState::Returning] {
            tx.set_state(state);
            assert!(!settle(&tx, 40), "{state:?}");
        }
        tx.set_state(TxState::Ring);
        for head in [0, 39, 41, u64::MAX] {
            assert!(!settle(&tx, head), "{head}");
        }
        assert_eq!(tx.cursor(), cursor);
        assert!(settle(&tx, 40));
        assert_eq!(tx.cursor().head, 40);
        for state in [TxState::Done, TxState::Returned] {
            tx.set_state(state);
            assert!(settle(&tx, 40), "{state:?}");
        }
    }

    #[test]
    fn after_that_small_messages_stay_in_what_is_kept() {
        const LOG2: u32 = 20;
        let heap = HeapRegion::new(conn_bytes(1 << LOG2));
        let view = |end| ConnView::new(&heap.region(), end, LOG2).expect("it fits");
        let (near, far) = (view(End::Zero), view(End::One));
        let (sending, receiving) = (Producer::of(&near), Consumer::of(&far));
        let tx = TxSlot::default();
        tx.set_state(TxState::Ring);
        let mut cursor = TxCursor::default();
        let mut rx = RxCursor::default();
        let burst = vec![1; 1 << LOG2];
        assert_eq!(sending.write_slice(&mut cursor, &burst), Ok(1 << LOG2));
        sending.publish(&cursor, 0, 0);
        tx.set_cursor(&cursor);
        let mut bytes = vec![0; 1 << LOG2];
        assert_eq!(receiving.read_slice(&mut rx, &mut bytes), Ok(1 << LOG2));
        receiving.publish(&rx);
        assert!(settle(&tx, receiving.published()));
        let mut cursor = tx.cursor();
        for _ in 0..1000 {
            let (at, run) = sending.raw_run(&mut cursor, 100);
            let start = near.tx_data.raw_run(0, 1).0;
            let index = at as usize - start as usize;
            assert!(run == 100 && index + run <= KEPT_BYTES, "{index}");
            sending.advance(&mut cursor, run);
            cursor.hint(cursor.tail);
        }
    }
}
