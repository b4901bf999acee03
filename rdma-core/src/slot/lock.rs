//! Who works on a direction: its lock, and the count of threads inside the kernel.

use crate::sync::{AtomicU32, Ordering, barrier_after_rmw, full_barrier};

/// The lock of one direction: the owner's thread token, 0 when free.
#[repr(transparent)]
#[derive(Debug)]
pub struct DirectionLock(pub(super) AtomicU32);

/// Set in the lock word when somebody sleeps on it.
const CONTENDED: u32 = 1 << 31;

impl DirectionLock {
    /// The owner word of the daemon, which no thread's number can be.
    pub const DAEMON: u32 = 0x7fff_ffff;

    /// The owner word of a lock whose holder has left it by longjmp: nobody frees it any more.
    pub const ABANDONED: u32 = 0x7fff_fffe;

    /// A free lock.
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Takes the lock for `owner` (not 0, below 2^31).
    ///
    /// # Errors
    /// The present owner, which may be the caller itself (a signal handler).
    #[inline(always)]
    pub fn try_lock(&self, owner: u32) -> Result<(), u32> {
        match self
            .0
            .compare_exchange(0, owner, Ordering::Acquire, Ordering::Relaxed)
        {
            Ok(_) => Ok(()),
            Err(word) => Err(word & !CONTENDED),
        }
    }

    /// Marks the lock as contended before a sleep. Returns the word to sleep on (by a futex, which
    /// compares it once more), or `None` if the lock has changed hands: try again.
    pub fn contend(&self) -> Option<u32> {
        let word = self.0.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        if word & CONTENDED != 0 {
            return Some(word);
        }
        let marked = word | CONTENDED;
        self.0
            .compare_exchange(word, marked, Ordering::Relaxed, Ordering::Relaxed)
            .ok()
            .map(|_| marked)
    }

    /// Takes the lock from `owner`, who is dead, for `new`. False: it has changed hands.
    pub fn seize(&self, owner: u32, new: u32) -> bool {
        // Sleepers may be left: the mark stays.
        [owner, owner | CONTENDED].into_iter().any(|word| {
            self.0
                .compare_exchange(word, new | CONTENDED, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Whether `owner` holds the lock.
    pub fn is_held_by(&self, owner: u32) -> bool {
        self.0.load(Ordering::Relaxed) & !CONTENDED == owner
    }

    /// Frees the lock; true if the sleepers must be woken, and then *all* of them: who takes the lock
    /// next does not know that others still sleep. The exchange is a full barrier on x86-64.
    #[inline(always)]
    pub fn unlock(&self) -> bool {
        self.0.swap(0, Ordering::SeqCst) & CONTENDED != 0
    }

    /// Frees the lock if `owner` holds it, for an owner who cannot rely on that: the slot may be another
    /// connection's by now. The rest is as in [`DirectionLock::unlock`].
    pub fn unlock_by(&self, owner: u32) -> bool {
        let free = |word| {
            self.0
                .compare_exchange(word, 0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        };
        // The mark may come in between, but not go.
        !free(owner) && free(owner | CONTENDED)
    }

    /// The word, for a futex wait.
    pub const fn word(&self) -> &AtomicU32 {
        &self.0
    }
}

impl Default for DirectionLock {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts threads of this end that are inside the kernel on one direction of the socket.
///
/// `enter` and `nobody` are two sides of a Dekker handshake: a thread counts itself, then looks at the
/// direction's state; whoever changes the state stores it, then looks at the count.
#[repr(transparent)]
#[derive(Debug)]
pub struct Inside(pub(super) AtomicU32);

impl Inside {
    /// Nobody inside.
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// About to enter the kernel. The caller then re-reads the direction's state and, if that has
    /// changed, leaves again.
    #[inline(always)]
    pub fn enter(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        barrier_after_rmw();
    }

    /// Back from the kernel.
    #[inline(always)]
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether nobody is inside; call after storing the new state.
    pub fn nobody(&self) -> bool {
        full_barrier();
        self.0.load(Ordering::SeqCst) == 0
    }
}

impl Default for Inside {
    fn default() -> Self {
        Self::new()
    }
}
