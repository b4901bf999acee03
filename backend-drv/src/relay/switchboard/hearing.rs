//! What comes over the links.

use rdma_core::event::WaitFor;
use rdma_core::link::{DownReason, Dropped, Endpoint, Event, Time};
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::Pairing;

use super::Switchboard;
use crate::relay::Report;
use crate::relay::connections::Placing;

impl Switchboard {
    /// A frame has come over a line; the machine had it at `arrived`, if that is known.
    ///
    /// # Errors
    /// It was of no use.
    pub fn handle_frame(
        &mut self,
        line: usize,
        now: Time,
        arrived: Option<Time>,
        frame: &mut [u8],
    ) -> Result<(), Dropped> {
        let Some(Some(entry)) = self.lines.get_mut(line) else {
            return Ok(());
        };
        let mut memory = Placing {
            connections: &mut self.connections,
            line,
        };
        entry.link.handle_frame(now, arrived, frame, &mut memory)
    }

    /// Takes what the links have to tell after frames have come or time has passed.
    pub fn settle(&mut self, now: Time) {
        self.now = self.now.max(now);
        for index in 0..self.lines.len() {
            while let Some(event) = self.line(index).and_then(|line| line.link.poll_event()) {
                self.hear(index, event);
            }
            if let Some(line) = self.line(index) {
                line.speak();
            }
            self.ask_to_resume(index);
        }
        self.serve_touched();
        self.cross(self.now);
        self.finish_closing();
    }

    pub(in crate::relay) fn hear(&mut self, index: usize, event: Event) {
        let Some(line) = self.line(index) else {
            return;
        };
        let peer = line.peer;
        match event {
            Event::Up { far_backend, .. } => {
                line.is_up = true;
                line.far_backend = Some(far_backend);
                self.begin_to_resume(index);
                self.reports.push_back(Report::Up(peer));
            }
            Event::Rebooted { far_backend, .. } => {
                line.is_up = false;
                let is_known = line.far_backend == Some(far_backend);
                self.suspend_all(index, is_known);
                self.reports.push_back(Report::Renewed(peer));
            }
            Event::Down(DownReason::Forgotten) => {
                line.is_up = false;
                self.suspend_all(index, true);
                self.reports.push_back(Report::Renewed(peer));
            }
            Event::Down(reason) => {
                line.is_up = false;
                line.unsaid.clear();
                if reason == DownReason::NoAnswer && self.has_suspended(index) {
                    self.connect(index, self.now);
                } else if let DownReason::Closed(_) = reason {
                    self.break_all(index, Reason::LinkReset);
                } else {
                    self.break_all(index, Reason::LinkTimeout);
                }
                self.reports.push_back(Report::Silent(peer));
            }
            Event::Silent | Event::Heard => {}
            Event::Control(message) => match Pairing::parse(&message) {
                Ok(Pairing::Resume {
                    own,
                    far,
                    received,
                    consumed,
                }) => self.heard_resume(index, own, far, (received, consumed)),
                Ok(Pairing::Gone { endpoint, reason }) => self.heard_gone(index, endpoint, reason),
                Ok(message) => self.reports.push_back(Report::Heard(peer, message)),
                Err(error) => tracing::warn!(%peer, %error, "link"),
            },
            Event::Arrived {
                endpoint: Endpoint(endpoint),
                edge,
            } => {
                let cpu = self.cpu;
                if let Some(entry) = self.connections.get_mut(endpoint) {
                    entry.mirror.get_mut().runs_on(cpu);
                    entry.announce(WaitFor::Data);
                    if !entry.mirror.get_mut().arrived(edge) {
                        return;
                    }
                    self.wake(endpoint, WaitFor::Data);
                    self.touched.push_back(endpoint);
                }
            }
            Event::Consumed {
                endpoint: Endpoint(endpoint),
                head,
            } => {
                if let Some(entry) = self.connections.get_mut(endpoint)
                    && entry.consumed(head)
                {
                    self.wake(endpoint, WaitFor::Space);
                }
            }
            Event::State {
                endpoint: Endpoint(endpoint),
                state,
            } => {
                if let Some(entry) = self.connections.get_mut(endpoint) {
                    let result = entry.hear(state);
                    self.looked(endpoint, result);
                }
            }
        }
    }

    pub(in crate::relay) fn break_all(&mut self, line: usize, reason: Reason) {
        for endpoint in self.connections.endpoints() {
            if let Some(entry) = self.connections.get_mut(endpoint)
                && entry.line() == Some(line)
            {
                self.break_one(endpoint, reason);
            }
        }
    }

    /// The far end is out of reach. A connection whose programs can do without the ring does; others are broken.
    pub(in crate::relay) fn break_one(&mut self, endpoint: u32, reason: Reason) {
        let other = self.connections.partner(endpoint);
        let other = other.and_then(|other| self.connections.get(other));
        let is_other_unused = other.is_none_or(|other| other.mirror.get().is_unused());
        if let Some(entry) = self.connections.get_mut(endpoint) {
            entry.suspended = None;
            let mirror = entry.mirror.get_mut();
            if mirror.is_off() || mirror.is_unused() && is_other_unused {
                tracing::debug!(connection = %entry.id, endpoint, %reason, "done without");
                mirror.ask_to_leave();
                // Nobody will say how it ends there.
                entry.far = None;
                entry.alone = true;
            } else {
                tracing::debug!(connection = %entry.id, endpoint, %reason, "lost");
                mirror.break_with(reason);
            }
            self.wake_all(endpoint);
            self.touched.push_back(endpoint);
        }
    }
}
