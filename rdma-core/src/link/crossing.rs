//! The way between two programs of one host that share no memory: whose bytes are copied next.
//!
//! There are no frames and nothing is lost, so all that is left of a link is its turns: the same domains, weights
//! and rates ([`Schedule`]) as on the links, of which this is one more. A stream is named by the endpoint whose
//! program sends it. The caller copies, and says how much.

use super::Endpoint;
use super::schedule::{DomainId, Schedule};
use super::time::Time;
use super::turns::{Next, Turn, Turns};

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Crossing {
    turns: Turns,
    streams: Vec<Option<Stream>>,
    throttled_until: Option<Time>,
}

#[derive(Debug)]
struct Stream {
    turn: Turn,
    ready: bool,
    /// What it had left when it was last ready.
    credit: i64,
}

impl Crossing {
    /// Nobody has anything to send.
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream, which is charged to `domain`.
    pub fn open(&mut self, endpoint: Endpoint, domain: DomainId) {
        self.close(endpoint);
        let index = endpoint.0 as usize;
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, || None);
        }
        let turn = Turn {
            domain: self.turns.index(domain),
            slot: endpoint.0,
        };
        self.streams[index] = Some(Stream {
            turn,
            ready: false,
            credit: 0,
        });
    }

    /// Forgets a stream.
    pub fn close(&mut self, endpoint: Endpoint) {
        self.pause(endpoint);
        if let Some(slot) = self.streams.get_mut(endpoint.0 as usize) {
            *slot = None;
        }
    }

    /// A stream may have bytes, and room for them.
    pub fn ready(&mut self, endpoint: Endpoint) {
        if let Some(Some(stream)) = self.streams.get_mut(endpoint.0 as usize)
            && !stream.ready
        {
            stream.ready = true;
            self.turns.add(stream.turn, stream.credit);
            self.throttled_until = None;
        }
    }

    /// A stream has nothing to send, or nobody wants it.
    pub fn pause(&mut self, endpoint: Endpoint) {
        if let Some(Some(stream)) = self.streams.get_mut(endpoint.0 as usize)
            && stream.ready
        {
            stream.ready = false;
            stream.credit = self.turns.remove(stream.turn);
        }
    }

    /// Whose turn it is. Follow with [`Crossing::charge`], or with [`Crossing::pause`] if there was nothing.
    pub fn next(&mut self, now: Time, schedule: &mut Schedule) -> Option<Endpoint> {
        self.throttled_until = None;
        match self.turns.next(schedule, now) {
            Next::Stream(turn) => Some(Endpoint(turn.slot)),
            Next::Throttled(until) => {
                self.throttled_until = Some(until);
                None
            }
            Next::Nobody => None,
        }
    }

    /// So many bytes of the stream whose turn it was were copied; `more`: there are more, and room for them.
    pub fn charge(
        &mut self,
        endpoint: Endpoint,
        bytes: usize,
        more: bool,
        schedule: &mut Schedule,
    ) {
        if let Some(Some(stream)) = self.streams.get_mut(endpoint.0 as usize)
            && let Some(credit) = self.turns.charge(stream.turn, bytes, more, schedule)
        {
            stream.ready = false;
            stream.credit = credit;
        }
    }

    /// When there is something to be done again; in the past: now.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.turns
            .any()
            .then(|| self.throttled_until.unwrap_or(Time(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{DomainConfig, SECOND};

    const ONE: Endpoint = Endpoint(0);
    const OTHER: Endpoint = Endpoint(7);

    fn crossing(configs: [DomainConfig; 2]) -> (Crossing, Schedule) {
        let mut crossing = Crossing::new();
        let mut schedule = Schedule::new();
        for (id, config) in (1..).zip(configs) {
            schedule.set_domain(DomainId(id), config, Time(0));
        }
        crossing.open(ONE, DomainId(1));
        crossing.open(OTHER, DomainId(2));
        (crossing, schedule)
    }

    #[test]
    fn streams_share_by_the_weights_of_their_domains() {
        let weight = |weight| DomainConfig { weight, rate: None };
        let (mut crossing, mut schedule) = crossing([weight(3), weight(1)]);
        assert_eq!(crossing.poll_timeout(), None);
        crossing.ready(ONE);
        crossing.ready(OTHER);
        let mut bytes = [0u64; 2];
        for _ in 0..10_000 {
            assert_eq!(crossing.poll_timeout(), Some(Time(0)));
            let whose = crossing.next(Time(1), &mut schedule).expect("both");
            bytes[usize::from(whose == OTHER)] += 8192;
            crossing.charge(whose, 8192, true, &mut schedule);
        }
        assert!(bytes[0].abs_diff(bytes[1] * 3) * 20 < bytes[0], "{bytes:?}");
        crossing.close(ONE);
        for _ in 0..10 {
            assert_eq!(crossing.next(Time(1), &mut schedule), Some(OTHER));
            crossing.charge(OTHER, 1, true, &mut schedule);
        }
        crossing.charge(OTHER, 1, false, &mut schedule);
        assert_eq!(crossing.next(Time(1), &mut schedule), None);
        assert_eq!(crossing.poll_timeout(), None);
    }

    #[test]
    fn a_rate_is_waited_for_and_what_is_gone_is_not() {
        let config = DomainConfig {
            weight: 1,
            rate: Some(8_000_000),
        };
        let (mut crossing, mut schedule) = crossing([config, config]);
        crossing.close(OTHER);
        crossing.ready(OTHER);
        crossing.ready(ONE);
        crossing.ready(ONE);
        let (mut now, mut bytes) = (Time(0), 0u64);
        while now < Time(SECOND) {
            match crossing.next(now, &mut schedule) {
                Some(whose) => {
                    assert_eq!(whose, ONE);
                    bytes += 1000;
                    crossing.charge(ONE, 1000, true, &mut schedule);
                }
                None => {
                    let until = crossing.poll_timeout().expect("throttled");
                    assert!(until > now);
                    now = until;
                }
            }
        }
        assert!(bytes.abs_diff(1_000_000) < 70_000, "{bytes}");
        crossing.pause(ONE);
        assert_eq!(crossing.poll_timeout(), None);
    }
}
