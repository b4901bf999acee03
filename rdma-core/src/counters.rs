//! What a process counts, in its slot arena, for `viaduct status` and `viaduct run --stats`.

#![forbid(unsafe_code)]

use crate::reason::Reason;
use crate::sync::{AtomicU64, Ordering};

/// Counters of one process. Each is a monotonic count; connections add theirs when they close.
#[repr(C)]
#[derive(Debug)]
pub struct ProcessCounters {
    /// Connections whose memory was attached.
    pub upgraded: AtomicU64,
    /// Peer connections that stayed or became plain.
    pub declined: AtomicU64,
    /// Bytes sent through rings, of closed connections.
    pub ring_tx_bytes: AtomicU64,
    /// Bytes received through rings, of closed connections.
    pub ring_rx_bytes: AtomicU64,
    /// Bytes sent through the kernel on peer connections, of closed connections.
    pub tcp_tx_bytes: AtomicU64,
    /// Bytes received through the kernel on peer connections, of closed connections.
    pub tcp_rx_bytes: AtomicU64,
    /// Doorbells rung, of closed connections.
    pub wakeups_sent: AtomicU64,
    /// Times a waiter slept, of closed connections.
    pub sleeps: AtomicU64,
    /// Waits that ended while still spinning.
    pub spins_won: AtomicU64,
    /// Connections by reason for being plain or broken, indexed by [`Reason::code`].
    pub reasons: [AtomicU64; REASONS],
}

/// Entries of [`ProcessCounters::reasons`].
pub const REASONS: usize = 64;

impl ProcessCounters {
    /// Counts one more connection with `reason`.
    pub fn count_reason(&self, reason: Reason) {
        if let Some(counter) = self.reasons.get(reason.code() as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}
