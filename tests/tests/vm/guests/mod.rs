//! Real guests. `scripts/test` runs what is in here in a stage of its own.

mod device;
mod isolation;
mod paths;
