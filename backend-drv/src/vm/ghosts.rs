//! What is kept for programs whose driver has died or left: they may use it still.
//!
//! A driver says what its programs do not use any more. Of one that is gone nobody hears, but whether anybody has its
//! memory is known by its [`Lease`], which is looked at from time to time; and each connection has a word in which its
//! program says that it has let go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::VmId;
use super::connections::Freed;
use super::lease::Lease;
use super::region::{Heap, Region};

/// A member that has left. All of its memory is its own until nobody has it any more.
#[derive(Debug)]
pub struct Ghost {
    /// Whose it was.
    pub vm: VmId,
    /// What it had.
    pub lease: Lease,
    /// Memory for events, which its programs may use among themselves.
    pub heaps: Vec<Heap>,
    /// Blocks of process numbers.
    pub blocks: Vec<u32>,
}

/// A port whose program has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retired {
    /// The region,
    pub tenancy: usize,
    /// and where its event memory lies.
    pub at: u64,
    /// What the program's driver had, if that has gone before the program.
    pub lease: Option<Lease>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Ghosts {
    /// Members.
    pub members: Vec<Ghost>,
    /// Memory of connections.
    pub memory: Vec<Freed>,
    /// Memory of ports that the relay has let go of.
    pub ports: Vec<Retired>,
    next: Option<(Instant, Duration)>,
}

/// What leases have been asked in one look: each is a system call, and a machine may have left thousands of
/// connections behind by the same one.
#[derive(Debug, Default)]
pub struct Asked(BTreeMap<(usize, Lease), bool>);

impl Asked {
    /// Whether anybody has a lease of region `tenancy` still.
    pub fn is_lent(&mut self, tenancy: usize, region: &Region, lease: Lease) -> bool {
        let known = self.0.entry((tenancy, lease));
        *known.or_insert_with(|| region.is_lent(lease))
    }
}

/// Between two looks: at first, and at last.
const SOON: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(10);

impl Ghosts {
    /// There is more: it is looked at soon.
    pub fn note(&mut self) {
        self.next = Some((Instant::now() + SOON, SOON));
    }

    /// Memory of a connection that programs may use.
    pub fn keep(&mut self, freed: Freed) {
        self.memory.push(freed);
        self.next
            .get_or_insert_with(|| (Instant::now() + SOON, SOON));
    }

    /// When to look.
    pub fn next(&self) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    /// Whether it is time to look.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next().is_some_and(|at| at <= now)
    }

    /// After a look: when the next one is. `more`: there are others to look after.
    pub fn rest(&mut self, now: Instant, more: bool) {
        let is_empty =
            !more && self.members.is_empty() && self.memory.is_empty() && self.ports.is_empty();
        let pause = self.next.map_or(SOON, |(_, pause)| (pause * 2).min(LATE));
        self.next = (!is_empty).then(|| (now + pause, pause));
    }

    /// Takes the members that `is_over` says of: their blocks, and the memory for events that nobody has any more.
    pub fn take_over(
        &mut self,
        mut is_over: impl FnMut(VmId, Lease) -> bool,
    ) -> (Vec<u32>, Vec<(VmId, Heap)>) {
        let (mut blocks, mut heaps) = (Vec::new(), Vec::new());
        for index in (0..self.members.len()).rev() {
            let Some(ghost) = self.members.get(index) else {
                continue;
            };
            if !is_over(ghost.vm, ghost.lease) {
                continue;
            }
            let gone = self.members.remove(index);
            blocks.extend(gone.blocks);
            heaps.extend(gone.heaps.into_iter().map(|heap| (gone.vm, heap)));
        }
        (blocks, heaps)
    }

    /// Whether programs that were left behind have a block of process numbers.
    pub fn have(&self, block: u32) -> bool {
        let mut all = self.members.iter();
        all.any(|ghost| ghost.blocks.contains(&block))
    }

    /// What the member had that a machine has left behind last.
    pub fn lease_of(&self, vm: VmId) -> Option<Lease> {
        let mut own = self.members.iter().filter(|ghost| ghost.vm == vm);
        own.next_back().map(|ghost| ghost.lease)
    }

    /// Members that a machine has left behind.
    pub fn count(&self, vm: VmId) -> usize {
        let own = self.members.iter().filter(|ghost| ghost.vm == vm);
        own.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(at: u64) -> Heap {
        Heap { at, bytes: 1 }
    }

    fn ghost(vm: usize, at: u64, block: u32) -> Ghost {
        Ghost {
            vm: VmId(vm),
            lease: Lease::default(),
            heaps: vec![heap(at)],
            blocks: vec![block],
        }
    }

    #[test]
    fn each_ghost_has_its_own_until_it_is_over() {
        let mut ghosts = Ghosts {
            members: vec![ghost(0, 10, 1), ghost(1, 20, 2), ghost(0, 30, 3)],
            ..Ghosts::default()
        };
        assert_eq!((ghosts.count(VmId(0)), ghosts.count(VmId(1))), (2, 1));
        let mut asked = 0;
        let (blocks, heaps) = ghosts.take_over(|_, _| {
            asked += 1;
            asked == 1
        });
        assert_eq!((blocks, heaps), (vec![3], vec![(VmId(0), heap(30))]));
        assert_eq!(ghosts.members[0].heaps, [heap(10)]);
        let (blocks, heaps) = ghosts.take_over(|vm, _| vm == VmId(0));
        assert_eq!((blocks, heaps), (vec![1], vec![(VmId(0), heap(10))]));
        assert_eq!((ghosts.count(VmId(0)), ghosts.count(VmId(1))), (0, 1));
    }

    #[test]
    fn looks_become_rarer_and_end() {
        let mut ghosts = Ghosts::default();
        assert_eq!(ghosts.next(), None);
        ghosts.members.push(ghost(0, 0, 0));
        ghosts.note();
        let mut now = ghosts.next().unwrap();
        for _ in 0..20 {
            assert!(ghosts.is_due(now));
            ghosts.rest(now, false);
            assert!(!ghosts.is_due(now));
            now = ghosts.next().unwrap();
        }
        ghosts.members.clear();
        ghosts.rest(now, true);
        assert!(ghosts.next().is_some());
        ghosts.rest(now, false);
        assert_eq!(ghosts.next(), None);
    }
}
