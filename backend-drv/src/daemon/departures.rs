//! What became of the sockets of programs that left.
//!
//! A dying process closes its descriptors one after the other, so its control socket may be gone
//! before its connections are. A socket that is still held is therefore looked at again, a few times,
//! before somebody else is taken to hold it.

use std::time::{Duration, Instant};

use super::Daemon;
use crate::broker::Fate;
use crate::ids::RegistrationId;

/// Pauses between the looks.
const PAUSES_MS: [u64; 5] = [1, 4, 20, 75, 200];

/// Looks still to be taken.
#[derive(Debug, Default)]
pub(super) struct Departures {
    pending: Vec<Look>,
}

#[derive(Debug)]
struct Look {
    registration: RegistrationId,
    at: Instant,
    taken: usize,
}

impl Departures {
    pub(super) const fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.pending.iter().map(|look| look.at).min()
    }

    /// Registrations to look at now.
    pub(super) fn due(&self, now: Instant) -> Vec<RegistrationId> {
        self.pending
            .iter()
            .filter(|look| look.at <= now)
            .map(|look| look.registration)
            .collect()
    }

    /// Has `registration` looked at again. False if that has been done often enough.
    fn again(&mut self, registration: RegistrationId, now: Instant) -> bool {
        let known = self
            .pending
            .iter_mut()
            .find(|look| look.registration == registration);
        let taken = known.as_ref().map_or(0, |look| look.taken);
        let Some(pause) = PAUSES_MS.get(taken) else {
            return false;
        };
        let at = now + Duration::from_millis(*pause);
        match known {
            Some(look) => {
                look.at = at;
                look.taken += 1;
            }
            None => self.pending.push(Look {
                registration,
                at,
                taken: 1,
            }),
        }
        true
    }

    fn done(&mut self, registration: RegistrationId) {
        self.pending
            .retain(|look| look.registration != registration);
    }
}

impl Daemon {
    /// Looks at the socket of a registration whose program has left.
    pub(super) fn examine(&mut self, id: RegistrationId, now: Instant) {
        let fate = match self.holder(id) {
            Some(true) if self.departures.again(id, now) => return,
            Some(true) => Fate::Held,
            Some(false) => Fate::Gone,
            // Nobody can say: breaking the connection is better than leaving the far end waiting.
            None => Fate::Held,
        };
        self.departures.done(id);
        tracing::debug!(registration = %id, ?fate, "end of a program that left");
        self.broker.examined(id, fate);
    }

    /// Whether some process still holds the socket.
    fn holder(&mut self, id: RegistrationId) -> Option<bool> {
        let registration = self.broker.registration(id)?;
        let (tuple, proof) = (registration.tuple, registration.proof);
        let cookie = Some(proof.cookie).filter(|cookie| *cookie != 0);
        let own = self.departed.get(&registration.process);
        let mut answer = own.and_then(|netlink| self.diag.lookup(netlink, &tuple, cookie).ok());
        if answer.is_none() {
            // The program left its own socket in disorder; the far end's serves as well, if it is
            // of the same namespace.
            let (_, peer) = self.broker.far_end(id)?;
            let program = self.programs.get(&peer)?;
            if program.record.netns != registration.netns() {
                return None;
            }
            answer = self.diag.lookup(&program.netlink, &tuple, cookie).ok();
        }
        Some(answer?.is_some_and(|sample| sample.inode == proof.inode))
    }
}
