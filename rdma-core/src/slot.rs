//! The end slot: what the processes of one end share with each other and with their own backend.
//!
//! A connection that may be upgraded gets a slot when it is made, in a sealed memory of its process
//! (the *slot arena*) that a forked child inherits and that the local daemon maps. The far end never
//! maps it, so the cursors and states here can be trusted as far as the processes of this end are.
//!
//! The daemon reads slots for `viaduct status` and writes the mailbox; it treats every value as
//! hostile.
//!
//! * This file: a slot's two directions and what else it holds.
//! * `state`: the states of directions and connections. `lock`: a direction's lock, and the count of
//!   those inside the kernel. `arena`: the memory that holds the slots.

mod arena;
mod lock;
mod state;
#[cfg(all(test, not(loom)))]
mod tests;

pub use arena::{
    ARENA_BYTES, ARENA_HEADER_BYTES, ARENA_MAGIC, ArenaHeader, ArenaView, SHARED_SETS, SLOT_BYTES,
    SLOTS,
};
pub use lock::{DirectionLock, Inside};
pub use state::{RxState, Stage, TxState};

use crate::mem::Shared;
use crate::ring::{RxCursor, TxCursor};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The sending direction of an end.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct TxSlot {
    /// Held while the cursor moves; never across a call that blocks.
    pub lock: DirectionLock,
    state: AtomicU32,
    tail: AtomicU64,
    head: AtomicU64,
    base: AtomicU64,
    /// Writers inside the kernel.
    pub inside: Inside,
    /// Bytes sent through the kernel by hooked calls.
    pub tcp_bytes: AtomicU64,
    /// Doorbells rung.
    pub kicks: AtomicU64,
    /// While returning: the ring position from which bytes are still to be sent by the kernel.
    pub resend: AtomicU64,
}

/// The receiving direction of an end.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct RxSlot {
    /// Held while the cursor moves; never across a call that blocks.
    pub lock: DirectionLock,
    state: AtomicU32,
    head: AtomicU64,
    tail: AtomicU64,
    /// While draining: bytes still to be read from the kernel.
    pub kernel_left: AtomicU64,
    /// What the far end acknowledged of our ring in its own ring's words; see
    /// [`RxSlot::note_ack`].
    pub far_ack: AtomicU64,
    /// Readers inside the kernel.
    pub inside: Inside,
    /// SO_RCVLOWAT as set by hooked calls; 0 and 1 are the same.
    pub lowat: AtomicU32,
    /// Bytes received through the kernel by hooked calls.
    pub tcp_bytes: AtomicU64,
    /// Times a waiter went to sleep.
    pub sleeps: AtomicU64,
    /// TCP_INQ as set by hooked calls: a message also tells how many bytes are left. 0 or 1.
    pub inq: AtomicU32,
}

/// Places of [`SlotMeta::holder_pids`].
pub const HOLDER_PIDS: usize = 6;

/// What else is known of a connection.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct SlotMeta {
    /// Raised when the slot is freed; tells two connections in one slot apart.
    pub generation: AtomicU32,
    /// Processes that hold the connection through the shim.
    pub holders: AtomicU32,
    /// Process numbers of some of them, 0 for a free place; hints, for those that die.
    pub holder_pids: [AtomicU32; HOLDER_PIDS],
    /// Programs without the shim that were started with the socket open.
    pub strangers: AtomicU32,
    /// A [`Stage`].
    pub stage: AtomicU32,
    /// A [`crate::Reason`] code when plain or broken.
    pub reason: AtomicU32,
    /// 1: this end called connect; 2: it accepted.
    pub side: AtomicU32,
    /// O_NONBLOCK as last seen: 0 or 1. A hint; the kernel is asked before anybody sleeps.
    pub nonblocking: AtomicU32,
    /// The shim has delivered the socket's readiness to the program (evidence for arming).
    pub delivered: AtomicU32,
    /// A receive call of the program has waited for bytes inside the shim (evidence for arming).
    pub waited: AtomicU32,
    /// 4 or 6; 0 if unknown.
    pub family: AtomicU32,
    /// The descriptor by which the connection was registered, plus one; 0 if unknown.
    pub fd: AtomicU32,
    /// Directions that a process of this end has shut down.
    pub shut: AtomicU32,
    /// This end's address, big-endian as in sockaddr_in6 (v4: the first 4 bytes).
    pub own_addr: [AtomicU64; 2],
    /// The far end's address.
    pub far_addr: [AtomicU64; 2],
    /// Ports: own in the low, far in the high 16 bits.
    pub ports: AtomicU32,
    /// Times connect succeeded on this socket.
    pub connects: AtomicU32,
    /// SO_COOKIE.
    pub cookie: AtomicU64,
    /// The daemon's number of the connection, 0 before pairing.
    pub conn_id: AtomicU64,
}

/// One end of one connection.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    /// Sending.
    pub tx: TxSlot,
    /// Receiving.
    pub rx: RxSlot,
    /// Everything else.
    pub meta: SlotMeta,
    /// Whether what the connection did is in an arena's counters: 0, [`COUNTING`] or [`COUNTED`].
    counted: AtomicU64,
    reserved: [AtomicU64; 15],
}

/// Somebody adds it to them.
const COUNTING: u64 = 1;
/// It is.
const COUNTED: u64 = 2;

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == SLOT_BYTES);
#[cfg(not(loom))]
const _: () = assert!(size_of::<ArenaHeader>() <= ARENA_HEADER_BYTES);

#[expect(unsafe_code, reason = "marker: repr(C), atomics only")]
mod markers {
    use super::{ArenaHeader, Shared, Slot};
    // SAFETY: repr(C) structs of atomics; every bit pattern is valid.
    unsafe impl Shared for Slot {}
    // SAFETY: as above.
    unsafe impl Shared for ArenaHeader {}
}

impl TxSlot {
    /// The direction's state.
    #[inline(always)]
    pub fn state(&self) -> TxState {
        TxState::from_word(self.state.load(Ordering::Acquire))
    }

    /// Changes the state; under the lock.
    #[inline]
    pub fn set_state(&self, state: TxState) {
        self.state.store(state as u32, Ordering::SeqCst);
    }

    /// The cursor; stable under the lock.
    #[inline(always)]
    pub fn cursor(&self) -> TxCursor {
        TxCursor {
            tail: self.tail.load(Ordering::Relaxed),
            head: self.head.load(Ordering::Relaxed),
            base: self.base.load(Ordering::Relaxed),
        }
    }

    /// Stores the cursor; under the lock.
    #[inline(always)]
    pub fn set_cursor(&self, cursor: &TxCursor) {
        self.tail.store(cursor.tail, Ordering::Relaxed);
        self.head.store(cursor.head, Ordering::Relaxed);
        self.base.store(cursor.base, Ordering::Relaxed);
    }
}

impl RxSlot {
    /// The direction's state.
    #[inline(always)]
    pub fn state(&self) -> RxState {
        RxState::from_word(self.state.load(Ordering::Acquire))
    }

    /// Changes the state; under the lock.
    #[inline]
    pub fn set_state(&self, state: RxState) {
        self.state.store(state as u32, Ordering::SeqCst);
    }

    /// The cursor; stable under the lock.
    #[inline(always)]
    pub fn cursor(&self) -> RxCursor {
        RxCursor {
            head: self.head.load(Ordering::Relaxed),
            tail: self.tail.load(Ordering::Relaxed),
        }
    }

    /// Stores the cursor; under the lock.
    #[inline(always)]
    pub fn set_cursor(&self, cursor: &RxCursor) {
        self.head.store(cursor.head, Ordering::Relaxed);
        self.tail.store(cursor.tail, Ordering::Relaxed);
    }

    /// Reader: keeps the far end's [`ack`](crate::ring::Consumer::ack) for this end's writers.
    #[inline(always)]
    pub fn note_ack(&self, ack: u64) {
        self.far_ack.store(ack, Ordering::Release);
    }

    /// Writer: the far end's ack as last kept, for [`TxCursor::hint`]. Acquire, since bytes are
    /// overwritten on the strength of it.
    #[inline(always)]
    pub fn noted_ack(&self) -> u64 {
        self.far_ack.load(Ordering::Acquire)
    }
}

impl Slot {
    /// Where the connection stands.
    #[inline(always)]
    pub fn stage(&self) -> Stage {
        Stage::from_word(self.meta.stage.load(Ordering::Acquire))
    }

    /// Moves the connection to `stage`.
    pub fn set_stage(&self, stage: Stage) {
        self.meta.stage.store(stage as u32, Ordering::Release);
    }

    /// The connection has ended: true for the one who is to add what it did to an arena's counters, and to
    /// [say so](Self::end_count) then.
    pub fn begin_count(&self) -> bool {
        let claim =
            self.counted
                .compare_exchange(0, COUNTING, Ordering::Relaxed, Ordering::Relaxed);
        claim.is_ok()
    }

    /// See [`Self::begin_count`].
    pub fn end_count(&self) {
        self.counted.store(COUNTED, Ordering::Release);
    }

    /// Whether what the connection did is in an arena's counters, so that the slot must not be added to them.
    pub fn is_counted(&self) -> bool {
        self.counted.load(Ordering::Acquire) == COUNTED
    }

    /// Clears everything but the generation, which it raises: for a new connection.
    pub fn reset(&self) {
        self.tx.set_cursor(&TxCursor::default());
        self.rx.set_cursor(&RxCursor::default());
        self.tx.set_state(TxState::Kernel);
        self.rx.set_state(RxState::Kernel);
        for word in [
            &self.tx.lock.0,
            &self.rx.lock.0,
            &self.tx.inside.0,
            &self.rx.inside.0,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        for word in [
            &self.counted,
            &self.tx.tcp_bytes,
            &self.tx.kicks,
            &self.tx.resend,
            &self.rx.kernel_left,
            &self.rx.far_ack,
            &self.rx.tcp_bytes,
            &self.rx.sleeps,
            &self.meta.cookie,
            &self.meta.conn_id,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        let meta = &self.meta;
        for word in meta.own_addr.iter().chain(&meta.far_addr) {
            word.store(0, Ordering::Relaxed);
        }
        for word in &meta.holder_pids {
            word.store(0, Ordering::Relaxed);
        }
        for word in [
            &self.rx.lowat,
            &self.rx.inq,
            &meta.holders,
            &meta.shut,
            &meta.strangers,
            &meta.stage,
            &meta.reason,
            &meta.side,
            &meta.nonblocking,
            &meta.delivered,
            &meta.waited,
            &meta.family,
            &meta.fd,
            &meta.ports,
            &meta.connects,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        meta.generation.fetch_add(1, Ordering::SeqCst);
    }
}
