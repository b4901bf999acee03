//! Does what the broker wants done.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use rdma_core::channel::Up;
use rdma_core::control::Message;
use rdma_core::event::WaitRef;
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::sync::full_barrier;

use super::clients::Role;
use super::outbox::Left;
use super::{Arena, Daemon, Program, Task};
use crate::broker::{Action, Beside, Shortage, UPLINK, host_connection};
use crate::carving::Place;
use crate::ids::{ConnectionId, Process, RegistrationId};
use crate::ledger::Link;
use crate::relay::Command;
use crate::shared::ConnectionArena;
use crate::vm::VmId;
use crate::workers::{Job, Outcome, Side};

impl Daemon {
    /// Performs everything the broker has decided, and everything that follows from it.
    pub(super) fn perform(&mut self) {
        loop {
            while let Some(action) = self.broker.poll_action() {
                self.act(action);
            }
            let Some(token) = self.doomed.pop() else {
                return;
            };
            self.close(token, false);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send {
                to,
                message,
                beside,
            } => self.send(to, message, beside),
            Action::Ring { process, context } => {
                self.ring(process, context);
            }
            Action::Compare { left, right } => self.compare(left, right),
            Action::Prepare {
                connection,
                place,
                owner,
            } => self.prepare(connection, &place, owner),
            Action::Recycle { place } => self.recycle(place),
            Action::DropArena(arena) => {
                self.forget_arena(arena);
                if let Some(arena) = self.arenas.remove(&arena) {
                    self.workers.submit(arena.uid, Job::Discard(arena.memory));
                }
            }
            Action::Examine(id) => self.examine(id, Instant::now()),
            Action::Depart {
                place,
                end,
                survivor,
            } => self.depart(&place, end, survivor),
            Action::Withdraw {
                connection,
                registration,
                ..
            } => self.withdraw(Task {
                connection,
                vanished: Some(registration),
            }),
            Action::TakeBack(connection) => {
                self.withdrawals.expect_return(connection);
                self.withdraw(Task {
                    connection,
                    vanished: None,
                });
            }
            Action::Settled { process, slot } => {
                self.ledger.links.remove(&(process, slot));
            }
            Action::Forget(process) => {
                self.dismiss_outside(process);
                self.departed.remove(&process);
                self.drop_port(process);
            }
            Action::Reach { id, far } => self.reach(id, far),
            Action::Sample(id) => self.sample(id),
            Action::Tell { peer, message } if peer == UPLINK => self.tell_host_of_pairing(message),
            Action::Tell { peer, message } => match VmId::of(peer) {
                Some(vm) => self.local_pairs(vm, message),
                None => self.command(Command::Tell(peer, message)),
            },
            Action::OpenRelay { half, peer, far } => self.open_relay(&half, peer, far),
            Action::OpenHere(halves) => self.open_here(&halves),
            Action::JoinRelay { connection, place } => {
                // The relay knows both ends of what it copies to a guest.
                if self.vms.connections.of_local(connection).is_none() {
                    self.command(Command::Join(connection, place));
                }
            }
            Action::CloseRelay(connection) => self.command(Command::Close(connection)),
            Action::EndRelay(connection) => match host_connection(connection) {
                Some(connection) => self.tell_host(&Up::Ended(connection)),
                None => self.command(Command::End(connection)),
            },
            Action::LingerRelay(connection) => {
                if host_connection(connection).is_none() {
                    self.command(Command::Linger(connection));
                }
            }
            Action::DepartRelay { connection, held } => match host_connection(connection) {
                Some(connection) => self.tell_host(&Up::Departed { connection, held }),
                None => self.command(Command::Depart(connection, held)),
            },
        }
    }

    fn send(&mut self, to: Process, message: Message<'static>, beside: Option<Beside>) {
        let Some(program) = self.programs.get(&to) else {
            return;
        };
        let token = program.token;
        let outside = beside.and_then(|beside| self.beside_outside(message, beside));
        let (message, fd) = match outside {
            Some((message, fd)) => (message, Some(fd)),
            None => match beside.map(|beside| self.beside(beside)).transpose() {
                Ok(fd) => (message, fd),
                // Its owner has just left; whoever was to have it is told so next.
                Err(()) => return,
            },
        };
        let message = self.place_in_file(message, beside);
        match &message {
            Message::Paired(paired) => {
                tracing::debug!(process = %to, slot = paired.slot, conn = paired.conn_id, "paired");
                let link = Link {
                    connection: ConnectionId(paired.conn_id),
                    peer: Process(paired.peer),
                };
                self.ledger.links.insert((to, paired.slot), link);
            }
            Message::Refused(refused) => {
                let reason = Reason::from_code(refused.reason).map_or("", Reason::name);
                tracing::debug!(process = %to, slot = refused.slot, reason, "refused");
                self.ledger.count_refusal(refused.reason);
            }
            _ => {}
        }
        tracing::trace!(process = %to, ?message, "send");
        let limit = self.options.limits.queued_messages;
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        if client.outbox.push(&message, fd, limit) {
            self.flush(token);
        } else {
            if self.may_log() {
                tracing::warn!(process = %to, "client disconnected: it does not read");
            }
            self.doomed.push(token);
        }
    }

    /// The descriptor to send; an error if there is none any more.
    fn beside(&self, beside: Beside) -> Result<Arc<OwnedFd>, ()> {
        let program = |process| self.programs.get(&process);
        match beside {
            Beside::Events(process) => {
                program(process).map(|p: &Program| Arc::clone(p.waiters.events.memory()))
            }
            Beside::Doorbell(process, context) => {
                program(process).and_then(|p| p.waiters.doorbell(context))
            }
            Beside::Arena(arena) => {
                let arena = self.arenas.get(&arena);
                arena.map(|arena| Arc::clone(arena.memory.memory()))
            }
        }
        .or_else(|| self.beside_port(beside))
        .ok_or(())
    }

    /// Sends what waits for a client, and raises its mailbox for each message that went out.
    pub(super) fn flush(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        let Ok(progress) = client.outbox.flush(&*client.socket) else {
            self.doomed.push(token);
            return;
        };
        if let Role::Program(process) = client.role
            && let Some(program) = self.programs.get(&process)
        {
            for _ in 0..progress.sent {
                program.record.slots.raise_mailbox();
            }
        }
        let interest = match progress.left {
            Left::Full => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
            Left::Nothing | Left::Later => EpollFlags::EPOLLIN,
        };
        if progress.left == Left::Later && !self.stalled.contains(&token) {
            self.stalled.push(token);
        }
        self.set_interest(token, interest);
    }

    /// Has both ends compared.
    fn compare(&mut self, left: RegistrationId, right: RegistrationId) {
        let Some((left, uid)) = self.side(left) else {
            return;
        };
        let Some((right, _)) = self.side(right) else {
            return;
        };
        self.workers.submit(uid, Job::Compare { left, right });
    }

    pub(super) fn side(&self, id: RegistrationId) -> Option<(Side, u32)> {
        let registration = self.broker.registration(id)?;
        let program = self.programs.get(&registration.process)?;
        let side = Side {
            id,
            namespace: program.namespace.clone(),
            tuple: registration.tuple,
            proof: registration.proof,
        };
        Some((side, program.record.uid))
    }

    fn prepare(&mut self, connection: ConnectionId, place: &Place, uid: u32) {
        match self.try_prepare(connection, place, uid) {
            Ok(memory) if self.allocate => {
                let job = Job::Allocate {
                    connection,
                    arena: memory,
                    place: *place,
                };
                self.workers.submit(uid, job);
            }
            Ok(_) => self.broker.prepared(connection, Ok(())),
            Err(error) => {
                self.log_shortage(&error);
                self.broker.prepared(connection, Err(Shortage::Arena));
            }
        }
    }

    /// Makes the arena if need be, and fills the connection's header.
    fn try_prepare(
        &mut self,
        connection: ConnectionId,
        place: &Place,
        uid: u32,
    ) -> io::Result<Arc<ConnectionArena>> {
        if place.fresh {
            let memory = Arc::new(ConnectionArena::create(place.arena_bytes)?);
            self.arenas.insert(place.arena, Arena { memory, uid });
        }
        let arena = self
            .arenas
            .get(&place.arena)
            .ok_or(io::ErrorKind::NotFound)?;
        arena
            .memory
            .prepare(place.offset, place.ring_log2, connection.0)?;
        Ok(Arc::clone(&arena.memory))
    }

    fn allocated(&mut self, connection: ConnectionId, result: &io::Result<()>) {
        let result = match result {
            Ok(()) => Ok(()),
            Err(error) => {
                self.log_shortage(error);
                Err(Shortage::Pages)
            }
        };
        self.broker.prepared(connection, result);
    }

    fn log_shortage(&mut self, error: &io::Error) {
        if self.may_log() {
            tracing::warn!(%error, "no memory for a connection: it stays on TCP");
        }
    }

    fn recycle(&mut self, place: Place) {
        if self.recycle_outside(&place) {
            return;
        }
        match self.arenas.get(&place.arena) {
            Some(arena) => {
                let job = Job::Clear {
                    arena: Arc::clone(&arena.memory),
                    place,
                };
                self.workers.submit(arena.uid, job);
            }
            None => self.broker.recycled(&place, false),
        }
    }

    /// Takes what the workers have done.
    pub(super) fn take_results(&mut self) {
        self.workers.silence();
        while let Some(outcome) = self.workers.next_result() {
            match outcome {
                Outcome::Compared(left, right, result) => {
                    tracing::debug!(%left, %right, ?result, "compared");
                    self.broker.compared(left, right, result);
                }
                Outcome::Sampled(id, stream) => self.broker.sampled(id, stream),
                Outcome::Allocated(connection, result) => self.allocated(connection, &result),
                Outcome::Cleared(place, result) => {
                    if let Err(error) = &result {
                        tracing::warn!(%error, arena = %place.arena, "memory is not used again");
                    }
                    if !self.guest_recycled(&place, result.is_ok()) {
                        self.broker.recycled(&place, result.is_ok());
                    }
                }
                Outcome::Withdrawn(task, result) => self.withdrawn(task, result),
                Outcome::Rescued(id, at, result) => self.rescued(id, at, result),
                Outcome::Trimmed {
                    connection,
                    end,
                    by_relay,
                    result,
                } => self.trimmed(connection, end, by_relay, result),
                Outcome::Done => {}
            }
            self.perform();
        }
    }

    /// Tells the surviving end of a connection that the other is gone, and wakes it.
    fn depart(&mut self, place: &Place, end: End, survivor: Process) {
        let gone = self
            .arenas
            .get(&place.arena)
            .and_then(|arena| arena.memory.end(place.offset, end));
        let Some(gone) = gone else {
            return;
        };
        gone.state.leave();
        self.rouse_end(place, end.far(), survivor);
    }

    /// Wakes a context as a producer would. The reference comes from shared memory: only the
    /// survivor and other processes of its user can be meant.
    pub(super) fn wake(&mut self, survivor: Process, who: WaitRef) {
        if let Some(foreign) = self.foreign(Process(who.process)) {
            full_barrier();
            if foreign.waiters.post(who) {
                self.ring_outside(Process(who.process), who.context.into());
            }
            return;
        }
        let Some(program) = self.program(Process(who.process)) else {
            return;
        };
        let owner = self.program(survivor).map(|p| p.record.uid);
        if owner != Some(program.record.uid) {
            return;
        }
        full_barrier();
        if program.waiters.post(who) {
            self.ring(Process(who.process), who.context.into());
        }
    }

    pub(super) fn ring(&mut self, process: Process, context: u32) {
        if self.ring_outside(process, context) {
            return;
        }
        let Some(program) = self.program(process) else {
            return;
        };
        if let Some(bell) = program.waiters.doorbell_to_ring(context) {
            let job = Job::Ring(bell);
            self.workers.submit_optional(program.record.uid, job);
        }
    }
}
