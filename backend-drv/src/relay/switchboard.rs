//! What the relay decides, without any I/O: which bytes go over which link, and what programs and the event loop are
//! told. The `engine` feeds it frames, times and commands; the simulation in `tests` does the same
//! with a clock of its own.

mod crossing;
mod hearing;
mod wishes;

use std::collections::{HashMap, VecDeque};

use rdma_core::event::WaitFor;
use rdma_core::layout::EndWaits;
use rdma_core::link::{
    Crossing, DomainConfig, DomainId, Endpoint, Frame, Head, Link, Payload, Schedule, Time,
};
use rdma_core::mirror::{Look, Snapshot};
use rdma_core::reason::Reason;
use rdma_core::ring::Corrupt;

use super::connections::Connections;
pub use super::connections::{Parts, Way};
use super::{Report, Share};
use crate::ids::{PeerId, Process};
use crate::nic::Slice;
pub use crossing::Half;

/// Messages for a backend whose link is not up yet.
const UNSAID_MAX: usize = 1024;

/// One line: a link to one backend.
#[derive(Debug)]
pub struct Line {
    pub(super) link: Link,
    peer: PeerId,
    /// What is said as soon as the link can take it.
    unsaid: VecDeque<Vec<u8>>,
    /// Connections that are to be resumed.
    pub(super) resuming: VecDeque<u32>,
    pub(super) is_up: bool,
    far_backend: Option<[u8; 16]>,
}

/// Somebody to be woken at the near end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wake {
    /// The connection.
    pub endpoint: u32,
    /// Those who wait for this.
    pub what: WaitFor,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Switchboard {
    pub(super) lines: Vec<Option<Line>>,
    by_peer: HashMap<PeerId, usize>,
    pub(super) connections: Connections,
    schedule: Schedule,
    pub(super) touched: VecDeque<u32>,
    /// Whose bytes go to another program of this host next,
    crossing: Crossing,
    /// and what such programs say, by the endpoint that is to hear it.
    said_here: VecDeque<(u32, Snapshot)>,
    /// Connections that are over but for the far backend's knowing.
    closing: Vec<u32>,
    /// When to look for connections that nobody has resumed.
    pub(super) grace_until: Option<Time>,
    wakes: Vec<Wake>,
    reports: VecDeque<Report>,
    pub(super) now: Time,
    cpu: u32,
}

impl Switchboard {
    /// No lines yet. The first of `shares` is of those who are in no domain; keys are made of `secret`.
    pub fn new(shares: &[Share], secret: u64, now: Time) -> Self {
        let mut schedule = Schedule::new();
        for (id, share) in (0u32..).zip(shares) {
            let config = DomainConfig {
                weight: share.weight,
                // In bits, as links count.
                rate: share.rate.map(|bytes| bytes.saturating_mul(8)),
            };
            schedule.set_domain(DomainId(id), config, now);
        }
        Self {
            lines: Vec::new(),
            by_peer: HashMap::new(),
            connections: Connections::new(secret),
            schedule,
            touched: VecDeque::new(),
            crossing: Crossing::new(),
            said_here: VecDeque::new(),
            closing: Vec::new(),
            grace_until: None,
            wakes: Vec::new(),
            reports: VecDeque::new(),
            now,
            cpu: 0,
        }
    }

    // ---- Lines ----

    /// The line to a backend.
    pub fn line_of(&self, peer: PeerId) -> Option<usize> {
        self.by_peer.get(&peer).copied()
    }

    /// A new line to a backend.
    pub fn add_line(&mut self, peer: PeerId, link: Link) -> usize {
        let line = Line {
            link,
            peer,
            unsaid: VecDeque::new(),
            resuming: VecDeque::new(),
            is_up: false,
            far_backend: None,
        };
        let index = self.lines.iter().position(Option::is_none);
        let index = index.unwrap_or(self.lines.len());
        if index == self.lines.len() {
            self.lines.push(None);
        }
        if let Some(place) = self.lines.get_mut(index) {
            *place = Some(line);
        }
        self.by_peer.insert(peer, index);
        index
    }

    /// Has a line's link try again, if it rests.
    pub fn connect(&mut self, line: usize, now: Time) {
        if let Some(line) = self.line(line) {
            line.link.connect(now);
        }
    }

    pub(super) fn line(&mut self, index: usize) -> Option<&mut Line> {
        self.lines.get_mut(index)?.as_mut()
    }

    /// The backend at the far end of a line.
    pub fn peer_of(&self, line: usize) -> Option<PeerId> {
        Some(self.lines.get(line)?.as_ref()?.peer)
    }

    /// The link of a line.
    pub fn link(&self, index: usize) -> Option<&Link> {
        Some(&self.lines.get(index)?.as_ref()?.link)
    }

    /// Lines in use.
    pub fn lines(&self) -> impl Iterator<Item = usize> + '_ {
        let used = self.lines.iter().enumerate();
        used.filter_map(|(index, line)| line.as_ref().map(|_| index))
    }

    // ---- What programs do ----

    /// A program has something for a connection.
    pub fn touch(&mut self, endpoint: u32) {
        self.touched.push_back(endpoint);
    }

    /// Looks at every connection that something may have happened to.
    pub fn serve_touched(&mut self) {
        // In the order in which it happened, which programs may see.
        loop {
            self.hear_here();
            let Some(endpoint) = self.touched.pop_front() else {
                return;
            };
            if let Some(entry) = self.connections.get_mut(endpoint) {
                let result = entry.mirror.get_mut().look();
                self.looked(endpoint, result);
            }
        }
    }

    fn looked(&mut self, endpoint: u32, result: Result<Look, Corrupt>) {
        let Some(entry) = self.connections.get_mut(endpoint) else {
            return;
        };
        let look = result.unwrap_or_else(|error| {
            tracing::debug!(connection = %entry.id, %error, "broken");
            entry.mirror.get_mut().break_with(Reason::RingCorrupt);
            Look {
                wake: true,
                up_over: true,
                ..Look::default()
            }
        });
        let said = entry.mirror.get().said();
        let is_granted = look.up_over && !entry.granted && !said.has(Snapshot::BROKEN);
        entry.granted |= look.up_over;
        let is_doubted = entry.mirror.get().is_doubted() && !entry.doubted;
        entry.doubted |= is_doubted;
        let is_joined = entry.far.is_some() && entry.suspended.is_none();
        let ended = entry.ended || entry.restored && said.has(Snapshot::GONE);
        // Also before it is joined: the far backend, which may have told its program already, hears of the end.
        let is_over = ended && (entry.mirror.get().is_over() || entry.alone);
        let has_news = is_joined && entry.told != said;
        if has_news {
            entry.told = said;
        }
        let (id, way) = (entry.id, entry.way);
        if is_joined && way == Way::Here {
            self.looked_here(endpoint, &look, has_news.then_some(said));
        } else if is_joined
            && let Way::Line(line) = way
            && let Some(Some(line)) = self.lines.get_mut(line)
        {
            let endpoint = Endpoint(endpoint);
            if look.up_over {
                line.link.stop_sending(endpoint);
            } else {
                line.link.produced(endpoint, look.produced);
            }
            line.link.consumed(endpoint, look.consumed);
            if has_news {
                line.link.set_state(endpoint, said);
            }
        }
        if is_granted {
            self.reports.push_back(Report::Granted(id));
        }
        if is_doubted {
            self.reports.push_back(Report::Doubted(id));
        }
        if look.wake {
            self.wake_all(endpoint);
        }
        if is_over && !self.closing.contains(&endpoint) {
            self.closing.push(endpoint);
        }
    }

    pub(super) fn wake(&mut self, endpoint: u32, what: WaitFor) {
        self.wakes.push(Wake { endpoint, what });
    }

    fn wake_all(&mut self, endpoint: u32) {
        self.wake(endpoint, WaitFor::Data);
        self.wake(endpoint, WaitFor::Space);
    }

    /// Forgets connections that both programs are done with, once the far backend knows. If the link ends first,
    /// nobody has to be told.
    fn finish_closing(&mut self) {
        let mut closing = std::mem::take(&mut self.closing);
        closing.retain(|endpoint| {
            let entry = self.connections.get(*endpoint);
            let is_suspended = entry.is_some_and(|entry| entry.suspended.is_some());
            let line = entry.and_then(super::connections::Connection::line);
            let line = line.and_then(|line| self.line(line));
            let untold = line.is_some_and(|line| !line.link.is_state_known(Endpoint(*endpoint)));
            let waits = is_suspended || untold;
            if !waits {
                self.close(*endpoint);
            }
            waits
        });
        self.closing.append(&mut closing);
    }

    /// Forgets a connection.
    pub fn close(&mut self, endpoint: u32) {
        self.part(endpoint);
        let Some(entry) = self.connections.remove(endpoint) else {
            return;
        };
        if let Way::Line(line) = entry.way
            && let Some(Some(line)) = self.lines.get_mut(line)
        {
            line.link.close(Endpoint(endpoint));
        }
        let left = Report::Left {
            connection: entry.id,
            process: entry.process,
            who: entry.who,
            endpoint,
        };
        // The memory is let go of before anybody hears of it.
        drop(entry);
        self.reports.push_back(left);
    }

    // ---- What goes out ----

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        for line in self.lines.iter_mut().flatten() {
            if line.link.poll_timeout().is_some_and(|at| at <= now) {
                line.link.handle_timeout(now);
            }
        }
        if self.grace_until.is_some_and(|at| at <= now) {
            self.end_grace(now);
        }
    }

    /// When [`Switchboard::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let links = self
            .lines
            .iter()
            .flatten()
            .filter_map(|line| line.link.poll_timeout());
        let more = [self.grace_until, self.crossing.poll_timeout()];
        links.chain(more.into_iter().flatten()).min()
    }

    /// The next frame for a line.
    pub fn poll_transmit(&mut self, line: usize, now: Time, head: &mut Head) -> Option<Frame> {
        let line = self.lines.get_mut(line)?.as_mut()?;
        line.link.poll_transmit(now, &mut self.schedule, head)
    }

    /// Where the payload of a frame lies; `None` if its connection was closed meanwhile.
    pub fn payload(&self, payload: &Payload) -> Option<[Slice<'_>; 2]> {
        let entry = self.connections.get(payload.endpoint.0)?;
        let (ring, index) = entry.mirror.get().up_data(payload.offset);
        Some(Slice::of_ring(ring, index, payload.len))
    }

    /// Who waits at the near end of a connection, and its program.
    pub fn waits(&self, endpoint: u32) -> Option<(Process, &EndWaits)> {
        let entry = self.connections.get(endpoint)?;
        Some((entry.process, entry.mirror.get().waits()))
    }

    /// Ends a line, saying so.
    pub fn shut_down(&mut self, line: usize, reason: u32) {
        if let Some(line) = self.line(line) {
            line.link.shut_down(reason);
        }
    }

    /// Who is to be woken; all that was written before is seen by whoever is not seen to wait.
    pub fn take_wakes(&mut self, wakes: &mut Vec<Wake>) {
        if !self.wakes.is_empty() {
            rdma_core::sync::full_barrier();
            wakes.append(&mut self.wakes);
        }
    }

    /// What the event loop is to be told.
    pub fn next_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Domains and what they have sent.
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

impl Line {
    /// Hands the link what it can take of what is to be said.
    fn speak(&mut self) {
        while self.is_up
            && let Some(message) = self.unsaid.front()
            && self.link.send_control(message).is_ok()
        {
            self.unsaid.pop_front();
        }
    }

    /// The backend.
    pub const fn peer(&self) -> PeerId {
        self.peer
    }
}
