//! How the engine sleeps, and what it counts.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollTimeout};
use serde_json::json;

use super::{COUNTS_MAX, COUNTS_MIN, EVENTS, Engine, POLL_EVERY};
use crate::relay::counters;

impl Engine {
    pub(in crate::relay) fn sleep(&mut self) {
        self.tell_counts(true);
        for served in self.ports.values_mut() {
            if served.port.is_awake() && !served.port.doze() {
                self.wake_recent_ports();
                return;
            }
        }
        let now = self.now();
        let link = self
            .board
            .poll_timeout()
            .map(|at| Duration::from_nanos(at.0.saturating_sub(now.0)));
        let nic = self
            .nics
            .wake_at()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let drain = self.draining.map(|_| Duration::from_millis(20));
        self.wait([link, nic, drain].into_iter().flatten().min());
        self.wake_recent_ports();
        self.idle.woken();
    }

    /// A busy engine looks at descriptors now and then.
    pub(in crate::relay) fn look_around(&mut self) {
        self.wait(Some(Duration::ZERO));
        for served in self.ports.values_mut() {
            served.port.doze_if_quiet();
        }
    }

    fn wake_recent_ports(&mut self) {
        for served in self.ports.values_mut() {
            served.port.wake_up_if_recent();
        }
    }

    /// Looks at the descriptors, for at most `timeout`.
    pub(in crate::relay) fn wait(&mut self, timeout: Option<Duration>) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(Duration::ZERO) => EpollTimeout::ZERO,
            // Rounded up, so that it is due when we wake.
            Some(left) => {
                let left = left + Duration::from_micros(999);
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO)
            }
        };
        self.nics.watch(&self.epoll);
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in events.iter().take(count) {
            if let Some(served) = self
                .port_tokens
                .get(&event.data())
                .and_then(|process| self.ports.get_mut(process))
            {
                served.port.wake_up();
            }
        }
    }

    /// Writes the counters down, now and then; `all`: also if that was done not long ago, and nothing more will
    /// happen for a while.
    pub(in crate::relay) fn tell_counts(&mut self, all: bool) {
        let pause = if all { COUNTS_MIN } else { COUNTS_MAX };
        if !all && !self.rounds.is_multiple_of(POLL_EVERY) {
            return;
        }
        if self.counted_at.elapsed() >= pause {
            self.counted_at = Instant::now();
            let counted = self.stats();
            *self
                .wires
                .counted
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = counted;
        }
    }

    pub(in crate::relay) fn stats(&self) -> serde_json::Value {
        let links: Vec<_> = self
            .nics
            .stats()
            .map(|(name, line, address, nic)| {
                let link = self.board.link(line);
                json!({
                    "name": name,
                    "peer": address.to_string(),
                    "up": link.is_some_and(rdma_core::link::Link::is_up),
                    "link": link.map(|link| counters::of_link(&link.stats())),
                    "nic": counters::of_nic(&nic),
                })
            })
            .collect();
        let domains = self.board.schedule().domains();
        let domains: Vec<_> = domains
            .map(|(id, _, counters)| counters::of_domain(id, &counters))
            .collect();
        json!({
            "links": links,
            "domains": domains,
            "relayed": self.board.connections.len(),
            "keys": counters::of_keys(&self.board.connections.keys()),
            "spins_won": self.idle.won,
            "sleeps": self.idle.slept,
        })
    }
}
