//! Connections that a daemon takes back to TCP when it leaves come back with the next one.

use std::time::Duration;

use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::linked::Linked;
use viaduct_tests::rig::program::Form;

use crate::duo::{Duo, Way, in_the_middle, settle};
use crate::revoked::revoke;
use crate::two_daemons::joined;

const MIB: usize = 1 << 20;
/// More than a connection waits before it asks again.
const PAUSE: Duration = Duration::from_secs(3);

fn drained(daemon: &mut Daemon, duo: &mut Duo) {
    in_the_middle(duo, 24 * MIB, || {
        daemon.signal(rustix::process::Signal::TERM);
        retry("the daemon ends", || daemon.end());
    });
    duo.stream(0, MIB);
    duo.warm_up(0, Way::Kernel);
}

#[test]
fn they_come_back_each_time() {
    let mut daemon = Daemon::start();
    daemon.restart_with("--drain");
    let form = Form::accelerated(daemon.socket());
    let mut duo = Duo::connected(&form, Way::Ring);
    for _ in 0..3 {
        drained(&mut daemon, &mut duo);
        daemon.restart();
        duo.warm_up(0, Way::Ring);
        let kernel = duo.kernel(0);
        duo.stream(0, 24 * MIB);
        duo.both("ping 0 1000", "pong 0 1000");
        assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
    }
    assert_eq!(duo.client.ask("close 0"), "ok");
    assert_eq!(duo.server.ask("recv 0 1"), "ret 0");
    assert_eq!(duo.server.ask("close 0"), "ok");
    retry("nothing is left", || {
        (daemon.status()["daemon"]["pairs"] == 0).then_some(())
    });
}

/// Programs that sleep when the daemon leaves, whichever way they sleep, are woken to let go, and go on sleeping.
#[test]
fn they_come_back_to_programs_that_were_asleep() {
    for wait in ["recv 0 1", "poll 0", "select 0", "epoll 0"] {
        let mut daemon = Daemon::start();
        daemon.restart_with("--drain");
        let form = Form::accelerated(daemon.socket());
        let mut duo = Duo::connected(&form, Way::Ring);
        duo.client.tell(wait);
        settle();
        daemon.signal(rustix::process::Signal::TERM);
        retry("the daemon ends", || daemon.end());
        assert_eq!(duo.server.ask("send 0 1"), "ret 1");
        let said = duo.client.answer();
        assert!(said.starts_with("ret 1"), "{wait}: {said}");
        if wait != "recv 0 1" {
            assert_eq!(duo.client.ask("recv 0 1"), "ret 1");
        }
        daemon.restart();
        duo.warm_up(0, Way::Ring);
        duo.stream(0, MIB);
    }
}

#[test]
fn what_a_tool_took_back_stays() {
    let mut daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let mut duo = Duo::connected(&form, Way::Ring);
    let (code, answer) = revoke(&daemon, &["--all"]);
    assert_eq!(code, Some(0), "{answer}");
    daemon.restart();
    for _ in 0..2 {
        duo.warm_up(0, Way::Kernel);
        std::thread::sleep(PAUSE);
    }
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
}

#[test]
fn they_come_back_over_links() {
    let mut linked = Linked::start(100);
    linked.daemons[1].restart_with("--drain");
    let mut duo = joined(&linked);
    drained(&mut linked.daemons[1], &mut duo);
    linked.daemons[1].restart();
    duo.warm_up(0, Way::Ring);
    let kernel = duo.kernel(0);
    duo.stream(0, 8 * MIB);
    assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
}
