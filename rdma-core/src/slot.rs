//! The end slot: what the processes of one end share with each other and with their own backend.
//!
//! A connection that may be upgraded gets a slot when it is made, in a sealed memory of its process
//! (the *slot arena*) that a forked child inherits and that the local daemon maps. The far end never
//! maps it, so the cursors and states here can be trusted as far as the processes of this end are.
//!
//! The daemon reads slots for `viaduct status` and writes the mailbox; it treats every value as
//! hostile.

use crate::counters::ProcessCounters;
use crate::mem::{Region, Shared};
use crate::ring::{RxCursor, TxCursor};
use crate::sync::{AtomicU32, AtomicU64, Ordering, barrier_after_rmw, full_barrier};

/// Slots of one process.
pub const SLOTS: u32 = 16_384;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 512;
/// Bytes of the arena's header: mailbox and counters.
pub const ARENA_HEADER_BYTES: usize = 4096;
/// Bytes of a whole slot arena; sparse.
pub const ARENA_BYTES: usize = ARENA_HEADER_BYTES + SLOTS as usize * SLOT_BYTES;
/// Words of [`ArenaHeader::shared_sets`].
pub const SHARED_SETS: usize = 16;
/// First word of a slot arena.
pub const ARENA_MAGIC: u64 = u64::from_le_bytes(*b"VIADSLOT");

/// Header of a slot arena.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct ArenaHeader {
    /// [`ARENA_MAGIC`].
    pub magic: AtomicU64,
    /// [`crate::layout::LAYOUT_VERSION`].
    pub version: AtomicU32,
    /// The process id as the process itself sees it; for display.
    pub pid: AtomicU32,
    /// Raised by the daemon after each message it sends: look at your control socket.
    pub mailbox: AtomicU32,
    /// Slots ever used: the daemon need not look beyond.
    pub slots_used: AtomicU32,
    /// Epoll sets of this process that a forked child uses as well, a bit each.
    pub shared_sets: [AtomicU64; SHARED_SETS],
    /// What this process counted.
    pub counters: ProcessCounters,
}

/// States of a sending direction, in [`TxSlot::state`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum TxState {
    /// Bytes go to the kernel socket.
    Kernel = 0,
    /// Counting; only seen by others while the lock is held.
    Switching = 1,
    /// Bytes go to the ring.
    Ring = 2,
    /// Ended: the kernel answers (EPIPE, RST).
    Done = 3,
    /// The far end left its ring: bytes from `resend` on are sent once more, by the kernel.
    Returning = 4,
    /// Back in the kernel for good.
    Returned = 5,
}

/// States of a receiving direction, in [`RxSlot::state`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RxState {
    /// Bytes come from the kernel socket; the ring is not looked at.
    Kernel = 0,
    /// Armed: bytes still come from the kernel, and the far end may switch at any time.
    Armed = 1,
    /// The far end switched; `kernel_left` bytes are still to be read from the kernel.
    Draining = 2,
    /// Bytes come from the ring.
    Ring = 3,
    /// The ring's stream has been read to its end: the kernel answers (EOF, errors).
    Done = 4,
    /// Back in the kernel for good.
    Returned = 5,
}

/// Where a connection stands, in [`SlotMeta::stage`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Stage {
    /// Not in use.
    Free = 0,
    /// A peer's connection on TCP that has not yet proved worth registering.
    Candidate = 1,
    /// Registered; waiting for the far end.
    Registered = 2,
    /// Connection memory is attached.
    Attached = 3,
    /// Plain TCP for good; see `reason`.
    Plain = 4,
}

macro_rules! state_word {
    ($enum:ty, $($value:ident),+) => {
        impl $enum {
            /// The state behind a word; unknown values read as the first state.
            #[inline(always)]
            pub const fn from_word(word: u32) -> Self {
                $(if word == Self::$value as u32 { return Self::$value; })+
                Self::FIRST
            }
        }
    };
}
impl TxState {
    const FIRST: Self = Self::Kernel;
}
impl RxState {
    const FIRST: Self = Self::Kernel;
}
impl Stage {
    const FIRST: Self = Self::Free;
}
state_word!(TxState, Ring, Kernel, Switching, Done, Returning, Returned);
state_word!(RxState, Ring, Kernel, Armed, Draining, Done, Returned);
state_word!(Stage, Free, Candidate, Registered, Attached, Plain);

/// The lock of one direction: the owner's thread token, 0 when free.
#[repr(transparent)]
#[derive(Debug)]
pub struct DirectionLock(AtomicU32);

/// Set in the lock word when somebody sleeps on it.
const CONTENDED: u32 = 1 << 31;

impl DirectionLock {
    /// The owner word of the daemon, which no thread's number can be.
    pub const DAEMON: u32 = 0x7fff_ffff;

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
pub struct Inside(AtomicU32);

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
    reserved: [AtomicU64; 16],
}

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

/// A typed view of a slot arena.
#[derive(Clone, Copy, Debug)]
pub struct ArenaView {
    region: Region,
}

impl ArenaView {
    /// The arena in `region`; `None` if the region is too small.
    pub fn new(region: Region) -> Option<Self> {
        (region.len() >= ARENA_BYTES).then_some(Self { region })
    }

    /// The header.
    #[expect(clippy::expect_used, reason = "the size was checked in `new`")]
    pub fn header(&self) -> &'static ArenaHeader {
        self.region.get(0).expect("checked in new")
    }

    /// Slot `index`; `None` beyond the end.
    #[inline]
    pub fn slot(&self, index: u32) -> Option<&'static Slot> {
        if index >= SLOTS {
            return None;
        }
        self.region
            .get(ARENA_HEADER_BYTES + index as usize * SLOT_BYTES)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mem::HeapRegion;

    #[test]
    fn slots_fit_the_arena() {
        let heap = HeapRegion::new(ARENA_BYTES);
        let arena = ArenaView::new(heap.region()).unwrap();
        assert!(arena.slot(SLOTS - 1).is_some());
        assert!(arena.slot(SLOTS).is_none());
        assert!(ArenaView::new(heap.region().part(0, ARENA_BYTES - 1).unwrap()).is_none());
    }

    #[test]
    fn the_lock_names_its_owner_and_its_sleepers() {
        let lock = DirectionLock::new();
        assert_eq!(lock.try_lock(5), Ok(()));
        assert_eq!(lock.try_lock(6), Err(5));
        let word = lock.contend().unwrap();
        assert_ne!(word, 5);
        assert_eq!(lock.try_lock(6), Err(5));
        assert!(lock.unlock());
        assert_eq!(lock.contend(), None);
        assert_eq!(lock.try_lock(6), Ok(()));
        assert!(!lock.unlock());
    }

    #[test]
    fn a_lock_that_has_changed_hands_is_not_freed() {
        let lock = DirectionLock::new();
        assert_eq!(lock.try_lock(DirectionLock::DAEMON), Ok(()));
        assert!(!lock.unlock_by(DirectionLock::DAEMON));
        assert_eq!(lock.try_lock(6), Ok(()));
        assert!(!lock.unlock_by(DirectionLock::DAEMON));
        assert_eq!(lock.try_lock(DirectionLock::DAEMON), Err(6));
        lock.unlock();
        assert_eq!(lock.try_lock(DirectionLock::DAEMON), Ok(()));
        lock.contend();
        assert!(lock.unlock_by(DirectionLock::DAEMON), "there are sleepers");
        assert_eq!(lock.try_lock(6), Ok(()));
    }

    #[test]
    fn unknown_words_read_as_the_safe_state() {
        assert_eq!(TxState::from_word(77), TxState::Kernel);
        assert_eq!(RxState::from_word(77), RxState::Kernel);
        assert_eq!(Stage::from_word(77), Stage::Free);
    }

    #[test]
    fn a_reset_raises_the_generation_and_clears_the_rest() {
        let heap = HeapRegion::new(ARENA_BYTES);
        let slot = ArenaView::new(heap.region()).unwrap().slot(3).unwrap();
        slot.tx.set_state(TxState::Ring);
        slot.meta.holders.store(9, Ordering::Relaxed);
        slot.meta.far_addr[1].store(9, Ordering::Relaxed);
        slot.reset();
        assert_eq!(slot.meta.far_addr[1].load(Ordering::Relaxed), 0);
        assert_eq!(slot.tx.state(), TxState::Kernel);
        assert_eq!(slot.meta.holders.load(Ordering::Relaxed), 0);
        assert_eq!(slot.meta.generation.load(Ordering::Relaxed), 1);
    }
}
