//! The event loop: everything that touches a descriptor.
//!
//! One thread waits for the listening socket, the control sockets, signals and the reporter; what
//! comes in goes to the [`Broker`], and what the broker wants done is done here.
//! Nothing in this thread waits for a client.

mod actions;
mod agenda;
mod clients;
mod departures;
mod drain;
mod outbox;
mod programs;
mod relays;
mod revocations;
mod signals;
mod survivors;
mod trims;
mod uplink;
mod vms;
mod withdrawals;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering as Count;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signalfd::SignalFd;

use crate::accounts::{Accounts, Holdings};
use crate::broker::{Broker, Domain};
use crate::config::Limits;
use crate::disposal::Disposal;
use crate::identity::SocketFiles;
use crate::ids::{ArenaId, Process, RegistrationId};
use crate::keeper::{Item, Keeper};
use crate::ledger::{Ledger, ProgramRecord};
use crate::listener::Listener;
use crate::packet::Inbox;
use crate::relay::{Kept, Links, Relay, Share};
use crate::report::Settings;
use crate::reporter::Reporter;
use crate::shared::ConnectionArena;
use crate::sock_diag::{Namespace, SockDiag};
use crate::throttle::Throttle;
use crate::uplink::Uplink;
use crate::vm::{Vms, keeping};
use crate::wake::Waiters;
use crate::workers::Workers;

use agenda::Agenda;
use clients::Client;
use revocations::Revocations;
use survivors::Survivors;
use trims::Trims;
use withdrawals::Withdrawals;

pub use signals::{block_signals, is_signalled};
pub use withdrawals::Task;

/// Events taken at once.
const EVENTS: usize = 64;
/// With `--embedded`: how long to wait for the first client.
const FIRST_CLIENT: Duration = Duration::from_secs(10);
/// How long to stop accepting when no descriptor is to be had.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long to wait when the system has no room for a message.
const STALL_PAUSE: Duration = Duration::from_millis(20);

/// Names of connections in epoll; clients count from `FIRST_TOKEN`.
const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const REPORTER: u64 = 2;
const WORKERS: u64 = 3;
const RELAY: u64 = 4;
const UPLINK: u64 = 5;
const UPLINK_COMMON: u64 = 6;
const UPLINK_NEWS: u64 = 7;
const FIRST_TOKEN: u64 = 16;

/// What a daemon needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bounds.
    pub limits: Limits,
    /// Domains, with their namespaces found.
    pub domains: Vec<Domain>,
    /// Memory quotas of the domains, in the same order.
    pub domain_memory: Vec<Option<u64>>,
    /// End when the last client has left.
    pub embedded: bool,
    /// When told to stop, take all connections off the rings first.
    pub drain: bool,
    /// Parts of the links: first of those in no domain, then of the domains in their order.
    pub shares: Vec<Share>,
    /// Relay between ends of this host that do not trust each other.
    pub relay_here: bool,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    options: Options,
    epoll: Epoll,
    listener: Listener,
    signals: SignalFd,
    reporter: Reporter,
    disposal: Disposal,
    accounts: Arc<Accounts>,
    ledger: Arc<Ledger>,
    broker: Broker,
    clients: HashMap<u64, Client>,
    programs: HashMap<Process, Program>,
    /// Programs that left, while their connections are looked after.
    departed: HashMap<Process, Program>,
    departures: Agenda<RegistrationId>,
    withdrawals: Withdrawals,
    revocations: Revocations,
    trims: Trims,
    arenas: HashMap<ArenaId, Arena>,
    workers: Workers,
    relay: Option<Relay>,
    /// In a guest: the way to its host.
    uplink: Option<Uplink>,
    vms: Vms,
    telling: vms::Telling,
    keeper: Option<Keeper>,
    /// What the relay begins with, until it has been started.
    kept: Option<Kept>,
    survivors: Survivors,
    /// By the number under which a program knows the relay.
    ports: relays::Ports,
    doomed: Vec<u64>,
    /// Clients whose messages wait until the system has room for them.
    stalled: Vec<u64>,
    inbox: Inbox,
    diag: SockDiag,
    socket_files: SocketFiles,
    throttle: Throttle,
    last_token: u64,
    last_process: u32,
    allocate: bool,
    accepting: Accepting,
    had_client: bool,
    drain: Option<drain::Drain>,
    stopping: bool,
}

/// What the daemon holds for a program.
#[derive(Debug)]
struct Program {
    token: u64,
    record: Arc<ProgramRecord>,
    waiters: Arc<Waiters>,
    namespace: Namespace,
    /// In a guest: its event memory can be reached from outside.
    outside: bool,
}

/// Connection memory.
#[derive(Debug)]
struct Arena {
    memory: Arc<ConnectionArena>,
    /// One of the users who share it.
    uid: u32,
}

/// Whether new connections are accepted, and the descriptor kept for when there is no other.
#[derive(Debug)]
struct Accepting {
    spare: Option<OwnedFd>,
    again_at: Option<Instant>,
}

impl Daemon {
    /// A daemon that serves `listener`. Call before any other thread exists: it blocks the signals
    /// that it wants to receive.
    ///
    /// # Errors
    /// No descriptors or threads to be had.
    pub fn new(
        options: Options,
        listener: Listener,
        links: Links,
        uplink: Option<Uplink>,
        vms: Vms,
    ) -> io::Result<Self> {
        let signals = signals::signals()?;
        let user = options.limits.per_user;
        let user_limit = Holdings {
            processes: user.processes.into(),
            connections: user.connections.into(),
            memory_bytes: user.memory_bytes,
            descriptors: user.descriptors.into(),
            strays: STRAYS_MAX,
        };
        let accounts = Arc::new(Accounts::new(user_limit, options.domain_memory.clone()));
        let epoch = epoch();
        let ledger = Arc::new(Ledger::new(epoch));
        let settings = Settings {
            limits: options.limits,
            domains: options.domains.iter().map(|d| d.name.clone()).collect(),
        };
        let reporter = Reporter::start(Arc::clone(&ledger), settings)?;
        let disposal = Disposal::start(&accounts)?;
        let workers = Workers::new()?;
        let allocate = options.limits.allocate || counts_memory_strictly();
        let trim_after = Duration::from_millis(options.limits.trim_after_ms.into());
        let trim_after = (!allocate && !trim_after.is_zero()).then_some(trim_after);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        epoll.add(listener.socket(), readable(LISTENER))?;
        epoll.add(&signals, readable(SIGNALS))?;
        epoll.add(reporter.bell(), readable(REPORTER))?;
        epoll.add(workers.bell(), readable(WORKERS))?;
        let own_netns = crate::memory::netns_cookie(listener.socket()).ok();
        let broker = Broker::new(Arc::clone(&accounts), options.domains.clone(), own_netns);
        let (mut keeper, mut kept, mut survivors) = (None, None, Survivors::none());
        let mut of_vms = Vec::new();
        if !links.is_empty() || !vms.is_empty() || Keeper::may_have_kept(listener.path()) {
            let found;
            (keeper, found, survivors, of_vms) = keep_for(listener.path());
            kept = Some(found);
        }
        let socket_files = SocketFiles::like(listener.socket())?;
        let mut diag = SockDiag::new();
        if diag.works() == Some(false) {
            tracing::warn!("this kernel does not answer sock_diag: every connection stays on TCP");
        }
        let mut daemon = Self {
            options,
            epoll,
            listener,
            signals,
            reporter,
            disposal,
            accounts,
            ledger,
            broker,
            clients: HashMap::new(),
            programs: HashMap::new(),
            departed: HashMap::new(),
            departures: Agenda::new(&departures::PAUSES_MS),
            withdrawals: Withdrawals::new(),
            revocations: Revocations::default(),
            trims: Trims::new(trim_after),
            arenas: HashMap::new(),
            workers,
            relay: None,
            uplink,
            vms,
            telling: vms::Telling::default(),
            keeper,
            kept,
            survivors,
            ports: relays::Ports::default(),
            doomed: Vec::new(),
            stalled: Vec::new(),
            inbox: Inbox::new(),
            diag,
            socket_files,
            throttle: Throttle::new(Instant::now()),
            last_token: FIRST_TOKEN,
            last_process: 0,
            allocate,
            accepting: Accepting {
                spare: spare(),
                again_at: None,
            },
            had_client: false,
            drain: None,
            stopping: false,
        };
        let restored = daemon.take_over_vms(of_vms);
        let has_kept = |kept: &Kept| !kept.connections.is_empty();
        if !links.is_empty()
            || daemon.kept.as_ref().is_some_and(has_kept)
            || daemon.survivors.len() > 0
        {
            daemon.start_relay_with(links)?;
        }
        daemon.watch_survivors();
        daemon.watch_uplink([UPLINK, UPLINK_COMMON, UPLINK_NEWS])?;
        daemon.ask_vms(restored);
        daemon.watch_vms()?;
        Ok(daemon)
    }

    /// Serves until a signal, or with `embedded` until the last client has left.
    ///
    /// # Errors
    /// The event loop itself cannot go on.
    pub fn run(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let mut events = [EpollEvent::empty(); EVENTS];
        while !self.stopping {
            if self.options.embedded && self.clients.is_empty() {
                if self.had_client && self.departures.is_empty() {
                    tracing::info!("the last client has left");
                    break;
                }
                if !self.had_client && started.elapsed() >= FIRST_CLIENT {
                    tracing::info!("no client came");
                    break;
                }
            }
            let timeout = self.timeout(started);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(count) {
                self.handle(event.data(), event.events());
                self.perform();
            }
            self.tick(Instant::now());
        }
        crate::direction::retire();
        self.relay = None;
        if let Some(keeper) = self.keeper.take() {
            if self.vms.is_empty() {
                keeper.finish();
            } else {
                // Guests run on, and nobody else can give them the device again.
                keeper.finish_but(keeping::NAMES);
            }
        }
        Ok(())
    }

    fn handle(&mut self, token: u64, events: EpollFlags) {
        match token {
            LISTENER => self.accept(),
            SIGNALS => {
                while let Ok(Some(signal)) = self.signals.read_signal() {
                    tracing::info!(signal = signal.ssi_signo, "stopping");
                    self.stop();
                }
            }
            REPORTER => self.take_served(),
            WORKERS => self.take_results(),
            RELAY => self.take_reports(),
            UPLINK => self.take_uplink(),
            UPLINK_COMMON => self.ring_common(),
            UPLINK_NEWS => self.look_at_device(),
            token if self.handle_survivor(token) || self.handle_vm(token) => {}
            token => self.serve_client(token, events),
        }
    }

    /// What is due by the clock.
    fn tick(&mut self, now: Instant) {
        while let Some(id) = self.departures.pop_due(now) {
            self.examine(id, now);
        }
        self.tick_withdrawals(now);
        self.tick_revocations(now);
        self.tick_trims(now);
        self.tick_drain(now);
        self.tick_uplink(now);
        self.tick_vms(now);
        self.tick_survivors(now);
        for token in std::mem::take(&mut self.stalled) {
            self.flush(token);
        }
        if self.accepting.again_at.is_some_and(|at| at <= now) {
            self.resume_accepting();
        }
        self.perform();
        self.note_vms();
        self.ledger
            .clients
            .store(self.clients.len(), Count::Relaxed);
        self.ledger
            .pairs
            .store(self.broker.connections(), Count::Relaxed);
        self.ledger.arenas.store(self.arenas.len(), Count::Relaxed);
        let relayed = self.relay.as_ref().map_or(0, Relay::relayed);
        self.ledger.relayed.store(relayed, Count::Relaxed);
    }

    fn timeout(&self, started: Instant) -> EpollTimeout {
        let first = (self.options.embedded && !self.had_client).then(|| started + FIRST_CLIENT);
        let retry = (!self.stalled.is_empty()).then(|| Instant::now() + STALL_PAUSE);
        let next = [
            self.departures.next(),
            self.withdrawals.tasks.next(),
            self.withdrawals.rescues.next(),
            self.revocations.next(),
            self.trims.next(),
            self.survivors.next(),
            self.drain.as_ref().map(drain::Drain::next),
            self.accepting.again_at,
            self.uplink.as_ref().and_then(Uplink::next),
            self.telling.next(),
            self.vms.ghosts.next(),
            first,
            retry,
        ];
        match next.into_iter().flatten().min() {
            None => EpollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up, so that it is due when we wake.
                let left = left + Duration::from_millis(1);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO)
            }
        }
    }

    /// Whether a client may cause a line in the log now.
    fn may_log(&mut self) -> bool {
        match self.throttle.allow(Instant::now()) {
            Some(0) => true,
            Some(suppressed) => {
                tracing::warn!(suppressed, "lines about clients were left out");
                true
            }
            None => false,
        }
    }
}

/// Descriptors of one user that may wait to be closed.
const STRAYS_MAX: u64 = 512;

/// Who keeps what the next daemon needs, and what one before us has left there.
fn keep_for(socket: &Path) -> (Option<Keeper>, Kept, Survivors, Vec<Item>) {
    let opened = Keeper::open(socket).map(|(mut keeper, items)| {
        let is_of_vms = |(name, _): &Item| name.starts_with(keeping::NAMES);
        let (of_vms, items) = items.into_iter().partition(is_of_vms);
        let (kept, survivors) = survivors::sort(&mut keeper, items);
        (Some(keeper), kept, survivors, of_vms)
    });
    opened.unwrap_or_else(|error| {
        tracing::warn!(%error, "no keeper: relayed connections end with this daemon");
        (None, Kept::default(), Survivors::none(), Vec::new())
    })
}

/// Never 0, and another one for each run.
fn epoch() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()).max(1)
}

/// Names this host, or rather the daemon that listens at `socket` on it, the same in each run.
fn identity_of(socket: &Path) -> [u8; 16] {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &machine, socket).hash(&mut hasher);
        hasher.finish()
    };
    let mut identity = [0; 16];
    for (bytes, half) in identity.chunks_exact_mut(8).zip([half(0), half(1)]) {
        bytes.copy_from_slice(&half.to_be_bytes());
    }
    identity
}

fn spare() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// With vm.overcommit_memory = 2 a page that cannot be had is refused when it is touched; so every
/// page of a connection is taken before anybody gets it.
fn counts_memory_strictly() -> bool {
    std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2")
}
