//! The frontend driver: the client side of the local service.
//!
//! The preload library and the tools use it to talk to the daemon of their machine: connect, send and
//! receive control messages with descriptors, make and map shared memory. It allocates nothing,
//! blocks nowhere and calls no libc function (system calls go through rustix's raw backend), because
//! it runs inside other people's programs, below the hooks.
//!
//! * [`client`]: the control socket.
//! * [`memory`]: sealed memory and its mappings.
//! * [`descriptor`]: keeping our own descriptors out of the program's way.
//! * `device` (a feature): the shared memory of a virtual machine; for a process of its own.

pub mod client;
pub mod descriptor;
#[cfg(feature = "device")]
pub mod device;
pub mod memory;
