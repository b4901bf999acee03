//! Interleavings and weak memory: what runs side by side in this crate, explored by loom.
#![cfg(loom)]

#[path = "loom/close.rs"]
mod close;
#[path = "loom/lock.rs"]
mod lock;
#[path = "loom/restart.rs"]
mod restart;
#[path = "loom/rig.rs"]
mod rig;
#[path = "loom/switch.rs"]
mod switch;
#[path = "loom/wake.rs"]
mod wake;
