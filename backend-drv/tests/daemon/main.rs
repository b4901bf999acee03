//! `viaductd` from outside: a real daemon, real sockets, and clients good and bad.
//!
//! `cargo test -p viaduct-backend --test daemon`. Tests that need root, another user or a network
//! namespace print "skipped" and why where they cannot run.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests: a failure is a panic, and what was skipped is printed"
)]

mod client;
mod departure;
mod helper;
mod identity;
mod limits;
mod pairing;
mod protocol;
mod rescue;
mod revoke;
mod server;
mod service;
mod tools;
mod trust;
