//! Atomics and fences, from `core` or from loom.
//!
//! Nothing else in the crate names an atomic type, so that one `--cfg loom` build explores every
//! interleaving of the same code that runs in production. loom treats `SeqCst` *accesses* as
//! acquire-release, but models `fence(SeqCst)`; therefore every "store mine, then look at yours"
//! handshake in this crate uses an explicit fence.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// The barrier between "publish" and "is somebody asleep?" (and its mirror on the sleeping side).
///
/// On x86-64 an atomic read-modify-write that precedes it makes it redundant; callers that just
/// executed one on the same thread use that instead.
#[inline(always)]
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}
