//! Which parts of a region are free.

use std::collections::BTreeMap;

/// Everything is given out in whole pages.
pub const PAGE: u64 = 4096;

/// Free ranges: first fit, neighbours joined.
#[derive(Debug, Default)]
pub struct Space {
    /// Length by beginning.
    free: BTreeMap<u64, u64>,
}

impl Space {
    /// All of `start..end` is free.
    pub fn new(start: u64, end: u64) -> Self {
        let start = start.next_multiple_of(PAGE);
        let end = end - end % PAGE;
        let mut free = BTreeMap::new();
        if start < end {
            free.insert(start, end - start);
        }
        Self { free }
    }

    /// Where `bytes` bytes, rounded up to whole pages, are from now on. `None`: there is no such hole.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(PAGE)?;
        let (&at, &length) = self.free.iter().find(|(_, length)| **length >= bytes)?;
        self.free.remove(&at);
        if length > bytes {
            self.free.insert(at + bytes, length - bytes);
        }
        Some(at)
    }

    /// Gives back what [`Space::take`] gave out.
    pub fn give_back(&mut self, at: u64, bytes: u64) {
        let mut at = at;
        let mut length = bytes.next_multiple_of(PAGE);
        if let Some((&before, &its)) = self.free.range(..at).next_back()
            && before + its == at
        {
            self.free.remove(&before);
            (at, length) = (before, its + length);
        }
        if let Some(after) = self.free.remove(&(at + length)) {
            length += after;
        }
        self.free.insert(at, length);
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_does_not_overlap_and_comes_back_whole() {
        let mut space = Space::new(1, 100 * PAGE + 5);
        assert_eq!(space.free(), 99 * PAGE);
        let mut taken = Vec::new();
        for pages in [3, 1, 10, 2, 30] {
            taken.push((space.take(pages * PAGE - 7).unwrap(), pages * PAGE));
        }
        taken.sort_unstable();
        for pair in taken.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
        assert!(taken.iter().all(|(at, _)| *at >= PAGE && at % PAGE == 0));
        assert_eq!(space.take(60 * PAGE), None);
        for index in [1, 0, 4, 3, 2] {
            let (at, bytes): (u64, u64) = taken[index];
            space.give_back(at, bytes);
        }
        assert_eq!(space.free.len(), 1, "one hole again");
        assert_eq!(space.take(99 * PAGE), Some(PAGE));
        assert_eq!(space.take(1), None);
    }
}
