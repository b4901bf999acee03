//! What the next daemon needs to go on with virtual machines: QEMU says everything once, and the guests run on.
//!
//! Kept are the regions, the eventfds and sockets of their members, and a state: which member is which machine, which
//! numbers and which memory its driver has, and below which mark of a region memory may be in use. The rest the
//! drivers say again when they are asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rdma_core::channel::{CHANNEL_VERSION, GUEST_PROCESSES, GuestWelcome};
use rdma_core::reason::Reason;
use serde::{Deserialize, Serialize};

use super::ghosts::Ghost;
use super::lease::{ENDLESS, Lease};
use super::region::{Heap, Idle, Mark, Region, region_of};
use super::seat::Seat;
use super::server::{Group, HOST, Kept};
use super::{GUEST_UID, Tenancy, VmId, Vms};
use crate::doorbell;
use crate::keeper::estate::abandon_one;
use crate::keeper::record::Record;
use crate::keeper::{Item, Keeper};
use crate::memory::Mapping;
use crate::shared::{ConnectionArena, EventMemory, Whole, sealed_memory};
use crate::wake::Waiters;

/// In front of all names.
pub const NAMES: &str = "vm.";
const STATE: &str = "vm.state";
/// Room for the state.
const STATE_BYTES: u64 = 1 << 20;

fn region_name(region: usize) -> String {
    format!("vm.{region:04}")
}

fn member_name(region: usize, member: u16) -> String {
    format!("vm.{region:04}.{member:02}")
}

fn bell_name(region: usize, member: u16, vector: usize) -> String {
    format!("vm.{region:04}.{member:02}.{vector:03}")
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Version of what stands in regions.
    #[serde(default)]
    channel: u32,
    regions: Vec<RegionState>,
    seats: Vec<SeatState>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RegionState {
    bytes: u64,
    vectors: u16,
    mark: Mark,
    /// The lease of one that has left, perhaps, does not end.
    #[serde(default)]
    endless: bool,
    #[serde(default)]
    idle: Idle,
    /// The machines that share it, as configured.
    vms: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SeatState {
    vm: String,
    region: usize,
    member: u16,
    #[serde(default)]
    lease: Lease,
    driver: Option<Driver>,
    heaps: Vec<Heap>,
    /// Blocks of process numbers, oldest first.
    blocks: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Driver {
    nonce: u64,
    first_process: u32,
}

/// What was written down last, and where.
#[derive(Debug, Default)]
pub struct Notes {
    file: Option<Arc<OwnedFd>>,
    written: Vec<u8>,
}

impl Vms {
    /// Has everything kept that does not change, and is not kept already.
    pub fn keep_all(&mut self, keeper: &mut Keeper) {
        for (index, tenancy) in self.tenancies.iter().enumerate() {
            if tenancy.unheard.is_some() {
                continue;
            }
            keeper.keep(&region_name(index), tenancy.region.memory());
            for part in tenancy.group.parts() {
                for (vector, bell) in part.bells.iter().enumerate() {
                    keeper.keep(&bell_name(index, part.id, vector), bell);
                }
                if let Some(socket) = part.socket {
                    keeper.keep(&member_name(index, part.id), socket);
                }
            }
        }
        self.note(keeper);
    }

    /// Has a member kept that has joined.
    pub fn keep_member(&mut self, keeper: &mut Keeper, vm: VmId) {
        let Some((tenancy, member)) = self
            .vm(vm)
            .and_then(|vm| Some((vm.tenancy, vm.seat.as_ref()?.member)))
        else {
            return;
        };
        let group = self.tenancies.get(tenancy).map(|tenancy| &tenancy.group);
        let parts = group.into_iter().flat_map(Group::parts);
        for part in parts.filter(|part| part.id == member) {
            for (vector, bell) in part.bells.iter().enumerate() {
                keeper.keep(&bell_name(tenancy, member, vector), bell);
            }
            if let Some(socket) = part.socket {
                keeper.keep(&member_name(tenancy, member), socket);
            }
        }
        self.note(keeper);
    }

    /// A member has left.
    pub fn forget_member(&mut self, keeper: &mut Keeper, tenancy: usize, member: u16) {
        keeper.forget_all(&member_name(tenancy, member));
        self.note(keeper);
    }

    /// Writes down what has changed; must come before a guest is told of memory.
    pub fn note(&mut self, keeper: &mut Keeper) {
        let state = self.state();
        let Ok(bytes) = serde_json::to_vec(&state) else {
            return;
        };
        if bytes == self.notes.written || bytes.len() as u64 >= STATE_BYTES {
            return;
        }
        if self.notes.file.is_none() {
            match sealed_memory("viaduct-vms", STATE_BYTES) {
                Ok(file) => {
                    keeper.keep(STATE, &file);
                    self.notes.file = Some(Arc::new(file));
                }
                Err(error) => tracing::warn!(%error, "guests are not kept for a restart"),
            }
        }
        let Some(file) = &self.notes.file else {
            return;
        };
        // One system call, the length last: JSON ends at the first zero.
        let mut whole = bytes.clone();
        let before = self.notes.written.len();
        whole.resize(whole.len().max(before) + 1, 0);
        match rustix::io::pwrite(file.as_fd(), &whole, 0) {
            Ok(written) if written == whole.len() => self.notes.written = bytes,
            result => tracing::warn!(?result, "guests are not kept for a restart"),
        }
    }

    fn state(&self) -> State {
        let regions = self.tenancies.iter().enumerate().map(|(index, tenancy)| {
            let of_it = self.of_tenancy(index).filter_map(|vm| self.vm(vm));
            RegionState {
                bytes: tenancy.region.bytes(),
                vectors: tenancy.group.vectors(),
                mark: tenancy.region.mark(),
                endless: tenancy.region.is_endless(),
                idle: tenancy.region.idle(),
                vms: of_it.map(|vm| vm.config.name.clone()).collect(),
            }
        });
        let seats = self.vms.iter().enumerate().filter_map(|(index, vm)| {
            let seat = vm.seat.as_ref()?;
            Some(SeatState {
                vm: vm.config.name.clone(),
                region: vm.tenancy,
                member: seat.member,
                lease: seat.lease,
                driver: seat.welcome.map(|welcome| Driver {
                    nonce: welcome.nonce,
                    first_process: welcome.first_process,
                }),
                heaps: seat.heaps.clone(),
                blocks: self.blocks_of(VmId(index)).collect(),
            })
        });
        State {
            channel: CHANNEL_VERSION,
            regions: regions.collect(),
            seats: seats.collect(),
        }
    }

    /// Goes on with what a daemon before us has left. The machines that are there.
    pub fn restore(&mut self, items: Vec<Item>, keeper: Option<&mut Keeper>) -> Vec<VmId> {
        let mut items: HashMap<String, OwnedFd> = items.into_iter().collect();
        let Some(state) = items.remove(STATE).and_then(|file| {
            let mut bytes = vec![0; usize::try_from(STATE_BYTES).ok()?];
            let length = rustix::io::pread(&file, &mut bytes, 0).ok()?;
            let end = bytes.iter().take(length).position(|byte| *byte == 0)?;
            self.notes.file = Some(Arc::new(file));
            serde_json::from_slice::<State>(bytes.get(..end)?).ok()
        }) else {
            return Vec::new();
        };
        if state.channel != CHANNEL_VERSION {
            tracing::warn!(
                version = state.channel,
                "regions of another version are not taken over: guests stay on TCP until they start anew"
            );
            return Vec::new();
        }
        for (index, known) in state.regions.iter().enumerate() {
            // What is configured otherwise by now starts anew.
            let configured: Vec<_> = self
                .of_tenancy(index)
                .filter_map(|vm| self.vm(vm))
                .collect();
            let same = configured
                .iter()
                .map(|vm| &vm.config.name)
                .eq(known.vms.iter());
            let fits = self.tenancies.get(index).is_some_and(|tenancy| {
                tenancy.region.bytes() == known.bytes && tenancy.group.vectors() == known.vectors
            });
            if same
                && fits
                && let Some(tenancy) = restore_tenancy(index, known, &mut items)
                && let Some(place) = self.tenancies.get_mut(index)
            {
                *place = tenancy;
            }
        }
        if let Err(error) = self.rename() {
            tracing::error!(%error, "persistent memory that QEMU opens from now on is not the region's");
        }
        let mut restored = Vec::new();
        let mut left = Vec::new();
        for seat in &state.seats {
            match self.restore_seat(seat) {
                Some((vm, true)) => restored.push(vm),
                Some((_, false)) => left.push((seat.region, seat.member)),
                None => {}
            }
        }
        if let Some(keeper) = keeper {
            for (region, member) in left {
                keeper.forget_all(&member_name(region, member));
            }
        }
        restored
    }

    /// A machine, and whether it is there still.
    fn restore_seat(&mut self, known: &SeatState) -> Option<(VmId, bool)> {
        let index = self
            .vms
            .iter()
            .position(|vm| vm.config.name == known.vm && vm.tenancy == known.region)?;
        let vm = VmId(index);
        let tenancy = self.tenancies.get_mut(known.region)?;
        let unheard = tenancy.unheard.as_mut()?;
        tenancy.region.note_lease(known.lease);
        for heap in &known.heaps {
            if !tenancy.region.inherit_heap(*heap) {
                tracing::warn!(vm = %known.vm, ?heap, "memory for events is not where it could be");
            }
        }
        if tenancy.group.is_gone(known.member) {
            tracing::info!(vm = vm.0, member = known.member, "device gone meanwhile");
            tenancy.group.leave(known.member);
            tenancy.region.clear_control(known.member);
            self.ghosts.members.push(Ghost {
                vm,
                lease: known.lease,
                heaps: known.heaps.clone(),
                blocks: known.blocks.clone(),
            });
            for block in &known.blocks {
                self.give_block(*block, vm);
            }
            return Some((vm, false));
        }
        if known.driver.is_some() {
            unheard.insert(vm);
        }
        let welcome = known.driver.as_ref().and_then(|driver| {
            let heap = known.heaps.last()?;
            Some(GuestWelcome {
                nonce: driver.nonce,
                heap_at: heap.at,
                heap_bytes: heap.bytes,
                first_process: driver.first_process,
                processes: GUEST_PROCESSES,
                machine: vm.machine(),
                reserved: 0,
            })
        });
        let seat = Seat::restore(
            &tenancy.region,
            (known.member, known.lease),
            welcome,
            known.heaps.clone(),
        )?;
        for block in &known.blocks {
            self.give_block(*block, vm);
        }
        self.vms.get_mut(index)?.seat = Some(seat);
        Some((vm, true))
    }
}

/// Nobody goes on with these connections of guests: their programs are told. `items`: what was kept.
pub fn abandon_guests(guests: &[(u32, Record)], items: &[Item], reason: Reason) {
    let mut regions = BTreeMap::new();
    for (_, record) in guests {
        let number = region_of(record.place.arena);
        let found = regions
            .entry(number)
            .or_insert_with(|| map_region(number, items));
        if let (Some((memory, mapping)), Some(places)) = (found, record.guest) {
            let whole = Whole {
                mapping,
                memory,
                start: 0,
            };
            let arena = ConnectionArena::part(&whole, places.arena, record.place.arena_bytes);
            let events = EventMemory::part(&whole, places.events);
            let program = events.map(|events| Waiters::new(record.process, GUEST_UID, events));
            if let Some(arena) = arena {
                abandon_one(record, &arena, program.as_ref(), reason);
            }
        }
    }
    // Which of them wakes whom, nobody has written down.
    for number in regions.keys() {
        let region = region_name(usize::try_from(*number).unwrap_or(usize::MAX));
        let (bells, own) = (format!("{region}."), format!("{region}.{HOST:02}."));
        for (name, bell) in items {
            let is_bell = name.matches('.').count() > 2;
            if is_bell && name.starts_with(&bells) && !name.starts_with(&own) {
                doorbell::ring(bell.as_fd());
            }
        }
    }
}

fn map_region(number: u32, items: &[Item]) -> Option<(Arc<OwnedFd>, Arc<Mapping>)> {
    let name = region_name(usize::try_from(number).ok()?);
    let (_, memory) = items.iter().find(|(other, _)| *other == name)?;
    let memory = memory.try_clone().ok()?;
    let bytes = rustix::fs::fstat(&memory).ok()?.st_size;
    let mapping = Mapping::of_sealed(&memory, usize::try_from(bytes).ok()?).ok()?;
    Some((Arc::new(memory), Arc::new(mapping)))
}

fn restore_tenancy(
    index: usize,
    known: &RegionState,
    items: &mut HashMap<String, OwnedFd>,
) -> Option<Tenancy> {
    let memory = items.remove(&region_name(index))?;
    let mut region = Region::restore(index, memory, known.bytes, known.mark).ok()?;
    if known.endless {
        region.note_lease(ENDLESS);
    }
    region.inherit_idle(&known.idle);
    let mut parts = Vec::new();
    for id in 0..super::server::MEMBERS_MAX {
        let bells: Vec<_> = (0..usize::from(known.vectors))
            .map_while(|vector| items.remove(&bell_name(index, id, vector)))
            .map(Arc::new)
            .collect();
        let socket = items.remove(&member_name(index, id));
        if !bells.is_empty() {
            parts.push(Kept { id, socket, bells });
        }
    }
    let group = Group::restore(Arc::clone(region.memory()), known.vectors, parts).ok()?;
    Some(Tenancy {
        region,
        group,
        unheard: Some(BTreeSet::new()),
    })
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use rdma_core::event::{WaitFor, WaitRef};
    use rdma_core::layout::End;

    use super::*;
    use crate::carving::Couple;
    use crate::ids::Process;
    use crate::keeper::record::InRegion;
    use crate::relay::doorbell;
    use crate::vm::connections::relay_id;

    /// Of two regions, one of which has nothing to do with it.
    #[test]
    fn programs_of_guests_are_told_that_nobody_goes_on() {
        let mut region = Region::create(1, 64 << 20).expect("memory");
        let (process, port) = (Process(2_097_153), Process(2_099_201));
        let place = region.place(Couple::of(process, port), 16);
        let (place, arena) = place.expect("room");
        arena.prepare(place.offset, 16, 9).expect("it lies inside");
        let (at, events) = region.events().expect("room");
        let words = arena.end(place.offset, End::Zero).expect("it lies inside");
        let waits = WaitRef {
            process: process.0,
            context: 3,
            bit: Some(7),
        };
        assert!(words.waits.enter(WaitFor::Data, waits));
        words.state.arm();
        let own = arena.end(place.offset, End::One).expect("it lies inside");
        own.state.arm();
        let record = Record {
            connection: relay_id(9, 0),
            place,
            end: End::Zero,
            process,
            port,
            guest: Some(InRegion {
                arena: arena.start(),
                events: at,
                port: at,
            }),
            ..crate::keeper::record::tests::record(9, "10.0.0.1:7447")
        };
        let bells = || doorbell().expect("an eventfd");
        let names = ["vm.0001.00.001", "vm.0001.01.002", "vm.0000.01.000"];
        let mut items: Vec<Item> = names.map(|name| (name.to_owned(), bells())).into();
        let memory = region.memory().try_clone().expect("a descriptor");
        items.push(("vm.0001".to_owned(), memory));
        abandon_guests(&[(4, record)], &items, Reason::LinkReset);
        assert_eq!(own.state.broken(), Some(Reason::LinkReset));
        assert!(events.context(3).expect("it is one").has_pending());
        let rung = items.iter().take(3).map(|(_, bell)| {
            let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO)
        });
        assert_eq!(rung.collect::<Vec<_>>(), [Ok(0), Ok(1), Ok(0)]);
    }
}
