//! Connections that are taken off the ring from outside, and senders that are helped to follow.
//!
//! The work itself is done by other threads ([`crate::withdrawal`], [`crate::rescue`]); here it is decided
//! when, and what follows: everybody who waits is woken, and what could not be done is tried again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use rdma_core::channel::Up;
use rdma_core::event::WaitFor;
use rdma_core::layout::End;
use rdma_core::reason::Reason;
use rdma_core::sync::{Ordering, full_barrier};

use super::agenda::Agenda;
use super::{Daemon, Program};
use crate::broker::{Occupant, host_connection};
use crate::carving::Place;
use crate::ids::{ConnectionId, Process, RegistrationId};
use crate::relay::Command;
use crate::rescue::{Rescue, Rescued, is_needed};
use crate::withdrawal::{Seat, Withdrawal, Withdrawn};
use crate::workers::Job;

/// Pauses before a withdrawal is tried again.
const WITHDRAWAL_PAUSES_MS: [u64; 5] = [3, 20, 100, 400, 2000];
/// Tries after which an end that has vanished is given up: nobody will free its locks.
const VANISHED_TRIES: usize = 3;
/// Pauses before a sender is helped. It usually follows by itself, and at once.
const RESCUE_PAUSES_MS: [u64; 7] = [3, 20, 100, 500, 2000, 10_000, 60_000];

/// What is to be taken off the ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Task {
    /// The connection.
    pub connection: ConnectionId,
    /// For an end whose program is not there any more: its registration.
    pub vanished: Option<RegistrationId>,
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Withdrawals {
    pub(super) tasks: Agenda<Task>,
    pub(super) rescues: Agenda<RegistrationId>,
    /// Given to other threads, whose answers have not come.
    working: usize,
    /// Connections that leave the ring for a time only.
    returning: HashSet<ConnectionId>,
    /// Where the senders to be helped stood when they were last looked at.
    resent: HashMap<RegistrationId, u64>,
}

impl Withdrawals {
    pub(super) fn new() -> Self {
        Self {
            tasks: Agenda::new(&WITHDRAWAL_PAUSES_MS),
            rescues: Agenda::endless(&RESCUE_PAUSES_MS),
            working: 0,
            returning: HashSet::new(),
            resent: HashMap::new(),
        }
    }

    /// Whether nothing is left to do.
    pub(super) fn is_idle(&self) -> bool {
        self.working == 0 && self.tasks.is_empty() && self.rescues.is_empty()
    }

    /// A connection that is about to be withdrawn may come back.
    pub(super) fn expect_return(&mut self, connection: ConnectionId) {
        self.returning.insert(connection);
    }

    /// A sender's far end has left the ring: the sender is looked after.
    pub(super) fn plan_rescue(&mut self, id: RegistrationId) {
        if !self.rescues.has(id) {
            self.rescues.again(id, Instant::now());
        }
    }

    fn end_rescue(&mut self, id: RegistrationId) {
        self.rescues.done(id);
        self.resent.remove(&id);
    }
}

impl Daemon {
    /// What is due by the clock.
    pub(super) fn tick_withdrawals(&mut self, now: Instant) {
        while let Some(task) = self.withdrawals.tasks.pop_due(now) {
            self.withdraw(task);
        }
        while let Some(id) = self.withdrawals.rescues.pop_due(now) {
            self.rescue(id, now);
        }
    }

    /// Has a connection taken off the ring.
    pub(super) fn withdraw(&mut self, task: Task) {
        let reason = self.why(task.connection);
        if self.broker.is_relayed(task.connection) {
            // Before the words change: whoever sees that knows then whether it is for good.
            let told = task.vanished.is_none().then_some(task.connection);
            for occupant in told.map(|id| self.occupants(id)).unwrap_or_default() {
                if let Some(seat) = self.seat(&occupant) {
                    seat.tell(reason);
                }
            }
            // The relay does it, with the far backend.
            match host_connection(task.connection) {
                Some(connection) => self.tell_host(&Up::Withdraw {
                    connection,
                    may_return: reason == Reason::Drained,
                }),
                None => self.command(Command::Withdraw(task.connection)),
            }
            self.end_task(task);
            return self.told(task.connection, true);
        }
        if self.try_withdraw(task, reason).is_none() {
            // It is gone, or its memory is.
            self.end_task(task);
            self.told(task.connection, false);
        }
    }

    /// Why a connection leaves the ring.
    fn why(&self, connection: ConnectionId) -> Reason {
        if self.is_draining() || self.withdrawals.returning.contains(&connection) {
            Reason::Drained
        } else {
            Reason::Revoked
        }
    }

    /// The programs of this daemon that a connection has.
    fn occupants(&self, connection: ConnectionId) -> Vec<Occupant> {
        let ends = self.broker.ends(connection);
        let occupants = ends.into_iter().flat_map(|ends| ends.occupants);
        occupants.flatten().collect()
    }

    fn try_withdraw(&mut self, task: Task, reason: Reason) -> Option<()> {
        let ends = self.broker.ends(task.connection)?;
        let arena = self.arenas.get(&ends.place.arena)?;
        let (uid, memory) = (arena.uid, Arc::clone(&arena.memory));
        let seats = ends.occupants.map(|occupant| self.seat(&occupant?));
        let mut vanished = None;
        if let Some(id) = task.vanished {
            let is_it = |end: End| {
                let occupant = ends.occupants.get(end.index()).copied().flatten();
                occupant.is_some_and(|occupant| occupant.id == id)
            };
            vanished = Some([End::Zero, End::One].into_iter().find(|end| is_it(*end))?);
        }
        let withdrawal = Withdrawal {
            arena: memory,
            place: ends.place,
            seats,
            vanished,
            reason,
        };
        if self.broker.hold(task.connection) {
            self.withdrawals.working += 1;
            self.workers.submit(uid, Job::Withdraw(task, withdrawal));
        }
        Some(())
    }

    /// A program, also one that has left while its connections are looked after.
    pub(super) fn program(&self, process: Process) -> Option<&Program> {
        let here = self.programs.get(&process);
        here.or_else(|| self.departed.get(&process))
    }

    pub(super) fn seat(&self, occupant: &Occupant) -> Option<Seat> {
        Some(Seat {
            program: Arc::clone(&self.program(occupant.process)?.record),
            slot: occupant.slot,
            generation: occupant.generation,
        })
    }

    /// What came of a withdrawal.
    pub(super) fn withdrawn(&mut self, task: Task, result: Withdrawn) {
        tracing::debug!(?task, ?result, "withdrawn");
        self.withdrawals.working = self.withdrawals.working.saturating_sub(1);
        let now = Instant::now();
        match result {
            Withdrawn::Off {
                changed,
                behind,
                reading,
            } => {
                self.rouse(task.connection, [true; 2]);
                let ends = self.broker.ends(task.connection);
                for (occupant, behind) in ends.into_iter().flat_map(|e| e.occupants).zip(behind) {
                    if let (Some(occupant), true) = (occupant, behind) {
                        self.withdrawals.plan_rescue(occupant.id);
                    }
                }
                if task.vanished.is_some() {
                    self.tell_retracted(task.connection);
                }
                // Until its last bytes are read the other end stays on its ring, which tools see.
                if !reading || !self.withdrawals.tasks.again(task, now) {
                    self.end_task(task);
                }
                self.told(task.connection, changed);
            }
            Withdrawn::Busy => {
                let patience = match task.vanished {
                    Some(_) => self.withdrawals.tasks.pauses_of(task) < VANISHED_TRIES,
                    None => true,
                };
                if !patience || !self.withdrawals.tasks.again(task, now) {
                    self.give_up(task);
                }
            }
            Withdrawn::Lost => self.give_up(task),
        }
        self.broker.release(task.connection);
    }

    /// A connection cannot be taken off the ring. If one end has vanished it is broken, openly.
    fn give_up(&mut self, task: Task) {
        if let Some(id) = task.vanished
            && let Some(ends) = self.broker.ends(task.connection)
            && let Some(arena) = self.arenas.get(&ends.place.arena)
        {
            for (occupant, end) in ends.occupants.into_iter().zip([End::Zero, End::One]) {
                if occupant.is_some_and(|occupant| occupant.id == id)
                    && let Some(words) = arena.memory.end(ends.place.offset, end)
                {
                    words.state.break_with(Reason::Exec);
                }
            }
            self.rouse(task.connection, [true; 2]);
        }
        self.end_task(task);
    }

    fn end_task(&mut self, task: Task) {
        self.withdrawals.tasks.done(task);
        self.withdrawals.returning.remove(&task.connection);
        if let Some(id) = task.vanished {
            self.broker.withdrawn(id);
        }
    }

    /// Wakes everybody who waits at the ends of a connection.
    pub(super) fn rouse(&mut self, connection: ConnectionId, which: [bool; 2]) {
        let Some(ends) = self.broker.ends(connection) else {
            return;
        };
        let wanted = ends.occupants.into_iter().zip([End::Zero, End::One]);
        for ((occupant, end), wanted) in wanted.zip(which) {
            if let (Some(occupant), true) = (occupant, wanted) {
                self.rouse_end(&ends.place, end, occupant.process);
            }
        }
    }

    /// Wakes everybody who waits at one end, which is `process`'s.
    pub(super) fn rouse_end(&mut self, place: &Place, end: End, process: Process) {
        // What was changed before is seen by whoever is not seen to wait.
        full_barrier();
        let mut waiting = Vec::new();
        if let Some(arena) = self.arenas.get(&place.arena)
            && let Some(words) = arena.memory.end(place.offset, end)
        {
            for what in [WaitFor::Data, WaitFor::Space] {
                words.waits.each(what, |who| waiting.push(who));
            }
        }
        for who in waiting {
            self.wake(process, who);
        }
    }

    /// Looks at a sender whose far end has left the ring, and helps it if it has not followed.
    fn rescue(&mut self, id: RegistrationId, now: Instant) {
        match self.try_rescue(id) {
            Some(Attention::Needless) | None => self.withdrawals.end_rescue(id),
            Some(Attention::Wait) => {
                self.withdrawals.rescues.again(id, now);
            }
            Some(Attention::Given) => {}
        }
    }

    fn try_rescue(&mut self, id: RegistrationId) -> Option<Attention> {
        let (connection, end) = self.broker.seat_of(id)?;
        let ends = self.broker.ends(connection)?;
        let occupant = ends.occupants.get(end.index()).copied().flatten()?;
        let arena = self.arenas.get(&ends.place.arena)?;
        let (uid, memory) = (arena.uid, Arc::clone(&arena.memory));
        let words = |end| memory.end(ends.place.offset, end);
        let (own, far) = (words(end)?, words(end.far())?);
        let seat = self.seat(&occupant)?;
        let slot = seat.look()?;
        let is_broken = own.state.broken().or(far.state.broken()).is_some();
        let retracted = own.state.retracted_at(&far.state);
        if is_broken || !is_needed(slot, retracted.is_some()) {
            return Some(Attention::Needless);
        }
        let resent = slot.tx.resend.load(Ordering::Relaxed);
        if let Some(before) = self.withdrawals.resent.insert(id, resent)
            && before != resent
        {
            // The program is at it.
            return Some(Attention::Wait);
        }
        let program = self.programs.get(&occupant.process)?;
        let control = Arc::clone(&self.clients.get(&program.token)?.socket);
        let rescue = Rescue {
            seat,
            arena: memory,
            place: ends.place,
            end,
            control,
            proof: occupant.proof,
        };
        if !self.broker.hold(connection) {
            return None;
        }
        let job = Job::Rescue(id, connection, rescue);
        if self.workers.submit_slow(uid, job) {
            return Some(Attention::Given);
        }
        self.broker.release(connection);
        Some(Attention::Wait)
    }

    /// What came of a rescue.
    pub(super) fn rescued(&mut self, id: RegistrationId, at: ConnectionId, result: Rescued) {
        tracing::debug!(registration = %id, ?result, "rescued");
        if result != Rescued::Never {
            let which = [End::Zero, End::One]
                .map(|end| self.broker.seat_of(id).is_some_and(|seat| seat.1 == end));
            self.rouse(at, which);
        }
        match result {
            Rescued::Done | Rescued::Never => self.withdrawals.end_rescue(id),
            Rescued::Moved | Rescued::Stuck => {
                if result == Rescued::Moved {
                    self.withdrawals.rescues.encourage(id);
                }
                // Whatever moves from now on, the program moves.
                self.withdrawals.resent.remove(&id);
                self.withdrawals.rescues.again(id, Instant::now());
            }
        }
        self.broker.release(at);
    }
}

/// What a sender needs.
enum Attention {
    /// Nothing.
    Needless,
    /// Perhaps help, later.
    Wait,
    /// A thread is at it.
    Given,
}
