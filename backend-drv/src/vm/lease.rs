//! Who may have the memory of a region still.
//!
//! Each member gets the file by an open file description of its own, with a lock in it. Its driver hands that on to its
//! programs, and mappings hold it as well, so the kernel lets go of the lock when the last of them all is gone, and not
//! before: also if the driver was killed and nobody is left who could say so.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

/// What a member has been given. Locks stand at places of the file that no memory has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Lease(u64);

/// Larger than any region.
const FIRST: u64 = 1 << 60;
/// Members that a daemon can have, one after the other, and seconds that are told apart.
const PER_DAEMON_LOG2: u32 = 20;
const PER_DAEMON: u64 = 1 << (59 - PER_DAEMON_LOG2);
/// Numbers that are tried for one member.
const TRIES: u32 = 64;
/// One that nobody can be asked about: it never ends.
pub(super) const ENDLESS: Lease = Lease(0);

/// The leases of one region.
#[derive(Debug)]
pub(super) struct Leases {
    memory: Arc<OwnedFd>,
    last: u64,
    /// Somebody has the memory without a lock.
    endless: bool,
}

impl Leases {
    pub(super) fn of(memory: &Arc<OwnedFd>) -> Self {
        // What a daemon before us has given out has other numbers.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.map_or(0, |since| since.as_secs());
        Self {
            memory: Arc::clone(memory),
            last: FIRST + ((seconds % PER_DAEMON) << PER_DAEMON_LOG2),
            endless: false,
        }
    }

    /// The memory for one more member.
    pub(super) fn lend(&mut self) -> (Arc<OwnedFd>, Lease) {
        let mut tries = 0;
        let error = loop {
            self.last += 1;
            tries += 1;
            let lease = Lease(self.last);
            match self.locked(lease) {
                Ok(memory) => return (Arc::new(memory), lease),
                // A daemon of the same second has given it out.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES => {}
                Err(error) => break error,
            }
        };
        tracing::warn!(%error, "what a member has will not be used again");
        self.endless = true;
        (Arc::clone(&self.memory), ENDLESS)
    }

    /// A daemon before us has lent something.
    pub(super) fn note(&mut self, lease: Lease) {
        self.endless |= lease == ENDLESS;
    }

    /// Whether somebody has the memory without a lock.
    pub(super) const fn is_endless(&self) -> bool {
        self.endless
    }

    fn locked(&self, lease: Lease) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.memory.as_raw_fd());
        let own = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let wanted = lock(Some(lease));
        fcntl(own.as_fd(), FcntlArg::F_OFD_SETLK(&wanted))?;
        Ok(own)
    }

    /// Whether anybody has it still.
    pub(super) fn is_lent(&self, lease: Lease) -> bool {
        lease == ENDLESS || self.is_locked(lock(Some(lease)))
    }

    /// Whether anybody has any.
    pub(super) fn any(&self) -> bool {
        self.endless || self.is_locked(lock(None))
    }

    /// Whether anybody has another than these.
    pub(super) fn any_but(&self, known: &BTreeSet<Lease>) -> bool {
        let mut ends = known.iter().map(|lease| lease.0).collect::<Vec<_>>();
        ends.push(u64::MAX >> 1);
        let mut first = FIRST;
        let mut between = |end: u64| {
            let mut wanted = lock(None);
            wanted.l_start = first.cast_signed();
            wanted.l_len = end.saturating_sub(first).cast_signed();
            let is_empty = end <= first;
            first = first.max(end.saturating_add(1));
            // A length of 0 is all that follows.
            !is_empty && self.is_locked(wanted)
        };
        self.endless || ends.into_iter().any(&mut between)
    }

    fn is_locked(&self, mut wanted: libc::flock) -> bool {
        let asked = fcntl(self.memory.as_fd(), FcntlArg::F_OFD_GETLK(&mut wanted));
        asked.is_err() || i32::from(wanted.l_type) != libc::F_UNLCK
    }
}

fn short(value: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(value).unwrap_or(0)
}

/// A lock of one lease, or of all.
fn lock(lease: Option<Lease>) -> libc::flock {
    libc::flock {
        l_type: short(libc::F_WRLCK),
        l_whence: short(libc::SEEK_SET),
        l_start: lease.map_or(FIRST, |lease| lease.0).cast_signed(),
        l_len: lease.is_some().into(),
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use crate::shared::sealed_memory;

    #[test]
    fn a_lease_lasts_as_long_as_a_mapping() {
        let memory = Arc::new(sealed_memory("region", 4096).unwrap());
        let mut leases = Leases::of(&memory);
        assert!(!leases.any());
        let (first, one) = leases.lend();
        let (second, other) = leases.lend();
        assert!(leases.is_lent(one) && leases.is_lent(other) && leases.any());
        let copy = first.try_clone().unwrap();
        drop(first);
        assert!(leases.is_lent(one), "a copy is there");
        let mapping = Mapping::of_sealed(&copy, 4096).unwrap();
        drop(copy);
        assert!(leases.is_lent(one), "it is mapped");
        drop(mapping);
        assert!(!leases.is_lent(one));
        assert!(leases.is_lent(other) && leases.any());
        // The next daemon knows as well.
        let next = Leases::of(&memory);
        assert!(next.is_lent(other));
        drop(second);
        assert!(!next.is_lent(other) && !next.any());
    }

    #[test]
    fn others_are_told_from_those_that_are_known() {
        let memory = Arc::new(sealed_memory("region", 4096).unwrap());
        let mut leases = Leases::of(&memory);
        let lent: Vec<_> = (0..3).map(|_| leases.lend()).collect();
        let all: BTreeSet<Lease> = lent.iter().map(|(_, lease)| *lease).collect();
        assert!(!leases.any_but(&all));
        for (_, lease) in &lent {
            let mut some = all.clone();
            some.remove(lease);
            assert!(leases.any_but(&some), "{lease:?}");
        }
        assert!(leases.any_but(&BTreeSet::new()));
        drop(lent);
        assert!(!leases.any_but(&BTreeSet::new()) && !leases.any_but(&all));
    }

    #[test]
    fn daemons_of_one_second_give_out_different_leases() {
        let memory = Arc::new(sealed_memory("region", 4096).unwrap());
        let mut leases = Leases::of(&memory);
        let start = leases.last;
        let lent: Vec<_> = (0..3).map(|_| leases.lend()).collect();
        let mut next = Leases::of(&memory);
        next.last = start;
        let (own, lease) = next.lend();
        assert!(lease != ENDLESS && lent.iter().all(|(_, other)| *other != lease));
        assert!(!next.is_endless());
        drop(own);
        assert!(!next.is_lent(lease));
        drop(lent);
        assert!(!next.any());
    }

    #[test]
    fn a_member_that_takes_the_locks_of_others_keeps_its_region_only() {
        let memory = Arc::new(sealed_memory("region", 4096).unwrap());
        let mut leases = Leases::of(&memory);
        let (member, _) = leases.lend();
        fcntl(member.as_fd(), FcntlArg::F_OFD_SETLK(&lock(None))).unwrap();
        let (_, lease) = leases.lend();
        assert_eq!(lease, ENDLESS);
        drop(member);
        assert!(leases.is_lent(lease) && leases.any());
    }
}
