//! What the two sides of a Viaduct channel agree on.
//!
//! The crate holds everything that a preloaded program, its local backend and (later) a guest
//! frontend must interpret in exactly the same way: the byte ring, the memory of a connection, the
//! event channels, the local control protocol, the peer policy and the list of reasons for staying
//! on TCP. It performs no I/O: no system call, no clock, no thread, no global state. Memory is given
//! to it as a [`mem::Region`]; whoever owns the mapping keeps it alive.
//!
//! Parts, bottom up:
//!
//! * [`sync`]: the only place that names atomics (std, or loom under `--cfg loom`).
//! * [`mem`]: the only place with unsafe code: typed views into shared regions and the byte copies.
//! * [`layout`]: the connection memory, word by word.
//! * [`ring`]: single-producer single-consumer byte ring over that memory.
//! * [`handshake`]: arming, switching, ending and breaking one direction of a connection.
//! * [`event`]: event channels: pending bits, the sleeping word, wait references.
//! * [`slot`]: the end slot: the state that the processes of *one* end share with each other and
//!   with their backend, and that the far end can never reach.
//! * [`mirror`]: a backend's side of a connection that it relays.
//! * [`withdraw`]: what the daemon does to a slot and its connection to take it off the ring.
//! * [`trim`]: what of an empty ring is given back.
//! * [`control`]: the local control protocol, versioned and length-checked.
//! * [`policy`], [`reason`], [`counters`]: who is a peer, why a connection is plain, what was counted.
//! * [`spin`], [`crowd`]: how long waiters spin, and how they share processors with others.
//!
//! With the feature `link` (backends, not programs) also what two backends share:
//!
//! * `channel`: what a guest and its host tell each other in the memory that both map.
//! * `wire`: the frames between hosts, as total parsers and emitters.
//! * `link`: the state machine of one link: handshake, loss recovery, scheduling, sealing.
//! * `mr`: memory regions and the check of every remote access.
//!
//! Trust: everything read from a region may have been written by a hostile program. Each shared word
//! is loaded once into a local value, checked, and only the local value is used. `Empty`/`Full` and
//! `Corrupt` are different answers (see [`ring::Corrupt`]).
//!
//! Tests: `cargo test -p viaduct-rdma-core`; the interleavings with
//! `RUSTFLAGS="--cfg loom" cargo test -p viaduct-rdma-core --release --test loom --target-dir target/loom`.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "link")]
pub mod channel;
pub mod control;
pub mod counters;
pub mod crowd;
pub mod event;
pub mod handshake;
pub mod layout;
#[cfg(feature = "link")]
pub mod link;
pub mod mem;
pub mod mirror;
#[cfg(feature = "link")]
pub mod mr;
pub mod policy;
pub mod reason;
pub mod ring;
pub mod slot;
pub mod spin;
pub mod sync;
pub mod trim;
#[cfg(feature = "link")]
pub mod wire;
pub mod withdraw;

pub use counters::ProcessCounters;
pub use policy::{Policy, Verdict};
pub use reason::Reason;
