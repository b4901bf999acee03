//! The network between two hosts, in one direction, with everything that networks do to frames.

use rdma_core::link::{MICROSECOND, MILLISECOND, Time};

use super::random::Random;

/// What happens to frames.
#[derive(Clone, Debug)]
pub struct Path {
    /// Per mille of frames that are lost.
    pub drop: u64,
    /// Per mille that come twice.
    pub duplicate: u64,
    /// Per mille of which one bit is turned.
    pub corrupt: u64,
    /// Per mille that others overtake.
    pub reorder: u64,
    /// Nanoseconds that a frame takes.
    pub delay: u64,
    /// Up to so many more.
    pub jitter: u64,
    /// Bytes per second; 0: no limit.
    pub rate: u64,
    /// Bytes that wait for a slow line at most.
    pub queue: u64,
    /// Longer frames are lost.
    pub mtu: usize,
    /// Nothing gets through until then.
    pub down_until: Time,
    line_free: Time,
}

impl Path {
    /// As good as networks are.
    pub const fn clean(delay: u64) -> Self {
        Self {
            drop: 0,
            duplicate: 0,
            corrupt: 0,
            reorder: 0,
            delay,
            jitter: 0,
            rate: 0,
            queue: u64::MAX,
            mtu: 9000,
            down_until: Time(0),
            line_free: Time(0),
        }
    }

    /// A network that is bad in some ways.
    pub fn bad(random: &mut Random) -> Self {
        let mut some = |most: u64| {
            if random.one_in(2) {
                random.up_to(most)
            } else {
                0
            }
        };
        let (drop, duplicate, corrupt, reorder) = (some(150), some(100), some(50), some(200));
        let jitter = some(2 * MILLISECOND);
        Self {
            drop,
            duplicate,
            corrupt,
            reorder,
            delay: MICROSECOND + random.up_to(4 * MILLISECOND),
            jitter,
            rate: match random.below(3) {
                0 => 2_000_000 + random.up_to(1_000_000_000),
                _ => 0,
            },
            queue: 20_000 + random.up_to(2_000_000),
            mtu: 1200 + usize::try_from(random.below(8000)).unwrap_or(0),
            ..Self::clean(0)
        }
    }

    /// No more faults; what is slow or narrow stays so.
    pub const fn calm(&mut self) {
        self.drop = 0;
        self.duplicate = 0;
        self.corrupt = 0;
        self.reorder = 0;
        self.down_until = Time(0);
    }

    /// When a frame that is sent now arrives, possibly several times; with the bit that is turned.
    pub fn send(
        &mut self,
        now: Time,
        len: usize,
        random: &mut Random,
    ) -> Vec<(Time, Option<usize>)> {
        if now < self.down_until || len > self.mtu || random.per_mille(self.drop) {
            return Vec::new();
        }
        let copies = if random.per_mille(self.duplicate) {
            2
        } else {
            1
        };
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let mut at = now;
            if self.rate > 0 {
                let free = self.line_free.max(now);
                let waiting = (free.0 - now.0).saturating_mul(self.rate) / 1_000_000_000;
                if waiting > self.queue {
                    continue;
                }
                let took = len as u64 * 1_000_000_000 / self.rate;
                self.line_free = free.plus(took);
                at = self.line_free;
            }
            at = at.plus(self.delay + random.below(self.jitter + 1));
            if random.per_mille(self.reorder) {
                at = at.plus(random.up_to(10 * MILLISECOND));
            }
            let turned = random
                .per_mille(self.corrupt)
                .then(|| usize::try_from(random.below(len as u64 * 8)).unwrap_or(0));
            arrivals.push((at, turned));
        }
        arrivals
    }
}
