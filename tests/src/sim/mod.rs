//! A deterministic simulation of backends that relay connections: the switchboards, links and connection memory are
//! the real ones; clock, networks, kernels' connections and programs are models. A seed says everything that
//! happens, so it can be had again.
//!
//! * [`plan`]: what a seed means: hosts, networks, connections, and what is done to them when.
//! * [`world`]: the clock, and what must hold: streams byte for byte across ring and kernel, each end of stream once and
//!   in its place, nothing that waits for ever, all memory let go of.
//! * [`host`]: a backend. [`program`]: one end of a connection, as the preload library does it.
//! * [`path`]: a bad network. [`tcp`]: the kernel's connection. [`random`]: where chance comes from.

pub mod host;
pub mod path;
pub mod plan;
pub mod program;
pub mod random;
pub mod tcp;
pub mod world;

use self::plan::Plan;
use self::random::Random;
use self::world::{Summary, World};

/// Simulates a seed.
///
/// # Errors
/// What should never happen, and what led to it.
pub fn simulate(seed: u64) -> Result<Summary, String> {
    play(seed, false).map_err(|_| {
        let again = play(seed, true);
        let shown = again
            .err()
            .unwrap_or_else(|| "not the same twice".to_owned());
        format!("{shown}\nseed {seed}")
    })
}

fn play(seed: u64, notes: bool) -> Result<Summary, String> {
    let mut random = Random::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let plan = Plan::new(&mut random);
    World::new(plan, random, notes).run()
}
