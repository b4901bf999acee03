//! Nobody works while nothing happens.

use std::time::Duration;

use rustix::process::Pid;
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::program::Form;

use crate::duo::{Duo, Way};

/// User and system time of a process so far, in clock ticks.
fn ticks(pid: Pid) -> u64 {
    let name = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let text = std::fs::read_to_string(name).expect("it lives");
    let (_, fields) = text.rsplit_once(')').expect("the name's end");
    let field = |number: usize| -> u64 {
        let word = fields.split_whitespace().nth(number - 3);
        word.and_then(|word| word.parse().ok()).expect("a number")
    };
    field(14) + field(15)
}

#[test]
fn idle_pairs_use_no_processor() {
    let seconds = if std::env::var_os("VIADUCT_LONG").is_some() {
        10
    } else {
        3
    };
    let daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let mut receiving = Duo::connected(&form, Way::Ring);
    let mut polling = Duo::connected(&form, Way::Ring);
    for (duo, line) in [(&mut receiving, "recv 0 1"), (&mut polling, "epoll 0")] {
        duo.client.tell(line);
        duo.server.tell(line);
    }
    let processes = [
        ("daemon", daemon.pid()),
        ("client in recv", receiving.client.pid()),
        ("server in recv", receiving.server.pid()),
        ("client in epoll_wait", polling.client.pid()),
        ("server in epoll_wait", polling.server.pid()),
    ];
    std::thread::sleep(Duration::from_secs(1));
    let before = processes.map(|(name, pid)| (name, ticks(pid)));
    std::thread::sleep(Duration::from_secs(seconds));
    let after = processes.map(|(name, pid)| (name, ticks(pid)));
    assert_eq!(after, before, "ticks of processor time");
}
