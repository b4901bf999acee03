//! How large a frame the path carries (in the manner of RFC 8899).
//!
//! Data starts at a size that every path carries. Probes look for more: first the most that both
//! drivers can, then the middle of what is left. Frames that vanish while smaller ones arrive mean that
//! the path has shrunk.

use super::time::{SECOND, Time};

/// A size is given up after so many lost probes.
const TRIES: u32 = 3;

/// The search ends when it would gain less than this.
const STEP: usize = 32;

/// A path that was found narrow is looked at again after this long.
const AGAIN: u64 = 30 * SECOND;

/// So many large frames lost, and none that was sent later arrived: the path has shrunk.
const LOST_IN_A_ROW: u32 = 8;

/// The search.
#[derive(Debug)]
pub(super) struct PathProbe {
    floor: usize,
    limit: usize,
    /// Known to arrive.
    size: usize,
    /// Known or believed not to.
    too_large: usize,
    tries: u32,
    under_way: bool,
    again_at: Option<Time>,
    lost_in_a_row: u32,
    /// Large frames with numbers below this need not count: a later one has arrived.
    passed: u64,
}

impl PathProbe {
    /// `floor` is carried by every path, `limit` is what both drivers can.
    pub(super) fn new(floor: usize, limit: usize) -> Self {
        let floor = floor.min(limit);
        Self {
            floor,
            limit,
            size: floor,
            too_large: limit + 1,
            tries: 0,
            under_way: false,
            again_at: None,
            lost_in_a_row: 0,
            passed: 0,
        }
    }

    /// Bytes of the largest frame that may carry data.
    #[inline]
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Every path carries a frame of this size.
    pub(super) const fn floor(&self) -> usize {
        self.floor
    }

    /// The size that should be tried now.
    #[inline]
    pub(super) fn wanted(&self) -> Option<usize> {
        if self.under_way || self.size >= self.limit {
            return None;
        }
        self.candidate()
    }

    /// When to look again.
    pub(super) const fn again_at(&self) -> Option<Time> {
        self.again_at
    }

    /// The time has come.
    pub(super) fn look_again(&mut self) {
        self.again_at = None;
        self.too_large = self.limit + 1;
        self.tries = 0;
    }

    /// A probe was sent.
    pub(super) fn on_probe_sent(&mut self) {
        self.under_way = true;
    }

    /// A probe of this size arrived.
    pub(super) fn on_probe_acked(&mut self, size: usize, now: Time) {
        self.under_way = false;
        self.tries = 0;
        if size <= self.limit && size < self.too_large {
            self.size = self.size.max(size);
        }
        self.lost_in_a_row = 0;
        self.rest(now);
    }

    /// A probe of this size was lost.
    pub(super) fn on_probe_lost(&mut self, size: usize, now: Time) {
        self.under_way = false;
        self.tries += 1;
        if self.tries >= TRIES {
            self.tries = 0;
            self.too_large = self.too_large.min(size);
            self.rest(now);
        }
    }

    /// Data in a frame of this size arrived.
    #[inline]
    pub(super) fn on_acked(&mut self, number: u64, size: usize) {
        if size > self.floor {
            self.lost_in_a_row = 0;
            self.passed = self.passed.max(number);
        }
    }

    /// Data in a frame of this size was lost. True: the path has shrunk, [`Self::size`] is smaller now.
    pub(super) fn on_lost(&mut self, number: u64, size: usize) -> bool {
        if size <= self.floor || size > self.size || number < self.passed {
            return false;
        }
        self.lost_in_a_row += 1;
        if self.lost_in_a_row < LOST_IN_A_ROW {
            return false;
        }
        self.lost_in_a_row = 0;
        self.size = self.floor;
        self.look_again();
        true
    }

    /// The driver can do this much now.
    pub(super) fn set_limit(&mut self, limit: usize) {
        if limit == self.limit {
            return;
        }
        self.limit = limit;
        self.floor = self.floor.min(limit);
        self.size = self.size.min(limit);
        self.look_again();
    }

    fn candidate(&self) -> Option<usize> {
        if self.too_large > self.limit {
            return Some(self.limit);
        }
        let middle = self.size + (self.too_large - self.size) / 2;
        (self.too_large - self.size > STEP).then_some(middle)
    }

    fn rest(&mut self, now: Time) {
        if self.size < self.limit && self.candidate().is_none() && self.again_at.is_none() {
            self.again_at = Some(now.plus(AGAIN));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches on a path that carries `path` bytes; gives the number of probes.
    fn search(probe: &mut PathProbe, path: usize) -> u32 {
        let mut count = 0;
        while let Some(size) = probe.wanted() {
            count += 1;
            probe.on_probe_sent();
            assert_eq!(probe.wanted(), None, "one at a time");
            if size <= path {
                probe.on_probe_acked(size, Time(0));
            } else {
                probe.on_probe_lost(size, Time(0));
            }
            assert!(count < 100);
        }
        count
    }

    #[test]
    fn finds_what_the_path_carries() {
        let mut probe = PathProbe::new(1200, 8972);
        assert_eq!(probe.size(), 1200);
        assert_eq!(search(&mut probe, 9000), 1, "the most is tried first");
        assert_eq!((probe.size(), probe.again_at()), (8972, None));
        for path in [1200, 1472, 4000, 8971] {
            let mut probe = PathProbe::new(1200, 8972);
            search(&mut probe, path);
            assert!(
                probe.size() <= path && probe.size() + STEP >= path,
                "{path}"
            );
            assert_eq!(probe.again_at(), Some(Time(AGAIN)));
            probe.look_again();
            search(&mut probe, 8972);
            assert_eq!(probe.size(), 8972);
        }
        assert_eq!(PathProbe::new(1200, 1200).wanted(), None);
    }

    #[test]
    fn a_path_that_shrinks_is_noticed() {
        let mut probe = PathProbe::new(1200, 8972);
        search(&mut probe, 8972);
        for number in 1..LOST_IN_A_ROW {
            assert!(!probe.on_lost(u64::from(number), 8972));
        }
        probe.on_acked(100, 8972);
        for number in 50..100 {
            assert!(!probe.on_lost(number, 8972), "a later one arrived");
        }
        for number in 101..100 + u64::from(LOST_IN_A_ROW) {
            assert!(!probe.on_lost(number, 8972));
            assert!(!probe.on_lost(number, 1200), "small ones do not count");
            probe.on_acked(number, 1200);
        }
        assert!(probe.on_lost(200, 8972));
        assert_eq!(probe.size(), 1200);
        search(&mut probe, 1472);
        assert!((1440..=1472).contains(&probe.size()));
    }

    #[test]
    fn the_driver_has_the_last_word() {
        let mut probe = PathProbe::new(1200, 8972);
        search(&mut probe, 8972);
        probe.set_limit(1472);
        assert_eq!((probe.size(), probe.wanted()), (1472, None));
        probe.set_limit(1000);
        assert_eq!((probe.size(), probe.floor()), (1000, 1000));
        probe.set_limit(8972);
        assert_eq!(probe.wanted(), Some(8972));
    }
}
