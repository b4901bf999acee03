//! A program becomes another one that knows nothing of rings, by a way that the library does not see: the
//! daemon leaves the ring for it, and the far end goes on over TCP.

use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::program::Form;

use crate::duo::{Duo, Way, forms, settle};

/// The server becomes `cat` after `before`; then come the client's calls `after`.
fn compare(before: impl Fn(&mut Duo), after: &[&str]) {
    let daemon = Daemon::start();
    let [plain, accelerated] = forms(&daemon).map(|(form, way)| {
        let mut duo = Duo::connected(&form, way);
        before(&mut duo);
        duo.server.tell("become-cat 0");
        if way == Way::Ring {
            assert_left(&daemon);
        }
        settle();
        let mut seen = Vec::new();
        for line in after {
            seen.push(duo.client.ask(line));
            settle();
        }
        seen
    });
    assert_eq!(accelerated, plain, "accelerated (left), plain (right)");
}

/// The client's connection has gone back to TCP, and says why.
fn assert_left(daemon: &Daemon) {
    retry("the daemon leaves the ring", || {
        let status = daemon.status();
        let list = status["connections"].as_array()?;
        let left = list.iter().any(|connection| connection["reason"] == "exec");
        left.then_some(())
    });
}

const TALK: &[&str] = &[
    "recv 0 100",
    "send 0 5",
    "recv 0 100",
    "send 0 70000",
    "close 0",
];

#[test]
fn with_nothing_under_way() {
    compare(|_| {}, TALK.get(1..).unwrap_or_default());
}

#[test]
fn with_bytes_that_the_far_end_has_not_read() {
    compare(
        |duo| {
            assert_eq!(duo.server.ask("send 0 7"), "ret 7");
        },
        TALK,
    );
}

#[test]
fn with_bytes_that_it_has_not_read_itself() {
    compare(
        |duo| {
            assert_eq!(duo.client.ask("send 0 6"), "ret 6");
        },
        TALK,
    );
}

#[test]
fn with_bytes_both_ways() {
    compare(
        |duo| {
            assert_eq!(duo.client.ask("send 0 6"), "ret 6");
            assert_eq!(duo.server.ask("send 0 7"), "ret 7");
        },
        &["recv 0 7", "recv 0 100", "send 0 5", "recv 0 100"],
    );
}

/// The far end waits for an answer when the program turns into one that gives it.
#[test]
fn while_the_far_end_waits() {
    let daemon = Daemon::start();
    for (form, way) in forms(&daemon) {
        let mut duo = Duo::connected(&form, way);
        duo.client.tell("ping 0 3000");
        assert_eq!(duo.server.ask("pong 0 2000"), "ok");
        duo.server.tell("become-cat 0");
        assert_eq!(duo.client.answer(), "ok");
    }
}

/// The far end is a program that has been told of it by a revocation before.
#[test]
fn after_a_revocation() {
    let daemon = Daemon::start();
    let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
    crate::revoked::revoke(&daemon, &["--all"]);
    duo.warm_up(0, Way::Kernel);
    assert_eq!(duo.client.ask("send 0 6"), "ret 6");
    duo.server.tell("become-cat 0");
    assert_eq!(duo.client.ask("recv 0 100"), "ret 6");
}
