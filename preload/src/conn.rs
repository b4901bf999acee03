//! The connections of this process: what it keeps beside the shared end slot.

#![expect(
    unsafe_code,
    reason = "the attached view is written once, before the flag that announces it"
)]

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rdma_core::Reason;
use rdma_core::layout::ConnView;
use rdma_core::slot::Slot;

use crate::lull::Lull;

/// Connections to peers that one process can hold at once; also the range of pending bits.
pub(crate) const CONNS: usize = 16_384;

/// Epoll sets that one connection can be in while accelerated.
pub(crate) const SETS: usize = 4;

/// Bits of [`Conn::shut`].
pub(crate) const SHUT_READ: u32 = 1;
/// See [`SHUT_READ`].
pub(crate) const SHUT_WRITE: u32 = 2;

/// [`Conn::final_tail`]: the far end may still send.
pub(crate) const NO_FINAL: u64 = u64::MAX;

/// A number that is only a hint, so that its exchange need not be atomic.
#[derive(Debug)]
pub(crate) struct Note(AtomicU64);

impl Note {
    /// Stores `value` and returns what was there.
    #[inline(always)]
    pub(crate) fn swap_relaxed(&self, value: u64) -> u64 {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(value, Ordering::Relaxed);
        before
    }
}

/// One connection to a peer.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Raised when the connection is freed; part of its descriptors' entries.
    pub generation: AtomicU32,
    /// Descriptors of this process.
    pub refs: AtomicU32,
    slot: AtomicPtr<Slot>,
    /// The slot's number in this process's own arena; `u32::MAX` if a parent made it.
    pub slot_index: AtomicU32,
    parent_slot: AtomicU32,
    attached: AtomicU32,
    view: View,
    /// Index of the arena that the memory lies in.
    pub arena: AtomicU32,
    /// Index of the far end's process.
    pub peer: AtomicU32,
    /// Index of the daemon session under which it was registered.
    pub session: AtomicU32,
    /// Data calls so far while on TCP.
    pub calls: AtomicU32,
    /// Bytes so far while on TCP.
    pub bytes: AtomicU64,
    /// Why it must not be accelerated: a reason code, 0 if nothing is known against it.
    veto: AtomicU32,
    /// An error to report once.
    pub pending_error: AtomicI32,
    /// The error was reported: what TCP is after a reset.
    dead: AtomicU32,
    /// Not 0: broken or dead, and the kernel's connection was reset for that by this process.
    reset: AtomicU32,
    /// Where the far end's ring stream ends although it never said so: it died.
    pub final_tail: AtomicU64,
    /// Monotonic nanoseconds since when the kernel's word on the far end waits for the backend's; 0: none.
    pub over_since: AtomicU64,
    /// The tick of the clock in which the kernel was last asked about the far end.
    asked_at: AtomicU64,
    /// Monotonic nanoseconds from when on a connection that was taken back to TCP may register again; 0: never.
    pub return_at: AtomicU64,
    /// How often it has waited for that.
    pub returns: AtomicU32,
    /// Monotonic nanoseconds when this end [stepped back](crate::forsaken) from its ring; 0: it has not.
    pub stepped_at: AtomicU64,
    /// Bytes that the kernel had brought by then.
    pub stepped_bytes: AtomicU64,
    /// Not 0: this process takes it [back to the kernel](crate::downgrade) just now.
    pub leaves: AtomicU32,
    /// Bytes that it leaves unread there, and that the far end sends once more.
    pub owed: AtomicU64,
    /// Not 0: a backend relays the connection.
    relayed: AtomicU32,
    /// A duplicate kept for threads that are blocked (see [`crate::pins`]).
    pub kept: AtomicI32,
    /// Epoll sets (index + 1) that hold the connection.
    pub sets: [AtomicU32; SETS],
    /// What the kernel last said of the socket, once both directions are on rings.
    pub kernel_bits: AtomicU32,
    /// Directions whose timeout is one of no time at all: see [`Conn::never_waits`].
    no_wait: AtomicU32,
    /// Bytes sent through the ring at the last receive.
    pub sent_at_recv: Note,
    /// What a coming exec does to it; see [`crate::lifecycle::before_exec`].
    pub exec: AtomicU32,
    /// Programs started, as counted when the connection was made; see [`crate::lifecycle::spawning`].
    pub spawns: AtomicU32,
    /// When its sender pauses for a reader that is always behind.
    pub lull: Lull,
    /// O_APPEND of the socket as last seen: 0 if it must be asked, 1 unset, 2 set.
    append: AtomicU32,
}

#[derive(Debug)]
struct View(UnsafeCell<MaybeUninit<ConnView>>);

// SAFETY: written only by `attach`, before `attached` is released; read only after it is acquired.
unsafe impl Sync for View {}

impl Conn {
    const fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            refs: AtomicU32::new(0),
            slot: AtomicPtr::new(core::ptr::null_mut()),
            slot_index: AtomicU32::new(0),
            parent_slot: AtomicU32::new(0),
            attached: AtomicU32::new(0),
            view: View(UnsafeCell::new(MaybeUninit::uninit())),
            arena: AtomicU32::new(0),
            peer: AtomicU32::new(0),
            session: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
            veto: AtomicU32::new(0),
            pending_error: AtomicI32::new(0),
            dead: AtomicU32::new(0),
            reset: AtomicU32::new(0),
            final_tail: AtomicU64::new(NO_FINAL),
            over_since: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
            return_at: AtomicU64::new(0),
            returns: AtomicU32::new(0),
            stepped_at: AtomicU64::new(0),
            stepped_bytes: AtomicU64::new(0),
            leaves: AtomicU32::new(0),
            owed: AtomicU64::new(0),
            relayed: AtomicU32::new(0),
            kept: AtomicI32::new(crate::pins::NOT_KEPT),
            sets: [const { AtomicU32::new(0) }; SETS],
            kernel_bits: AtomicU32::new(0),
            no_wait: AtomicU32::new(0),
            sent_at_recv: Note(AtomicU64::new(u64::MAX)),
            exec: AtomicU32::new(0),
            spawns: AtomicU32::new(0),
            lull: Lull::new(),
            append: AtomicU32::new(0),
        }
    }

    /// Starts a new connection in this place.
    pub(crate) fn begin(&self, slot: &'static Slot, slot_index: u32) {
        self.exec.store(0, Ordering::Relaxed);
        self.spawns
            .store(crate::lifecycle::spawned(), Ordering::Relaxed);
        self.slot
            .store(core::ptr::from_ref(slot).cast_mut(), Ordering::Relaxed);
        self.slot_index.store(slot_index, Ordering::Relaxed);
        self.attached.store(0, Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.veto.store(0, Ordering::Relaxed);
        self.pending_error.store(0, Ordering::Relaxed);
        self.dead.store(0, Ordering::Relaxed);
        self.reset.store(0, Ordering::Relaxed);
        self.final_tail.store(NO_FINAL, Ordering::Relaxed);
        self.over_since.store(0, Ordering::Relaxed);
        self.asked_at.store(0, Ordering::Relaxed);
        self.leaves.store(0, Ordering::Relaxed);
        self.return_at.store(0, Ordering::Relaxed);
        self.returns.store(0, Ordering::Relaxed);
        for set in &self.sets {
            set.store(0, Ordering::Relaxed);
        }
        self.kernel_bits.store(0, Ordering::Relaxed);
        self.no_wait.store(0, Ordering::Relaxed);
        self.sent_at_recv.swap_relaxed(u64::MAX);
        self.lull.reset();
        self.forget_flags();
        // Who goes through all connections finds it from here on.
        self.refs.store(1, Ordering::Release);
    }

    /// Whether the kernel has been asked about the far end in the tick `now` of its clock. If not, the caller asks.
    pub(crate) fn is_asked_in(&self, now: u64) -> bool {
        let asked = self.asked_at.load(Ordering::Relaxed) == now;
        if !asked {
            self.asked_at.store(now, Ordering::Relaxed);
        }
        asked
    }

    /// Whether the socket has O_APPEND, for which the kernel refuses to splice into it; `ask` asks the
    /// kernel.
    pub(crate) fn appends(&self, ask: impl FnOnce() -> bool) -> bool {
        if self.append.load(Ordering::Relaxed) == 0 {
            let known = if ask() { 2 } else { 1 };
            self.append.store(known, Ordering::Relaxed);
        }
        self.append.load(Ordering::Relaxed) == 2
    }

    /// The program may have changed the socket's status flags.
    pub(crate) fn forget_flags(&self) {
        self.append.store(0, Ordering::Relaxed);
    }

    /// Whether calls that the timeout `name` (SO_RCVTIMEO or SO_SNDTIMEO) is for give up at once: a negative one was set,
    /// which the kernel reads out as if there were none.
    pub(crate) fn never_waits(&self, name: i32) -> bool {
        self.no_wait.load(Ordering::Relaxed) & timeout_bit(name) != 0
    }

    /// See [`Conn::never_waits`].
    pub(crate) fn set_never_waits(&self, name: i32, never: bool) {
        if never {
            self.no_wait.fetch_or(timeout_bit(name), Ordering::Relaxed);
        } else {
            self.no_wait
                .fetch_and(!timeout_bit(name), Ordering::Relaxed);
        }
    }

    /// The end slot.
    #[inline(always)]
    pub(crate) fn slot(&self) -> &'static Slot {
        // SAFETY: set by `begin` to a slot in an arena that is never unmapped; a Conn is only
        // reached through entries made after `begin`.
        unsafe { &*self.slot.load(Ordering::Relaxed) }
    }

    /// Directions that the program has shut down, in whatever process: see [`SHUT_READ`].
    #[inline]
    pub(crate) fn shut(&self) -> u32 {
        self.slot().meta.shut.load(Ordering::Relaxed)
    }

    /// The program shuts a direction down.
    pub(crate) fn shut_down(&self, direction: u32) {
        self.slot().meta.shut.fetch_or(direction, Ordering::Relaxed);
    }

    /// The connection moves to another slot; the caller is its only user.
    pub(crate) fn move_slot(&self, slot: &'static Slot, slot_index: u32) {
        self.slot
            .store(core::ptr::from_ref(slot).cast_mut(), Ordering::Relaxed);
        self.slot_index.store(slot_index, Ordering::Relaxed);
    }

    /// In a forked child: the slot belongs to the parent's arena.
    pub(crate) fn inherit(&self) {
        let index = self.slot_index.swap(u32::MAX, Ordering::Relaxed);
        if index != u32::MAX {
            self.parent_slot.store(index, Ordering::Relaxed);
        }
    }

    /// The slot's number in the arena of the process that made it.
    pub(crate) fn inherited_slot(&self) -> u32 {
        self.parent_slot.load(Ordering::Relaxed)
    }

    /// The connection's memory, once attached.
    #[inline(always)]
    pub(crate) fn view(&self) -> Option<&ConnView> {
        if self.attached.load(Ordering::Acquire) == 0 {
            return None;
        }
        // SAFETY: written before `attached` was released.
        Some(unsafe { (*self.view.0.get()).assume_init_ref() })
    }

    /// Attaches the connection's memory, of which there is none.
    pub(crate) fn attach(
        &self,
        view: ConnView,
        (peer, relayed): (u32, bool),
        session: u32,
        arena: u32,
    ) {
        self.relayed.store(u32::from(relayed), Ordering::Relaxed);
        self.arena.store(arena, Ordering::Relaxed);
        self.peer.store(peer, Ordering::Relaxed);
        self.session.store(session, Ordering::Relaxed);
        self.stepped_at.store(0, Ordering::Relaxed);
        // SAFETY: `attached` is 0, so nobody reads; the caller holds the control lock, so nobody
        // else writes.
        unsafe { (*self.view.0.get()).write(view) };
        self.attached.store(1, Ordering::Release);
    }

    /// Whether a backend is the far end of the memory.
    #[inline]
    pub(crate) fn is_relayed(&self) -> bool {
        self.relayed.load(Ordering::Relaxed) != 0
    }

    /// Forgets the memory; the caller is the only user left.
    pub(crate) fn detach(&self) {
        if self.attached.swap(0, Ordering::AcqRel) != 0 {
            crate::control::release_arena(self.arena.load(Ordering::Relaxed));
        }
    }

    /// Says that the connection must stay on TCP. The first reason stays.
    pub(crate) fn veto(&self, reason: Reason) {
        let first =
            self.veto
                .compare_exchange(0, reason.code(), Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            let told = &self.slot().meta.reason;
            told.store(reason.code(), Ordering::Relaxed);
        }
    }

    /// Why the connection must stay on TCP.
    #[inline]
    pub(crate) fn vetoed(&self) -> Option<Reason> {
        Reason::from_code(self.veto.load(Ordering::Relaxed))
    }

    /// The error to report, once; the connection is dead from then on. 0: none.
    pub(crate) fn take_error(&self) -> i32 {
        let error = self.pending_error.swap(0, Ordering::Relaxed);
        if error != 0 {
            self.dead.store(1, Ordering::Relaxed);
        }
        error
    }

    /// The program is about to be told that the connection is dead. False: it has been.
    pub(crate) fn die(&self) -> bool {
        self.dead.swap(1, Ordering::Relaxed) == 0
    }

    /// An error that came behind bytes which the program gets first: it is reported by the next call.
    pub(crate) fn defer_error(&self, error: i32) {
        self.dead.store(0, Ordering::Relaxed);
        self.pending_error.store(error, Ordering::Relaxed);
    }

    /// Whether the connection was reset and the program has been told.
    #[inline(always)]
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed) != 0
    }

    /// The kernel's connection is about to be reset because this one is broken, or its far end dead: the kernel tells of it
    /// as well.
    pub(crate) fn note_reset(&self) {
        self.reset.store(1, Ordering::Relaxed);
    }

    /// Whether that has been done.
    pub(crate) fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed) != 0
    }

    /// This connection's number.
    pub(crate) fn index(&self) -> u32 {
        let offset = core::ptr::from_ref(self).addr() - CONN_TABLE.as_ptr().addr();
        u32::try_from(offset / size_of::<Self>()).unwrap_or(u32::MAX)
    }

    /// The entry of its descriptors.
    pub(crate) fn entry(&self) -> crate::fds::Entry {
        crate::fds::Entry::conn(self.index(), self.generation.load(Ordering::Relaxed))
    }
}

const fn timeout_bit(name: i32) -> u32 {
    if name == libc::SO_RCVTIMEO {
        SHUT_READ
    } else {
        SHUT_WRITE
    }
}

static CONN_TABLE: [Conn; CONNS] = [const { Conn::new() }; CONNS];

/// Connection `index`.
#[inline(always)]
pub(crate) fn conn(index: u32) -> &'static Conn {
    // The index comes from an entry of ours; the mask keeps the access in bounds without a branch.
    &CONN_TABLE[index as usize & (CONNS - 1)]
}

/// Free numbers of a table: a stack of returned ones, then the never used.
#[derive(Debug)]
pub(crate) struct Numbers<const N: usize> {
    busy: AtomicU32,
    free: AtomicU32,
    fresh: AtomicU32,
    stack: [AtomicU32; N],
}

impl<const N: usize> Numbers<N> {
    /// All free.
    pub(crate) const fn new() -> Self {
        Self {
            busy: AtomicU32::new(0),
            free: AtomicU32::new(0),
            fresh: AtomicU32::new(0),
            stack: [const { AtomicU32::new(0) }; N],
        }
    }

    /// A free number; `None` if there is none, or if the caller interrupted the owner of the stack
    /// (a signal handler) and therefore must not wait.
    pub(crate) fn take(&self) -> Option<u32> {
        self.locked(|| {
            let free = self.free.load(Ordering::Relaxed);
            if free > 0 {
                self.free.store(free - 1, Ordering::Relaxed);
                return self
                    .stack
                    .get(free as usize - 1)
                    .map(|word| word.load(Ordering::Relaxed));
            }
            let fresh = self.fresh.load(Ordering::Relaxed);
            if (fresh as usize) < N {
                self.fresh.store(fresh + 1, Ordering::Relaxed);
                return Some(fresh);
            }
            None
        })
        .flatten()
    }

    /// Gives a number back. In a signal handler that interrupted the owner the number is lost.
    pub(crate) fn give(&self, number: u32) {
        self.locked(|| {
            let free = self.free.load(Ordering::Relaxed);
            if let Some(word) = self.stack.get(free as usize) {
                word.store(number, Ordering::Relaxed);
                self.free.store(free + 1, Ordering::Relaxed);
            }
        });
    }

    /// Numbers ever used.
    pub(crate) fn used(&self) -> u32 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// In a forked child: nobody holds the lock, and all numbers are free again if `reset`.
    pub(crate) fn after_fork(&self, reset: bool) {
        self.busy.store(0, Ordering::Relaxed);
        if reset {
            self.free.store(0, Ordering::Relaxed);
            self.fresh.store(0, Ordering::Relaxed);
        }
    }

    fn locked<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let me = crate::tls::token();
        // The lock is held for a few instructions; give up only if the holder is ourselves.
        loop {
            match self
                .busy
                .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(owner) if owner == me => return None,
                Err(_) => rustix::thread::sched_yield(),
            }
        }
        let result = work();
        self.busy.store(0, Ordering::Release);
        Some(result)
    }
}

/// Numbers of connections.
pub(crate) static CONN_NUMBERS: Numbers<CONNS> = Numbers::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_once_and_come_back() {
        static NUMBERS: Numbers<4> = Numbers::new();
        let taken: Vec<_> = (0..4).map(|_| NUMBERS.take().unwrap()).collect();
        assert_eq!(taken, [0, 1, 2, 3]);
        assert_eq!(NUMBERS.take(), None);
        NUMBERS.give(2);
        assert_eq!(NUMBERS.take(), Some(2));
        assert_eq!(NUMBERS.take(), None);
    }
}
