//! The least of many samples: what a path takes when nothing is in the way.

use super::time::{SECOND, Time};

/// The least sample is forgotten after one to two times this: the path may have become longer.
const AGE: u64 = 30 * SECOND;

/// The least of late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    least: u64,
    /// The least of this period, and when it began.
    period: u64,
    start: Time,
}

impl Base {
    pub(super) const fn new() -> Self {
        Self {
            least: u64::MAX,
            period: u64::MAX,
            start: Time(0),
        }
    }

    #[inline]
    pub(super) fn note(&mut self, now: Time, sample: u64) {
        if now.since(self.start) > AGE {
            self.least = self.period;
            self.period = u64::MAX;
            self.start = now;
        }
        self.period = self.period.min(sample);
        self.least = self.least.min(sample);
    }

    /// [`u64::MAX`] before the first sample.
    #[inline]
    pub(super) const fn get(&self) -> u64 {
        self.least
    }

    /// The same, but 0 before the first sample: for counters.
    pub(super) const fn get_or_zero(&self) -> u64 {
        if self.known() { self.least } else { 0 }
    }

    /// Whether there was a sample.
    #[inline]
    pub(super) const fn known(&self) -> bool {
        self.least != u64::MAX
    }
}

/// The least of this round trip and the `N - 1` before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds<const N: usize>([u64; N]);

impl<const N: usize> Rounds<N> {
    pub(super) const fn new() -> Self {
        Self([u64::MAX; N])
    }

    #[inline]
    pub(super) fn note(&mut self, sample: u64) {
        if let Some(this) = self.0.first_mut() {
            *this = sample.min(*this);
        }
    }

    /// The next round trip begins.
    #[inline]
    pub(super) fn end(&mut self) {
        self.0.rotate_right(1);
        if let Some(this) = self.0.first_mut() {
            *this = u64::MAX;
        }
    }

    /// The least of all; [`u64::MAX`] if there was no sample.
    #[inline]
    pub(super) fn get(&self) -> u64 {
        self.0.iter().copied().min().unwrap_or(u64::MAX)
    }

    /// The least of the round trip that ended last; [`u64::MAX`] if there was no sample.
    #[inline]
    pub(super) fn last(&self) -> u64 {
        self.0.get(1).copied().unwrap_or(u64::MAX)
    }

    /// Whether even the least exceeds `base` by more than `margin`, and there was one in each round that has ended.
    #[inline]
    pub(super) fn exceeds(&self, base: u64, margin: u64) -> bool {
        let ended = self.0.get(1..).unwrap_or_default();
        !ended.contains(&u64::MAX) && self.get() > base.saturating_add(margin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_forgotten_in_time() {
        let mut base = Base::new();
        assert!(!base.known());
        base.note(Time(1), 50);
        base.note(Time(2), 70);
        assert!(base.known());
        assert_eq!(base.get(), 50);
        base.note(Time(AGE + 2), 70);
        assert_eq!(base.get(), 50);
        base.note(Time(2 * AGE + 4), 80);
        assert_eq!(base.get(), 70);
    }

    #[test]
    fn rounds_are_long_if_all_of_them_are() {
        let mut round = Rounds::<2>::new();
        assert!(!round.exceeds(0, 0));
        round.note(300);
        assert!(!round.exceeds(100, 199));
        round.end();
        assert_eq!((round.get(), round.last()), (300, 300));
        assert!(round.exceeds(100, 199));
        assert!(!round.exceeds(100, 200));
        assert!(!round.exceeds(u64::MAX, 5));
        round.note(120);
        assert!(!round.exceeds(100, 199));
        round.end();
        round.note(400);
        assert!(!round.exceeds(100, 199));
        round.end();
        assert!(round.exceeds(100, 199));
    }
}
