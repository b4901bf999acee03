//! Back from the ring to TCP in the middle of everything. What sends a connection back is an option that a
//! ring knows nothing of and that changes nothing here (`SO_OOBINLINE`), or the real thing: urgent data,
//! zero-copy sends, signals on readiness.

use libc::{
    EPOLLIN, EPOLLOUT, EPOLLRDHUP, MSG_DONTWAIT, MSG_OOB, POLLIN, POLLOUT, POLLPRI, SHUT_WR,
};

use super::{Case, Needs, blocking, case, end_in_turn, in_all_forms};
use crate::end::{End, Side};
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    in_all_forms("back_at_rest", Needs::Steps, back_at_rest),
    in_all_forms(
        "back_with_unread_bytes",
        Needs::Both,
        back_with_unread_bytes,
    ),
    in_all_forms(
        "back_ahead_of_the_reader",
        Needs::Steps,
        back_ahead_of_the_reader,
    ),
    in_all_forms("back_under_load", Needs::Both, back_under_load),
    in_all_forms("back_at_both_ends", Needs::Both, back_at_both_ends),
    in_all_forms(
        "back_while_the_far_end_waits",
        Needs::Both,
        back_while_far_waits,
    ),
    case("back_with_a_full_ring", Needs::Both, back_with_a_full_ring),
    case("back_and_shut", Needs::Both, back_and_shut),
    case("back_and_close", Needs::Both, back_and_close),
    case("back_after_the_end", Needs::Steps, back_after_the_end),
    blocking("back_in_waitall", Needs::Both, back_in_waitall),
    case("back_in_an_edge_set", Needs::Steps, back_in_an_edge_set),
    case("back_after_one_shot", Needs::Steps, back_after_one_shot),
    case("back_by_two_threads", Needs::Both, back_by_two_threads),
    case("urgent_later", Needs::Steps, urgent_later),
    case("zerocopy_later", Needs::Steps, zerocopy_later),
    case("peek_offset_later", Needs::Steps, peek_offset_later),
];

/// Sends the connection of `end` back to TCP, if it is anywhere else.
fn back(end: &End) -> String {
    show::ok(sys::setsockopt(
        end.fd,
        libc::SOL_SOCKET,
        libc::SO_OOBINLINE,
        1,
    ))
}

/// A few exchanges, whoever may be where.
fn talk(stage: &mut Stage) {
    for _ in 0..3 {
        stage.a("say", |a| a.say("one way"));
        stage.b("hear", |b| b.hear(7));
        stage.b("say", |b| b.say("and back"));
        stage.a("hear", |a| a.hear(8));
    }
}

fn back_at_rest(stage: &mut Stage) {
    stage.connect();
    talk(stage);
    stage.a("back", |a| back(a));
    talk(stage);
    stage.b("back", |b| back(b));
    talk(stage);
    end_in_turn(stage);
}

/// Bytes that the far end sent by ring and that were not read: they come all the same, in order.
fn back_with_unread_bytes(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("unread when the reader left, "));
    stage.a("arrived", |a| a.arrived(29));
    stage.a("a part", |a| a.hear(7));
    stage.both(
        "leave",
        |a| {
            let left = back(a);
            format!("{left} {} {}", a.hear(22), a.say("answer"))
        },
        |b| format!("{} {}", b.hear(6), b.say("more")),
    );
    stage.a("hear", |a| a.hear(4));
    talk(stage);
}

/// Bytes of one's own that the far end has not read yet.
fn back_ahead_of_the_reader(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("by ring, "));
    stage.a("back", |a| back(a));
    stage.a("say", |a| a.say("by TCP"));
    stage.b("arrived", |b| b.arrived(15));
    stage.b("hear", |b| b.hear(15));
    talk(stage);
}

fn back_under_load(stage: &mut Stage) {
    const BYTES: usize = 6_000_000;
    let (out, home) = (Pattern::new(41), Pattern::new(42));
    stage.connect();
    stage.both(
        "streams",
        |a| {
            let fd = a.fd;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(core::time::Duration::from_millis(2));
                    let _ = sys::setsockopt(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
                });
                a.duplex(&out, &home, BYTES, 5)
            })
        },
        |b| b.duplex(&home, &out, BYTES, 7),
    );
    talk(stage);
}

fn back_at_both_ends(stage: &mut Stage) {
    const BYTES: usize = 1_000_000;
    let (out, home) = (Pattern::new(43), Pattern::new(44));
    stage.connect();
    let both_back = |end: &mut End, out: &Pattern, home: &Pattern, seed| {
        let first = end.duplex(out, home, BYTES, seed);
        let left = back(end);
        format!("{first} {left} {}", end.duplex(out, home, BYTES, seed + 2))
    };
    stage.both(
        "streams",
        |a| both_back(a, &out, &home, 5),
        |b| both_back(b, &home, &out, 7),
    );
    talk(stage);
}

fn back_while_far_waits(stage: &mut Stage) {
    stage.connect();
    for round in 0..3 {
        stage.both(
            "wait",
            |a| {
                std::thread::sleep(core::time::Duration::from_millis(30));
                let left = if round == 1 { back(a) } else { "ok".to_owned() };
                format!("{left} {} {}", a.say("wake up"), a.hear(3))
            },
            |b| format!("{} {}", b.hear(7), b.say("yes")),
        );
    }
}

/// More than the kernel takes at once lies in the ring when its reader leaves.
fn back_with_a_full_ring(stage: &mut Stage) {
    const BYTES: usize = 12_000_000;
    let pattern = Pattern::new(45);
    stage.connect();
    stage.both(
        "leave",
        |a| {
            std::thread::sleep(core::time::Duration::from_millis(100));
            let left = back(a);
            std::thread::sleep(core::time::Duration::from_millis(30));
            format!("{left} {}", a.drink(&pattern, BYTES, 3))
        },
        |b| b.pour(&pattern, BYTES, 4),
    );
    talk(stage);
}

fn back_and_shut(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("first the bytes"));
    stage.a("arrived", |a| a.arrived(15));
    stage.both(
        "leave",
        |a| format!("{} {} {}", back(a), a.hear(15), a.say("go on")),
        |b| format!("{} {}", b.hear(5), b.shutdown(SHUT_WR)),
    );
    stage.a("end", |a| a.hear(1));
    stage.a("say", |a| a.say("still"));
    stage.b("hear", |b| b.hear(5));
}

fn back_and_close(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("first the bytes"));
    stage.a("arrived", |a| a.arrived(15));
    stage.both(
        "leave",
        |a| format!("{} {} {}", back(a), a.hear(15), a.say("go on")),
        |b| format!("{} {}", b.hear(5), b.close()),
    );
    stage.a("end", |a| a.hear(1));
}

/// The far end has ended its stream; what it sent has been read.
fn back_after_the_end(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("all of it"));
    stage.b("shut", |b| b.shutdown(SHUT_WR));
    stage.a("hear", |a| a.hear(9));
    stage.a("back", |a| back(a));
    stage.a("end", |a| a.hear(1));
    stage.a("say", |a| a.say("one-sided"));
    stage.b("hear", |b| b.hear(9));
}

fn back_in_waitall(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "in parts",
        |a| {
            let first = a.say("0123456789");
            std::thread::sleep(core::time::Duration::from_millis(30));
            let left = back(a);
            std::thread::sleep(core::time::Duration::from_millis(30));
            format!("{first} {left} {}", a.say("abcdefghij"))
        },
        |b| b.recv(20, libc::MSG_WAITALL),
    );
    talk(stage);
}

/// What an edge-triggered set reports does not depend on the way.
fn back_in_an_edge_set(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        let _ = sys::set_nonblocking(a.fd, true);
        let set = sys::fd_of(sys::epoll_create());
        a.more.push(set);
        let wish = EPOLLIN | EPOLLRDHUP | libc::EPOLLET;
        show::ret(sys::epoll_ctl(set, libc::EPOLL_CTL_ADD, a.fd, wish, 9))
    });
    for round in 0..4 {
        stage.b("say", |b| b.say("edge"));
        stage.a("wait", |a| {
            format!("{:?}", sys::epoll_wait(a.more[0], 4, 3000))
        });
        stage.a("hear", |a| a.hear(4));
        stage.a("nothing", |a| a.recv(4, MSG_DONTWAIT));
        if round == 1 {
            // May post an edge of its own: it is taken out here.
            stage.a("back", |a| {
                let left = back(a);
                let _ = sys::epoll_wait(a.more[0], 4, 50);
                left
            });
        }
    }
    stage.b("close", End::close);
    stage.a("end", |a| {
        format!("{:?}", sys::epoll_wait(a.more[0], 4, 3000))
    });
}

/// A one-shot registration that has reported stays silent.
fn back_after_one_shot(stage: &mut Stage) {
    stage.connect();
    let wish = EPOLLIN | EPOLLOUT | libc::EPOLLONESHOT;
    stage.a("set", move |a| {
        let set = sys::fd_of(sys::epoll_create());
        a.more.push(set);
        show::ret(sys::epoll_ctl(set, libc::EPOLL_CTL_ADD, a.fd, wish, 9))
    });
    stage.a("once", |a| {
        format!("{:?}", sys::epoll_wait(a.more[0], 4, 3000))
    });
    stage.a("back", |a| back(a));
    stage.b("say", |b| b.say("unheard"));
    stage.a("arrived", |a| a.arrived(7));
    stage.a("silent", |a| {
        format!("{:?}", sys::epoll_wait(a.more[0], 4, 50))
    });
    stage.a("again", move |a| {
        let set = a.more[0];
        let asked = sys::epoll_ctl(set, libc::EPOLL_CTL_MOD, a.fd, wish, 9);
        format!("{} {:?}", show::ret(asked), sys::epoll_wait(set, 4, 3000))
    });
}

/// One thread is blocked in a receive while another sends the connection back.
fn back_by_two_threads(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "blocked",
        |a| {
            let fd = a.fd;
            std::thread::scope(|scope| {
                let other = scope.spawn(move || {
                    std::thread::sleep(core::time::Duration::from_millis(40));
                    sys::setsockopt(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)
                });
                let heard = a.hear(4);
                let left = other.join().map_or(Err(-1), |left| left);
                format!("{heard} {}", show::ok(left))
            })
        },
        |b| {
            std::thread::sleep(core::time::Duration::from_millis(120));
            b.say("late")
        },
    );
    talk(stage);
}

fn urgent_later(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("before"));
    stage.a("urgent", |a| a.send(b"!", MSG_OOB));
    stage.a("say", |a| a.say("after"));
    stage.b("ready", |b| b.ready(POLLIN | POLLOUT | POLLPRI));
    stage.b("hear", |b| b.hear(6));
    stage.b("urgent", |b| b.recv(1, MSG_OOB));
    stage.b("hear", |b| b.hear(5));
    talk(stage);
}

fn zerocopy_later(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("before"));
    stage.a("allow", |a| {
        show::ok(sys::setsockopt(
            a.fd,
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            1,
        ))
    });
    stage.a("send", |a| a.send(b"without a copy", libc::MSG_ZEROCOPY));
    stage.b("hear", |b| b.hear(20));
    stage.a("notified", |a| {
        let said = sys::poll(&[(a.fd, 0)], crate::end::patience());
        format!("{said:?}")
    });
    stage.share(Side::A, |_| 0);
}

fn peek_offset_later(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("0123456789"));
    stage.a("arrived", |a| a.arrived(10));
    stage.both(
        "peek",
        |a| {
            let set = sys::setsockopt(a.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 3);
            let waited = a.arrived(10);
            let said = a.recv(4, libc::MSG_PEEK);
            format!("{} {waited} {said} {}", show::ok(set), a.say("done"))
        },
        |b| b.hear(4),
    );
    stage.a("hear", |a| a.hear(10));
}
