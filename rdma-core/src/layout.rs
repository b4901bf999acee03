//! The memory of one connection, word by word.
//!
//! ```text
//! offset  0     ConnHeader          written by the daemon; information for tools, never trusted
//!       128     EndWords of end 0   EndState | EndWaits | ConsumerWords, 128 bytes each
//!       512     EndWords of end 1
//!       896     reserved, zero
//!      4096     ring of end 0 (end 0 produces): ProducerWords (32 bytes), then the data
//!      4096+S   ring of end 1            where S = ring_span(ring_bytes)
//! ```
//!
//! A word is written by one end only (but for `route`); the far end maps the same memory and could write it all the
//! same, so every reader checks. Positions are monotonic u64 counts of bytes. Fixed widths, native
//! byte order (both ends run on one machine, or the backend translates), no pointers.
//!
//! The producer's words stand directly before the data on purpose: a message of up to
//! [`INLINE_BYTES`] sent into an empty ring shares a cache line with the tail that announces it, so
//! it costs its receiver one line transfer instead of two.

use crate::mem::{Region, RingBytes, Shared};
use crate::sync::{AtomicU32, AtomicU64};

/// Version of everything in this module. Both ends and the daemon must agree.
pub const LAYOUT_VERSION: u32 = 4;

/// First word of a connection's memory: "VIADUCT1".
pub const CONN_MAGIC: u64 = u64::from_le_bytes(*b"VIADUCT1");

/// Bytes of the header page, before the first ring.
pub const HEADER_BYTES: usize = 4096;

/// Bytes of payload that share a 64-byte cache line with the producer's words.
pub const INLINE_BYTES: usize = if cfg!(loom) {
    32
} else {
    64 - size_of::<ProducerWords>()
};

/// Processors that one machine is taken to have at most, as far as [`ProducerWords::cpu`] goes.
pub const CPUS: u32 = 1 << 16;
/// Machines that can be told apart there.
pub const MACHINES: u32 = 1 << 15;

/// Smallest and largest ring, as powers of two: 64 KiB to 1 GiB.
pub const RING_LOG2_MIN: u32 = 16;
/// See [`RING_LOG2_MIN`].
pub const RING_LOG2_MAX: u32 = 30;
/// Default ring: 4 MiB. A ring smaller than the kernel's socket buffers would hang programs that
/// send a megabyte before they read.
pub const RING_LOG2_DEFAULT: u32 = 22;

/// Wait references that one direction of one end can hold at once; see [`crate::event`].
pub const WAIT_REFS: usize = 4;

/// Information about a connection's memory, for tools; nothing depends on it.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ConnHeader {
    /// [`CONN_MAGIC`].
    pub magic: AtomicU64,
    /// [`LAYOUT_VERSION`].
    pub version: AtomicU32,
    /// Ring size as a power of two.
    pub ring_log2: AtomicU32,
    /// The daemon's number of this connection.
    pub conn_id: AtomicU64,
}

/// What an end says about its two directions; see [`crate::handshake`].
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct EndState {
    /// This end looks at its ring whenever it waits or reads.
    pub armed: AtomicU32,
    /// A [`crate::handshake::Route`]: where this end's stream goes. The one word that both ends write.
    pub route: AtomicU32,
    /// Bytes this end had sent through the kernel when it switched.
    pub switch_at: AtomicU64,
    /// This end sends nothing after `end_at` (bytes sent through the ring).
    pub ended: AtomicU32,
    /// Nobody will read at this end any more.
    pub reader_gone: AtomicU32,
    /// See `ended`.
    pub end_at: AtomicU64,
    /// Not zero: the connection is broken; a [`crate::Reason`] code.
    pub broken: AtomicU32,
    /// This end's stream goes back to the kernel after so many bytes of the ring.
    pub return_at: AtomicU64,
    /// This end left its ring after so many bytes of it.
    pub retract_at: AtomicU64,
    /// Relayed connections: this end, a backend, has answered a sender that took its switch back, and
    /// `retract_at` stands; see [`crate::mirror`].
    pub granted: AtomicU32,
    /// Relayed connections: this end, a backend, knows that the far program sends once more what its reader has
    /// left in the ring.
    pub confirmed: AtomicU32,
    /// Relayed connections: the kernel has told this end, a program, that the far end's stream is over, and the backend
    /// has not.
    pub doubts: AtomicU32,
}

/// Who waits at an end; see [`crate::event`].
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct EndWaits {
    /// Entries of `rx` in use: contexts that wait for bytes.
    pub rx_waiters: AtomicU32,
    /// Entries of `tx` in use: contexts that wait for space.
    pub tx_waiters: AtomicU32,
    /// Contexts waiting for bytes.
    pub rx: [AtomicU64; WAIT_REFS],
    /// Contexts waiting for space.
    pub tx: [AtomicU64; WAIT_REFS],
}

/// Written by the consumer of a ring.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ConsumerWords {
    /// Bytes consumed so far.
    pub head: AtomicU64,
}

/// Written by the producer of a ring; the data follows directly.
#[repr(C, align(32))]
#[derive(Debug, Default)]
pub struct ProducerWords {
    /// Bytes produced so far.
    pub tail: AtomicU64,
    /// Position that lies at the start of the data; moved only while the ring is empty.
    pub base: AtomicU64,
    /// What this end had consumed of the *other* ring when it last published: a hint that saves the
    /// far end a look at [`ConsumerWords`].
    pub ack: AtomicU64,
    /// Processor on which the producer last ran, plus one, plus [`CPUS`] times its machine's number; 0 is
    /// unknown. A hint for waiting.
    pub cpu: AtomicU32,
    /// Reserved, zero.
    pub reserved: AtomicU32,
}

/// All words that one end writes, except its ring.
#[repr(C)]
#[derive(Debug, Default)]
pub struct EndWords {
    /// Directions.
    pub state: EndState,
    /// Waiters.
    pub waits: EndWaits,
    /// Consumption of the far end's ring.
    pub consumer: ConsumerWords,
}

macro_rules! shared_layout {
    ($($type:ty = $size:literal),+ $(,)?) => {
        $(
            #[cfg(not(loom))]
            const _: () = assert!(size_of::<$type>() == $size);
            #[expect(unsafe_code, reason = "marker: repr(C), atomics only, checked above")]
            // SAFETY: repr(C) structs of atomics; every bit pattern is valid.
            unsafe impl Shared for $type {}
        )+
    };
}
shared_layout!(
    ConnHeader = 128,
    EndState = 128,
    EndWaits = 128,
    ConsumerWords = 128,
    ProducerWords = 32,
    EndWords = 384,
);

/// Offset of the words of `end` (0 or 1).
pub const fn end_offset(end: usize) -> usize {
    128 + end * 384
}

/// Bytes that a ring of `ring_bytes` occupies, with its words, in whole pages.
pub const fn ring_span(ring_bytes: usize) -> usize {
    (ring_bytes + 32).next_multiple_of(4096)
}

/// Offset of the ring that `end` produces.
pub const fn ring_offset(end: usize, ring_bytes: usize) -> usize {
    HEADER_BYTES + end * ring_span(ring_bytes)
}

/// Bytes of a whole connection.
pub const fn conn_bytes(ring_bytes: usize) -> usize {
    HEADER_BYTES + 2 * ring_span(ring_bytes)
}

/// Which of the two ends of a connection: 0 or 1, as told by the daemon at pairing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// End 0.
    Zero,
    /// End 1.
    One,
}

impl End {
    /// The other end.
    #[must_use]
    pub const fn far(self) -> Self {
        match self {
            Self::Zero => Self::One,
            Self::One => Self::Zero,
        }
    }

    /// 0 or 1.
    pub const fn index(self) -> usize {
        match self {
            Self::Zero => 0,
            Self::One => 1,
        }
    }
}

impl TryFrom<u8> for End {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        match value {
            0 => Ok(Self::Zero),
            1 => Ok(Self::One),
            other => Err(other),
        }
    }
}

/// A typed view of one connection's memory from one end.
#[derive(Clone, Copy, Debug)]
pub struct ConnView {
    /// The header.
    pub header: &'static ConnHeader,
    /// What this end writes.
    pub mine: &'static EndWords,
    /// What the far end writes.
    pub theirs: &'static EndWords,
    /// Words of the ring that this end produces.
    pub tx_words: &'static ProducerWords,
    /// Data of the ring that this end produces.
    pub tx_data: RingBytes,
    /// Words of the ring that this end consumes.
    pub rx_words: &'static ProducerWords,
    /// Data of the ring that this end consumes.
    pub rx_data: RingBytes,
}

impl ConnView {
    /// The connection in `region` as `end` sees it; `None` if the ring size is out of range or the
    /// region is too small. The references live as long as the mapping (see [`Region::new`]).
    pub fn new(region: &Region, end: End, ring_log2: u32) -> Option<Self> {
        if !(RING_LOG2_MIN..=RING_LOG2_MAX).contains(&ring_log2) {
            return None;
        }
        let ring_bytes = 1usize << ring_log2;
        if region.len() < conn_bytes(ring_bytes) {
            return None;
        }
        let (me, far) = (end.index(), end.far().index());
        let words = size_of::<ProducerWords>();
        let tx = ring_offset(me, ring_bytes);
        let rx = ring_offset(far, ring_bytes);
        Some(Self {
            header: region.get(0)?,
            mine: region.get(end_offset(me))?,
            theirs: region.get(end_offset(far))?,
            tx_words: region.get(tx)?,
            tx_data: region.ring_bytes(tx + words, ring_bytes)?,
            rx_words: region.get(rx)?,
            rx_data: region.ring_bytes(rx + words, ring_bytes)?,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::mem::HeapRegion;

    #[test]
    fn both_ends_see_one_memory() {
        let bytes = 1usize << RING_LOG2_MIN;
        let heap = HeapRegion::new(conn_bytes(bytes));
        let region = heap.region();
        let zero = ConnView::new(&region, End::Zero, RING_LOG2_MIN).unwrap();
        let one = ConnView::new(&region, End::One, RING_LOG2_MIN).unwrap();
        assert!(core::ptr::eq(zero.mine, one.theirs));
        assert!(core::ptr::eq(zero.tx_words, one.rx_words));
        assert!(core::ptr::eq(one.tx_words, zero.rx_words));
    }

    #[test]
    fn nothing_overlaps_and_nothing_sticks_out() {
        for log2 in RING_LOG2_MIN..=24 {
            let bytes = 1usize << log2;
            assert!(end_offset(1) + 384 <= HEADER_BYTES);
            assert!(ring_offset(0, bytes) + 32 + bytes <= ring_offset(1, bytes));
            assert!(ring_offset(1, bytes) + 32 + bytes <= conn_bytes(bytes));
        }
    }

    #[test]
    fn a_region_too_small_or_a_ring_out_of_range_is_refused() {
        let heap = HeapRegion::new(8192);
        assert!(ConnView::new(&heap.region(), End::Zero, RING_LOG2_MIN).is_none());
        assert!(ConnView::new(&heap.region(), End::Zero, 3).is_none());
        assert!(ConnView::new(&heap.region(), End::Zero, 64).is_none());
    }
}
