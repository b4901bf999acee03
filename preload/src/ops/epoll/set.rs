//! Epoll sets of the program: their table, and the descriptors that name them.

use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::interest::{INTEREST_NUMBERS, INTEREST_TABLE};
use super::membership::drop_interest;
use crate::conn::Numbers;
use crate::fds::{self, Entry};
use crate::{contexts, control};

/// Epoll sets with TCP sockets in them.
const SETS: usize = 1024;

/// [`Set::blind`]: some connection has more waiters than it can name.
pub(super) const ALWAYS_BLIND: u32 = u32::MAX;

/// An epoll set of the program.
#[derive(Debug)]
pub(crate) struct Set {
    pub(super) generation: AtomicU32,
    pub(super) epfd: AtomicI32,
    pub(super) refs: AtomicU32,
    pub(super) context: AtomicU32,
    pub(super) shared: AtomicU32,
    pub(super) polled: AtomicU32,
    /// In a guest: the session (index + 1) whose daemon's line is in the kernel set.
    pub(super) line: AtomicU32,
    /// Registrations that are ours.
    pub interests: AtomicU32,
    /// Not 0: a session (index + 1) whose peers may not have the event channel's doorbell yet.
    pub blind: AtomicU32,
    /// Numbers the calls that wait, so that none reports an interest twice.
    pub calls: AtomicU32,
    /// Threads sleeping in the kernel on the set.
    pub sleepers: AtomicU32,
    pub(super) busy: AtomicU32,
    /// Ready list: first and last interest, number + 1; 0 none.
    pub(super) first: AtomicU32,
    pub(super) last: AtomicU32,
}

pub(super) static SET_TABLE: [Set; SETS] = [const {
    Set {
        generation: AtomicU32::new(0),
        epfd: AtomicI32::new(0),
        refs: AtomicU32::new(0),
        context: AtomicU32::new(0),
        shared: AtomicU32::new(0),
        polled: AtomicU32::new(0),
        line: AtomicU32::new(0),
        interests: AtomicU32::new(0),
        blind: AtomicU32::new(0),
        calls: AtomicU32::new(0),
        sleepers: AtomicU32::new(0),
        busy: AtomicU32::new(0),
        first: AtomicU32::new(0),
        last: AtomicU32::new(0),
    }
}; SETS];
pub(super) static SET_NUMBERS: Numbers<SETS> = Numbers::new();

/// Set `index`.
#[inline]
pub(super) fn set_of(index: u32) -> Option<&'static Set> {
    SET_TABLE.get(index as usize)
}

/// A set was created by the program.
pub(crate) fn create(epfd: c_int) {
    if epfd >= 0 && crate::config::config().is_some() {
        make_set(epfd);
    }
}

/// The set behind `epfd`, entered now if it is new to us. `None`: it is no epoll set, or there are
/// too many.
pub(crate) fn make_set(epfd: c_int) -> Option<&'static Set> {
    if let Some(index) = fds::lookup(epfd).as_epoll() {
        return set_of(index);
    }
    if !fds::fits(epfd) || !fds::lookup(epfd).is_none() {
        return None;
    }
    let number = SET_NUMBERS.take()?;
    let set = set_of(number)?;
    set.epfd.store(epfd, Ordering::Relaxed);
    set.refs.store(1, Ordering::Relaxed);
    for word in [
        &set.context,
        &set.shared,
        &set.polled,
        &set.line,
        &set.interests,
        &set.blind,
        &set.sleepers,
        &set.first,
        &set.last,
    ] {
        word.store(0, Ordering::Relaxed);
    }
    if let Some(arena) = control::arena()
        && let Some(word) = arena.header().shared_sets.get(number as usize / 64)
    {
        word.fetch_and(!(1 << (number % 64)), Ordering::SeqCst);
    }
    fds::insert(
        epfd,
        Entry::epoll(number, set.generation.load(Ordering::Relaxed)),
    );
    Some(set)
}

/// A descriptor of a set was closed.
pub(crate) fn forget_set(epfd: c_int, index: u32) {
    let Some(set) = set_of(index) else { return };
    if set.refs.fetch_sub(1, Ordering::AcqRel) > 1 {
        if set.epfd() == epfd {
            // Another descriptor of the same set serves from now on.
            fds::each(0, u32::MAX, |fd, entry| {
                if entry.as_epoll() == Some(index) {
                    set.epfd.store(fd, Ordering::Relaxed);
                }
            });
        }
        return;
    }
    for interest in INTEREST_TABLE.iter().take(INTEREST_NUMBERS.used() as usize) {
        if interest.live.load(Ordering::Relaxed) != 0
            && interest.set.load(Ordering::Relaxed) == index
        {
            drop_interest(interest);
        }
    }
    if let Some(context) = set.context() {
        contexts::give_back(context);
    }
    set.generation.fetch_add(1, Ordering::Relaxed);
    SET_NUMBERS.give(index);
}

/// Another descriptor of a set.
pub(crate) fn share_fd(index: u32) {
    if let Some(set) = set_of(index) {
        set.refs.fetch_add(1, Ordering::AcqRel);
    }
}

impl Set {
    pub(super) fn index(&self) -> u32 {
        let offset = core::ptr::from_ref(self).addr() - SET_TABLE.as_ptr().addr();
        u32::try_from(offset / size_of::<Self>()).unwrap_or(u32::MAX)
    }

    /// The program's descriptor.
    pub(crate) fn epfd(&self) -> c_int {
        self.epfd.load(Ordering::Relaxed)
    }

    /// The set's waiting context.
    pub(crate) fn context(&self) -> Option<u16> {
        u16::try_from(self.context.load(Ordering::Acquire).checked_sub(1)?).ok()
    }
}
