//! epoll: several descriptors in one set, and in which order they are told.

use libc::{EPOLL_CTL_ADD, EPOLLIN, EPOLLOUT};

use super::epoll::{IN_OUT, let_it_sleep, make, now, soon};
use super::{Case, Needs, case};
use crate::end::{Side, patience};
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("epoll_mixed", Needs::Steps, epoll_mixed),
    case("epoll_one_at_a_time", Needs::Steps, epoll_one_at_a_time),
    case("epoll_in_order", Needs::Steps, epoll_in_order),
    case(
        "epoll_in_order_of_answers",
        Needs::Steps,
        epoll_in_order_of_answers,
    ),
];

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
