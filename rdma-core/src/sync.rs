//! Atomics and fences, from `core` or from loom.
//!
//! Nothing else in the crate names an atomic type, so that one `--cfg loom` build explores every
//! interleaving of the same code that runs in production. loom treats `SeqCst` *accesses* as
//! acquire-release, but models `fence(SeqCst)`; therefore every "store mine, then look at yours"
//! handshake in this crate uses an explicit fence.

#![forbid(unsafe_code)]

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Payload bytes in a loom model: plain memory whose unsynchronised use loom reports.
#[cfg(loom)]
pub use loom::cell::UnsafeCell;

/// The barrier between "publish" and "is somebody asleep?" (and its mirror on the sleeping side).
///
/// On x86-64 an atomic read-modify-write that precedes it makes it redundant; callers that just
/// executed one on the same thread use [`barrier_after_rmw`] instead.
#[inline(always)]
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}

/// [`full_barrier`] for a caller whose last access was an atomic read-modify-write: free on x86-64,
/// where that instruction is a full barrier itself.
#[inline(always)]
pub fn barrier_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(any(not(target_arch = "x86_64"), loom))]
    fence(Ordering::SeqCst);
}
