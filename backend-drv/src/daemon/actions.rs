//! Does what the broker wants done.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use rdma_core::control::Message;
use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::sync::full_barrier;

use super::clients::Role;
use super::{Daemon, Program};
use crate::broker::{Action, Beside, Fate};
use crate::carving::Place;
use crate::doorbell;
use crate::ids::{ConnectionId, Process, RegistrationId};
use crate::ledger::Link;
use crate::pairing::{Comparison, Sample, same_stream};
use crate::shared::ConnectionArena;

/// Comparisons before two ends are called different. Between the questions bytes may be on their way
/// in a manner that looks wrong once.
const COMPARISONS: usize = 2;

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
            } => self.send(to, &message, beside),
            Action::Ring { process, context } => {
                let bell = self
                    .programs
                    .get(&process)
                    .and_then(|program| program.doorbells.get(&context));
                if let Some(bell) = bell {
                    doorbell::ring(bell);
                }
            }
            Action::Compare { left, right } => {
                let result = self.compare(left, right);
                tracing::debug!(%left, %right, ?result, "compared");
                self.broker.compared(left, right, result);
            }
            Action::Prepare { connection, place } => {
                let good = self.prepare(connection, &place);
                self.broker.prepared(connection, good);
            }
            Action::Recycle { place } => {
                let zeroed = match self.arenas.get(&place.arena) {
                    Some(arena) => arena.clear(place.offset, place.ring_log2),
                    None => Err(std::io::ErrorKind::NotFound.into()),
                };
                if let Err(error) = &zeroed {
                    tracing::warn!(%error, arena = %place.arena, "memory is not used again");
                }
                self.broker.recycled(&place, zeroed.is_ok());
            }
            Action::DropArena(arena) => {
                self.arenas.remove(&arena);
            }
            Action::Examine(id) => self.examine(id, std::time::Instant::now()),
            Action::Depart {
                place,
                end,
                fate,
                survivor,
            } => self.depart(&place, end, fate, survivor),
            Action::Settled { process, slot } => {
                self.ledger.links.remove(&(process, slot));
            }
            Action::Forget(process) => {
                self.departed.remove(&process);
            }
        }
    }

    fn send(&mut self, to: Process, message: &Message<'static>, beside: Option<Beside>) {
        let Some(program) = self.programs.get(&to) else {
            return;
        };
        let token = program.token;
        let Ok(fd) = beside.map(|beside| self.beside(beside)).transpose() else {
            // Its owner has just left; whoever was to have it is told so next.
            return;
        };
        match message {
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
        if client.outbox.push(message, fd, limit) {
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
            Beside::Events(process) => program(process).map(|p: &Program| p.events.memory()),
            Beside::Doorbell(process, context) => {
                program(process).and_then(|p| p.doorbells.get(&context))
            }
            Beside::Arena(arena) => self.arenas.get(&arena).map(ConnectionArena::memory),
        }
        .cloned()
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
        let interest = if progress.blocked {
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
        } else {
            EpollFlags::EPOLLIN
        };
        self.set_interest(token, interest);
    }

    fn compare(&mut self, left: RegistrationId, right: RegistrationId) -> Comparison {
        for _ in 0..COMPARISONS {
            let before = self.sample(right);
            let middle = self.sample(left);
            let after = self.sample(right);
            let streams = (
                before.and_then(|sample| sample.stream),
                middle.and_then(|sample| sample.stream),
                after.and_then(|sample| sample.stream),
            );
            match streams {
                (Some(before), Some(middle), Some(after)) => {
                    if same_stream(&before, &middle, &after) {
                        return Comparison::Match;
                    }
                    tracing::debug!(?before, ?middle, ?after, "mismatch");
                }
                (before, middle, after) => {
                    return Comparison::Gone {
                        left: middle.is_none(),
                        right: before.is_none() || after.is_none(),
                    };
                }
            }
        }
        Comparison::Mismatch
    }

    /// One end as it is now; `None` if it is not the established connection of its socket any more.
    fn sample(&mut self, id: RegistrationId) -> Option<Sample> {
        let registration = self.broker.registration(id)?;
        let netlink = &self.programs.get(&registration.process)?.netlink;
        let proof = registration.proof;
        let cookie = Some(proof.cookie).filter(|cookie| *cookie != 0);
        self.diag
            .lookup(netlink, &registration.tuple, cookie)
            .ok()?
            .filter(|found| found.inode == proof.inode && found.state == Sample::ESTABLISHED)
    }

    fn prepare(&mut self, connection: ConnectionId, place: &Place) -> bool {
        match self.try_prepare(connection, place) {
            Ok(()) => true,
            Err(error) => {
                if self.may_log() {
                    tracing::warn!(%error, bytes = place.arena_bytes, "no memory for a connection");
                }
                false
            }
        }
    }

    fn try_prepare(&mut self, connection: ConnectionId, place: &Place) -> std::io::Result<()> {
        if place.fresh {
            let arena = ConnectionArena::create(place.arena_bytes)?;
            self.arenas.insert(place.arena, arena);
        }
        self.arenas
            .get(&place.arena)
            .ok_or(std::io::ErrorKind::NotFound)?
            .prepare(place.offset, place.ring_log2, connection.0, self.allocate)
    }

    /// Tells the surviving end of a connection that the other is gone, and wakes it.
    fn depart(&self, place: &Place, end: End, fate: Fate, survivor: Process) {
        let Some(arena) = self.arenas.get(&place.arena) else {
            return;
        };
        let words = arena
            .end(place.offset, end)
            .zip(arena.end(place.offset, end.far()));
        let Some((gone, far)) = words else {
            return;
        };
        match fate {
            Fate::Gone => gone.state.leave(),
            Fate::Held => gone.state.break_with(Reason::Exec),
        }
        for what in [WaitFor::Data, WaitFor::Space] {
            far.waits.each(what, |who| self.wake(survivor, who));
        }
    }

    /// Wakes a context as a producer would. The reference comes from shared memory: only the
    /// survivor and other processes of its user can be meant.
    fn wake(&self, survivor: Process, who: WaitRef) {
        let Some(program) = self.programs.get(&Process(who.process)) else {
            return;
        };
        let owner = self.programs.get(&survivor).map(|p| p.record.uid);
        if owner != Some(program.record.uid) {
            return;
        }
        let Some(context) = program.events.context(who.context.into()) else {
            return;
        };
        if let Some(bit) = who.bit {
            context.post(bit);
        }
        full_barrier();
        if context.take_sleeper()
            && let Some(bell) = program.doorbells.get(&who.context.into())
        {
            doorbell::ring(bell);
        }
    }
}
