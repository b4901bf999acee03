//! What a burst has filled is given back when the ring has been empty for a while, and nothing else is.

use std::os::unix::fs::MetadataExt;

use rdma_core::layout::{RING_LOG2_DEFAULT, conn_bytes};
use rdma_core::trim::KEPT_BYTES;
use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::linked::Linked;
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way, skipped};

/// Nearly a ring.
const BURST: usize = 4_000_000;
/// What is left of the memory of a connection: its words, and the beginning of either ring.
const KEPT: u64 = 4096 + 2 * KEPT_BYTES as u64;
/// Somebody who is not root.
const NOBODY: u32 = 65_534;

/// How the two programs are connected.
#[derive(Clone, Copy, Debug)]
enum Path {
    /// They share memory.
    Direct,
    /// The daemon copies between them: they are two users.
    Here,
    /// Over a link of two daemons.
    Link,
}

/// Two programs on a path, and who serves them.
struct Setting {
    daemons: Vec<Daemon>,
    duo: Duo,
    /// Memories that one connection has.
    memories: u64,
}

impl Setting {
    /// `None`: it takes root.
    fn new(path: Path, trim_after_ms: u32) -> Option<Self> {
        let limits = format!("[limits]\ntrim_after_ms = {trim_after_ms}\n");
        let agent = |daemon: &Daemon| Agent::start(&Form::accelerated(daemon.socket()));
        match path {
            Path::Direct => {
                let daemon = Daemon::configured(&limits);
                let (server, client) = (agent(&daemon), agent(&daemon));
                Some(Self {
                    daemons: vec![daemon],
                    duo: Duo { server, client },
                    memories: 1,
                })
            }
            Path::Here => {
                if !rustix::process::geteuid().is_root() {
                    skipped("another user's program needs root");
                    return None;
                }
                let daemon = Daemon::configured(&limits);
                let form = Form::accelerated(daemon.socket());
                let server = Agent::start(&form.as_user(NOBODY));
                let client = agent(&daemon);
                Some(Self {
                    daemons: vec![daemon],
                    duo: Duo { server, client },
                    memories: 2,
                })
            }
            Path::Link => {
                let daemons = Daemon::linked(&limits);
                let [server, client] = [agent(&daemons[0]), agent(&daemons[1])];
                Some(Self {
                    daemons: daemons.into(),
                    duo: Duo { server, client },
                    memories: 2,
                })
            }
        }
    }

    /// Connection memory in use.
    fn touched(&self) -> u64 {
        self.daemons.iter().map(touched).sum()
    }

    /// How often memory was given back.
    fn trimmed(&self) -> u64 {
        let of = |daemon: &Daemon| daemon.status()["daemon"]["trimmed"].as_u64();
        self.daemons.iter().filter_map(of).sum()
    }
}

/// Connection memory that exists, as its owner's descriptors tell.
fn touched(daemon: &Daemon) -> u64 {
    let descriptors = format!("/proc/{}/fd", daemon.pid().as_raw_nonzero());
    let mut bytes = 0;
    for entry in std::fs::read_dir(descriptors).expect("it lives").flatten() {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        if name.to_string_lossy().contains("viaduct-connections") {
            bytes += std::fs::metadata(entry.path()).map_or(0, |file| file.blocks() * 512);
        }
    }
    bytes
}

#[test]
fn are_given_back_after_a_burst_and_filled_by_the_next() {
    for path in [Path::Direct, Path::Here, Path::Link] {
        let Some(mut setting) = Setting::new(path, 40) else {
            continue;
        };
        setting.duo.connect(0);
        setting.duo.warm_up(0, Way::Ring);
        let kernel = setting.duo.kernel(0);
        for seed in 1..=4 {
            let duo = &mut setting.duo;
            let (put, take) = (
                format!("put 0 {BURST} {seed}"),
                format!("take 0 {BURST} {seed}"),
            );
            let sender = if seed % 2 == 0 {
                &mut duo.server
            } else {
                &mut duo.client
            };
            assert_eq!(sender.ask(&put), "ok");
            let full = setting.touched();
            assert!(full >= BURST as u64, "{path:?}: {full}");
            let duo = &mut setting.duo;
            let receiver = if seed % 2 == 0 {
                &mut duo.client
            } else {
                &mut duo.server
            };
            assert_eq!(receiver.ask(&take), "ok");
            let most = KEPT * setting.memories;
            retry("the memory is given back", || {
                (setting.touched() <= most).then_some(())
            });
            setting.duo.both("ping 0 10", "pong 0 10");
        }
        setting.duo.stream(0, BURST);
        assert_eq!(setting.duo.kernel(0), kernel, "all of it went by the rings");
        assert!(setting.trimmed() >= 4, "{path:?}");
    }
}

#[test]
fn are_kept_where_memory_is_taken_beforehand() {
    let daemon = Daemon::configured("[limits]\nallocate = true\ntrim_after_ms = 1\n");
    let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
    assert_eq!(duo.client.ask(&format!("put 0 {BURST} 1")), "ok");
    assert_eq!(duo.server.ask(&format!("take 0 {BURST} 1")), "ok");
    crate::duo::settle();
    let all = conn_bytes(1 << RING_LOG2_DEFAULT) as u64;
    assert!(touched(&daemon) >= all);
}

#[test]
fn are_never_taken_from_a_burst_that_begins() {
    race(Path::Direct, false);
}

#[test]
fn are_never_taken_from_a_burst_that_a_child_begins() {
    race(Path::Direct, true);
}

#[test]
fn are_never_taken_from_a_burst_that_the_daemon_copies() {
    race(Path::Here, true);
}

#[test]
fn are_never_taken_from_a_burst_that_comes_over_a_link() {
    race(Path::Link, true);
}

/// The program has closed, and nobody is at its end of the memory; what it has sent waits for the link.
#[test]
fn are_kept_while_bytes_of_a_program_that_has_closed_are_there() {
    let linked = Linked::configured(30, "[limits]\ntrim_after_ms = 200\n");
    let [near, far] = &linked.daemons;
    let agent = |daemon: &Daemon| Agent::start(&Form::accelerated(daemon.socket()));
    let mut duo = Duo {
        server: agent(far),
        client: agent(near),
    };
    duo.connect(0);
    duo.warm_up(0, Way::Ring);
    let mut others = Duo::connected(&Form::accelerated(near.socket()), Way::Ring);
    duo.both("put 0 200000 1", "take 0 200000 1");
    // So that this end's daemon knows that they were read.
    duo.both("ping 0 10", "pong 0 10");
    linked.wire.cut(true);
    assert_eq!(duo.client.ask("put 0 1000000 2"), "ok");
    assert_eq!(duo.client.ask("close 0"), "ok");
    let trimmed = || near.status()["daemon"]["trimmed"].as_u64();
    for seed in 3..6 {
        let before = trimmed();
        others.both(
            &format!("put 0 1000000 {seed}"),
            &format!("take 0 1000000 {seed}"),
        );
        retry("the daemon gives memory of others back", || {
            (trimmed() > before).then_some(())
        });
    }
    linked.wire.cut(false);
    assert_eq!(duo.server.ask("take 0 1000000 2"), "ok");
    assert_eq!(duo.server.ask("recv 0 1"), "ret 0");
}

/// Looks each millisecond, at programs whose bursts begin at any moment.
fn race(path: Path, forks: bool) {
    const CONNECTIONS: usize = 2;
    const ROUNDS: usize = 12;
    let Some(mut setting) = Setting::new(path, 1) else {
        return;
    };
    for index in 0..CONNECTIONS {
        setting.duo.connect(index);
        setting.duo.warm_up(index, Way::Ring);
    }
    let kernel = setting.duo.kernel(0);
    let enough = if std::env::var_os("VIADUCT_LONG").is_some() {
        2000
    } else {
        20
    };
    let mut seed = 1;
    let mut races = 0;
    while races == 0 || setting.trimmed() < enough {
        for index in 0..CONNECTIONS {
            let forks = u8::from(forks);
            let line = |own, far| format!("bursts {index} {ROUNDS} {own} {far} {forks}");
            setting
                .duo
                .both(&line(seed, seed + 1), &line(seed + 1, seed));
            seed += 2;
        }
        races += 1;
        assert!(races < 1000, "{path:?}: {} times", setting.trimmed());
    }
    if !forks {
        assert_eq!(setting.duo.kernel(0), kernel, "all of it went by the rings");
    }
}
