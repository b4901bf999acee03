//! `viaduct revoke`: what it asks of the daemon, what it says, how it exits.

use rdma_core::control::Revoke;

use crate::fake_daemon::{Answers, FakeDaemon};
use crate::scene::{directory, finish, viaduct};

#[test]
fn what_was_done_is_said() {
    let dir = directory();
    let daemon = FakeDaemon::start(&dir.path().join("d.sock"), Answers::default());
    let revoke = |words: &[&str]| {
        let words = [&["revoke", "--socket", daemon.path()], words].concat();
        finish(viaduct(dir.path(), &words))
    };
    let all = revoke(&["--all"]);
    assert_eq!(all.code(), Some(0), "{all:?}");
    assert_eq!(
        all.stdout(),
        "2 connections back to TCP\n1 connection already on TCP\n"
    );
    let json = revoke(&["--conn", "7", "--json"]);
    assert_eq!(json.code(), Some(0), "{json:?}");
    assert_eq!(json.stdout().trim_end(), Answers::default().revoked);
    revoke(&["--peer", "10.9.0.0/24:80", "--pid", "4711"]);
    let asked = daemon.asked.lock().unwrap();
    let [all, number, peer] = asked.revocations[..] else {
        panic!("{asked:?}");
    };
    assert_eq!(all.what, 0);
    assert_eq!((number.what, number.conn_id), (Revoke::CONNECTION, 7));
    assert_eq!(peer.what, Revoke::ADDRESS | Revoke::PID);
    assert_eq!(
        (peer.family, peer.prefix, peer.port, peer.pid),
        (4, 24, 80, 4711)
    );
    assert_eq!(peer.addr[..4], [10, 9, 0, 0]);
}

#[test]
fn nothing_found_and_something_left_are_failures() {
    let dir = directory();
    for (name, revoked, words) in [
        ("a", [0, 0, 0, 0], "no connection matches"),
        ("b", [3, 0, 0, 1], "1 connection pending"),
        ("c", [0, 0, 2, 1], "2 ends refused"),
    ] {
        let [revoked, already, refused, pending] = revoked;
        let answers = Answers {
            revoked: format!(
                r#"{{"revoked": {revoked}, "already": {already}, "refused": {refused}, "pending": {pending}}}"#
            ),
            ..Answers::default()
        };
        let daemon = FakeDaemon::start(&dir.path().join(name), answers);
        let words_given = ["revoke", "--all", "--socket", daemon.path()];
        let done = finish(viaduct(dir.path(), &words_given));
        assert_eq!(done.code(), Some(1), "{done:?}");
        assert!(done.stdout().contains(words), "{done:?}");
        assert_eq!(done.stderr(), "");
    }
}

#[test]
fn bad_input_names_the_form_and_asks_nobody() {
    let dir = directory();
    let missing = dir.path().join("no.sock");
    let missing = missing.to_str().unwrap();
    for peer in ["somewhere", "10.0.0.0/33", "10.0.0.1:1-2", "!10.0.0.1"] {
        let words = ["revoke", "--peer", peer, "--socket", missing];
        let done = finish(viaduct(dir.path(), &words));
        done.assert_fails(2, &["--peer", peer, "ADDR[/BITS][:PORT]"]);
    }
    for words in [
        &["revoke"][..],
        &["revoke", "--all", "--conn", "1"],
        &["revoke", "--pid", "x"],
    ] {
        let done = finish(viaduct(dir.path(), words));
        assert_eq!(done.code(), Some(2), "{done:?}");
        assert!(done.stderr().contains("--peer") || done.stderr().contains("--pid"));
    }
}

#[test]
fn no_daemon_and_nonsense_are_failures() {
    let dir = directory();
    let missing = dir.path().join("no.sock");
    let missing = missing.to_str().unwrap();
    let absent = finish(viaduct(
        dir.path(),
        &["revoke", "--all", "--socket", missing],
    ));
    absent.assert_fails(1, &[missing, "start viaductd"]);
    let answers = Answers {
        revoked: r#"{"error": "what?"}"#.to_owned(),
        ..Answers::default()
    };
    let daemon = FakeDaemon::start(&dir.path().join("d.sock"), answers);
    let words = ["revoke", "--all", "--socket", daemon.path()];
    finish(viaduct(dir.path(), &words)).assert_fails(1, &["does not say what it did"]);
}
