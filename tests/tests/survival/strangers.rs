//! Two users on one host: the daemon copies between them. What happens to such connections when programs, or the
//! daemon, go away.

use std::time::Duration;

use rustix::process::Signal;
use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way, in_the_middle, settle, skipped};
use crate::revoked::revoke;

const MIB: usize = 1 << 20;
/// Somebody who is not root.
const NOBODY: u32 = 65_534;

/// Two agents of two users. `None`: that takes root.
fn strangers(daemon: &Daemon) -> Option<Duo> {
    if !rustix::process::geteuid().is_root() {
        skipped("another user's program needs root");
        return None;
    }
    let form = Form::accelerated(daemon.socket());
    Some(Duo {
        server: Agent::start(&form.clone().as_user(NOBODY)),
        client: Agent::start(&form),
    })
}

/// The same, with connection 0, which is relayed.
fn relayed(daemon: &Daemon) -> Option<Duo> {
    let mut duo = strangers(daemon)?;
    duo.connect(0);
    duo.warm_up(0, Way::Ring);
    // Each end is one.
    assert_eq!(relayed_at(daemon), 2);
    Some(duo)
}

fn relayed_at(daemon: &Daemon) -> u64 {
    daemon.status()["daemon"]["relayed"]
        .as_u64()
        .expect("a number")
}

fn settle_at(daemon: &Daemon, ends: u64) {
    retry("the daemon relays so many ends", || {
        (relayed_at(daemon) == ends).then_some(())
    });
}

fn reset() -> String {
    format!("err {}", libc::ECONNRESET)
}

#[test]
fn talk_through_the_daemon() {
    let daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    assert!(daemon.keeper().is_some(), "a restart is provided for");
    let before = duo.kernel(0);
    duo.stream(0, 64 * MIB);
    for index in 1..20 {
        duo.connect(index);
        duo.both(&format!("ping {index} 50"), &format!("pong {index} 50"));
        duo.stream(index, MIB);
    }
    assert_eq!(duo.kernel(0), before, "all of it went by the rings");
    settle_at(&daemon, 40);
    for index in 0..20 {
        assert_eq!(duo.client.ask(&format!("close {index}")), "ok");
        assert_eq!(duo.server.ask(&format!("recv {index} 1")), "ret 0");
        assert_eq!(duo.server.ask(&format!("close {index}")), "ok");
    }
    settle_at(&daemon, 0);
}

#[test]
fn stay_on_tcp_where_relaying_is_switched_off() {
    let daemon = Daemon::configured("relay_untrusted = false");
    let Some(mut duo) = strangers(&daemon) else {
        return;
    };
    duo.connect(0);
    duo.warm_up(0, Way::Kernel);
    let refused = &daemon.status()["daemon"]["refused"];
    assert_eq!(refused["untrusted"], 2, "{refused}");
    assert!(daemon.keeper().is_none());
}

#[test]
fn a_program_that_is_killed() {
    let daemon = Daemon::start();
    for line in ["recv 0 1", "poll 0", "epoll 0"] {
        let Some(mut duo) = relayed(&daemon) else {
            return;
        };
        duo.client.tell(line);
        settle();
        duo.server.kill();
        duo.client.answer();
        assert_eq!(duo.client.ask("recv 0 1"), "ret 0", "{line}");
        assert_eq!(duo.client.ask("close 0"), "ok");
        settle_at(&daemon, 0);
    }
}

#[test]
fn a_program_that_is_killed_beside_unread_bytes() {
    let daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    duo.server.tell("write-die 0 5000");
    settle();
    duo.server.kill();
    let mut left = 5000;
    while left > 0 {
        let answer = duo.client.ask("recv 0 100000");
        let got = answer.strip_prefix("ret ").expect("bytes");
        left -= got.parse::<usize>().expect("a number");
    }
    assert_eq!(duo.client.ask("recv 0 1"), "ret 0");
    assert_eq!(duo.client.ask("close 0"), "ok");
    settle_at(&daemon, 0);
}

#[test]
fn a_writer_on_a_full_ring_whose_reader_is_killed() {
    let daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    duo.client.tell("fill 0");
    settle();
    duo.server.kill();
    // Never a success: nobody will read it.
    assert_eq!(duo.client.answer(), reset());
    assert_eq!(duo.client.ask("close 0"), "ok");
    settle_at(&daemon, 0);
}

#[test]
fn a_daemon_that_is_restarted() {
    let mut daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    let before = duo.kernel(0);
    for pause in [0, 1, 30, 100] {
        in_the_middle(&mut duo, 24 * MIB, || {
            daemon.kill();
            std::thread::sleep(Duration::from_millis(pause));
            daemon.restart();
        });
        // Nothing is under way while it is away.
        daemon.restart();
        duo.both("ping 0 100", "pong 0 100");
        assert_eq!(relayed_at(&daemon), 2);
    }
    assert_eq!(duo.kernel(0), before, "all of it went by the rings");
    // The same programs, with the new daemon.
    duo.connect(1);
    duo.warm_up(1, Way::Ring);
    duo.stream(1, MIB);
    settle_at(&daemon, 4);
    for index in 0..2 {
        assert_eq!(duo.client.ask(&format!("close {index}")), "ok");
        assert_eq!(duo.server.ask(&format!("recv {index} 1")), "ret 0");
        assert_eq!(duo.server.ask(&format!("close {index}")), "ok");
    }
    settle_at(&daemon, 0);
}

#[test]
fn a_program_that_wrote_and_left_while_the_daemon_was_away() {
    let mut daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    daemon.kill();
    assert_eq!(duo.client.ask("send 0 100000"), "ret 100000");
    assert_eq!(duo.client.ask("close 0"), "ok");
    duo.client.dismiss();
    daemon.restart();
    let mut left = 100_000;
    while left > 0 {
        let answer = duo.server.ask("recv 0 100000");
        let got = answer.strip_prefix("ret ").expect("bytes");
        left -= got.parse::<usize>().expect("a number");
    }
    assert_eq!(duo.server.ask("recv 0 1"), "ret 0");
    assert_eq!(duo.server.ask("close 0"), "ok");
    settle_at(&daemon, 0);
}

#[test]
fn both_killed_while_the_daemon_is_away() {
    let mut daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    daemon.kill();
    duo.client.kill();
    duo.server.kill();
    daemon.restart();
    settle_at(&daemon, 0);
}

#[test]
fn a_daemon_that_nobody_starts_again() {
    let mut daemon = Daemon::start();
    daemon.restart_in("VIADUCT_KEEPER_PATIENCE_MS", "300");
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    for agent in [&mut duo.client, &mut duo.server] {
        agent.tell("recv 0 1");
    }
    settle();
    daemon.kill();
    assert_eq!(duo.client.answer(), reset());
    assert_eq!(duo.server.answer(), reset());
    let gone = || daemon.keeper().is_none().then_some(());
    retry("the keeper ends", gone);
}

#[test]
fn a_daemon_that_stops_in_order() {
    let daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    for agent in [&mut duo.client, &mut duo.server] {
        agent.tell("recv 0 1");
    }
    settle();
    daemon.signal(Signal::TERM);
    assert_eq!(duo.client.answer(), reset());
    assert_eq!(duo.server.answer(), reset());
    let gone = || daemon.keeper().is_none().then_some(());
    retry("the keeper ends", gone);
}

#[test]
fn a_daemon_that_drains_harms_nobody() {
    let mut daemon = Daemon::start();
    daemon.restart_with("--drain");
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    in_the_middle(&mut duo, 64 * MIB, || daemon.signal(Signal::TERM));
    retry("the daemon ends", || daemon.end());
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
    for agent in [&mut duo.client, &mut duo.server] {
        assert_eq!(agent.ask("close 0"), "ok");
    }
}

#[test]
fn a_connection_that_is_revoked() {
    let mut daemon = Daemon::start();
    let Some(mut duo) = relayed(&daemon) else {
        return;
    };
    for restarted in [false, true] {
        let index = usize::from(restarted);
        if restarted {
            duo.connect(1);
            duo.warm_up(1, Way::Ring);
            daemon.restart();
        }
        let line = format!("stream {index} {} 5", 24 * MIB);
        duo.server.tell(&line);
        duo.client.tell(&line);
        std::thread::sleep(Duration::from_millis(60));
        let (status, _) = revoke(&daemon, &["--all"]);
        assert_eq!(status, Some(0));
        assert_eq!([duo.client.answer(), duo.server.answer()], ["ok", "ok"]);
        duo.warm_up(index, Way::Kernel);
        duo.stream(index, MIB);
    }
}

/// Its doorbells are full whenever the daemon rings, and whoever writes to them waits.
#[test]
fn a_program_that_jams_its_doorbells() {
    let daemon = Daemon::start();
    let Some(mut hostile) = relayed(&daemon) else {
        return;
    };
    // Now it has doorbells.
    hostile.server.tell("recv 0 1");
    settle();
    assert_eq!(hostile.client.ask("send 0 1"), "ret 1");
    assert_eq!(hostile.server.answer(), "ret 1");
    assert_ne!(hostile.server.ask("jam"), "ret 0");
    let mut others = strangers(&daemon).expect("as before");
    others.connect(0);
    others.warm_up(0, Way::Ring);
    let before = others.kernel(0);
    hostile.server.tell("pong 0 20000");
    hostile.client.tell("ping 0 20000");
    others.stream(0, 64 * MIB);
    others.both("ping 0 1000", "pong 0 1000");
    assert_eq!(others.kernel(0), before, "all of it went by the rings");
    let answers = [hostile.client.answer(), hostile.server.answer()];
    assert_eq!(answers, ["ok", "ok"]);
    assert_eq!(relayed_at(&daemon), 4);
}
