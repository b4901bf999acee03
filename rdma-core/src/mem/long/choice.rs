//! Which way of copying is used.
//!
//! Ordinary copies are *watched*: each is timed. When all were slow for a while every other way is *tried* for a bit, and the
//! best of all is *kept* for longer, untimed. Then ordinary ones are watched again, since times change.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// An ordinary copy is slow if it takes more than so many ticks of the time-stamp counter for a cache line: 11 to
/// 21 GB/s, for counters of 2 to 4 GHz.
const SLOW_TICKS: u32 = 12;
const LINE: u64 = 64;
/// Ticks are kept for so many lines, which tells ways apart that take less than one more for a line.
const LINES: u32 = 16;
/// Bytes of slow copies in a row that are no accident, as an interrupt or a page fault is. Enough for the ring to come
/// around: what non-temporal copies have sent to memory is slow to write to once.
const SLOW_BYTES: u32 = 2 << 20;
/// Bytes for which another way is tried.
const TRIED_BYTES: u32 = 512 << 10;
/// Bytes for which the best is kept.
const KEPT_BYTES: u32 = 64 << 20;

/// A way of copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Way {
    /// `memcpy`.
    Ordinary,
    /// By non-temporal stores.
    Streamed,
    /// Word by word.
    Words,
}

const WAYS: [Way; 3] = [Way::Ordinary, Way::Streamed, Way::Words];

/// See the module documentation. All orderings are relaxed: nothing else hangs on what is read here.
#[derive(Debug)]
pub(super) struct Choice {
    /// What there is besides ordinary copies, in the order in which it is tried.
    others: &'static [Way],
    /// The way in use, as a number.
    way: AtomicU8,
    /// Bytes for which that is kept, if it is.
    kept: AtomicU32,
    /// Bytes of slow copies in a row, if ordinary ones are watched; bytes so far, if another way is tried.
    so_far: AtomicU32,
    /// The fewest ticks for [`LINES`] lines that each way has taken in this round.
    least: [AtomicU32; WAYS.len()],
}

impl Choice {
    pub(super) const fn of(others: &'static [Way]) -> Self {
        Self {
            others,
            way: AtomicU8::new(Way::Ordinary as u8),
            kept: AtomicU32::new(0),
            so_far: AtomicU32::new(0),
            least: [const { AtomicU32::new(u32::MAX) }; WAYS.len()],
        }
    }

    /// How the next copy, of `len` bytes, is to be made, if that is settled.
    #[inline(always)]
    pub(super) fn chosen(&self, len: usize) -> Option<Way> {
        let kept = self.kept.load(Ordering::Relaxed);
        if kept == 0 {
            return None;
        }
        let way = self.tried();
        let left = kept.saturating_sub(counted(len));
        self.kept.store(left, Ordering::Relaxed);
        if left == 0 {
            self.start(Way::Ordinary);
        }
        Some(way)
    }

    /// How the next copy is to be made and timed, if nothing is settled.
    pub(super) fn tried(&self) -> Way {
        let way = self.way.load(Ordering::Relaxed);
        WAYS.get(usize::from(way)).copied().unwrap_or(Way::Ordinary)
    }

    /// A copy of `len` bytes took so many ticks.
    pub(super) fn took(&self, way: Way, len: usize, ticks: u64) {
        let per_lines = ticks.saturating_mul(u64::from(LINES) * LINE) / (len as u64).max(1);
        let per_lines = u32::try_from(per_lines).unwrap_or(u32::MAX);
        if way == Way::Ordinary && per_lines / LINES <= SLOW_TICKS {
            self.start(way);
            return;
        }
        let least = &self.least[way as usize];
        if per_lines < least.load(Ordering::Relaxed) {
            least.store(per_lines, Ordering::Relaxed);
        }
        let so_far = self.so_far.load(Ordering::Relaxed);
        let so_far = so_far.saturating_add(counted(len));
        self.so_far.store(so_far, Ordering::Relaxed);
        let enough = match way {
            Way::Ordinary => SLOW_BYTES,
            Way::Streamed | Way::Words => TRIED_BYTES,
        };
        if so_far >= enough {
            self.next(way);
        }
    }

    /// Watches or tries a way from now on.
    fn start(&self, way: Way) {
        self.so_far.store(0, Ordering::Relaxed);
        self.least[way as usize].store(u32::MAX, Ordering::Relaxed);
        self.way.store(way as u8, Ordering::Relaxed);
    }

    /// Enough is known of a way.
    fn next(&self, way: Way) {
        let tried = self.others.iter().position(|other| *other == way);
        let next = tried.map_or(0, |tried| tried + 1);
        if let Some(next) = self.others.get(next) {
            self.start(*next);
            return;
        }
        self.way.store(self.best() as u8, Ordering::Relaxed);
        self.kept.store(KEPT_BYTES, Ordering::Relaxed);
    }

    /// The best way: another one only if it is better by a quarter.
    fn best(&self) -> Way {
        let least = |way: Way| self.least[way as usize].load(Ordering::Relaxed);
        let best = self.others.iter().copied().min_by_key(|way| least(*way));
        let limit = least(Way::Ordinary) / 4 * 3;
        best.filter(|best| least(*best) < limit)
            .unwrap_or(Way::Ordinary)
    }
}

/// A length as it is counted.
fn counted(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 65_536;
    const COPY: u64 = LEN as u64 / LINE;

    /// Copies of which a line takes so many ticks in each way, until one is settled; how many of each there were.
    fn settle(choice: &Choice, ticks: [u64; 3]) -> [usize; 3] {
        let mut copies = [0; 3];
        while choice.chosen(LEN).is_none() {
            let way = choice.tried();
            copies[way as usize] += 1;
            assert!(copies[way as usize] < 1000, "nothing is ever settled");
            choice.took(way, LEN, ticks[way as usize] * COPY);
        }
        copies
    }

    /// The way that is kept, and for how many copies after the first.
    fn kept(choice: &Choice) -> (Way, usize) {
        let way = choice.tried();
        let copies = core::iter::from_fn(|| choice.chosen(LEN));
        (way, copies.inspect(|each| assert_eq!(*each, way)).count())
    }

    const SLOW: usize = SLOW_BYTES as usize / LEN;
    const TRIED: usize = TRIED_BYTES as usize / LEN;
    const KEPT: usize = KEPT_BYTES as usize / LEN;

    #[test]
    fn the_fastest_way_is_kept_for_a_while() {
        let choice = Choice::of(&[Way::Streamed, Way::Words]);
        for (ticks, best) in [
            ([30, 6, 30], Way::Streamed),
            ([90, 90, 45], Way::Words),
            ([30, 25, 28], Way::Ordinary),
            ([30, 60, 40], Way::Ordinary),
        ] {
            assert_eq!(settle(&choice, ticks), [SLOW, TRIED, TRIED]);
            assert_eq!(kept(&choice), (best, KEPT - 1));
        }
        let choice = Choice::of(&[Way::Words]);
        assert_eq!(settle(&choice, [90, 1, 45]), [SLOW, 0, TRIED]);
        assert_eq!(kept(&choice).0, Way::Words);
    }

    #[test]
    fn fast_copies_stay_what_they_are() {
        let choice = Choice::of(&[Way::Streamed, Way::Words]);
        for ticks in [u64::from(SLOW_TICKS), 4].repeat(1000) {
            assert_eq!(choice.chosen(LEN), None);
            assert_eq!(choice.tried(), Way::Ordinary);
            choice.took(Way::Ordinary, LEN, ticks * COPY);
        }
    }

    #[test]
    fn single_slow_copies_are_accidents() {
        let choice = Choice::of(&[Way::Streamed]);
        for ticks in [1000, 4].repeat(1000) {
            assert_eq!(choice.chosen(LEN), None);
            choice.took(choice.tried(), LEN, ticks * COPY);
        }
        // And one in a trial says nothing about the way.
        let mut interrupted = true;
        while choice.chosen(LEN).is_none() {
            let way = choice.tried();
            let streamed = way == Way::Streamed;
            let ticks = if streamed && core::mem::take(&mut interrupted) {
                100_000
            } else if streamed {
                6
            } else {
                30
            };
            choice.took(way, LEN, ticks * COPY);
        }
        assert_eq!(kept(&choice).0, Way::Streamed);
    }
}
