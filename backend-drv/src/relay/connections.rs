//! The relayed connections, by endpoint.

use std::collections::HashMap;
use std::sync::Arc;

use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::layout::End;
use rdma_core::link::{DomainId, Endpoint, Memory, Refusal, Time};
use rdma_core::mirror::{Look, Mirror, Snapshot};
use rdma_core::mr::{Counters, Keys, Regions, RemoteKey, Shape};
use rdma_core::ring::Corrupt;
use rdma_core::wire::pairing::Place as FarPlace;

use crate::carving::Place;
use crate::ids::{ConnectionId, Process};
use crate::keeper::record::Origin;
use crate::memory::Held;
use crate::shared::ConnectionArena;
use crate::wake::Waiters;

/// One relayed connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) mirror: Held<Mirror>,
    pub(super) process: Process,
    /// What the program waits with, if it is known here.
    pub(super) program: Option<Arc<Waiters>>,
    pub(super) who: WaitRef,
    pub(super) way: Way,
    pub(super) domain: DomainId,
    pub(super) keys: Keys,
    /// Where the far end is, once it is there. On this host: the other one of its two connections.
    pub(super) far: Option<FarPlace>,
    /// The program has closed its end.
    pub(super) ended: bool,
    /// The event loop knows that the sender has to follow.
    pub(super) granted: bool,
    /// The event loop was asked whether anybody holds the program's socket.
    pub(super) doubted: bool,
    /// What the far backend was told last.
    pub(super) told: Snapshot,
    /// Of a daemon before us: the program does not say by the control socket when it has closed its end.
    pub(super) restored: bool,
    /// The far backend has none of it any more.
    pub(super) alone: bool,
    /// The session of the link has ended, and the far backend may still have the connection.
    pub(super) suspended: Option<Suspended>,
    pub(super) place: Place,
    /// Where the arena begins in its file.
    pub(super) arena_at: u64,
    /// The program's end.
    pub(super) end: End,
    pub(super) origin: Origin,
}

/// Which way leads to the far end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Over this line, to another host's backend.
    Line(usize),
    /// It is on this host, and served here as a connection of its own.
    Here,
}

impl Connection {
    /// Something is about to be shown to the program; see [`Waiters::announce`].
    pub(super) fn announce(&self, what: WaitFor) {
        if let Some(program) = &self.program {
            program.announce(self.mirror.get().waits(), what);
        }
    }

    /// The far program has read up to `head`; as [`Mirror::consumed`].
    pub(super) fn consumed(&mut self, head: u64) -> bool {
        if self.mirror.get().positions().0 < head {
            self.announce(WaitFor::Space);
        }
        self.mirror.get_mut().consumed(head)
    }

    /// What the far end says; as [`Mirror::hear`].
    pub(super) fn hear(&mut self, said: Snapshot) -> Result<Look, Corrupt> {
        self.announce(WaitFor::Data);
        self.announce(WaitFor::Space);
        self.mirror.get_mut().hear(said)
    }

    /// The line that leads to the far backend, if there is one.
    pub(super) const fn line(&self) -> Option<usize> {
        match self.way {
            Way::Line(line) => Some(line),
            Way::Here => None,
        }
    }
}

/// A connection that waits for the far backend to resume it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspended {
    pub(super) since: Time,
    /// How far the program had read, as the far backend was told in this session.
    pub(super) told: Option<u64>,
}

/// What a connection is made of.
#[derive(Debug)]
pub struct Parts {
    /// The event loop's number.
    pub id: ConnectionId,
    /// Its memory.
    pub arena: Arc<ConnectionArena>,
    /// Where in it.
    pub place: Place,
    /// The program's end.
    pub end: End,
    /// The program.
    pub process: Process,
    /// Which way leads to the far end.
    pub way: Way,
    /// The domain that is charged.
    pub domain: DomainId,
    /// Who its end is, for whoever serves it after a restart.
    pub origin: Origin,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Connections {
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    by_id: HashMap<ConnectionId, u32>,
    regions: Regions,
}

impl Connections {
    /// None yet. `secret` is random: keys are made of it.
    pub(super) fn new(secret: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            regions: Regions::new(secret),
        }
    }

    /// A number for the next connection.
    pub(super) fn reserve(&mut self) -> Option<u32> {
        if let Some(endpoint) = self.free.pop() {
            return Some(endpoint);
        }
        let endpoint = u32::try_from(self.slots.len()).ok()?;
        self.slots.push(None);
        Some(endpoint)
    }

    /// A number that was reserved is not needed.
    pub(super) fn give_back(&mut self, endpoint: u32) {
        self.free.push(endpoint);
    }

    /// Reserves this very number. False: it is in use.
    pub(super) fn claim(&mut self, endpoint: u32) -> bool {
        let Ok(index) = usize::try_from(endpoint) else {
            return false;
        };
        while let Ok(next) = u32::try_from(self.slots.len())
            && next <= endpoint
        {
            self.slots.push(None);
            self.free.push(next);
        }
        if self.slots.get(index).is_none_or(Option::is_some) {
            return false;
        }
        let place = self.free.iter().position(|free| *free == endpoint);
        place.map(|place| self.free.swap_remove(place)).is_some()
    }

    /// Enters a connection under a number that was reserved; `None` if its memory is not what it should be, or there
    /// is no key. `key`: that of a daemon before us, who had the connection.
    pub(super) fn enter(
        &mut self,
        endpoint: u32,
        parts: Parts,
        who: WaitRef,
        key: Option<RemoteKey>,
    ) -> Option<FarPlace> {
        let at = (parts.place.offset, parts.place.ring_log2, parts.end.far());
        let mirror = parts.arena.hold(at, |view| match key {
            None => Mirror::new(view, who).ok(),
            Some(_) => Mirror::resumed(view, who).ok(),
        })?;
        let ring = Shape::Ring(mirror.get().capacity());
        let token = u64::from(endpoint);
        let keys = match key {
            None => self.regions.register(parts.domain, ring, token).ok(),
            Some(key) => self.regions.restore(parts.domain, ring, token, key),
        }?;
        let connection = Connection {
            id: parts.id,
            mirror,
            process: parts.process,
            program: None,
            who,
            way: parts.way,
            domain: parts.domain,
            keys,
            far: None,
            ended: false,
            granted: false,
            doubted: false,
            told: Snapshot::default(),
            restored: key.is_some(),
            alone: false,
            suspended: None,
            place: parts.place,
            arena_at: parts.arena.start(),
            end: parts.end,
            origin: parts.origin,
        };
        self.by_id.insert(parts.id, endpoint);
        *self.slots.get_mut(usize::try_from(endpoint).ok()?)? = Some(connection);
        Some(FarPlace {
            endpoint,
            rkey: keys.remote.0,
        })
    }

    /// Forgets a connection; its key is worth nothing from now on, and its number is free.
    pub(super) fn remove(&mut self, endpoint: u32) -> Option<Connection> {
        let connection = self.take_back(endpoint)?;
        self.free.push(endpoint);
        Some(connection)
    }

    /// As [`Connections::remove`], but its number stays reserved.
    pub(super) fn take_back(&mut self, endpoint: u32) -> Option<Connection> {
        let slot = self.slots.get_mut(usize::try_from(endpoint).ok()?)?;
        let connection = slot.take()?;
        self.regions.revoke(connection.keys.local);
        self.by_id.remove(&connection.id);
        Some(connection)
    }

    pub(super) fn get_mut(&mut self, endpoint: u32) -> Option<&mut Connection> {
        self.slots
            .get_mut(usize::try_from(endpoint).ok()?)?
            .as_mut()
    }

    pub(super) fn get(&self, endpoint: u32) -> Option<&Connection> {
        self.slots.get(usize::try_from(endpoint).ok()?)?.as_ref()
    }

    /// Both ends of a connection within this host, by one of their endpoints: that one, and the other.
    pub(super) fn pair_mut(&mut self, endpoint: u32) -> Option<(&mut Connection, &mut Connection)> {
        let other = self.partner(endpoint)?;
        let at = [endpoint, other].map(|endpoint| usize::try_from(endpoint).unwrap_or(usize::MAX));
        let [one, other] = self.slots.get_disjoint_mut(at).ok()?;
        Some((one.as_mut()?, other.as_mut()?))
    }

    /// The endpoint of the other end of a connection within this host.
    pub(super) fn partner(&self, endpoint: u32) -> Option<u32> {
        let one = self.get(endpoint).filter(|one| one.way == Way::Here)?;
        let far = one.far?;
        let other = self.get(far.endpoint)?;
        let own = FarPlace {
            endpoint,
            rkey: one.keys.remote.0,
        };
        let is_mutual = other.way == Way::Here
            && other.far == Some(own)
            && other.keys.remote.0 == far.rkey
            && endpoint != far.endpoint;
        is_mutual.then_some(far.endpoint)
    }

    /// The endpoint of a connection.
    pub(super) fn endpoint(&self, id: ConnectionId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// All endpoints in use, in an order that a simulation can have again.
    pub(super) fn endpoints(&self) -> Vec<u32> {
        let slots = (0u32..).zip(&self.slots);
        let used = slots.filter(|(_, slot)| slot.is_some());
        used.map(|(endpoint, _)| endpoint).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Use of the keys.
    pub(super) const fn keys(&self) -> Counters {
        self.regions.counters()
    }
}

/// Takes what comes over one line.
#[derive(Debug)]
pub(super) struct Placing<'a> {
    pub(super) connections: &'a mut Connections,
    pub(super) line: usize,
}

impl Memory for Placing<'_> {
    fn place(
        &mut self,
        endpoint: Endpoint,
        rkey: u32,
        offset: u64,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let Connections { slots, regions, .. } = &mut *self.connections;
        let connection = usize::try_from(endpoint.0)
            .ok()
            .and_then(|index| slots.get_mut(index)?.as_mut())
            .filter(|connection| connection.way == Way::Line(self.line))
            .ok_or(Refusal::Key)?;
        let domain = connection.domain;
        let len = payload.len() as u64;
        let place = regions
            .look_up(domain, RemoteKey(rkey), offset, len)
            .map_err(|_| Refusal::Key)?;
        if place.token != u64::from(endpoint.0) {
            return Err(Refusal::Key);
        }
        let mirror = connection.mirror.get_mut();
        if mirror.is_kept_empty() {
            return Err(Refusal::Busy);
        }
        mirror.place(offset, payload).map_err(|_| Refusal::Range)
    }
}
