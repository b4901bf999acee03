//! Sockets in uncommon surroundings: bound before they connect, listening again, accepted when there is no number left,
//! of MPTCP, in another network namespace; and requests and commands that few make.

use std::net::SocketAddr;

use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP,
    SOL_SOCKET,
};

use super::descriptors::dialogue;
use super::{Case, Needs, case, rounds};
use crate::end::{End, Side};
use crate::stage::{Listener, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("connect_bound", Needs::Processes, connect_bound),
    case("connect_deferred", Needs::Processes, deferred),
    case("connect_over_mptcp", Needs::Processes, over_mptcp),
    case("listener_shut_and_open", Needs::Both, shut_and_open),
    case("accept_without_numbers", Needs::Processes, without_numbers),
    case("network_changed_later", Needs::Processes, network_changed),
    case("names_at_the_end", Needs::Steps, names_at_the_end),
    case("requests", Needs::Steps, requests),
    case("commands", Needs::Steps, commands),
    case("as_a_file", Needs::Steps, as_a_file),
    case("select_beyond_sets", Needs::Processes, select_beyond_sets),
    case("epoll_other_bits", Needs::Steps, epoll_other_bits),
];

fn accept(b: &mut End, listener: Listener) -> String {
    b.take(fd_of(sys::accept4(listener.fd, 0)));
    show::ret(sys::close(listener.fd))
}

fn connect(a: &mut End, listener: Listener) -> String {
    let connected = sys::connect(a.fd, listener.address);
    let fd = a.fd;
    a.take(fd);
    show::ret(connected)
}

fn to_the_end(stage: &mut Stage) {
    dialogue(stage);
    dialogue(stage);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
    stage.b("close", End::close);
}

/// From an address and a port of the program's choice.
fn connect_bound(stage: &mut Stage) {
    const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    for late in [false, true] {
        let listener = stage.listen(Side::B);
        stage.a("bind", |a| {
            a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
            let options = [
                sys::setsockopt(a.fd, SOL_SOCKET, libc::SO_REUSEADDR, 1),
                sys::setsockopt(
                    a.fd,
                    libc::IPPROTO_IP,
                    IP_BIND_ADDRESS_NO_PORT,
                    i32::from(late),
                ),
                sys::bind(a.fd, SocketAddr::from(([127, 0, 0, 3], 0))),
            ];
            let port = sys::name(a.fd, false).map_or(0, |own| own.port());
            format!("{options:?} {}", port == 0)
        });
        stage.a("connect", |a| connect(a, listener));
        stage.b("accept", |b| accept(b, listener));
        stage.a("own", |a| {
            format!("{:?}", sys::name(a.fd, false).map(|own| own.ip()))
        });
        stage.b("far", |b| {
            format!("{:?}", sys::name(b.fd, true).map(|far| far.ip()))
        });
        to_the_end(stage);
    }
}

/// A connection is accepted only once its first bytes are there.
fn deferred(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.b("defer", |_| {
        let set = sys::setsockopt(listener.fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
        show::ret(set)
    });
    stage.a("connect", |a| {
        a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        connect(a, listener)
    });
    stage.b("nothing yet", |_| {
        show::ret(sys::poll(&[(listener.fd, POLLIN)], 20).0)
    });
    stage.a("say", |a| a.say("first"));
    stage.b("accept", |b| accept(b, listener));
    stage.b("hear", |b| b.hear(5));
    to_the_end(stage);
}

/// Several paths, or what is left of them; or no such protocol.
fn over_mptcp(stage: &mut Stage) {
    const IPPROTO_MPTCP: i32 = 262;
    let mut listener = -1;
    let port = stage.share(Side::B, |_| {
        let made = sys::socket_of(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP);
        listener = fd_of(made);
        let _ = sys::bind(listener, SocketAddr::from(([127, 0, 0, 1], 0)));
        let _ = sys::listen(listener, 4);
        sys::name(listener, false).map_or(0, |own| u64::from(own.port()))
    });
    let port = u16::try_from(port).unwrap_or(0);
    stage.a("there is one", |_| (port != 0).to_string());
    if port == 0 {
        return;
    }
    let listener = Listener {
        fd: listener,
        address: SocketAddr::from(([127, 0, 0, 1], port)),
    };
    stage.a("connect", |a| {
        let made = sys::socket_of(libc::AF_INET, libc::SOCK_STREAM, IPPROTO_MPTCP);
        a.fd = fd_of(made);
        connect(a, listener)
    });
    stage.b("accept", |b| accept(b, listener));
    to_the_end(stage);
}

/// A listening socket is shut under one who accepts, and listens again.
fn shut_and_open(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.b("shut", |_| {
        std::thread::scope(|scope| {
            let shutter = scope.spawn(move || {
                std::thread::sleep(core::time::Duration::from_millis(40));
                show::ret(sys::shutdown(listener.fd, libc::SHUT_RD))
            });
            let accepted = sys::accept4(listener.fd, 0);
            format!(
                "{} {}",
                show::ok(accepted),
                shutter.join().unwrap_or_default()
            )
        })
    });
    stage.a("refused", |_| {
        let fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        let connected = sys::connect(fd, listener.address);
        format!("{} {}", show::ret(connected), show::ret(sys::close(fd)))
    });
    for backlog in [4, 1] {
        stage.b("listen", |_| show::ret(sys::listen(listener.fd, backlog)));
    }
    // It has another port now, unless the program chose that.
    let port = stage.share(Side::B, |_| {
        sys::name(listener.fd, false).map_or(0, |own| u64::from(own.port()))
    });
    let listener = Listener {
        fd: listener.fd,
        address: SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap_or(0))),
    };
    stage.a("connect", |a| {
        a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        connect(a, listener)
    });
    stage.b("accept", |b| accept(b, listener));
    stage.warm_up();
    to_the_end(stage);
}

/// The handshake is over, and there is no number for the connection: it waits until there is one.
fn without_numbers(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.connect();
    stage.set_aside();
    stage.a("connect", |a| {
        a.fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        connect(a, listener)
    });
    stage.a("say", |a| a.say("for whom?"));
    stage.b("none left", |_| {
        let lowered = show::ret(sys::no_more_descriptors());
        let accepted = [0, 1].map(|_| show::ok(sys::accept4(listener.fd, 0)));
        format!("{lowered} {accepted:?} {}", show::ok(sys::dup(0)))
    });
    stage.b("accept", |b| {
        let raised = show::ret(sys::limit_descriptors(0));
        format!("{raised} {}", accept(b, listener))
    });
    stage.b("hear", |b| b.hear(9));
    to_the_end(stage);
}

/// A network namespace of its own is for new sockets only.
fn network_changed(stage: &mut Stage) {
    stage.connect();
    dialogue(stage);
    stage.a("unshare", |_| show::ret(sys::unshare(libc::CLONE_NEWNET)));
    dialogue(stage);
    stage.b("unshare", |b| {
        let left = show::ret(sys::unshare(libc::CLONE_NEWNET));
        format!("{left} {:?}", sys::name(b.fd, true).map(|far| far.ip()))
    });
    to_the_end(stage);
}

/// The far end's name is told as long as the kernel's connection is there.
fn names_at_the_end(stage: &mut Stage) {
    let far = |end: &mut End| show::ok(sys::name(end.fd, true).map(|_| 0));
    stage.connect();
    stage.b("shut", |b| b.shutdown(libc::SHUT_WR));
    stage.a("end", |a| a.hear(1));
    stage.a("far", far);
    stage.b("close", End::close);
    stage.a("far", far);
    stage.a("close", End::close);
    stage.connect();
    stage.a("say", |a| a.say("unread"));
    stage.b("arrived", |b| b.arrived(6));
    stage.b("close", End::close);
    stage.a("reset", |a| {
        a.ready(POLLIN | POLLOUT | POLLRDHUP | POLLERR | POLLHUP)
    });
    stage.a("far", far);
    stage.a("own", |a| show::ok(sys::name(a.fd, false).map(|_| 0)));
    stage.a("shutdown", |a| a.shutdown(libc::SHUT_WR));
    stage.a("hear", |a| a.hear(1));
    stage.a("far", far);
}

fn requests(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    for (name, number) in [
        ("FIOCLEX", 0x5451),
        ("FIONCLEX", 0x5450),
        ("FIOQSIZE", 0x5460),
        ("FIOSETOWN", 0x8901),
        ("SIOCSPGRP", 0x8902),
        ("FIOGETOWN", 0x8903),
        ("SIOCGPGRP", 0x8904),
        ("TCGETS", 0x5401),
        ("SIOCGIFINDEX", 0x8933),
    ] {
        stage.a(name, |a| {
            let mut value = [0u8; 64];
            let at = value.as_mut_ptr().expose_provenance();
            let done = sys::ioctl_at(a.fd, number, at);
            let flags = sys::fcntl(a.fd, libc::F_GETFD, 0);
            format!("{} {flags:?} {}", show::ret(done), sys::bytes_at(at, 1)[0])
        });
    }
    stage.a("hear", |a| a.hear(5));
    dialogue_of_one(stage);
}

fn commands(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    for (name, command, value) in [
        ("F_GETOWN", libc::F_GETOWN, 0),
        ("F_SETOWN", libc::F_SETOWN, 1),
        ("F_GETOWN", libc::F_GETOWN, 0),
        ("F_SETOWN", libc::F_SETOWN, 0),
        ("F_SETSIG", 10, libc::SIGUSR1),
        ("F_GETSIG", 11, 0),
        ("F_SETSIG", 10, 0),
        ("F_GETPIPE_SZ", 1032, 0),
        ("F_SETPIPE_SZ", 1031, 4096),
        ("F_ADD_SEALS", 1033, 1),
        ("F_GETLEASE", 1025, 0),
        ("F_NOTIFY", 1026, 1),
        ("O_APPEND", libc::F_SETFL, libc::O_APPEND),
        ("F_GETFL", libc::F_GETFL, 0),
        ("none", libc::F_SETFL, 0),
        ("F_GETFL", libc::F_GETFL, 0),
        ("unknown", 999, 0),
        ("F_DUPFD beyond", libc::F_DUPFD, i32::MAX),
        ("F_DUPFD below", libc::F_DUPFD, -1),
    ] {
        stage.a(name, |a| show::ret(sys::fcntl(a.fd, command, value)));
    }
    stage.a("as it was", |a| {
        let blocking = a.form == crate::form::Form::Blocking;
        show::ret(sys::set_nonblocking(a.fd, !blocking))
    });
    stage.a("hear", |a| a.hear(5));
    dialogue_of_one(stage);
}

/// Calls for files, with bytes there to be read.
fn as_a_file(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("kind", |a| format!("{:?}", sys::kind(a.fd)));
    stage.a("calls", |a| {
        let done: Vec<String> = sys::as_file(a.fd).into_iter().map(show::ret).collect();
        done.join(" ")
    });
    stage.a("hear", |a| a.hear(5));
    dialogue_of_one(stage);
}

/// Some rounds, and the end.
fn dialogue_of_one(stage: &mut Stage) {
    rounds(stage, 4);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// A descriptor beyond what a set of select is declared for.
fn select_beyond_sets(stage: &mut Stage) {
    stage.connect();
    stage.a("number", |a| {
        let _ = sys::limit_descriptors(4096);
        let moved = sys::fcntl(a.fd, libc::F_DUPFD, 1500);
        a.more = vec![fd_of(moved)];
        show::ret(moved)
    });
    for _ in 0..3 {
        stage.a("nothing", |a| {
            format!("{:?}", sys::select_wide(a.more[0], 3))
        });
        stage.both(
            "woken",
            |a| format!("{:?}", sys::select_wide(a.more[0], 20_000)),
            |b| {
                std::thread::sleep(core::time::Duration::from_millis(10));
                b.say("hello")
            },
        );
        stage.a("hear", |a| a.hear(5));
        stage.a("say", |a| a.say("world"));
        stage.b("hear", |b| b.hear(5));
    }
    stage.b("close", End::close);
    stage.a("end", |a| {
        format!("{:?}", sys::select_wide(a.more[0], 20_000))
    });
}

/// Registrations that ask by other names, for nothing, or for what a socket never has.
fn epoll_other_bits(stage: &mut Stage) {
    const NORMAL: i32 = libc::EPOLLRDNORM | libc::EPOLLWRNORM;
    const BANDS: i32 = libc::EPOLLRDBAND | libc::EPOLLWRBAND | libc::EPOLLPRI;
    const MESSAGES: i32 = libc::EPOLLMSG;
    stage.connect();
    stage.a("set", |a| {
        a.more = vec![fd_of(sys::epoll_create())];
        show::ret(sys::epoll_ctl(a.more[0], EPOLL_CTL_ADD, a.fd, 0, 1))
    });
    let all = [
        0,
        NORMAL,
        BANDS,
        MESSAGES,
        NORMAL | BANDS,
        libc::EPOLLWAKEUP | EPOLLIN,
        EPOLLOUT,
    ];
    let ask = |stage: &mut Stage| {
        for bits in all {
            stage.a(&format!("{bits:#x}"), |a| {
                let asked = sys::epoll_ctl(a.more[0], EPOLL_CTL_MOD, a.fd, bits, 1);
                let told = sys::epoll_wait(a.more[0], 4, 0);
                format!("{} {}", show::ret(asked), show::events(&told))
            });
        }
    };
    ask(stage);
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    ask(stage);
    stage.a("hear", |a| a.hear(5));
    stage.b("shut", |b| b.shutdown(libc::SHUT_WR));
    stage.a("ready", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP));
    ask(stage);
    stage.a("shut", |a| a.shutdown(libc::SHUT_WR));
    stage.a("ready", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP | POLLHUP));
    ask(stage);
}
