//! Whether a smaller window makes a queue shorter. If half of it does not, the queue is somebody else's, or no queue: then the
//! window goes back to where it was, and is left alone for a while.

use super::time::{SECOND, Time};

/// For so long after a trial that showed nothing there is no other.
const REST: u64 = SECOND;

/// See the module documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// Window and delay when the window last began to be taken down.
    begun: Option<(u64, u64)>,
    rests_until: Time,
}

impl Trial {
    pub(super) const fn new() -> Self {
        Self {
            begun: None,
            rests_until: Time(0),
        }
    }

    /// Whether the last one showed nothing.
    #[inline]
    pub(super) fn rests(&self, now: Time) -> bool {
        now < self.rests_until
    }

    /// There is no queue any more, or the window was changed for another reason.
    #[inline]
    pub(super) const fn end(&mut self) {
        self.begun = None;
    }

    /// Whether the window is being taken down.
    #[cfg(test)]
    pub(super) const fn is_on(&self) -> bool {
        self.begun.is_some()
    }

    /// Forgets the last one.
    #[cfg(test)]
    pub(super) const fn stop_resting(&mut self) {
        self.rests_until = Time(0);
    }

    /// A round trip took `delay` instead of `base`, with a window of so many bytes. Gives the window to go back to, if taking
    /// it down was in vain.
    pub(super) fn look(&mut self, now: Time, window: u64, base: u64, delay: u64) -> Option<u64> {
        match self.begun {
            None => self.begun = Some((window, delay)),
            // The queue was still growing.
            Some((begun, before)) if delay > before && window > begun / 2 => {
                self.begun = Some((begun, delay));
            }
            Some((begun, before)) if window <= begun / 2 => {
                let queue = before.saturating_sub(base);
                if delay.saturating_sub(base) > queue - queue / 4 {
                    self.begun = None;
                    self.rests_until = now.plus(REST);
                    return Some(begun);
                }
                self.begun = Some((window, delay));
            }
            Some(_) => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_while_it_helps_and_back_where_it_does_not() {
        let mut trial = Trial::new();
        assert_eq!(trial.look(Time(1), 1000, 50, 1050), None);
        assert!(trial.is_on());
        assert_eq!(trial.look(Time(2), 800, 50, 1250), None, "it grew");
        assert_eq!(
            trial.look(Time(3), 500, 50, 900),
            None,
            "shorter by 350 of 1200"
        );
        assert_eq!(trial.look(Time(4), 300, 50, 880), None, "not yet half");
        assert_eq!(trial.look(Time(5), 250, 50, 800), Some(500));
        assert!(!trial.is_on() && trial.rests(Time(4 + REST)));
        assert!(!trial.rests(Time(5 + REST)));
    }
}
