//! Relaying: what is sent into the rings of this host's programs goes over links to other hosts' backends, and what
//! comes from there into the rings. Programs of this host that do not trust each other have it from ring to ring.
//!
//! ```text
//!  program => ring => Mirror => Link => Nic  ----->  Nic => Link => Mirror => ring => program
//!  program => ring => Mirror ======== copy ========> Mirror => ring => program
//! ```
//!
//! One thread, the `engine`, does all of it and owns all of it: the NICs ([`crate::nic`]), the state machines of
//! the links ([`rdma_core::link`]) and the daemon's side of each relayed connection ([`rdma_core::mirror`]). The
//! event loop hands it [`Command`]s, and takes [`Report`]s. Nothing is shared with the event loop but memory of
//! programs and the table of [`peers`].
//!
//! * [`peers`]: which backends there are, and which addresses are theirs.
//! * `ports`: how programs wake the relay, one port per program.
//! * `connections`: the relayed connections.
//! * [`switchboard`]: what is decided, without I/O; `resume`: after a restart of either backend.
//! * `nics`: the NICs, and who is reached over which.
//! * `announcing`: finding each other on an Ethernet segment.
//! * `idle`: how the engine waits.

mod announcing;
mod connections;
mod counters;
mod engine;
mod idle;
mod nics;
pub mod peers;
mod ports;
mod resume;
pub mod switchboard;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rdma_core::event::WaitRef;
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use crate::carving::Place;
use crate::ids::{ConnectionId, PeerId, Process};
use crate::keeper::record::{Beyond, Origin, Record, Records};
use crate::shared::ConnectionArena;
use crate::wake::Waiters;

pub use nics::Links;
pub use peers::Peers;

/// What the event loop asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve a program.
    AddPort {
        /// The program.
        program: Arc<Waiters>,
        /// How it knows the relay: what it may ring.
        port: Arc<Waiters>,
        /// The doorbell that it got.
        bell: Arc<OwnedFd>,
    },
    /// A program and all its connections are gone.
    RemovePort(Process),
    /// Serve a connection.
    Open {
        /// The end that is here.
        opening: Opening,
        /// The far backend.
        peer: PeerId,
        /// Where that takes bytes, if it has said so.
        far: Option<FarPlace>,
    },
    /// Serve a connection whose two ends are here.
    OpenHere(Box<[Opening; 2]>),
    /// The far backend has said where it takes bytes.
    Join(ConnectionId, FarPlace),
    /// Nobody was told of the connection: forget it.
    Close(ConnectionId),
    /// The program has closed its end.
    End(ConnectionId),
    /// The program has vanished; `true`: its socket lives on.
    Depart(ConnectionId, bool),
    /// TCP told of an end that the program has not said; its socket lives on.
    Linger(ConnectionId),
    /// The machine that the program was in has gone.
    Break(ConnectionId, Reason),
    /// Take the connection off the ring.
    Withdraw(ConnectionId),
    /// Put nothing into the program's ring, if that is empty. This is the relay's end.
    KeepEmpty(ConnectionId, End),
    /// The ring may be filled again.
    MayFill(ConnectionId),
    /// Say something to a backend.
    Tell(PeerId, Pairing),
    /// Take everything off the rings, then end.
    Drain,
    /// End.
    Stop,
}

/// One end that is to be served.
#[derive(Debug)]
pub struct Opening {
    /// The connection.
    pub connection: ConnectionId,
    /// Its memory.
    pub arena: Arc<ConnectionArena>,
    /// Where in it.
    pub place: Place,
    /// The program's end.
    pub end: End,
    /// The program.
    pub process: Process,
    /// The domain that is charged.
    pub domain: u32,
    /// Its socket.
    pub origin: Origin,
}

/// What the event loop is told.
#[derive(Debug)]
pub enum Report {
    /// Where the relay takes bytes for a connection, or why it does not.
    Opened(ConnectionId, Result<FarPlace, Reason>),
    /// Both ends of a connection are served, or neither is.
    OpenedHere([ConnectionId; 2], Result<(), Reason>),
    /// The relay uses the memory of a connection no more.
    Left {
        /// The connection.
        connection: ConnectionId,
        /// Its program.
        process: Process,
        /// How that woke the relay.
        who: WaitRef,
        /// Its number, which is free again.
        endpoint: u32,
    },
    /// A far backend says something.
    Heard(PeerId, Pairing),
    /// A link is up.
    Up(PeerId),
    /// A backend has started anew, and knows nothing of what it was told before.
    Renewed(PeerId),
    /// A backend does not answer.
    Silent(PeerId),
    /// A sender has to send by the kernel again what is left of its ring.
    Granted(ConnectionId),
    /// The memory of a program's port, and of its contexts, is used no more.
    PortDropped(Process),
    /// TCP has told the far program that the near one is done, which has not said so: does anybody hold its socket?
    Doubted(ConnectionId),
    /// Whether nothing is put into the program's ring until [`Command::MayFill`].
    KeptEmpty(ConnectionId, End, bool),
    /// Everything is off the rings.
    Drained,
}

/// The event loop's side of the relay.
#[derive(Debug)]
pub struct Relay {
    commands: Sender<Command>,
    waiting: Arc<Waiting>,
    reports: Receiver<Report>,
    report_bell: Arc<EventFd>,
    peers: Arc<Mutex<Peers>>,
    thread: Option<JoinHandle<()>>,
}

/// How the event loop gets the engine's attention.
#[derive(Debug)]
struct Waiting {
    there: AtomicBool,
    bell: EventFd,
    /// Connections that are relayed.
    relayed: AtomicUsize,
}

/// A program that is served since before the daemon was started.
#[derive(Debug)]
pub struct KeptPort {
    /// As in [`Command::AddPort`].
    pub program: Arc<Waiters>,
    /// As there.
    pub port: Arc<Waiters>,
    /// As there.
    pub bell: Arc<OwnedFd>,
}

/// What a daemon before us has left.
#[derive(Debug, Default)]
pub struct Kept {
    /// Where to write down what the next one has to know.
    pub records: Option<Records>,
    /// Programs.
    pub ports: Vec<KeptPort>,
    /// Their connections, by endpoint.
    pub connections: Vec<(u32, Record, Arc<ConnectionArena>)>,
    /// Those of guests, before their memory is found.
    pub guests: Vec<(u32, Record)>,
    /// Who has the far ends of those that are not gone on with.
    pub lost: Vec<Beyond>,
}

/// A domain, as far as links are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Its part of a link that is full, relative to others.
    pub weight: u32,
    /// Bytes per second.
    pub rate: Option<u64>,
}

impl Relay {
    /// Starts the engine, which writes its counters to `counted` now and then. `backend` names this host for good,
    /// `epoch` this run. The first of `shares` is of those who are in no domain.
    ///
    /// # Errors
    /// There is no thread, or no descriptor.
    pub fn start(
        links: Links,
        shares: &[Share],
        backend: [u8; 16],
        epoch: u64,
        counted: Arc<Mutex<serde_json::Value>>,
        mut kept: Kept,
    ) -> io::Result<Self> {
        let bell = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let (commands, inbox) = channel();
        let (outbox, reports) = channel();
        let waiting = Arc::new(Waiting {
            there: AtomicBool::new(false),
            bell: bell()?,
            relayed: AtomicUsize::new(0),
        });
        let report_bell = Arc::new(bell()?);
        let peers = Arc::new(Mutex::new(Peers::new(links.configs())));
        let engine = engine::Engine::new(
            links,
            shares,
            backend,
            epoch,
            engine::Wires {
                inbox,
                waiting: Arc::clone(&waiting),
                outbox,
                report_bell: Arc::clone(&report_bell),
                peers: Arc::clone(&peers),
                counted,
            },
            kept.records.take(),
        )?;
        let thread = thread::Builder::new()
            .name("viaduct-relay".to_owned())
            .spawn(move || engine.run(kept))?;
        Ok(Self {
            commands,
            waiting,
            reports,
            report_bell,
            peers,
            thread: Some(thread),
        })
    }

    /// Has the engine do something.
    pub fn send(&self, command: Command) {
        // It ends only after it was told to.
        let _ = self.commands.send(command);
        if !self.waiting.there.swap(true, Ordering::SeqCst) {
            let _ = self.waiting.bell.write(1);
        }
    }

    /// Readable when [`Relay::next_report`] has something.
    pub fn bell(&self) -> impl AsFd + '_ {
        self.report_bell.as_ref()
    }

    /// Silences the bell; call before taking reports.
    pub fn silence(&self) {
        let _ = self.report_bell.read();
    }

    /// What the engine has to tell.
    pub fn next_report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }

    /// Connections that are relayed.
    pub fn relayed(&self) -> usize {
        self.waiting.relayed.load(Ordering::Relaxed)
    }

    /// The table of backends.
    pub fn lock_peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the relay has failed");
        }
    }
}

/// A doorbell for a port.
///
/// # Errors
/// No descriptor to be had.
pub fn doorbell() -> io::Result<OwnedFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    Ok(OwnedFd::from(EventFd::from_flags(flags)?))
}
