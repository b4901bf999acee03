//! How long a waiter leaves off giving its processor away, after somebody has used what it gave.
//!
//! A waiter that spins yields between two looks (`sched_yield(2)`), so that whoever it waits for can run. Where others
//! want the processor too, such a yield costs their whole slice: milliseconds, for an answer that takes microseconds.
//! So after a yield that took long nobody yields for a while, and whoever would sleeps instead: the scheduler
//! prefers those who wake up to those who have never slept. As long as yields go on to be long, they are tried ever more rarely.

/// The first such time, in nanoseconds.
pub const CROWDED_MIN_NS: u64 = 8_000_000;
/// The longest: what another try costs must not matter.
pub const CROWDED_MAX_NS: u64 = 1_000_000_000;

/// For how many nanoseconds nobody yields after a long yield: `last` time it was so long, and then `quiet` passed
/// without one.
pub const fn crowded_for(last: u64, quiet: u64) -> u64 {
    if quiet > last {
        // Others were away for as long as they were taken to be there: start anew.
        CROWDED_MIN_NS
    } else if last * 2 > CROWDED_MAX_NS {
        CROWDED_MAX_NS
    } else {
        last * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowds_that_stay_are_asked_ever_more_rarely() {
        assert_eq!(crowded_for(0, 1), CROWDED_MIN_NS);
        let mut last = CROWDED_MIN_NS;
        for _ in 0..20 {
            let next = crowded_for(last, 1);
            assert!(next > last || next == CROWDED_MAX_NS);
            last = next;
        }
        assert_eq!(last, CROWDED_MAX_NS);
        assert_eq!(crowded_for(last, last + 1), CROWDED_MIN_NS);
    }
}
