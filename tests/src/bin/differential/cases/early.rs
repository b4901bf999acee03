//! Sockets that others have before they are connections: passed on, forked, duplicated; and listening ones.

use libc::POLLOUT;

use super::descriptors::child;
use super::strangers::{end, start, talk};
use super::{Case, Needs, case, rounds};
use crate::end::{End, Side};
use crate::form::Form;
use crate::stage::{Listener, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("passed_before_connect", Needs::Steps, before_connect),
    case(
        "passed_before_connect_watched",
        Needs::Steps,
        watched_before_connect,
    ),
    case(
        "forked_before_connect",
        Needs::Processes,
        forked_before_connect,
    ),
    case("duplicated_before_connect", Needs::Steps, |stage| {
        duplicated_before_connect(stage, sys::dup, false);
    }),
    case(
        "duplicated_before_connect_by_number",
        Needs::Steps,
        |stage| {
            duplicated_before_connect(stage, sys::raw_dup, false);
        },
    ),
    case("moved_before_connect", Needs::Steps, |stage| {
        duplicated_before_connect(stage, sys::dup, true);
    }),
    case("passed_listener", Needs::Steps, listener),
];

/// Two that hold a socket use it in turn: `other` is told what the second one does.
fn in_turn(stage: &mut Stage, mut other: impl FnMut(&str) -> String) {
    for _ in 0..30 {
        stage.a("say", |a| a.say("one "));
        stage.a("says", |_| other("say two"));
        stage.b("hear", |b| b.hear(7));
        stage.b("say", |b| b.say("0123456789"));
        stage.a("arrived", |a| a.arrived(10));
        stage.a("first", |a| a.hear(5));
        stage.a("second", |_| other("hear 5"));
    }
}

/// A socket that is passed on first and connected then, and used by both.
fn before_connect(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    let listener = stage.listen(Side::B);
    stage.a("pass", |a| {
        a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        strange.at().hand_over(a.fd, Form::Blocking)
    });
    connect_to(stage, listener);
    in_turn(stage, |order| strange.at().does(order));
    stage.a("close", End::close);
    stage.b("no end", |b| b.ready(POLLOUT));
    talk(stage, &strange);
    end(stage, strange);
}

/// The same with a set that holds the socket from the beginning.
fn watched_before_connect(stage: &mut Stage) {
    let mut strange = start(stage, Side::A);
    let listener = stage.listen(Side::B);
    stage.a("pass", |a| {
        a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        a.more = vec![fd_of(sys::epoll_create())];
        let wishes = libc::EPOLLIN | libc::EPOLLRDHUP;
        let added = sys::epoll_ctl(a.more[0], libc::EPOLL_CTL_ADD, a.fd, wishes, 5);
        let given = strange.at().hand_over(a.fd, Form::Blocking);
        format!("{} {given}", show::ret(added))
    });
    connect_to(stage, listener);
    for _ in 0..30 {
        stage.a("nothing", |a| {
            show::events(&sys::epoll_wait(a.more[0], 4, 0))
        });
        stage.a("says", |_| strange.at().does("say one"));
        stage.a("say", |a| a.say(" two"));
        stage.b("hear", |b| b.hear(7));
        stage.b("say", |b| b.say("0123456789"));
        stage.a("wait", |a| {
            show::events(&sys::epoll_wait(a.more[0], 4, 20_000))
        });
        stage.a("arrived", |a| a.arrived(10));
        stage.a("hears", |_| strange.at().does("hear 5"));
        stage.a("hear", |a| a.hear(5));
    }
    stage.a("leaves", |_| strange.leaves());
    stage.b("close", End::close);
    stage.a("wait", |a| {
        show::events(&sys::epoll_wait(a.more[0], 4, 20_000))
    });
    stage.a("end", |a| a.hear(1));
}

fn connect_to(stage: &mut Stage, listener: Listener) {
    stage.a("connect", |a| {
        let connected = sys::connect(a.fd, listener.address);
        let fd = a.fd;
        a.take(fd);
        show::ret(connected)
    });
    stage.b("accept", |b| {
        b.take(fd_of(sys::accept4(listener.fd, 0)));
        show::ret(sys::close(listener.fd))
    });
}

/// A socket that a child inherits before its parent connects it; both use it.
fn forked_before_connect(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    let (mut pid, mut link) = (Err(-1), -1);
    stage.a("fork", |a| {
        a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        let (here, there) = sys::socketpair();
        link = here;
        pid = child(|| {
            let _ = sys::close(here);
            a.form = Form::Blocking;
            loop {
                let mut order = [0; 16];
                match sys::read(there, &mut order) {
                    Ok(got) if got > 0 => {}
                    _ => return true,
                }
                let answer = if order[0] == b's' {
                    a.say("two")
                } else {
                    a.hear(5)
                };
                let _ = sys::write(there, answer.as_bytes());
            }
        });
        let _ = sys::close(there);
        "forked".to_owned()
    });
    connect_to(stage, listener);
    in_turn(stage, |order| {
        let mut answer = [0; 64];
        let _ = sys::write(link, order.as_bytes());
        let got = sys::read(link, &mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..usize::try_from(got).unwrap_or(0)]).into_owned()
    });
    stage.a("close", End::close);
    stage.b("no end", |b| b.ready(POLLOUT));
    stage.a("leaves", |_| {
        let _ = sys::close(link);
        sys::wait_for(pid)
    });
    stage.b("end", |b| b.hear(1));
}

/// A socket that has two numbers before it is connected, both of which are used; or another number than at first.
fn duplicated_before_connect(stage: &mut Stage, dup: fn(i32) -> sys::Ret, moved: bool) {
    let listener = stage.listen(Side::B);
    let mut other = End::new(Side::A, Form::Blocking);
    stage.a("socket", |a| {
        let first = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        a.fd = fd_of(dup(first));
        other.fd = first;
        if moved {
            let closed = sys::close(first);
            other.fd = -1;
            return show::ret(closed);
        }
        "two".to_owned()
    });
    connect_to(stage, listener);
    if !moved {
        in_turn(stage, |order| match order {
            "say two" => other.say("two"),
            _ => other.hear(5),
        });
        stage.a("close", End::close);
        stage.b("no end", |b| b.ready(POLLOUT));
        stage.a("the other", |a| {
            a.take(other.fd);
            (a.fd >= 0).to_string()
        });
    }
    if moved {
        stage.warm_up();
    }
    rounds(stage, 10);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// A listening socket is passed on; both accept from it.
fn listener(stage: &mut Stage) {
    let strange = start(stage, Side::A);
    let listener = stage.listen(Side::A);
    stage.a("pass", |_| {
        strange.at().hand_over(listener.fd, Form::Blocking)
    });
    stage.b("connect", |b| {
        let fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        let connected = sys::connect(fd, listener.address);
        b.take(fd);
        show::ret(connected)
    });
    stage.a("accepts", |_| strange.at().does("accept"));
    talk(stage, &strange);
    stage.set_aside();
    stage.b("connect again", |b| {
        let fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        let connected = sys::connect(fd, listener.address);
        b.take(fd);
        show::ret(connected)
    });
    stage.a("accept", |a| {
        a.take(fd_of(sys::accept4(listener.fd, 0)));
        show::ret(sys::close(listener.fd))
    });
    stage.warm_up();
    rounds(stage, 10);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
    stage.b("the first", |b| {
        let closed = b.close();
        let first = b.more[0];
        b.take(first);
        closed
    });
    talk(stage, &strange);
    end(stage, strange);
}
