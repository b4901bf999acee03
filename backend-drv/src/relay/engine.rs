//! The relay's one thread: receive, look, send, wake, wait. What it means is decided in [`super::switchboard`].

mod commands;
mod receiving;
mod restarts;
mod waiting;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use rdma_core::event::WaitRef;
use rdma_core::link::Time;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::Place as FarPlace;

use super::connections::Parts;
use super::idle::Idle;
use super::nics::{Links, Nics};
use super::peers::Peers;
use super::ports::Port;
use super::switchboard::{Switchboard, Wake};
use super::{Command, Kept, Report, Share, Waiting};
use crate::ids::Process;
use crate::keeper::record::Records;
use crate::nic::Address;
use crate::scheduling;
use crate::wake::Waiters;

/// Events taken from epoll at once.
const EVENTS: usize = 64;
/// Name of the event loop's bell in epoll; NICs count from 0, ports from `FIRST_PORT`.
const COMMANDS: u64 = 1 << 20;
const FIRST_PORT: u64 = 1 << 21;
/// Rounds between two looks at descriptors while the engine is busy.
const POLL_EVERY: u32 = 64;
/// How often counters are written down: at most while the engine goes to sleep again and again, and while it does
/// not sleep.
const COUNTS_MIN: Duration = Duration::from_millis(20);
const COUNTS_MAX: Duration = Duration::from_millis(200);
/// How long connections may take to leave the rings before the daemon ends all the same.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Why a link ends, as the far backend is told: the daemon stops.
const STOPPING: u32 = 1;

/// How the engine and the event loop speak.
#[derive(Debug)]
pub(super) struct Wires {
    pub(super) inbox: Receiver<Command>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) outbox: Sender<Report>,
    pub(super) report_bell: Arc<EventFd>,
    pub(super) peers: Arc<Mutex<Peers>>,
    pub(super) counted: Arc<Mutex<serde_json::Value>>,
}

impl Wires {
    fn lock_peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Engine {
    wires: Wires,
    /// What the next daemon has to know.
    records: Option<Records>,
    epoll: Epoll,
    nics: Nics,
    board: Switchboard,
    ports: HashMap<Process, Served>,
    port_tokens: HashMap<u64, Process>,
    last_token: u64,
    idle: Idle,
    started: Instant,
    rounds: u32,
    /// For so many more rounds a short frame counts as having come lately.
    brief_rounds: u32,
    draining: Option<Instant>,
    counted_at: Instant,
    /// A look at programs has yet to be followed up.
    unsettled: bool,
    stopping: bool,
    strangers: Vec<(Address, Vec<u8>)>,
    wakes: Vec<Wake>,
}

/// The processor that this thread runs on, plus one; 0: nobody knows.
fn current_cpu() -> u32 {
    nix::sched::sched_getcpu().map_or(0, |cpu| u32::try_from(cpu + 1).unwrap_or(0))
}

/// For keys that nobody guesses.
fn secret() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// A program that is served.
#[derive(Debug)]
struct Served {
    port: Port,
    token: u64,
    connections: usize,
    leaving: bool,
}

impl Engine {
    pub(super) fn new(
        links: Links,
        shares: &[Share],
        backend: [u8; 16],
        epoch: u64,
        wires: Wires,
        records: Option<Records>,
    ) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(&wires.waiting.bell, readable(COMMANDS))?;
        Ok(Self {
            nics: Nics::new(links, backend, epoch, &epoll)?,
            board: Switchboard::new(shares, secret(), Time(0)),
            wires,
            records,
            epoll,
            ports: HashMap::new(),
            port_tokens: HashMap::new(),
            last_token: FIRST_PORT,
            idle: Idle::new(),
            started: Instant::now(),
            rounds: 0,
            brief_rounds: 0,
            draining: None,
            counted_at: Instant::now(),
            unsettled: false,
            stopping: false,
            strangers: Vec::new(),
            wakes: Vec::new(),
        })
    }

    fn now(&self) -> Time {
        let nanos = self.started.elapsed().as_nanos();
        Time(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self, kept: Kept) {
        if let Err(error) = scheduling::ask_for_short_slices() {
            tracing::debug!(%error, "the scheduler's usual slices");
        }
        self.restore(kept);
        while !self.stopping {
            let busy = self.round();
            self.rounds = self.rounds.wrapping_add(1);
            if self.rounds.is_multiple_of(POLL_EVERY) {
                self.look_around();
            }
            self.check_drain();
            self.tell_counts(false);
            if busy {
                self.idle.busy();
                continue;
            }
            self.idle.set_guests(self.serves_guests());
            if self.idle.idle() {
                self.sleep();
            }
        }
        // Whatever was not drained would wait for ever.
        self.board.abandon(Reason::LinkReset);
        self.wake();
        let lines: Vec<usize> = self.board.lines().collect();
        for line in lines {
            self.board.shut_down(line, STOPPING);
        }
        self.nics.transmit(self.now(), &mut self.board);
    }

    /// Looks at everything once. True if there was something.
    fn round(&mut self) -> bool {
        let mut busy = std::mem::take(&mut self.unsettled);
        busy |= self.take_commands();
        busy |= self.receive();
        busy |= self.take_bits();
        let now = self.now();
        if self.board.poll_timeout().is_some_and(|at| at <= now) {
            self.board.handle_timeout(now);
            busy = true;
        }
        if busy {
            self.board.runs_on(current_cpu());
            self.board.settle(now);
            self.tell();
            // Those who were woken may have had the processor meanwhile, and have answered.
            if self.has_answers() && self.take_bits() {
                self.board.serve_touched();
                self.unsettled = true;
            }
        }
        if self.rounds.is_multiple_of(POLL_EVERY) || !busy {
            self.nics.announce();
        }
        // Frames are on their way from here on.
        let now = self.now();
        let sent = self.nics.transmit(now, &mut self.board);
        if self.unsettled {
            self.tell();
        }
        busy | sent
    }

    /// Tells everybody whom it concerns what has come of it.
    fn tell(&mut self) {
        self.wake();
        self.report();
    }

    // ---- Programs ----

    fn add_port(&mut self, program: Arc<Waiters>, own: Arc<Waiters>, bell: Arc<OwnedFd>) {
        let process = program.process;
        self.last_token += 1;
        let token = self.last_token;
        match Port::new(program, own, bell, &self.epoll, token) {
            Ok(port) => {
                let served = Served {
                    port,
                    token,
                    connections: 0,
                    leaving: false,
                };
                self.ports.insert(process, served);
                self.port_tokens.insert(token, process);
            }
            Err(error) => {
                tracing::warn!(%process, %error, "no way for the program to wake the relay");
            }
        }
    }

    fn drop_port_if_unused(&mut self, process: Process) {
        let unused = self
            .ports
            .get(&process)
            .is_some_and(|served| served.leaving && served.connections == 0);
        if unused && let Some(served) = self.ports.remove(&process) {
            served.port.close(&self.epoll);
            self.port_tokens.remove(&served.token);
            self.send_report(Report::PortDropped(process));
        }
    }

    fn open(&mut self, parts: Parts, far: Option<FarPlace>) -> Result<FarPlace, Reason> {
        let process = parts.process;
        let (endpoint, who) = self.take_seat(process)?;
        tracing::debug!(connection = %parts.id, %process, endpoint, "relaying");
        let opened = self.board.open(endpoint, parts, who, far);
        if opened.is_ok() {
            self.introduce(endpoint, process);
            self.record(endpoint);
        } else {
            self.leave_seat(process, endpoint, who);
        }
        opened
    }

    fn open_here(&mut self, both: [Parts; 2]) -> Result<(), Reason> {
        let processes = [both[0].process, both[1].process];
        let (one, who) = self.take_seat(processes[0])?;
        let (other, far_who) = self.take_seat(processes[1]).inspect_err(|_| {
            self.leave_seat(processes[0], one, who);
        })?;
        let [near, far] = both;
        tracing::debug!(connection = %near.id, far = %far.id, one, other, "relaying here");
        let halves = [(one, near, who), (other, far, far_who)];
        let opened = self.board.open_here(halves);
        let seats = [(processes[0], one, who), (processes[1], other, far_who)];
        for (process, endpoint, who) in seats {
            if opened.is_ok() {
                self.introduce(endpoint, process);
                self.record(endpoint);
            } else {
                self.leave_seat(process, endpoint, who);
            }
        }
        opened
    }

    /// A number for one more connection of a program, and how the program names it.
    fn take_seat(&mut self, process: Process) -> Result<(u32, WaitRef), Reason> {
        let served = self.ports.get_mut(&process).ok_or(Reason::NoMemory)?;
        let endpoint = self.board.reserve().ok_or(Reason::Quota)?;
        let Some(who) = served.port.enter(endpoint) else {
            self.board.give_back(endpoint);
            return Err(Reason::Quota);
        };
        served.connections += 1;
        Ok((endpoint, who))
    }

    /// The connection was opened.
    fn introduce(&mut self, endpoint: u32, process: Process) {
        if let Some(served) = self.ports.get(&process) {
            let program = Arc::clone(served.port.program());
            self.board.introduce(endpoint, program);
        }
    }

    /// The connection was not opened.
    fn leave_seat(&mut self, process: Process, endpoint: u32, who: WaitRef) {
        if let Some(served) = self.ports.get_mut(&process) {
            served.port.leave(who);
            served.connections = served.connections.saturating_sub(1);
        }
        self.board.give_back(endpoint);
        self.drop_port_if_unused(process);
    }

    fn serves_guests(&self) -> bool {
        let mut ports = self.ports.values();
        ports.any(|served| served.connections > 0 && served.port.is_in_guest())
    }

    fn take_bits(&mut self) -> bool {
        let mut some = false;
        for served in self.ports.values_mut() {
            if served.port.is_awake() {
                some |= served.port.take(|endpoint| self.board.touch(endpoint));
            }
        }
        some
    }

    fn wake(&mut self) {
        self.board.take_wakes(&mut self.wakes);
        for wake in self.wakes.drain(..) {
            let Some((process, waits)) = self.board.waits(wake.endpoint) else {
                continue;
            };
            if let Some(served) = self.ports.get(&process) {
                let others = |process| {
                    let served = self.ports.get(&Process(process))?;
                    Some(Arc::clone(served.port.program()))
                };
                served.port.wake(waits, wake.what, &others);
            }
        }
    }
}
