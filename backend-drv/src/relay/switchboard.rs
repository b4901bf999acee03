//! What the relay decides, without any I/O: which bytes go over which link, and what programs and the event loop are
//! told. The `engine` feeds it frames, times and commands; the simulation in `tests` does the same
//! with a clock of its own.

use std::collections::{HashMap, VecDeque};

use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::layout::EndWaits;
use rdma_core::link::{
    DomainConfig, DomainId, DownReason, Dropped, Endpoint, Event, FarEnd, Frame, Head, Link,
    Payload, Positions, Schedule, State, Time,
};
use rdma_core::mirror::{Look, Snapshot};
use rdma_core::mr::RemoteKey;
use rdma_core::reason::Reason;
use rdma_core::ring::Corrupt;
use rdma_core::wire::pairing::{PAIRING_MAX, Pairing, Place as FarPlace};

pub use super::connections::Parts;
use super::connections::{Connection, Connections, Placing};
use super::{Report, Share};
use crate::ids::{ConnectionId, PeerId, Process};
use crate::nic::Slice;

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

    // ---- What the event loop wants ----

    /// The caller runs on this processor, plus one; 0: nobody knows.
    pub const fn runs_on(&mut self, cpu: u32) {
        self.cpu = cpu;
    }

    /// A number for the next connection; to be used in [`Switchboard::open`], or given back.
    pub fn reserve(&mut self) -> Option<u32> {
        self.connections.reserve()
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
        let line = parts.line;
        let place = self
            .connections
            .enter(endpoint, parts, who, None)
            .ok_or(Reason::NoMemory)?;
        match far {
            Some(far) => self.join(endpoint, far),
            None => {
                if let Some(Some(line)) = self.lines.get_mut(line) {
                    line.link.expect(Endpoint(endpoint));
                }
            }
        }
        Ok(place)
    }

    /// Goes on with a connection of a daemon before us, as soon as the far backend does.
    pub(super) fn restore(
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
        if let Some(Some(line)) = self.lines.get_mut(entry.line) {
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
            entry.mirror.get_mut().depart();
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

    /// Both directions of a connection shall leave the rings.
    pub fn withdraw(&mut self, id: ConnectionId) {
        self.change(id, |entry| entry.mirror.get_mut().ask_to_leave());
    }

    /// Changes what is known of a connection, and looks at it.
    fn change(&mut self, id: ConnectionId, how: impl FnOnce(&mut Connection)) {
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
            let line = self.lines.get_mut(entry.line).and_then(Option::as_mut);
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

    // ---- What comes in ----

    /// A frame has come over a line.
    ///
    /// # Errors
    /// It was of no use.
    pub fn handle_frame(
        &mut self,
        line: usize,
        now: Time,
        frame: &mut [u8],
    ) -> Result<(), Dropped> {
        let Some(Some(entry)) = self.lines.get_mut(line) else {
            return Ok(());
        };
        let mut memory = Placing {
            connections: &mut self.connections,
            line,
        };
        entry.link.handle_frame(now, frame, &mut memory)
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
        self.finish_closing();
    }

    fn hear(&mut self, index: usize, event: Event) {
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
                    && entry.mirror.get_mut().consumed(head)
                {
                    self.wake(endpoint, WaitFor::Space);
                }
            }
            Event::State {
                endpoint: Endpoint(endpoint),
                state,
            } => {
                if let Some(entry) = self.connections.get_mut(endpoint) {
                    let result = entry.mirror.get_mut().hear(snapshot_of(&state));
                    self.looked(endpoint, result);
                }
            }
        }
    }

    pub(super) fn break_all(&mut self, line: usize, reason: Reason) {
        for endpoint in self.connections.endpoints() {
            if let Some(entry) = self.connections.get_mut(endpoint)
                && entry.line == line
            {
                self.break_one(endpoint, reason);
            }
        }
    }

    /// The far end is out of reach. A connection whose programs can do without the ring does; others are broken.
    pub(super) fn break_one(&mut self, endpoint: u32, reason: Reason) {
        if let Some(entry) = self.connections.get_mut(endpoint) {
            entry.suspended = None;
            let mirror = entry.mirror.get_mut();
            if mirror.is_off() || mirror.is_unused() {
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

    // ---- What programs do ----

    /// A program has something for a connection.
    pub fn touch(&mut self, endpoint: u32) {
        self.touched.push_back(endpoint);
    }

    /// Looks at every connection that something may have happened to.
    pub fn serve_touched(&mut self) {
        // In the order in which it happened, which programs may see.
        while let Some(endpoint) = self.touched.pop_front() {
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
        let is_joined = entry.far.is_some() && entry.suspended.is_none();
        let ended = entry.ended || entry.restored && said.has(Snapshot::GONE);
        // Also before it is joined: the far backend, which may have told its program already, hears of the end.
        let is_over = ended && (entry.mirror.get().is_over() || entry.alone);
        let has_news = is_joined && entry.told != said;
        if has_news {
            entry.told = said;
        }
        let id = entry.id;
        if is_joined && let Some(Some(line)) = self.lines.get_mut(entry.line) {
            let endpoint = Endpoint(endpoint);
            if look.up_over {
                line.link.stop_sending(endpoint);
            } else {
                line.link.produced(endpoint, look.produced);
            }
            line.link.consumed(endpoint, look.consumed);
            if has_news {
                line.link.set_state(endpoint, state_of(&said));
            }
        }
        if is_granted {
            self.reports.push_back(Report::Granted(id));
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
            let line = entry.map(|entry| entry.line);
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
        let Some(entry) = self.connections.remove(endpoint) else {
            return;
        };
        if let Some(Some(line)) = self.lines.get_mut(entry.line) {
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
        links.chain(self.grace_until).min()
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

fn snapshot_of(state: &State) -> Snapshot {
    Snapshot {
        flags: state.flags,
        reason: state.reason,
        switch_at: state.switch_at,
        end_at: state.end_at,
        left_at: state.left_at,
    }
}

fn state_of(snapshot: &Snapshot) -> State {
    State {
        flags: snapshot.flags,
        reason: snapshot.reason,
        switch_at: snapshot.switch_at,
        end_at: snapshot.end_at,
        left_at: snapshot.left_at,
    }
}
