//! Connections that are relayed: what the broker wants of the relay, and what the relay reports.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use super::{Daemon, RELAY, identity_of, keep_for};
use crate::broker::{Beside, Half};
use crate::ids::{PeerId, Process, RegistrationId};
use crate::relay::{self, Command, Links, Opening, Relay, Report};
use crate::shared::EventMemory;
use crate::vm::VmId;
use crate::vm::connections::of_relay;
use crate::wake::Waiters;
use crate::workers::Job;

/// What programs know of the relay.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Context and doorbell by the number that the program has for the relay, once there is a connection to relay.
    waiters: HashMap<Process, Option<Arc<Waiters>>>,
    /// That number, by program.
    numbers: HashMap<Process, Process>,
}

impl Ports {
    fn insert(&mut self, program: Process, number: Process) {
        self.waiters.insert(number, None);
        self.numbers.insert(program, number);
    }

    fn open(&mut self, number: Process, waiters: Arc<Waiters>) {
        self.waiters.insert(number, Some(waiters));
    }

    /// What the program had, if it was open.
    fn remove(&mut self, program: Process) -> Option<Arc<Waiters>> {
        let number = self.numbers.remove(&program)?;
        self.waiters.remove(&number)?
    }

    /// Whether a number is in use.
    pub(super) fn has(&self, number: Process) -> bool {
        self.waiters.contains_key(&number)
    }

    pub(super) fn len(&self) -> usize {
        self.waiters.len()
    }

    fn get(&self, number: Process) -> Option<&Arc<Waiters>> {
        self.waiters.get(&number)?.as_ref()
    }

    fn number(&self, program: Process) -> Option<Process> {
        self.numbers.get(&program).copied()
    }
}

impl Daemon {
    /// A number under which a new program will know the relay.
    pub(super) fn reserve_port(&mut self, program: Process) -> Option<Process> {
        if self.relay.is_none() && !self.options.relay_here {
            return None;
        }
        let number = self.free_number()?;
        self.ports.insert(program, number);
        Some(number)
    }

    /// Nothing of a program is needed any more.
    pub(super) fn drop_port(&mut self, program: Process) {
        self.forget_program(program);
        if self.ports.remove(program).is_some() {
            self.command(Command::RemovePort(program));
        }
    }

    /// The descriptor that goes beside a message about the relay.
    pub(super) fn beside_port(&self, beside: Beside) -> Option<Arc<std::os::fd::OwnedFd>> {
        match beside {
            Beside::Events(number) => Some(Arc::clone(self.ports.get(number)?.events.memory())),
            Beside::Doorbell(number, context) => self.ports.get(number)?.doorbell(context),
            Beside::Arena(_) => None,
        }
    }

    /// Finds a backend for a far address.
    pub(super) fn reach(&mut self, id: RegistrationId, far: IpAddr) {
        if self.reach_outside(id, far) {
            return;
        }
        if let Some(guest) = self.guest_for(far) {
            return self.broker.reachable(id, guest);
        }
        if let Some(peer) = self.backend_for(far) {
            self.broker.reachable(id, peer);
        }
    }

    /// The backend of another host for the programs at an address.
    pub(super) fn backend_for(&self, addr: IpAddr) -> Option<PeerId> {
        self.relay
            .as_ref()?
            .lock_peers()
            .reach(addr, Instant::now())
    }

    /// Has the socket of a registration looked at.
    pub(super) fn sample(&mut self, id: RegistrationId) {
        if let Some((side, uid)) = self.side(id) {
            self.workers.submit(uid, Job::Sample(side));
        }
    }

    /// Sends the relay a command, if there is one.
    pub(super) fn command(&self, command: Command) {
        if let Some(relay) = &self.relay {
            relay.send(command);
        }
    }

    /// Starts the relay: at once if there are links, else when something is to be relayed within this host.
    pub(super) fn start_relay_with(&mut self, links: Links) -> io::Result<()> {
        let mut kept = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let (keeper, kept, ..) = keep_for(self.listener.path());
                self.keeper = keeper;
                kept
            }
        };
        if kept.records.is_none() {
            kept.records = self.create_records();
        }
        let relay = Relay::start(
            links,
            &self.options.shares,
            identity_of(self.listener.path()),
            self.ledger.epoch,
            Arc::clone(&self.ledger.relay),
            kept,
        )?;
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, RELAY);
        self.epoll.add(relay.bell(), readable)?;
        self.relay = Some(relay);
        Ok(())
    }

    /// The relay is needed. `None`: there is none.
    pub(super) fn start_relay(&mut self) -> Option<()> {
        if self.relay.is_none()
            && let Err(error) = self.start_relay_with(Links::default())
        {
            tracing::error!(%error, "no relay");
        }
        self.relay.as_ref().map(|_| ())
    }

    /// Has a connection relayed to another host.
    pub(super) fn open_relay(&mut self, half: &Half, peer: PeerId, far: Option<FarPlace>) {
        let connection = half.connection;
        if VmId::of(peer).is_some() {
            return self.open_to_guest(half);
        }
        match self.opening(half) {
            Some(opening) => self.command(Command::Open { opening, peer, far }),
            None => {
                self.broker.relay_closed(connection);
                self.broker.relay_opened(connection, Err(Reason::NoMemory));
            }
        }
    }

    /// Has a connection relayed between two programs of this host.
    pub(super) fn open_here(&mut self, halves: &[Half; 2]) {
        let [one, other] = halves;
        let openings = self
            .start_relay()
            .and_then(|()| Some([self.opening(one)?, self.opening(other)?]));
        match openings {
            Some(both) => self.command(Command::OpenHere(Box::new(both))),
            None => {
                let both = [one.connection, other.connection];
                for connection in both {
                    self.broker.relay_closed(connection);
                }
                self.broker.opened_here(both, Err(Reason::NoMemory));
            }
        }
    }

    /// What the relay has to know to serve one end.
    pub(super) fn opening(&mut self, half: &Half) -> Option<Opening> {
        self.try_open_relay(half.process)?;
        let arena = Arc::clone(&self.arenas.get(&half.place.arena)?.memory);
        let origin = self.broker.origin(half.connection)?;
        self.keep_arena(half.place.arena, &arena);
        let domain = half.domain.and_then(|index| u32::try_from(index + 1).ok());
        Some(Opening {
            connection: half.connection,
            arena,
            place: half.place,
            end: half.end,
            process: half.process,
            domain: domain.unwrap_or(0),
            origin,
        })
    }

    /// Makes the program's port, if this is its first connection to be relayed.
    fn try_open_relay(&mut self, process: Process) -> Option<()> {
        let number = self.ports.number(process)?;
        if self.ports.get(number).is_some() {
            return Some(());
        }
        let program = self.programs.get(&process)?;
        let events = EventMemory::create().ok()?;
        let bell = relay::doorbell().ok()?;
        let kept = bell.try_clone().ok()?;
        let own = Waiters::new(number, program.record.uid, events);
        let _nobody_knows_it = own.add_doorbell(0, bell);
        let own = Arc::new(own);
        let program = Arc::clone(&program.waiters);
        self.ports.open(number, Arc::clone(&own));
        self.keep_program(process, &own, &kept);
        self.command(Command::AddPort {
            program,
            port: own,
            bell: Arc::new(kept),
        });
        Some(())
    }

    /// Takes what the relay has to tell.
    pub(super) fn take_reports(&mut self) {
        let Some(relay) = &self.relay else {
            return;
        };
        relay.silence();
        while let Some(report) = self.relay.as_ref().and_then(Relay::next_report) {
            self.take_report(report);
            self.perform();
        }
    }

    fn take_report(&mut self, report: Report) {
        match report {
            Report::Opened(connection, place) => {
                tracing::debug!(%connection, ?place, "relay");
                if self.guest_opened(&[connection], place) {
                    return;
                }
                if place.is_err() {
                    self.broker.relay_closed(connection);
                }
                self.broker.relay_opened(connection, place);
            }
            Report::OpenedHere(both, result) => {
                tracing::debug!(?both, ?result, "relay");
                if self.guest_opened(&both, result.map(|()| FarPlace::NOWHERE)) {
                    return;
                }
                if result.is_err() {
                    for connection in both {
                        self.broker.relay_closed(connection);
                    }
                }
                self.broker.opened_here(both, result);
            }
            Report::Left { connection, .. } => {
                tracing::debug!(%connection, "relayed to its end");
                if let Some((number, index)) = of_relay(connection) {
                    return self.guest_relay_left(number, index);
                }
                self.broker.relay_closed(connection);
                self.survivor_left(connection);
            }
            Report::Heard(peer, message) => self.heard(peer, message),
            Report::Up(peer) => {
                tracing::info!(%peer, "link is up");
            }
            Report::Renewed(peer) => {
                tracing::info!(%peer, "backend has started anew");
                self.broker.peer_renewed(peer);
            }
            Report::Silent(peer) => {
                if self.may_log() {
                    tracing::info!(%peer, "no backend answers");
                }
                self.broker.peer_silent(peer);
            }
            Report::Granted(connection) => {
                if let Some((number, index)) = of_relay(connection) {
                    return self.guest_granted(number, index);
                }
                let ends = self.broker.ends(connection);
                for occupant in ends.into_iter().flat_map(|ends| ends.occupants).flatten() {
                    self.withdrawals.plan_rescue(occupant.id);
                }
            }
            Report::Doubted(connection) => match of_relay(connection) {
                Some((number, index)) => self.guest_doubted(number, index),
                None => self.doubt(connection),
            },
            Report::KeptEmpty(connection, end, kept) => self.kept_empty(connection, end, kept),
            Report::PortDropped(process) => self.guest_port_dropped(process),
            Report::Drained => self.relay_drained(),
        }
    }

    /// A far backend speaks for its own addresses only.
    fn heard(&mut self, peer: PeerId, message: Pairing) {
        tracing::debug!(%peer, ?message, "heard");
        if let Pairing::Offer { names, id, .. } = &message {
            let Some(relay) = &self.relay else {
                return;
            };
            let may = relay.lock_peers().may_own(peer, names.own.ip());
            if !may {
                if self.may_log() {
                    tracing::warn!(%peer, address = %names.own, "a backend offers what is not its own");
                }
                let refusal = Pairing::Refuse {
                    id: *id,
                    reason: Reason::Untrusted.code(),
                };
                return self.command(Command::Tell(peer, refusal));
            }
        }
        if !self.peer_pairs(peer, message) {
            self.broker.heard(peer, message);
        }
    }
}
