//! What few programs do: connects that stay under way, fast open, IPv4 to a socket of IPv6, filters and repair,
//! flags that another process changes, exclusive registrations; and waits whose time must be over.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use libc::{EPOLL_CTL_ADD, EPOLLIN, MSG_DONTWAIT, POLLIN, POLLOUT, SOCK_NONBLOCK, SOCK_STREAM};

use super::descriptors::{child, dialogue};
use super::{Case, Needs, case};
use crate::end::{End, Side, patience};
use crate::stage::{Family, Stage, target};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("connect_under_way", Needs::Processes, under_way),
    case("connect_fast_open", Needs::Processes, fast_open),
    case("connect_dual_stack", Needs::Processes, dual_stack),
    case("repair_later", Needs::Processes, repair_later),
    case("filter_later", Needs::Processes, filter_later),
    case("flags_of_a_child", Needs::Processes, flags_of_a_child),
    case("programs_beside", Needs::Processes, programs_beside),
    case("epoll_exclusive", Needs::Both, |stage| {
        stage.connect();
        exclusive(stage);
    }),
    case("epoll_exclusive_fresh", Needs::Both, |stage| {
        stage.connect_cold(Family::V4);
        exclusive(stage);
    }),
    case("waits_are_not_early", Needs::Steps, waits_are_not_early),
];

fn tcp(flags: i32) -> i32 {
    fd_of(sys::socket(libc::AF_INET, SOCK_STREAM | flags))
}

/// Nobody accepts, and the kernel puts further connections off: they stay under way.
fn under_way(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.b("room for one", |_| show::ret(sys::listen(listener.fd, 0)));
    let to = listener.address;
    stage.a("connect", |a| {
        for _ in 0..3 {
            a.hold(tcp(SOCK_NONBLOCK));
            a.more.push(a.fd);
            let _ = sys::connect(a.fd, to);
        }
        std::thread::sleep(Duration::from_millis(40));
        show::ret(sys::connect(a.fd, to))
    });
    stage.a("send", |a| a.send(b"x", 0));
    stage.a("recv", |a| a.recv_once(1, 0));
    stage.a("far name", |a| format!("{:?}", sys::name(a.fd, true)));
    stage.a("poll", |a| {
        let (ret, bits) = sys::poll(&[(a.fd, POLLIN | POLLOUT)], 0);
        format!("{} {bits:?}", show::ret(ret))
    });
    stage.a("epoll", |a| {
        a.epfd = fd_of(sys::epoll_create());
        let _ = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, EPOLLIN | libc::EPOLLOUT, 1);
        show::events(&sys::epoll_wait(a.epfd, 4, 0))
    });
    stage.a("error", |a| a.so_error());
    stage.a("interrupted", |a| {
        let fd = tcp(0);
        a.more.push(fd);
        let _ = sys::catch(libc::SIGALRM, 0);
        sys::alarm(40, 0);
        let first = sys::connect(fd, to);
        let _ = sys::set_nonblocking(fd, true);
        let second = sys::connect(fd, to);
        format!("{} {}", show::ret(first), show::ret(second))
    });
    stage.a("dissolve", |a| show::ret(sys::dissolve(a.fd)));
    stage.a("send", |a| a.send(b"x", 0));
    stage.a("connect", |a| show::ret(sys::connect(a.fd, to)));
}

/// The first bytes go with the connect, if there is a cookie; the calls are the same if not.
fn fast_open(stage: &mut Stage) {
    const TCP_FASTOPEN_CONNECT: i32 = 30;
    let listener = stage.listen(Side::B);
    stage.a("connect", |a| {
        a.hold(tcp(0));
        let set = sys::setsockopt(a.fd, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1);
        let connected = sys::connect(a.fd, listener.address);
        format!("{} {}", show::ret(set), show::ret(connected))
    });
    stage.a("say", |a| a.say("first"));
    stage.b("accept", |b| {
        b.hold(fd_of(sys::accept4(listener.fd, 0)));
        (b.fd >= 0).to_string()
    });
    stage.b("hear", |b| b.hear(5));
    to_the_end(stage);
}

/// A client of IPv4 and a server of both.
fn dual_stack(stage: &mut Stage) {
    let mut listener = -1;
    let port = stage.share(Side::B, |_| {
        listener = fd_of(sys::socket(libc::AF_INET6, SOCK_STREAM));
        let _ = sys::setsockopt(listener, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0);
        let _ = sys::bind(listener, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
        let _ = sys::listen(listener, 4);
        sys::name(listener, false).map_or(0, |own| u64::from(own.port()))
    });
    let to = target(Family::V4, u16::try_from(port).unwrap_or(0));
    stage.a("connect", |a| {
        a.hold(tcp(0));
        show::ret(sys::connect(a.fd, to))
    });
    stage.b("accept", |b| {
        let (fd, from) = sys::accept_from(listener);
        b.hold(fd_of(fd));
        format!("{:?}", from.map(|from| from.ip()))
    });
    to_the_end(stage);
}

fn to_the_end(stage: &mut Stage) {
    dialogue(stage);
    dialogue(stage);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// TCP_REPAIR for a moment, on a connection that goes on.
fn repair_later(stage: &mut Stage) {
    const TCP_REPAIR: i32 = 19;
    stage.connect();
    for value in [1, -1] {
        stage.a("repair", |a| {
            show::ret(sys::setsockopt(a.fd, libc::IPPROTO_TCP, TCP_REPAIR, value))
        });
    }
    to_the_end(stage);
}

/// A filter that lets everything through.
fn filter_later(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("before"));
    stage.a("filter", |a| show::ret(sys::attach_open_filter(a.fd)));
    stage.a("hear", |a| a.hear(6));
    to_the_end(stage);
}

/// A child sets and clears O_NONBLOCK, which is the file's.
fn flags_of_a_child(stage: &mut Stage) {
    stage.connect();
    let set = |a: &End, on| {
        let fd = a.fd;
        sys::wait_for(child(|| sys::set_nonblocking(fd, on).is_ok()))
    };
    stage.a("set", |a| set(a, true));
    stage.a("recv", |a| a.recv_once(5, 0));
    stage.a("clear", |a| set(a, false));
    stage.both(
        "recv",
        |a| a.recv_once(5, 0),
        |b| {
            std::thread::sleep(Duration::from_millis(40));
            b.say("hello")
        },
    );
    to_the_end(stage);
}

/// Other programs are run and waited for, in each of libc's ways, by one who has a connection.
fn programs_beside(stage: &mut Stage) {
    stage.connect();
    for _ in 0..3 {
        stage.b("say", |b| b.say("before"));
        stage.a("system", |_| show::ret(sys::system(c"exit 3")));
        stage.a("popen", |_| show::ret(sys::popen(c"exit 4")));
        stage.a("spawn", |_| {
            let status = std::process::Command::new("true").status();
            status.map_or_else(|error| error.to_string(), |status| status.to_string())
        });
        stage.a("hear", |a| a.hear(6));
        stage.a("say", |a| a.say("after"));
        stage.b("hear", |b| b.hear(5));
    }
    to_the_end(stage);
}

/// Two sets wait for one socket, each for itself (EPOLLEXCLUSIVE): one of them at least is told.
fn exclusive(stage: &mut Stage) {
    stage.a("sets", |a| {
        a.more = (0..2).map(|_| fd_of(sys::epoll_create())).collect();
        let wish = EPOLLIN | libc::EPOLLEXCLUSIVE;
        let added = a.more.iter();
        let added = added.map(|&set| show::ok(sys::epoll_ctl(set, EPOLL_CTL_ADD, a.fd, wish, 1)));
        added.collect::<Vec<_>>().join(" ")
    });
    for _ in 0..25 {
        stage.both("one is told", one_is_told, |b| {
            std::thread::sleep(Duration::from_millis(4));
            b.say("hello")
        });
        stage.a("say", |a| a.say("thanks"));
        stage.b("hear", |b| b.hear(6));
    }
}

/// Who gets the bytes sends the other one home by a pipe that both look at.
fn one_is_told(a: &mut End) -> String {
    const HOME: u64 = 2;
    let (read, write) = sys::pipe();
    for &set in &a.more {
        let _ = sys::epoll_ctl(set, EPOLL_CTL_ADD, read, EPOLLIN, HOME);
    }
    let fd = a.fd;
    let wait = |set: i32| {
        loop {
            let told = sys::epoll_wait(set, 4, patience() / 2).unwrap_or_default();
            if told.is_empty() {
                return "nobody told".to_owned();
            }
            let mut out = [0; 9];
            let got = sys::recv(fd, &mut out, MSG_DONTWAIT);
            if got.is_ok() {
                let _ = sys::write(write, b"x");
                return show::got(got, &out);
            }
            if told.iter().any(|&(_, data)| data == HOME) {
                return String::new();
            }
        }
    };
    let shown = std::thread::scope(|scope| {
        let waiters: Vec<_> = a
            .more
            .iter()
            .map(|&set| scope.spawn(move || wait(set)))
            .collect();
        let shown = waiters
            .into_iter()
            .map(|waiter| waiter.join().unwrap_or_default());
        shown.collect::<String>()
    });
    let _ = (sys::close(read), sys::close(write));
    shown
}

/// Waits in which nothing happens last as long as they should, at least.
fn waits_are_not_early(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        a.epfd = fd_of(sys::epoll_create());
        let set = sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 20);
        let added = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1);
        format!("{} {}", show::ok(set), show::ok(added))
    });
    type Wait = fn(&End) -> String;
    let waits: [(&str, u64, Wait); 5] = [
        ("poll", 3, |a| show::ret(sys::poll(&[(a.fd, POLLIN)], 3).0)),
        ("select", 2, |a| {
            show::ret(sys::select(&[a.fd], &[], &[], Some(2), None).ret)
        }),
        ("epoll_wait", 2, |a| {
            show::events(&sys::epoll_wait(a.epfd, 4, 2))
        }),
        ("epoll_pwait2", 1, |a| {
            show::events(&sys::epoll_pwait2(a.epfd, 4, 1_500_000))
        }),
        // The kernel counts this one in ticks, which may be late at the beginning.
        ("recv", 10, |a| a.recv_once(1, 0)),
    ];
    for (label, ms, wait) in waits {
        stage.a(label, |a| {
            let mut shown = Vec::new();
            for _ in 0..5 {
                let began = Instant::now();
                let found = wait(a);
                shown.push(format!(
                    "{found} {}",
                    began.elapsed() >= Duration::from_millis(ms)
                ));
            }
            shown.join(" ")
        });
    }
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("hear", |a| a.hear(5));
}
