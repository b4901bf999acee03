//! Backends, links and programs under a virtual clock, seed by seed; see `viaduct_tests::sim`.
//!
//! `VIADUCT_SEED` is the first seed, `VIADUCT_LONG` the seconds that the test goes on for. With a seed alone only
//! that one is played.

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use viaduct_tests::sim::simulate;
use viaduct_tests::sim::world::Summary;

/// Seeds that are played if nobody asks for more.
const SEEDS: u64 = 3000;

/// Seeds that find what was once wrong: a program that closes before both backends know of its connection, a reader
/// that is made to leave behind the end of its sender, a sender that writes after its reader has left, RST for
/// bytes that had come by TCP, a sender that ends while its daemon sends for it.
const ONCE: [u64; 5] = [20, 583, 672, 1801, 3469];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeds_that_once_failed() {
    for seed in ONCE {
        simulate(seed).unwrap_or_else(|shown| panic!("{shown}"));
    }
}

#[test]
fn a_seed_is_the_same_twice() {
    for seed in [1, 2, 3, 7, 50] {
        assert_eq!(simulate(seed), simulate(seed));
    }
}

#[test]
fn nothing_is_lost() {
    let first = number("VIADUCT_SEED").unwrap_or(1);
    let time = number("VIADUCT_LONG").map(Duration::from_secs);
    let last = match (time, number("VIADUCT_SEED")) {
        (Some(_), _) => u64::MAX,
        (None, Some(seed)) => seed,
        (None, None) => SEEDS,
    };
    let started = Instant::now();
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let total = Mutex::new(Summary::default());
    let failures: Vec<String> = thread::scope(|scope| {
        let play = || {
            while !failed.load(Ordering::Relaxed)
                && time.is_none_or(|time| started.elapsed() < time)
            {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed > last {
                    break;
                }
                let played = catch_unwind(|| simulate(seed));
                let played = played.unwrap_or_else(|_| Err(format!("a panic\nseed {seed}")));
                match played {
                    Ok(summary) => *total.lock().expect("no panic") += summary,
                    Err(shown) => {
                        failed.store(true, Ordering::Relaxed);
                        return Some(shown);
                    }
                }
            }
            None
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(play)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .filter_map(|result| result.expect("panics are caught"))
            .collect()
    });
    let played = next.load(Ordering::Relaxed).min(last.saturating_add(1)) - first;
    let total = total.into_inner().expect("no panic");
    println!(
        "{played} seeds from {first} in {:?}: {total:#?}",
        started.elapsed()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    // What is there to be tested has happened.
    if played >= SEEDS {
        let happened = [
            total.by_ring,
            total.granted,
            total.confirmed,
            total.sessions_ended,
            total.broken,
            total.restored,
            total.crossed,
            total.emptied,
            total.throttled,
        ];
        assert!(!happened.contains(&0), "{total:?}");
    }
}
