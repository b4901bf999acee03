//! A device without interrupts: nobody hears when it is rung, so memory is looked at from time to time.
//!
//! A producer that wants to wake a context takes its sleeping word back. A context whose word was set at one look and
//! is not at the next is rung here; so is, now and then, one whose word is never seen set, since it may have been set
//! and taken back between two looks. A needless ring wakes nobody who does not sleep.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::Process;

/// Between two looks while there are contexts.
const BUSY: Duration = Duration::from_millis(1);
/// Between two looks at the control ring alone.
const IDLE: Duration = Duration::from_millis(20);
/// Looks after which a context is rung whose word is not set.
const PATIENCE: u8 = 8;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Watch {
    /// Looks since the word was last seen set, or the context was rung.
    seen: HashMap<(Process, u32), u8>,
    looked_at: Option<Instant>,
}

impl Watch {
    /// When to look next.
    pub fn next(&self) -> Instant {
        self.due().unwrap_or_else(Instant::now)
    }

    /// `None`: at once.
    fn due(&self) -> Option<Instant> {
        let pause = if self.seen.is_empty() { IDLE } else { BUSY };
        Some(self.looked_at? + pause)
    }

    /// It is time to look. False: not yet.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.due().is_some_and(|due| now < due) {
            return false;
        }
        self.looked_at = Some(now);
        true
    }

    /// A context is looked at from now on.
    pub fn add(&mut self, process: Process, context: u32) {
        self.seen.insert((process, context), 0);
    }

    /// A program has left.
    pub fn remove(&mut self, process: Process) {
        self.seen.retain(|(owner, _), _| *owner != process);
    }

    /// The contexts to be rung. `is_asleep` tells whether a context's word is set.
    pub fn look(&mut self, is_asleep: impl Fn(Process, u32) -> bool) -> Vec<(Process, u32)> {
        let mut rung = Vec::new();
        for (&(process, context), looks) in &mut self.seen {
            if is_asleep(process, context) {
                *looks = PATIENCE - 1;
                continue;
            }
            *looks += 1;
            if *looks >= PATIENCE {
                *looks = 0;
                rung.push((process, context));
            }
        }
        rung
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Process = Process(1);

    #[test]
    fn a_word_that_was_taken_back_is_answered_at_once() {
        let mut watch = Watch::default();
        watch.add(ONE, 3);
        assert_eq!(watch.look(|_, _| true), []);
        assert_eq!(watch.look(|_, _| false), [(ONE, 3)]);
        assert_eq!(watch.look(|_, _| false), []);
    }

    #[test]
    fn a_word_that_is_never_seen_set_is_answered_now_and_then() {
        let mut watch = Watch::default();
        watch.add(ONE, 3);
        let looks = 1..=3 * PATIENCE;
        let rung = looks
            .filter(|_| !watch.look(|_, _| false).is_empty())
            .count();
        assert_eq!(rung, 3);
        watch.remove(ONE);
        assert!(watch.look(|_, _| false).is_empty());
    }

    #[test]
    fn without_contexts_it_looks_rarely() {
        let mut watch = Watch::default();
        let now = Instant::now();
        assert!(watch.is_due(now + BUSY));
        assert!(!watch.is_due(now + 2 * BUSY));
        watch.add(ONE, 0);
        assert!(watch.is_due(now + 3 * BUSY));
    }
}
