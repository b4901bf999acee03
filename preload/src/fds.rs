//! Descriptor number to what it is, as far as the library cares: one load per call.
//!
//! An entry is 0 for everything that is not ours to touch: files, pipes, sockets to non-peers. It is a
//! hint that is checked under the connection's lock ([`Entry`] carries a generation), because another
//! thread may close the descriptor at any time.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};

/// Descriptors from here on are never accelerated.
pub(crate) const LIMIT: usize = 1 << 20;

static TABLE: [AtomicU64; LIMIT] = [const { AtomicU64::new(0) }; LIMIT];

const TAG_MASK: u64 = 0xf;
const TAG_CONN: u64 = 1;
const TAG_EPOLL: u64 = 2;
const TAG_INTERNAL: u64 = 3;
const TAG_WATCHED: u64 = 4;
const TAG_PLAIN: u64 = 5;

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(u64);

impl Entry {
    /// Nothing of ours.
    pub(crate) const NONE: Self = Self(0);
    /// One of the library's own descriptors.
    pub(crate) const INTERNAL: Self = Self(TAG_INTERNAL);

    /// A connection that is none of ours: its far end is no peer.
    pub(crate) const PLAIN: Self = Self(TAG_PLAIN);

    /// A TCP socket that stands in an epoll set by interest `number` and is not (yet) a connection.
    pub(crate) const fn watched(number: u32) -> Self {
        Self((number as u64) << 4 | TAG_WATCHED)
    }

    /// Connection `index` in its `generation`.
    pub(crate) const fn conn(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | (index as u64) << 4 | TAG_CONN)
    }

    /// Epoll set `index` in its `generation`.
    pub(crate) const fn epoll(index: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | (index as u64) << 4 | TAG_EPOLL)
    }

    /// The connection's index, if it is one.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "28 bits")]
    pub(crate) const fn as_conn(self) -> Option<u32> {
        if self.0 & TAG_MASK == TAG_CONN {
            Some((self.0 as u32) >> 4)
        } else {
            None
        }
    }

    /// The epoll set's index, if it is one.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "28 bits")]
    pub(crate) const fn as_epoll(self) -> Option<u32> {
        if self.0 & TAG_MASK == TAG_EPOLL {
            Some((self.0 as u32) >> 4)
        } else {
            None
        }
    }

    /// Whether it is one of the library's own.
    #[inline(always)]
    pub(crate) const fn is_internal(self) -> bool {
        self.0 & TAG_MASK == TAG_INTERNAL
    }

    /// The interest of a socket in an epoll set that is no connection of ours.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "28 bits")]
    pub(crate) const fn as_watched(self) -> Option<u32> {
        if self.0 & TAG_MASK == TAG_WATCHED {
            Some((self.0 as u32) >> 4)
        } else {
            None
        }
    }

    /// Whether nothing of ours is there.
    #[inline(always)]
    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// What `fd` is.
#[inline(always)]
#[expect(
    clippy::cast_sign_loss,
    reason = "a negative descriptor becomes an index beyond the table"
)]
pub(crate) fn lookup(fd: c_int) -> Entry {
    match TABLE.get(fd as u32 as usize) {
        Some(word) => Entry(word.load(Ordering::Acquire)),
        None => Entry::NONE,
    }
}

/// Sets what `fd` is and returns what it was. Beyond the table nothing is stored.
#[expect(clippy::cast_sign_loss, reason = "as in lookup")]
pub(crate) fn replace(fd: c_int, entry: Entry) -> Entry {
    match TABLE.get(fd as u32 as usize) {
        Some(word) => Entry(word.swap(entry.0, Ordering::SeqCst)),
        None => Entry::NONE,
    }
}

/// Clears `fd` if it still is `entry`; true if this call did it.
#[expect(clippy::cast_sign_loss, reason = "as in lookup")]
pub(crate) fn take(fd: c_int, entry: Entry) -> bool {
    TABLE.get(fd as u32 as usize).is_some_and(|word| {
        word.compare_exchange(entry.0, 0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    })
}

/// Whether `fd` fits the table.
pub(crate) fn fits(fd: c_int) -> bool {
    usize::try_from(fd).is_ok_and(|fd| fd < LIMIT)
}

/// Calls `found` for each descriptor of ours from `first` to `last`, in order.
pub(crate) fn each(first: u32, last: u32, mut found: impl FnMut(c_int, Entry)) {
    // The program's descriptors are low and ours are high: only these two stretches of the table
    // were ever touched.
    let middle = HIGHEST.load(Ordering::Relaxed);
    let ours = OURS_FROM
        .load(Ordering::Relaxed)
        .max(middle.saturating_add(1));
    for (from, to) in [(0, middle), (ours, OURS_TO.load(Ordering::Relaxed))] {
        for fd in from.max(u64::from(first))..=to.min(u64::from(last)) {
            let Ok(fd) = c_int::try_from(fd) else { break };
            let entry = lookup(fd);
            if !entry.is_none() {
                found(fd, entry);
            }
        }
    }
}

/// Highest descriptor of the program that ever had an entry.
static HIGHEST: AtomicU64 = AtomicU64::new(0);
/// Lowest and highest of our own descriptors.
static OURS_FROM: AtomicU64 = AtomicU64::new(u64::MAX);
static OURS_TO: AtomicU64 = AtomicU64::new(0);

/// Sets what `fd` is, remembering how far the table is used; see [`replace`].
pub(crate) fn insert(fd: c_int, entry: Entry) -> Entry {
    if let Ok(number) = u64::try_from(fd) {
        if entry.is_internal() {
            OURS_FROM.fetch_min(number, Ordering::Relaxed);
            OURS_TO.fetch_max(number, Ordering::Relaxed);
        } else {
            HIGHEST.fetch_max(number, Ordering::Relaxed);
        }
    }
    replace(fd, entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_tell_themselves_apart() {
        assert_eq!(Entry::conn(7, 9).as_conn(), Some(7));
        assert_eq!(Entry::conn(7, 9).as_epoll(), None);
        assert_eq!(Entry::epoll(0, 0).as_epoll(), Some(0));
        assert_ne!(Entry::conn(7, 9), Entry::conn(7, 10));
        assert!(Entry::INTERNAL.is_internal() && !Entry::conn(0, 0).is_internal());
        assert!(lookup(-1).is_none());
        assert!(lookup(c_int::MAX).is_none());
    }

    #[test]
    fn an_entry_is_taken_once() {
        let entry = Entry::conn(1, 1);
        insert(1000, entry);
        assert!(!take(1000, Entry::conn(1, 2)));
        assert!(take(1000, entry));
        assert!(!take(1000, entry));
    }
}
