//! A guest's side of the channel to its host: what `viaduct-guest` has in the place of links.
//!
//! The memory of the guest's device ([`frontend_drv::device`]) holds a control ring each way
//! ([`rdma_core::channel`]), the event memory of the programs that may have far ends outside, and the memory of their
//! connections with those. The host gives all of it out; a part of it, the *heap*, is the guest's to put event memory
//! into.
//!
//! * [`Uplink`]: the device, the rings, and what the host has told.
//! * `memory`: the region, mapped; `vectors`: which interrupt wakes whom; `watch`: what takes the place of interrupts where there are none.

mod memory;
mod vectors;
mod watch;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use frontend_drv::device::Device;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rdma_core::channel::{
    BACKEND, CHANNEL_VERSION, CONTROL_VECTOR, ControlRing, Direction, Down, GuestContext,
    GuestHello, GuestWelcome, MESSAGE_BYTES, Up, Writer, doorbell_value,
};
use rdma_core::event::{CONTEXT_STRIDE, CONTEXTS, EVENT_BYTES};
use rdma_core::layout::LAYOUT_VERSION;

use crate::ids::{ArenaId, Process};
use crate::memory::Mapping;
use crate::shared::{ConnectionArena, EventMemory, Whole};
use crate::space::Space;
use crate::wake::Waiters;

pub use vectors::Vectors;
pub use watch::Watch;

/// Between two HELLOs that are not answered.
const GREET_EVERY: Duration = Duration::from_millis(500);

/// How long the event memory of a program that has left is not given to another: a far end that does not know yet
/// may still wake the program.
const QUARANTINE: Duration = Duration::from_secs(10);

/// Who may have far ends outside the guest. Whoever maps the device maps all of it, so these programs trust each
/// other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outside {
    /// Programs of this user.
    User(u32),
    /// Everybody.
    Anybody,
}

impl Outside {
    /// Whether a program of this user may.
    pub fn allows(self, uid: u32) -> bool {
        match self {
            Self::User(user) => user == uid,
            Self::Anybody => true,
        }
    }
}

/// A process outside the guest.
#[derive(Debug)]
pub struct Foreign {
    /// Its contexts.
    pub waiters: Waiters,
    /// Which member and vector wakes each of them.
    bells: HashMap<u32, (u16, u16)>,
    /// Contexts that are to be rung as soon as the host has said how.
    owed: BTreeSet<u32>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Uplink {
    device: Box<dyn Device>,
    mapping: Arc<Mapping>,
    writer: Writer,
    ring: ControlRing,
    bell: EventFd,
    vectors: Vectors,
    /// Without interrupts.
    watch: Option<Watch>,
    outside: Outside,
    shared_network: bool,
    nonce: u64,
    greeted_at: Option<Instant>,
    welcome: Option<GuestWelcome>,
    heap: Space,
    foreign: HashMap<Process, Foreign>,
    /// Connections in each arena of the host's.
    arena_users: HashMap<ArenaId, usize>,
    last_process: u32,
    lost: bool,
    retired: VecDeque<Retired>,
}

/// Event memory of a program that has left.
#[derive(Debug)]
struct Retired {
    since: Instant,
    at: u64,
    /// How much of it was used.
    used: usize,
}

impl Uplink {
    /// Takes the device over. `nonce` differs between two runs; `shared_network`: far ends at loopback addresses may be
    /// outside, too.
    ///
    /// # Errors
    /// The memory cannot be mapped, or is too small to have a control ring for this guest.
    pub fn new(
        device: Box<dyn Device>,
        outside: Outside,
        shared_network: bool,
        nonce: u64,
    ) -> io::Result<Self> {
        let mapping = Arc::new(memory::map(&*device)?);
        let member = device.id();
        let region = mapping.region();
        let unfit = || io::Error::from(io::ErrorKind::InvalidInput);
        let writer = Writer::new(&region, member, Direction::Up).ok_or_else(unfit)?;
        let ring = ControlRing::afresh(&region, member, Direction::Down).ok_or_else(unfit)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = EventFd::from_flags(flags)?;
        if device.vectors() > 0 {
            device.bind(CONTROL_VECTOR, bell.as_fd())?;
        }
        let vectors = Vectors::new(&*device)?;
        let watch = (device.vectors() == 0).then(Watch::default);
        Ok(Self {
            device,
            mapping,
            writer,
            ring,
            bell,
            vectors,
            watch,
            outside,
            shared_network,
            nonce,
            greeted_at: None,
            welcome: None,
            heap: Space::default(),
            foreign: HashMap::new(),
            arena_users: HashMap::new(),
            last_process: 0,
            lost: false,
            retired: VecDeque::new(),
        })
    }

    fn whole(&self) -> Whole<'_> {
        Whole {
            mapping: &self.mapping,
            memory: self.device.memory(),
            start: self.device.memory_start(),
        }
    }

    /// Readable when the host has said something.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Readable when [`Uplink::is_present`] should be asked.
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.device.news()
    }

    /// The device is gone. False: it was before.
    pub fn lose(&mut self) -> bool {
        self.welcome = None;
        !std::mem::replace(&mut self.lost, true)
    }

    /// Whether the device is gone.
    pub const fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether the device is there.
    pub fn is_present(&self) -> bool {
        self.device.is_present()
    }

    /// Readable when a context rings that has no vector of its own.
    pub fn common_bell(&self) -> BorrowedFd<'_> {
        self.vectors.common_bell()
    }

    /// Doorbells of the contexts that have no vector of their own; also silences the common one.
    pub fn common_contexts(&self) -> Vec<(Process, u32)> {
        self.vectors.take_common()
    }

    /// When [`Uplink::greet`] wants to be called, or when the host must be looked for by itself.
    pub fn next(&self) -> Option<Instant> {
        let greet = match (self.welcome, self.greeted_at) {
            _ if self.lost => None,
            (Some(_), _) => None,
            (None, Some(at)) => Some(at + GREET_EVERY),
            (None, None) => Some(Instant::now()),
        };
        let look = self.watch.as_ref().map(Watch::next);
        greet.into_iter().chain(look).min()
    }

    /// Without interrupts, when it is time to look: the contexts that are to be rung.
    pub fn look(
        &mut self,
        now: Instant,
        is_asleep: impl Fn(Process, u32) -> bool,
    ) -> Option<Vec<(Process, u32)>> {
        let watch = self.watch.as_mut()?;
        watch.is_due(now).then(|| watch.look(is_asleep))
    }

    /// Says HELLO, unless the host has answered or was asked just now.
    pub fn greet(&mut self, now: Instant) {
        let soon = self.greeted_at.is_some_and(|at| now < at + GREET_EVERY);
        if self.lost || self.welcome.is_some() || soon {
            return;
        }
        self.greeted_at = Some(now);
        self.say_hello();
    }

    /// Says HELLO.
    pub fn say_hello(&mut self) {
        let hello = GuestHello {
            version: CHANNEL_VERSION,
            layout_version: LAYOUT_VERSION,
            nonce: self.nonce,
        };
        self.send(&Up::Hello(hello));
    }

    /// Says something to the host.
    pub fn send(&mut self, message: &Up) {
        tracing::trace!(?message, "to the host");
        let mut bytes = [0; MESSAGE_BYTES];
        let length = message.emit(&mut bytes);
        if let Err(error) = self.writer.push(bytes.get(..length).unwrap_or_default()) {
            tracing::warn!(%error, "the host does not listen");
            return;
        }
        self.flush();
    }

    /// Writes what waits for room.
    pub fn flush(&mut self) {
        if self.writer.flush() {
            self.device.ring(BACKEND, CONTROL_VECTOR);
        }
    }

    /// Silences the bell; call before [`Uplink::receive`].
    pub fn silence(&self) {
        let _ = self.bell.read();
    }

    /// What the host has said.
    pub fn receive(&mut self) -> Option<Down> {
        loop {
            let mut bytes = [0; MESSAGE_BYTES];
            let length = match self.ring.next(&mut bytes) {
                Ok(Some(length)) => length,
                Ok(None) => return None,
                Err(error) => {
                    tracing::error!(%error, "the host makes no sense");
                    return None;
                }
            };
            match Down::parse(bytes.get(..length).unwrap_or_default()) {
                Ok(message) => {
                    tracing::trace!(?message, "from the host");
                    return Some(message);
                }
                Err(error) => tracing::warn!(%error, "from the host"),
            }
        }
    }

    /// The host serves us. False: it answers an earlier run, or has answered already.
    pub fn welcomed(&mut self, welcome: &GuestWelcome) -> bool {
        let end = welcome.heap_at.checked_add(welcome.heap_bytes);
        let fits = end.is_some_and(|end| end <= self.device.memory_bytes());
        if welcome.nonce != self.nonce || self.welcome.is_some() || !fits {
            return false;
        }
        self.heap = Space::new(welcome.heap_at, welcome.heap_at + welcome.heap_bytes);
        self.welcome = Some(*welcome);
        true
    }

    /// Whether the host serves us.
    pub const fn is_up(&self) -> bool {
        self.welcome.is_some()
    }

    /// See [`rdma_core::control::Welcome::machine`].
    pub fn machine(&self) -> u32 {
        self.welcome.map_or(0, |welcome| welcome.machine)
    }

    /// Whether a far end at this address may be outside.
    pub fn may_be_outside(&self, far: IpAddr) -> bool {
        self.is_up() && (self.shared_network || !far.is_loopback())
    }

    /// Whether programs of this user may have far ends outside.
    pub fn allows(&self, uid: u32) -> bool {
        self.is_up() && self.outside.allows(uid)
    }

    /// A number and event memory for a program that may have far ends outside, if there are any left.
    pub fn admit(&mut self, taken: impl Fn(Process) -> bool) -> Option<(Process, EventMemory)> {
        let welcome = self.welcome?;
        let process = (0..welcome.processes).find_map(|_| {
            self.last_process = (self.last_process + 1) % welcome.processes;
            let process = Process(welcome.first_process + self.last_process);
            // The highest ones are the host's.
            let ours = self.last_process < welcome.processes / 2;
            (ours && !taken(process)).then_some(process)
        })?;
        self.give_back_retired();
        let at = self.heap.take(EVENT_BYTES as u64)?;
        let events = EventMemory::part(&self.whole(), at)?;
        self.send(&Up::Program {
            process: process.0,
            at,
        });
        Some((process, events))
    }

    /// Event memory that nobody can mean any more is free again.
    fn give_back_retired(&mut self) {
        // Where there is no other, what was retired first does.
        while let Some(retired) = self.retired.front()
            && (retired.since.elapsed() >= QUARANTINE || self.heap.free() < EVENT_BYTES as u64)
        {
            self.mapping.zero(retired.at, retired.used);
            self.heap.give_back(retired.at, EVENT_BYTES as u64);
            self.retired.pop_front();
        }
    }

    /// Tells a host that has started anew of a program that was [admitted](Uplink::admit).
    pub fn announce(&mut self, process: Process, waiters: &Waiters) {
        self.send(&Up::Program {
            process: process.0,
            at: waiters.events.place(),
        });
        for (context, _) in waiters.all_doorbells() {
            let vector = match &self.watch {
                Some(_) => CONTROL_VECTOR,
                None => self.vectors.of(process, context),
            };
            let body = GuestContext {
                process: process.0,
                context,
                member: self.device.id(),
                vector,
                reserved: 0,
            };
            self.send(&Up::Context(body));
        }
    }

    /// A program that was [admitted](Uplink::admit) is gone, and whoever knew it outside will be told.
    pub fn dismiss(&mut self, process: Process, events: &EventMemory, contexts: u32) {
        self.vectors.free_all(process, &*self.device);
        if let Some(watch) = &mut self.watch {
            watch.remove(process);
        }
        self.send(&Up::ProgramGone(process.0));
        self.retired.push_back(Retired {
            since: Instant::now(),
            at: events.place(),
            used: (contexts as usize * CONTEXT_STRIDE).min(EVENT_BYTES),
        });
    }

    /// A program that was [admitted](Uplink::admit) has a context with this doorbell.
    pub fn add_context(&mut self, process: Process, context: u32, bell: BorrowedFd<'_>) {
        let vector = match &mut self.watch {
            Some(watch) => {
                watch.add(process, context);
                CONTROL_VECTOR
            }
            None => self.vectors.bind(process, context, bell, &*self.device),
        };
        let body = GuestContext {
            process: process.0,
            context,
            member: self.device.id(),
            vector,
            reserved: 0,
        };
        self.send(&Up::Context(body));
    }

    /// The host speaks of a process outside.
    pub fn add_foreign(&mut self, process: Process, at: u64) -> bool {
        let Some(events) = EventMemory::part(&self.whole(), at) else {
            return false;
        };
        let foreign = Foreign {
            waiters: Waiters::new(process, 0, events),
            bells: HashMap::new(),
            owed: BTreeSet::new(),
        };
        self.foreign.insert(process, foreign);
        true
    }

    /// It has a context.
    pub fn add_foreign_context(&mut self, body: &GuestContext) -> bool {
        let Some(foreign) = self.foreign.get_mut(&Process(body.process)) else {
            return false;
        };
        let (member, vector) = (body.member, body.vector);
        foreign.bells.insert(body.context, (member, vector));
        if foreign.owed.remove(&body.context) {
            self.device.ring(member, vector);
        }
        true
    }

    /// It has left.
    pub fn remove_foreign(&mut self, process: Process) {
        self.foreign.remove(&process);
    }

    /// A process outside.
    pub fn foreign(&self, process: Process) -> Option<&Foreign> {
        self.foreign.get(&process)
    }

    /// Wakes a context of a process outside; as soon as the host has said how, if it has not.
    pub fn ring(&mut self, process: Process, context: u32) {
        let Some(foreign) = self.foreign.get_mut(&process) else {
            return;
        };
        match foreign.bells.get(&context) {
            Some((member, vector)) => self.device.ring(*member, *vector),
            None if context < CONTEXTS => {
                foreign.owed.insert(context);
            }
            None => {}
        }
    }

    /// How a program rings a context of a process outside: what it stores, to which file's registers.
    pub fn register(&self, process: Process, context: u32) -> Option<(u32, Arc<OwnedFd>)> {
        let (member, vector) = *self.foreign.get(&process)?.bells.get(&context)?;
        let file = Arc::clone(self.device.register()?);
        Some((doorbell_value(member, vector), file))
    }

    /// The same where there are no registers: what it writes to.
    pub fn eventfd(&self, process: Process, context: u32) -> Option<Arc<OwnedFd>> {
        let (member, vector) = *self.foreign.get(&process)?.bells.get(&context)?;
        self.device.bell(member, vector).map(Arc::new)
    }

    /// An arena of the host's, of `bytes` bytes from `at` on.
    pub fn arena(&self, at: u64, bytes: u64) -> Option<ConnectionArena> {
        ConnectionArena::part(&self.whole(), at, bytes)
    }

    /// Where an arena lies in the region.
    pub fn place_of(&self, arena: &ConnectionArena) -> u64 {
        arena.start() + self.device.memory_start()
    }

    /// One connection more lies in an arena. True if it is the first.
    pub fn enter_arena(&mut self, arena: ArenaId) -> bool {
        let users = self.arena_users.entry(arena).or_default();
        *users += 1;
        *users == 1
    }

    /// One connection less. True if it was the last.
    pub fn leave_arena(&mut self, arena: ArenaId) -> bool {
        let Some(users) = self.arena_users.get_mut(&arena) else {
            return false;
        };
        *users = users.saturating_sub(1);
        let last = *users == 0;
        if last {
            self.arena_users.remove(&arena);
        }
        last
    }
}
