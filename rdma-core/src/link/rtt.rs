//! How long an answer takes (RFC 6298, with the far end's own delay taken off).

use super::least::Base;
use super::time::{MICROSECOND, MILLISECOND, Time};

/// Longest time that an acknowledgement is held back.
pub(super) const ACK_DELAY: u64 = MILLISECOND;

/// Before the first sample: generous, and soon replaced.
const INITIAL: u64 = 20 * MILLISECOND;

/// Timers never run closer than this: the caller's clock and wake-up are no better.
const GRANULARITY: u64 = 100 * MICROSECOND;

/// The estimate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rtt {
    /// The last sample.
    pub(super) latest: u64,
    /// The least of all samples of late.
    pub(super) least: Base,
    /// Smoothed.
    pub(super) smoothed: u64,
    /// Mean deviation.
    pub(super) deviation: u64,
}

impl Rtt {
    pub(super) const fn new() -> Self {
        Self {
            latest: 0,
            least: Base::new(),
            smoothed: INITIAL,
            deviation: INITIAL / 2,
        }
    }

    /// An answer came after `sample` nanoseconds, of which the far end says it held it `held`.
    pub(super) fn sample(&mut self, now: Time, sample: u64, held: u64) {
        let first = !self.least.known();
        self.least.note(now, sample);
        // The far end cannot make the path faster than the fastest answer ever was.
        let held = held.min(ACK_DELAY);
        let sample = if sample >= self.least.get().saturating_add(held) {
            sample - held
        } else {
            sample
        };
        self.latest = sample;
        if first {
            self.smoothed = sample;
            self.deviation = sample / 2;
        } else {
            let error = self.smoothed.abs_diff(sample);
            self.deviation = self.deviation - self.deviation / 4 + error / 4;
            self.smoothed = self.smoothed - self.smoothed / 8 + sample / 8;
        }
    }

    /// Whether there was a sample.
    pub(super) const fn known(&self) -> bool {
        self.least.known()
    }

    /// After this long without an answer the tail is asked for again.
    pub(super) fn probe_timeout(&self) -> u64 {
        self.smoothed + (4 * self.deviation).max(GRANULARITY) + ACK_DELAY
    }

    /// A frame is lost if a later one was answered and it is older than this: a round trip and so many
    /// eighths of it.
    pub(super) fn loss_delay(&self, eighths: u64) -> u64 {
        let base = self.smoothed.max(self.latest);
        (base + base / 8 * eighths).max(GRANULARITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::time::SECOND;

    #[test]
    fn follows_the_path() {
        let mut rtt = Rtt::new();
        assert!(!rtt.known());
        rtt.sample(Time(1), 200 * MICROSECOND, 0);
        assert_eq!(
            (rtt.smoothed, rtt.deviation, rtt.least.get()),
            (200_000, 100_000, 200_000)
        );
        for _ in 0..100 {
            rtt.sample(Time(1), 200 * MICROSECOND, 0);
        }
        assert!(rtt.deviation < 100, "{rtt:?}");
        assert_eq!(rtt.loss_delay(1), 225 * MICROSECOND);
        assert_eq!(rtt.loss_delay(8), 400 * MICROSECOND);
        assert_eq!(rtt.probe_timeout(), rtt.smoothed + GRANULARITY + ACK_DELAY);
        for _ in 0..100 {
            rtt.sample(Time(1), 50 * MILLISECOND, 0);
        }
        assert!(rtt.smoothed.abs_diff(50 * MILLISECOND) < MILLISECOND);
        assert_eq!(rtt.least.get(), 200 * MICROSECOND);
    }

    #[test]
    fn forgets_what_the_path_once_was() {
        let mut rtt = Rtt::new();
        for second in 0..200 {
            let sample = if second < 10 { 1 } else { 40 };
            rtt.sample(Time(second * SECOND), sample * MILLISECOND, 0);
            if second == 15 {
                assert_eq!(rtt.least.get(), MILLISECOND);
            }
        }
        assert_eq!(rtt.least.get(), 40 * MILLISECOND);
    }

    #[test]
    fn takes_the_far_delay_off_but_not_more_than_is_plausible() {
        let mut rtt = Rtt::new();
        rtt.sample(Time(1), MILLISECOND, 900 * MICROSECOND);
        assert_eq!(rtt.latest, MILLISECOND, "the first sample is the least");
        rtt.sample(Time(1), 2 * MILLISECOND, 900 * MICROSECOND);
        assert_eq!(rtt.latest, 1_100 * MICROSECOND);
        rtt.sample(Time(1), 5 * MILLISECOND, 1_000 * MILLISECOND);
        assert_eq!(rtt.latest, 4 * MILLISECOND, "held longer than is allowed");
    }
}
