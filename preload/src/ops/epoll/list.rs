//! A set's ready list: the interests that a wait has to look at.

use core::sync::atomic::Ordering;

use super::interest::{INTEREST_TABLE, Interest};
use super::set::Set;
use crate::tls;

impl Set {
    /// Runs `work` alone; `None` in a signal handler that interrupted the owner.
    pub(super) fn locked<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let me = tls::token();
        loop {
            match self
                .busy
                .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(owner) if owner == me => return None,
                Err(_) => rustix::thread::sched_yield(),
            }
        }
        let result = work();
        self.busy.store(0, Ordering::Release);
        Some(result)
    }

    /// Puts an interest at the end of the ready list, unless it is there.
    pub(crate) fn push(&self, interest: &'static Interest) {
        self.push_for(interest, false);
    }

    /// As [`Set::push`]; `by_bit`: for a doorbell's bit alone, which is an edge only if there is something new.
    pub(super) fn push_for(&self, interest: &'static Interest, by_bit: bool) {
        self.locked(|| {
            if interest.listed.swap(1, Ordering::Relaxed) != 0 {
                if !by_bit {
                    interest.by_bit.store(0, Ordering::Relaxed);
                }
                return;
            }
            interest.by_bit.store(by_bit.into(), Ordering::Relaxed);
            interest.next.store(0, Ordering::Relaxed);
            let number = interest.number() + 1;
            match self.last.swap(number, Ordering::Relaxed).checked_sub(1) {
                Some(last) => {
                    if let Some(last) = INTEREST_TABLE.get(last as usize) {
                        last.next.store(number, Ordering::Relaxed);
                    }
                }
                None => self.first.store(number, Ordering::Relaxed),
            }
        });
    }

    /// Takes the first interest off the ready list; true if it was there for a doorbell's bit alone.
    pub(super) fn pop(&self) -> Option<(&'static Interest, bool)> {
        self.locked(|| {
            let first = self.first.load(Ordering::Relaxed).checked_sub(1)?;
            let interest = INTEREST_TABLE.get(first as usize)?;
            let next = interest.next.load(Ordering::Relaxed);
            self.first.store(next, Ordering::Relaxed);
            if next == 0 {
                self.last.store(0, Ordering::Relaxed);
            }
            interest.listed.store(0, Ordering::Relaxed);
            // Read here: another thread's next bit must not become the reason of this look.
            Some((interest, interest.by_bit.load(Ordering::Relaxed) != 0))
        })
        .flatten()
    }

    /// Whether the ready list is empty.
    pub(crate) fn is_quiet(&self) -> bool {
        self.first.load(Ordering::Relaxed) == 0
    }
}

/// Takes an interest out of the middle of the ready list; under the set's lock.
pub(super) fn unlist(set: &Set, interest: &Interest) {
    if interest.listed.swap(0, Ordering::Relaxed) == 0 {
        return;
    }
    let target = interest.number() + 1;
    let next = interest.next.load(Ordering::Relaxed);
    let mut before = 0;
    let mut at = set.first.load(Ordering::Relaxed);
    while at != 0 && at != target {
        before = at;
        at = INTEREST_TABLE
            .get(at as usize - 1)
            .map_or(0, |i| i.next.load(Ordering::Relaxed));
    }
    if at == 0 {
        return;
    }
    match INTEREST_TABLE.get((before as usize).wrapping_sub(1)) {
        Some(previous) if before != 0 => previous.next.store(next, Ordering::Relaxed),
        _ => set.first.store(next, Ordering::Relaxed),
    }
    if set.last.load(Ordering::Relaxed) == target {
        set.last.store(before, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::ops::epoll::set::set_of;

    /// One thread takes edges of the kernel's off the list while another one enters what doorbells say.
    #[test]
    fn another_threads_bit_is_not_the_reason_of_a_look() {
        let (set, interest) = (set_of(7).unwrap(), &INTEREST_TABLE[7]);
        let (begin, over) = (Barrier::new(2), AtomicBool::new(false));
        let mut lost = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                while !over.load(Ordering::Relaxed) {
                    set.push_for(interest, true);
                }
            });
            begin.wait();
            for _ in 0..1_000_000 {
                // Also if a bit has put it on the list before.
                set.push(interest);
                lost += u32::from(set.pop().is_none_or(|(_, by_bit)| by_bit));
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(lost, 0, "edges looked at for a bit");
    }
}
