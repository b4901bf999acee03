//! Virtual machines: the shared-memory device and what rests on it.
//!
//! * `member`: the device without a machine, against the daemon's side of the protocol.
//! * `booted`: real guests: the bare device, the paths that bytes take, and guests that harm their host. Skipped where `scripts/test vm` has not prepared a kernel.
//! * `rig`, `site`: what tests with guests need; a daemon and its guests.

mod booted;
mod member;
mod rig;
mod site;
