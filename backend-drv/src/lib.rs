//! The backend driver of a host: the library behind `viaductd`.
//!
//! Programs come over a Unix socket, prove which TCP connections they hold, and get memory that they
//! share with the far end. The daemon carries no payload: once two ends are paired they need it no
//! more, and their connection outlives it.
//!
//! Parts, from pure to privileged:
//!
//! * [`pairing`], [`carving`], [`broker`]: the state machine. Input: parsed messages and facts learned
//!   from the kernel. Output: [`broker::Action`]. No I/O, no clock.
//! * [`accounts`], [`ledger`]: what each user may still have, and what the tools ask about; written
//!   by the event loop and read by the [`reporter`]'s thread, which writes each [`report`].
//! * [`memory`], [`shared`]: mapped memory; all unsafe code of the crate is in `memory` and in [`nic::sys`].
//! * [`sock_diag`], [`identity`]: questions to the kernel, and checks of what clients send.
//! * [`wake`]: waking programs.
//! * [`packet`], [`doorbell`], [`throttle`]: descriptors, messages and log lines, in bounded ways.
//! * [`withdrawal`], [`rescue`], [`direction`]: taking connections off the ring from outside, and sending
//!   for idle programs what that leaves to be sent.
//! * [`trim`]: giving back the memory of rings that are empty.
//! * [`relay`]: connections to other hosts.
//! * [`keeper`]: what outlives the daemon, so that the next one goes on with them.
//! * [`vm`]: virtual machines and their shared memory; [`uplink`]: a guest's side of it; [`space`]: its free parts.
//! * [`workers`], [`disposal`]: threads for what a client could make last for ever.
//! * [`nic`]: how frames come to the daemons of other hosts; [`raw_bench`] measures them.
//! * [`config`], [`listener`], [`namespaces`], [`privileges`], [`daemon`]: start-up and the event loop.
//!
//! Everything a client sends is hostile until checked. A client can lose its own connection, its own
//! quota and its own acceleration, never those of others.
//!
//! Tests: `cargo test -p viaduct-backend`; some need root and say so when they are skipped.

pub mod accounts;
pub mod broker;
pub mod carving;
pub mod config;
pub mod daemon;
pub mod direction;
pub mod disposal;
pub mod doorbell;
pub mod identity;
pub mod ids;
pub mod keeper;
pub mod ledger;
pub mod listener;
pub mod memory;
pub mod namespaces;
pub mod nic;
pub mod packet;
pub mod pairing;
pub mod privileges;
pub mod raw_bench;
pub mod relay;
pub mod report;
pub mod reporter;
pub mod rescue;
pub mod scheduling;
pub mod shared;
pub mod sock_diag;
pub mod space;
pub mod throttle;
pub mod trim;
pub mod uplink;
pub mod vm;
pub mod wake;
pub mod withdrawal;
pub mod workers;
