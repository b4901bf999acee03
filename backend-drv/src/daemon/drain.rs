//! Stopping with `--drain`: every connection goes back to kernel TCP before the daemon ends, so that programs go on
//! without noticing. They are told that it is not for good, and let go of the memory when they next look; those that are
//! asleep are woken for it.

use std::time::{Duration, Instant};

use rdma_core::reason::Reason;

use super::Daemon;
use super::withdrawals::Task;
use crate::broker::Filter;
use crate::relay::Command;

/// How long that may take. What is left then goes on as it would without `--drain`.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long programs that do not look are waited for, once everything is off the rings.
const GRACE: Duration = Duration::from_secs(1);
/// Between two looks at whether it is done.
const PAUSE: Duration = Duration::from_millis(5);

/// What is left to do.
#[derive(Debug)]
pub(super) struct Drain {
    until: Instant,
    relaying: bool,
    /// When everything was off the rings.
    settled: Option<Instant>,
}

impl Drain {
    /// When to look again.
    pub(super) fn next(&self) -> Instant {
        self.until.min(Instant::now() + PAUSE)
    }
}

impl Daemon {
    /// The daemon is told to stop.
    pub(super) fn stop(&mut self) {
        if !self.options.drain || self.drain.is_some() {
            self.stopping = true;
            return;
        }
        self.drain = Some(Drain {
            until: Instant::now() + PATIENCE,
            relaying: self.relay.is_some(),
            settled: None,
        });
        let found = self
            .broker
            .revoke(&Filter::default(), Reason::Drained, |_| 0);
        tracing::info!(connections = found.connections.len(), "going back to TCP");
        self.withdraw_outside(&found.connections);
        for connection in found.connections {
            self.withdraw(Task {
                connection,
                vanished: None,
            });
        }
        // What is not known here but to the relay.
        self.command(Command::Drain);
    }

    /// Everything that was relayed is off the rings.
    pub(super) fn relay_drained(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.relaying = false;
        }
    }

    /// Whether registrations are still taken.
    pub(super) const fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// What is due by the clock.
    pub(super) fn tick_drain(&mut self, now: Instant) {
        let Some(drain) = &self.drain else {
            return;
        };
        let drain_until = drain.until;
        let done = !drain.relaying && self.withdrawals.is_idle() && self.is_drained_outside();
        let settled = match (drain.settled, done) {
            (Some(at), true) => Some(at),
            (None, true) => Some(now),
            (_, false) => None,
        };
        let held = self.is_held_outside();
        let waited = settled.is_some_and(|at| !held || now >= at + GRACE);
        if let Some(drain) = &mut self.drain {
            drain.settled = settled;
        }
        if waited || now >= drain_until {
            tracing::info!(done, held, "stopping");
            if done {
                self.leave_host();
            }
            self.stopping = true;
        }
    }
}
