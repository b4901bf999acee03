//! What became of the sockets of programs that left.
//!
//! A dying process closes its descriptors one after the other, so its control socket may be gone
//! before its connections are. A socket that is still held is therefore looked at again, a few times,
//! before somebody else is taken to hold it.

use std::time::Instant;

use super::Daemon;
use crate::broker::Fate;
use crate::ids::{ConnectionId, RegistrationId};

/// Pauses between the looks.
pub(super) const PAUSES_MS: [u64; 5] = [1, 4, 20, 75, 200];

impl Daemon {
    /// TCP has told the far end of a relayed connection that this end is done, which has not said so itself. The socket
    /// may have lived longer than the program that registered it, in a child that was killed or has become another
    /// program.
    pub(super) fn doubt(&mut self, connection: ConnectionId) {
        let ends = self.broker.ends(connection);
        let ids = ends.into_iter().flat_map(|ends| ends.occupants).flatten();
        for occupant in ids {
            self.examine(occupant.id, Instant::now());
        }
        self.doubt_survivor(connection);
    }

    /// Looks at the socket of a registration whose program has left, or may have.
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
        let process = &registration.process;
        let own = self
            .departed
            .get(process)
            .or_else(|| self.programs.get(process));
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
