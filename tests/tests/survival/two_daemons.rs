//! Relayed connections: daemons that are killed and come back, and wires that are cut.

use std::time::Duration;

use viaduct_tests::rig::daemon::retry;
use viaduct_tests::rig::linked::Linked;
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way, in_the_middle, settle, stream_across_restarts};
use crate::revoked::revoke;

const MIB: usize = 1 << 20;
/// Longer than any of these tests.
const TIMEOUT_S: u32 = 100;

/// The only connection of two daemons.
fn relayed(linked: &Linked) -> Duo {
    let duo = joined(linked);
    assert_eq!(linked.relayed(), [1, 1]);
    duo
}

/// A program at each daemon, and a connection between them that is relayed.
pub(super) fn joined(linked: &Linked) -> Duo {
    let [client, server] = [0, 1].map(|index: usize| {
        let form = Form::accelerated(linked.daemons[index].socket());
        Agent::start(&form)
    });
    let mut duo = Duo { server, client };
    duo.connect(0);
    duo.warm_up(0, Way::Ring);
    duo
}

fn restarted(linked: &mut Linked, which: &[usize]) {
    let mut duo = relayed(linked);
    let before = duo.kernel(0);
    for _ in 0..2 {
        in_the_middle(&mut duo, 24 * MIB, || {
            for index in which {
                linked.daemons[*index].kill();
            }
            std::thread::sleep(Duration::from_millis(100));
            for index in which {
                linked.daemons[*index].restart();
            }
        });
        // Nothing is under way while they are away.
        for index in which {
            linked.daemons[*index].restart();
        }
        duo.both("ping 0 100", "pong 0 100");
        assert_eq!(duo.kernel(0), before, "all of it went by the rings");
        assert_eq!(linked.relayed(), [1, 1]);
    }
    // The same programs, with the new daemons.
    duo.connect(1);
    duo.warm_up(1, Way::Ring);
    duo.stream(1, MIB);
    duo.stream(0, MIB);
    linked.settle(2);
    assert_eq!(duo.client.ask("close 1"), "ok");
    assert_eq!(duo.server.ask("recv 1 1"), "ret 0");
    assert_eq!(duo.client.ask("close 0"), "ok");
    assert_eq!(duo.server.ask("recv 0 1"), "ret 0");
    assert_eq!(duo.server.ask("close 0"), "ok");
    assert_eq!(duo.server.ask("close 1"), "ok");
    linked.settle(0);
}

#[test]
fn the_daemon_of_the_client_is_restarted() {
    restarted(&mut Linked::start(TIMEOUT_S), &[0]);
}

#[test]
fn the_daemon_of_the_server_is_restarted() {
    restarted(&mut Linked::start(TIMEOUT_S), &[1]);
}

#[test]
fn both_daemons_are_restarted() {
    restarted(&mut Linked::start(TIMEOUT_S), &[0, 1]);
}

#[test]
fn daemons_are_restarted_by_their_managers() {
    let mut linked = Linked::managed(TIMEOUT_S);
    restarted(&mut linked, &[0, 1]);
    for daemon in &linked.daemons {
        let manager = daemon.manager().expect("it has one");
        assert!(manager.stored() > 0 && daemon.keeper().is_none());
        daemon.signal(rustix::process::Signal::TERM);
        retry("what is stored is taken back", || {
            (manager.stored() == 0).then_some(())
        });
    }
}

#[test]
fn the_daemon_that_is_back_first_waits_for_the_other() {
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    let before = duo.kernel(0);
    in_the_middle(&mut duo, 24 * MIB, || {
        linked.daemons[0].kill();
        linked.daemons[1].restart();
        // Longer than a link tries to reach somebody who was never there.
        std::thread::sleep(Duration::from_secs(3));
        linked.daemons[0].restart();
    });
    assert_eq!(duo.kernel(0), before, "all of it went by the rings");
}

#[test]
fn more_connections_than_messages_that_may_be_under_way() {
    const COUNT: usize = 300;
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    for index in 1..COUNT {
        duo.connect(index);
        duo.both(&format!("ping {index} 20"), &format!("pong {index} 20"));
    }
    linked.settle(COUNT as u64);
    for daemon in &mut linked.daemons {
        daemon.kill();
    }
    for daemon in &mut linked.daemons {
        daemon.restart();
    }
    for index in 0..COUNT {
        duo.both(&format!("ping {index} 3"), &format!("pong {index} 3"));
    }
    assert_eq!(linked.relayed(), [COUNT as u64; 2]);
}

/// Daemons that are killed while they still find their way back to each other.
#[test]
fn daemons_are_killed_again_and_again() {
    again_and_again(Linked::start(TIMEOUT_S), 200 * MIB);
}

#[test]
fn daemons_are_killed_again_and_again_on_a_bad_path() {
    let faults = "[link.faults]\ndrop = 0.01\nduplicate = 0.01\nreorder = 0.01\n";
    again_and_again(Linked::configured(TIMEOUT_S, faults), 20 * MIB);
}

fn again_and_again(mut linked: Linked, bytes: usize) {
    let mut duos: Vec<Duo> = (0..3).map(|_| joined(&linked)).collect();
    stream_across_restarts(&mut duos, bytes, |round| {
        let which = usize::from(round % 3 == 1);
        linked.daemons[which].restart();
        if round % 4 == 3 {
            linked.daemons[1 - which].restart();
        }
    });
}

#[test]
fn a_program_that_wrote_and_left_meanwhile() {
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    linked.daemons[0].kill();
    assert_eq!(duo.client.ask("send 0 100000"), "ret 100000");
    assert_eq!(duo.client.ask("close 0"), "ok");
    duo.client.dismiss();
    linked.daemons[0].restart();
    let mut left = 100_000;
    while left > 0 {
        let answer = duo.server.ask("recv 0 100000");
        let got = answer.strip_prefix("ret ").expect("bytes");
        left -= got.parse::<usize>().expect("a number");
    }
    assert_eq!(duo.server.ask("recv 0 1"), "ret 0");
    assert_eq!(duo.server.ask("close 0"), "ok");
    linked.settle(0);
}

#[test]
fn a_program_that_is_killed_after_a_restart() {
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    let survivors = |linked: &Linked| linked.daemons[0].status()["survivors"].clone();
    assert_eq!(survivors(&linked), serde_json::json!([]));
    linked.daemons[0].restart();
    duo.both("ping 0 9", "pong 0 9");
    let shown = survivors(&linked);
    assert_eq!(shown.as_array().map(Vec::len), Some(1), "{shown}");
    assert!(
        shown[0]["far"]
            .as_str()
            .is_some_and(|far| far.starts_with("127.0.0.1:"))
    );
    duo.server.tell("recv 0 1");
    settle();
    duo.client.kill();
    assert_eq!(duo.server.answer(), "ret 0");
    assert_eq!(duo.server.ask("close 0"), "ok");
    linked.settle(0);
    assert_eq!(survivors(&linked), serde_json::json!([]));
}

#[test]
fn a_program_that_is_killed_while_the_daemon_is_away() {
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    linked.daemons[0].kill();
    duo.client.kill();
    linked.daemons[0].restart();
    assert_eq!(duo.server.ask("recv 0 1"), "ret 0");
    assert_eq!(duo.server.ask("close 0"), "ok");
    linked.settle(0);
}

#[test]
fn a_host_that_knows_nothing_any_more() {
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    duo.client.tell("recv 0 1");
    settle();
    linked.daemons[1].kill();
    linked.daemons[1].kill_keeper();
    linked.daemons[1].restart();
    assert_eq!(duo.client.answer(), format!("err {}", libc::ECONNRESET));
}

#[test]
fn a_daemon_that_stops_in_order_ends_what_it_relays() {
    let linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    for agent in [&mut duo.client, &mut duo.server] {
        agent.tell("recv 0 1");
    }
    settle();
    linked.daemons[0].signal(rustix::process::Signal::TERM);
    let reset = format!("err {}", libc::ECONNRESET);
    assert_eq!(duo.client.answer(), reset);
    assert_eq!(duo.server.answer(), reset);
    let gone = || linked.daemons[0].keeper().is_none().then_some(());
    retry("the keeper ends", gone);
}

#[test]
fn what_was_taken_over_is_revoked() {
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    linked.daemons[0].restart();
    in_the_middle(&mut duo, 24 * MIB, || {
        let (status, report) = revoke(&linked.daemons[0], &["--all"]);
        assert_eq!((status, &report["revoked"]), (Some(0), &1.into()));
    });
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
}

/// Also with a connection that was taken over, and at the far end, which is not told to drain.
#[test]
fn a_daemon_that_drains_harms_nobody() {
    let mut linked = Linked::start(TIMEOUT_S);
    linked.daemons[0].restart_with("--drain");
    let mut duo = relayed(&linked);
    linked.daemons[0].restart();
    in_the_middle(&mut duo, 64 * MIB, || {
        linked.daemons[0].signal(rustix::process::Signal::TERM);
    });
    retry("the daemon ends", || linked.daemons[0].end());
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
    for agent in [&mut duo.client, &mut duo.server] {
        assert_eq!(agent.ask("close 0"), "ok");
    }
    retry("the far daemon lets go", || {
        (linked.relayed_at(1) == 0).then_some(())
    });
}

#[test]
fn a_wire_that_is_cut_for_a_while() {
    let linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    let before = duo.kernel(0);
    in_the_middle(&mut duo, 24 * MIB, || {
        linked.wire.cut(true);
        std::thread::sleep(Duration::from_secs(5));
        linked.wire.cut(false);
    });
    assert_eq!(duo.kernel(0), before, "all of it went by the rings");
}

#[test]
fn a_wire_that_is_cut_for_too_long() {
    let linked = Linked::start(2);
    let mut duo = relayed(&linked);
    duo.client.tell("recv 0 1");
    duo.server.tell("fill 0");
    settle();
    linked.wire.cut(true);
    let timed_out = format!("err {}", libc::ETIMEDOUT);
    // What was sent before is there to be read.
    let mut answer = duo.client.answer();
    while answer.starts_with("ret ") {
        answer = duo.client.ask("recv 0 100000000");
    }
    assert_eq!(answer, timed_out);
    assert_eq!(duo.server.answer(), timed_out);
}

/// As many as would take longer than any test if each waited for the far backend alone.
const MANY: usize = 40;

/// A program with many connections that goes back to TCP with bytes unread in both directions loses none of them.
#[test]
fn many_connections_go_back_at_once() {
    let linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    for index in 1..MANY {
        duo.connect(index);
        duo.warm_up(index, Way::Ring);
    }
    for index in 0..MANY {
        for agent in [&mut duo.client, &mut duo.server] {
            assert_eq!(agent.ask(&format!("send {index} 1000")), "ret 1000");
        }
    }
    settle();
    assert_eq!(duo.client.ask("step-back"), "ok");
    for index in 0..MANY {
        for agent in [&mut duo.client, &mut duo.server] {
            let mut left = 1000;
            while left > 0 {
                let answer = agent.ask(&format!("recv {index} {left}"));
                let got = answer.strip_prefix("ret ").map(str::parse::<usize>);
                let Some(Ok(got @ 1..)) = got else {
                    panic!("{answer}: {left} are left");
                };
                left -= got;
            }
        }
        duo.warm_up(index, Way::Kernel);
    }
}

/// All wait for the far backend at the same time.
#[test]
fn many_connections_go_back_while_the_wire_is_cut() {
    let linked = Linked::start(TIMEOUT_S);
    let mut duo = relayed(&linked);
    for index in 1..MANY {
        duo.connect(index);
        duo.warm_up(index, Way::Ring);
    }
    linked.wire.cut(true);
    assert_eq!(duo.client.ask("step-back"), "ok");
    linked.wire.cut(false);
    for index in 0..MANY {
        for agent in [&mut duo.client, &mut duo.server] {
            let answer = agent.ask(&format!("recv {index} 1"));
            assert_eq!(answer, format!("err {}", libc::ECONNRESET), "{index}");
        }
    }
}

#[test]
fn a_daemon_that_is_back_alone() {
    let mut linked = Linked::start(2);
    let mut duo = relayed(&linked);
    duo.client.tell("recv 0 1");
    settle();
    linked.daemons[1].kill();
    linked.daemons[0].restart();
    assert_eq!(duo.client.answer(), format!("err {}", libc::ETIMEDOUT));
}

#[test]
fn a_daemon_that_nobody_starts_again() {
    let mut linked = Linked::start(TIMEOUT_S);
    linked.daemons[0].kill_keeper();
    linked.daemons[0].restart_in("VIADUCT_KEEPER_PATIENCE_MS", "300");
    let mut duo = relayed(&linked);
    duo.client.tell("recv 0 1");
    settle();
    linked.daemons[0].kill();
    assert_eq!(duo.client.answer(), format!("err {}", libc::ECONNRESET));
    let gone = || linked.daemons[0].keeper().is_none().then_some(());
    retry("the keeper ends", gone);
}

/// Connections that are being made when a daemon is killed go on, by the ring or without.
#[test]
fn killed_while_connections_are_made() {
    let mut linked = Linked::start(TIMEOUT_S);
    let mut duo = joined(&linked);
    for round in 1..25 {
        duo.connect(round);
        duo.server.tell(&format!("pong {round} 300"));
        duo.client.tell(&format!("ping {round} 300"));
        std::thread::sleep(Duration::from_micros(300 * round as u64 % 3100));
        linked.daemons[round % 2].restart();
        let answers = [duo.client.answer(), duo.server.answer()];
        assert_eq!(answers, ["ok", "ok"], "connection {round}");
        duo.stream(round, MIB / 4);
        duo.stream(0, MIB / 4);
    }
}

#[test]
fn a_daemon_that_stays_away_for_too_long() {
    let mut linked = Linked::start(2);
    let mut duo = relayed(&linked);
    duo.client.tell("recv 0 1");
    settle();
    linked.daemons[1].kill();
    let timed_out = format!("err {}", libc::ETIMEDOUT);
    assert_eq!(duo.client.answer(), timed_out);
    // Too late: the far end is told why.
    duo.server.tell("recv 0 1");
    linked.daemons[1].restart();
    assert_eq!(duo.server.answer(), timed_out);
}
