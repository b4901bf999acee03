//! What became of the sockets of programs that left.
//!
//! A dying process closes its descriptors one after the other, so its control socket may be gone
//! before its connections are. A socket that is still held is therefore looked at again, a few times,
//! before somebody else is taken to hold it.

use std::time::Instant;

use super::Daemon;
use crate::broker::Fate;
use crate::ids::RegistrationId;

/// Pauses between the looks.
pub(super) const PAUSES_MS: [u64; 5] = [1, 4, 20, 75, 200];

impl Daemon {
    /// Looks at the socket of a registration whose program has left.
    pub(super) fn examine(&mut self, id: RegistrationId, now: Instant) {
        let fate = match self.is_held(id) {
            Some(false) => Fate::Gone,
            Some(true) | None if self.departures.again(id, now) => return,
            // Held, or nobody can say: the far end must not wait for a program that knows nothing of the
            // ring.
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
        let mut answer = own.and_then(|program| {
            let namespace = &program.namespace;
            self.diag.lookup(namespace, &tuple, Some(proof.cookie)).ok()
        });
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
