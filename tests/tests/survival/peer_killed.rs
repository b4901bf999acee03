//! kill -9 of the far end, compared with plain TCP.

use viaduct_tests::rig::daemon::Daemon;

use crate::duo::{Duo, WARM_UP, Way, assert_carried, forms, settle};

/// Runs `case` on plain TCP and under the library; its results must be the same.
fn compare(case: impl Fn(&mut Duo) -> Vec<String>) {
    let daemon = Daemon::start();
    let [plain, accelerated] = forms(&daemon).map(|(form, way)| {
        let mut duo = Duo::connected(&form, way);
        let results = case(&mut duo);
        if way == Way::Ring {
            assert_carried(&daemon, 2 * WARM_UP as u64);
        }
        results
    });
    assert_eq!(accelerated, plain, "accelerated (left), plain (right)");
}

/// What the client's calls answer from now on.
fn then(duo: &mut Duo, results: &mut Vec<String>, lines: &[&str]) {
    for line in lines {
        settle();
        results.push(duo.client.ask(line));
    }
}

/// The peer is killed while the client is inside `call`; then come four more calls.
fn killed_during(call: &str) {
    compare(|duo| {
        duo.client.tell(call);
        settle();
        duo.server.kill();
        let mut results = vec![duo.client.answer()];
        then(
            duo,
            &mut results,
            &["recv 0 10", "send 0 1", "send 0 1", "recv 0 10"],
        );
        results
    });
}

#[test]
fn while_blocked_in_recv() {
    killed_during("recv 0 10");
}

#[test]
fn while_blocked_in_poll() {
    killed_during("poll 0");
}

#[test]
fn while_blocked_in_epoll_wait() {
    killed_during("epoll 0");
}

#[test]
fn while_blocked_in_send_on_a_full_buffer() {
    killed_during("fill 0");
}

#[test]
fn after_it_wrote() {
    compare(|duo| {
        duo.server.tell("write-die 0 5000");
        settle();
        duo.server.kill();
        let mut results = Vec::new();
        then(
            duo,
            &mut results,
            &["recv 0 100000", "recv 0 10", "send 0 1", "send 0 1"],
        );
        results
    });
}

#[test]
fn with_unread_data() {
    compare(|duo| {
        let mut results = vec![duo.client.ask("send 0 6")];
        settle();
        duo.server.kill();
        then(
            duo,
            &mut results,
            &["recv 0 10", "recv 0 10", "send 0 1", "send 0 1"],
        );
        results
    });
}

#[test]
fn with_unread_data_both_ways() {
    compare(|duo| {
        let mut results = vec![duo.client.ask("send 0 6"), duo.server.ask("send 0 7")];
        settle();
        duo.server.kill();
        then(
            duo,
            &mut results,
            &["poll 0", "recv 0 3", "recv 0 10", "recv 0 10", "send 0 1"],
        );
        results
    });
}
