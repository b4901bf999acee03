//! The socket cases of the `differential` program on kernel TCP and accelerated: equal, line by line.
//!
//! Every run is compared with a plain run of the same topology. Runs that are warmed up must also have
//! gone through the rings, case by case; the daemon's counters say so.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use viaduct_tests::compare::differences;
use viaduct_tests::rig::build;
use viaduct_tests::rig::compiler;
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::guests::Guests;
use viaduct_tests::rig::over::Over;
use viaduct_tests::rig::program::Form;

const DIFFERENTIAL: &str = env!("CARGO_BIN_EXE_differential");

/// Cases at a time: they mostly wait.
const JOBS: &str = "4";
/// The same for runs in every form.
const JOBS_OF_MANY: &str = "12";
/// Every case in every form of waiting, where it is not about sleeping inside a call.
const EVERY_FORM: &str = "--every-form";
/// What picks the cases of one form. The daemon keeps the totals of 1024 sessions, and there are more cases than that in all
/// forms.
const FORMS: [&str; 6] = [
    "/blocking",
    "/poll",
    "/select",
    "/level",
    "/edge",
    "/oneshot",
];

/// Cases that never go through a ring, warm or not: they make sure that something stays plain, or that
/// nothing is sent at all.
const PLAIN_CASES: &[&str] = &[
    // Short connections of many threads: whether one lasts long enough to switch depends on the load.
    "many_at_once",
    "a_connection_per_thread",
    "async_by_fcntl_fresh/",
    "async_by_ioctl_fresh/",
    "async_received/",
    "connect_refused_nonblocking/",
    "connect_to_itself/",
    "listener_closed/",
    "inetd/",
    "pass_fresh",
    "passed_before_connect",
    "forked_before_connect/",
    "duplicated_before_connect",
    "stranger_fresh/",
    "ulp_fresh/",
    "polled_unseen/",
    "spawned_fresh/",
    "stdio_fresh/",
    "splice_fresh/",
    "timestamps_fresh/",
    // Short connections, or upgraded too late for the daemon to count bytes.
    "accepted_",
    "accept_waits/",
    "connect_",
    "epoll_before_connect",
    "one_exchange_each/",
];

/// Cases that are not equal where backends relay, for what they send goes another way than the kernel's
/// connection: docs/limitations.md says how. In order: relayed and on TCP in one set; news looked for without
/// waiting; bytes under way when the far end closes; and when it has shut both directions down; an edge once more.
const NOT_RELAYED: &[&str] = &[
    "epoll_in_order",
    "exit_closes/",
    "recvmmsg_tells_the_error_first/",
    "killed_seen_by_any_call/",
    "reset_is_told_once/",
    "registered_and_told_once/",
];

/// Which sides run under the library.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sides {
    Both,
    A,
    B,
}

/// Runs the program, which watches over its cases itself; what it printed, and what it said of hangs.
fn run(form: &Form, words: &[&str]) -> (String, String) {
    let jobs = if words.contains(&EVERY_FORM) {
        JOBS_OF_MANY
    } else {
        JOBS
    };
    let mut command = form.command(DIFFERENTIAL);
    // A panic of an end is one line.
    command
        .env_remove("RUST_BACKTRACE")
        .args(["run", "--jobs", jobs])
        .args(words);
    let done = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&done.stdout), text(&done.stderr));
    assert!(done.status.success(), "{}: {stderr}", done.status);
    (stdout, stderr)
}

/// What the plain run of these options prints; run once.
fn plain(words: &[&str]) -> String {
    static RUNS: OnceLock<Mutex<HashMap<String, String>>> = OnceLock::new();
    let runs = RUNS.get_or_init(Mutex::default);
    let mut runs = runs.lock().expect("the plain runs");
    let first = || {
        let (stdout, stderr) = run(&Form::plain(), words);
        assert!(!stdout.contains(" hangs"), "the plain run hangs: {stderr}");
        stdout
    };
    runs.entry(words.join(" ")).or_insert_with(first).clone()
}

/// The environment of the ends, in which the library is loaded end by end.
fn settings(daemon: &Daemon) -> Form {
    settings_at(daemon.socket())
}

/// The same, for a daemon that listens here.
fn settings_at(socket: &Path) -> Form {
    Form::plain()
        .with("VIADUCT_SOCKET", socket)
        .with("VIADUCT_PEERS", "127.0.0.0/8,::1")
        .with("VIADUCT_UPGRADE_AFTER", "0")
}

/// Runs accelerated and compares with plain; how many bytes went through rings in each case.
fn compare(daemon: &Daemon, form: &Form, words: &[&str], sides: Sides) -> Vec<(String, u64)> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let evidence = directory.path().join("evidence");
    let (evidence, library) = (evidence.to_string_lossy(), build::library());
    let library = library.to_string_lossy();
    let mut all = words.to_vec();
    all.extend(["--evidence", &evidence]);
    if sides != Sides::B {
        all.extend(["--preload-a", &library]);
    }
    if sides != Sides::A {
        all.extend(["--preload-b", &library]);
    }
    if words.contains(&"--warm") && sides == Sides::Both {
        all.push("--ring");
    }
    let expected = plain(words);
    let (stdout, stderr) = run(form, &all);
    let shown = differences(&comparable(&expected), &comparable(&stdout));
    assert!(
        shown.is_empty(),
        "the runs differ:\n{shown}\nstderr:\n{stderr}"
    );
    let counted = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next()?.to_owned();
        let session = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((name, ring_bytes(&daemon.totals(session))))
    };
    let evidence = std::fs::read_to_string(&*evidence).expect("the evidence");
    evidence.lines().filter_map(counted).collect()
}

/// Bytes through rings, out of a daemon's totals.
fn ring_bytes(totals: &serde_json::Value) -> u64 {
    let number = |name: &str| totals[name].as_u64().expect("a number");
    number("ring_tx_bytes") + number("ring_rx_bytes")
}

/// Cases for which the daemon must reach into another process; see [`may_reach`].
const REACHING: &str = "_beside_idle";

/// What is compared of a run's output.
fn comparable(output: &str) -> String {
    let is_left_out = |line: &&str| {
        let case = line.split(['/', ' ']).next();
        case.is_some_and(|case| case.contains(REACHING)) && !may_reach()
    };
    output
        .lines()
        .filter(|line| !is_left_out(line))
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[test]
fn what_is_left_out_is_said() {
    if !may_reach() {
        println!("skipped: *{REACHING}*: the daemon may not reach into other processes (Yama)");
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: set_user_id_program: an ordinary program runs, for want of root");
    }
    if compiler::compile("int main(void) { return 0; }", &["-static"]).is_none() {
        println!(
            "skipped: static_program: an ordinary program runs, for want of a static C library"
        );
    }
}

/// Whether a daemon of this user may duplicate descriptors of programs of this user.
fn may_reach() -> bool {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    rustix::process::geteuid().is_root() || scope.is_ok_and(|scope| scope.trim() == "0")
}

/// Runs accelerated at both ends and compares with plain; every case must have gone through a ring, except those that
/// must not. Beside many others a short connection may end before it is paired: such a case is played alone.
fn compare_by_ring(daemon: &Daemon, form: &Form, words: &[&str]) {
    const TRIES: usize = 3;
    let went = |counted: &[(String, u64)], case: &str| {
        counted
            .iter()
            .any(|(name, bytes)| name == case && *bytes > 0)
    };
    let counted = compare(daemon, form, words, Sides::Both);
    let idle = counted
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| {
            !went(&counted, name) && !PLAIN_CASES.iter().any(|plain| name.starts_with(plain))
        });
    let alone = |case: &str| {
        let words = [words, &["--only", case]].concat();
        went(&compare(daemon, form, &words, Sides::Both), case)
    };
    let idle: Vec<&str> = idle
        .filter(|case| !(0..TRIES).any(|_| alone(case)))
        .collect();
    assert!(idle.is_empty(), "no byte went through a ring: {idle:?}");
}

fn sum(counted: &[(String, u64)]) -> u64 {
    counted.iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn upgraded_before_the_case() {
    let daemon = Daemon::start();
    for form in FORMS {
        let words = ["--warm", EVERY_FORM, "--only", form];
        compare_by_ring(&daemon, &settings(&daemon), &words);
    }
}

/// The ends belong to two daemons, as on two hosts.
#[test]
fn relayed_over_a_link() {
    let [daemon, other] = Daemon::linked("");
    let socket = other.socket().to_string_lossy();
    for form in FORMS {
        let words = ["--warm", EVERY_FORM, "--only", form];
        relayed(&daemon, &words, &["--socket-b", &socket]);
    }
}

/// The ends belong to two guests of one tenant, which share a region.
#[test]
fn between_guests_of_one_tenant() {
    let guests = Guests::start(&["one", "one"], &[]);
    between(&guests, &[]);
    assert!(guests.host.status()["vms"]["machines"][0]["offences"] == 0);
}

/// The ends belong to two guests of two tenants, between which the host copies.
#[test]
fn between_guests_of_two_tenants() {
    let guests = Guests::start(&["one", "two"], &[]);
    between(&guests, NOT_RELAYED);
}

/// Compares a run between two guests with a plain one, but for some cases.
fn between(guests: &Guests, left_out: &[&str]) {
    let [one, other] = [0, 1].map(|index: usize| guests.guests[index].socket());
    let other = other.to_string_lossy();
    compare_apart(
        &settings_at(one),
        &["--warm"],
        &["--socket-b", &other],
        left_out,
    );
}

/// The ends belong to two users, who share no memory.
#[test]
fn relayed_between_two_users() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: another user's program needs root");
        return;
    }
    let daemon = Daemon::start();
    relayed(&daemon, &["--warm", "--user-b", "65534"], &[]);
    let status = daemon.status();
    let refused = &status["daemon"]["refused"];
    assert_eq!(refused["untrusted"].as_u64(), None, "{refused}");
    let copied = status["relay"]["domains"][0]["bytes"].as_u64();
    assert!(copied > Some(1 << 20), "{copied:?}");
}

/// Compares a run of which everything is relayed; `more` are words that a plain run has no use for.
fn relayed(daemon: &Daemon, words: &[&str], more: &[&str]) {
    compare_apart(&settings(daemon), words, more, NOT_RELAYED);
}

/// Compares a run whose ends are served apart.
fn compare_apart(form: &Form, words: &[&str], more: &[&str], left_out: &[&str]) {
    let expected = without(&plain(words), left_out);
    let library = build::library();
    let library = library.to_string_lossy();
    let accelerated = ["--ring", "--preload-a", &library, "--preload-b", &library];
    let words = [words, &accelerated, more].concat();
    let (stdout, stderr) = run(form, &words);
    let stdout = without(&stdout, left_out);
    let shown = differences(&comparable(&expected), &comparable(&stdout));
    assert!(
        shown.is_empty(),
        "the runs differ:\n{shown}\nstderr:\n{stderr}"
    );
}

/// A run's output but for some cases.
fn without(output: &str, cases: &[&str]) -> String {
    let kept = output
        .lines()
        .filter(|line| !cases.iter().any(|case| line.starts_with(case)));
    kept.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn upgraded_before_the_case_roles_swapped() {
    let daemon = Daemon::start();
    let words = ["--warm", "--swap"];
    compare_by_ring(&daemon, &settings(&daemon), &words);
}

#[test]
fn upgraded_during_the_case() {
    let daemon = Daemon::start();
    let words = [EVERY_FORM];
    assert!(sum(&compare(&daemon, &settings(&daemon), &words, Sides::Both)) > 0);
}

#[test]
fn upgraded_after_the_default_number_of_calls() {
    let daemon = Daemon::start();
    let form = Form::plain()
        .with("VIADUCT_SOCKET", daemon.socket())
        .with("VIADUCT_PEERS", "127.0.0.0/8,::1");
    let words = [EVERY_FORM];
    assert!(sum(&compare(&daemon, &form, &words, Sides::Both)) > 0);
}

#[test]
fn two_threads_of_one_process() {
    let daemon = Daemon::start();
    let words = ["--topology", "threads", "--warm"];
    compare_by_ring(&daemon, &settings(&daemon), &words);
}

#[test]
fn both_ends_in_one_thread() {
    let daemon = Daemon::start();
    let words = ["--topology", "single", "--warm"];
    compare_by_ring(&daemon, &settings(&daemon), &words);
}

#[test]
fn only_the_client_accelerated() {
    let daemon = Daemon::start();
    let words = ["--warm"];
    let counted = compare(&daemon, &settings(&daemon), &words, Sides::A);
    assert_eq!(sum(&counted), 0);
}

#[test]
fn only_the_server_accelerated() {
    let daemon = Daemon::start();
    let words = ["--warm"];
    let counted = compare(&daemon, &settings(&daemon), &words, Sides::B);
    assert_eq!(sum(&counted), 0);
}

#[test]
fn nobody_is_a_peer() {
    let daemon = Daemon::start();
    let form = settings(&daemon).with("VIADUCT_PEERS", "192.0.2.0/24");
    assert_eq!(sum(&compare(&daemon, &form, &[], Sides::Both)), 0);
    let status = daemon.status();
    let known = status["processes"].as_array().map(Vec::len);
    assert_eq!(known, Some(0), "somebody spoke to the daemon");
}

/// Without spinning every wait is a sleep, and every wake-up a doorbell.
#[test]
fn without_spinning() {
    let daemon = Daemon::start();
    let form = settings(&daemon).with("VIADUCT_SPIN_US", "0");
    compare_by_ring(&daemon, &form, &["--warm"]);
}

/// The smallest ring: everything wraps, and every large send meets a full ring. Cases that rely on
/// the kernel's larger buffers are left out.
#[test]
fn smallest_ring() {
    let daemon = Daemon::start();
    let form = settings(&daemon).with("VIADUCT_RING_BYTES", "65536");
    let cases = [
        "echo/",
        "both_ways/",
        "one_way/",
        "woken",
        "waitall",
        "sendfile_large/",
        "lowat_beyond",
        "two_",
    ];
    for case in cases {
        let words = ["--warm", "--only", case];
        compare_by_ring(&daemon, &form, &words);
    }
}

/// Everything is revoked again and again, at any moment. Left out are cases whose results depend on how
/// much the ring or the kernel holds, or that count edges: going back may post one.
#[test]
fn revoked_at_random_times() {
    const PAUSE_MAX_US: u64 = 60_000;
    let daemon = Daemon::start();
    let (socket, form) = (daemon.socket(), settings(&daemon));
    let over = AtomicBool::new(false);
    let revoked = std::thread::scope(|scope| {
        let revoker = scope.spawn(|| {
            let mut revoked = 0;
            let mut random = 0x5eed_u64;
            while !over.load(Ordering::Relaxed) {
                random = random.wrapping_mul(6_364_136_223_846_793_005) + 1;
                std::thread::sleep(Duration::from_micros((random >> 33) % PAUSE_MAX_US));
                revoked += revoke_all(socket);
            }
            revoked
        });
        let stop = Over(&over);
        let cases = [
            "echo/",
            // Not stranger_both_ways: what was given back to TCP and not read yet cannot be passed on.
            "^both_ways/",
            "large_both_ways/",
            "one_way/",
            // Not epoll_two_sets: a connection that goes back to TCP may report an edge of its own.
            "two_readers/",
            "two_waiters/",
            "two_writers/",
            "back_by_two_threads/",
            "close_while_two_recv/",
            "back_under_load/",
            "back_at_both_ends/",
            "back_while_the_far_end_waits/",
            "fork_both_write/",
            "storm_of_signals/",
        ];
        let shown: String = cases
            .into_iter()
            .map(|case| {
                let words = ["--warm", "--only", case];
                let library = build::library();
                let library = library.to_string_lossy();
                let mut all = words.to_vec();
                all.extend(["--preload-a", &library, "--preload-b", &library]);
                let (stdout, stderr) = run(&form, &all);
                let shown = differences(&plain(&words), &stdout);
                if shown.is_empty() {
                    shown
                } else {
                    format!("{shown}\nstderr:\n{stderr}\n")
                }
            })
            .collect();
        drop(stop);
        assert!(shown.is_empty(), "the runs differ:\n{shown}");
        revoker.join().expect("the tool answers")
    });
    assert!(revoked > 0, "nothing was revoked");
}

/// Runs `viaduct revoke --all`; how many connections went back to TCP.
fn revoke_all(socket: &Path) -> u64 {
    let mut tool = std::process::Command::new(build::viaduct());
    tool.args(["revoke", "--all", "--json", "--socket"])
        .arg(socket);
    let done = tool.output().expect("the tool starts");
    let answer: serde_json::Value = serde_json::from_slice(&done.stdout).expect("an answer");
    answer["revoked"].as_u64().expect("a number")
}
