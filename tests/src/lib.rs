//! What the end-to-end tests stand on.
//!
//! Nothing here knows how the library works: the tests see what a user sees, except for the far ends in
//! [`rig::far`], which speak the protocol themselves.
//!
//! * [`rig`]: real processes: a private daemon, programs plain and under the library, far ends that lie.
//! * [`sys`] and [`show`]: what the programs of this package call, and how they print what it did.
//! * [`compare`]: two outputs, line by line.
//! * [`random`]: random sequences of calls on both ends of a connection.
//! * [`sim`]: backends and programs under a virtual clock; this alone knows how things work inside.
//! * [`vm`]: virtual machines.
//!
//! Run with `cargo test -p viaduct-tests` after `cargo build --workspace`.

pub mod compare;
pub mod random;
pub mod rig;
pub mod show;
pub mod sim;
pub mod sys;
pub mod vm;
