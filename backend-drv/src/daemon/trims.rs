//! When rings are looked at that may have memory to give back.
//!
//! Nobody tells the daemon that a ring was filled and emptied, since that would cost the programs something. So it
//! looks from time to time how far each direction has been read, which stands in memory that it has touched anyway. What
//! has moved on by much since it was last trimmed, and has not moved since the last look, is given to a worker
//! ([`crate::trim`]). While nothing of that kind happens the looks become rare, and without connections there are none.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering as Count;
use std::time::{Duration, Instant};

use rdma_core::layout::End;

use super::Daemon;
use crate::broker::{Ends, Occupant, host_connection};
use crate::ids::ConnectionId;
use crate::relay::Command;
use crate::trim::{Sender, Trim, Trimmed};
use crate::workers::Job;

/// Bytes that a direction has carried since it was last trimmed, before it is worth while again. So much may be left.
const GROWN: u64 = 64 * 1024;
/// Rings that the relay keeps empty at a time: what is for them has to wait.
const KEPT_EMPTY_MAX: usize = 16;
/// How much rarer the looks become.
const RARE: u32 = 32;

/// What is known of the rings.
#[derive(Debug)]
pub(super) struct Trims {
    /// The shortest time between two looks; `None`: there are none.
    pause: Option<Duration>,
    /// So many times as long now.
    factor: u32,
    next: Option<Instant>,
    newest: ConnectionId,
    rings: HashMap<ConnectionId, [Ring; 2]>,
    /// Rings that the relay was asked to keep empty.
    kept_empty: usize,
}

/// One direction, by the end that sends.
#[derive(Clone, Copy, Default, Debug)]
struct Ring {
    /// How far it was read at the last look,
    read: u64,
    /// and when it was trimmed.
    trimmed: u64,
    /// Somebody is at it.
    under_way: bool,
}

impl Ring {
    /// Whether it is to be trimmed, and whether it may be soon, now that it has been read up to `read`.
    fn look(&mut self, read: u64) -> (bool, bool) {
        let is_quiet = read == self.read;
        self.read = read;
        let has_grown = read.wrapping_sub(self.trimmed) >= GROWN;
        let is_due = has_grown && is_quiet && !self.under_way;
        (is_due, has_grown && !is_quiet)
    }
}

impl Trims {
    /// Nothing is known yet. `after`: how long a ring is left alone.
    pub(super) fn new(after: Option<Duration>) -> Self {
        Self {
            pause: after,
            factor: 1,
            next: None,
            newest: ConnectionId(0),
            rings: HashMap::new(),
            kept_empty: 0,
        }
    }

    /// When the next look is due.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }

    fn ring(&mut self, connection: ConnectionId, end: End) -> Option<&mut Ring> {
        self.rings.get_mut(&connection)?.get_mut(end.index())
    }

    /// The time until the look after this one.
    fn plan(&mut self, pause: Duration, soon: bool, now: Instant) {
        self.factor = if soon {
            1
        } else {
            self.factor.saturating_mul(2).min(RARE)
        };
        self.next = Some(now + pause * self.factor);
    }

    /// There are connections, of which the newest is this one.
    fn notice(&mut self, pause: Duration, newest: ConnectionId, now: Instant) {
        if self.newest != newest || self.next.is_none() {
            self.newest = newest;
            self.factor = 1;
            let soon = now + pause;
            self.next = Some(self.next.map_or(soon, |at| at.min(soon)));
        }
    }
}

impl Daemon {
    /// What is due by the clock.
    pub(super) fn tick_trims(&mut self, now: Instant) {
        let Some(pause) = self.trims.pause else {
            return;
        };
        if self.broker.connections() == 0 || self.drain.is_some() {
            self.trims.next = None;
            self.trims.rings.clear();
            return;
        }
        self.trims.notice(pause, self.broker.newest(), now);
        if self.trims.next.is_some_and(|at| at <= now) {
            let soon = self.look_at_rings();
            self.trims.plan(pause, soon, now);
        }
    }

    /// True: something was read that may leave memory to be given back.
    fn look_at_rings(&mut self) -> bool {
        let mut before = std::mem::take(&mut self.trims.rings);
        let mut due = Vec::new();
        let mut soon = false;
        for (connection, place) in self.broker.places() {
            // What reaches out of a guest lies in the host's memory.
            let arena = self.arenas.get(&place.arena);
            let Some(arena) = arena.filter(|_| host_connection(connection).is_none()) else {
                continue;
            };
            let mut rings = before.remove(&connection).unwrap_or_default();
            for (end, ring) in [End::Zero, End::One].into_iter().zip(&mut rings) {
                if let Some(read) = arena.memory.consumed(place.offset, end.far()) {
                    let (is_due, may_be_soon) = ring.look(read);
                    soon |= may_be_soon;
                    if is_due {
                        due.push((connection, end));
                    }
                }
            }
            self.trims.rings.insert(connection, rings);
        }
        for (connection, end) in due {
            soon |= self.trim(connection, end) == Some(false);
        }
        soon
    }

    /// Has the ring of one end trimmed, if that can be done. False: not now.
    fn trim(&mut self, connection: ConnectionId, end: End) -> Option<bool> {
        let ends = self.broker.ends(connection)?;
        let [own, far] =
            [end, end.far()].map(|end| ends.occupants.get(end.index()).copied().flatten());
        let started = match (own, self.broker.is_relayed(connection)) {
            // The relay's end. One that a program has closed has nobody at it, either.
            (None, true) if far.is_some() => {
                let may = self.trims.kept_empty < KEPT_EMPTY_MAX;
                if may {
                    self.trims.kept_empty += 1;
                    self.command(Command::KeepEmpty(connection, end));
                }
                may
            }
            (None, _) => return None,
            (Some(own), relayed) => {
                // Whoever has the file can keep it busy for ever, and the sender with it while it is to be punched.
                if !relayed && !self.are_of_one_user(own, far?) {
                    return None;
                }
                let sender = self.sender(&own)?;
                self.submit_trim(connection, &ends, end, Some(sender))?
            }
        };
        if let Some(ring) = self.trims.ring(connection, end) {
            ring.under_way = started;
        }
        Some(started)
    }

    fn are_of_one_user(&self, one: Occupant, other: Occupant) -> bool {
        let uid = |occupant: Occupant| Some(self.program(occupant.process)?.record.uid);
        uid(one).is_some() && uid(one) == uid(other)
    }

    fn sender(&self, occupant: &Occupant) -> Option<Sender> {
        let program = self.programs.get(&occupant.process)?;
        Some(Sender {
            seat: self.seat(occupant)?,
            control: Arc::clone(&self.clients.get(&program.token)?.socket),
        })
    }

    /// False: too much waits already.
    fn submit_trim(
        &mut self,
        connection: ConnectionId,
        ends: &Ends,
        end: End,
        sender: Option<Sender>,
    ) -> Option<bool> {
        let arena = self.arenas.get(&ends.place.arena)?;
        let uid = arena.uid;
        let trim = Trim {
            arena: Arc::clone(&arena.memory),
            place: ends.place,
            end,
            sender,
        };
        if !self.broker.hold(connection) {
            return None;
        }
        let is_taken = self
            .workers
            .submit_optional(uid, Job::Trim(connection, trim));
        if !is_taken {
            self.broker.release(connection);
        }
        Some(is_taken)
    }

    /// The relay puts nothing into the ring of its end of a connection now, or there is something in it.
    pub(super) fn kept_empty(&mut self, connection: ConnectionId, end: End, kept: bool) {
        let ends = self.broker.ends(connection).filter(|_| kept);
        let taken = ends.and_then(|ends| self.submit_trim(connection, &ends, end, None));
        if taken != Some(true) {
            self.trim_ended(connection, end, true);
        }
    }

    /// What came of it.
    pub(super) fn trimmed(
        &mut self,
        connection: ConnectionId,
        end: End,
        by_relay: bool,
        result: Trimmed,
    ) {
        tracing::debug!(%connection, ?end, ?result, "trimmed");
        if let Trimmed::Done { read, gave } = result {
            if let Some(ring) = self.trims.ring(connection, end) {
                ring.trimmed = read;
            }
            let count = usize::from(gave);
            self.ledger.trimmed.fetch_add(count, Count::Relaxed);
        }
        self.trim_ended(connection, end, by_relay);
        self.broker.release(connection);
    }

    fn trim_ended(&mut self, connection: ConnectionId, end: End, by_relay: bool) {
        if let Some(ring) = self.trims.ring(connection, end) {
            ring.under_way = false;
        }
        if by_relay {
            self.trims.kept_empty = self.trims.kept_empty.saturating_sub(1);
            self.command(Command::MayFill(connection));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_due_when_it_has_carried_much_and_rests() {
        let mut ring = Ring::default();
        assert_eq!(ring.look(0), (false, false));
        assert_eq!(ring.look(GROWN - 1), (false, false));
        assert_eq!(ring.look(GROWN - 1), (false, false), "not worth while");
        assert_eq!(ring.look(GROWN), (false, true), "it moves");
        assert_eq!(ring.look(GROWN), (true, false));
        assert_eq!(ring.look(GROWN), (true, false), "until it is done");
        ring.under_way = true;
        assert_eq!(ring.look(GROWN), (false, false));
        ring.under_way = false;
        ring.trimmed = GROWN;
        assert_eq!(ring.look(GROWN), (false, false));
        assert_eq!(ring.look(2 * GROWN), (false, true));
        assert_eq!(ring.look(2 * GROWN), (true, false));
    }

    #[test]
    fn looks_become_rare_until_there_is_something() {
        let pause = Duration::from_secs(1);
        let mut trims = Trims::new(Some(pause));
        let now = Instant::now();
        assert_eq!(trims.next(), None);
        trims.notice(pause, ConnectionId(1), now);
        assert_eq!(trims.next(), Some(now + pause));
        for times in [2, 4, 8, 16, 32, 32] {
            trims.plan(pause, false, now);
            trims.notice(pause, ConnectionId(1), now);
            assert_eq!(trims.next(), Some(now + pause * times));
        }
        trims.notice(pause, ConnectionId(2), now);
        assert_eq!(trims.next(), Some(now + pause), "there is a new connection");
        trims.plan(pause, false, now);
        assert_eq!(trims.next(), Some(now + pause * 2));
        trims.plan(pause, true, now);
        assert_eq!(trims.next(), Some(now + pause));
    }
}
