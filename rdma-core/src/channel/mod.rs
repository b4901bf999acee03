//! The channel between a guest's frontend driver and its host's backend, in the memory that both map.
//!
//! ```text
//! region   0      RegionHeader     written by the backend when it makes the region
//!       4096      what makes persistent memory of it, for the kernels of guests
//!       8192      ControlArea of member 1: two byte rings, down and up
//!         ...     ControlArea of member 2, ..., of member MEMBERS - 1
//! CACHED_START    RegionHeader, again
//!   HEAP_START    whatever the backend gives out: event memory, connection memory
//! ```
//!
//! A guest may have what lies behind [`CACHED_START`] from another device than the rest, one whose memory it caches.
//!
//! A *region* is the memory of one virtual machine, or of all virtual machines of one tenant. Whoever shares it has a
//! number in it, as the device tells: the backend is member 0. Each other member has a control area, through which it
//! and the backend tell each other [`Up`] and [`Down`] messages: what programs and backends say to each other in
//! [`crate::control`] and [`crate::wire::pairing`], with places in the region instead of descriptors. Whoever has
//! written rings vector [`CONTROL_VECTOR`] of the other.
//!
//! A ring never blocks its writer: what does not fit waits with the writer. Everything that is read from a region may
//! have been written by anybody who maps it: lengths and positions are checked, and a message is parsed from a private
//! copy. A member that breaks the rules is not served any more; nobody else is concerned.
//!
//! A guest whose driver starts anew says HELLO with another nonce, and both sides begin with empty rings: whoever
//! writes a ring begins a new *incarnation* of it, and its reader follows when it sees that.

mod area;
mod message;

pub use crate::control::{DOORBELL_REGISTER, GUEST_PROCESS_MIN, GUEST_PROCESSES, doorbell_value};
pub use area::{ControlRing, Direction, Fault, Writer, control_offset};
pub use message::{
    BadMessage, Bell, Down, Grant, GuestContext, GuestHello, GuestWelcome, MESSAGE_BYTES, Up,
};

use crate::mem::Shared;
use crate::sync::{AtomicU32, AtomicU64};

/// Version of everything in this module.
pub const CHANNEL_VERSION: u32 = 3;

/// First word of a region: "VIADUCTR".
pub const REGION_MAGIC: u64 = u64::from_le_bytes(*b"VIADUCTR");

/// Members of a region, the backend included.
pub const MEMBERS: u16 = 64;

/// The backend's number.
pub const BACKEND: u16 = 0;

/// The vector that says: look at your control ring.
pub const CONTROL_VECTOR: u16 = 0;

/// Bytes of one direction of a control area.
pub const CONTROL_RING_BYTES: usize = 32 * 1024;

/// Distance between two control areas.
pub const CONTROL_AREA_BYTES: usize = 2 * (CONTROL_RING_BYTES + 4096);

/// Where the control areas begin: behind the header and the info block.
const CONTROL_AREAS_AT: usize = 8192;

/// Where kernels look for the info block of persistent memory, of 4096 bytes.
pub const INFO_BLOCK_AT: u64 = 4096;

const CONTROL_AREAS_END: usize = CONTROL_AREAS_AT + (MEMBERS as usize - 1) * CONTROL_AREA_BYTES;

/// Where the heap begins.
pub const HEAP_START: u64 = (CONTROL_AREAS_END + 4096).next_multiple_of(1 << 20) as u64;

/// Where persistent memory made of the region begins: with a second [`RegionHeader`], by which a guest knows that it
/// is of the same region.
pub const CACHED_START: u64 = HEAP_START - 4096;

/// Smallest region: control areas, the event memory of a few programs, and a few connections.
pub const REGION_MIN: u64 = 64 << 20;

/// At the beginning of a region. Information: what counts is said in WELCOME.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct RegionHeader {
    /// [`REGION_MAGIC`].
    pub magic: AtomicU64,
    /// [`CHANNEL_VERSION`].
    pub version: AtomicU32,
    /// [`crate::layout::LAYOUT_VERSION`].
    pub layout_version: AtomicU32,
    /// Size of the region.
    pub bytes: AtomicU64,
    /// A number that no other region has, by chance.
    pub id: AtomicU64,
}

#[expect(unsafe_code, reason = "marker: repr(C), atomics only")]
// SAFETY: a repr(C) struct of atomics; every bit pattern is valid.
unsafe impl Shared for RegionHeader {}
