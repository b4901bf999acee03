//! The built `viaduct` as a user meets it: what it prints, how it exits, what it starts.
//!
//! The daemon is a fake ([`fake_daemon`]) that answers queries and nothing else, and the library an
//! empty one, compiled on the spot; without a C compiler, tests that need it say so and pass.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests panic where something is not as it must be, and say what they skip"
)]

mod bench;
mod doctor;
mod embedded;
mod fake_daemon;
mod peers;
mod revoke;
mod run;
mod scene;
mod status;
