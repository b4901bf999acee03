//! Virtual machines: the shared-memory device and what rests on it.
//!
//! * `member`: the device without a machine, against the daemon's side of the protocol.
//! * `guests`: real guests, without the daemon. Skipped where `scripts/test vm` has not prepared a kernel.
//! * `rig`: what tests with guests need.

mod guests;
mod member;
mod rig;
