//! Going on with connections in a new session of their link, after the backend at either end was started anew.
//!
//! When the session ends that way, connections are *suspended*: programs notice nothing, but that no bytes come and
//! none are taken. As soon as the next session is up each side says RESUME for each of them; with what it hears
//! and with its own memory it opens the stream where the far end is. Each backend counts on the far one for what
//! that has received, and sends everything behind it again: the sender's ring has all of it.

use rdma_core::event::WaitFor;
use rdma_core::link::{Endpoint, FarEnd, Positions, Time};
use rdma_core::mirror::Snapshot;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{PAIRING_MAX, Pairing, Place as FarPlace};

use super::connections::{Suspended, Way};
use super::switchboard::Switchboard;

impl Switchboard {
    /// The session of a connection's link is over, but not the connection.
    pub(super) fn suspend(&mut self, endpoint: u32) {
        let now = self.now;
        let Some(entry) = self.connections.get_mut(endpoint) else {
            return;
        };
        entry.suspended = Some(Suspended {
            since: now,
            told: None,
        });
        entry.told = Snapshot::default();
        let line = entry.line();
        let until = now.plus(self.grace(line));
        self.grace_until = Some(self.grace_until.map_or(until, |at| at.min(until)));
    }

    /// How long a connection waits to be resumed.
    fn grace(&self, line: Option<usize>) -> u64 {
        let link = line.and_then(|line| self.link(line));
        link.map_or(0, |link| link.idle_timeout())
    }

    /// The session of a line has ended. `is_known`: the same backend is at its far end as before.
    pub(super) fn suspend_all(&mut self, line: usize, is_known: bool) {
        if let Some(line) = self.line(line) {
            line.resuming.clear();
        }
        for endpoint in self.connections.endpoints() {
            let Some(entry) = self.connections.get(endpoint) else {
                continue;
            };
            if entry.line() != Some(line) {
                continue;
            }
            let is_broken = entry.mirror.get().said().has(Snapshot::BROKEN);
            if is_known && entry.far.is_some() && !is_broken {
                self.suspend(endpoint);
            } else {
                self.break_one(endpoint, Reason::LinkReset);
            }
        }
    }

    /// Whether connections over a line wait to be resumed.
    pub(super) fn has_suspended(&self, line: usize) -> bool {
        let suspended = |endpoint: &u32| {
            let entry = self.connections.get(*endpoint);
            entry.is_some_and(|entry| entry.line() == Some(line) && entry.suspended.is_some())
        };
        self.grace_until.is_some() && self.connections.endpoints().iter().any(suspended)
    }

    /// A session has begun.
    pub(super) fn begin_to_resume(&mut self, index: usize) {
        if self.grace_until.is_none() {
            return;
        }
        for endpoint in self.connections.endpoints() {
            let Some(entry) = self.connections.get_mut(endpoint) else {
                continue;
            };
            if entry.line() == Some(index)
                && let Some(suspended) = &mut entry.suspended
                && let Some(Some(line)) = self.lines.get_mut(index)
            {
                suspended.told = None;
                // What comes for it before the far RESUME has to come again.
                line.link.expect(Endpoint(endpoint));
                line.resuming.push_back(endpoint);
            }
        }
    }

    /// Says RESUME as far as the link takes it.
    pub(super) fn ask_to_resume(&mut self, index: usize) {
        let Some(Some(line)) = self.lines.get_mut(index) else {
            return;
        };
        while line.is_up
            && let Some(endpoint) = line.resuming.front().copied()
        {
            if let Some(entry) = self.connections.get_mut(endpoint)
                && let Some(far) = entry.far
            {
                let (received, consumed) = entry.mirror.get().taken();
                let message = Pairing::Resume {
                    own: FarPlace {
                        endpoint,
                        rkey: entry.keys.remote.0,
                    },
                    far: far.endpoint,
                    received,
                    consumed,
                };
                let mut bytes = [0; PAIRING_MAX];
                let len = message.emit(&mut bytes);
                let bytes = bytes.get(..len).unwrap_or(&[]);
                if line.link.send_control(bytes).is_err() {
                    return;
                }
                if let Some(suspended) = &mut entry.suspended {
                    suspended.told = Some(consumed);
                }
            }
            line.resuming.pop_front();
        }
    }

    /// The far backend goes on with a connection.
    pub(super) fn heard_resume(
        &mut self,
        line: usize,
        far: FarPlace,
        endpoint: u32,
        at: (u64, u64),
    ) {
        let found = self
            .connections
            .get_mut(endpoint)
            .filter(|entry| entry.line() == Some(line) && entry.far == Some(far));
        let refusal = match found {
            None => Some(Reason::LinkReset),
            Some(entry) => match entry.mirror.get().said() {
                said if said.has(Snapshot::BROKEN) => {
                    Some(Reason::from_code(said.reason).unwrap_or(Reason::LinkReset))
                }
                _ if entry.suspended.is_none() => return,
                _ => {
                    // Counts what the program has written meanwhile.
                    let is_sound = entry.mirror.get_mut().look().is_ok()
                        && entry.mirror.get().may_have_sent(at.0, at.1);
                    (!is_sound).then_some(Reason::RingCorrupt)
                }
            },
        };
        match refusal {
            None => self.reopen(endpoint, far, at),
            Some(reason) => {
                if reason == Reason::RingCorrupt {
                    self.break_one(endpoint, reason);
                }
                let gone = Pairing::Gone {
                    endpoint: far.endpoint,
                    reason: reason.code(),
                };
                self.tell(line, &gone);
            }
        }
    }

    fn reopen(&mut self, endpoint: u32, far: FarPlace, (received, consumed): (u64, u64)) {
        let Some(entry) = self.connections.get_mut(endpoint) else {
            return;
        };
        let Some(suspended) = entry.suspended.take() else {
            return;
        };
        let mirror = entry.mirror.get_mut();
        let (edge, head) = mirror.taken();
        let at = Positions {
            sent: received,
            far_consumed: consumed,
            received: edge,
            // What the program has read since is told as ever.
            consumed: suspended.told.unwrap_or(head),
        };
        let has_room = mirror.consumed(consumed);
        let far = FarEnd {
            endpoint: far.endpoint,
            rkey: far.rkey,
            capacity: mirror.capacity(),
        };
        let (rkey, domain) = (entry.keys.remote.0, entry.domain);
        let id = entry.id;
        if let Way::Line(line) = entry.way
            && let Some(Some(line)) = self.lines.get_mut(line)
        {
            line.link.open(Endpoint(endpoint), far, rkey, domain, at);
        }
        tracing::debug!(connection = %id, endpoint, ?at, "resumed");
        if has_room {
            self.wake(endpoint, WaitFor::Space);
        }
        self.touched.push_back(endpoint);
    }

    /// The far backend does not have a connection.
    pub(super) fn heard_gone(&mut self, line: usize, endpoint: u32, reason: u32) {
        let waits = self
            .connections
            .get(endpoint)
            .is_some_and(|entry| entry.line() == Some(line) && entry.suspended.is_some());
        if waits {
            let reason = Reason::from_code(reason).filter(|reason| reason.is_timeout());
            self.break_one(endpoint, reason.unwrap_or(Reason::LinkReset));
        }
    }

    /// Breaks what nobody has resumed in time.
    pub(super) fn end_grace(&mut self, now: Time) {
        self.grace_until = None;
        for endpoint in self.connections.endpoints() {
            let Some(entry) = self.connections.get(endpoint) else {
                continue;
            };
            let Some(suspended) = entry.suspended else {
                continue;
            };
            let line = entry.line();
            let until = suspended.since.plus(self.grace(line));
            if until > now {
                self.grace_until = Some(self.grace_until.map_or(until, |at| at.min(until)));
                continue;
            }
            let link = line.and_then(|line| self.link(line));
            let is_up = link.is_some_and(rdma_core::link::Link::is_up);
            let reason = if is_up {
                Reason::LinkReset
            } else {
                Reason::LinkTimeout
            };
            self.break_one(endpoint, reason);
        }
    }
}
