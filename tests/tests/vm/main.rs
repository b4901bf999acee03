//! Virtual machines: the shared-memory device and what rests on it.
//!
//! * `member`: the device without a machine, against the daemon's side of the protocol.

mod member;
