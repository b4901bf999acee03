//! The local control protocol: a program's frontend and the daemon of its machine.
//!
//! One message per packet of a Unix `SOCK_SEQPACKET` socket; file descriptors travel beside it
//! (`SCM_RIGHTS`). Every message is a [`Header`] and a body of fixed size (only [`kind::REPORT`] and
//! [`kind::FAILURE`] carry text behind it). Native byte order: both sides run on one machine. The
//! version stands in every header and never changes its place.
//!
//! ```text
//! program                                          daemon
//!   HELLO     + slot arena, netlink socket   --->
//!                                            <---  WELCOME  + event memory
//!   CONTEXT   + doorbell (eventfd)           --->
//!                                            <---  CONTEXT_KNOWN (every present peer has it)
//!   REGISTER  + O_PATH fd of the socket      --->
//!                                            <---  REFUSED, or when the far end registered too:
//!                                            <---  PEER           + the peer process's event memory
//!                                            <---  PEER_CONTEXT   + doorbell, one each
//!                                            <---  PEER_REGISTER  + registers of a device, one each
//!                                            <---  PAIRED         + arena, if new to this program
//!   KICK (doorbell not at hand)              --->
//!   RETRACTED (has left its ring)            --->  (the far end is to send the rest by TCP)
//!   UNREGISTER                               --->  (memory is reused after both ends did)
//!                                            <---  PEER_GONE
//! tool
//!   QUERY, REVOKE                            --->
//!                                            <---  REPORT, REPORT, ... (JSON text in pieces)
//! ```
//!
//! After each message to a program the daemon raises the mailbox word in that program's slot arena
//! ([`crate::slot::ArenaHeader::mailbox`]), so that nobody has to poll a socket.
//!
//! Parsing is total: any bytes give a message or a [`ParseError`], never a panic, and a reader may
//! rely on every documented range.

#![forbid(unsafe_code)]

mod body;
mod message;

pub use body::*;
pub use message::{FdCount, Header, Message, ParseError, parse};

/// Version of the control protocol.
pub const CONTROL_VERSION: u16 = 3;

/// First word of every message: "VDCT".
pub const CONTROL_MAGIC: u32 = u32::from_le_bytes(*b"VDCT");

/// Largest message in bytes; a longer one is an error whatever it says.
pub const MESSAGE_MAX: usize = 32 * 1024;

/// Most file descriptors beside one message.
pub const FDS_MAX: usize = 4;

/// Offset of the doorbell register of an ivshmem device: a store of `member << 16 | vector` rings that vector of that
/// member (QEMU, docs/specs/ivshmem-spec.txt). See [`PeerRegister`].
pub const DOORBELL_REGISTER: usize = 12;

/// Where programs look for the daemon when VIADUCT_SOCKET does not say otherwise.
pub const DEFAULT_SOCKET: &str = "/run/viaduct/viaductd.sock";

/// Message kinds. Below 100: to the daemon. From 100: from the daemon.
pub mod kind {
    /// See [`super::Hello`].
    pub const HELLO: u16 = 1;
    /// See [`super::Context`].
    pub const CONTEXT: u16 = 2;
    /// See [`super::Register`].
    pub const REGISTER: u16 = 3;
    /// See [`super::SlotRef`].
    pub const UNREGISTER: u16 = 4;
    /// See [`super::ContextRef`].
    pub const KICK: u16 = 5;
    /// See [`super::Query`].
    pub const QUERY: u16 = 6;
    /// See [`super::SlotRef`].
    pub const RETRACTED: u16 = 7;
    /// See [`super::Revoke`].
    pub const REVOKE: u16 = 8;
    /// See [`super::Welcome`].
    pub const WELCOME: u16 = 101;
    /// See [`super::Refused`].
    pub const REFUSED: u16 = 102;
    /// See [`super::Peer`].
    pub const PEER: u16 = 103;
    /// See [`super::ContextRef`].
    pub const PEER_CONTEXT: u16 = 104;
    /// See [`super::Paired`].
    pub const PAIRED: u16 = 105;
    /// See [`super::Peer`].
    pub const PEER_GONE: u16 = 106;
    /// See [`super::Context`].
    pub const CONTEXT_KNOWN: u16 = 107;
    /// See [`super::Text`].
    pub const REPORT: u16 = 108;
    /// See [`super::Text`]. The daemon closes the connection after it.
    pub const FAILURE: u16 = 109;
    /// See [`super::PeerRegister`].
    pub const PEER_REGISTER: u16 = 110;
}

/// What to store to [`DOORBELL_REGISTER`].
pub const fn doorbell_value(member: u16, vector: u16) -> u32 {
    (member as u32) << 16 | vector as u32
}

/// Numbers that the programs of one virtual machine may have: its host gives each guest a block of them, of which the
/// upper half is the host's own.
pub const GUEST_PROCESSES: u32 = 4096;

/// Smallest process number of a guest's program that its device serves; smaller ones are its own daemon's, or a host's.
pub const GUEST_PROCESS_MIN: u32 = 1 << 21;

/// Whether process `far` is outside the guest that process `own` is in.
pub const fn is_outside_guest(own: u32, far: u32) -> bool {
    if own < GUEST_PROCESS_MIN || far < GUEST_PROCESS_MIN {
        return false;
    }
    own / GUEST_PROCESSES != far / GUEST_PROCESSES || far % GUEST_PROCESSES >= GUEST_PROCESSES / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_one_guest_are_not_outside() {
        let first = GUEST_PROCESS_MIN + 3 * GUEST_PROCESSES;
        let upper = first + GUEST_PROCESSES / 2;
        for inside in [first, upper - 1, 7] {
            assert!(!is_outside_guest(first + 5, inside), "{inside}");
        }
        for outside in [first - 1, upper, first + GUEST_PROCESSES, u32::MAX] {
            assert!(is_outside_guest(first + 5, outside), "{outside}");
        }
        assert!(!is_outside_guest(7, first), "it is not served");
    }
}
