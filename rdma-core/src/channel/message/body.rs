//! What the larger messages carry.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A guest's driver has started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GuestHello {
    /// [`CHANNEL_VERSION`](crate::channel::CHANNEL_VERSION).
    pub version: u32,
    /// [`LAYOUT_VERSION`](crate::layout::LAYOUT_VERSION).
    pub layout_version: u32,
    /// Differs between two runs of the driver.
    pub nonce: u64,
}

/// The answer to HELLO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GuestWelcome {
    /// The nonce that is answered.
    pub nonce: u64,
    /// Where the guest puts event memory of its programs; a multiple of 4096.
    pub heap_at: u64,
    /// How much of it there is.
    pub heap_bytes: u64,
    /// The first number of the guest's programs.
    pub first_process: u32,
    /// How many numbers there are.
    pub processes: u32,
    /// See [`crate::control::Welcome::machine`].
    pub machine: u32,
    /// Zero.
    pub reserved: u32,
}

/// A program's context that others may have to wake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GuestContext {
    /// The program.
    pub process: u32,
    /// The context.
    pub context: u32,
    /// The member of the region that is interrupted.
    pub member: u16,
    /// By which vector.
    pub vector: u16,
    /// Zero.
    pub reserved: u32,
}

/// Memory for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Grant {
    /// The guest's registration.
    pub registration: u64,
    /// The backend's number of the connection.
    pub connection: u64,
    /// Where in the region the arena begins; a multiple of 4096.
    pub at: u64,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Where in the arena the connection begins.
    pub offset: u64,
    /// Number of the arena.
    pub arena: u32,
    /// Ring size as a power of two.
    pub ring_log2: u32,
    /// The process at the far end: a program of another guest, or the backend's relay.
    pub peer: u32,
    /// Which end the guest's program is.
    pub end: u8,
    /// 1: a backend relays.
    pub relayed: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// How a context is woken, as a grant to its peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bell {
    /// The member of the region that is interrupted.
    pub member: u16,
    /// By which vector.
    pub vector: u16,
}
