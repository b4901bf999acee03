//! A region from one daemon to the next: what is told, and what is taken over.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rdma_core::event::EVENT_BYTES;
use serde::{Deserialize, Serialize};

use super::{ARENAS, ARENAS_PER_REGION, Heap, Hole, Region, is_in_region, region_of};
use crate::carving::{Carving, Place};
use crate::ids::ArenaId;
use crate::memory::Mapping;
use crate::shared::{ConnectionArena, EventMemory};
use crate::space::Space;
use crate::vm::inheritance::{Inheritance, stride};
use crate::vm::lease::{Lease, Leases};

/// Memory for events that has no driver: it is not used for anything else.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Idle {
    /// Of ports.
    pub events: Vec<u64>,
    /// Of drivers.
    pub heaps: Vec<Heap>,
}

/// What the next daemon has to know of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Whatever is given out lies below this.
    pub used_to: u64,
    /// Arenas have smaller numbers, or this.
    pub last_arena: u32,
}

/// Marks are moved in steps, so that few have to be written down.
const STEP: u64 = 16 << 20;
const ARENA_STEP: u32 = 64;

impl Region {
    /// A region that a daemon before us has made, in which everything below a mark may be in use.
    ///
    /// # Errors
    /// It is not what it should be.
    pub fn restore(index: usize, memory: OwnedFd, bytes: u64, mark: Mark) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mapping = Arc::new(Mapping::of_sealed(&memory, len)?);
        let mut carving = Carving::default();
        let index = u32::try_from(index).unwrap_or(0);
        carving.skip(ArenaId(ARENAS + index * ARENAS_PER_REGION));
        carving.skip(ArenaId(mark.last_arena));
        let memory = Arc::new(memory);
        Ok(Self {
            leases: Leases::of(&memory),
            memory,
            mapping,
            bytes,
            space: Space::new(mark.used_to, bytes),
            carving,
            arenas: HashMap::new(),
            inherited: Inheritance::below(mark.used_to),
            used_to: mark.used_to,
            ports: BTreeSet::new(),
            changes: 0,
            idle_events: Vec::new(),
            idle_heaps: Vec::new(),
            was_lent: true,
        })
    }

    /// A member of a daemon before us has this.
    pub fn note_lease(&mut self, lease: Lease) {
        self.leases.note(lease);
    }

    /// A daemon before us has given out this memory for the connection at `place`, of an arena that begins at `at`.
    /// `None`: it cannot have, or somebody has it already.
    pub fn inherit_place(&mut self, at: u64, place: &Place) -> Option<ConnectionArena> {
        let hole = Hole {
            at,
            bytes: place.arena_bytes,
        };
        let last = self.carving.last();
        let is_ours = is_in_region(place.arena)
            && region_of(place.arena) == region_of(last)
            && place.arena <= last;
        let is_known = self.arenas.get(&place.arena);
        let fits = is_known.is_none_or(|known| *known == hole && self.inherited.has(place.arena));
        let arena = ConnectionArena::part(&self.whole(), hole.at, hole.bytes)?;
        if !is_ours || !fits || !self.inherited.claim_place(hole, place) {
            return None;
        }
        self.arenas.insert(place.arena, hole);
        self.changes += 1;
        Some(arena)
    }

    /// The same, but nobody will ever say that it is used no more.
    pub fn set_aside(&mut self, at: u64, place: &Place) {
        let _is_ours = self.inherited.claim(at + place.offset, stride(place));
    }

    /// The same of memory for events, which is a port's.
    pub fn inherit_events(&mut self, at: u64) -> Option<EventMemory> {
        let events = self.events_at(at)?;
        let idle = self.idle_events.iter().position(|idle| *idle == at)?;
        self.idle_events.swap_remove(idle);
        self.ports.insert(at);
        self.changes += 1;
        Some(events)
    }

    /// The same of what a driver has.
    pub fn inherit_heap(&mut self, heap: Heap) -> bool {
        self.inherited.claim(heap.at, heap.bytes)
    }

    /// What was for events, and is nobody's until it is inherited.
    pub fn inherit_idle(&mut self, idle: &Idle) {
        for at in &idle.events {
            if self.inherited.claim(*at, EVENT_BYTES as u64) {
                self.idle_events.push(*at);
            }
        }
        for heap in &idle.heaps {
            if self.inherit_heap(*heap) {
                self.idle_heaps.push(*heap);
            }
        }
    }

    /// Memory for events that is no driver's.
    pub fn idle(&self) -> Idle {
        let events = self.ports.iter().chain(&self.idle_events);
        Idle {
            events: events.copied().collect(),
            heaps: self.idle_heaps.clone(),
        }
    }

    /// Everything of a daemon before us that is in use has been inherited: the rest is free.
    pub fn inherit_rest(&mut self) {
        for (at, bytes) in self.inherited.finish() {
            self.give_back(at, bytes);
        }
    }

    /// Whether somebody has the memory who has none of these leases.
    pub fn is_lent_but(&self, known: &BTreeSet<Lease>) -> bool {
        self.leases.any_but(known)
    }

    /// What the next daemon has to know.
    pub fn mark(&self) -> Mark {
        Mark {
            used_to: self.used_to.next_multiple_of(STEP).min(self.bytes),
            last_arena: self.carving.last().0.next_multiple_of(ARENA_STEP),
        }
    }
}
