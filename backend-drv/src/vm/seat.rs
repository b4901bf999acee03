//! A virtual machine whose device is there: its control rings, and the programs that its driver has told of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rdma_core::channel::{
    ControlRing, Direction, Down, Fault, GuestWelcome, MESSAGE_BYTES, Writer,
};
use rdma_core::event::EVENT_BYTES;

use super::GUEST_UID;
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
    /// Its driver has told this daemon of it.
    pub announced: bool,
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
    /// A daemon before us has served it, and it was asked what it has: in which run.
    pub asked: Option<u64>,
    /// Ends that it had with that daemon, and has not named yet: connection, and which end.
    pub unnamed: BTreeSet<(u64, usize)>,
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
            asked: None,
            unnamed: BTreeSet::new(),
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
        self.asked = None;
        self.unnamed.clear();
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

    /// A program of the driver, with event memory at `at`, which it has told of or not. `None`: that cannot be.
    pub fn program(&mut self, region: &Region, process: Process, at: u64) -> Option<&mut Program> {
        let known = self.programs.get(&process).map(|program| program.at);
        let taken = |program: &Program| program.at == at;
        let fits = match known {
            Some(known) => known == at,
            None => self.may_number(process) && !self.programs.values().any(taken),
        };
        let events = fits.then(|| self.events_of(region, at)).flatten()?;
        let program = self.programs.entry(process);
        Some(program.or_insert_with(|| Program {
            waiters: Arc::new(Waiters::new(process, GUEST_UID, events)),
            at,
            vectors: BTreeMap::new(),
            knows: BTreeSet::new(),
            port: None,
            announced: false,
        }))
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
