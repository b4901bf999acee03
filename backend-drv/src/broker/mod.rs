//! The state machine that pairs registrations: who is there, who waits for whom, who shares what.
//!
//! It does no I/O. The shell ([`crate::daemon`]) feeds it parsed messages and facts learned from the
//! kernel through the methods below, and after each of them performs every [`Action`] that
//! [`Broker::poll_action`] yields; some actions ask a question and are answered by another method:
//!
//! | action | answer |
//! |---|---|
//! | [`Action::Compare`] | [`Broker::compared`] |
//! | [`Action::Prepare`] | [`Broker::prepared`] |
//! | [`Action::Recycle`] | [`Broker::recycled`] |
//! | [`Action::Examine`] | [`Broker::examined`], later |
//! | [`Action::Reach`] | [`Broker::reachable`], if there is a backend |
//! | [`Action::Sample`] | [`Broker::sampled`] |
//! | [`Action::OpenRelay`] | [`Broker::relay_opened`], and in the end [`Broker::relay_closed`] |
//! | [`Action::OpenHere`] | [`Broker::opened_here`], and in the end [`Broker::relay_closed`] for each |
//! | [`Action::Withdraw`] | [`Broker::withdrawn`], later |
//!
//! A registration waits until its mirror image arrives, is attached while both ends share memory,
//! and is forgotten when its end unregisters or its program leaves. Memory is used again only after
//! both ends have let go of it.

mod action;
mod admission;
mod apart;
#[cfg(test)]
mod apart_tests;
mod departure;
#[cfg(test)]
mod departure_tests;
mod facts;
mod matching;
#[cfg(test)]
mod matching_tests;
mod remote;
#[cfg(test)]
mod remote_tests;
mod revoking;
#[cfg(test)]
mod revoking_tests;
#[cfg(test)]
mod tests;
mod uplinked;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use rdma_core::control::{Context, ContextRef, Message, Peer, Refused, SlotRef, Welcome};
use rdma_core::layout::{End, LAYOUT_VERSION};
use rdma_core::reason::Reason;

pub use action::{Action, Beside, Fate, Half, Shortage};
pub use facts::{Domain, ProgramFacts, Proof, UserNamespace};
pub use revoking::{Ends, Filter, Matches, Occupant};
pub use uplinked::{UPLINK, Uplinked, arena_id, connection_id, host_connection, is_host_arena};

use crate::accounts::{Account, Accounts, Holdings};
use crate::carving::{Carving, Place};
use crate::ids::{ArenaId, ConnectionId, Process, RegistrationId};
use crate::keeper::record::Origin;
use crate::pairing::Tuple;

use remote::{Offers, Relay, Remote};

/// A program.
#[derive(Debug)]
struct Program {
    facts: ProgramFacts,
    contexts: BTreeSet<u32>,
    slots: HashMap<u32, RegistrationId>,
    peers: BTreeSet<Process>,
    arenas: HashSet<ArenaId>,
}

/// One registration.
#[derive(Debug)]
pub struct Registration {
    /// The program.
    pub process: Process,
    /// Its slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
    /// What it is called there.
    pub tuple: Tuple,
    /// What the kernel said at registration.
    pub proof: Proof,
    connects: bool,
    netns: u64,
    uid: u32,
    /// Also known under its addresses alone, because a domain owns them.
    owned: bool,
    /// The search for its far end on another host.
    remote: Option<Remote>,
    state: State,
}

impl Registration {
    /// Cookie of the network namespace it was made in.
    pub const fn netns(&self) -> u64 {
        self.netns
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Attached(ConnectionId, End),
    /// Its program has left; the kernel is being asked what became of the socket.
    Leaving(ConnectionId, End),
}

#[derive(Debug)]
struct Connection {
    /// Ends 0 and 1; `None` once it has let go.
    ends: [Option<RegistrationId>; 2],
    processes: [Process; 2],
    place: Place,
    /// Its ends do not know of it yet.
    preparing: bool,
    /// They are not to be told of it, but refused for this reason.
    doomed: Option<Reason>,
    /// Threads at work on its memory: it is not used again before they are done.
    holds: u32,
    /// Its far end shares no memory with the near one.
    relay: Option<Relay>,
    /// Its far end is outside this guest.
    uplinked: Option<Uplinked>,
}

/// What an arena costs, and whom.
#[derive(Debug)]
struct Paid {
    accounts: Vec<Account>,
    bytes: u64,
    processes: [Process; 2],
}

/// The namespace of one end, and the end's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    netns: u64,
    tuple: Tuple,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Broker {
    accounts: Arc<Accounts>,
    domains: Vec<Domain>,
    programs: HashMap<Process, Program>,
    registrations: HashMap<RegistrationId, Registration>,
    by_key: HashMap<Key, RegistrationId>,
    by_tuple: HashMap<Tuple, Vec<RegistrationId>>,
    connections: HashMap<ConnectionId, Connection>,
    /// Connections with a far end on another host, by the registration here, which may be gone.
    abroad: HashMap<RegistrationId, ConnectionId>,
    carving: Carving,
    paid: HashMap<ArenaId, Paid>,
    /// Attached registrations of programs that left, by program.
    leaving: HashMap<Process, usize>,
    last_registration: u64,
    last_connection: u64,
    offers: Offers,
    own_netns: Option<u64>,
    /// Processes outside this guest, and their contexts.
    foreign: HashMap<Process, BTreeSet<u32>>,
    /// Inodes of sockets whose connections a daemon before us has made.
    inherited: HashMap<Key, u32>,
    actions: VecDeque<Action>,
}

impl Broker {
    /// Nobody is there yet. `domains` are the configured ones, `own_netns` the daemon's own network namespace,
    /// whose programs may have far ends on other hosts as well.
    pub fn new(accounts: Arc<Accounts>, domains: Vec<Domain>, own_netns: Option<u64>) -> Self {
        Self {
            accounts,
            domains,
            programs: HashMap::new(),
            registrations: HashMap::new(),
            by_key: HashMap::new(),
            by_tuple: HashMap::new(),
            connections: HashMap::new(),
            abroad: HashMap::new(),
            carving: Carving::default(),
            paid: HashMap::new(),
            leaving: HashMap::new(),
            last_registration: 0,
            last_connection: 0,
            offers: Offers::default(),
            own_netns,
            foreign: HashMap::new(),
            inherited: HashMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A registration that an action names.
    pub fn registration(&self, id: RegistrationId) -> Option<&Registration> {
        self.registrations.get(&id)
    }

    /// Connections that share memory now.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Where the memory of each of them is, but for those that are still being made.
    pub fn places(&self) -> impl Iterator<Item = (ConnectionId, Place)> + '_ {
        let made = self
            .connections
            .iter()
            .filter(|(_, entry)| !entry.preparing);
        made.map(|(id, entry)| (*id, entry.place))
    }

    /// The number of the newest connection.
    pub const fn newest(&self) -> ConnectionId {
        ConnectionId(self.last_connection)
    }

    /// A program has said HELLO and its event memory exists.
    pub fn join(&mut self, process: Process, facts: ProgramFacts, epoch: u64) {
        let program = Program {
            facts,
            contexts: BTreeSet::new(),
            slots: HashMap::new(),
            peers: BTreeSet::new(),
            arenas: HashSet::new(),
        };
        self.programs.insert(process, program);
        let welcome = Welcome {
            process: process.0,
            layout_version: LAYOUT_VERSION,
            epoch,
            at: 0,
            machine: 0,
            reserved: 0,
        };
        self.send(
            process,
            Message::Welcome(welcome),
            Some(Beside::Events(process)),
        );
    }

    /// The configured domain of a network namespace.
    pub fn domain_of(&self, netns: u64) -> Option<usize> {
        self.domains.iter().position(|domain| domain.netns == netns)
    }

    /// A connection of a daemon before us goes on without the broker: its numbers are not given out, and its socket
    /// gets no other connection.
    pub fn inherit(&mut self, connection: ConnectionId, arena: ArenaId, origin: &Origin) {
        self.last_connection = self.last_connection.max(connection.0);
        self.carving.skip(arena);
        let Origin {
            netns,
            tuple,
            proof,
            ..
        } = *origin;
        self.inherited.insert(Key { netns, tuple }, proof.inode);
    }

    /// An inherited connection is over.
    pub fn disinherit(&mut self, origin: &Origin) {
        let Origin { netns, tuple, .. } = *origin;
        self.inherited.remove(&Key { netns, tuple });
    }

    /// The socket of a relayed connection.
    pub fn origin(&self, connection: ConnectionId) -> Option<Origin> {
        let entry = self.connections.get(&connection)?;
        let id = entry.ends.into_iter().flatten().next()?;
        let registration = self.registrations.get(&id)?;
        Some(Origin {
            tuple: registration.tuple,
            netns: registration.netns,
            uid: registration.uid,
            proof: registration.proof,
        })
    }

    /// A program has sent the doorbell of one of its contexts, which the shell keeps.
    pub fn context(&mut self, process: Process, context: u32) {
        let Some(program) = self.programs.get_mut(&process) else {
            return;
        };
        program.contexts.insert(context);
        let peers: Vec<Process> = program.peers.iter().copied().collect();
        for peer in peers {
            self.tell_context(peer, process, context);
        }
        let known = Context {
            context,
            reserved: 0,
        };
        self.send(process, Message::ContextKnown(known), None);
    }

    /// A program asks to ring a doorbell that it has not got. False if it may not.
    pub fn kick(&mut self, process: Process, target: ContextRef) -> bool {
        let peer = Process(target.process);
        let allowed = self
            .programs
            .get(&process)
            .is_some_and(|program| program.peers.contains(&peer));
        if allowed {
            self.actions.push_back(Action::Ring {
                process: peer,
                context: target.context,
            });
        }
        allowed
    }

    /// A program has closed its end, or gives the registration up.
    pub fn unregister(&mut self, process: Process, slot: SlotRef) {
        let Some(id) = self
            .programs
            .get(&process)
            .and_then(|program| program.slots.get(&slot.slot).copied())
        else {
            return;
        };
        let generation = self.registrations.get(&id).map(|reg| reg.generation);
        if generation == Some(slot.generation) {
            self.remove(id);
        }
    }

    /// Forgets a registration; the last of a connection's two ends frees its memory.
    fn remove(&mut self, id: RegistrationId) {
        let Some(registration) = self.registrations.remove(&id) else {
            return;
        };
        let key = Key {
            netns: registration.netns,
            tuple: registration.tuple,
        };
        if self.by_key.get(&key) == Some(&id) {
            self.by_key.remove(&key);
        }
        if registration.owned
            && let Some(list) = self.by_tuple.get_mut(&registration.tuple)
        {
            list.retain(|other| *other != id);
            if list.is_empty() {
                self.by_tuple.remove(&registration.tuple);
            }
        }
        if let Some(program) = self.programs.get_mut(&registration.process) {
            program.slots.remove(&registration.slot);
        }
        self.accounts
            .discharge(Account::User(registration.uid), Holdings::CONNECTION);
        self.leave_abroad(&registration, id);
        self.actions.push_back(Action::Settled {
            process: registration.process,
            slot: registration.slot,
        });
        if let State::Attached(connection, end) | State::Leaving(connection, end) =
            registration.state
        {
            self.let_go(connection, end);
        }
    }

    /// One end of `connection` uses its memory no more.
    fn let_go(&mut self, connection: ConnectionId, end: End) {
        let Some(entry) = self.connections.get_mut(&connection) else {
            return;
        };
        if let Some(slot) = entry.ends.get_mut(end.index()) {
            *slot = None;
        }
        if entry.uplinked.is_some() || entry.relay.is_some_and(|relay| relay.open) {
            self.tell_end(connection);
        }
        self.recycle_if_unused(connection);
    }

    /// Frees the memory of a connection that both ends have let go of.
    fn recycle_if_unused(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.connections.get(&connection)
            && entry.ends == [None, None]
            && entry.holds == 0
        {
            let place = entry.place;
            self.forget_connection(connection);
            self.actions.push_back(Action::Recycle { place });
        }
    }

    fn forget_connection(&mut self, connection: ConnectionId) -> Option<Connection> {
        let entry = self.connections.remove(&connection)?;
        if let Some(own) = entry.relay.as_ref().and_then(Relay::own)
            && self.abroad.get(&own) == Some(&connection)
        {
            self.abroad.remove(&own);
        }
        Some(entry)
    }

    /// The memory at `place` has been zeroed, or could not be.
    pub fn recycled(&mut self, place: &Place, zeroed: bool) {
        if self.carving.release(place, zeroed) {
            self.drop_arena(place.arena);
        }
    }

    fn drop_arena(&mut self, arena: ArenaId) {
        if let Some(paid) = self.paid.remove(&arena) {
            let memory = Holdings::arena(paid.bytes);
            self.accounts.discharge_all(&paid.accounts, memory);
            for process in paid.processes {
                if let Some(program) = self.programs.get_mut(&process) {
                    program.arenas.remove(&arena);
                }
            }
        }
        self.actions.push_back(Action::DropArena(arena));
    }

    /// Refuses a registration that was entered before.
    fn refuse(&mut self, id: RegistrationId, reason: Reason) {
        let Some(registration) = self.registrations.get(&id) else {
            return;
        };
        let process = registration.process;
        let slot = SlotRef {
            slot: registration.slot,
            generation: registration.generation,
        };
        self.remove(id);
        self.send_refusal(process, slot, reason);
    }

    fn send_refusal(&mut self, process: Process, slot: SlotRef, reason: Reason) {
        let refused = Refused {
            slot: slot.slot,
            generation: slot.generation,
            reason: reason.code(),
            reserved: 0,
        };
        self.send(process, Message::Refused(refused), None);
    }

    fn send_gone(&mut self, to: Process, process: Process) {
        let gone = Peer {
            process: process.0,
            reserved: 0,
            at: 0,
        };
        self.send(to, Message::PeerGone(gone), None);
    }

    fn send(&mut self, to: Process, message: Message<'static>, beside: Option<Beside>) {
        self.actions.push_back(Action::Send {
            to,
            message,
            beside,
        });
    }
}
