//! What a daemon that was killed has left, put together again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::mirror::Mirror;
use rdma_core::reason::Reason;
use rdma_core::sync::full_barrier;

use super::Item;
use super::record::{Record, Records};
use crate::ids::{ArenaId, Process};
use crate::shared::{ConnectionArena, EventMemory};
use crate::sock_diag::Namespace;
use crate::vm::keeping::abandon_guests;
use crate::wake::Waiters;

/// Name of the records.
pub const RECORDS: &str = "records";

/// Name of something of a program's.
pub fn name_of(process: Process, what: &str) -> String {
    format!("p{process}.{what}")
}

/// Name of an arena.
pub fn name_of_arena(arena: ArenaId) -> String {
    format!("a{arena}")
}

/// A program, as far as the relay has to do with it.
#[derive(Debug)]
pub struct Host {
    /// Its contexts and doorbells.
    pub program: Arc<Waiters>,
    /// How it knows the relay.
    pub port: Arc<Waiters>,
    /// The doorbell that it got.
    pub bell: Arc<OwnedFd>,
    /// Where its sockets are.
    pub namespace: Namespace,
    /// Readable once it has ended.
    pub life: Option<OwnedFd>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Estate {
    /// Where it is written; also that of connections that are not among `connections`.
    pub records: Option<Records>,
    /// Programs.
    pub hosts: HashMap<Process, Host>,
    /// Connections, by endpoint.
    pub connections: Vec<(u32, Record, Arc<ConnectionArena>)>,
    /// Those of guests, whose memory is that of their region.
    pub guests: Vec<(u32, Record)>,
    /// What is of no use.
    pub rest: Vec<Item>,
}

impl Estate {
    /// What the keeper has.
    pub fn of(items: Vec<Item>) -> Self {
        let mut found = Found(items.into_iter().collect());
        let mut estate = Self {
            records: found.take(RECORDS).and_then(Records::of),
            ..Self::default()
        };
        let records = estate.records.as_ref().map(Records::read);
        let records = records.and_then(|read| {
            read.inspect_err(|error| tracing::error!(%error, "what was kept cannot be read"))
                .ok()
        });
        let mut arenas: HashMap<ArenaId, Arc<ConnectionArena>> = HashMap::new();
        for (endpoint, record) in records.unwrap_or_default() {
            if record.guest.is_some() {
                estate.guests.push((endpoint, record));
                continue;
            }
            if !estate.hosts.contains_key(&record.process)
                && let Some(host) = found.host(&record)
            {
                estate.hosts.insert(record.process, host);
            }
            let id = record.place.arena;
            if !arenas.contains_key(&id)
                && let Some(memory) = found.take(&name_of_arena(id))
                && let Ok(arena) = ConnectionArena::of(memory, record.place.arena_bytes)
            {
                arenas.insert(id, Arc::new(arena));
            }
            if let Some(arena) = arenas.get(&id) {
                let arena = Arc::clone(arena);
                estate.connections.push((endpoint, record, arena));
            } else {
                tracing::warn!(connection = %record.connection, "its memory was not kept");
                if let Some(records) = &estate.records {
                    records.erase(endpoint);
                }
            }
        }
        estate.rest = found.0.into_iter().collect();
        estate
    }

    /// Nobody goes on with it: programs are told.
    pub fn abandon(&self, reason: Reason) {
        for (_, record, arena) in &self.connections {
            let host = self.hosts.get(&record.process);
            let waiters = host.map(|host| &*host.program);
            abandon_one(record, arena, waiters, reason);
        }
        abandon_guests(&self.guests, &self.rest, reason);
    }
}

/// Nobody goes on with a connection of `program`, which is told.
pub fn abandon_one(
    record: &Record,
    arena: &ConnectionArena,
    program: Option<&Waiters>,
    reason: Reason,
) {
    let (place, end) = (&record.place, record.end);
    if let Some(own) = arena.end(place.offset, end.far()) {
        let who = WaitRef {
            process: record.port.0,
            context: 0,
            bit: Some(record.bit),
        };
        let at = (place.offset, place.ring_log2, end.far());
        let mirror = arena.hold(at, |view| Mirror::resumed(view, who).ok());
        match mirror {
            Some(mut mirror) if mirror.get().is_off() || mirror.get().is_unused() => {
                mirror.get_mut().ask_to_leave();
                let _ = mirror.get_mut().look();
            }
            _ => own.state.break_with(reason),
        }
    }
    full_barrier();
    if let Some(words) = arena.end(place.offset, end)
        && let Some(program) = program
    {
        for what in [WaitFor::Data, WaitFor::Space] {
            words.waits.each(what, |who| {
                if who.process == program.process.0 {
                    program.wake(who);
                }
            });
        }
    }
}

/// Descriptors by name.
struct Found(HashMap<String, OwnedFd>);

impl Found {
    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// The program of a record, if all that it takes is there.
    fn host(&mut self, record: &Record) -> Option<Host> {
        let name = |what: &str| name_of(record.process, what);
        let uid = record.origin.uid;
        let events = EventMemory::of(self.take(&name("events"))?).ok()?;
        let own = EventMemory::of(self.take(&name("port"))?).ok()?;
        let bell = self.take(&name("ring"))?;
        let namespace = Namespace {
            cookie: record.origin.netns,
            netlink: Arc::new(self.take(&name("netlink"))?),
        };
        let program = Waiters::new(record.process, uid, events);
        let bells = name("bell");
        let contexts: Vec<u32> = self
            .0
            .keys()
            .filter_map(|name| name.strip_prefix(&bells)?.parse().ok())
            .collect();
        for context in contexts {
            if let Some(bell) = self.take(&format!("{bells}{context}")) {
                let _nobody_rang = program.add_doorbell(context, bell);
            }
        }
        let port = Waiters::new(record.port, uid, own);
        let _nobody_rang = port.add_doorbell(0, bell.try_clone().ok()?);
        Some(Host {
            program: Arc::new(program),
            port: Arc::new(port),
            bell: Arc::new(bell),
            namespace,
            life: self.take(&name("pid")),
        })
    }
}
