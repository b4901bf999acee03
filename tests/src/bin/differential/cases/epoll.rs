//! epoll: level, edge, one-shot; what is registered, modified, removed; mixed with other descriptors.

use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN,
    EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_WR,
};

use super::{Case, Needs, case};
use crate::end::{End, Side, patience};
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("epoll_level", Needs::Steps, epoll_level),
    case("epoll_edge", Needs::Steps, epoll_edge),
    case("epoll_edge_out", Needs::Steps, epoll_edge_out),
    case("epoll_one_shot", Needs::Steps, epoll_one_shot),
    case("epoll_mod", Needs::Steps, epoll_mod),
    case("epoll_errors", Needs::Steps, epoll_errors),
    case("epoll_del_and_add", Needs::Steps, epoll_del_and_add),
    case("epoll_two_sets", Needs::Steps, epoll_two_sets),
    case("epoll_many_sets", Needs::Both, epoll_many_sets),
    case("epoll_close_removes", Needs::Steps, epoll_close_removes),
    case("epoll_reset", Needs::Steps, epoll_reset),
    case("epoll_mixed", Needs::Steps, epoll_mixed),
    case("epoll_one_at_a_time", Needs::Steps, epoll_one_at_a_time),
    case("epoll_bad", Needs::Steps, epoll_bad),
    case("epoll_woken", Needs::Both, epoll_woken),
    case("epoll_timeouts", Needs::Steps, epoll_timeouts),
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
    case("epoll_polled", Needs::Both, epoll_polled),
    case(
        "epoll_woken_by_other_thread",
        Needs::Both,
        epoll_woken_by_other_thread,
    ),
    case("epoll_in_order", Needs::Steps, epoll_in_order),
    case(
        "epoll_in_order_of_answers",
        Needs::Steps,
        epoll_in_order_of_answers,
    ),
];

const IN_OUT: i16 = POLLIN | POLLOUT;
const FIN: i16 = IN_OUT | POLLRDHUP;

fn make(end: &mut End, events: i32) -> String {
    end.epfd = sys::fd_of(sys::epoll_create());
    show::ret(sys::epoll_ctl(end.epfd, EPOLL_CTL_ADD, end.fd, events, 5))
}

fn ctl(end: &End, op: i32, events: i32) -> String {
    show::ret(sys::epoll_ctl(end.epfd, op, end.fd, events, 6))
}

/// What the set says now.
fn now(end: &End) -> String {
    show::events(&sys::epoll_wait(end.epfd, 8, 0))
}

/// That no edge has come. An upgrade may post one of its own, so nothing is said while one may come.
fn no_edge(end: &End) -> String {
    if end.settled {
        now(end)
    } else {
        "not looked at".to_owned()
    }
}

/// What the set says once it says anything.
fn soon(end: &End) -> String {
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
fn fill(end: &End) -> String {
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
fn drain(end: &End) -> String {
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

fn epoll_mixed(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN));
    stage.a("pipe", |a| {
        let (read, write) = sys::pipe();
        a.more = vec![read, write];
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, read, EPOLLIN, 1))
    });
    stage.a("idle", |a| now(a));
    stage.a("write pipe", |a| show::ret(sys::write(a.more[1], b"x")));
    stage.a("pipe", |a| soon(a));
    stage.b("say", |b| b.say("hello"));
    stage.a("settle", |a| a.ready(IN_OUT));
    stage.a("both", |a| soon(a));
    stage.a("one event of room, both in turn", |a| {
        let mut seen = [false; 10];
        for _ in 0..8 {
            for (_, data) in sys::epoll_wait(a.epfd, 1, 0).unwrap_or_default() {
                seen[usize::try_from(data).unwrap_or(0) % 10] = true;
            }
        }
        format!("pipe {} socket {}", seen[1], seen[5])
    });
    stage.a("read pipe", |a| {
        show::ret(sys::read(a.more[0], &mut [0; 4]))
    });
    stage.a("socket", |a| soon(a));
    stage.a("recv", |a| a.recv(10, 0));
    stage.a("idle", |a| now(a));
}

/// Many ready descriptors and room for one event: each gets its turn.
fn epoll_one_at_a_time(stage: &mut Stage) {
    stage.connect();
    stage.a("add", |a| make(a, EPOLLIN | EPOLLOUT));
    stage.a("pipes", |a| {
        for number in 0..4 {
            let (read, write) = sys::pipe();
            let _ = sys::write(write, b"x");
            let _ = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, read, EPOLLIN, 10 + number);
            a.more.push(read);
        }
        "four".to_owned()
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("settle", |a| a.ready(IN_OUT));
    stage.a("turns", |a| {
        let mut turns = [0; 16];
        for _ in 0..50 {
            for (_, data) in sys::epoll_wait(a.epfd, 1, 0).unwrap_or_default() {
                turns[usize::try_from(data).unwrap_or(0) % 16] += 1;
            }
        }
        let fair = [5, 10, 11, 12, 13].iter().all(|&number| turns[number] >= 4);
        format!("fair {fair}")
    });
    stage.a("two at a time", |a| {
        let mut turns = [0; 16];
        for _ in 0..50 {
            for (_, data) in sys::epoll_wait(a.epfd, 2, 0).unwrap_or_default() {
                turns[usize::try_from(data).unwrap_or(0) % 16] += 1;
            }
        }
        let fair = [5, 10, 11, 12, 13].iter().all(|&number| turns[number] >= 8);
        format!("fair {fair}")
    });
}

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
    stage.a("good", |a| soon(a));
}

fn let_it_sleep() {
    std::thread::sleep(core::time::Duration::from_millis(40));
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

/// Events come in the order in which their bytes were sent, whichever way each connection's went.
fn epoll_in_order(stage: &mut Stage) {
    stage.connect();
    stage.set_aside();
    stage.connect_cold(Family::V4);
    stage.a("add", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        let add = |fd, data| sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, fd, EPOLLIN, data);
        format!("{:?} {:?}", add(a.more[0], 1), add(a.fd, 2))
    });
    stage.a("idle", |a| now(a));
    stage.b("no delay", |b| {
        let set = |fd| sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        format!("{:?}", [b.fd, b.more[0]].map(set))
    });
    for old_first in [false, false, true, false, true, true] {
        stage.b("say on both", |b| {
            let mut order = [b.fd, b.more[0]];
            if old_first {
                order.reverse();
            }
            let sent = order.map(|fd| sys::send(fd, b"x", 0));
            // The kernel delivers at leisure, and a look at the sockets would be a turn of its own.
            let_it_sleep();
            format!("{sent:?}")
        });
        stage.a("in order", |a| {
            let told = sys::epoll_wait(a.epfd, 8, 0).unwrap_or_default();
            format!(
                "{:?}",
                told.iter().map(|(_, data)| data).collect::<Vec<_>>()
            )
        });
        stage.a("hear both", |a| {
            let heard = [a.fd, a.more[0]].map(|fd| sys::recv(fd, &mut [0; 4], 0));
            format!("{heard:?}")
        });
        stage.a("idle", |a| now(a));
    }
}

/// The same while a new connection leaves the kernel, one direction after the other, without TCP_NODELAY: what
/// is sent after an answer is not held back.
fn epoll_in_order_of_answers(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        let set = sys::fd_of(sys::epoll_create());
        a.more = vec![set];
        show::ret(sys::epoll_ctl(set, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1))
    });
    // Nobody answers on this one.
    stage.b("no delay", |b| {
        show::ret(sys::setsockopt(
            b.fd,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            1,
        ))
    });
    for _ in 0..4 {
        stage.set_aside();
        stage.connect_cold(Family::V4);
        stage.a("add", |a| {
            show::ret(sys::epoll_ctl(a.more[0], EPOLL_CTL_ADD, a.fd, EPOLLIN, 2))
        });
        for _ in 0..6 {
            stage.b("ask", |b| b.say("ask"));
            stage.a("wait", |a| {
                show::events(&sys::epoll_wait(a.more[0], 8, patience()))
            });
            stage.a("hear", |a| a.recv(9, 0));
            stage.a("answer", |a| a.say("answer"));
            stage.b("hear, then say on both", |b| {
                let heard = b.hear(6);
                let old = b.more.last().copied().unwrap_or(-1);
                let sent = [b.fd, old].map(|fd| sys::send(fd, b"x", 0));
                let_it_sleep();
                format!("{heard} {sent:?}")
            });
            stage.a("in order", |a| {
                let told = sys::epoll_wait(a.more[0], 8, 0).unwrap_or_default();
                let order: Vec<u64> = told.iter().map(|&(_, data)| data).collect();
                let old = a.more.last().copied().unwrap_or(-1);
                let heard = [a.fd, old].map(|fd| sys::recv(fd, &mut [0; 4], 0));
                format!("{order:?} {heard:?}")
            });
            stage.b("hear", |b| b.recv(1, libc::MSG_DONTWAIT));
        }
        for side in [Side::A, Side::B] {
            stage.one(side, "close", |end| {
                let closed = end.close();
                let kept = end.more.pop().unwrap_or(-1);
                end.hold(kept);
                closed
            });
        }
    }
}
