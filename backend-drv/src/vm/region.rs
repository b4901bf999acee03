//! The memory that virtual machines share with the backend, and with each other if they are of one tenant.

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

use super::inheritance::{Inheritance, stride};
use super::lease::{Lease, Leases};
use super::persistent::write_info;
use crate::carving::{Carving, Couple, Place};
use crate::ids::{ArenaId, Process};
use crate::memory::Mapping;
use crate::shared::{ConnectionArena, EventMemory, Whole, sealed_memory};
use crate::space::Space;

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

/// Memory for events that has no driver: it is not used for anything else.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Idle {
    /// Of ports.
    pub events: Vec<u64>,
    /// Of drivers.
    pub heaps: Vec<Heap>,
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

    /// The memory for a member, and the lease by which it is known whether anybody there has it still.
    pub fn lend(&mut self) -> (Arc<OwnedFd>, Lease) {
        self.was_lent = true;
        self.leases.lend()
    }

    /// A member of a daemon before us has this.
    pub fn note_lease(&mut self, lease: Lease) {
        self.leases.note(lease);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::lease::ENDLESS;

    #[test]
    fn memory_comes_back_as_zeros() {
        let mut region = Region::create(1, 64 << 20).unwrap();
        let free = region.free();
        let couple = Couple::of(Process(1), Process(2));
        let (place, arena) = region.place(couple, 16).unwrap();
        assert!(is_in_region(place.arena));
        arena.prepare(place.offset, 16, 9).unwrap();
        arena.clear(place.offset, 16).unwrap();
        region.release(&place, true);
        region.leave(Process(1));
        assert_eq!(region.free(), free);
        let (at, events) = region.events().unwrap();
        events.context(3).unwrap().post(7);
        region.give_back_events(at);
        let (again, events) = region.events().unwrap();
        assert_eq!(again, at);
        assert!(!events.context(3).unwrap().has_pending());
    }

    #[test]
    fn the_next_machine_finds_nothing_of_the_one_before() {
        use std::os::unix::fs::FileExt;
        let mut region = Region::create(4, 64 << 20).unwrap();
        let file = std::fs::File::from(region.memory().try_clone().unwrap());
        let (memory, _) = region.lend();
        let written: Vec<u64> = (0..64).map(|number| (number << 20) + 8192).collect();
        for at in &written {
            file.write_all_at(b"of a machine that left", *at).unwrap();
        }
        drop(memory);
        region.reset();
        for at in written {
            let mut word = [1; 32];
            file.read_exact_at(&mut word, at).unwrap();
            assert_eq!(word, [0; 32], "{at}");
        }
    }

    #[test]
    fn what_was_for_events_stays_that_until_nobody_is_left() {
        let mut region = Region::create(2, 64 << 20).unwrap();
        let free = region.free();
        let heap = region.take_heap(32 << 20).unwrap();
        let (memory, lease) = region.lend();
        region.give_back_heap(heap);
        assert_eq!(region.free(), free);
        assert_eq!(region.take(32 << 20), None, "for connections");
        assert_eq!(region.take_heap(32 << 20), Some(heap));
        region.give_back_heap(heap);
        region.reset();
        assert!(region.is_lent(lease) && region.take(32 << 20).is_none());
        drop(memory);
        region.reset();
        assert!(!region.is_lent(lease) && region.take(32 << 20).is_some());
    }

    #[test]
    fn a_region_that_an_older_daemon_has_lent_is_not_emptied() {
        for lease in [ENDLESS, Lease::default()] {
            let memory = Region::create(3, 64 << 20).unwrap().memory().try_clone();
            let mark = Mark {
                used_to: HEAP_START + EVENT_BYTES as u64,
                last_arena: 0,
            };
            let mut region = Region::restore(3, memory.unwrap(), 64 << 20, mark).unwrap();
            assert!(region.may_be_reset() && !region.is_endless());
            region.note_lease(lease);
            assert!(region.is_endless() && !region.may_be_reset());
            region
                .events_at(HEAP_START)
                .unwrap()
                .context(3)
                .unwrap()
                .post(7);
            region.reset();
            let events = region.events_at(HEAP_START).unwrap();
            assert!(events.context(3).unwrap().has_pending());
        }
    }

    #[test]
    fn a_full_region_has_no_place() {
        let mut region = Region::create(0, 64 << 20).unwrap();
        let couple = Couple::of(Process(1), Process(2));
        let mut count = 0;
        while region.place(couple, 22).is_some() {
            count += 1;
        }
        assert!(count >= 2, "{count}");
        assert!(region.place(couple, 16).is_some(), "a smaller one fits");
    }
}
