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

    /// Programs of the daemon before us that cannot be there any more, because another one has what they had.
    pub fn displaced(&self, process: Process, at: u64) -> Vec<Process> {
        let all = self.programs.iter();
        let old = all.filter(|(_, found)| !found.announced);
        let others = old.filter(|(number, found)| (**number == process) != (found.at == at));
        others.map(|(number, _)| *number).collect()
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

#[cfg(test)]
mod tests {
    use rdma_core::channel::{GUEST_PROCESS_MIN, GUEST_PROCESSES};

    use super::*;

    #[test]
    fn who_has_what_another_had_displaces_it() {
        let mut region = Region::create(0, 256 << 20).unwrap();
        let heap = region.take_heap(4 * EVENT_BYTES as u64).unwrap();
        let mut seat = Seat::new(&region, 1, Lease::default()).unwrap();
        seat.heaps.push(heap);
        seat.welcome = Some(GuestWelcome {
            nonce: 1,
            heap_at: heap.at,
            heap_bytes: heap.bytes,
            first_process: GUEST_PROCESS_MIN,
            processes: GUEST_PROCESSES,
            machine: 1,
            reserved: 0,
        });
        let process = |index| Process(GUEST_PROCESS_MIN + index);
        let at = |index| heap.at + index * EVENT_BYTES as u64;
        for index in [1, 2, 3] {
            let place = at(u64::from(index));
            let program = seat.program(&region, process(index), place).unwrap();
            program.announced = index == 3;
        }
        assert_eq!(seat.displaced(process(1), at(1)), []);
        assert_eq!(seat.displaced(process(1), at(2)), [process(1), process(2)]);
        assert_eq!(seat.displaced(process(4), at(2)), [process(2)]);
        assert_eq!(seat.displaced(process(4), at(3)), [], "it has been told of");
        // Such a one is not believed.
        assert!(seat.program(&region, process(4), at(3)).is_none());
        assert!(seat.program(&region, process(3), at(0)).is_none());
    }
}
