//! Which frame numbers have arrived: for acknowledgements, and so that no frame counts twice.

use std::collections::VecDeque;

use crate::wire::ACK_RANGES_MAX;

/// What is known of a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// Not here yet.
    New,
    /// Here already.
    Duplicate,
    /// Older than what is remembered.
    Old,
    /// Further ahead than any sender gets.
    Ahead,
}

/// A number is at most this far beyond the largest one: acknowledgements can express the gap.
const AHEAD_MAX: u64 = 1 << 31;

/// Ranges of numbers, first and last, sorted, with a gap between them. Of too many the oldest are
/// forgotten, and everything below what is remembered counts as old.
#[derive(Debug, Default)]
pub(super) struct Received {
    ranges: VecDeque<(u64, u64)>,
    floor: u64,
}

impl Received {
    /// What is known of `number`.
    #[inline]
    pub(super) fn look(&self, number: u64) -> Seen {
        let largest = self.ranges.back().map_or(0, |range| range.1);
        if number > largest || self.ranges.is_empty() {
            return if number - largest > AHEAD_MAX {
                Seen::Ahead
            } else {
                Seen::New
            };
        }
        if number < self.floor {
            return Seen::Old;
        }
        let at = self.ranges.partition_point(|range| range.1 < number);
        match self.ranges.get(at) {
            Some(range) if range.0 <= number => Seen::Duplicate,
            _ => Seen::New,
        }
    }

    /// Remembers `number`, of which [`Self::look`] said that it is new. Tells whether it came out of
    /// order: behind a gap that it opens, or into one.
    #[inline]
    pub(super) fn insert(&mut self, number: u64) -> bool {
        match self.ranges.back_mut() {
            Some(last) if last.1 + 1 == number => {
                last.1 = number;
                false
            }
            Some(last) if last.1 < number => {
                self.ranges.push_back((number, number));
                self.bound();
                true
            }
            None => {
                self.ranges.push_back((number, number));
                number != 0
            }
            Some(_) => {
                self.fill(number);
                true
            }
        }
    }

    fn fill(&mut self, number: u64) {
        let at = self.ranges.partition_point(|range| range.1 < number);
        let joins_before = at > 0 && self.ranges[at - 1].1 + 1 == number;
        let joins_after = self.ranges[at].0 == number + 1;
        match (joins_before, joins_after) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].1 = number,
            (false, true) => self.ranges[at].0 = number,
            (false, false) => {
                self.ranges.insert(at, (number, number));
                self.bound();
            }
        }
    }

    fn bound(&mut self) {
        if self.ranges.len() > ACK_RANGES_MAX {
            self.ranges.pop_front();
            self.floor = self.ranges.front().map_or(0, |range| range.0);
        }
    }

    /// The far end knows that everything up to `number` arrived: acknowledgements begin behind it. It
    /// stays remembered that it did.
    pub(super) fn forget_up_to(&mut self, number: u64) {
        while self.ranges.len() > 1 {
            match self.ranges.front() {
                Some(first) if first.1 <= number => {
                    self.ranges.pop_front();
                }
                _ => break,
            }
        }
        let first = self.ranges.front().map_or(0, |range| range.0);
        self.floor = self.floor.max(first.min(number.saturating_add(1)));
    }

    /// The largest number.
    pub(super) fn largest(&self) -> Option<u64> {
        self.ranges.back().map(|range| range.1)
    }

    /// The ranges, from the largest down.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().rev().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn remembers_what_came(numbers in vec(0u64..300, 1..300)) {
            let mut received = Received::default();
            let mut model = BTreeSet::new();
            for number in numbers {
                match received.look(number) {
                    Seen::New => {
                        let before = model.last().copied();
                        let out_of_order = received.insert(number);
                        prop_assert!(model.insert(number));
                        let next = before.map_or(0, |before| before + 1);
                        prop_assert_eq!(out_of_order, number != next);
                    }
                    Seen::Ahead => prop_assert!(false),
                    Seen::Duplicate => prop_assert!(model.contains(&number)),
                    Seen::Old => prop_assert!(number < received.floor),
                }
                prop_assert!(received.ranges.len() <= ACK_RANGES_MAX);
                prop_assert_eq!(received.largest(), model.last().copied());
                for (first, last) in received.ranges() {
                    prop_assert!((first..=last).all(|number| model.contains(&number)));
                }
            }
        }
    }

    #[test]
    fn what_was_told_is_not_told_again_but_stays_known() {
        let mut received = Received::default();
        for number in [0, 1, 2, 5, 6, 9] {
            received.insert(number);
        }
        received.forget_up_to(6);
        assert_eq!(received.ranges().collect::<Vec<_>>(), [(9, 9)]);
        assert_eq!(received.look(1), Seen::Old);
        assert_eq!(received.look(4), Seen::Old);
        assert_eq!(received.look(7), Seen::New);
        assert_eq!(received.look(9 + AHEAD_MAX), Seen::New);
        assert_eq!(received.look(10 + AHEAD_MAX), Seen::Ahead);
        assert_eq!(received.look(9), Seen::Duplicate);
        assert!(received.insert(7), "it fills a gap");
        assert_eq!(received.ranges().collect::<Vec<_>>(), [(9, 9), (7, 7)]);
    }
}
