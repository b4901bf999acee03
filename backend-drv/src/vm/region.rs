//! The memory that virtual machines share with the backend, and with each other if they are of one tenant.

mod handover;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rdma_core::channel::{
    CACHED_START, CHANNEL_VERSION, CONTROL_AREA_BYTES, HEAP_START, REGION_MAGIC, RegionHeader,
    control_offset,
};
use rdma_core::event::EVENT_BYTES;
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::sync::Ordering;
use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::inheritance::Inheritance;
use super::lease::{Lease, Leases};
use super::persistent::write_info;
use crate::carving::{Carving, Couple, Place};
use crate::ids::{ArenaId, Process};
use crate::memory::Mapping;
use crate::shared::{ConnectionArena, EventMemory, Whole, sealed_memory};
use crate::space::Space;

pub use handover::{Idle, Mark};

/// Arenas of regions are numbered apart from those of programs of this host, and of other regions.
const ARENAS: u32 = 1 << 30;
const ARENAS_PER_REGION: u32 = 1 << 20;

/// The number of the region that an arena lies in.
pub(super) const fn region_of(arena: ArenaId) -> u32 {
    (arena.0 & !ARENAS) / ARENAS_PER_REGION
}

/// Whether an arena lies in a region.
pub const fn is_in_region(arena: ArenaId) -> bool {
    arena.0 & ARENAS != 0
}

/// Memory for the events of a driver's programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Heap {
    /// Where it begins.
    pub at: u64,
    /// How much it is.
    pub bytes: u64,
}

/// Where an arena lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hole {
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// One region.
#[derive(Debug)]
pub struct Region {
    memory: Arc<OwnedFd>,
    mapping: Arc<Mapping>,
    bytes: u64,
    space: Space,
    carving: Carving,
    arenas: HashMap<ArenaId, Hole>,
    /// Of a daemon before us.
    inherited: Inheritance,
    /// Everything that was ever given out ends before here.
    used_to: u64,
    /// Event memory that is given out.
    ports: BTreeSet<u64>,
    changes: u64,
    /// Event memory that is not given out. Programs that have slept over the end of another one may write to that one's:
    /// here it costs a wake-up, in somebody's ring it would be bytes.
    idle_events: Vec<u64>,
    /// The same for all programs of a driver.
    idle_heaps: Vec<Heap>,
    leases: Leases,
    /// Somebody may have written to it.
    was_lent: bool,
}

impl Region {
    /// Makes region number `index`, of `bytes` bytes, a power of two.
    ///
    /// # Errors
    /// No descriptor or address space to be had.
    pub fn create(index: usize, bytes: u64) -> io::Result<Self> {
        let memory = sealed_memory("viaduct-region", bytes)?;
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mapping = Arc::new(Mapping::of_sealed(&memory, len)?);
        let mut carving = Carving::default();
        let index = u32::try_from(index).unwrap_or(0);
        carving.skip(ArenaId(ARENAS + index * ARENAS_PER_REGION));
        let memory = Arc::new(memory);
        let region = Self {
            leases: Leases::of(&memory),
            memory,
            mapping,
            bytes,
            space: Space::new(HEAP_START, bytes),
            carving,
            arenas: HashMap::new(),
            inherited: Inheritance::default(),
            used_to: HEAP_START,
            ports: BTreeSet::new(),
            changes: 0,
            idle_events: Vec::new(),
            idle_heaps: Vec::new(),
            was_lent: false,
        };
        region.write_header()?;
        Ok(region)
    }

    /// The memory for a member, and the lease by which it is known whether anybody there has it still.
    pub fn lend(&mut self) -> (Arc<OwnedFd>, Lease) {
        self.was_lent = true;
        self.leases.lend()
    }

    /// Whether somebody has it of whom nobody can ever say that he has it no more.
    pub const fn is_endless(&self) -> bool {
        self.leases.is_endless()
    }

    /// Whether it may become free when nobody shares it any more, and is not yet.
    pub const fn may_be_reset(&self) -> bool {
        self.was_lent && !self.leases.is_endless()
    }

    /// Whether a member, or anybody it has given the memory, may have it still.
    pub fn is_lent(&self, lease: Lease) -> bool {
        self.leases.is_lent(lease)
    }

    /// Nobody shares it any more: all of it is free, and reads as zeros, unless something is still being cleared, or
    /// somebody whose driver has gone may have it still.
    pub fn reset(&mut self) {
        let is_used =
            !self.carving.is_empty() || !self.inherited.is_idle() || !self.ports.is_empty();
        if !self.was_lent || is_used || self.leases.any() {
            return;
        }
        let emptied = self.punch(0, self.bytes);
        if let Err(error) = emptied.and_then(|()| self.write_header()) {
            tracing::warn!(%error, "a region is not used again");
            return;
        }
        self.space = Space::new(HEAP_START, self.bytes);
        self.changes += 1;
        self.used_to = HEAP_START;
        self.was_lent = false;
        self.idle_events.clear();
        self.idle_heaps.clear();
        let last = self.carving.last();
        self.carving = Carving::default();
        self.carving.skip(last);
        self.arenas.clear();
        self.inherited = Inheritance::default();
    }

    fn write_header(&self) -> io::Result<()> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|_| io::ErrorKind::Other)?;
        let id = u64::from_ne_bytes(id);
        write_info(&self.memory, self.bytes, id)?;
        for at in [0, CACHED_START] {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(header) = self.mapping.get::<RegionHeader>(at) {
                header.version.store(CHANNEL_VERSION, Ordering::Relaxed);
                header
                    .layout_version
                    .store(LAYOUT_VERSION, Ordering::Relaxed);
                header.bytes.store(self.bytes, Ordering::Relaxed);
                header.id.store(id, Ordering::Relaxed);
                header.magic.store(REGION_MAGIC, Ordering::Release);
            }
        }
        Ok(())
    }

    const fn whole(&self) -> Whole<'_> {
        Whole {
            mapping: &self.mapping,
            memory: &self.memory,
            start: 0,
        }
    }

    /// The file.
    pub const fn memory(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    /// The mapping.
    pub const fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that nobody has been given, if only for what they were before.
    pub fn free(&self) -> u64 {
        let heaps: u64 = self.idle_heaps.iter().map(|heap| heap.bytes).sum();
        self.space.free() + heaps + (self.idle_events.len() * EVENT_BYTES) as u64
    }

    /// How often what is free has changed.
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// `bytes` bytes for whatever.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let at = self.space.take(bytes)?;
        self.changes += 1;
        self.used_to = self.used_to.max(at + bytes);
        Some(at)
    }

    /// Gives back what [`Region::take`] gave out, as zeros.
    fn give_back(&mut self, at: u64, bytes: u64) {
        match self.punch(at, bytes) {
            Ok(()) => {
                self.space.give_back(at, bytes);
                self.changes += 1;
            }
            Err(error) => tracing::warn!(%error, at, bytes, "memory is not used again"),
        }
    }

    /// Turns what [`Region::take_heap`] gave out into zeros, for whoever has it next. False: that was not possible.
    pub fn clear(&self, at: u64, bytes: u64) -> bool {
        let result = self.punch(at, bytes);
        if let Err(error) = &result {
            tracing::warn!(%error, at, bytes, "memory is not cleared");
        }
        result.is_ok()
    }

    fn punch(&self, at: u64, bytes: u64) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self.memory.as_fd(), how, at, bytes)?)
    }

    /// A member has left: its control rings read as zeros again.
    pub fn clear_control(&self, member: u16) {
        if let Some(at) = control_offset(member) {
            let _told = self.clear(at as u64, CONTROL_AREA_BYTES as u64);
        }
    }

    /// Event memory for all programs of a driver: zeros.
    pub fn take_heap(&mut self, bytes: u64) -> Option<Heap> {
        let fits = self.idle_heaps.iter().position(|heap| heap.bytes == bytes);
        if let Some(index) = fits {
            let heap = self.idle_heaps.swap_remove(index);
            self.changes += 1;
            return self.clear(heap.at, heap.bytes).then_some(heap);
        }
        let at = self.take(bytes)?;
        Some(Heap { at, bytes })
    }

    /// Gives back what [`Region::take_heap`] gave out.
    pub fn give_back_heap(&mut self, heap: Heap) {
        if self.clear(heap.at, heap.bytes) {
            self.idle_heaps.push(heap);
            self.changes += 1;
        }
    }

    /// Event memory, and where it lies.
    pub fn events(&mut self) -> Option<(u64, EventMemory)> {
        let idle = self.idle_events.pop();
        self.changes += 1;
        let idle = idle.filter(|at| self.clear(*at, EVENT_BYTES as u64));
        let at = idle.or_else(|| self.take(EVENT_BYTES as u64))?;
        let events = self.events_at(at)?;
        self.ports.insert(at);
        Some((at, events))
    }

    /// Gives back what [`Region::events`] gave out.
    pub fn give_back_events(&mut self, at: u64) {
        self.ports.remove(&at);
        if self.clear(at, EVENT_BYTES as u64) {
            self.idle_events.push(at);
            self.changes += 1;
        }
    }

    /// The event memory at `at`; `None` if it would not lie in the region.
    pub fn events_at(&self, at: u64) -> Option<EventMemory> {
        EventMemory::part(&self.whole(), at)
    }

    /// Memory for a connection of `couple`, and the arena that it lies in.
    pub fn place(&mut self, couple: Couple, ring_log2: u32) -> Option<(Place, ConnectionArena)> {
        let place = self.carving.place(couple, ring_log2)?;
        if place.fresh {
            let Some(at) = self.take(place.arena_bytes) else {
                self.carving.forget(place.arena);
                return None;
            };
            let hole = Hole {
                at,
                bytes: place.arena_bytes,
            };
            self.arenas.insert(place.arena, hole);
        }
        let arena = self.arena(place.arena)?;
        Some((place, arena))
    }

    /// An arena.
    pub fn arena(&self, arena: ArenaId) -> Option<ConnectionArena> {
        let hole = self.arenas.get(&arena)?;
        ConnectionArena::part(&self.whole(), hole.at, hole.bytes)
    }

    /// The memory of a connection is used no more, and has been zeroed or not.
    pub fn release(&mut self, place: &Place, zeroed: bool) {
        if let Some((bytes, is_last)) = self.inherited.release(place) {
            let hole = self.arenas.get(&place.arena).copied();
            if let Some(hole) = hole.filter(|_| zeroed) {
                self.space.give_back(hole.at + place.offset, bytes);
            }
            if is_last {
                self.arenas.remove(&place.arena);
            }
            self.changes += 1;
            return;
        }
        if self.carving.release(place, zeroed) {
            self.drop_arena(place.arena);
        }
    }

    /// A process has left: no new connection lies in its arenas.
    pub fn leave(&mut self, process: Process) {
        for arena in self.carving.leave(process) {
            self.drop_arena(arena);
        }
    }

    fn drop_arena(&mut self, arena: ArenaId) {
        if let Some(Hole { at, bytes }) = self.arenas.remove(&arena) {
            self.give_back(at, bytes);
        }
    }
}
