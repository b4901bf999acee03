//! epoll: level, edge, one-shot, and what the other cases share.

use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT,
    EPOLLRDHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_WR,
};

use super::{Case, Needs, case};
use crate::end::{End, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("epoll_level", Needs::Steps, epoll_level),
    case("epoll_edge", Needs::Steps, epoll_edge),
    case("epoll_edge_out", Needs::Steps, epoll_edge_out),
    case("epoll_one_shot", Needs::Steps, epoll_one_shot),
    case("epoll_reset", Needs::Steps, epoll_reset),
];

pub(super) const IN_OUT: i16 = POLLIN | POLLOUT;

const FIN: i16 = IN_OUT | POLLRDHUP;

pub(super) fn make(end: &mut End, events: i32) -> String {
    end.epfd = sys::fd_of(sys::epoll_create());
    show::ret(sys::epoll_ctl(end.epfd, EPOLL_CTL_ADD, end.fd, events, 5))
}

pub(super) fn ctl(end: &End, op: i32, events: i32) -> String {
    show::ret(sys::epoll_ctl(end.epfd, op, end.fd, events, 6))
}

/// What the set says now.
pub(super) fn now(end: &End) -> String {
    show::events(&sys::epoll_wait(end.epfd, 8, 0))
}

/// That no edge has come. An upgrade may post one of its own, so nothing is said while one may come.
pub(super) fn no_edge(end: &End) -> String {
    if end.settled {
        now(end)
    } else {
        "not looked at".to_owned()
    }
}

/// What the set says once it says anything.
pub(super) fn soon(end: &End) -> String {
    show::events(&sys::epoll_wait(end.epfd, 8, patience()))
}

fn epoll_level(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN | EPOLLRDHUP));
    stage.a("idle", |a| now(a));
    stage.b("say", |b| b.say("hello"));
    stage.a("data", |a| soon(a));
    stage.a("data again", |a| now(a));
    stage.a("part", |a| a.recv(2, 0));
    stage.a("rest is there", |a| now(a));
    stage.a("rest", |a| a.recv(10, 0));
    stage.a("idle", |a| now(a));
    stage.b("say", |b| b.say("more"));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("settle", |a| a.ready(FIN));
    stage.a("data and fin", |a| soon(a));
    stage.a("recv", |a| a.recv(10, 0));
    stage.a("fin", |a| soon(a));
    stage.a("recv", |a| a.recv(10, 0));
    stage.a("fin stays", |a| soon(a));
    stage.a("shutdown", |a| a.shutdown(SHUT_WR));
    stage.a("hup", |a| soon(a));
}

fn epoll_edge(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| {
        make(a, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)
    });
    stage.a("first edge", |a| soon(a));
    stage.a("no edge", |a| no_edge(a));
    stage.b("say", |b| b.say("hello"));
    stage.a("data", |a| soon(a));
    stage.a("no edge", |a| no_edge(a));
    stage.a("part", |a| a.recv(2, 0));
    stage.a("no edge while bytes are left", |a| no_edge(a));
    stage.b("say", |b| b.say("more"));
    stage.a("new data", |a| soon(a));
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("nothing", |a| a.recv(20, libc::MSG_DONTWAIT));
    stage.a("no edge", |a| no_edge(a));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| soon(a));
    stage.a("no edge", |a| no_edge(a));
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("no edge", |a| no_edge(a));
}

/// Sends until nothing fits, and for so long that no acknowledgement is on its way that makes room: it may be
/// delayed by 40 ms.
pub(super) fn fill(end: &End) -> String {
    let chunk = vec![b'f'; 65_536];
    let mut calm = 0;
    while calm < 12 {
        if sys::send(end.fd, &chunk, libc::MSG_DONTWAIT).is_err() {
            calm += 1;
            std::thread::sleep(core::time::Duration::from_millis(10));
        } else {
            calm = 0;
        }
    }
    "full".to_owned()
}

/// Receives until nothing comes for a while.
pub(super) fn drain(end: &End) -> String {
    let mut buffer = vec![0; 1 << 20];
    while sys::poll(&[(end.fd, POLLIN)], 500).0 == Ok(1) {
        if sys::recv(end.fd, &mut buffer, libc::MSG_DONTWAIT) == Ok(0) {
            return "end".to_owned();
        }
    }
    "drained".to_owned()
}

fn epoll_edge_out(stage: &mut Stage) {
    stage.connect();
    stage.a("fill", |a| fill(a));
    stage.a("add", |a| make(a, EPOLLOUT | EPOLLET));
    stage.a("no edge", |a| no_edge(a));
    stage.b("drain", |b| drain(b));
    stage.a("space", |a| soon(a));
    stage.a("say", |a| a.say("x"));
    stage.b("hear", |b| b.hear(1));
    stage.a("no edge", |a| no_edge(a));
    stage.a("fill", |a| fill(a));
    stage.a("no edge", |a| no_edge(a));
    stage.b("drain", |b| drain(b));
    stage.a("space", |a| soon(a));
}

fn epoll_one_shot(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN | EPOLLONESHOT));
    stage.b("say", |b| b.say("hello"));
    stage.a("data", |a| soon(a));
    stage.a("spent", |a| now(a));
    stage.b("say", |b| b.say("more"));
    stage.a("arrived", |a| a.arrived(9));
    stage.a("still spent", |a| now(a));
    stage.a("rearm", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLONESHOT));
    stage.a("data", |a| soon(a));
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("rearm", |a| {
        ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLONESHOT | EPOLLET)
    });
    stage.a("idle", |a| now(a));
    stage.b("say", |b| b.say("third"));
    stage.a("data", |a| soon(a));
    stage.a("rearm", |a| {
        ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLONESHOT | EPOLLET)
    });
    stage.a("still data", |a| soon(a));
    stage.b("close", End::close);
    stage.a("settle", |a| a.ready(FIN));
    stage.a("spent, no fin", |a| now(a));
    stage.a("rearm", |a| {
        ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT)
    });
    stage.a("data and fin", |a| soon(a));
}

fn epoll_reset(stage: &mut Stage) {
    stage.connect();
    stage.a("add level", |a| make(a, EPOLLIN));
    stage.b("add edge", |b| {
        make(b, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)
    });
    stage.b("first edge", |b| soon(b));
    stage.a("linger", |a| show::ret(sys::set_linger(a.fd, 1, 0)));
    stage.a("close", End::close);
    stage.b("settle", |b| b.ready(FIN | libc::POLLERR | libc::POLLHUP));
    stage.b("reset", |b| soon(b));
    stage.b("recv", |b| b.recv(4, 0));
    stage.b("known bits", |_| format!("{}", EPOLLERR | EPOLLHUP));
    stage.b("mod", |b| ctl(b, EPOLL_CTL_MOD, EPOLLIN));
    stage.b("after", |b| soon(b));
}

pub(super) fn let_it_sleep() {
    std::thread::sleep(core::time::Duration::from_millis(40));
}
