//! Who else uses a link: what is under way for one makes the others wait.
//!
//! * Several domains, if more than one has sent.
//! * *Callers*: streams that have little to say, say all of it at once, and do so again and again, beside a stream that always
//!   has more. Somebody waits for each of their answers.

use super::time::{MILLISECOND, Time};

/// A link counts as shared for so long after the turn last went from one domain to another.
const REMEMBERED: u64 = 100 * MILLISECOND;

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
    /// The stream that last had more to send than went into a frame.
    busy: Option<u32>,
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

    /// The stream in `slot` has more to send.
    #[inline]
    pub(super) const fn on_more(&mut self, slot: u32) {
        self.busy = Some(slot);
    }

    /// The stream in `slot`, which had nothing to send before, sent `bytes`, which was all.
    #[inline]
    pub(super) fn on_all(&mut self, slot: u32, bytes: usize, now: Time) {
        if bytes > CALL_BYTES || self.busy.is_none_or(|busy| busy == slot) {
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
    fn callers_call_often_beside_a_stream_that_has_more() {
        const PAUSE: u64 = CALLS_WITHIN / 16;
        let calls = |company: &mut Company, slot: u32, bytes: usize, from: u64, pause: u64| {
            for at in 0..u64::from(CALLS) {
                company.on_all(slot, bytes, Time(from + at * pause));
            }
            company.has_callers(Time(from + u64::from(CALLS) * pause))
        };
        let mut company = Company::new();
        assert!(
            !calls(&mut company, 1, 10, MILLISECOND, PAUSE),
            "nobody else"
        );
        company.on_more(1);
        let later = 40 * MILLISECOND;
        assert!(!calls(&mut company, 1, 10, later, PAUSE), "its own tails");
        assert!(
            !calls(&mut company, 2, CALL_BYTES + 1, later, PAUSE),
            "long"
        );
        assert!(!calls(&mut company, 2, 10, later, CALLS_WITHIN / 4), "rare");
        let often = 200 * MILLISECOND;
        assert!(calls(&mut company, 2, CALL_BYTES, often, PAUSE));
        assert!(!company.has_callers(Time(often + CALLS_WITHIN + CALLERS_REMEMBERED)));
    }
}
