//! epoll: several sets, and sets that are nested, polled, duplicated and inherited.

use libc::{EPOLL_CTL_ADD, EPOLLET, EPOLLIN, EPOLLOUT, POLLIN, SHUT_WR};

use super::epoll::{let_it_sleep, make, now, soon};
use super::{Case, Needs, case};
use crate::end::{End, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("epoll_two_sets", Needs::Steps, epoll_two_sets),
    case("epoll_many_sets", Needs::Both, epoll_many_sets),
    case("epoll_nested", Needs::Both, epoll_nested),
    case("epoll_after_fork", Needs::Processes, epoll_after_fork),
    case(
        "epoll_shared_by_fork",
        Needs::Processes,
        epoll_shared_by_fork,
    ),
    case(
        "epoll_second_descriptor",
        Needs::Steps,
        epoll_second_descriptor,
    ),
    case("epoll_passed_on", Needs::Steps, epoll_passed_on),
    case("epoll_polled", Needs::Both, epoll_polled),
];

fn epoll_two_sets(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.a("add to another", |a| {
        let other = sys::fd_of(sys::epoll_create());
        a.more = vec![other];
        show::ret(sys::epoll_ctl(
            other,
            EPOLL_CTL_ADD,
            a.fd,
            EPOLLIN | EPOLLOUT | EPOLLET,
            9,
        ))
    });
    let other = |a: &End, timeout| show::events(&sys::epoll_wait(a.more[0], 8, timeout));
    stage.a("first edge of the other", |a| other(a, patience()));
    stage.b("say", |b| b.say("hello"));
    stage.a("one", |a| soon(a));
    stage.a("other", |a| other(a, patience()));
    stage.a("one again", |a| now(a));
    stage.a("other again", |a| other(a, 0));
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("one", |a| now(a));
    stage.b("say", |b| b.say("more"));
    stage.a("other", |a| other(a, patience()));
    stage.a("close other", |a| show::ret(sys::close(a.more[0])));
    stage.a("one", |a| soon(a));
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("one", |a| now(a));
}

/// One socket in more sets than can be told of a ring; all are told.
fn epoll_many_sets(stage: &mut Stage) {
    const SETS: u64 = 6;
    stage.connect();
    for number in 0..SETS {
        stage.a("add", |a| {
            let set = sys::fd_of(sys::epoll_create());
            a.more.push(set);
            show::ret(sys::epoll_ctl(set, EPOLL_CTL_ADD, a.fd, EPOLLIN, number))
        });
        stage.b("say", |b| b.say("hello"));
        stage.a("all", |a| {
            let told = |set: &i32| show::events(&sys::epoll_wait(*set, 8, patience()));
            a.more.iter().map(told).collect::<Vec<_>>().join(" ")
        });
        stage.a("recv", |a| a.recv(20, 0));
        stage.a("none", |a| {
            let told = |set: &i32| show::events(&sys::epoll_wait(*set, 8, 0));
            a.more.iter().map(told).collect::<Vec<_>>().join(" ")
        });
        stage.a("say", |a| a.say("answer"));
        stage.b("hear", |b| b.hear(6));
    }
    stage.both(
        "each is woken",
        |a| {
            let mut woken = Vec::new();
            for set in a.more.clone() {
                woken.push(show::events(&sys::epoll_wait(set, 8, patience())));
                woken.push(a.recv(20, 0));
                woken.push(a.say("next"));
            }
            woken.join(" ")
        },
        |b| {
            let mut said = Vec::new();
            for _ in 0..SETS {
                std::thread::sleep(core::time::Duration::from_millis(5));
                said.push(b.say("hello"));
                said.push(b.hear(4));
            }
            said.join(" ")
        },
    );
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("end", |a| {
        let told = |set: &i32| show::events(&sys::epoll_wait(*set, 8, patience()));
        a.more.iter().map(told).collect::<Vec<_>>().join(" ")
    });
}

/// A set that is passed in a message is the kernel's for whoever receives it, and for who sends it.
fn epoll_passed_on(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.b("say", |b| b.say("unread"));
    stage.a("data", |a| soon(a));
    stage.a("pass", |a| {
        let (here, there) = sys::socketpair();
        let passed = show::ret(sys::send_fds(here, b"x", &[a.epfd]));
        a.more = vec![sys::recv_fd(there)];
        let closed = [here, there].map(sys::close).map(show::ret);
        format!("{passed} {closed:?}")
    });
    let received = |a: &End, timeout| show::events(&sys::epoll_wait(a.more[0], 8, timeout));
    for _ in 0..2 {
        stage.a("received", |a| received(a, patience()));
        stage.a("own", |a| soon(a));
        stage.a("hear", |a| a.hear(6));
        stage.a("none", |a| format!("{} {}", received(a, 0), now(a)));
        stage.a("say", |a| a.say("answer"));
        stage.b("hear", |b| b.hear(6));
        stage.b("say", |b| b.say("others"));
    }
    stage.a("close", |a| show::ret(sys::close(a.more[0])));
    stage.a("own", |a| soon(a));
    stage.a("hear", |a| a.hear(6));
}

/// A set inside another.
fn epoll_nested(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.a("nest", |a| {
        let outer = sys::fd_of(sys::epoll_create());
        a.more = vec![outer];
        show::ret(sys::epoll_ctl(outer, EPOLL_CTL_ADD, a.epfd, EPOLLIN, 2))
    });
    stage.a("idle", |a| show::events(&sys::epoll_wait(a.more[0], 8, 0)));
    for _ in 0..3 {
        stage.both(
            "outer woken",
            |a| show::events(&sys::epoll_wait(a.more[0], 8, patience())),
            |b| {
                let_it_sleep();
                b.say("x")
            },
        );
        stage.a("inner", |a| soon(a));
        stage.a("hear", |a| a.hear(1));
        stage.a("idle", |a| show::events(&sys::epoll_wait(a.more[0], 8, 0)));
    }
}

/// A set that is polled.
fn epoll_polled(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    let ask = |a: &End, timeout| {
        let (ret, bits) = sys::poll(&[(a.epfd, POLLIN)], timeout);
        format!("{} {}", show::ret(ret), show::bits(bits[0]))
    };
    stage.a("idle", |a| ask(a, 0));
    for _ in 0..3 {
        stage.both(
            "poll woken",
            |a| ask(a, patience()),
            |b| {
                let_it_sleep();
                b.say("x")
            },
        );
        stage.a("set", |a| soon(a));
        stage.a("select", |a| {
            show::ret(sys::select(&[a.epfd], &[], &[], Some(1000), None).ret)
        });
        stage.a("hear", |a| a.hear(1));
        stage.a("idle", |a| ask(a, 0));
    }
}

/// A child that leaves the set alone changes nothing for its parent.
fn epoll_after_fork(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.b("say", |b| b.say("before"));
    stage.a("soon", |a| soon(a));
    stage.a("fork", |a| {
        let pid = sys::fork();
        if pid == Ok(0) {
            std::thread::sleep(core::time::Duration::from_millis(20));
            sys::exit_now(0);
        }
        format!("{} {}", a.hear(6), sys::wait_for(pid))
    });
    for _ in 0..3 {
        stage.both(
            "go on",
            |a| format!("{} {}", soon(a), a.hear(5)),
            |b| {
                let_it_sleep();
                b.say("after")
            },
        );
    }
}

/// A child waits on the set that its parent made.
fn epoll_shared_by_fork(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.both(
        "child",
        |a| {
            let pid = sys::fork();
            if pid == Ok(0) {
                let told = soon(a);
                let good =
                    told == "[5:IN]" && a.hear(5) == "\"child\"" && a.say("heard") == "sent 5";
                sys::exit_now(if good { 0 } else { 1 });
            }
            sys::wait_for(pid)
        },
        |b| {
            let_it_sleep();
            format!("{} {}", b.say("child"), b.hear(5))
        },
    );
    stage.both(
        "parent",
        |a| format!("{} {}", soon(a), a.hear(6)),
        |b| {
            let_it_sleep();
            b.say("parent")
        },
    );
}

/// The set's first descriptor is closed, a duplicate goes on.
fn epoll_second_descriptor(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.a("move", |a| {
        let second = sys::fd_of(sys::dup(a.epfd));
        let closed = sys::close(a.epfd);
        a.epfd = second;
        show::ok(closed)
    });
    for _ in 0..3 {
        stage.b("say", |b| b.say("x"));
        stage.a("soon", |a| soon(a));
        stage.a("hear", |a| a.hear(1));
        stage.a("idle", |a| format!("{:?}", sys::epoll_wait(a.epfd, 4, 0)));
    }
}
