//! The environment: values that do not parse, and programs that have no peers.

use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way};

const SCRIPT: [&str; 2] = ["-c", "cat; echo to stderr >&2; exit 7"];

/// Runs a script of two programs (sh and cat).
fn run(form: &Form) -> (Option<i32>, String, String) {
    let output = form.run("/bin/sh", &SCRIPT, b"some input\n");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn peers_that_do_not_parse() {
    let daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket()).with("VIADUCT_PEERS", "127.0.0.0/8,10.0.0.0/99");
    let output = form.run("/bin/cat", &[], b"some input\n");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"some input\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    assert!(stderr.contains("10.0.0.0/99"), "names the item: {stderr}");
    assert!(stderr.contains("VIADUCT_PEERS"), "and where: {stderr}");

    // And it talks as ever.
    let mut duo = Duo::connected(&form, Way::Kernel);
    duo.stream(0, 1 << 20);
}

#[test]
fn peers_that_do_not_parse_and_strict() {
    let daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket())
        .with("VIADUCT_PEERS", "not an address")
        .with("VIADUCT_STRICT", "1");
    let output = form.run("/bin/cat", &[], b"some input\n");
    assert_ne!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"", "it did not run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
    assert!(
        stderr.contains("not an address"),
        "names the item: {stderr}"
    );
}

#[test]
fn programs_without_sockets() {
    let daemon = Daemon::start();
    let plain = run(&Form::plain());
    assert_eq!(
        plain,
        (Some(7), "some input\n".to_owned(), "to stderr\n".to_owned())
    );
    assert_eq!(run(&Form::accelerated(daemon.socket())), plain);
}

#[test]
fn programs_without_peers_have_no_descriptor_more() {
    let daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let [plain, other, idle] = [
        Form::plain(),
        form.clone().with("VIADUCT_PEERS", "!127.0.0.0/8"),
        form.clone().with("VIADUCT_PEERS", "10.0.0.0/8"),
    ]
    .map(|form| {
        let mut duo = Duo::connected(&form, Way::Kernel);
        duo.stream(0, 1 << 20);
        (duo.client.ask("fds"), duo.server.ask("fds"))
    });
    assert_eq!(other, plain);
    assert_eq!(idle, plain);
    // Peers that are configured but never talked to cost nothing either.
    let before = Agent::start(&Form::plain()).ask("fds");
    assert_eq!(Agent::start(&form).ask("fds"), before);
}
