//! Where each connection's memory lies: arenas per pair of programs, cut into equal places.
//!
//! The first arena of a pair is small and each further one twice as large, so that two programs with
//! one connection share little and two programs with a thousand need few mappings.

use std::collections::{BTreeMap, HashMap};

use rdma_core::layout::conn_bytes;

use crate::ids::{ArenaId, Process};

/// Places in the first arena of a pair.
const FIRST: u32 = 2;
/// Places in the largest.
const LARGEST: u32 = 64;

/// Two programs in either order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Couple(Process, Process);

impl Couple {
    /// The pair of `one` and `other`, which may be the same.
    pub fn of(one: Process, other: Process) -> Self {
        if one <= other {
            Self(one, other)
        } else {
            Self(other, one)
        }
    }

    /// Whether `process` is one of the two.
    pub fn has(&self, process: Process) -> bool {
        self.0 == process || self.1 == process
    }
}

/// Memory for one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The arena.
    pub arena: ArenaId,
    /// Where in it.
    pub offset: u64,
    /// Ring size as a power of two.
    pub ring_log2: u32,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// The arena does not exist yet.
    pub fresh: bool,
}

/// All arenas.
#[derive(Debug, Default)]
pub struct Carving {
    arenas: BTreeMap<ArenaId, Arena>,
    of_couple: HashMap<(Couple, u32), Vec<ArenaId>>,
    last: u32,
}

#[derive(Debug)]
struct Arena {
    couple: Couple,
    ring_log2: u32,
    free: Vec<u32>,
    places: u32,
    in_use: u32,
    /// One of the two programs has left: no new connections.
    closed: bool,
}

impl Arena {
    const fn bytes(&self) -> u64 {
        stride(self.ring_log2) * self.places as u64
    }
}

/// Distance between two places.
const fn stride(ring_log2: u32) -> u64 {
    conn_bytes(1 << ring_log2) as u64
}

impl Carving {
    /// A free place for a connection of `couple`, in a new arena if the present ones are full.
    /// `None` if arena numbers have run out.
    pub fn place(&mut self, couple: Couple, ring_log2: u32) -> Option<Place> {
        let list = self.of_couple.entry((couple, ring_log2)).or_default();
        for id in list.iter() {
            let Some(arena) = self.arenas.get_mut(id) else {
                continue;
            };
            if let Some(index) = arena.free.pop() {
                arena.in_use += 1;
                return Some(Place {
                    arena: *id,
                    offset: stride(ring_log2) * u64::from(index),
                    ring_log2,
                    arena_bytes: arena.bytes(),
                    fresh: false,
                });
            }
        }
        let grown = u32::try_from(list.len()).unwrap_or(u32::MAX).min(16);
        let places = (FIRST << grown).min(LARGEST);
        self.last = self.last.checked_add(1)?;
        let id = ArenaId(self.last);
        list.push(id);
        let arena = Arena {
            couple,
            ring_log2,
            // Lowest first.
            free: (1..places).rev().collect(),
            places,
            in_use: 1,
            closed: false,
        };
        let arena_bytes = arena.bytes();
        self.arenas.insert(id, arena);
        Some(Place {
            arena: id,
            offset: 0,
            ring_log2,
            arena_bytes,
            fresh: true,
        })
    }

    /// An arena of this number exists elsewhere: no other gets it.
    pub fn skip(&mut self, id: ArenaId) {
        self.last = self.last.max(id.0);
    }

    /// The highest number given out.
    pub const fn last(&self) -> ArenaId {
        ArenaId(self.last)
    }

    /// Takes a place back. `reusable`: its memory reads as zeros again. True if the arena is of no
    /// more use: drop it.
    #[must_use]
    pub fn release(&mut self, place: &Place, reusable: bool) -> bool {
        let Some(arena) = self.arenas.get_mut(&place.arena) else {
            return false;
        };
        arena.in_use = arena.in_use.saturating_sub(1);
        if reusable && let Ok(index) = u32::try_from(place.offset / stride(place.ring_log2)) {
            arena.free.push(index);
        }
        let useless = arena.in_use == 0 && (arena.closed || arena.free.is_empty());
        if useless {
            self.forget(place.arena);
        }
        useless
    }

    /// `process` has left. Returns the arenas that nobody uses any more: drop them.
    pub fn leave(&mut self, process: Process) -> Vec<ArenaId> {
        let mut empty = Vec::new();
        for (id, arena) in &mut self.arenas {
            if arena.couple.has(process) {
                arena.closed = true;
                if arena.in_use == 0 {
                    empty.push(*id);
                }
            }
        }
        for id in &empty {
            self.forget(*id);
        }
        empty
    }

    /// The arena could not be made, or is to be dropped.
    pub fn forget(&mut self, id: ArenaId) {
        let Some(arena) = self.arenas.remove(&id) else {
            return;
        };
        let key = (arena.couple, arena.ring_log2);
        if let Some(list) = self.of_couple.get_mut(&key) {
            list.retain(|other| *other != id);
            if list.is_empty() {
                self.of_couple.remove(&key);
            }
        }
    }

    /// Arenas that exist.
    pub fn len(&self) -> usize {
        self.arenas.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.arenas.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Process = Process(1);
    const B: Process = Process(2);

    #[test]
    fn arenas_grow_and_places_do_not_overlap() {
        let mut carving = Carving::default();
        let mut seen = std::collections::HashSet::new();
        let mut sizes = Vec::new();
        for _ in 0..300 {
            let place = carving.place(Couple::of(B, A), 16).unwrap();
            assert!(seen.insert((place.arena, place.offset)));
            assert!(place.offset + stride(16) <= place.arena_bytes);
            assert_eq!(place.offset % 4096, 0);
            if place.fresh {
                sizes.push(place.arena_bytes / stride(16));
            }
        }
        assert_eq!(sizes, [2, 4, 8, 16, 32, 64, 64, 64, 64]);
    }

    #[test]
    fn a_place_is_reused_only_when_it_was_cleared() {
        let mut carving = Carving::default();
        let couple = Couple::of(A, B);
        let first = carving.place(couple, 20).unwrap();
        let second = carving.place(couple, 20).unwrap();
        assert!(!carving.release(&first, false));
        let third = carving.place(couple, 20).unwrap();
        assert!(third.fresh, "the first place is lost");
        assert!(carving.release(&second, false), "nothing left of the first");
        assert!(!carving.release(&third, true));
        let again = carving.place(couple, 20).unwrap();
        assert_eq!((again.arena, again.fresh), (third.arena, false));
    }

    #[test]
    fn the_last_one_out_frees_the_arena() {
        let mut carving = Carving::default();
        let place = carving.place(Couple::of(A, B), 16).unwrap();
        assert_eq!(carving.leave(A), []);
        assert!(carving.release(&place, true));
        assert!(carving.is_empty());
        let idle = carving.place(Couple::of(A, A), 16).unwrap();
        assert!(!carving.release(&idle, true));
        assert_eq!(carving.leave(A), [idle.arena]);
    }

    #[test]
    fn ring_sizes_do_not_share_an_arena() {
        let mut carving = Carving::default();
        let small = carving.place(Couple::of(A, B), 16).unwrap();
        let large = carving.place(Couple::of(A, B), 22).unwrap();
        assert_ne!(small.arena, large.arena);
    }
}
