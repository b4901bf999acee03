//! What is to be tried again after a while, ever more rarely.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Tries still to be made, by what they are about.
#[derive(Debug)]
pub(super) struct Agenda<K> {
    pauses_ms: &'static [u64],
    /// The last pause is repeated.
    endless: bool,
    by_time: BTreeSet<(Instant, K)>,
    taken: HashMap<K, usize>,
}

impl<K: Copy + Ord + Hash> Agenda<K> {
    /// Nothing to do. After the last of the pauses a thing is given up.
    pub(super) fn new(pauses_ms: &'static [u64]) -> Self {
        Self {
            pauses_ms,
            endless: false,
            by_time: BTreeSet::new(),
            taken: HashMap::new(),
        }
    }

    /// As [`Agenda::new`], but nothing is given up.
    pub(super) fn endless(pauses_ms: &'static [u64]) -> Self {
        Self {
            endless: true,
            ..Self::new(pauses_ms)
        }
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Whether `what` is under way.
    pub(super) fn has(&self, what: K) -> bool {
        self.taken.contains_key(&what)
    }

    /// Pauses that `what` has taken.
    pub(super) fn pauses_of(&self, what: K) -> usize {
        self.taken.get(&what).copied().unwrap_or(0)
    }

    /// When the next try is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Something to be tried now.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let first = self.by_time.first().filter(|(at, _)| *at <= now)?;
        let what = first.1;
        self.by_time.pop_first();
        Some(what)
    }

    /// Has `what` tried again after its next pause. False if that has been done often enough.
    pub(super) fn again(&mut self, what: K, now: Instant) -> bool {
        let taken = self.taken.entry(what).or_default();
        let last = self.pauses_ms.last().filter(|_| self.endless);
        let Some(pause) = self.pauses_ms.get(*taken).or(last) else {
            return false;
        };
        *taken += 1;
        self.by_time
            .insert((now + Duration::from_millis(*pause), what));
        true
    }

    /// There was progress: the next pause is the first one again.
    pub(super) fn encourage(&mut self, what: K) {
        if let Some(taken) = self.taken.get_mut(&what) {
            *taken = 0;
        }
    }

    /// `what` is over; it is not waiting for a pause to pass.
    pub(super) fn done(&mut self, what: K) {
        self.taken.remove(&what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES_MS: [u64; 3] = [1, 4, 20];

    #[test]
    fn things_are_tried_a_few_times() {
        let mut agenda = Agenda::new(&PAUSES_MS);
        let mut now = Instant::now();
        for tries in 0..PAUSES_MS.len() {
            assert_eq!(agenda.pauses_of(1), tries);
            assert!(agenda.again(1, now), "{tries}");
            assert_eq!(agenda.pop_due(now), None);
            now = agenda.next().unwrap();
            assert_eq!(agenda.pop_due(now), Some(1));
        }
        assert!(!agenda.again(1, now));
        assert!(agenda.again(2, now));
        agenda.done(1);
        assert!(!agenda.is_empty() && agenda.has(2) && !agenda.has(1));
        agenda.done(2);
        assert!(agenda.is_empty());
    }

    #[test]
    fn an_endless_agenda_repeats_its_last_pause() {
        let mut agenda = Agenda::endless(&PAUSES_MS);
        let now = Instant::now();
        for _ in 0..5 {
            assert!(agenda.again(1, now));
            let due = agenda.next().unwrap();
            assert_eq!(agenda.pop_due(due), Some(1));
        }
        assert!(agenda.again(1, now));
        assert_eq!(agenda.next(), Some(now + Duration::from_millis(20)));
        let due = agenda.next().unwrap();
        agenda.pop_due(due);
        agenda.encourage(1);
        assert!(agenda.again(1, now));
        assert_eq!(agenda.next(), Some(now + Duration::from_millis(1)));
    }
}
