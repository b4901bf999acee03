//! What became of the sockets of programs that left.
//!
//! A dying process closes its descriptors one after the other, so its control socket may be gone
//! before its connections are. A socket that is still held is therefore looked at again, a few times,
//! before somebody else is taken to hold it.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::Daemon;
use crate::broker::Fate;
use crate::ids::RegistrationId;

/// Pauses between the looks.
const PAUSES_MS: [u64; 5] = [1, 4, 20, 75, 200];

/// Looks still to be taken.
#[derive(Debug, Default)]
pub(super) struct Departures {
    by_time: BTreeSet<(Instant, RegistrationId)>,
    taken: HashMap<RegistrationId, usize>,
}

impl Departures {
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// A registration to look at now.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<RegistrationId> {
        let first = self.by_time.first().filter(|(at, _)| *at <= now)?;
        let id = first.1;
        self.by_time.pop_first();
        Some(id)
    }

    /// Has `id` looked at again. False if that has been done often enough.
    fn again(&mut self, id: RegistrationId, now: Instant) -> bool {
        let taken = self.taken.entry(id).or_default();
        let Some(pause) = PAUSES_MS.get(*taken) else {
            return false;
        };
        *taken += 1;
        self.by_time
            .insert((now + Duration::from_millis(*pause), id));
        true
    }

    fn done(&mut self, id: RegistrationId) {
        self.taken.remove(&id);
    }
}

impl Daemon {
    /// Looks at the socket of a registration whose program has left.
    pub(super) fn examine(&mut self, id: RegistrationId, now: Instant) {
        let fate = match self.is_held(id) {
            Some(false) => Fate::Gone,
            Some(true) | None if self.departures.again(id, now) => return,
            // Held, or nobody can say: breaking the connection is better than leaving the far end
            // waiting for a program that does not know of the ring.
            Some(true) | None => Fate::Held,
        };
        self.departures.done(id);
        tracing::debug!(registration = %id, ?fate, "end of a program that left");
        self.broker.examined(id, fate);
    }

    /// Whether some process still holds the socket.
    fn is_held(&mut self, id: RegistrationId) -> Option<bool> {
        let registration = self.broker.registration(id)?;
        let (tuple, proof) = (registration.tuple, registration.proof);
        let own = self.departed.get(&registration.process);
        let mut answer =
            own.and_then(|namespace| self.diag.lookup(namespace, &tuple, Some(proof.cookie)).ok());
        if answer.is_none() {
            // The program left its own socket in disorder; the far end's serves as well, if it is
            // of the same namespace.
            let (_, peer) = self.broker.far_end(id)?;
            let namespace = &self.programs.get(&peer)?.namespace;
            if namespace.cookie == registration.netns() {
                answer = self.diag.lookup(namespace, &tuple, Some(proof.cookie)).ok();
            }
        }
        Some(answer?.is_some_and(|sample| sample.inode == proof.inode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_looked_at_again_a_few_times() {
        let mut departures = Departures::default();
        let mut now = Instant::now();
        let (one, other) = (RegistrationId(1), RegistrationId(2));
        for looks in 0..PAUSES_MS.len() {
            assert!(departures.again(one, now), "{looks}");
            assert_eq!(departures.pop_due(now), None);
            now = departures.next().unwrap();
            assert_eq!(departures.pop_due(now), Some(one));
        }
        assert!(!departures.again(one, now));
        assert!(departures.again(other, now));
        departures.done(one);
        assert!(!departures.is_empty());
        departures.done(other);
        assert!(departures.is_empty());
    }
}
