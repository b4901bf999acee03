//! Virtual machines on this host.
//!
//! * [`server`]: how a VM gets its shared-memory device: the protocol that QEMU speaks.

pub mod server;
