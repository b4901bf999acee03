//! The event loop of a guest: what the host says, and what it is told.

mod parting;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use rdma_core::channel::{Down, Grant, Up};
use rdma_core::control::{Message, PeerRegister};
use rdma_core::event::EventContext;
use rdma_core::wire::pairing::Pairing;

use super::withdrawals::Task;
use super::{Arena, Daemon};
use crate::broker::{self, Beside, UPLINK, Uplinked};
use crate::carving::Place;
use crate::ids::{ConnectionId, Process, RegistrationId};
use crate::shared::EventMemory;
use crate::uplink::{Foreign, Uplink};
use crate::workers::Job;

/// How long programs wait for the host before they are served without it.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY_MS: u8 = 10;

impl Daemon {
    /// Listens to the device.
    pub(super) fn watch_uplink(&self, [token, common, news]: [u64; 3]) -> nix::Result<()> {
        let Some(uplink) = &self.uplink else {
            return Ok(());
        };
        let readable = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
        self.epoll.add(uplink.bell(), readable(token))?;
        self.epoll.add(uplink.common_bell(), readable(common))?;
        match uplink.news() {
            Some(fd) => self.epoll.add(fd, readable(news)),
            None => Ok(()),
        }
    }

    /// Waits until the host has answered, but not for long: programs that come before cannot be reached from
    /// outside.
    pub fn wait_for_host(&mut self) {
        let until = Instant::now() + PATIENCE;
        while let Some(uplink) = &mut self.uplink {
            let now = Instant::now();
            if uplink.is_up() || now >= until {
                return;
            }
            uplink.greet(now);
            let mut bell = [PollFd::new(uplink.bell(), PollFlags::POLLIN)];
            // Looked at by itself as well: there may be no interrupts.
            let _ = poll(&mut bell, LOOK_EVERY_MS);
            self.take_uplink();
        }
    }

    /// Takes what the host has said.
    pub(super) fn take_uplink(&mut self) {
        let Some(uplink) = &mut self.uplink else {
            return;
        };
        uplink.silence();
        uplink.flush();
        while let Some(message) = self.uplink.as_mut().and_then(Uplink::receive) {
            self.hear_host(message);
            self.perform();
        }
    }

    fn hear_host(&mut self, message: Down) {
        let Some(uplink) = &mut self.uplink else {
            return;
        };
        match message {
            Down::Welcome(welcome) => {
                if uplink.welcomed(&welcome) {
                    tracing::info!(
                        first_process = welcome.first_process,
                        machine = welcome.machine,
                        "served by the host"
                    );
                }
            }
            Down::Again(run) => self.begin_again(run),
            Down::Lost(connection) => self.break_one(broker::connection_id(connection)),
            Down::Refused(reason) => tracing::warn!(reason, "the host does not serve this guest"),
            Down::Program { process, at } => {
                if uplink.add_foreign(Process(process), at) {
                    self.broker.foreign_joined(Process(process));
                }
            }
            Down::Context(body) => {
                if uplink.add_foreign_context(&body) {
                    self.broker
                        .foreign_context(Process(body.process), body.context);
                }
            }
            Down::ProgramGone(process) => {
                uplink.remove_foreign(Process(process));
                self.broker.foreign_left(Process(process));
            }
            Down::Pairing(message) => {
                tracing::debug!(?message, "heard of the host");
                self.broker.heard(UPLINK, message);
            }
            Down::Grant(grant) => self.granted(&grant),
            Down::Withdraw {
                connection,
                may_return,
            } => {
                let connection = broker::connection_id(connection);
                if may_return {
                    self.withdrawals.expect_return(connection);
                }
                self.withdraw(Task {
                    connection,
                    vanished: None,
                });
            }
            Down::Retracted(connection) => {
                let ends = self.broker.ends(broker::connection_id(connection));
                for occupant in ends.into_iter().flat_map(|ends| ends.occupants).flatten() {
                    self.withdrawals.plan_rescue(occupant.id);
                }
            }
            Down::Examine(connection) => self.doubt(broker::connection_id(connection)),
            Down::Kick { process, context } => self.ring(Process(process), context),
        }
    }

    /// The host's daemon has started anew. Connections go on, and it is told who is here and what they hold.
    fn begin_again(&mut self, run: u64) {
        tracing::info!("the host has started anew");
        let Some(uplink) = &mut self.uplink else {
            return;
        };
        uplink.say_hello();
        // Of those that have left, connections may be there still.
        for (process, program) in self.programs.iter().chain(&self.departed) {
            if program.outside {
                uplink.announce(*process, &program.waiters);
            }
        }
        for (process, names, mut grant) in self.broker.held() {
            if let Some(arena) = self.arenas.get(&broker::arena_id(grant.arena)) {
                grant.at = uplink.place_of(&arena.memory);
                let process = process.0;
                uplink.send(&Up::Holds {
                    process,
                    names,
                    grant,
                });
            }
        }
        uplink.send(&Up::Told(run));
        self.broker.peer_renewed(UPLINK);
    }

    /// The host has made memory for a connection.
    fn granted(&mut self, grant: &Grant) {
        tracing::debug!(?grant, "granted");
        let wanted = self.broker.awaits_grant(RegistrationId(grant.registration));
        let Some(uplink) = self.uplink.as_mut().filter(|_| wanted) else {
            return self.tell_host(&Up::Ended(grant.connection));
        };
        let arena = broker::arena_id(grant.arena);
        if uplink.enter_arena(arena) {
            let Some(memory) = uplink.arena(grant.at, grant.arena_bytes) else {
                uplink.leave_arena(arena);
                tracing::error!(?grant, "the host grants what the device does not have");
                return self.tell_host(&Up::Ended(grant.connection));
            };
            let memory = Arc::new(memory);
            self.arenas.insert(arena, Arena { memory, uid: 0 });
        }
        self.broker.granted(grant);
    }

    /// Says something to the host, if there is one.
    pub(super) fn tell_host(&mut self, message: &Up) {
        if let Some(uplink) = &mut self.uplink {
            uplink.send(message);
        }
    }

    /// Says something about the two ends of a connection to the host.
    pub(super) fn tell_host_of_pairing(&mut self, message: Pairing) {
        let own = match message {
            Pairing::Offer { id, .. } | Pairing::Candidate { id, .. } => id,
            Pairing::Pair { offer, .. } => offer,
            _ => 0,
        };
        let process = self
            .broker
            .registration(RegistrationId(own))
            .map_or(Process(1), |registration| registration.process);
        self.tell_host(&Up::Pairing {
            process: process.0,
            message,
        });
    }

    /// Whether a far address may be looked for outside the guest, on behalf of a registration.
    pub(super) fn reach_outside(&mut self, id: RegistrationId, far: IpAddr) -> bool {
        let Some(uplink) = &self.uplink else {
            return false;
        };
        let process = self.broker.registration(id).map(|found| found.process);
        let program = process.and_then(|process| self.programs.get(&process));
        if uplink.may_be_outside(far) && program.is_some_and(|program| program.outside) {
            self.broker.reachable(id, UPLINK);
        }
        true
    }

    /// A number and event memory outside programs can reach, for a program of this user.
    pub(super) fn admit_outside(&mut self, uid: u32) -> Option<(Process, EventMemory)> {
        let (programs, departed) = (&self.programs, &self.departed);
        let uplink = self.uplink.as_mut()?;
        if !uplink.allows(uid) {
            return None;
        }
        uplink.admit(|process| programs.contains_key(&process) || departed.contains_key(&process))
    }

    /// A program that has left is looked after no more.
    pub(super) fn dismiss_outside(&mut self, process: Process) {
        let Some(program) = self
            .departed
            .get(&process)
            .filter(|program| program.outside)
        else {
            return;
        };
        let contexts = u32::try_from(program.waiters.doorbells()).unwrap_or(u32::MAX);
        if let Some(uplink) = &mut self.uplink {
            uplink.dismiss(process, &program.waiters.events, contexts);
        }
    }

    /// A program's context may be woken from outside.
    pub(super) fn publish_context(&mut self, process: Process, context: u32) {
        let Some(program) = self
            .programs
            .get(&process)
            .filter(|program| program.outside)
        else {
            return;
        };
        if let (Some(uplink), Some(bell)) = (&mut self.uplink, program.waiters.doorbell(context)) {
            uplink.add_context(process, context, bell.as_fd());
        }
    }

    /// Somebody rang the vector that several contexts share.
    pub(super) fn ring_common(&mut self) {
        let all = self.uplink.as_ref().map(Uplink::common_contexts);
        for (process, context) in all.into_iter().flatten() {
            self.ring(process, context);
        }
    }

    /// A process outside the guest.
    pub(super) fn foreign(&self, process: Process) -> Option<&Foreign> {
        self.uplink.as_ref()?.foreign(process)
    }

    /// Wakes a context of a process outside the guest. False if it is none.
    pub(super) fn ring_outside(&mut self, process: Process, context: u32) -> bool {
        let Some(uplink) = &mut self.uplink else {
            return false;
        };
        let known = uplink.foreign(process).is_some();
        if known {
            uplink.ring(process, context);
        }
        known
    }

    /// What goes beside a message about a process outside the guest, and the message as it must be then.
    pub(super) fn beside_outside(
        &self,
        message: Message<'static>,
        beside: Beside,
    ) -> Option<(Message<'static>, Arc<OwnedFd>)> {
        let uplink = self.uplink.as_ref()?;
        match beside {
            Beside::Events(process) => {
                let events = &uplink.foreign(process)?.waiters.events;
                Some((message, Arc::clone(events.memory())))
            }
            Beside::Doorbell(process, context) => {
                let Some((value, file)) = uplink.register(process, context) else {
                    return Some((message, uplink.eventfd(process, context)?));
                };
                let register = PeerRegister {
                    process: process.0,
                    context,
                    value,
                    reserved: 0,
                };
                Some((Message::PeerRegister(register), file))
            }
            Beside::Arena(_) => None,
        }
    }

    /// Where the memory begins in the file that goes beside a message.
    pub(super) fn place_in_file(
        &self,
        mut message: Message<'static>,
        beside: Option<Beside>,
    ) -> Message<'static> {
        let events_at = |process| {
            let program = self.programs.get(&process);
            let own = program.map(|program| program.waiters.events.at());
            own.or_else(|| {
                let foreign = self.uplink.as_ref()?.foreign(process)?;
                Some(foreign.waiters.events.at())
            })
        };
        match (&mut message, beside) {
            (Message::Welcome(body), Some(Beside::Events(process))) => {
                body.at = events_at(process).unwrap_or(0);
                body.machine = self.uplink.as_ref().map_or(0, Uplink::machine);
            }
            (Message::Peer(body), Some(Beside::Events(process))) => {
                body.at = events_at(process).unwrap_or(0);
            }
            (Message::Paired(body), Some(Beside::Arena(arena))) => {
                let arena = self.arenas.get(&arena);
                body.at = arena.map_or(0, |arena| arena.memory.start());
            }
            _ => {}
        }
        message
    }

    /// Memory of a connection is used no more here. False: it is the guest's own, to be zeroed.
    pub(super) fn recycle_outside(&mut self, place: &Place) -> bool {
        if !broker::is_host_arena(place.arena) || self.uplink.is_none() {
            return false;
        }
        let last = self
            .uplink
            .as_mut()
            .is_some_and(|uplink| uplink.leave_arena(place.arena));
        if last && let Some(arena) = self.arenas.remove(&place.arena) {
            self.workers.submit(arena.uid, Job::Discard(arena.memory));
        }
        true
    }

    /// Has the far guests of `connections` take them off the ring too.
    pub(super) fn withdraw_outside(&mut self, connections: &[ConnectionId]) {
        for connection in connections {
            if self.broker.uplinked(*connection) == Some(Uplinked::Direct)
                && let Some(host) = broker::host_connection(*connection)
            {
                let may_return = self.is_draining();
                self.tell_host(&Up::Withdraw {
                    connection: host,
                    may_return,
                });
            }
        }
    }

    /// An end here has left its ring: the far guest's program must send once more what is in there.
    pub(super) fn tell_retracted(&mut self, connection: ConnectionId) {
        if self.broker.uplinked(connection) == Some(Uplinked::Direct)
            && let Some(host) = broker::host_connection(connection)
        {
            self.tell_host(&Up::Retracted(host));
        }
    }

    /// What is due by the clock.
    pub(super) fn tick_uplink(&mut self, now: Instant) {
        let programs = &self.programs;
        let Some(uplink) = &mut self.uplink else {
            return;
        };
        uplink.greet(now);
        let is_lost = uplink.is_lost();
        let rung = uplink.look(now, |process, context| {
            let program = programs.get(&process);
            let words = program.and_then(|program| program.waiters.events.context(context));
            words.is_none_or(EventContext::is_asleep)
        });
        if let Some(rung) = rung {
            for (process, context) in rung {
                self.ring(process, context);
            }
            self.take_uplink();
        }
        if is_lost && self.is_forsaken() {
            tracing::warn!("the device is gone, and nobody uses it any more: stopping");
            self.stopping = true;
        }
    }
}
