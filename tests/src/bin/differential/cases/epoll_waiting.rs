//! epoll: what ends a wait, timeouts, and room for events that is none.

use libc::{EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, SHUT_WR};

use super::epoll::{IN_OUT, ctl, drain, fill, let_it_sleep, make, now, soon};
use super::{Case, Needs, case};
use crate::end::{End, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("epoll_bad", Needs::Steps, epoll_bad),
    case("epoll_woken", Needs::Both, epoll_woken),
    case("epoll_timeouts", Needs::Steps, epoll_timeouts),
    case(
        "epoll_woken_by_other_thread",
        Needs::Both,
        epoll_woken_by_other_thread,
    ),
];

fn epoll_bad(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN | EPOLLOUT));
    stage.a("no room", |a| {
        show::ret(sys::epoll_wait_at(a.epfd, 8192, 0, 0))
    });
    stage.a("negative room", |a| {
        show::ret(sys::epoll_wait_at(a.epfd, 8192, -1, 0))
    });
    stage.a("null", |a| show::ret(sys::epoll_wait_at(a.epfd, 0, 4, 0)));
    stage.a("page one", |a| {
        show::ret(sys::epoll_wait_at(a.epfd, 64, 4, 0))
    });
    // Beyond EP_MAX_EVENTS.
    stage.a("too much room", |a| {
        [i32::MAX, i32::MAX / 8]
            .map(|room| show::ret(sys::epoll_wait_at(a.epfd, 8192, room, 0)))
            .join(" ")
    });
    stage.a("good", |a| soon(a));
}

fn epoll_woken(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN | EPOLLRDHUP));
    let later = |b: &mut End| {
        let_it_sleep();
        b.say("x")
    };
    stage.both("by data", |a| soon(a), later);
    stage.a("hear", |a| a.hear(1));
    stage.both(
        "by data, without end",
        |a| show::events(&sys::epoll_wait(a.epfd, 8, -1)),
        later,
    );
    stage.a("hear", |a| a.hear(1));
    stage.a("mod edge", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLET));
    stage.both("edge by data", |a| soon(a), later);
    stage.both("edge by more data", |a| soon(a), later);
    stage.a("hear", |a| a.hear(2));
    stage.a("fill", |a| fill(a));
    stage.a("mod out", |a| ctl(a, EPOLL_CTL_MOD, EPOLLOUT));
    stage.both(
        "by space",
        |a| soon(a),
        |b| {
            let_it_sleep();
            drain(b)
        },
    );
    stage.a("mod rdhup", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP));
    stage.both(
        "by fin",
        |a| soon(a),
        |b| {
            let_it_sleep();
            b.shutdown(SHUT_WR)
        },
    );
}

fn epoll_timeouts(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.a("now", |a| now(a));
    stage.a("20 ms", |a| show::events(&sys::epoll_wait(a.epfd, 8, 20)));
    stage.a("pwait2, 300 us", |a| {
        show::events(&sys::epoll_pwait2(a.epfd, 8, 300_000))
    });
    stage.a("pwait2, 0", |a| {
        show::events(&sys::epoll_pwait2(a.epfd, 8, 0))
    });
    stage.b("say", |b| b.say("x"));
    stage.a("pwait2, data", |a| {
        show::events(&sys::epoll_pwait2(
            a.epfd,
            8,
            1_000_000 * i64::from(patience()),
        ))
    });
    stage.a("bad time", |a| {
        show::events(&sys::epoll_pwait2(a.epfd, 8, -5))
    });
    stage.a("hear", |a| a.hear(1));
}

/// A thread waits on the set while another adds, modifies and removes.
fn epoll_woken_by_other_thread(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("settle", |a| a.ready(IN_OUT));
    stage.a("add while waiting", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        let (epfd, fd) = (a.epfd, a.fd);
        let other = std::thread::spawn(move || {
            let_it_sleep();
            sys::epoll_ctl(epfd, EPOLL_CTL_ADD, fd, EPOLLIN, 5)
        });
        let events = soon(a);
        format!("{events} {:?}", other.join().unwrap_or(Err(-1)))
    });
    stage.a("hear", |a| a.hear(5));
    stage.a("mod while waiting", |a| {
        let (epfd, fd) = (a.epfd, a.fd);
        let other = std::thread::spawn(move || {
            let_it_sleep();
            sys::epoll_ctl(epfd, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT, 5)
        });
        let events = soon(a);
        format!("{events} {:?}", other.join().unwrap_or(Err(-1)))
    });
}
