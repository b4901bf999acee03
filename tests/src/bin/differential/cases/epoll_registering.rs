//! epoll: what is registered, modified, removed.

use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT,
    EPOLLRDHUP, SHUT_WR,
};

use super::epoll::{IN_OUT, ctl, make, no_edge, now, soon};
use super::{Case, Needs, case};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("epoll_mod", Needs::Steps, epoll_mod),
    case("epoll_errors", Needs::Steps, epoll_errors),
    case("epoll_del_and_add", Needs::Steps, epoll_del_and_add),
    case("epoll_close_removes", Needs::Steps, epoll_close_removes),
];

fn epoll_mod(stage: &mut Stage) {
    stage.connect();
    stage.a("add nothing", |a| make(a, 0));
    stage.b("say", |b| b.say("hello"));
    stage.a("settle", |a| a.ready(IN_OUT));
    stage.a("nothing asked", |a| now(a));
    stage.a("mod in", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN));
    stage.a("data, new number", |a| soon(a));
    stage.a("mod out", |a| ctl(a, EPOLL_CTL_MOD, EPOLLOUT));
    stage.a("space", |a| soon(a));
    stage.a("mod both edge", |a| {
        ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT | EPOLLET)
    });
    stage.a("edge after mod", |a| soon(a));
    stage.a("no edge", |a| no_edge(a));
    stage.a("mod the same", |a| {
        ctl(a, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT | EPOLLET)
    });
    stage.a("edge after mod", |a| soon(a));
    stage.a("hear", |a| a.hear(5));
    stage.a("mod in", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN));
    stage.a("idle", |a| now(a));
    stage.a("mod rdhup", |a| ctl(a, EPOLL_CTL_MOD, EPOLLRDHUP));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("rdhup", |a| soon(a));
    stage.a("mod in", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN));
    stage.a("in", |a| soon(a));
    stage.a("mod nothing", |a| ctl(a, EPOLL_CTL_MOD, 0));
    stage.a("nothing", |a| now(a));
}

fn epoll_errors(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.a("add again", |a| ctl(a, EPOLL_CTL_ADD, EPOLLIN));
    stage.a("del", |a| ctl(a, EPOLL_CTL_DEL, 0));
    stage.a("del again", |a| ctl(a, EPOLL_CTL_DEL, 0));
    stage.a("mod of nothing", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN));
    stage.a("add null", |a| {
        show::ret(sys::epoll_ctl_null(a.epfd, EPOLL_CTL_ADD, a.fd))
    });
    stage.a("add", |a| ctl(a, EPOLL_CTL_ADD, EPOLLIN));
    stage.a("mod null", |a| {
        show::ret(sys::epoll_ctl_null(a.epfd, EPOLL_CTL_MOD, a.fd))
    });
    stage.a("del null", |a| {
        show::ret(sys::epoll_ctl_null(a.epfd, EPOLL_CTL_DEL, a.fd))
    });
    stage.a("bad operation", |a| ctl(a, 9, EPOLLIN));
    stage.a("no set", |a| {
        show::ret(sys::epoll_ctl(a.fd, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1))
    });
    stage.a("bad set", |a| {
        show::ret(sys::epoll_ctl(-1, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1))
    });
    stage.a("bad descriptor", |a| {
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, -1, EPOLLIN, 1))
    });
    stage.a("itself", |a| {
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.epfd, EPOLLIN, 1))
    });
    stage.a("wait on no set", |a| {
        show::events(&sys::epoll_wait(a.fd, 1, 0))
    });
    stage.a("exclusive", |a| {
        ctl(a, EPOLL_CTL_ADD, EPOLLIN | libc::EPOLLEXCLUSIVE)
    });
    stage.a("mod exclusive", |a| ctl(a, EPOLL_CTL_MOD, EPOLLIN));
    stage.a("del exclusive", |a| ctl(a, EPOLL_CTL_DEL, EPOLLIN));
    stage.a("exclusive one-shot", |a| {
        ctl(
            a,
            EPOLL_CTL_ADD,
            EPOLLIN | libc::EPOLLEXCLUSIVE | EPOLLONESHOT,
        )
    });
}

fn epoll_del_and_add(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN | EPOLLET));
    stage.b("say", |b| b.say("hello"));
    stage.a("data", |a| soon(a));
    stage.a("del", |a| ctl(a, EPOLL_CTL_DEL, 0));
    stage.b("say", |b| b.say("more"));
    stage.a("arrived", |a| a.arrived(9));
    stage.a("removed", |a| now(a));
    stage.a("add", |a| ctl(a, EPOLL_CTL_ADD, EPOLLIN));
    stage.a("data", |a| soon(a));
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("idle", |a| now(a));
    for _ in 0..6 {
        stage.a("del", |a| ctl(a, EPOLL_CTL_DEL, 0));
        stage.a("add", |a| ctl(a, EPOLL_CTL_ADD, EPOLLIN | EPOLLET));
        stage.b("say", |b| b.say("x"));
        stage.a("data", |a| soon(a));
        stage.a("recv", |a| a.recv(20, 0));
    }
}

fn epoll_close_removes(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.b("say", |b| b.say("hello"));
    stage.a("data", |a| soon(a));
    stage.a("close", |a| {
        a.more = vec![a.fd];
        a.close()
    });
    stage.a("gone", |a| now(a));
    stage.a("mod", |a| {
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_MOD, a.more[0], EPOLLIN, 1))
    });
    stage.a("number used again", |a| {
        let (read, write) = sys::pipe();
        a.more = vec![read, write];
        let added = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, read, EPOLLIN, 8);
        let _ = sys::write(write, b"x");
        format!("{} {}", show::ret(added), now(a))
    });
}
