//! Everything that happens because time passes.

use super::time::{SECOND, Time};
use super::{DownReason, Event, Link};

/// The tail is asked for at least this often: so soon does a link notice that its path is back.
const PROBE_PAUSE_MAX: u64 = SECOND / 2;

impl Link {
    /// When [`Self::handle_timeout`] should be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let mut next = self.handshake.next_at;
        let mut at = |time: Option<Time>| {
            if let Some(time) = time {
                next = Some(next.map_or(time, |next| next.min(time)));
            }
        };
        at(self.throttled_until);
        if !self.positions_urgent {
            at(self.positions_at);
        }
        if let Some(session) = &self.session {
            if !session.ack.now {
                at(session.ack.at);
            }
            at(session.lost_at);
            at(self.tail_at());
            at(self.look_again_at());
            at(self.keep_alive_at());
            at(self.silent_at());
        }
        next
    }

    /// The time has come, or some of it.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = self.now.max(now);
        let now = self.now;
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.silent_at()) {
            // The link may be down then, and HELLOs due at once.
            self.on_silence(now);
        }
        if due(self.handshake.next_at) && !self.handshake.on_timeout(now, self.config.hello_tries) {
            self.control.reset();
            self.events.push_back(Event::Down(DownReason::NoAnswer));
        }
        if due(self.throttled_until) {
            self.throttled_until = None;
        }
        if due(self.positions_at) {
            self.positions_urgent = true;
        }
        // What is lost first: the tail is behind it.
        if due(self.session.as_ref().and_then(|session| session.lost_at)) {
            self.find_lost(now, None, 0);
        }
        let (tail, keep_alive) = (due(self.tail_at()), due(self.keep_alive_at()));
        let look_again = due(self.look_again_at());
        let Some(session) = &mut self.session else {
            return;
        };
        session.ack.now |= due(session.ack.at);
        session.ping |= keep_alive;
        if look_again {
            session.path.look_again();
        }
        if tail {
            session.timeouts = session.timeouts.saturating_add(1);
            session.probes = if session.timeouts > 1 { 2 } else { 1 };
            self.stats.tail_probes += 1;
        }
    }

    /// When the tail is asked for again.
    fn tail_at(&self) -> Option<Time> {
        let session = self.session.as_ref()?;
        if session.sent.under_way() == 0 || session.probes > 0 || session.lost_at.is_some() {
            return None;
        }
        let once = session.rtt.probe_timeout();
        let pause = once << session.timeouts.min(16);
        Some(session.asked_at.plus(pause.min(PROBE_PAUSE_MAX.max(once))))
    }

    /// When to ask whether the far end is still there: only if streams depend on it.
    fn keep_alive_at(&self) -> Option<Time> {
        let session = self.session.as_ref()?;
        let idle = self.streams.open() > 0 && session.sent.under_way() == 0 && !session.ping;
        idle.then(|| {
            session
                .heard_at
                .max(session.asked_at)
                .plus(session.idle_timeout / 3)
        })
    }

    /// When to look whether the path carries more: only if streams would gain by it.
    fn look_again_at(&self) -> Option<Time> {
        let session = self.session.as_ref()?;
        (self.streams.open() > 0).then(|| session.path.again_at())?
    }

    /// When silence becomes news.
    fn silent_at(&self) -> Option<Time> {
        let session = self.session.as_ref()?;
        let share = if session.silent { 1 } else { 2 };
        Some(session.waiting_since?.plus(session.idle_timeout / share))
    }

    /// Nothing was heard for half the idle timeout, or all of it.
    fn on_silence(&mut self, now: Time) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.silent {
            self.go_down(now, DownReason::Silent);
        } else {
            session.silent = true;
            self.events.push_back(Event::Silent);
        }
    }
}
