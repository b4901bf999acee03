//! What the end-to-end tests stand on: the built programs, a daemon of one's own, programs run with
//! and without the preload library, and what the daemon counted.
//!
//! Nothing here knows how the library works: the tests see what a user sees.
//!
//! * [`build`]: where the programs under test are.
//! * [`daemon`]: a private `viaductd`. [`program`]: programs under watch. [`counters`]: its reports.
//! * [`compare`]: two outputs, line by line.
//! * [`sys`] and [`show`]: what the programs of this package call, and how they print it.
//! * [`rig`]: agents, daemons and far ends of the survival tests.
//!
//! Run with `cargo test -p viaduct-tests` after `cargo build --workspace`.

pub mod build;
pub mod compare;
pub mod counters;
pub mod daemon;
pub mod program;
pub mod rig;
pub mod show;
pub mod sys;
