//! Two links over a bad path, with a virtual clock: streams arrive byte for byte, whatever the path does.
//!
//! `SEED=n` runs one seed of each test, `SEEDS=n` so many.

#![cfg(feature = "link")]

#[path = "link/crypto.rs"]
mod crypto;
#[path = "link/fairness.rs"]
mod fairness;
#[path = "link/life.rs"]
mod life;
#[path = "link/queues.rs"]
mod queues;
#[path = "link/rig.rs"]
mod rig;
#[path = "link/streams.rs"]
mod streams;

use std::env;

/// Runs a test for many seeds; says which one failed.
fn for_seeds(count: u64, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => 0..count,
        (None, None) => 0..count,
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "SEED={seed} fails");
    }
}
