//! Relayed connections that this daemon took over from one before it, and their programs.
//!
//! Nobody knows of them but the relay and this module: their control sockets ended with the old daemon. A program
//! that closes its end says so in the connection's memory. One that was killed is noticed by its process
//! descriptor; then the kernel is asked which of its sockets are still held, by children for example, and asked again
//! for those from time to time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::Daemon;
use super::agenda::Agenda;
use crate::accounts::{Account, Holdings};
use crate::broker::Filter;
use crate::ids::{ArenaId, ConnectionId, Process};
use crate::keeper::estate::{Estate, RECORDS, name_of, name_of_arena};
use crate::keeper::record::{Origin, Records};
use crate::keeper::{Item, Keeper};
use crate::relay::{Command, Kept, KeptPort};
use crate::shared::ConnectionArena;
use crate::sock_diag::{Namespace, SockDiag};
use crate::wake::Waiters;

/// Pauses between two looks at the sockets of a program that has ended; the last is repeated.
const PAUSES_MS: [u64; 4] = [1, 20, 200, 1000];

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Survivors {
    connections: HashMap<ConnectionId, Survivor>,
    by_program: HashMap<Process, BTreeSet<ConnectionId>>,
    /// How many lie in each arena.
    by_arena: HashMap<ArenaId, usize>,
    programs: HashMap<Process, Program>,
    /// Their ports.
    ports: HashSet<Process>,
    by_token: HashMap<u64, Process>,
    /// Users who pay for memory.
    paid: HashMap<ArenaId, (u32, Holdings)>,
    looks: Agenda<Process>,
}

/// A connection.
#[derive(Debug)]
struct Survivor {
    process: Process,
    arena: ArenaId,
    origin: Origin,
    /// Its program is known to be gone.
    departed: bool,
    /// Its user pays for it.
    paid: bool,
}

/// A program.
#[derive(Debug)]
struct Program {
    port: Process,
    namespace: Namespace,
    /// Readable once the program has ended.
    life: Option<OwnedFd>,
    /// Its name in epoll.
    token: u64,
}

impl Survivors {
    pub(super) fn none() -> Self {
        Self {
            connections: HashMap::new(),
            by_program: HashMap::new(),
            by_arena: HashMap::new(),
            programs: HashMap::new(),
            ports: HashSet::new(),
            by_token: HashMap::new(),
            paid: HashMap::new(),
            looks: Agenda::endless(&PAUSES_MS),
        }
    }

    /// Whether a number of programs and ports is in use.
    pub(super) fn has_number(&self, number: Process) -> bool {
        self.programs.contains_key(&number) || self.ports.contains(&number)
    }

    pub(super) fn len(&self) -> usize {
        self.programs.len()
    }

    /// When something is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.looks.next()
    }

    fn insert(&mut self, id: ConnectionId, survivor: Survivor) {
        let of_program = self.by_program.entry(survivor.process).or_default();
        of_program.insert(id);
        *self.by_arena.entry(survivor.arena).or_default() += 1;
        self.connections.insert(id, survivor);
    }

    /// A connection that is over, whether it was the last of its arena, and of its program.
    fn remove(&mut self, id: ConnectionId) -> Option<(Survivor, bool, bool)> {
        let survivor = self.connections.remove(&id)?;
        let left = self.by_arena.entry(survivor.arena).or_default();
        *left = left.saturating_sub(1);
        let is_last_of_arena = *left == 0;
        if is_last_of_arena {
            self.by_arena.remove(&survivor.arena);
        }
        let of_program = self.by_program.entry(survivor.process).or_default();
        of_program.remove(&id);
        let is_last = of_program.is_empty();
        if is_last {
            self.by_program.remove(&survivor.process);
        }
        Some((survivor, is_last_of_arena, is_last))
    }

    /// Forgets a program, whose connections are over.
    fn remove_program(&mut self, process: Process) -> Option<Program> {
        let host = self.programs.remove(&process)?;
        self.ports.remove(&host.port);
        self.by_token.remove(&host.token);
        Some(host)
    }
}

/// What the keeper has for us.
pub(super) fn sort(keeper: &mut Keeper, items: Vec<Item>) -> (Kept, Survivors) {
    let estate = Estate::of(items);
    // Of programs and connections that were over, or not there yet.
    for (name, _) in estate.rest {
        keeper.forget(&name);
    }
    let mut survivors = Survivors::none();
    let mut kept = Kept::default();
    for (process, host) in estate.hosts {
        kept.ports.push(KeptPort {
            program: host.program,
            port: Arc::clone(&host.port),
            bell: host.bell,
        });
        let program = Program {
            port: host.port.process,
            namespace: host.namespace,
            life: host.life,
            token: 0,
        };
        survivors.ports.insert(program.port);
        survivors.programs.insert(process, program);
    }
    for (_, record, _) in &estate.connections {
        let survivor = Survivor {
            process: record.process,
            arena: record.place.arena,
            origin: record.origin,
            departed: false,
            paid: false,
        };
        let memory = Holdings::arena(record.place.arena_bytes);
        let payer = (record.origin.uid, memory);
        survivors.paid.insert(record.place.arena, payer);
        survivors.insert(record.connection, survivor);
    }
    kept.connections = estate.connections;
    kept.records = estate.records;
    kept.guests = estate.guests;
    (kept, survivors)
}

/// Whether some process holds the socket, or nobody can say.
fn is_held(diag: &mut SockDiag, namespace: &Namespace, origin: &Origin) -> bool {
    let Origin { tuple, proof, .. } = origin;
    let answer = diag.lookup(namespace, tuple, Some(proof.cookie));
    answer.map_or(true, |found| {
        found.is_some_and(|sample| sample.inode == proof.inode)
    })
}

impl Daemon {
    /// Where the relay writes down what the next daemon has to know, unless a daemon before us has left that.
    pub(super) fn create_records(&mut self) -> Option<Records> {
        let keeper = self.keeper.as_mut()?;
        let records = Records::create().inspect_err(|error| {
            tracing::warn!(%error, "no records: relayed connections end with this daemon");
        });
        let records = records.ok()?;
        keeper.keep(RECORDS, records.memory());
        Some(records)
    }

    /// Has the kernel tell when a survivor ends, and the broker leave alone what is theirs.
    pub(super) fn watch_survivors(&mut self) {
        if self.survivors.connections.is_empty() {
            return;
        }
        let connections = self.survivors.connections.len();
        tracing::info!(connections, "going on with what another daemon relayed");
        for (id, survivor) in &mut self.survivors.connections {
            self.broker.inherit(*id, survivor.arena, &survivor.origin);
            let user = Account::User(survivor.origin.uid);
            // Over the limit or not: it is there.
            survivor.paid = self.accounts.charge(user, Holdings::CONNECTION).is_ok();
            self.ledger.survivors.insert(*id, survivor.origin);
        }
        let accounts = &self.accounts;
        self.survivors
            .paid
            .retain(|_, (uid, memory)| accounts.charge(Account::User(*uid), *memory).is_ok());
        let now = Instant::now();
        for (process, host) in &mut self.survivors.programs {
            self.last_token += 1;
            host.token = self.last_token;
            self.survivors.by_token.insert(host.token, *process);
            let event = EpollEvent::new(EpollFlags::EPOLLIN, host.token);
            let watched = host
                .life
                .as_ref()
                .is_some_and(|life| self.epoll.add(life, event).is_ok());
            if !watched {
                self.survivors.looks.again(*process, now);
            }
        }
    }

    /// Whether an event was about the end of a survivor.
    pub(super) fn handle_survivor(&mut self, token: u64) -> bool {
        let Some(process) = self.survivors.by_token.get(&token).copied() else {
            return false;
        };
        if let Some(host) = self.survivors.programs.get_mut(&process)
            && let Some(life) = host.life.take()
        {
            let _ = self.epoll.delete(&life);
        }
        self.look_at_survivor(process, Instant::now());
        true
    }

    /// What is due by the clock.
    pub(super) fn tick_survivors(&mut self, now: Instant) {
        while let Some(process) = self.survivors.looks.pop_due(now) {
            self.look_at_survivor(process, now);
        }
    }

    /// Finds the connections of a program that nobody holds any more.
    fn look_at_survivor(&mut self, process: Process, now: Instant) {
        let Some(host) = self.survivors.programs.get(&process) else {
            return self.survivors.looks.done(process);
        };
        let mut gone = Vec::new();
        let mut held = 0;
        for id in self
            .survivors
            .by_program
            .get(&process)
            .into_iter()
            .flatten()
        {
            let found = self.survivors.connections.get_mut(id);
            let Some(survivor) = found.filter(|survivor| !survivor.departed) else {
                continue;
            };
            if is_held(&mut self.diag, &host.namespace, &survivor.origin) {
                held += 1;
            } else {
                survivor.departed = true;
                gone.push(*id);
            }
        }
        if held == 0 {
            self.survivors.looks.done(process);
        } else {
            self.survivors.looks.again(process, now);
        }
        for id in gone {
            tracing::debug!(connection = %id, "its program is gone");
            self.command(Command::Depart(id, false));
        }
    }

    /// The same for one connection, whose program need not have ended.
    pub(super) fn doubt_survivor(&mut self, id: ConnectionId) {
        let Some(survivor) = self.survivors.connections.get_mut(&id) else {
            return;
        };
        let Some(host) = self.survivors.programs.get(&survivor.process) else {
            return;
        };
        if !survivor.departed && !is_held(&mut self.diag, &host.namespace, &survivor.origin) {
            survivor.departed = true;
            self.command(Command::Depart(id, false));
        }
    }

    /// Takes the connections that `filter` means off the rings; how many there are. Which process held one is not
    /// known any more.
    pub(super) fn revoke_survivors(&self, filter: &Filter) -> usize {
        let all = self.survivors.connections.iter();
        let meant = all.filter(|(id, survivor)| {
            let origin = &survivor.origin;
            filter.pid.is_none() && filter.fits(**id, &origin.tuple, origin.uid)
        });
        meant
            .map(|(id, _)| self.command(Command::Withdraw(*id)))
            .count()
    }

    /// The relay has let go of a connection.
    pub(super) fn survivor_left(&mut self, id: ConnectionId) {
        let Some((survivor, is_last_of_arena, is_last)) = self.survivors.remove(id) else {
            return;
        };
        self.ledger.survivors.remove(&id);
        self.broker.disinherit(&survivor.origin);
        if survivor.paid {
            let user = Account::User(survivor.origin.uid);
            self.accounts.discharge(user, Holdings::CONNECTION);
        }
        let process = survivor.process;
        if is_last_of_arena {
            self.forget_arena(survivor.arena);
            if let Some((uid, memory)) = self.survivors.paid.remove(&survivor.arena) {
                self.accounts.discharge(Account::User(uid), memory);
            }
        }
        if is_last {
            if let Some(host) = self.survivors.remove_program(process)
                && let Some(life) = &host.life
            {
                let _ = self.epoll.delete(life);
            }
            self.survivors.looks.done(process);
            self.command(Command::RemovePort(process));
            self.forget_program(process);
        }
    }

    // ---- What the next daemon will need ----

    fn keep(&mut self, name: &str, fd: impl AsFd) {
        if let Some(keeper) = &mut self.keeper {
            keeper.keep(name, fd);
        }
    }

    /// Has the memory of a relayed connection kept.
    pub(super) fn keep_arena(&mut self, arena: ArenaId, memory: &ConnectionArena) {
        let name = name_of_arena(arena);
        if self
            .keeper
            .as_ref()
            .is_some_and(|keeper| !keeper.has(&name))
        {
            self.keep(&name, memory.memory());
        }
    }

    pub(super) fn forget_arena(&mut self, arena: ArenaId) {
        if let Some(keeper) = &mut self.keeper {
            keeper.forget(&name_of_arena(arena));
        }
    }

    /// Has all kept that it takes to go on with the connections of a program. `port` is how it knows the relay.
    pub(super) fn keep_program(&mut self, process: Process, port: &Waiters, bell: &OwnedFd) {
        if self.keeper.is_none() {
            return;
        }
        let Some(program) = self.programs.get(&process) else {
            return;
        };
        let waiters = Arc::clone(&program.waiters);
        let netlink = Arc::clone(&program.namespace.netlink);
        let pid = i32::try_from(program.record.pid).ok();
        let pid = pid.and_then(rustix::process::Pid::from_raw);
        let life = pid.and_then(|pid| {
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
        });
        self.keep(&name_of(process, "events"), waiters.events.memory());
        self.keep(&name_of(process, "netlink"), &*netlink);
        self.keep(&name_of(process, "port"), port.events.memory());
        self.keep(&name_of(process, "ring"), bell);
        if let Some(life) = life {
            self.keep(&name_of(process, "pid"), life);
        }
        for (context, bell) in waiters.all_doorbells() {
            self.keep(&name_of(process, &format!("bell{context}")), &*bell);
        }
    }

    /// Has a new doorbell of a program kept, if its connections are.
    pub(super) fn keep_doorbell(&mut self, process: Process, context: u32) {
        let is_kept = |keeper: &Keeper| keeper.has(&name_of(process, "ring"));
        if self.keeper.as_ref().is_some_and(is_kept)
            && let Some(program) = self.programs.get(&process)
            && let Some(bell) = program.waiters.doorbell(context)
        {
            self.keep(&name_of(process, &format!("bell{context}")), &*bell);
        }
    }

    pub(super) fn forget_program(&mut self, process: Process) {
        if let Some(keeper) = &mut self.keeper {
            keeper.forget_all(&name_of(process, ""));
        }
    }
}
