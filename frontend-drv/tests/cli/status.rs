//! `viaduct status` and what it shares with `viaduct top`.

use std::process::Stdio;

use crate::fake_daemon::{Answers, FakeDaemon};
use crate::scene::{directory, finish, viaduct};

const STATUS: &str = r#"{"daemon": {"version": "9.9.9", "pid": 77, "uptime_s": 5, "clients": 1, "pairs": 1},
    "processes": [{"process": 4, "pid": 1, "command": "server", "counters": {"upgraded": 1},
      "reasons": {"young": 3}}],
    "connections": [{"process": 4, "pid": 1, "slot": 0, "own": "10.0.0.1:5000", "far": "10.0.0.2:6000",
      "stage": "attached", "tx_state": "ring", "rx_state": "draining", "reason": null,
      "ring_tx": 1048576, "ring_rx": 0, "tcp_tx": 10, "tcp_rx": 20, "wakeups": 1, "sleeps": 2}]}"#;

#[test]
fn connections_and_processes_are_tabled() {
    let dir = directory();
    let answers = Answers {
        status: STATUS.to_owned(),
        ..Answers::default()
    };
    let daemon = FakeDaemon::start(&dir.path().join("d.sock"), answers);
    let status = finish(viaduct(dir.path(), &["status", "--socket", daemon.path()]));
    assert_eq!(status.code(), Some(0), "{status:?}");
    let text = status.stdout();
    for words in [
        "viaductd 9.9.9, pid 77",
        "server 1",
        "10.0.0.2:6000",
        "ring/draining",
        "1.0 MiB",
        "young 3",
    ] {
        assert!(text.contains(words), "no \"{words}\" in\n{text}");
    }

    let json = finish(viaduct(
        dir.path(),
        &["status", "--json", "--socket", daemon.path()],
    ));
    assert_eq!(json.stdout().trim_end(), STATUS);
}

#[test]
fn the_embedded_daemon_is_found_too() {
    let dir = directory();
    std::fs::create_dir(dir.path().join("viaduct")).unwrap();
    let socket = dir.path().join("viaduct/viaductd.sock");
    let _daemon = FakeDaemon::start(&socket, Answers::default());
    let status = finish(viaduct(dir.path(), &["status"]));
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn no_daemon_is_one_line_that_names_the_path_and_the_remedy() {
    let dir = directory();
    let missing = dir.path().join("no.sock");
    let missing = missing.to_str().unwrap();
    let status = finish(viaduct(dir.path(), &["status", "--socket", missing]));
    status.assert_fails(1, &[missing, "start viaductd"]);
    let mut command = viaduct(dir.path(), &["status"]);
    command.env("VIADUCT_SOCKET", missing);
    finish(command).assert_fails(1, &[missing, "VIADUCT_SOCKET"]);
}

#[test]
fn another_version_and_nonsense_are_told_apart() {
    let dir = directory();
    let ask = |name: &str, answers: Answers| {
        let daemon = FakeDaemon::start(&dir.path().join(name), answers);
        finish(viaduct(dir.path(), &["status", "--socket", daemon.path()]))
    };
    let version = Answers {
        version: Some(42),
        ..Answers::default()
    };
    ask("a", version).assert_fails(1, &["another version", "42"]);
    let layout = Answers {
        limits: r#"{"layout_version": 77}"#.to_owned(),
        ..Answers::default()
    };
    ask("b", layout).assert_fails(1, &["another version", "memory layout 77"]);
    let nonsense = Answers {
        limits: "<html>".to_owned(),
        ..Answers::default()
    };
    ask("c", nonsense).assert_fails(1, &["does not answer as a daemon"]);
}

#[test]
fn a_reader_that_has_left_is_no_error() {
    let dir = directory();
    let daemon = FakeDaemon::start(&dir.path().join("d.sock"), Answers::default());
    let mut command = viaduct(dir.path(), &["status", "--socket", daemon.path()]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
}

#[test]
fn top_wants_a_terminal() {
    let dir = directory();
    finish(viaduct(dir.path(), &["top"])).assert_fails(1, &["terminal", "viaduct status"]);
}
