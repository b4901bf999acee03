//! How long a watcher has watched, on a machine that may stand still meanwhile.

use std::time::{Duration, Instant};

/// Time that its owner has been running, for loops that look again and again.
///
/// A virtual machine may be stopped for a minute and go on. To a deadline that minute is the fault of what is being
/// watched, which was stopped as well; here a pause between two looks counts as [`Patience::LOOK`] at most.
#[derive(Debug)]
pub struct Patience {
    spent: Duration,
    looked: Instant,
}

impl Patience {
    /// What one pause between two looks counts for at most.
    pub const LOOK: Duration = Duration::from_secs(1);

    /// None of it is spent yet.
    #[expect(clippy::new_without_default, reason = "it begins now")]
    #[must_use]
    pub fn new() -> Self {
        Self {
            spent: Duration::ZERO,
            looked: Instant::now(),
        }
    }

    /// Whether more than `limit` is spent; call it at each look.
    pub fn is_beyond(&mut self, limit: Duration) -> bool {
        let now = Instant::now();
        self.spent += now.duration_since(self.looked).min(Self::LOOK);
        self.looked = now;
        self.spent > limit
    }
}
