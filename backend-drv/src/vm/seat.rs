//! A virtual machine whose device is there: its control rings, and the programs that its driver has told of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rdma_core::channel::{
    ControlRing, Direction, Down, Fault, GuestWelcome, MESSAGE_BYTES, Writer,
};
use rdma_core::event::EVENT_BYTES;

use super::lease::Lease;
use super::region::{Heap, Region};
use crate::ids::Process;
use crate::shared::EventMemory;
use crate::wake::Waiters;

/// Programs of a guest that can have memory for events.
const PROGRAMS_MAX: u64 = 64;

/// A program in a guest.
#[derive(Debug)]
pub struct Program {
    /// Its contexts, and how they are woken.
    pub waiters: Arc<Waiters>,
    /// Where its event memory begins.
    pub at: u64,
    /// The vector of each context.
    pub vectors: BTreeMap<u32, u16>,
    /// Processes that its guest has been told of, for its sake.
    pub knows: BTreeSet<Process>,
    /// The relay, as the program knows it.
    pub port: Option<Port>,
}

/// How a program knows the relay.
#[derive(Debug)]
pub struct Port {
    /// Its context.
    pub waiters: Arc<Waiters>,
    /// Where its event memory begins.
    pub at: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Seat {
    /// Its number in the region.
    pub member: u16,
    /// What it was given, and has given its programs.
    pub lease: Lease,
    writer: Writer,
    ring: ControlRing,
    /// What its driver was told; `None`: it has not said HELLO.
    pub welcome: Option<GuestWelcome>,
    /// Of this driver and those before it, whose programs may still be there.
    pub heaps: Vec<Heap>,
    /// By number.
    pub programs: BTreeMap<Process, Program>,
    /// Messages that made no sense.
    pub offences: u64,
    /// It broke the rules of the ring, and is not listened to until it starts anew.
    pub fault: Option<Fault>,
}

impl Seat {
    /// The seat of member `member`, whose control area reads as zeros.
    pub fn new(region: &Region, member: u16, lease: Lease) -> Option<Self> {
        let memory = region.mapping().region();
        Some(Self {
            member,
            lease,
            writer: Writer::new(&memory, member, Direction::Down)?,
            ring: ControlRing::new(&memory, member, Direction::Up)?,
            welcome: None,
            heaps: Vec::new(),
            programs: BTreeMap::new(),
            offences: 0,
            fault: None,
        })
    }

    /// The seat of a member that a daemon before us has served.
    pub fn restore(
        region: &Region,
        (member, lease): (u16, Lease),
        welcome: Option<GuestWelcome>,
        heaps: Vec<Heap>,
    ) -> Option<Self> {
        let memory = region.mapping().region();
        Some(Self {
            ring: ControlRing::resumed(&memory, member, Direction::Up)?,
            welcome,
            heaps,
            ..Self::new(region, member, lease)?
        })
    }

    /// The next message, as bytes in `buffer`.
    pub fn next(&mut self, buffer: &mut [u8; MESSAGE_BYTES]) -> Option<usize> {
        match self.ring.next(buffer) {
            Ok(length) => {
                self.fault = None;
                length
            }
            Err(fault) => {
                self.fault = Some(fault);
                None
            }
        }
    }

    /// Its driver has started anew: what was said before is void.
    pub fn begin(&mut self, region: &Region) {
        let memory = region.mapping().region();
        if let Some(writer) = Writer::new(&memory, self.member, Direction::Down) {
            self.writer = writer;
        }
    }

    /// Puts a message behind the others. False: the guest has not read for too long.
    pub fn push(&mut self, message: &Down) -> bool {
        let mut bytes = [0; MESSAGE_BYTES];
        let length = message.emit(&mut bytes);
        self.writer
            .push(bytes.get(..length).unwrap_or_default())
            .is_ok()
    }

    /// Writes what fits; true if the guest must look.
    pub fn flush(&mut self) -> bool {
        self.writer.flush()
    }

    /// How much of a region is a driver's heap. Ghosts of its machine keep theirs: together they are less than half of it.
    pub fn heap_bytes(region: &Region, ghosts: usize) -> u64 {
        let bytes = (region.bytes() / 4).min(PROGRAMS_MAX * EVENT_BYTES as u64);
        let programs = (bytes / EVENT_BYTES as u64) >> ghosts.min(63);
        programs.max(1) * EVENT_BYTES as u64
    }

    /// The event memory that a guest says a program has, if it lies in the driver's heap.
    pub fn events_of(&self, region: &Region, at: u64) -> Option<EventMemory> {
        let heap = self.heaps.last()?;
        let inside = at.checked_sub(heap.at)?;
        let fits = inside % EVENT_BYTES as u64 == 0
            && inside.checked_add(EVENT_BYTES as u64)? <= heap.bytes;
        fits.then(|| region.events_at(at)).flatten()
    }

    /// Whether a number is one of those that the driver may give to programs.
    pub fn may_number(&self, process: Process) -> bool {
        self.welcome.is_some_and(|welcome| {
            process
                .0
                .checked_sub(welcome.first_process)
                .is_some_and(|index| index < welcome.processes / 2)
        })
    }

    /// The number by which a program knows the relay.
    pub fn port_number(&self, process: Process) -> Option<Process> {
        let welcome = self.welcome?;
        self.may_number(process)
            .then(|| Process(process.0 + welcome.processes / 2))
    }
}
