//! Far ends that are killed, seen by calls that do not wait for anything to come.

use libc::{MSG_DONTWAIT, MSG_PEEK, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, SHUT_WR};

use super::corners::{RESET, leave_and_kill};
use super::{Case, Needs, blocking, case};
use crate::end::{End, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("killed_seen_by_trying", Needs::Processes, seen_by_trying),
    blocking(
        "killed_seen_by_any_call",
        Needs::Processes,
        seen_by_any_call,
    ),
    blocking("killed_wakes_any_poll", Needs::Processes, wakes_any_poll),
    blocking("killed_with_all_read", Needs::Processes, with_all_read),
    blocking(
        "killed_beside_a_busy_one",
        Needs::Processes,
        beside_a_busy_one,
    ),
];

/// Tries until there is an answer.
fn try_again(b: &End, flags: i32) -> String {
    let mut answer = String::new();
    for _ in 0..patience() / 2 {
        answer = show::ret(sys::recv(b.fd, &mut [0; 8], flags | MSG_DONTWAIT));
        if answer != show::ret(Err(libc::EAGAIN)) {
            break;
        }
        std::thread::sleep(core::time::Duration::from_millis(2));
    }
    answer
}

fn seen_by_trying(stage: &mut Stage) {
    for unread in [false, true] {
        for flags in [0, MSG_PEEK] {
            stage.connect();
            if unread {
                stage.b("say", |b| b.say("unread"));
                stage.a("arrived", |a| a.arrived(6));
            }
            stage.b("nothing yet", |b| b.recv(1, MSG_DONTWAIT));
            stage.a("kill", leave_and_kill);
            stage.b("try", |b| try_again(b, flags));
            stage.b("try once more", |b| try_again(b, 0));
            stage.b("close", End::close);
        }
    }
}

/// One call of an end, and what it says.
type Call = fn(&mut End) -> String;

/// What the first call says, and what is left for others.
fn seen_by_any_call(stage: &mut Stage) {
    let first: &[(&'static str, Call)] = &[
        ("SO_ERROR", |b| b.so_error()),
        ("send of nothing", |b| b.send(b"", 0)),
        ("write of nothing", |b| show::ret(sys::write(b.fd, b""))),
        ("recv of nothing", |b| b.recv_once(0, 0)),
        ("peek", |b| b.recv_once(1, MSG_PEEK)),
        ("shutdown", |b| b.shutdown(SHUT_WR)),
        ("poll for nothing", |b| {
            let (ret, told) = sys::poll(&[(b.fd, 0)], 0);
            format!("{} {told:?}", show::ret(ret))
        }),
    ];
    for &(name, call) in first {
        stage.connect();
        stage.b("SIGPIPE", |_| show::ret(sys::uncatch(libc::SIGPIPE, true)));
        stage.b("say", |b| b.say("unread"));
        stage.a("arrived", |a| a.arrived(6));
        stage.a("kill", leave_and_kill);
        stage.b(name, call);
        stage.b("recv", |b| b.recv_once(8, MSG_DONTWAIT));
        stage.b("send", |b| b.send(b"x", 0));
        stage.b("SO_ERROR", |b| b.so_error());
        stage.b("close", End::close);
    }
}

fn wakes_any_poll(stage: &mut Stage) {
    for events in [0, POLLPRI, POLLRDHUP, POLLOUT] {
        stage.connect();
        stage.b("say", |b| b.say("unread"));
        stage.a("arrived", |a| a.arrived(6));
        let poll = |b: &mut End| {
            if events == POLLOUT {
                super::signals::fill(b);
            }
            let (ret, told) = sys::poll(&[(b.fd, events)], patience());
            format!("{} {told:?}", show::ret(ret))
        };
        let kill = |a: &mut End| {
            std::thread::sleep(core::time::Duration::from_millis(300));
            leave_and_kill(a)
        };
        stage.both("poll", kill, poll);
        stage.b("recv", |b| b.recv_once(8, MSG_DONTWAIT));
        stage.b("close", End::close);
    }
}

fn with_all_read(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("hear", |a| a.hear(5));
    stage.a("kill", leave_and_kill);
    stage.b("poll", |b| b.ready(POLLIN | POLLOUT | POLLRDHUP));
    stage.b("SO_ERROR", |b| b.so_error());
    stage.b("recv", |b| b.recv_once(8, MSG_DONTWAIT));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("close", End::close);
}

/// Another connection always has something for the call that asks about both, so that it never sleeps.
fn beside_a_busy_one(stage: &mut Stage) {
    for events in [POLLIN, 0] {
        stage.connect();
        stage.set_aside();
        stage.connect();
        stage.b("say", |b| b.say("unread"));
        stage.a("arrived", |a| a.arrived(6));
        stage.a("say aside", |a| {
            show::ret(sys::send(a.aside(), b"busy", MSG_DONTWAIT))
        });
        stage.b("aside", |b| {
            show::ret(sys::poll(&[(b.aside(), POLLIN)], patience()).0)
        });
        let kill = |a: &mut End| {
            std::thread::sleep(core::time::Duration::from_millis(20));
            leave_and_kill(a)
        };
        let poll = |b: &mut End| {
            let patience = core::time::Duration::from_millis(patience().unsigned_abs().into());
            let until = std::time::Instant::now() + patience;
            while std::time::Instant::now() < until {
                let (ret, told) = sys::poll(&[(b.aside(), POLLIN), (b.fd, events)], 1000);
                if ret == Ok(2) {
                    return format!("both, {}", told[0]);
                }
            }
            "never".to_owned()
        };
        stage.both("poll", kill, poll);
        stage.b("reset", |b| b.ready(RESET));
        stage.b("recv", |b| b.recv_once(8, MSG_DONTWAIT));
        stage.b("close", End::close);
    }
}
