//! How long a waiter spins before it sleeps.
//!
//! A *window* grows while waits end inside it and shrinks to nothing while they do not. Once it is shut, few waits spin at
//! all, to notice better times: *short* probes find a far end that answers at once, *long* ones a far end that sleeps.
//! Without the long ones two ends that both sleep go on like that for ever, however little they have to do: each answer
//! takes a wake-up, and no short probe lasts that long. A long probe finds the answer; from then on this end is awake
//! when the next one comes, so that the far end is answered at once, and its probes pay, too.

/// The window at first, in nanoseconds.
pub const WINDOW_FIRST_NS: u32 = 20_000;
/// Below this the window is shut.
const WINDOW_MIN_NS: u32 = 500;
/// While the window is shut, one wait in so many is a short probe.
const SHORT_EVERY: u32 = 32;
/// How long that spins.
const SHORT_NS: u32 = 3_000;
/// While the window is shut, one wait in so many is a long probe.
const LONG_EVERY: u32 = 256;
/// How long that spins: a wake-up on another processor, and some work.
const LONG_NS: u32 = 60_000;

/// One wait that spins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spin {
    /// For how long at most, in nanoseconds.
    pub ns: u32,
    is_long_probe: bool,
}

impl Spin {
    /// A wait with this window, never longer than `cap` (both in nanoseconds); `None`: it does not spin. Before this one, `wait`
    /// waits have found the window shut; that matters only while it is.
    #[must_use]
    pub fn new(window: u32, wait: u32, cap: u32) -> Option<Self> {
        let (ns, is_long_probe) = if window != 0 {
            (window, false)
        } else if wait.is_multiple_of(LONG_EVERY) {
            (LONG_NS, true)
        } else if wait.is_multiple_of(SHORT_EVERY) {
            (SHORT_NS, false)
        } else {
            return None;
        };
        Some(Self {
            ns: ns.min(cap),
            is_long_probe,
        })
    }

    /// The window after what was awaited came meanwhile.
    #[must_use]
    pub fn won(self, cap: u32) -> u32 {
        let grown = self
            .ns
            .saturating_add(self.ns / 4)
            .saturating_add(WINDOW_MIN_NS);
        grown.min(cap)
    }

    /// The window after it did not come.
    #[must_use]
    pub const fn lost(self) -> u32 {
        let shrunk = self.ns - self.ns / 4;
        if self.is_long_probe || shrunk < WINDOW_MIN_NS {
            0
        } else {
            shrunk
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: u32 = 50_000;

    /// An end of a conversation.
    struct End {
        window: u32,
        waits: u32,
        work: u32,
        asleep: bool,
    }

    impl End {
        fn sleeper(work: u32) -> Self {
            Self {
                window: 0,
                waits: 1,
                work,
                asleep: true,
            }
        }

        /// Waits for what comes after `ns`.
        fn wait(&mut self, ns: u32) {
            let spin = Spin::new(self.window, self.waits, CAP);
            if self.window == 0 {
                self.waits += 1;
            }
            let won = spin.is_some_and(|spin| ns <= spin.ns);
            if let Some(spin) = spin {
                self.window = if won { spin.won(CAP) } else { spin.lost() };
            }
            self.asleep = !won;
        }
    }

    /// Messages until neither sleeps any more; `None` if that never happens.
    fn until_awake(work: [u32; 2], wake_up: u32) -> Option<usize> {
        let mut ends = work.map(End::sleeper);
        (0..10_000).find(|i| {
            let [first, second] = &mut ends;
            let (asks, answers) = if i % 2 == 0 {
                (first, second)
            } else {
                (second, first)
            };
            let woken = if answers.asleep { wake_up } else { 0 };
            asks.wait(woken + answers.work);
            ends.iter().all(|end| !end.asleep)
        })
    }

    #[test]
    fn two_ends_that_sleep_find_each_other_awake() {
        for work in [[1_000, 1_000], [5_000, 2_000], [2_000, 12_000]] {
            let messages = until_awake(work, 35_000).expect("they sleep for good");
            assert!(messages <= 4 * LONG_EVERY as usize, "{messages}");
        }
    }

    #[test]
    fn answers_that_take_long_are_slept_for() {
        let mut end = End::sleeper(0);
        end.window = CAP;
        (0..64).for_each(|_| end.wait(1_000_000));
        assert_eq!(end.window, 0);
        let mut spun = 0;
        for _ in 0..LONG_EVERY {
            spun += Spin::new(end.window, end.waits, CAP).map_or(0, |spin| spin.ns);
            end.wait(1_000_000);
        }
        // On average, of a wait of a millisecond.
        assert!(spun / LONG_EVERY < 1_000, "{spun}");
    }

    #[test]
    fn nobody_spins_longer_than_allowed() {
        for wait in 0..2 * LONG_EVERY {
            for window in [0, 700, CAP] {
                let spin = Spin::new(window, wait, 1_000);
                assert!(spin.is_none_or(|spin| spin.ns <= 1_000 && spin.won(1_000) <= 1_000));
            }
        }
    }
}
