//! `viaduct revoke`: connections go back to TCP under programs that wait, stream, or are stopped.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use viaduct_tests::rig::build;
use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::over::Over;
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way, forms, settle};
use crate::pattern::Pattern;

const MIB: usize = 1 << 20;

/// Runs `viaduct revoke`: its exit status and what the daemon said.
pub(crate) fn revoke(daemon: &Daemon, words: &[&str]) -> (Option<i32>, Value) {
    revoke_at(daemon.socket(), words)
}

pub(crate) fn revoke_at(socket: &Path, words: &[&str]) -> (Option<i32>, Value) {
    let mut tool = Command::new(build::viaduct());
    tool.args(["revoke", "--json", "--socket"])
        .arg(socket)
        .args(words);
    let done = tool.output().expect("the tool starts");
    let answer = serde_json::from_slice(&done.stdout);
    (done.status.code(), answer.expect("the daemon's answer"))
}

/// All ends of upgraded connections are on TCP for good, and say why.
fn assert_revoked(daemon: &Daemon, ends: usize) {
    retry("both directions are on TCP", || {
        let status = daemon.status();
        let list = status["connections"].as_array()?;
        let revoked = list.iter().filter(|connection| {
            connection["tx_state"] == "returned"
                && connection["rx_state"] == "returned"
                && connection["reason"] == "revoked"
        });
        (revoked.count() == ends && list.len() == ends).then_some(())
    });
}

/// One end is inside `call`, and the other idle, when their connection is revoked; what the program sees is
/// what it would see without us.
fn revoked_during(call: &str) {
    let daemon = Daemon::start();
    let [plain, accelerated] = forms(&daemon).map(|(form, way)| {
        let mut duo = Duo::new(&form);
        let mut seen = Vec::new();
        for index in 0..2 {
            duo.connect(index);
            duo.warm_up(index, way);
            if index == 1 {
                std::mem::swap(&mut duo.server, &mut duo.client);
            }
            seen.extend(woken_after_revocation(&daemon, &mut duo, index, call, way));
            if way == Way::Ring {
                assert_revoked(&daemon, 2);
            }
            duo.both(&format!("close {index}"), &format!("close {index}"));
        }
        seen
    });
    assert_eq!(accelerated, plain, "accelerated (left), plain (right)");
}

/// The server waits on connection `index`, the client speaks: what the server sees.
fn woken_after_revocation(
    daemon: &Daemon,
    duo: &mut Duo,
    index: usize,
    call: &str,
    way: Way,
) -> Vec<String> {
    let mut seen = Vec::new();
    for round in 0..3 {
        duo.server.tell(&call.replace('I', &index.to_string()));
        settle();
        if round == 0 && way == Way::Ring {
            let (code, answer) = revoke(daemon, &["--all"]);
            assert_eq!((code, &answer["revoked"]), (Some(0), &Value::from(1)));
            assert_revoked(daemon, 2);
            settle();
        }
        assert_eq!(duo.client.ask(&format!("send {index} 5")), "ret 5");
        seen.push(duo.server.answer());
        if !call.starts_with("recv") {
            seen.push(duo.server.ask(&format!("recv {index} 100")));
        }
    }
    duo.warm_up(index, Way::Kernel);
    duo.stream(index, MIB);
    seen
}

#[test]
fn while_blocked_in_recv() {
    revoked_during("recv I 10");
}

#[test]
fn while_blocked_in_poll() {
    revoked_during("poll I");
}

#[test]
fn while_blocked_in_select() {
    revoked_during("select I");
}

#[test]
fn while_blocked_in_epoll_wait() {
    revoked_during("epoll-level I");
}

#[test]
fn while_blocked_in_epoll_wait_for_edges() {
    revoked_during("epoll I");
}

/// The ring is full, and its reader does not read.
#[test]
fn while_blocked_in_send_on_a_full_ring() {
    let daemon = Daemon::start();
    let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
    let line = format!("stream 0 {} 11", 24 * MIB);
    duo.client.tell(&line);
    settle();
    assert_eq!(revoke(&daemon, &["--all"]).0, Some(0));
    settle();
    duo.server.tell(&line);
    assert_eq!(duo.client.answer(), "ok");
    assert_eq!(duo.server.answer(), "ok");
    assert_revoked(&daemon, 2);
}

/// Streams both ways while everything is revoked again and again; what comes later is upgraded as ever.
#[test]
fn while_streaming() {
    const ROUNDS: usize = 8;
    let daemon = Daemon::start();
    let mut duo = Duo::new(&Form::accelerated(daemon.socket()));
    let mut random = Pattern::new(7);
    for round in 0..ROUNDS {
        duo.connect(round);
        duo.warm_up(round, Way::Ring);
        let over = AtomicBool::new(false);
        let pauses: Vec<u64> = (0..64).map(|_| random.next() % 12_000).collect();
        let revoked = std::thread::scope(|scope| {
            let (socket, over) = (daemon.socket(), &over);
            let revoker = scope.spawn(move || {
                let mut revoked = 0;
                for pause in pauses.iter().cycle() {
                    std::thread::sleep(Duration::from_micros(*pause));
                    let (_, answer) = revoke_at(socket, &["--all"]);
                    revoked += answer["revoked"].as_u64().unwrap_or(0);
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
                revoked
            });
            let stop = Over(over);
            duo.stream(round, 12 * MIB);
            drop(stop);
            revoker.join().expect("the tool answers")
        });
        assert_eq!(revoked, 1, "once is enough");
        assert_revoked(&daemon, 2);
        duo.stream(round, MIB);
        duo.both(&format!("close {round}"), &format!("close {round}"));
    }
}

#[test]
fn while_stopped() {
    let daemon = Daemon::start();
    let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
    let pids = [duo.client.pid(), duo.server.pid()];
    for pid in pids {
        kill_process(pid, Signal::STOP).expect("our own child");
    }
    let (code, answer) = revoke(&daemon, &["--all"]);
    assert_eq!((code, &answer["revoked"]), (Some(0), &Value::from(1)));
    assert_revoked(&daemon, 2);
    for pid in pids {
        kill_process(pid, Signal::CONT).expect("our own child");
    }
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
}

#[test]
fn only_what_was_meant() {
    let daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let mut one = Duo::connected(&form, Way::Ring);
    let mut other = Duo::connected(&form, Way::Ring);
    let nothing = [
        "--conn=999",
        "--pid=1",
        "--peer=10.9.0.0/16",
        "--peer=127.0.0.1:1",
    ];
    for word in nothing {
        let (code, answer) = revoke(&daemon, &[word]);
        assert_eq!(
            (code, &answer["revoked"]),
            (Some(1), &Value::from(0)),
            "{word}"
        );
    }
    let pid = other.client.pid().as_raw_nonzero().to_string();
    assert_eq!(revoke(&daemon, &["--pid", &pid]).1["revoked"], 1);
    other.warm_up(0, Way::Kernel);
    one.warm_up(0, Way::Ring);
    let (code, answer) = revoke(&daemon, &["--peer=127.0.0.0/8", "--pid", &pid]);
    assert_eq!((code, &answer["already"]), (Some(0), &Value::from(1)));
    assert_eq!(revoke(&daemon, &["--peer=127.0.0.0/8"]).1["revoked"], 1);
    one.warm_up(0, Way::Kernel);
    // Later connections are not affected.
    one.connect(1);
    one.warm_up(1, Way::Ring);
}

/// The far end has no library: the registration would wait for as long as the connection lasts.
#[test]
fn while_waiting_for_the_far_end() {
    let daemon = Daemon::start();
    let mut duo = Duo {
        server: Agent::start(&Form::accelerated(daemon.socket())),
        client: Agent::start(&Form::plain()),
    };
    duo.connect(0);
    duo.warm_up(0, Way::Kernel);
    let (code, answer) = revoke(&daemon, &["--all"]);
    assert_eq!((code, &answer["refused"]), (Some(0), &Value::from(1)));
    duo.warm_up(0, Way::Kernel);
    let status = daemon.status();
    assert_eq!(status["connections"][0]["stage"], "plain");
    assert_eq!(status["connections"][0]["reason"], "revoked");
    assert_eq!(revoke(&daemon, &["--all"]).0, Some(1));
}
