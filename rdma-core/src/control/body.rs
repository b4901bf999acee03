//! The bodies of the control messages: plain data, checked when parsed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// HELLO: a program introduces itself. Beside it: its slot arena (a memfd of
/// [`crate::slot::ARENA_BYTES`], sealed against shrinking and growing) and a NETLINK_SOCK_DIAG socket
/// of its network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Hello {
    /// [`crate::layout::LAYOUT_VERSION`] of the program's library.
    pub layout_version: u32,
    /// Wanted ring size as a power of two; the daemon clamps it to its limits.
    pub ring_log2: u32,
    /// Names the `viaduct run` that started the program, so that it can ask for totals; zero if none.
    pub session: u64,
}

/// CONTEXT: a waiting context and, beside it, its doorbell (an eventfd). CONTEXT_KNOWN: every process
/// that is paired with this one now has the doorbell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Context {
    /// Number of the context, below [`crate::event::CONTEXTS`].
    pub context: u32,
    /// Zero.
    pub reserved: u32,
}

/// A context of some process. KICK: ring its doorbell, which the sender has not got.
/// PEER_CONTEXT: here is its doorbell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ContextRef {
    /// The process.
    pub process: u32,
    /// The context, below [`crate::event::CONTEXTS`].
    pub context: u32,
}

/// REGISTER: one end of a connection. Beside it an O_PATH descriptor of the socket's inode, by which
/// the daemon proves that the sender holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Register {
    /// Slot of the connection, below [`crate::slot::SLOTS`].
    pub slot: u32,
    /// Generation of the slot, repeated in the answer.
    pub generation: u32,
    /// SO_COOKIE of the socket.
    pub cookie: u64,
    /// How often connect succeeded on this socket.
    pub connects: u32,
    /// 1: called connect. 2: accepted.
    pub side: u8,
    /// 4 or 6: the family of the two addresses (v4-mapped addresses are sent as 4).
    pub family: u8,
    /// This end's port.
    pub own_port: u16,
    /// The far end's port.
    pub far_port: u16,
    /// Zero.
    pub reserved: [u8; 6],
    /// This end's address in network order; an IPv4 address stands in the first four bytes.
    pub own_addr: [u8; 16],
    /// The far end's address.
    pub far_addr: [u8; 16],
}

/// UNREGISTER: the sender has closed its end and touches the connection's memory no more. RETRACTED: it has
/// left its ring, in which its far end may have bytes that must be sent once more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SlotRef {
    /// The slot.
    pub slot: u32,
    /// Its generation when it was registered.
    pub generation: u32,
}

/// QUERY: what a tool wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Query {
    /// 1: status (connections and processes). 2: totals of a session. 3: version and limits.
    pub what: u32,
    /// Zero.
    pub reserved: u32,
    /// The session, for 2.
    pub session: u64,
}

impl Query {
    /// Connections and processes.
    pub const STATUS: u32 = 1;
    /// Totals of one session.
    pub const TOTALS: u32 = 2;
    /// Version and limits.
    pub const LIMITS: u32 = 3;
}

/// REVOKE: a tool asks for connections to be taken back to TCP for good: those for which all of `what` is
/// true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Revoke {
    /// Which of the other fields count; none: all connections.
    pub what: u32,
    /// Process id of the program at either end, as the daemon sees it.
    pub pid: u32,
    /// The daemon's number of the connection.
    pub conn_id: u64,
    /// Network of the address of either end, in network order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
    /// 4 or 6.
    pub family: u8,
    /// Leading bits of `addr` that count.
    pub prefix: u8,
    /// Port of the end that has the address; 0 is any.
    pub port: u16,
    /// Zero.
    pub reserved: u32,
}

impl Revoke {
    /// `addr`, `family`, `prefix` and `port` count.
    pub const ADDRESS: u32 = 1;
    /// `pid` counts.
    pub const PID: u32 = 2;
    /// `conn_id` counts.
    pub const CONNECTION: u32 = 4;
    /// All that may stand in `what`.
    pub const KNOWN: u32 = Self::ADDRESS | Self::PID | Self::CONNECTION;
}

/// WELCOME: the answer to HELLO. Beside it the program's event memory
/// ([`crate::event::EVENT_BYTES`]), or a file of which it is a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Welcome {
    /// The program's number; see [`crate::event::WaitRef::process`].
    pub process: u32,
    /// [`crate::layout::LAYOUT_VERSION`] of the daemon.
    pub layout_version: u32,
    /// Differs between two runs of the daemon: process numbers are only comparable inside one.
    pub epoch: u64,
    /// Where the event memory begins in the file beside the message; a multiple of 4096.
    pub at: u64,
    /// Tells the processors of this machine from those of another that shares memory with it: 0 on a host, in a
    /// guest its number, below 65,536. See [`crate::layout::ProducerWords::cpu`].
    pub machine: u32,
    /// Zero.
    pub reserved: u32,
}

/// REFUSED: a registration stays on TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Refused {
    /// The slot.
    pub slot: u32,
    /// Its generation.
    pub generation: u32,
    /// A [`crate::Reason`] code.
    pub reason: u32,
    /// Zero.
    pub reserved: u32,
}

/// PEER: a process that holds the far end of one of our connections; beside it its event memory, or a file of
/// which that is a part. PEER_GONE: it has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Peer {
    /// The process.
    pub process: u32,
    /// Zero.
    pub reserved: u32,
    /// PEER: where the event memory begins in the file; a multiple of 4096.
    pub at: u64,
}

/// PEER_REGISTER: a context of a process in another virtual machine. Its doorbell is rung by a store of `value`
/// to the doorbell register ([`super::DOORBELL_REGISTER`]) of the device whose first page of
/// registers is the first page of the file beside the message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PeerRegister {
    /// The process.
    pub process: u32,
    /// The context, below [`crate::event::CONTEXTS`].
    pub context: u32,
    /// What to store; below 2^31.
    pub value: u32,
    /// Zero.
    pub reserved: u32,
}

/// PAIRED: both ends have registered; here is the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Paired {
    /// The slot.
    pub slot: u32,
    /// Its generation.
    pub generation: u32,
    /// The daemon's number of the connection, not 0.
    pub conn_id: u64,
    /// The arena that holds the memory. Its descriptor is beside the message if the arena is new to
    /// this program.
    pub arena: u32,
    /// Ring size as a power of two.
    pub ring_log2: u32,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Where the connection starts in it.
    pub offset: u64,
    /// Where the arena begins in the file beside the message; a multiple of 4096.
    pub at: u64,
    /// The process at the far end; see [`crate::event::WaitRef::process`].
    pub peer: u32,
    /// Which end the receiver is: 0 or 1.
    pub end: u8,
    /// 1: a backend relays the connection, and is the far end of its memory. Otherwise 0.
    pub relayed: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// REPORT and FAILURE: text in UTF-8 follows this body.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Text {
    /// Not 0: another REPORT follows. In FAILURE: a [`crate::Reason`] code.
    pub more: u32,
    /// Zero.
    pub reserved: u32,
}
