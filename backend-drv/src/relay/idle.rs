//! How the engine waits: it goes on looking for a while after something has happened, giving the processor to
//! others in between, and then sleeps until a NIC, a doorbell or the event loop wakes it.
//!
//! The engine shares its processors with the programs that it serves, so it never pauses without yielding. How long
//! it looks adapts to what comes of it: it doubles when something came, and halves when nothing did. Two engines that
//! sleep answer each other so late that a short look never pays, so now and then there is a long one. Where others
//! want the processor it does without ([`rdma_core::crowd`]): one look that costs a slice of theirs is as long as
//! hundreds of messages.
//!
//! Programs in guests are worth a longer look. Their doorbell is an exit from the guest, ours an interrupt into it, and
//! an answer out of a guest takes its time.

use std::time::{Duration, Instant};

use rdma_core::crowd::crowded_for;

/// Longest time of looking.
const WINDOW_MAX: Duration = Duration::from_micros(100);
/// The same, where programs in guests are served.
const WINDOW_MAX_GUESTS: Duration = Duration::from_micros(1000);
/// Below this the engine sleeps at once.
const WINDOW_MIN: Duration = Duration::from_micros(4);
/// With the window shut, one wait in so many looks for as long as any, to notice better times.
const PROBE_EVERY: u32 = 24;
/// A yield that takes so long has lost the processor to somebody who works.
const YIELD_LONG: Duration = Duration::from_micros(250);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Idle {
    window: Duration,
    window_max: Duration,
    since: Option<Instant>,
    waits: u32,
    /// This look is one of those that are made although looking did not pay.
    probes: bool,
    /// Until then nobody yields, and for how long that is.
    crowded_until: Option<Instant>,
    crowded_for: u64,
    /// Times that looking paid, and that it did not.
    pub(super) won: u64,
    pub(super) slept: u64,
}

impl Idle {
    pub(super) const fn new() -> Self {
        Self {
            window: WINDOW_MAX,
            window_max: WINDOW_MAX,
            since: None,
            waits: 0,
            probes: false,
            crowded_until: None,
            crowded_for: 0,
            won: 0,
            slept: 0,
        }
    }

    /// Whether programs in guests are served.
    pub(super) const fn set_guests(&mut self, guests: bool) {
        self.window_max = if guests {
            WINDOW_MAX_GUESTS
        } else {
            WINDOW_MAX
        };
    }

    /// Something was done in this round.
    pub(super) fn busy(&mut self) {
        if self.since.take().is_some() {
            self.won += 1;
            self.probes = false;
            self.window = (self.window * 2).clamp(WINDOW_MIN, self.window_max);
        }
    }

    /// Nothing was done. True: sleep now. Otherwise the processor was given to others, and it is time to look
    /// again.
    pub(super) fn idle(&mut self) -> bool {
        let now = Instant::now();
        if self.crowded_until.is_some_and(|until| now < until) {
            self.since = None;
            return true;
        }
        let since = match self.since {
            Some(since) => since,
            None => {
                self.waits = self.waits.wrapping_add(1);
                if self.window < WINDOW_MIN {
                    if !self.waits.is_multiple_of(PROBE_EVERY) {
                        return true;
                    }
                    self.window = self.window_max;
                    self.probes = true;
                }
                self.since = Some(now);
                now
            }
        };
        if now.duration_since(since) >= self.window {
            self.shrink();
            return true;
        }
        rustix::thread::sched_yield();
        let back = Instant::now();
        if back.duration_since(now) > YIELD_LONG {
            self.note_crowd(back);
            self.shrink();
            return true;
        }
        false
    }

    fn note_crowd(&mut self, now: Instant) {
        let quiet = self
            .crowded_until
            .map_or(Duration::MAX, |until| now.saturating_duration_since(until));
        let quiet = u64::try_from(quiet.as_nanos()).unwrap_or(u64::MAX);
        self.crowded_for = crowded_for(self.crowded_for, quiet);
        self.crowded_until = Some(now + Duration::from_nanos(self.crowded_for));
    }

    fn shrink(&mut self) {
        self.since = None;
        self.window = if std::mem::take(&mut self.probes) {
            Duration::ZERO
        } else {
            self.window / 2
        };
    }

    /// The engine has slept.
    pub(super) fn woken(&mut self) {
        self.since = None;
        self.slept += 1;
    }
}
