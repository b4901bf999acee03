//! What the tools may ask about: programs, who shares with whom, totals of sessions.
//!
//! Written by the event loop, read by the reporter's thread at the same time.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering as Count};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dashmap::DashMap;
use rdma_core::counters::REASONS;
use rdma_core::slot::{Slot, Stage};
use rdma_core::sync::Ordering;

use crate::ids::{ConnectionId, Process};
use crate::keeper::record::Origin;
use crate::shared::SlotArena;

/// Finished sessions remembered per user; the oldest is forgotten first.
const SESSIONS_PER_USER: usize = 1024;
/// How often to add up again because a program left meanwhile.
const TOTALS_TRIES: usize = 100;

/// A program, as far as the tools care.
#[derive(Debug)]
pub struct ProgramRecord {
    /// Its number.
    pub process: Process,
    /// Process id, as the daemon sees it.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The `viaduct run` that started it, or 0.
    pub session: u64,
    /// Waiting contexts it has announced.
    pub contexts: AtomicU32,
    /// Its slots.
    pub slots: SlotArena,
}

impl ProgramRecord {
    /// Gives each slot in use to `found`, but not those of which everything is in the counters.
    pub fn each_slot(&self, mut found: impl FnMut(u32, &Slot)) {
        let used = self.slots.header().slots_used.load(Ordering::Relaxed);
        self.slots.each_slot(used, |index, slot| {
            if slot.stage() != Stage::Free && !slot.is_counted() {
                found(index, slot);
            }
        });
    }
}

/// The far end of an attached slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// The connection.
    pub connection: ConnectionId,
    /// The program at the far end.
    pub peer: Process,
}

/// Sums over programs. The values come from programs and may be anything; the sums saturate.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "named as in `rdma_core::ProcessCounters`")]
pub struct Totals {
    pub processes: u64,
    pub ring_tx_bytes: u64,
    pub ring_rx_bytes: u64,
    pub tcp_tx_bytes: u64,
    pub tcp_rx_bytes: u64,
    pub upgraded: u64,
    pub declined: u64,
    pub wakeups_sent: u64,
    pub sleeps: u64,
    pub spins_won: u64,
    pub reasons: [u64; REASONS],
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            processes: 0,
            ring_tx_bytes: 0,
            ring_rx_bytes: 0,
            tcp_tx_bytes: 0,
            tcp_rx_bytes: 0,
            upgraded: 0,
            declined: 0,
            wakeups_sent: 0,
            sleeps: 0,
            spins_won: 0,
            reasons: [0; REASONS],
        }
    }
}

impl Totals {
    /// Everything a program has done: connections that it closed, and those that it still has.
    pub fn of(program: &ProgramRecord) -> Self {
        let counters = &program.slots.header().counters;
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let mut totals = Self {
            processes: 1,
            ring_tx_bytes: read(&counters.ring_tx_bytes),
            ring_rx_bytes: read(&counters.ring_rx_bytes),
            tcp_tx_bytes: read(&counters.tcp_tx_bytes),
            tcp_rx_bytes: read(&counters.tcp_rx_bytes),
            upgraded: read(&counters.upgraded),
            declined: read(&counters.declined),
            wakeups_sent: read(&counters.wakeups_sent),
            sleeps: read(&counters.sleeps),
            spins_won: read(&counters.spins_won),
            reasons: core::array::from_fn(|code| counters.reasons.get(code).map_or(0, read)),
        };
        program.each_slot(|_, slot| {
            let more = [
                (&mut totals.ring_tx_bytes, slot.tx.cursor().tail),
                (&mut totals.ring_rx_bytes, slot.rx.cursor().head),
                (&mut totals.tcp_tx_bytes, read(&slot.tx.tcp_bytes)),
                (&mut totals.tcp_rx_bytes, read(&slot.rx.tcp_bytes)),
                (&mut totals.wakeups_sent, read(&slot.tx.kicks)),
                (&mut totals.sleeps, read(&slot.rx.sleeps)),
            ];
            for (sum, value) in more {
                *sum = sum.saturating_add(value);
            }
        });
        totals
    }

    /// Adds another sum to this one.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.processes, other.processes),
            (&mut self.ring_tx_bytes, other.ring_tx_bytes),
            (&mut self.ring_rx_bytes, other.ring_rx_bytes),
            (&mut self.tcp_tx_bytes, other.tcp_tx_bytes),
            (&mut self.tcp_rx_bytes, other.tcp_rx_bytes),
            (&mut self.upgraded, other.upgraded),
            (&mut self.declined, other.declined),
            (&mut self.wakeups_sent, other.wakeups_sent),
            (&mut self.sleeps, other.sleeps),
            (&mut self.spins_won, other.spins_won),
        ];
        let reasons = self.reasons.iter_mut().zip(other.reasons);
        for (sum, value) in pairs.into_iter().chain(reasons) {
            *sum = sum.saturating_add(value);
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Ledger {
    /// Programs that are here now.
    pub programs: DashMap<Process, Arc<ProgramRecord>>,
    /// Attached slots of programs that are here now.
    pub links: DashMap<(Process, u32), Link>,
    /// Relayed connections that a daemon before this one has made.
    pub survivors: DashMap<ConnectionId, Origin>,
    /// Totals of programs that left, by user and session.
    sessions: DashMap<(u32, u64), Totals>,
    order: Mutex<HashMap<u32, VecDeque<u64>>>,
    /// Odd while a program is moved from `programs` to `sessions`.
    moves: AtomicU64,
    /// Control sockets open now.
    pub clients: AtomicUsize,
    /// Connections sharing memory now.
    pub pairs: AtomicUsize,
    /// Arenas of connection memory now.
    pub arenas: AtomicUsize,
    /// Connections that are relayed to other hosts.
    pub relayed: AtomicUsize,
    /// Times that memory of a ring was given back while its connection went on.
    pub trimmed: AtomicUsize,
    /// Messages that were not according to the protocol.
    pub malformed: AtomicUsize,
    /// Registrations refused, by reason code.
    pub refused: [AtomicUsize; REASONS],
    /// What the relay has counted, as it last said; null without links.
    pub relay: Arc<Mutex<serde_json::Value>>,
    /// Virtual machines, as they last were; null without any.
    pub vms: Mutex<serde_json::Value>,
    /// When the daemon started.
    pub started: Instant,
    /// Of this run of the daemon.
    pub epoch: u64,
}

impl Ledger {
    /// Empty.
    pub fn new(epoch: u64) -> Self {
        Self {
            relay: Arc::default(),
            vms: Mutex::default(),
            programs: DashMap::new(),
            links: DashMap::new(),
            survivors: DashMap::new(),
            sessions: DashMap::new(),
            order: Mutex::new(HashMap::new()),
            moves: AtomicU64::new(0),
            clients: AtomicUsize::new(0),
            pairs: AtomicUsize::new(0),
            arenas: AtomicUsize::new(0),
            relayed: AtomicUsize::new(0),
            trimmed: AtomicUsize::new(0),
            malformed: AtomicUsize::new(0),
            refused: core::array::from_fn(|_| AtomicUsize::new(0)),
            started: Instant::now(),
            epoch,
        }
    }

    /// A program has left: what it did stays known to its session. Only the event loop calls this.
    pub fn retire(&self, process: Process) {
        self.moves.fetch_add(1, Count::SeqCst);
        self.move_to_session(process);
        self.moves.fetch_add(1, Count::SeqCst);
    }

    fn move_to_session(&self, process: Process) {
        let Some((_, program)) = self.programs.remove(&process) else {
            return;
        };
        if program.session == 0 {
            return;
        }
        let (uid, session) = (program.uid, program.session);
        let totals = Totals::of(&program);
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let sessions = order.entry(uid).or_default();
        if !sessions.contains(&session) {
            sessions.push_back(session);
            if sessions.len() > SESSIONS_PER_USER
                && let Some(oldest) = sessions.pop_front()
            {
                self.sessions.remove(&(uid, oldest));
            }
        }
        self.sessions
            .entry((uid, session))
            .or_default()
            .add(&totals);
    }

    /// Totals of a session, programs that left included; of all users for root.
    pub fn totals(&self, viewer: u32, session: u64) -> Totals {
        for _ in 0..TOTALS_TRIES {
            let before = self.moves.load(Count::SeqCst);
            let totals = self.sum(viewer, session);
            if before.is_multiple_of(2) && self.moves.load(Count::SeqCst) == before {
                return totals;
            }
            std::thread::yield_now();
        }
        // Programs come and go all the time; one of them may be missing.
        self.sum(viewer, session)
    }

    fn sum(&self, viewer: u32, session: u64) -> Totals {
        let mut sum = Totals::default();
        for entry in &self.sessions {
            if entry.key().1 == session && may_see(viewer, entry.key().0) {
                sum.add(entry.value());
            }
        }
        // Not summed up under the map's lock, for which the event loop would have to wait.
        let living: Vec<_> = self
            .programs
            .iter()
            .filter(|program| program.session == session && may_see(viewer, program.uid))
            .map(|program| Arc::clone(&program))
            .collect();
        for program in living {
            sum.add(&Totals::of(&program));
        }
        sum
    }

    /// Counts a refusal.
    pub fn count_refusal(&self, code: u32) {
        if let Some(counter) = self.refused.get(code as usize) {
            counter.fetch_add(1, Count::Relaxed);
        }
    }
}

/// Tools of root see everything, others what is their own.
pub const fn may_see(viewer: u32, owner: u32) -> bool {
    viewer == 0 || viewer == owner
}
