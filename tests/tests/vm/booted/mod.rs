//! Real guests. `scripts/test` runs what is in here in a stage of its own.

mod cached;
mod device;
mod drain;
mod isolation;
mod paths;
mod restarts;
