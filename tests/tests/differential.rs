//! The socket cases of the `differential` program on kernel TCP and accelerated: equal, line by line.
//!
//! Every run is compared with a plain run of the same topology. Runs that are warmed up must also have
//! gone through the rings, case by case; the daemon's counters say so.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use viaduct_tests::build;
use viaduct_tests::compare::differences;
use viaduct_tests::daemon::Daemon;
use viaduct_tests::program::{self, finish};

const DIFFERENTIAL: &str = env!("CARGO_BIN_EXE_differential");

/// Cases at a time: they mostly wait.
const JOBS: &str = "4";

/// Cases that never go through a ring, warm or not: they make sure that something stays plain, or that
/// nothing is sent at all.
const PLAIN_CASES: &[&str] = &[
    // Short connections of many threads: whether one lasts long enough to switch depends on the load.
    "many_at_once",
    "a_connection_per_thread",
    "connect_refused_nonblocking/",
    "connect_to_itself/",
    "listener_closed/",
    "inetd/",
    "pass_fresh",
    "stdio_fresh/",
    "splice_fresh/",
    // Short connections, or upgraded too late for the daemon to count bytes.
    "accepted_",
    "accept_waits/",
    "connect_",
    "epoll_before_connect",
    "fork_server/",
    "one_exchange_each/",
];

/// Which sides run under the library.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sides {
    Both,
    A,
    B,
}

fn command(words: &[&str]) -> Command {
    let mut command = program::plain(DIFFERENTIAL);
    command.args(["run", "--jobs", JOBS]).args(words);
    command
}

/// What the plain run of these options prints; run once.
fn plain(words: &[&str]) -> String {
    static KNOWN: OnceLock<Mutex<HashMap<String, String>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let mut known = known.lock().expect("the table of plain runs");
    let run = || {
        let done = finish(command(words));
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(
            !done.stdout.contains(" hangs"),
            "the plain run hangs: {}",
            done.stderr
        );
        done.stdout
    };
    known.entry(words.join(" ")).or_insert_with(run).clone()
}

/// Runs accelerated and compares with plain; what the daemon counted for each case.
fn compare(
    daemon: &Daemon,
    words: &[&str],
    sides: Sides,
    change: impl FnOnce(&mut Command),
) -> Vec<(String, u64)> {
    let expected = plain(words);
    let evidence = daemon.directory().join("evidence");
    let mut command = command(words);
    program::configure(&mut command, &daemon.socket());
    command.arg("--evidence").arg(&evidence);
    for (flag, on) in [
        ("--preload-a", sides != Sides::B),
        ("--preload-b", sides != Sides::A),
    ] {
        if on {
            command.arg(flag).arg(build::library());
        }
    }
    if words.contains(&"--warm") && sides == Sides::Both {
        command.arg("--ring");
    }
    change(&mut command);
    let done = finish(command);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let shown = differences(&comparable(&expected), &comparable(&done.stdout));
    assert!(
        shown.is_empty(),
        "the runs differ:\n{shown}\nstderr:\n{}",
        done.stderr
    );
    let counted = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next()?.to_owned();
        let session = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((name, daemon.totals(session).ring_bytes))
    };
    let evidence = std::fs::read_to_string(evidence).expect("the evidence");
    evidence.lines().filter_map(counted).collect()
}

/// Cases in which the library is known to differ from the kernel, and why. They run all the same (a
/// hang or a crash elsewhere shows), but their lines are not compared.
const KNOWN: &[(&str, &str)] = &[
    ("null_pointers", POINTERS),
    ("unmapped_pointers", POINTERS),
    ("bad_vectors", POINTERS),
    ("buffers_that_end", POINTERS),
    ("epoll_polled", SPURIOUS),
    ("epoll_nested", SPURIOUS),
    ("splice_later", "splice on a ring is refused with EINVAL"),
    (
        "exec_later",
        "a ring is handed over before exec only by its one holder",
    ),
    (
        "sendfile_bad",
        "some refusals of sendfile have another errno",
    ),
    ("close_while_recv", PINNED),
    ("dup2_and_signal_while_recv", PINNED),
];
const POINTERS: &str = "bad pointers beyond the first page fault in our copy instead of EFAULT";
const SPURIOUS: &str = "a watched epoll set may be reported readable once too often";
const PINNED: &str = "a close does not wait for a receive that is blocked in another thread";

/// What is compared of a run's output.
fn comparable(output: &str) -> String {
    let is_known = |line: &&str| {
        let case = line.split(['/', ' ']).next();
        KNOWN.iter().any(|(known, _)| case == Some(known))
    };
    output
        .lines()
        .filter(|line| !is_known(line))
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[test]
fn known_differences_are_said() {
    for (case, why) in KNOWN {
        println!("skipped: {case}: {why}");
    }
}

/// Asserts that every case went through a ring, except those that must not.
fn assert_ring(counted: &[(String, u64)]) {
    let idle: Vec<&str> = counted
        .iter()
        .filter(|(name, bytes)| {
            *bytes == 0 && !PLAIN_CASES.iter().any(|plain| name.starts_with(plain))
        })
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(idle.is_empty(), "no byte went through a ring: {idle:?}");
}

fn ring_bytes(counted: &[(String, u64)]) -> u64 {
    counted.iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn upgraded_before_the_case() {
    let daemon = Daemon::start();
    assert_ring(&compare(&daemon, &["--warm"], Sides::Both, |_| ()));
}

#[test]
fn upgraded_before_the_case_roles_swapped() {
    let daemon = Daemon::start();
    assert_ring(&compare(
        &daemon,
        &["--warm", "--swap"],
        Sides::Both,
        |_| (),
    ));
}

#[test]
fn upgraded_during_the_case() {
    let daemon = Daemon::start();
    assert!(ring_bytes(&compare(&daemon, &[], Sides::Both, |_| ())) > 0);
}

#[test]
fn upgraded_after_the_default_number_of_calls() {
    let daemon = Daemon::start();
    let counted = compare(&daemon, &[], Sides::Both, |command| {
        command.env_remove("VIADUCT_UPGRADE_AFTER");
    });
    assert!(ring_bytes(&counted) > 0);
}

#[test]
fn two_threads_of_one_process() {
    let daemon = Daemon::start();
    assert_ring(&compare(
        &daemon,
        &["--topology", "threads", "--warm"],
        Sides::Both,
        |_| (),
    ));
}

#[test]
fn both_ends_in_one_thread() {
    let daemon = Daemon::start();
    assert_ring(&compare(
        &daemon,
        &["--topology", "single", "--warm"],
        Sides::Both,
        |_| (),
    ));
}

#[test]
fn only_the_client_accelerated() {
    let daemon = Daemon::start();
    assert_eq!(
        ring_bytes(&compare(&daemon, &["--warm"], Sides::A, |_| ())),
        0
    );
}

#[test]
fn only_the_server_accelerated() {
    let daemon = Daemon::start();
    assert_eq!(
        ring_bytes(&compare(&daemon, &["--warm"], Sides::B, |_| ())),
        0
    );
}

#[test]
fn nobody_is_a_peer() {
    let daemon = Daemon::start();
    let counted = compare(&daemon, &[], Sides::Both, |command| {
        command.env("VIADUCT_PEERS", "192.0.2.0/24");
    });
    assert_eq!(ring_bytes(&counted), 0);
    let status = daemon.status();
    assert_eq!(
        status["processes"].as_array().map(Vec::len),
        Some(0),
        "somebody spoke to the daemon"
    );
}

/// Without spinning every wait is a sleep, and every wake-up a doorbell.
#[test]
fn without_spinning() {
    let daemon = Daemon::start();
    assert_ring(&compare(&daemon, &["--warm"], Sides::Both, |command| {
        command.env("VIADUCT_SPIN_US", "0");
    }));
}

/// The smallest ring: everything wraps, and every large send meets a full ring. Cases that rely on
/// the kernel's larger buffers are left out.
#[test]
fn smallest_ring() {
    for case in [
        "echo/",
        "both_ways/",
        "one_way/",
        "woken",
        "waitall",
        "sendfile_large/",
        "two_",
    ] {
        let daemon = Daemon::start();
        assert_ring(&compare(
            &daemon,
            &["--warm", "--only", case],
            Sides::Both,
            |command| {
                command.env("VIADUCT_RING_BYTES", "65536");
            },
        ));
    }
}
