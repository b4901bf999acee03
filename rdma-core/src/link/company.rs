//! Who else uses a link: what is under way for one makes the others wait.
//!
//! * Several domains, if more than one has sent.
//! * *Callers*: streams that have little to say, say all of it at once, and do so again and again, beside a stream that has
//!   much. Whoever sends like that mostly waits for answers, or somebody for his.

use super::time::{MILLISECOND, Time};

/// A link counts as shared for so long after the turn last went from one domain to another.
const REMEMBERED: u64 = 100 * MILLISECOND;

/// A stream has much if it has sent so many bytes and never was without; for so long after that it counts.
pub(super) const MUCH: u64 = 64 << 10;
const MUCH_REMEMBERED: u64 = 5 * MILLISECOND;

/// A caller says at most so many bytes,
const CALL_BYTES: usize = 4096;
/// and it takes so many calls
const CALLS: u32 = 8;
/// within this time.
const CALLS_WITHIN: u64 = 10 * MILLISECOND;
/// Callers count as present for so long after the last of them.
const CALLERS_REMEMBERED: u64 = 50 * MILLISECOND;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Company {
    domain: Option<usize>,
    mixed_until: Time,
    /// The stream that last had much to send, and when.
    busy: Option<(u32, Time)>,
    calls: u32,
    calls_since: Time,
    callers_until: Time,
}

impl Company {
    pub(super) const fn new() -> Self {
        Self {
            domain: None,
            mixed_until: Time(0),
            busy: None,
            calls: 0,
            calls_since: Time(0),
            callers_until: Time(0),
        }
    }

    /// Bytes of `domain` were sent.
    #[inline]
    pub(super) fn on_sent(&mut self, domain: usize, now: Time) {
        let before = self.domain.replace(domain);
        if before.is_some_and(|before| before != domain) {
            self.mixed_until = now.plus(REMEMBERED);
        }
    }

    /// The stream in `slot` has sent [`MUCH`] and has more.
    #[inline]
    pub(super) const fn on_more(&mut self, slot: u32, now: Time) {
        self.busy = Some((slot, now));
    }

    /// The stream in `slot`, which had nothing to send before, sent `bytes`, which was all.
    #[inline]
    pub(super) fn on_all(&mut self, slot: u32, bytes: usize, now: Time) {
        let beside = |(busy, at): (u32, Time)| busy != slot && now.since(at) <= MUCH_REMEMBERED;
        if bytes > CALL_BYTES || !self.busy.is_some_and(beside) {
            return;
        }
        if now.since(self.calls_since) > CALLS_WITHIN {
            self.calls_since = now;
            self.calls = 0;
        }
        self.calls += 1;
        if self.calls >= CALLS {
            self.callers_until = now.plus(CALLERS_REMEMBERED);
        }
    }

    /// Whether bytes of several domains were sent lately.
    pub(super) fn is_mixed(&self, now: Time) -> bool {
        now < self.mixed_until
    }

    /// Whether there are callers.
    #[inline]
    pub(super) fn has_callers(&self, now: Time) -> bool {
        now < self.callers_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_mixed_while_domains_take_turns_and_shortly_after() {
        let mut company = Company::new();
        for at in 1..4 {
            company.on_sent(7, Time(at));
            assert!(!company.is_mixed(Time(at)));
        }
        company.on_sent(8, Time(4));
        assert!(company.is_mixed(Time(5)));
        company.on_sent(7, Time(REMEMBERED));
        assert!(company.is_mixed(Time(REMEMBERED + 4)));
        company.on_sent(7, Time(2 * REMEMBERED - 1));
        assert!(!company.is_mixed(Time(2 * REMEMBERED)));
    }

    #[test]
    fn callers_call_often_beside_a_stream_that_has_much() {
        const OFTEN: u64 = CALLS_WITHIN / 16;
        /// As many calls as it takes, beside slot 1 or alone.
        fn calls(company: &mut Company, slot: u32, bytes: usize, pause: u64, beside: bool) -> bool {
            let start = company.callers_until.0.max(company.calls_since.0) + CALLS_WITHIN + 1;
            let mut now = Time(start);
            for _ in 0..CALLS {
                if beside {
                    company.on_more(1, now);
                }
                now = now.plus(pause);
                company.on_all(slot, bytes, now);
            }
            company.has_callers(now)
        }
        let mut company = Company::new();
        assert!(!calls(&mut company, 2, 10, OFTEN, false), "nobody else");
        assert!(!calls(&mut company, 1, 10, OFTEN, true), "its own tails");
        assert!(!calls(&mut company, 2, CALL_BYTES + 1, OFTEN, true), "long");
        assert!(!calls(&mut company, 2, 10, CALLS_WITHIN / 4, true), "rare");
        assert!(calls(&mut company, 2, CALL_BYTES, OFTEN, true));
        assert!(!company.has_callers(company.callers_until));
        assert!(!calls(&mut company, 2, 10, OFTEN, false), "no longer");
    }
}
