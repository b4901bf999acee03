//! How often clients may cause a line in the log.

use std::time::{Duration, Instant};

/// Lines at once.
const BURST: u32 = 20;
/// Time that buys one more line.
const PER_LINE: Duration = Duration::from_millis(200);

/// A budget of lines.
#[derive(Debug)]
pub struct Throttle {
    left: u32,
    filled: Instant,
    suppressed: u64,
}

impl Throttle {
    /// A full budget.
    pub const fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            filled: now,
            suppressed: 0,
        }
    }

    /// Whether a line may be written now, and how many were not since the last one.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.filled).as_millis() / PER_LINE.as_millis();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.filled = now;
        }
        if self.left == 0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_trickle() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let written = (0..10_000)
            .filter(|_| throttle.allow(start).is_some())
            .count();
        assert_eq!(written, 20);
        let later = start + Duration::from_millis(500);
        assert_eq!(throttle.allow(later), Some(9_980));
        assert_eq!(throttle.allow(later), Some(0));
        assert_eq!(throttle.allow(later), None);
    }
}
