//! What bad networks do, to frames that arrive at another NIC: loss, repetition, reordering, damage, delay, a slow
//! line with a short queue, and a path that swallows long frames. From a seed, so that a run can be had again.
//!
//! Sending is left alone: with faults in both directions, both ends have the middleware.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::{Address, Arrival, Nic, NicStats, Outgoing, Sink};

/// What shall happen. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultSettings {
    /// Where the random numbers begin.
    pub seed: u64,
    /// Share of frames lost, 0 to 1.
    pub drop: f64,
    /// Share of frames that arrive twice.
    pub duplicate: f64,
    /// Share of frames that later ones overtake, by [`FaultSettings::reorder_by`].
    pub reorder: f64,
    /// How much later such a frame arrives.
    pub reorder_by: Duration,
    /// Share of frames of which one bit is turned.
    pub corrupt: f64,
    /// How much later every frame arrives.
    pub delay: Duration,
    /// Up to how much more than that, at random.
    pub jitter: Duration,
    /// Bytes per second of a slow line.
    pub rate: Option<u64>,
    /// Bytes that wait before a slow line; what comes on top is lost. Without it, what the line carries in 50 ms.
    pub queue: Option<u64>,
    /// Longer frames are lost without a word.
    pub mtu: Option<usize>,
}

/// How often it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultStats {
    /// Lost by chance.
    pub dropped: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Overtaken.
    pub reordered: u64,
    /// A bit turned.
    pub corrupted: u64,
    /// Delivered later than they came, whatever the reason.
    pub delayed: u64,
    /// Lost before the slow line.
    pub overflowed: u64,
    /// Longer than the MTU.
    pub too_long: u64,
}

/// A NIC behind a bad network.
#[derive(Debug)]
pub struct Faults<N: ?Sized = dyn Nic> {
    network: Network,
    nic: Box<N>,
}

/// Everything but the NIC.
#[derive(Debug)]
struct Network {
    settings: FaultSettings,
    random: Random,
    late: BinaryHeap<Reverse<Late>>,
    /// Bytes in `late`.
    late_bytes: usize,
    /// When the slow line has carried everything so far.
    line_free: Instant,
    /// Numbers frames, so that equal times keep their order.
    count: u64,
    spare: Vec<Vec<u8>>,
    stats: FaultStats,
}

/// A frame that is not here yet.
#[derive(Debug)]
struct Late {
    at: Instant,
    number: u64,
    from: Address,
    bytes: Vec<u8>,
}

impl<N: Nic + ?Sized> Faults<N> {
    /// Puts a bad network before `nic`.
    pub fn new(nic: Box<N>, settings: FaultSettings) -> Self {
        Self {
            network: Network {
                settings,
                random: Random(settings.seed),
                late: BinaryHeap::new(),
                late_bytes: 0,
                line_free: Instant::now(),
                count: 0,
                spare: Vec::new(),
                stats: FaultStats::default(),
            },
            nic,
        }
    }

    /// From now on this happens; the random numbers go on.
    pub fn set(&mut self, settings: FaultSettings) {
        self.network.settings = settings;
    }

    /// What has happened.
    pub const fn fault_stats(&self) -> FaultStats {
        self.network.stats
    }
}

impl Network {
    /// A frame has come in: delivers it, keeps it for later, or loses it.
    fn arrive(&mut self, now: Instant, arrival: Arrival, frame: &mut [u8], sink: &mut Sink<'_>) {
        let settings = self.settings;
        if settings.mtu.is_some_and(|mtu| frame.len() > mtu) {
            self.stats.too_long += 1;
            return;
        }
        if self.random.chance(settings.drop) {
            self.stats.dropped += 1;
            return;
        }
        let copies = if self.random.chance(settings.duplicate) {
            self.stats.duplicated += 1;
            2
        } else {
            1
        };
        if self.random.chance(settings.corrupt) {
            self.stats.corrupted += 1;
            self.random.damage(frame);
        }
        for _ in 0..copies {
            match self.when(now, frame.len()) {
                None => self.stats.overflowed += 1,
                Some(at) if at <= now => sink(arrival, frame),
                Some(at) => self.keep(at, arrival.from, frame),
            }
        }
    }

    /// When a frame of `len` bytes is here; `None`: never.
    fn when(&mut self, now: Instant, len: usize) -> Option<Instant> {
        let settings = self.settings;
        let mut late = settings.delay;
        if !settings.jitter.is_zero() {
            late = late.saturating_add(settings.jitter.mul_f64(self.random.unit()));
        }
        if let Some(rate) = settings.rate {
            let queue = settings.queue.unwrap_or(rate / 20);
            let free = self.line_free.max(now);
            if free - now > line_time(queue, rate) {
                return None;
            }
            self.line_free = free.checked_add(line_time(len as u64, rate))?;
            late = late.saturating_add(self.line_free - now);
        }
        if self.random.chance(settings.reorder) {
            self.stats.reordered += 1;
            late = late.saturating_add(settings.reorder_by);
        }
        // A bound for settings that nobody should have made.
        let room = late.is_zero() || self.late_bytes < LATE_BYTES_MAX;
        now.checked_add(late).filter(|_| room)
    }

    fn keep(&mut self, at: Instant, from: Address, frame: &[u8]) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame);
        self.stats.delayed += 1;
        self.late_bytes += bytes.len();
        self.count += 1;
        self.late.push(Reverse(Late {
            at,
            number: self.count,
            from,
            bytes,
        }));
    }

    /// Delivers what is due, up to a bound; returns how many frames.
    fn deliver(&mut self, now: Instant, sink: &mut Sink<'_>) -> usize {
        let mut count = 0;
        while count < DELIVERED_MAX && self.late.peek().is_some_and(|next| next.0.at <= now) {
            let Some(Reverse(mut late)) = self.late.pop() else {
                break;
            };
            self.late_bytes -= late.bytes.len();
            count += 1;
            let arrival = Arrival {
                from: late.from,
                at: Some(late.at),
            };
            sink(arrival, &mut late.bytes);
            if self.spare.len() < SPARE_MAX {
                self.spare.push(late.bytes);
            }
        }
        count
    }
}

impl<N: Nic + ?Sized> Nic for Faults<N> {
    fn address(&self) -> Address {
        self.nic.address()
    }

    fn broadcast(&self) -> Option<Address> {
        self.nic.broadcast()
    }

    fn max_frame(&self) -> usize {
        self.nic.max_frame()
    }

    fn window(&self) -> usize {
        self.nic.window()
    }

    fn send(&mut self, batch: &[Outgoing<'_>]) -> io::Result<usize> {
        self.nic.send(batch)
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> io::Result<usize> {
        let now = Instant::now();
        let network = &mut self.network;
        let came = self
            .nic
            .receive(&mut |arrival, frame| network.arrive(now, arrival, frame, sink))?;
        Ok(came + self.network.deliver(now, sink))
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.nic.readiness()
    }

    fn wants_write(&self) -> bool {
        self.nic.wants_write()
    }

    fn wake_at(&self) -> Option<Instant> {
        let next = self.network.late.peek().map(|next| next.0.at);
        next.into_iter().chain(self.nic.wake_at()).min()
    }

    fn stats(&self) -> NicStats {
        self.nic.stats()
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// SplitMix64: the same numbers from the same seed for ever.
#[derive(Debug)]
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, and without, 1.
    fn unit(&mut self) -> f64 {
        // 32 bits are plenty, and an f64 has them all.
        let high = u32::try_from(self.next() >> 32).unwrap_or(0);
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }

    /// True in `share` of all cases. A share of 0 uses up no number.
    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.unit() < share
    }

    /// Turns one bit.
    fn damage(&mut self, frame: &mut [u8]) {
        let bits = (frame.len() as u64 * 8).max(1);
        let bit = self.next() % bits;
        let byte = usize::try_from(bit / 8)
            .ok()
            .and_then(|at| frame.get_mut(at));
        if let Some(byte) = byte {
            *byte ^= 1 << (bit % 8);
        }
    }
}

/// How long a line of `rate` bytes per second takes for `bytes`.
fn line_time(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Bytes that may be on their way.
const LATE_BYTES_MAX: usize = 256 << 20;
/// Late frames delivered per call.
const DELIVERED_MAX: usize = 256;
/// Buffers kept to be used again.
const SPARE_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::loopback::{self, Loopback};

    /// An end behind faults, and the other end.
    fn rig(settings: FaultSettings) -> (Loopback, Faults<Loopback>) {
        let (one, two) = loopback::pair(2000).unwrap();
        (one, Faults::new(Box::new(two), settings))
    }

    /// Sends `count` numbered frames of 100 bytes; returns the numbers as they arrive, or `None` for a damaged one.
    fn run(settings: FaultSettings, count: u32) -> (Vec<Option<u32>>, FaultStats) {
        let (mut near, mut far) = rig(settings);
        let to = far.address();
        let mut got = Vec::new();
        let mut sink = |_: Arrival, frame: &mut [u8]| {
            let (number, rest) = frame.split_first_chunk().unwrap();
            let number = u32::from_be_bytes(*number);
            let intact = number < count && *rest == [0x55; 96];
            got.push(intact.then_some(number));
        };
        for number in 0..count {
            let mut head = vec![0x55; 100];
            head[..4].copy_from_slice(&number.to_be_bytes());
            assert_eq!(near.send(&[Outgoing::of_head(to, &head)]).unwrap(), 1);
            far.receive(&mut sink).unwrap();
        }
        while let Some(at) = far.wake_at() {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            far.receive(&mut sink).unwrap();
        }
        (got, far.fault_stats())
    }

    #[test]
    fn nothing_happens_by_default() {
        let (got, stats) = run(FaultSettings::default(), 1000);
        assert!(got.into_iter().eq((0..1000).map(Some)));
        assert_eq!(stats, FaultStats::default());
    }

    #[test]
    fn shares_are_kept_and_a_seed_repeats_itself() {
        let settings = FaultSettings {
            seed: 7,
            drop: 0.1,
            duplicate: 0.05,
            corrupt: 0.02,
            ..FaultSettings::default()
        };
        let (got, stats) = run(settings, 10_000);
        assert!((900..1100).contains(&stats.dropped), "{stats:?}");
        assert!((380..520).contains(&stats.duplicated), "{stats:?}");
        assert!((130..230).contains(&stats.corrupted), "{stats:?}");
        let damaged = got.iter().filter(|number| number.is_none()).count() as u64;
        assert!((stats.corrupted..=2 * stats.corrupted).contains(&damaged));
        let expected = 10_000 - stats.dropped + stats.duplicated;
        assert_eq!(got.len() as u64, expected);
        assert_eq!(run(settings, 10_000), (got.clone(), stats));
        let other = FaultSettings {
            seed: 8,
            ..settings
        };
        assert_ne!(run(other, 10_000).0, got);
    }

    #[test]
    fn overtaken_and_delayed_frames_all_arrive() {
        let settings = FaultSettings {
            seed: 3,
            reorder: 0.1,
            reorder_by: Duration::from_millis(2),
            ..FaultSettings::default()
        };
        let (mut got, stats) = run(settings, 2000);
        assert!(stats.reordered > 100 && stats.delayed == stats.reordered);
        assert!(!got.is_sorted());
        got.sort_unstable();
        assert!(got.into_iter().eq((0..2000).map(Some)));

        let settings = FaultSettings {
            delay: Duration::from_millis(1),
            ..FaultSettings::default()
        };
        let (got, stats) = run(settings, 500);
        assert!(got.into_iter().eq((0..500).map(Some)));
        assert_eq!(stats.delayed, 500);
    }

    #[test]
    fn a_slow_line_loses_what_its_queue_does_not_hold() {
        let settings = FaultSettings {
            rate: Some(10_000),
            queue: Some(1000),
            ..FaultSettings::default()
        };
        // 100 frames at once: about one is on the line, and ten wait.
        let (got, stats) = run(settings, 100);
        assert!(stats.overflowed > 50, "{stats:?}");
        assert_eq!(got.len() as u64, 100 - stats.overflowed);
    }

    #[test]
    fn long_frames_are_swallowed() {
        let settings = FaultSettings {
            mtu: Some(99),
            ..FaultSettings::default()
        };
        let (got, stats) = run(settings, 10);
        assert_eq!((got.len(), stats.too_long), (0, 10));
        let (mut near, mut far) = rig(settings);
        let frame = [0; 99];
        near.send(&[Outgoing::of_head(far.address(), &frame)])
            .unwrap();
        assert_eq!(far.receive(&mut |_, _| {}).unwrap(), 1);
    }
}
