//! Tools that ask for connections to be taken back to TCP.
//!
//! An answer waits until the work is done, but not for long: what is left then is said to be pending. One
//! request of a user is worked on at a time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use rdma_core::control::{Message, Revoke, Text};
use rdma_core::reason::Reason;

use super::Daemon;
use super::clients::Role;
use super::withdrawals::Task;
use crate::broker::Filter;
use crate::ids::ConnectionId;

/// How long a tool waits for its answer.
const PATIENCE: Duration = Duration::from_millis(1000);

/// Requests.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    active: HashMap<u64, Revocation>,
    waiting: VecDeque<(u64, Revoke)>,
}

/// A request that is worked on.
#[derive(Debug)]
struct Revocation {
    uid: u32,
    until: Instant,
    left: HashSet<ConnectionId>,
    revoked: usize,
    already: usize,
    refused: usize,
}

impl Revocations {
    /// When the first answer is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.active.values().map(|request| request.until).min()
    }
}

impl Daemon {
    /// A tool asks. It is not listened to until it has its answer.
    pub(super) fn revoke(&mut self, token: u64, body: &Revoke) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        client.role = Role::Tool;
        self.set_interest(token, EpollFlags::empty());
        self.revocations.waiting.push_back((token, *body));
        self.start_revocations();
    }

    /// Begins what has its turn.
    fn start_revocations(&mut self) {
        for (token, body) in std::mem::take(&mut self.revocations.waiting) {
            let Some(client) = self.clients.get(&token) else {
                continue;
            };
            let uid = client.credentials.uid;
            let is_busy = |request: &Revocation| request.uid == uid;
            if self.revocations.active.values().any(is_busy) {
                self.revocations.waiting.push_back((token, body));
            } else {
                self.start_revocation(token, uid, &body);
            }
        }
    }

    fn start_revocation(&mut self, token: u64, uid: u32, body: &Revoke) {
        let all = uid == 0 || uid == nix::unistd::geteuid().as_raw();
        let filter = Filter::of(body, (!all).then_some(uid));
        let programs = &self.programs;
        let pid_of = |process| {
            programs
                .get(&process)
                .map_or(0, |program| program.record.pid)
        };
        let found = self.broker.revoke(&filter, Reason::Revoked, pid_of);
        self.withdraw_outside(&found.connections);
        // Told to leave; the relay sees to the rest.
        let survivors = self.revoke_survivors(&filter) + self.revoke_guests(&filter);
        tracing::info!(
            uid,
            connections = found.connections.len(),
            registrations = found.refused,
            ?filter,
            "revoked by a tool"
        );
        let request = Revocation {
            uid,
            until: Instant::now() + PATIENCE,
            left: found.connections.iter().copied().collect(),
            revoked: survivors,
            already: 0,
            refused: found.refused,
        };
        self.revocations.active.insert(token, request);
        for connection in found.connections {
            let task = Task {
                connection,
                vanished: None,
            };
            self.withdraw(task);
        }
        self.answer_if_done(token, false);
    }

    /// A connection is off the ring (or gone).
    pub(super) fn told(&mut self, connection: ConnectionId, changed: bool) {
        let mut done = Vec::new();
        for (token, request) in &mut self.revocations.active {
            if request.left.remove(&connection) {
                *if changed {
                    &mut request.revoked
                } else {
                    &mut request.already
                } += 1;
                done.push(*token);
            }
        }
        for token in done {
            self.answer_if_done(token, false);
        }
    }

    /// What is due by the clock.
    pub(super) fn tick_revocations(&mut self, now: Instant) {
        let due = self.revocations.active.iter();
        let due: Vec<u64> = due
            .filter(|(_, request)| request.until <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            self.answer_if_done(token, true);
        }
    }

    /// Answers if nothing is left to be waited for, or all the same.
    fn answer_if_done(&mut self, token: u64, anyway: bool) {
        let request = self.revocations.active.get(&token);
        if !request.is_some_and(|request| request.left.is_empty() || anyway) {
            return;
        }
        let Some(request) = self.revocations.active.remove(&token) else {
            return;
        };
        let text = serde_json::json!({
            "revoked": request.revoked,
            "already": request.already,
            "refused": request.refused,
            "pending": request.left.len(),
        })
        .to_string();
        let head = Text {
            more: 0,
            reserved: 0,
        };
        let limit = self.options.limits.queued_messages;
        if let Some(client) = self.clients.get_mut(&token) {
            if client
                .outbox
                .push(&Message::Report(head, &text), None, limit)
            {
                self.flush(token);
            } else {
                self.doomed.push(token);
            }
        }
        self.start_revocations();
    }
}
