//! Stopping with `--drain`: every connection goes back to kernel TCP before the daemon ends, so that programs go on
//! without noticing.

use std::time::{Duration, Instant};

use super::Daemon;
use super::withdrawals::Task;
use crate::broker::{Filter, host_connection};
use crate::relay::Command;

/// How long that may take. What is left then goes on as it would without `--drain`.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at whether it is done.
const PAUSE: Duration = Duration::from_millis(5);

/// What is left to do.
#[derive(Debug)]
pub(super) struct Drain {
    until: Instant,
    relaying: bool,
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
        let relaying = self.relay.is_some();
        self.command(Command::Drain);
        let found = self.broker.revoke(&Filter::default(), |_| 0);
        tracing::info!(connections = found.connections.len(), "going back to TCP");
        self.withdraw_outside(&found.connections);
        for connection in found.connections {
            // What the own relay serves it drains by itself.
            if host_connection(connection).is_some() || !self.broker.is_relayed(connection) {
                self.withdraw(Task {
                    connection,
                    vanished: None,
                });
            }
        }
        self.drain = Some(Drain {
            until: Instant::now() + PATIENCE,
            relaying,
        });
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
        let done = !drain.relaying
            && self.withdrawals.tasks.is_empty()
            && self.withdrawals.rescues.is_empty()
            && self.is_drained_outside();
        if done || now >= drain.until {
            tracing::info!(done, "stopping");
            if done {
                self.leave_host();
            }
            self.stopping = true;
        }
    }
}
