//! What the event loop wants of connections.

use std::sync::Arc;

use rdma_core::event::WaitRef;
use rdma_core::layout::End;
use rdma_core::link::{Endpoint, FarEnd, Positions};
use rdma_core::mr::RemoteKey;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{PAIRING_MAX, Pairing, Place as FarPlace};

use super::{Line, Switchboard, UNSAID_MAX, Way};
use crate::ids::ConnectionId;
use crate::relay::connections::{Connection, Parts};
use crate::wake::Waiters;

impl Switchboard {
    /// The caller runs on this processor, plus one; 0: nobody knows.
    pub const fn runs_on(&mut self, cpu: u32) {
        self.cpu = cpu;
    }

    /// Where bytes are taken for an endpoint in use.
    pub fn place_of(&self, endpoint: u32) -> Option<FarPlace> {
        let entry = self.connections.get(endpoint)?;
        Some(FarPlace {
            endpoint,
            rkey: entry.keys.remote.0,
        })
    }

    /// A number for the next connection; to be used in [`Switchboard::open`], or given back.
    pub fn reserve(&mut self) -> Option<u32> {
        self.connections.reserve()
    }

    /// Reserves this very number, for a connection of a daemon before us. False: it is in use.
    pub fn claim(&mut self, endpoint: u32) -> bool {
        self.connections.claim(endpoint)
    }

    /// A number that was reserved is not needed.
    pub fn give_back(&mut self, endpoint: u32) {
        self.connections.give_back(endpoint);
    }

    /// Serves a connection, whose program wakes the relay by `who`, which the caller has made for `endpoint`.
    ///
    /// # Errors
    /// There is no memory or no key for it.
    pub fn open(
        &mut self,
        endpoint: u32,
        parts: Parts,
        who: WaitRef,
        far: Option<FarPlace>,
    ) -> Result<FarPlace, Reason> {
        let way = parts.way;
        let place = self
            .connections
            .enter(endpoint, parts, who, None)
            .ok_or(Reason::NoMemory)?;
        match far {
            Some(far) => self.join(endpoint, far),
            None => {
                if let Way::Line(line) = way
                    && let Some(Some(line)) = self.lines.get_mut(line)
                {
                    line.link.expect(Endpoint(endpoint));
                }
            }
        }
        Ok(place)
    }

    /// What the program of a connection waits with.
    pub fn introduce(&mut self, endpoint: u32, program: Arc<Waiters>) {
        if let Some(entry) = self.connections.get_mut(endpoint) {
            entry.program = Some(program);
        }
    }

    /// Goes on with a connection of a daemon before us, as soon as the far backend does.
    pub fn restore(
        &mut self,
        endpoint: u32,
        parts: Parts,
        who: WaitRef,
        key: RemoteKey,
        far: FarPlace,
    ) -> bool {
        let entered = self.connections.enter(endpoint, parts, who, Some(key));
        if let Some(entry) = self.connections.get_mut(endpoint) {
            entry.far = Some(far);
            self.suspend(endpoint);
            self.touched.push_back(endpoint);
            // The one before us may have died before it woke the program.
            self.wake_all(endpoint);
        }
        entered.is_some()
    }

    /// The far backend takes bytes at `far`.
    pub fn join(&mut self, endpoint: u32, far: FarPlace) {
        let Some(entry) = self.connections.get_mut(endpoint) else {
            return;
        };
        entry.far = Some(far);
        let mirror = entry.mirror.get();
        let far = FarEnd {
            endpoint: far.endpoint,
            rkey: far.rkey,
            capacity: mirror.capacity(),
        };
        let (sent, received) = mirror.positions();
        let at = Positions {
            sent,
            far_consumed: sent,
            received,
            consumed: received,
        };
        let (rkey, domain) = (entry.keys.remote.0, entry.domain);
        if let Way::Line(line) = entry.way
            && let Some(Some(line)) = self.lines.get_mut(line)
        {
            line.link.open(Endpoint(endpoint), far, rkey, domain, at);
        }
        self.touched.push_back(endpoint);
    }

    /// As [`Switchboard::join`], by the event loop's number.
    pub fn join_connection(&mut self, id: ConnectionId, far: FarPlace) {
        if let Some(endpoint) = self.connections.endpoint(id) {
            self.join(endpoint, far);
        }
    }

    /// Nobody was told of the connection: forgets it.
    pub fn close_connection(&mut self, id: ConnectionId) {
        if let Some(endpoint) = self.connections.endpoint(id) {
            self.close(endpoint);
        }
    }

    /// The program has closed its end, or never took it.
    pub fn end(&mut self, id: ConnectionId) {
        self.change(id, |entry| {
            entry.ended = true;
            // It has said so itself, unless it closed before it knew of the memory, or left its socket to somebody
            // who knows nothing of rings.
            entry.mirror.get_mut().let_go();
        });
    }

    /// The program's machine has vanished: the far end is told that the connection is broken.
    pub fn break_end(&mut self, id: ConnectionId, reason: Reason) {
        self.change(id, |entry| {
            entry.ended = true;
            entry.mirror.get_mut().break_with(reason);
        });
    }

    /// The program has vanished; `held`: its socket lives on.
    pub fn depart(&mut self, id: ConnectionId, held: bool) {
        self.change(id, |entry| {
            if held {
                // Whoever holds the socket knows nothing of rings.
                entry.mirror.get_mut().break_with(Reason::Exec);
            } else {
                entry.mirror.get_mut().depart();
            }
        });
    }

    /// TCP has told the far program of an end that ours has not said, and somebody holds the socket: it was shut down by
    /// a program that did not know of the rings yet, or by somebody who never will. The kernel alone tells the far
    /// program what it waits for.
    pub fn linger(&mut self, id: ConnectionId) {
        self.change(id, |entry| {
            let mirror = entry.mirror.get_mut();
            if mirror.is_doubted() {
                mirror.ask_to_leave();
            }
        });
    }

    /// Both directions of a connection shall leave the rings.
    pub fn withdraw(&mut self, id: ConnectionId) {
        self.change(id, |entry| entry.mirror.get_mut().ask_to_leave());
    }

    /// Puts nothing into the ring of `end`, the relay's, from now on, so that its memory can be given back by somebody
    /// else, until [`Switchboard::may_fill`]. False: there is something in it, or it is not the relay's.
    pub fn keep_empty(&mut self, id: ConnectionId, end: End) -> bool {
        let entry = self.connections.endpoint(id);
        let entry = entry.and_then(|endpoint| self.connections.get_mut(endpoint));
        entry.is_some_and(|entry| entry.end.far() == end && entry.mirror.get_mut().keep_empty())
    }

    /// The program's ring may be filled again. Bytes that were refused come once more by themselves.
    pub fn may_fill(&mut self, id: ConnectionId) {
        self.change(id, |entry| entry.mirror.get_mut().may_fill());
        let endpoint = self.connections.endpoint(id);
        if let Some(partner) = endpoint.and_then(|endpoint| self.connections.partner(endpoint)) {
            self.touched.push_back(partner);
        }
    }

    /// Changes what is known of a connection, and looks at it.
    pub(in crate::relay) fn change(&mut self, id: ConnectionId, how: impl FnOnce(&mut Connection)) {
        if let Some(endpoint) = self.connections.endpoint(id)
            && let Some(entry) = self.connections.get_mut(endpoint)
        {
            how(entry);
            self.touched.push_back(endpoint);
        }
    }

    /// Both directions of all connections shall leave the rings.
    pub fn drain(&mut self) {
        for endpoint in self.connections.endpoints() {
            if let Some(entry) = self.connections.get_mut(endpoint) {
                entry.mirror.get_mut().ask_to_leave();
                self.touched.push_back(endpoint);
            }
        }
    }

    /// Whether all directions have left the rings, and the far backends know.
    pub fn is_drained(&mut self) -> bool {
        self.connections.endpoints().into_iter().all(|endpoint| {
            let Some(entry) = self.connections.get(endpoint) else {
                return true;
            };
            let line = entry.line();
            let line = line.and_then(|line| self.lines.get_mut(line)?.as_mut());
            let is_known = |line: &mut Line| line.link.is_state_known(Endpoint(endpoint));
            entry.mirror.get().is_off() && line.is_none_or(is_known)
        })
    }

    /// Says something to the backend at the other end of a line.
    pub fn tell(&mut self, line: usize, message: &Pairing) {
        let mut bytes = [0; PAIRING_MAX];
        let len = message.emit(&mut bytes);
        if let Some(line) = self.line(line)
            && let Some(message) = bytes.get(..len)
            && line.unsaid.len() < UNSAID_MAX
        {
            line.unsaid.push_back(message.to_vec());
            line.speak();
        }
    }

    /// Breaks what is still on the rings: nobody will serve it.
    pub fn abandon(&mut self, reason: Reason) {
        for endpoint in self.connections.endpoints() {
            let entry = self.connections.get(endpoint);
            if entry.is_some_and(|entry| !entry.mirror.get().is_off()) {
                self.break_one(endpoint, reason);
            }
        }
        self.serve_touched();
    }
}
