//! The slot arena: its header, its sizes, and a typed view.

use super::Slot;
use crate::counters::ProcessCounters;
use crate::mem::Region;
use crate::sync::{AtomicU32, AtomicU64};

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
