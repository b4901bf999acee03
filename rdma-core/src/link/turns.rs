//! Whose turn it is on one link: deficit round robin between the domains that have something to send
//! there, and once more between the ready streams of a domain.
//!
//! A domain (or stream) that becomes ready goes to the front while it has credit left, so that a small
//! message does not wait behind a flood; credit is given only at the end of a turn, so that nobody gains by
//! stopping and starting.

use std::collections::VecDeque;

use super::schedule::{DomainId, Schedule};
use super::time::Time;

/// Bytes that the lightest domain that waits sends in a turn when others wait.
const QUANTUM: i64 = 32 * 1024;

/// Bytes that a stream sends in a turn when other streams of its domain wait: one batch of a driver.
const STREAM_QUANTUM: i64 = 64 * 1024;

/// No turn is longer than this many bytes: with very different weights, the lighter domains' turns get
/// shorter instead.
const TURN_MAX: i64 = 16 * QUANTUM;

/// A stream of the link, and the domain it is charged to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Turn {
    pub(super) domain: usize,
    pub(super) slot: u32,
}

/// Whose turn it is on one link.
#[derive(Debug, Default)]
pub(super) struct Turns {
    domains: Vec<Waiting>,
    /// Indices of the domains that have ready streams.
    ring: VecDeque<usize>,
    /// Ready streams of all domains.
    ready: usize,
}

#[derive(Debug)]
struct Waiting {
    id: DomainId,
    credit: i64,
    active: bool,
    streams: VecDeque<Ready>,
}

#[derive(Debug)]
struct Ready {
    slot: u32,
    credit: i64,
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// This stream's.
    Stream(Turn),
    /// Nobody's before this moment.
    Throttled(Time),
    /// Nobody has anything to send.
    Nobody,
}

impl Turns {
    /// Index of a domain.
    pub(super) fn index(&mut self, id: DomainId) -> usize {
        match self.domains.iter().position(|domain| domain.id == id) {
            Some(index) => index,
            None => {
                self.domains.push(Waiting {
                    id,
                    credit: QUANTUM,
                    active: false,
                    streams: VecDeque::new(),
                });
                self.domains.len() - 1
            }
        }
    }

    /// Whether some stream is ready.
    #[inline]
    pub(super) const fn any(&self) -> bool {
        self.ready > 0
    }

    /// How many streams are ready.
    #[inline]
    pub(super) const fn ready(&self) -> usize {
        self.ready
    }

    /// A stream that was not ready is. `credit` is what it had left.
    pub(super) fn add(&mut self, turn: Turn, credit: i64) {
        let domain = &mut self.domains[turn.domain];
        let ready = Ready {
            slot: turn.slot,
            credit,
        };
        if credit > 0 {
            domain.streams.push_front(ready);
        } else {
            domain.streams.push_back(ready);
        }
        self.ready += 1;
        if !domain.active {
            domain.active = true;
            if domain.credit > 0 {
                self.ring.push_front(turn.domain);
            } else {
                self.ring.push_back(turn.domain);
            }
        }
    }

    /// A stream is no longer ready. Gives the credit it has left.
    pub(super) fn remove(&mut self, turn: Turn) -> i64 {
        let domain = &mut self.domains[turn.domain];
        let Some(at) = domain
            .streams
            .iter()
            .position(|ready| ready.slot == turn.slot)
        else {
            return 0;
        };
        self.ready -= 1;
        domain.streams.remove(at).map_or(0, |ready| ready.credit)
    }

    /// Forgets all streams.
    pub(super) fn clear(&mut self) {
        self.domains.clear();
        self.ring.clear();
        self.ready = 0;
    }

    /// Whose turn it is.
    #[inline]
    pub(super) fn next(&mut self, schedule: &mut Schedule, now: Time) -> Next {
        let mut until: Option<Time> = None;
        // Domains that were found throttled in a row; all of them: nobody's turn.
        let mut throttled = 0;
        while let Some(&index) = self.ring.front() {
            let domain = &mut self.domains[index];
            let waiting = domain.streams.len();
            let Some(first) = domain.streams.front_mut() else {
                domain.active = false;
                self.ring.pop_front();
                continue;
            };
            if let Some(moment) = schedule.wait(domain.id, now) {
                until = Some(until.map_or(moment, |until| until.min(moment)));
                throttled += 1;
                if throttled >= self.ring.len() {
                    return until.map_or(Next::Nobody, Next::Throttled);
                }
                self.ring.rotate_left(1);
                continue;
            }
            if domain.credit <= 0 {
                if self.ring.len() == 1 {
                    domain.credit = QUANTUM;
                } else {
                    self.ring.rotate_left(1);
                    self.end_turn(index, schedule);
                    throttled = 0;
                    continue;
                }
            }
            throttled = 0;
            if first.credit <= 0 {
                first.credit += STREAM_QUANTUM;
                if waiting > 1 {
                    domain.streams.rotate_left(1);
                    continue;
                }
            }
            let slot = first.slot;
            return Next::Stream(Turn {
                domain: index,
                slot,
            });
        }
        until.map_or(Next::Nobody, Next::Throttled)
    }

    /// The stream whose turn it was sent a frame. If it is no longer ready, gives its credit.
    #[inline]
    pub(super) fn charge(
        &mut self,
        turn: Turn,
        size: usize,
        ready: bool,
        schedule: &mut Schedule,
    ) -> Option<i64> {
        let domain = &mut self.domains[turn.domain];
        let bytes = i64::try_from(size).unwrap_or(i64::MAX);
        domain.credit -= bytes;
        schedule.charge(domain.id, size as u64);
        let first = domain.streams.front_mut()?;
        debug_assert_eq!(first.slot, turn.slot);
        first.credit -= bytes;
        if ready {
            return None;
        }
        self.ready -= 1;
        domain.streams.pop_front().map(|ready| ready.credit)
    }

    /// Gives the domain its credit for the next turn.
    fn end_turn(&mut self, index: usize, schedule: &Schedule) {
        let weight = |at: usize| i64::from(schedule.weight(self.domains[at].id));
        let (mut lightest, mut heaviest) = (i64::MAX, 1);
        for &at in &self.ring {
            lightest = lightest.min(weight(at));
            heaviest = heaviest.max(weight(at));
        }
        let own = weight(index);
        let quantum = if heaviest * QUANTUM > TURN_MAX * lightest {
            (TURN_MAX * own / heaviest).max(1)
        } else {
            QUANTUM * own / lightest
        };
        self.domains[index].credit += quantum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{DomainConfig, SECOND};

    /// Sends frames of `size` for `duration` on a link of `rate` bytes per second, whose streams always
    /// have more; gives the bytes of each stream.
    fn saturate(
        schedule: &mut Schedule,
        domains: &[(DomainId, u32)],
        size: usize,
        duration: u64,
        rate: u64,
    ) -> Vec<u64> {
        let mut turns = Turns::default();
        let mut slot = 0;
        for &(id, streams) in domains {
            let domain = turns.index(id);
            for _ in 0..streams {
                turns.add(Turn { domain, slot }, STREAM_QUANTUM);
                slot += 1;
            }
        }
        let mut bytes = vec![0; slot as usize];
        let mut now = Time(1);
        let end = now.plus(duration);
        while now < end {
            match turns.next(schedule, now) {
                Next::Stream(turn) => {
                    turns.charge(turn, size, true, schedule);
                    bytes[turn.slot as usize] += size as u64;
                    now = now.plus(size as u64 * SECOND / rate);
                }
                Next::Throttled(until) => {
                    assert!(until > now);
                    now = until;
                }
                Next::Nobody => unreachable!("there is always more"),
            }
        }
        bytes
    }

    fn config(weight: u32, rate: Option<u64>) -> DomainConfig {
        DomainConfig { weight, rate }
    }

    fn within(actual: u64, expected: u64, per_mille: u64) -> bool {
        actual.abs_diff(expected) * 1000 <= expected * per_mille
    }

    #[test]
    fn weights_hold_whatever_the_number_of_streams() {
        for (heavy, light) in [(3, 1), (30, 10), (1, 1), (16, 1), (7, 2), (100, 1)] {
            for size in [100, 1500, 9000, 60_000] {
                let mut schedule = Schedule::new();
                schedule.set_domain(DomainId(1), config(heavy, None), Time(0));
                schedule.set_domain(DomainId(2), config(light, None), Time(0));
                let bytes = saturate(
                    &mut schedule,
                    &[(DomainId(1), 1), (DomainId(2), 10)],
                    size,
                    SECOND / 10,
                    2_500_000_000,
                );
                let second: u64 = bytes[1..].iter().sum();
                assert!(
                    within(bytes[0] * u64::from(light), second * u64::from(heavy), 50),
                    "{heavy}:{light}, {size}: {bytes:?}"
                );
                for stream in &bytes[1..] {
                    assert!(within(*stream * 10, second, 250), "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn a_rate_holds_and_the_others_get_the_rest() {
        let mut schedule = Schedule::new();
        schedule.set_domain(DomainId(1), config(1, Some(1_000_000_000)), Time(0));
        let bytes = saturate(
            &mut schedule,
            &[(DomainId(1), 4)],
            9000,
            SECOND,
            2_500_000_000,
        );
        assert!(within(bytes.iter().sum(), 125_000_000, 30), "{bytes:?}");
        let counters = schedule.counters(DomainId(1)).unwrap();
        assert_eq!(counters.bytes, bytes.iter().sum::<u64>());
        assert_eq!(counters.frames * 9000, counters.bytes);
        assert!(
            within(counters.throttled, SECOND * 19 / 20, 30),
            "{counters:?}"
        );

        let mut schedule = Schedule::new();
        schedule.set_domain(DomainId(1), config(10, Some(1_000_000_000)), Time(0));
        let bytes = saturate(
            &mut schedule,
            &[(DomainId(1), 1), (DomainId(2), 1)],
            1500,
            SECOND,
            1_250_000_000,
        );
        assert!(within(bytes[0], 125_000_000, 30), "{bytes:?}");
        assert!(within(bytes[1], 1_125_000_000, 30), "{bytes:?}");
    }

    #[test]
    fn who_was_idle_goes_first_but_gains_nothing_by_stopping() {
        let mut schedule = Schedule::new();
        let mut turns = Turns::default();
        let (flood, sparse) = (turns.index(DomainId(1)), turns.index(DomainId(2)));
        let (one, two) = (
            Turn {
                domain: flood,
                slot: 0,
            },
            Turn {
                domain: sparse,
                slot: 1,
            },
        );
        turns.add(one, STREAM_QUANTUM);
        let mut credit = STREAM_QUANTUM;
        let (mut bytes, mut waited) = ([0u64; 2], 0);
        for round in 0..10_000u64 {
            // The second domain stops after each frame, and is back at once.
            turns.add(two, credit);
            for sent_before in 0.. {
                let Next::Stream(turn) = turns.next(&mut schedule, Time(round)) else {
                    unreachable!("both have more");
                };
                let left = turns.charge(turn, 9000, turn == one, &mut schedule);
                bytes[usize::from(turn == two)] += 9000;
                if turn == two {
                    credit = left.unwrap();
                    waited += u64::from(sent_before > 0);
                    break;
                }
            }
        }
        assert!(within(bytes[0], bytes[1], 50), "{bytes:?}");
        assert!(waited < 5_000, "it mostly goes first: {waited}");
    }

    #[test]
    fn what_is_removed_has_no_turn() {
        let mut schedule = Schedule::new();
        let mut turns = Turns::default();
        let domain = turns.index(DomainId(9));
        let turn = Turn { domain, slot: 4 };
        turns.add(turn, 10);
        assert!(turns.any());
        assert_eq!(turns.remove(turn), 10);
        assert!(!turns.any());
        assert_eq!(turns.next(&mut schedule, Time(0)), Next::Nobody);
        turns.add(turn, 0);
        assert_eq!(turns.next(&mut schedule, Time(0)), Next::Stream(turn));
        turns.clear();
        assert_eq!(turns.next(&mut schedule, Time(0)), Next::Nobody);
    }
}
