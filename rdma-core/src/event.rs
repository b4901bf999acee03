//! Event channels: "look at your rings".
//!
//! A *waiting context* (a thread in a blocking call, an epoll instance) belongs to one process and has
//! a page of [`EventContext`] that the process's direct peers map: a sleeping word and a two-level
//! bitmap of pending connections. Beside it stands a doorbell (an eventfd on a host), which is rung
//! only if the context sleeps.
//!
//! Who waits is written as a [`WaitRef`] into the connection's [`EndWaits`]. The producer, after it
//! published, finds the references, sets the pending bit of epoll contexts and asks
//! [`EventContext::post`] whether the doorbell must be rung. No lost wake-up, because both sides
//! store first, pass a full barrier, and look second:
//!
//! ```text
//! producer: publish tail | barrier | load waiters, set bit, take sleeping word -> ring the doorbell
//! consumer: enter WaitRef, sleeping = 1 | barrier | look at the ring again     -> sleep
//! ```
//!
//! The pages are shared inside one trust domain only (see the design of direct connections); a
//! context beyond a producer's reach is kicked by the backend.

use crate::layout::{EndWaits, WAIT_REFS};
use crate::mem::Shared;
use crate::sync::{AtomicU32, AtomicU64, Ordering, barrier_after_rmw};

/// Pending bits of a context: connections one process can hold on rings.
pub const PENDING_BITS: u32 = 65_536;
// A loom model pays for every word that is looked at, so it gets two of them.
const WORDS: usize = if cfg!(loom) { 2 } else { 1024 };
const SUMMARY: usize = if cfg!(loom) { 1 } else { 16 };
const RESERVED: usize = if cfg!(loom) { 0 } else { 29 };
/// Arrivals whose order is kept; of earlier ones only that they came.
// A loom model would pay for it with each post, and learn nothing that the bitmap does not show.
const ARRIVALS: usize = if cfg!(loom) { 0 } else { 512 };
/// In an arrival, above the bit: its producer has used the kernel since its arrival before.
const BEHIND_KERNEL: u32 = 1 << 16;

/// Contexts of one process; further ones cannot be rung directly.
pub const CONTEXTS: u32 = 256;

/// Distance between two contexts in a process's event memory.
pub const CONTEXT_STRIDE: usize = 12_288;

/// Size of a process's event memory: sparse, a context that never slept costs nothing.
pub const EVENT_BYTES: usize = CONTEXT_STRIDE * CONTEXTS as usize;

/// One waiting context.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct EventContext {
    sleeping: AtomicU32,
    /// How many bits were ever set.
    arrived: AtomicU32,
    /// How many of them the owner has looked for in `arrivals`.
    taken: AtomicU32,
    reserved: [AtomicU32; RESERVED],
    summary: [AtomicU64; SUMMARY],
    pending: [AtomicU64; WORDS],
    /// The bits in the order of their arrival. A hint only: the bitmap says what is pending.
    arrivals: [AtomicU32; ARRIVALS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<EventContext>() <= CONTEXT_STRIDE);
#[cfg(not(loom))]
const _: () = assert!(WORDS * 64 == PENDING_BITS as usize && SUMMARY * 64 == WORDS);

#[expect(unsafe_code, reason = "marker: repr(C), atomics only")]
// SAFETY: a repr(C) struct of atomics; every bit pattern is valid.
unsafe impl Shared for EventContext {}

impl EventContext {
    /// A context of its own, for tests and loom models.
    pub fn standalone() -> Self {
        Self {
            sleeping: AtomicU32::new(0),
            arrived: AtomicU32::new(0),
            taken: AtomicU32::new(0),
            reserved: core::array::from_fn(|_| AtomicU32::new(0)),
            summary: core::array::from_fn(|_| AtomicU64::new(0)),
            pending: core::array::from_fn(|_| AtomicU64::new(0)),
            arrivals: core::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Producer: says that connection `bit` wants attention. Comes after the barrier that follows
    /// `publish`; follow with [`EventContext::take_sleeper`].
    #[inline]
    pub fn post(&self, bit: u16) {
        self.post_with(bit, 0);
    }

    /// As [`EventContext::post`], of a producer that has since its post before sent something that the
    /// kernel reports to the owner: that comes first. False if the bit was set already, and it was not said.
    #[inline]
    pub fn post_behind_kernel(&self, bit: u16) -> bool {
        self.post_with(bit, BEHIND_KERNEL)
    }

    #[inline]
    fn post_with(&self, bit: u16, hint: u32) -> bool {
        let word = usize::from(bit) / 64;
        let mask = 1u64 << (bit % 64);
        let top = 1u64 << (word % 64);
        let (Some(pending), Some(summary)) = (self.pending.get(word), self.summary.get(word / 64))
        else {
            return false;
        };
        // Both already set: the owner has yet to take them, and looks at the connection after that
        // (the barrier in `take_pending` is the other half of the caller's).
        if pending.load(Ordering::Relaxed) & mask != 0 && summary.load(Ordering::Relaxed) & top != 0
        {
            return false;
        }
        // The place first: who posts one after the other leaves them in that order.
        if ARRIVALS > 0 {
            let place = self.arrived.fetch_add(1, Ordering::Relaxed) as usize;
            if let Some(place) = self.arrivals.get(place % ARRIVALS.max(1)) {
                place.store(u32::from(bit) | hint, Ordering::Relaxed);
            }
        }
        pending.fetch_or(mask, Ordering::SeqCst);
        summary.fetch_or(top, Ordering::SeqCst);
        barrier_after_rmw();
        true
    }

    /// Producer: whether the owner sleeps and this caller is the one who must ring its doorbell. From
    /// here to the doorbell nothing may interrupt the caller for good: nobody else will ring.
    #[inline]
    pub fn take_sleeper(&self) -> bool {
        let seen = self.sleeping.load(Ordering::Relaxed);
        // Whoever comes second writes nothing: the owner may be going to sleep again already.
        seen != 0
            && self
                .sleeping
                .compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
    }

    /// Owner: about to sleep. After this, look at everything once more, then sleep.
    ///
    /// Where several threads sleep on one context, the word says whether *any* of them does. They
    /// count themselves before this call. A thread that wakes up calls `finish_sleep` first, then
    /// uncounts itself, and if others are left calls this again for them; only then does it take what
    /// is pending, and if it leaves some of that it rings the doorbell itself.
    #[inline]
    pub fn prepare_sleep(&self) {
        // An exchange costs no more than such a store, and is its own barrier.
        self.sleeping.swap(1, Ordering::SeqCst);
        barrier_after_rmw();
    }

    /// Owner: awake (or decided not to sleep). Returns whether somebody took it upon himself to ring
    /// the doorbell, so that it must be silenced. He may not have rung it yet: then it rings later and
    /// costs one needless wake-up.
    #[inline]
    pub fn finish_sleep(&self) -> bool {
        self.sleeping.swap(0, Ordering::SeqCst) == 0
    }

    /// Whether the owner sleeps, or is about to. For somebody who rings without being told.
    pub fn is_asleep(&self) -> bool {
        self.sleeping.load(Ordering::Acquire) != 0
    }

    /// Owner: whether any bit is pending.
    #[inline]
    pub fn has_pending(&self) -> bool {
        self.summary
            .iter()
            .any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Owner: takes all pending bits and gives each to `found`, which looks at that connection: in the
    /// order of their arrival, as far as that is known, as the kernel would report them.
    pub fn take_pending(&self, mut found: impl FnMut(u16)) {
        self.take_recent(false, &mut found);
        self.take_rest(found);
    }

    /// Owner: as [`EventContext::take_pending`], but no further than the first arrival of which its producer
    /// said that it comes after what the kernel has by now. True if there is one: it is left, with all behind
    /// it, to be taken once the kernel has been asked. A hint, as the order of arrivals is; its producer also
    /// rings the doorbell, which shows its place among what the kernel has.
    pub fn take_before_kernel(&self, mut found: impl FnMut(u16)) -> bool {
        let stopped = self.take_recent(true, &mut found);
        if !stopped {
            self.take_rest(found);
        }
        stopped
    }

    /// What is pending, in no order.
    fn take_rest(&self, mut found: impl FnMut(u16)) {
        for (i, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut top = summary.swap(0, Ordering::SeqCst);
            while top != 0 {
                let word = i * 64 + top.trailing_zeros() as usize;
                top &= top - 1;
                let Some(pending) = self.pending.get(word) else {
                    continue;
                };
                let mut bits = pending.swap(0, Ordering::SeqCst);
                // A producer that still saw its bit set relies on us to see its bytes.
                barrier_after_rmw();
                while bits != 0 {
                    let bit = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    if let Ok(bit) = u16::try_from(bit) {
                        found(bit);
                    }
                }
            }
        }
    }

    /// What has come lately. Whatever stands in `arrivals`, a bit is taken only if it is pending. True if it
    /// `stops`, as is wished, before an arrival behind the kernel.
    fn take_recent(&self, stops: bool, found: &mut impl FnMut(u16)) -> bool {
        if ARRIVALS == 0 {
            return false;
        }
        let arrived = self.arrived.load(Ordering::Acquire);
        let taken = self.taken.load(Ordering::Relaxed);
        let recent = (arrived.wrapping_sub(taken) as usize).min(ARRIVALS);
        for back in (1..=recent).rev() {
            let index = arrived.wrapping_sub(u32::try_from(back).unwrap_or(0));
            let place = self.arrivals.get(index as usize % ARRIVALS.max(1));
            let Some(arrival) = place.map(|place| place.load(Ordering::Relaxed)) else {
                continue;
            };
            let Ok(bit) = u16::try_from(arrival & !BEHIND_KERNEL) else {
                continue;
            };
            let Some(pending) = self.pending.get(usize::from(bit) / 64) else {
                continue;
            };
            let mask = 1u64 << (bit % 64);
            if pending.load(Ordering::Relaxed) & mask == 0 {
                continue;
            }
            if stops && arrival & BEHIND_KERNEL != 0 {
                self.taken.store(index, Ordering::Relaxed);
                return true;
            }
            // One alone needs no order.
            if recent > 1 && pending.fetch_and(!mask, Ordering::SeqCst) & mask != 0 {
                // As for the whole words: its producer relies on us to see its bytes.
                barrier_after_rmw();
                found(bit);
            }
        }
        self.taken.store(arrived, Ordering::Relaxed);
        false
    }
}

/// Names a waiting context to the far end: process, context, and the pending bit to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitRef {
    /// The process, as numbered by its daemon.
    pub process: u32,
    /// The context of that process.
    pub context: u16,
    /// For an epoll context: the bit to set before looking at the sleeping word.
    pub bit: Option<u16>,
}

const VALID: u64 = 1 << 63;
const HAS_BIT: u64 = 1 << 62;
const PROCESS_MASK: u64 = 0x3f_ffff;

impl WaitRef {
    /// Largest process number that fits.
    pub const PROCESS_MAX: u32 = 0x3f_ffff;

    /// The word that stands in [`EndWaits`]; never 0.
    pub const fn encode(self) -> u64 {
        let bit = match self.bit {
            Some(bit) => HAS_BIT | bit as u64,
            None => 0,
        };
        VALID | bit | (self.context as u64) << 16 | (self.process as u64 & PROCESS_MASK) << 32
    }

    /// The reference in `word`; `None` for an empty entry.
    pub fn decode(word: u64) -> Option<Self> {
        if word & VALID == 0 {
            return None;
        }
        let low = u16::try_from(word & 0xffff).ok()?;
        Some(Self {
            process: u32::try_from(word >> 32 & PROCESS_MASK).ok()?,
            context: u16::try_from(word >> 16 & 0xffff).ok()?,
            bit: (word & HAS_BIT != 0).then_some(low),
        })
    }
}

/// Which direction of an end somebody waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitFor {
    /// Bytes to read.
    Data,
    /// Space to write.
    Space,
}

impl EndWaits {
    #[inline(always)]
    const fn list(&self, what: WaitFor) -> (&AtomicU32, &[AtomicU64; WAIT_REFS]) {
        match what {
            WaitFor::Data => (&self.rx_waiters, &self.rx),
            WaitFor::Space => (&self.tx_waiters, &self.tx),
        }
    }

    /// Whether anybody waits; the one load on the fast path, after the barrier.
    #[inline(always)]
    pub fn any(&self, what: WaitFor) -> bool {
        self.list(what).0.load(Ordering::Relaxed) != 0
    }

    /// Owner: enters `who`. False if all entries are taken (the caller then waits another way).
    /// Several processes of one end may call this at once.
    pub fn enter(&self, what: WaitFor, who: WaitRef) -> bool {
        let (count, entries) = self.list(what);
        let word = who.encode();
        for entry in entries {
            // A look first: most calls find most places otherwise, and a failed exchange costs as much as one that is made.
            if entry.load(Ordering::Relaxed) == 0
                && entry
                    .compare_exchange(0, word, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
            {
                count.fetch_add(1, Ordering::SeqCst);
                barrier_after_rmw();
                return true;
            }
        }
        false
    }

    /// Owner: removes one entry of `who`. True if it was there.
    pub fn leave(&self, what: WaitFor, who: WaitRef) -> bool {
        let (count, entries) = self.list(what);
        let word = who.encode();
        for entry in entries {
            // Only its owner enters it, who so sees it if it is there.
            if entry.load(Ordering::Relaxed) == word
                && entry
                    .compare_exchange(word, 0, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok()
            {
                count.fetch_sub(1, Ordering::SeqCst);
                return true;
            }
        }
        false
    }

    /// Owner: removes everybody, also what an owner has left that died while it entered or left. Nobody else of this end
    /// may enter or leave at the same time.
    pub fn clear(&self) {
        for what in [WaitFor::Data, WaitFor::Space] {
            let (count, entries) = self.list(what);
            for entry in entries {
                entry.store(0, Ordering::SeqCst);
            }
            count.store(0, Ordering::SeqCst);
        }
    }

    /// Far end: each context that waits. The words are whatever the owner wrote: check them.
    pub fn each(&self, what: WaitFor, mut found: impl FnMut(WaitRef)) {
        for entry in self.list(what).1 {
            if let Some(who) = WaitRef::decode(entry.load(Ordering::Acquire)) {
                found(who);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn wait_refs_survive_the_word() {
        for who in [
            WaitRef {
                process: 0,
                context: 0,
                bit: None,
            },
            WaitRef {
                process: WaitRef::PROCESS_MAX,
                context: u16::MAX,
                bit: Some(u16::MAX),
            },
            WaitRef {
                process: 7,
                context: 3,
                bit: Some(0),
            },
        ] {
            assert_ne!(who.encode(), 0);
            assert_eq!(WaitRef::decode(who.encode()), Some(who));
        }
        assert_eq!(WaitRef::decode(0), None);
    }

    #[test]
    fn pending_bits_are_taken_once() {
        let ctx = EventContext::standalone();
        for bit in [0u16, 63, 64, 4095, 4096, 65_535] {
            ctx.post(bit);
            ctx.post(bit);
        }
        let mut seen = Vec::new();
        ctx.take_pending(|bit| seen.push(bit));
        assert_eq!(seen, [0, 63, 64, 4095, 4096, 65_535]);
        assert!(!ctx.has_pending());
        ctx.take_pending(|_| panic!("taken twice"));
    }

    #[test]
    fn pending_bits_are_taken_in_the_order_of_their_arrival() {
        let ctx = EventContext::standalone();
        let take = || {
            let mut seen = Vec::new();
            ctx.take_pending(|bit| seen.push(bit));
            seen
        };
        for bit in [70u16, 3, 9, 3, 65_535, 0, 9] {
            ctx.post(bit);
        }
        assert_eq!(take(), [70, 3, 9, 65_535, 0]);
        ctx.post(9);
        ctx.post(1);
        assert_eq!(take(), [9, 1]);
        // More than are kept in order are all taken, once.
        let many = u16::try_from(3 * ARRIVALS).unwrap();
        (0..many).rev().for_each(|bit| ctx.post(bit));
        let mut seen = take();
        assert_eq!(seen.first(), Some(&(u16::try_from(ARRIVALS).unwrap() - 1)));
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..many));
        assert!(!ctx.has_pending());
    }

    #[test]
    fn arrivals_behind_the_kernel_are_left_until_it_has_been_asked() {
        let ctx = EventContext::standalone();
        let before = || {
            let mut seen = Vec::new();
            let stopped = ctx.take_before_kernel(|bit| seen.push(bit));
            (seen, stopped)
        };
        let all = || {
            let mut seen = Vec::new();
            ctx.take_pending(|bit| seen.push(bit));
            seen
        };
        assert_eq!(before(), (vec![], false));
        ctx.post(4);
        // Its bit is set: what came first came before the kernel's.
        assert!(!ctx.post_behind_kernel(4));
        assert_eq!(before(), (vec![4], false));
        ctx.post(9);
        ctx.post(4);
        assert!(ctx.post_behind_kernel(7));
        ctx.post(5);
        assert_eq!(before(), (vec![9, 4], true));
        assert!(ctx.has_pending());
        // Not asked yet.
        ctx.post(9);
        assert_eq!(before(), (vec![], true));
        assert_eq!(all(), [7, 5, 9]);
        assert!(!ctx.has_pending());
        ctx.post(7);
        assert_eq!(before(), (vec![7], false));
        // Alone.
        assert!(ctx.post_behind_kernel(7));
        assert_eq!(before(), (vec![], true));
        assert_eq!(all(), [7]);
        assert_eq!(before(), (vec![], false));
    }

    #[test]
    fn one_kick_per_sleep() {
        let ctx = EventContext::standalone();
        assert!(!ctx.take_sleeper());
        ctx.prepare_sleep();
        assert!(ctx.take_sleeper());
        assert!(!ctx.take_sleeper());
        assert!(ctx.finish_sleep(), "rung");
        ctx.prepare_sleep();
        assert!(!ctx.finish_sleep(), "not rung");
    }
}
