//! Sets of byte ranges: what has arrived beyond the edge, what must be sent again.

use std::collections::VecDeque;

/// Ranges `start..end`, sorted, apart from each other.
#[derive(Debug, Default)]
pub(super) struct RangeSet {
    ranges: VecDeque<(u64, u64)>,
}

impl RangeSet {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The first range.
    #[inline]
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.ranges.front().copied()
    }

    /// Whether all of `start..end` is there.
    pub(super) fn contains(&self, start: u64, end: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.1 < end);
        self.ranges.get(at).is_some_and(|range| range.0 <= start)
    }

    /// Whether `start..end` could be inserted without there being more than `most` ranges.
    pub(super) fn fits(&self, start: u64, end: u64, most: usize) -> bool {
        if self.ranges.len() < most {
            return true;
        }
        let at = self.ranges.partition_point(|range| range.1 < start);
        self.ranges.get(at).is_some_and(|range| range.0 <= end)
    }

    /// Adds `start..end`, joining what touches it.
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        // Nearly everything comes at the end.
        match self.ranges.back_mut() {
            Some(last) if start >= last.0 => {
                if start <= last.1 {
                    last.1 = last.1.max(end);
                } else {
                    self.ranges.push_back((start, end));
                }
                return;
            }
            None => {
                self.ranges.push_back((start, end));
                return;
            }
            Some(_) => {}
        }
        let from = self.ranges.partition_point(|range| range.1 < start);
        let to = self.ranges.partition_point(|range| range.0 <= end);
        if from == to {
            self.ranges.insert(from, (start, end));
            return;
        }
        let joined = (
            start.min(self.ranges[from].0),
            end.max(self.ranges[to - 1].1),
        );
        self.ranges[from] = joined;
        if to - from > 1 {
            self.ranges.drain(from + 1..to);
        }
    }

    /// Forgets everything below `edge`.
    #[inline]
    pub(super) fn remove_below(&mut self, edge: u64) {
        while let Some(first) = self.ranges.front_mut() {
            if first.1 <= edge {
                self.ranges.pop_front();
            } else {
                first.0 = first.0.max(edge);
                return;
            }
        }
    }

    /// Takes away the first range if it starts at or below `edge`, and gives its end.
    #[inline]
    pub(super) fn take_touching(&mut self, edge: u64) -> Option<u64> {
        let (start, end) = self.first()?;
        if start > edge {
            return None;
        }
        self.ranges.pop_front();
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn at(offset: u64) -> usize {
        usize::try_from(offset).unwrap()
    }

    proptest! {
        #[test]
        fn is_a_set(steps in vec((0u64..64, 0u64..12, 0u8..8), 1..60)) {
            let mut set = RangeSet::default();
            let mut model = [false; 80];
            for (start, length, what) in steps {
                let end = start + length;
                let (from, to) = (at(start), at(end));
                if what == 0 {
                    set.remove_below(start);
                    model[..from].fill(false);
                } else {
                    prop_assert_eq!(
                        length > 0 && set.contains(start, end),
                        length > 0 && model[from..to].iter().all(|there| *there)
                    );
                    let before = set.ranges.len();
                    let fits = set.fits(start, end, before);
                    set.insert(start, end);
                    model[from..to].fill(true);
                    if length > 0 {
                        prop_assert_eq!(fits, set.ranges.len() <= before);
                    }
                }
                let mut flat = [false; 80];
                let mut last = None;
                for &(start, end) in &set.ranges {
                    prop_assert!(start < end && last.is_none_or(|last| last < start));
                    last = Some(end);
                    flat[at(start)..at(end)].fill(true);
                }
                prop_assert_eq!(flat, model);
            }
        }
    }

    #[test]
    fn what_touches_the_edge_is_taken() {
        let mut set = RangeSet::default();
        set.insert(10, 20);
        set.insert(30, 40);
        assert_eq!(set.take_touching(9), None);
        assert_eq!(set.take_touching(10), Some(20));
        assert_eq!(set.take_touching(35), Some(40));
        assert!(set.is_empty());
    }
}
