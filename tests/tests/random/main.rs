//! Random sequences of calls on both ends of a connection: on kernel TCP and under the library every
//! call must say the same. A sequence that does not is made as short as it can be, and printed with the
//! command that plays it again.
//!
//! `corpus` holds the sequences that once differed; they are played first. `VIADUCT_SEED` is where the
//! random numbers start, `VIADUCT_LONG` the seconds that each test goes on for.

#![expect(clippy::print_stdout, reason = "seeds, for whoever looks at a failure")]

mod shrink;
mod strategy;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use viaduct_tests::random::model::Topology;
use viaduct_tests::random::operation::{Operation, from_text, to_text};
use viaduct_tests::random::play::{Mode, Stage, accelerated, play};
use viaduct_tests::rig::daemon::Daemon;

const PROGRAM: &str = env!("CARGO_BIN_EXE_differential");

/// Sequences that once differed: mode, topology, operations.
const CORPUS: &str = include_str!("corpus");

/// How long each test goes on, if nobody asks for more.
const USUAL: Duration = Duration::from_secs(6);

/// Sequences played with one seed.
const CASES: u32 = 8;

/// Longest sequence.
const LONGEST: usize = 50;

/// What one sequence says in two plays.
struct Bench {
    plain: Stage,
    other: Stage,
    _daemon: Daemon,
}

impl Bench {
    fn new(mode: Mode, topology: Topology) -> Self {
        let daemon = Daemon::start();
        let plain = Stage {
            program: PathBuf::from(PROGRAM),
            topology,
            mode,
            library: None,
        };
        let other = Stage {
            library: Some(accelerated(&daemon)),
            ..plain.clone()
        };
        Self {
            plain,
            other,
            _daemon: daemon,
        }
    }

    /// What the two plays disagree on, and the operations that were played until then. What the plain
    /// play does not even do twice in the same way is nobody's fault but the sequence's.
    fn difference(&self, operations: &[Operation]) -> Option<Difference> {
        let plain = play(&self.plain, operations);
        let other = play(&self.other, operations);
        let (at, shown) = plain.difference(&other)?;
        let again = play(&self.plain, operations);
        if let Some((_, fickle)) = plain.difference(&again) {
            println!("not the same twice, and so not compared: {fickle}");
            return None;
        }
        // On a loaded machine what is to be there in time may not be, once. Who searches wants to see even that.
        let differs_again = |_| {
            play(&self.plain, operations)
                .difference(&play(&self.other, operations))
                .is_some()
        };
        if !is_long() && !(0..TRIALS).any(differs_again) {
            println!(
                "differed once in {}: {shown}\n{}",
                TRIALS + 1,
                to_text(operations)
            );
            return None;
        }
        let played = [&plain.played, &other.played].map(|played| played.get(at).copied());
        let last = played.into_iter().flatten().max().unwrap_or(usize::MAX);
        let played = plain.played.iter().chain(&other.played);
        let needed = |number: &usize| *number <= last && played.clone().any(|one| one == number);
        let operations = operations.iter().enumerate();
        Some(Difference {
            shown,
            operations: operations
                .filter(|(number, _)| needed(number))
                .map(|(_, operation)| *operation)
                .collect(),
        })
    }
}

/// So often a sequence is played once more that has shown a difference.
const TRIALS: usize = 10;

/// Shown as it is replayed.
struct Sequence(Vec<Operation>);

impl fmt::Debug for Sequence {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&to_text(&self.0))
    }
}

/// A sequence that differs.
struct Difference {
    shown: String,
    operations: Vec<Operation>,
}

/// Plays sequences from `seed` on; a description of the shortest that differs.
fn search(bench: &Bench, seed: u64) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        // See `shrink`, which knows what was not even played.
        max_shrink_iters: 0,
        ..Config::default()
    };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, random);
    let edges = bench.plain.mode != Mode::During;
    let sequences = strategy::sequences(LONGEST, edges).prop_map(Sequence);
    let played = runner.run(&sequences, |Sequence(operations)| {
        match bench.difference(&operations) {
            None => Ok(()),
            Some(found) => Err(TestCaseError::fail(found.shown)),
        }
    });
    match played {
        Ok(()) => Ok(()),
        Err(TestError::Fail(_, Sequence(operations))) => {
            let found = shrink::shortest(&operations, |shorter| bench.difference(shorter));
            Err(report(bench, seed, &found))
        }
        Err(TestError::Abort(why)) => Err(format!("seed {seed}: {why}")),
    }
}

fn report(bench: &Bench, seed: u64, found: &Difference) -> String {
    let (mode, topology) = (bench.plain.mode, bench.plain.topology);
    let (shown, text) = (&found.shown, to_text(&found.operations));
    format!(
        "seed {seed}, {mode}, {topology}:\n{shown}\n\
         differential replay {mode} {topology} '{text}'\n\
         corpus: {mode} {topology} {text}"
    )
}

/// Whether somebody asks for more than the usual.
fn is_long() -> bool {
    std::env::var_os("VIADUCT_LONG").is_some()
}

fn random(mode: Mode, topology: Topology) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("VIADUCT_SEED").unwrap_or(1);
    let time = number("VIADUCT_LONG").map_or(USUAL, Duration::from_secs);
    let bench = Bench::new(mode, topology);
    let started = Instant::now();
    let mut seed = first;
    println!("{mode}, {topology}: seeds from {first}");
    while started.elapsed() < time {
        if let Err(shown) = search(&bench, seed) {
            panic!("{shown}");
        }
        seed += 1;
    }
    println!("{mode}, {topology}: seeds {first}..{seed}, {CASES} sequences each");
}

#[test]
fn what_once_differed() {
    let mut benches: Vec<Bench> = Vec::new();
    let mut failures = Vec::new();
    let lines = CORPUS.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().expect("mode, topology, operations");
        let mode = word().parse().expect("a mode");
        let topology = word().parse().expect("a topology");
        let operations = from_text(word()).expect("operations");
        let fits = |bench: &Bench| (bench.plain.mode, bench.plain.topology) == (mode, topology);
        let known = benches.iter().position(fits).unwrap_or_else(|| {
            benches.push(Bench::new(mode, topology));
            benches.len() - 1
        });
        let bench = &benches[known];
        if let Some(found) = bench.difference(&operations) {
            failures.push(format!("{line}\n{}", found.shown));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn upgraded_before_in_one_process() {
    random(Mode::Before, Topology::Single);
}

#[test]
fn upgraded_before_in_two_processes() {
    random(Mode::Before, Topology::Processes);
}

#[test]
fn upgraded_during_in_one_process() {
    random(Mode::During, Topology::Single);
}

#[test]
fn upgraded_during_in_two_processes() {
    random(Mode::During, Topology::Processes);
}

#[test]
fn never_upgraded() {
    random(Mode::Never, Topology::Processes);
}
