//! Connections whose far end is on another host: what the broker wants of the relay, and what the relay reports.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use super::Daemon;
use crate::broker::Beside;
use crate::carving::Place;
use crate::ids::{ConnectionId, PeerId, Process, RegistrationId};
use crate::relay::{self, Command, Report};
use crate::shared::EventMemory;
use crate::wake::Waiters;
use crate::workers::Job;

/// What a program knows of the relay.
#[derive(Debug)]
pub(super) struct Port {
    /// The program.
    program: Process,
    /// Its context and doorbell, once there is a connection to relay.
    waiters: Option<Arc<Waiters>>,
}

impl Daemon {
    /// A number under which a new program will know the relay.
    pub(super) fn reserve_port(&mut self, program: Process) -> Option<Process> {
        self.relay.as_ref()?;
        let number = self.free_number()?;
        let port = Port {
            program,
            waiters: None,
        };
        self.ports.insert(number, port);
        Some(number)
    }

    /// Nothing of a program is needed any more.
    pub(super) fn drop_port(&mut self, program: Process) {
        self.forget_program(program);
        let relay = self.relay.as_ref();
        self.ports.retain(|_, port| {
            if port.program != program {
                return true;
            }
            if let (Some(_), Some(relay)) = (&port.waiters, relay) {
                relay.send(Command::RemovePort(program));
            }
            false
        });
    }

    /// The descriptor that goes beside a message about the relay.
    pub(super) fn beside_port(&self, beside: Beside) -> Option<Arc<std::os::fd::OwnedFd>> {
        let waiters = |number| self.ports.get(&number)?.waiters.as_ref();
        match beside {
            Beside::Events(number) => Some(Arc::clone(waiters(number)?.events.memory())),
            Beside::Doorbell(number, context) => waiters(number)?.doorbell(context),
            Beside::Arena(_) => None,
        }
    }

    /// Finds a backend for a far address.
    pub(super) fn reach(&mut self, id: RegistrationId, far: std::net::IpAddr) {
        let Some(relay) = &self.relay else {
            return;
        };
        let peer = {
            let peers = relay.peers().lock();
            let mut peers = peers.unwrap_or_else(PoisonError::into_inner);
            peers.reach(far, Instant::now())
        };
        if let Some(peer) = peer {
            self.broker.reachable(id, peer);
        }
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

    /// Has a connection relayed.
    #[expect(clippy::too_many_arguments, reason = "the fields of one action")]
    pub(super) fn open_relay(
        &mut self,
        connection: ConnectionId,
        place: Place,
        end: End,
        process: Process,
        peer: PeerId,
        far: Option<FarPlace>,
        domain: Option<usize>,
    ) {
        let domain = domain.and_then(|index| u32::try_from(index + 1).ok());
        let opened = self.try_open_relay(process).and_then(|()| {
            let arena = self.arenas.get(&place.arena)?;
            let origin = self.broker.origin(connection)?;
            Some((Arc::clone(&arena.memory), origin))
        });
        let Some((arena, origin)) = opened else {
            self.broker.relay_closed(connection);
            return self.broker.relay_opened(connection, Err(Reason::NoMemory));
        };
        self.keep_arena(place.arena, &arena);
        self.command(Command::Open {
            connection,
            arena,
            place,
            end,
            process,
            peer,
            far,
            domain: domain.unwrap_or(0),
            origin,
        });
    }

    /// Makes the program's port, if this is its first connection to be relayed.
    fn try_open_relay(&mut self, process: Process) -> Option<()> {
        let found = self
            .ports
            .iter_mut()
            .find(|(_, port)| port.program == process);
        let (number, port) = found?;
        if port.waiters.is_some() {
            return Some(());
        }
        let program = self.programs.get(&process)?;
        let events = EventMemory::create().ok()?;
        let bell = relay::doorbell().ok()?;
        let kept = bell.try_clone().ok()?;
        let own = Waiters::new(*number, program.record.uid, events);
        own.add_doorbell(0, bell);
        let own = Arc::new(own);
        port.waiters = Some(Arc::clone(&own));
        let program = Arc::clone(&program.waiters);
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
        while let Some(report) = self.relay.as_ref().and_then(relay::Relay::next_report) {
            self.take_report(report);
            self.perform();
        }
    }

    fn take_report(&mut self, report: Report) {
        match report {
            Report::Opened(connection, place) => {
                tracing::debug!(%connection, ?place, "relay");
                if place.is_err() {
                    self.broker.relay_closed(connection);
                }
                self.broker.relay_opened(connection, place);
            }
            Report::Left { connection, .. } => {
                tracing::debug!(%connection, "relayed to its end");
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
                let ends = self.broker.ends(connection);
                for occupant in ends.into_iter().flat_map(|ends| ends.occupants).flatten() {
                    self.withdrawals.plan_rescue(occupant.id);
                }
            }
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
            let may = {
                let peers = relay.peers().lock();
                let peers = peers.unwrap_or_else(PoisonError::into_inner);
                peers.may_own(peer, names.own.ip())
            };
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
        self.broker.heard(peer, message);
    }
}
