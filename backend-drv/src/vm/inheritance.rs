//! What of a region was in use when the daemon before us ended: all of it below a mark may have been. Each part
//! of that which is known to be in use is claimed, once, and given back by itself; the rest is not given out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rdma_core::channel::HEAP_START;
use rdma_core::layout::conn_bytes;

use super::region::Hole;
use crate::carving::Place;
use crate::ids::ArenaId;
use crate::space::PAGE;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    /// Nothing of it lies behind this.
    to: u64,
    /// Length by beginning of what was claimed, also if it was given back.
    claimed: BTreeMap<u64, u64>,
    /// Places in use, by arena.
    places: HashMap<ArenaId, BTreeSet<u64>>,
}

impl Inheritance {
    /// Everything below `to`.
    pub(super) fn below(to: u64) -> Self {
        Self {
            to,
            ..Self::default()
        }
    }

    /// Whether no place of a connection is in use.
    pub(super) fn is_idle(&self) -> bool {
        self.places.is_empty()
    }

    /// Claims a part. False: it does not lie in what was inherited, or somebody has it.
    pub(super) fn claim(&mut self, at: u64, bytes: u64) -> bool {
        let Some(end) = at.checked_add(bytes).filter(|end| *end <= self.to) else {
            return false;
        };
        let before = self.claimed.range(..end).next_back();
        let is_free = before.is_none_or(|(other, length)| other + length <= at);
        let fits = at >= HEAP_START && at.is_multiple_of(PAGE) && bytes > 0 && is_free;
        if fits {
            self.claimed.insert(at, bytes);
        }
        fits
    }

    /// Claims the place of a connection in an arena that lies in `hole`. False: as for [`Inheritance::claim`].
    pub(super) fn claim_place(&mut self, hole: Hole, place: &Place) -> bool {
        let bytes = stride(place);
        let fits = place.offset.is_multiple_of(bytes)
            && place
                .offset
                .checked_add(bytes)
                .is_some_and(|end| end <= hole.bytes);
        let at = hole.at.checked_add(place.offset).filter(|_| fits);
        let is_ours = at.is_some_and(|at| self.claim(at, bytes));
        if is_ours {
            let places = self.places.entry(place.arena).or_default();
            places.insert(place.offset);
        }
        is_ours
    }

    /// All has been claimed that is in use: the rest, beginnings and lengths.
    pub(super) fn finish(&mut self) -> Vec<(u64, u64)> {
        let mut rest = Vec::new();
        let mut at = HEAP_START;
        let end = [(self.to, 0)];
        for (next, bytes) in std::mem::take(&mut self.claimed).into_iter().chain(end) {
            if next > at {
                rest.push((at, next - at));
            }
            at = at.max(next + bytes);
        }
        self.to = 0;
        rest
    }

    /// Whether an arena was inherited, and a place of it is in use.
    pub(super) fn has(&self, arena: ArenaId) -> bool {
        self.places.contains_key(&arena)
    }

    /// The place of a connection is used no more: its length, and whether it was the last one of its arena. `None`: it
    /// was not claimed.
    pub(super) fn release(&mut self, place: &Place) -> Option<(u64, bool)> {
        let places = self.places.get_mut(&place.arena)?;
        places.remove(&place.offset).then_some(())?;
        let is_last = places.is_empty();
        if is_last {
            self.places.remove(&place.arena);
        }
        Some((stride(place), is_last))
    }
}

/// How much the connection at a place takes.
pub(super) fn stride(place: &Place) -> u64 {
    conn_bytes(1 << place.ring_log2) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(arena: u32, offset: u64) -> Place {
        Place {
            arena: ArenaId(arena),
            offset,
            ring_log2: 16,
            arena_bytes: 2 * conn_bytes(1 << 16) as u64,
            fresh: false,
        }
    }

    #[test]
    fn nobody_gets_what_another_has() {
        let mut all = Inheritance::below(HEAP_START + 10 * PAGE);
        let at = |pages: u64| HEAP_START + pages * PAGE;
        assert!(all.claim(at(2), 2 * PAGE));
        for (page, pages) in [(2, 2), (1, 2), (3, 1), (0, 10), (9, 2), (20, 1), (5, 0)] {
            assert!(!all.claim(at(page), pages * PAGE), "{pages} at {page}");
        }
        assert!(!all.claim(at(5) + 1, PAGE) && !all.claim(HEAP_START - PAGE, PAGE));
        assert!(!all.claim(u64::MAX - PAGE + 1, PAGE));
        assert!(all.claim(at(0), 2 * PAGE) && all.claim(at(4), 6 * PAGE));
    }

    #[test]
    fn what_nobody_claims_is_the_rest() {
        let at = |pages: u64| HEAP_START + pages * PAGE;
        let mut all = Inheritance::below(at(10));
        assert!(all.claim(at(2), 2 * PAGE) && all.claim(at(4), PAGE) && all.claim(at(9), PAGE));
        let rest = all.finish();
        assert_eq!(rest, [(at(0), 2 * PAGE), (at(5), 4 * PAGE)]);
        assert!(!all.claim(at(0), PAGE), "it is given out");
        assert_eq!(all.finish(), []);
        let mut none = Inheritance::default();
        assert_eq!(none.finish(), []);
        let mut all = Inheritance::below(at(3));
        assert_eq!(all.finish(), [(at(0), 3 * PAGE)]);
    }

    #[test]
    fn a_place_is_claimed_once_and_given_back_once() {
        let mut all = Inheritance::below(1 << 30);
        let bytes = stride(&place(1, 0));
        let hole = Hole {
            at: HEAP_START,
            bytes: 2 * bytes,
        };
        assert!(all.claim_place(hole, &place(1, 0)) && all.claim_place(hole, &place(1, bytes)));
        for (arena, offset) in [(1, 0), (2, bytes), (1, PAGE), (1, 2 * bytes)] {
            assert!(!all.claim_place(hole, &place(arena, offset)), "{offset}");
        }
        assert_eq!(all.release(&place(1, 0)), Some((bytes, false)));
        assert_eq!(all.release(&place(1, 0)), None);
        assert!(all.has(ArenaId(1)) && !all.is_idle());
        assert_eq!(all.release(&place(1, bytes)), Some((bytes, true)));
        assert!(all.is_idle() && !all.has(ArenaId(1)));
        assert!(!all.claim_place(hole, &place(1, 0)), "it may be somebody's");
    }
}
