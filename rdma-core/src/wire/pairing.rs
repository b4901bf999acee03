//! What two backends say to each other to find the two ends of one connection. Each message is one control
//! message of their link: it comes once, and in order.
//!
//! ```text
//! leader (its end has the smaller address)         follower
//!   its program has registered
//!   OFFER(tuple, sample)            ------------>   waits until its own program registers, and looks at
//!                                                   the socket after that
//!                                   <------------   CANDIDATE(sample)
//!   looks at its socket once more, compares:
//!   one stream? makes memory
//!   PAIR(endpoint, rkey)            ------------>   makes memory
//!   tells its program               <------------   PAIRED(endpoint, rkey); tells its program
//! ```
//!
//! Either side may say REFUSE at any time before the end, and the leader WITHDRAW. Numbers of registrations
//! are those of the backend that gave them.
//!
//! When a backend has started anew and still has its connections, each side says RESUME for every connection
//! that it had with the other, as soon as the new session of their link is up. Whoever is asked for a connection
//! that it does not have answers GONE.

#![forbid(unsafe_code)]

mod emit;
mod parse;
mod raw;

use core::net::SocketAddr;

pub(crate) use raw::RawNames;

/// Largest message in bytes.
pub const PAIRING_MAX: usize = 128;

/// The two addresses of a connection, as the sender's end sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Names {
    /// The sender's end.
    pub own: SocketAddr,
    /// The receiver's end.
    pub far: SocketAddr,
}

/// What TCP says of one end at one moment; see `struct tcp_info` in tcp(7).
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Shift of the windows that this end receives.
    pub send_scale: u8,
    /// Shift of the windows that this end announces.
    pub receive_scale: u8,
    /// Largest segment this end sends.
    pub send_mss: u32,
    /// Largest segment this end said it takes.
    pub advertised_mss: u32,
    /// Bytes that the far end acknowledged; the connecting side's SYN counts as one.
    pub acked: u64,
    /// Bytes received in order.
    pub received: u64,
    /// Bytes ever sent, repetitions included.
    pub sent: u64,
}

/// Which memory takes what the far end sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The endpoint, as the sender of this message numbers it.
    pub endpoint: u32,
    /// The key of its receive ring.
    pub rkey: u32,
}

impl Place {
    /// Said where the hearer needs no place: whoever is between knows it.
    pub const NOWHERE: Self = Self {
        endpoint: 0,
        rkey: 0,
    };
}

/// A message about one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pairing {
    /// A program of the leader's has registered its end.
    Offer {
        /// The leader's registration.
        id: u64,
        /// Which connection.
        names: Names,
        /// Ring size that suits the leader, as a power of two.
        ring_log2: u8,
        /// Taken before the message was sent.
        sample: Sample,
    },
    /// The follower has the other end.
    Candidate {
        /// The leader's registration.
        offer: u64,
        /// The follower's.
        id: u64,
        /// Ring size that suits the follower.
        ring_log2: u8,
        /// Taken after the offer had come.
        sample: Sample,
    },
    /// They are one stream, and the leader has its memory.
    Pair {
        /// The follower's registration.
        id: u64,
        /// The leader's.
        offer: u64,
        /// Ring size of both.
        ring_log2: u8,
        /// Where the leader takes bytes.
        place: Place,
    },
    /// The follower has its memory too.
    Paired {
        /// The leader's registration.
        offer: u64,
        /// Where the follower takes bytes.
        place: Place,
    },
    /// The receiver's registration stays on TCP.
    Refuse {
        /// The receiver's registration.
        id: u64,
        /// A [`crate::Reason`] code.
        reason: u32,
    },
    /// The leader's registration is over before it was paired.
    Withdraw {
        /// The leader's registration.
        offer: u64,
    },
    /// The sender still has a connection of an earlier session, and goes on from here.
    Resume {
        /// Where the sender takes bytes.
        own: Place,
        /// The receiver's endpoint.
        far: u32,
        /// The sender has everything up to here.
        received: u64,
        /// The sender's program has read up to here.
        consumed: u64,
    },
    /// The sender does not have the connection that it was asked to resume.
    Gone {
        /// The receiver's endpoint.
        endpoint: u32,
        /// A [`crate::Reason`] code.
        reason: u32,
    },
}

/// Why bytes are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPairing {
    /// The kind is unknown.
    #[error("pairing message of unknown kind {0}")]
    Kind(u8),
    /// Too short or too long.
    #[error("pairing message of kind {kind} with {len} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Its length.
        len: usize,
    },
    /// A field is out of range.
    #[error("pairing message with a bad {0}")]
    Field(&'static str),
}

#[cfg(all(test, not(loom)))]
mod tests;
