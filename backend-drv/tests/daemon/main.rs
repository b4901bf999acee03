//! `viaductd` from outside: a real daemon, real sockets, and clients good and bad.
//!
//! `cargo test -p viaduct-backend --test daemon`. Tests that need root or a second user say
//! "skipped" and why.

#![expect(missing_docs, reason = "tests")]

mod client;
mod pairing;
