//! Making connections: blocking or not, refused, repeated, accepted late, many at once.

use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, POLLERR, POLLHUP, POLLIN,
    POLLOUT, POLLRDHUP, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM,
};

use super::{Case, Needs, case, in_all_forms};
use crate::end::{End, Side, patience, settle};
use crate::stage::{Listener, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    in_all_forms("connect_nonblocking", Needs::Steps, connect_nonblocking),
    case("connect_refused", Needs::Steps, connect_refused),
    case(
        "connect_refused_nonblocking",
        Needs::Steps,
        connect_refused_nonblocking,
    ),
    case("connect_twice", Needs::Steps, connect_twice),
    case("connect_dissolved", Needs::Steps, connect_dissolved),
    case("connect_to_itself", Needs::Steps, connect_to_itself),
    case("epoll_before_connect", Needs::Steps, epoll_before_connect),
    case(
        "epoll_before_connect_edge",
        Needs::Steps,
        epoll_before_connect_edge,
    ),
    case("accepted_flags", Needs::Steps, accepted_flags),
    case("accepted_names", Needs::Steps, accepted_names),
    case("accepted_late", Needs::Steps, accepted_late),
    case("accept_waits", Needs::Both, accept_waits),
    case("listener_closed", Needs::Steps, listener_closed),
    case("no_peer", Needs::Steps, no_peer),
    case("one_exchange_each", Needs::Both, one_exchange_each),
    case("many_at_once", Needs::Both, many_at_once),
];

const IN_OUT: i16 = POLLIN | POLLOUT;

fn tcp(flags: i32) -> i32 {
    fd_of(sys::socket(libc::AF_INET, SOCK_STREAM | flags))
}

fn accept(b: &mut End, listener: Listener) -> String {
    let fd = fd_of(sys::accept4(listener.fd, 0));
    b.take(fd);
    format!("{}", fd >= 0)
}

fn talk(stage: &mut Stage) {
    for round in 0..30 {
        let message = format!("message {round}");
        stage.a("say", |a| a.say(&message));
        stage.b("hear", |b| b.hear(message.len()));
        stage.b("say", |b| b.say(&message));
        stage.a("hear", |a| a.hear(message.len()));
    }
}

fn connect_nonblocking(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.a("connect", |a| {
        let fd = tcp(SOCK_NONBLOCK);
        let connected = sys::connect(fd, listener.address);
        let ready = settle(fd, IN_OUT | POLLRDHUP, POLLOUT);
        let blocking = a.form == crate::form::Form::Blocking;
        if blocking {
            let _ = sys::set_nonblocking(fd, false);
        }
        a.take(fd);
        format!("{} {ready} {}", show::ret(connected), a.so_error())
    });
    stage.b("accept", |b| accept(b, listener));
    talk(stage);
    stage.a("close", End::close);
    stage.b("hear", |b| b.hear(1));
}

fn connect_refused(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    let nobody = stage.nobody(Side::B);
    stage.a("connect", |a| {
        a.hold(tcp(0));
        show::ret(sys::connect(a.fd, nobody))
    });
    stage.a("send", |a| a.send(b"x", 0));
    stage.a("recv", |a| a.recv(1, 0));
    stage.a("so_error", |a| a.so_error());
    stage.a("connect elsewhere", |a| {
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.b("accept", |b| accept(b, listener));
    talk(stage);
}

fn connect_refused_nonblocking(stage: &mut Stage) {
    let nobody = stage.nobody(Side::B);
    stage.a("connect", |a| {
        a.hold(tcp(SOCK_NONBLOCK));
        show::ret(sys::connect(a.fd, nobody))
    });
    stage.a("ready", |a| a.ready(IN_OUT | POLLRDHUP | POLLERR | POLLHUP));
    stage.a("so_error", |a| a.so_error());
    stage.a("so_error", |a| a.so_error());
    stage.a("recv", |a| a.recv(1, 0));
    stage.a("send", |a| a.send(b"x", 0));
}

fn connect_twice(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.a("connect", |a| {
        a.hold(tcp(SOCK_NONBLOCK));
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.a("ready", |a| a.ready(POLLOUT));
    stage.a("connect again", |a| {
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.a("connect again", |a| {
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.a("blocking", |a| show::ret(sys::set_nonblocking(a.fd, false)));
    stage.b("accept", |b| accept(b, listener));
    talk(stage);
    stage.a("connect again", |a| {
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.b("connect", |b| {
        show::ret(sys::connect(b.fd, listener.address))
    });
}

/// connect to AF_UNSPEC ends the connection and makes the socket new.
fn connect_dissolved(stage: &mut Stage) {
    stage.connect();
    let listener = stage.listen(Side::B);
    stage.a("dissolve", |a| show::ret(sys::dissolve(a.fd)));
    stage.b("reset", |b| b.ready(IN_OUT | POLLRDHUP | POLLERR | POLLHUP));
    stage.b("recv", |b| b.recv(1, 0));
    stage.a("send", |a| a.send(b"x", 0));
    stage.a("connect", |a| {
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.b("accept", |b| accept(b, listener));
    talk(stage);
}

/// Simultaneous open of a socket with itself: what is sent comes back.
fn connect_to_itself(stage: &mut Stage) {
    stage.a("connect", |a| {
        a.hold(tcp(0));
        let _ = sys::bind(a.fd, std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let own = sys::name(a.fd, false);
        show::ret(own.and_then(|own| sys::connect(a.fd, own)))
    });
    for _ in 0..30 {
        stage.a("say", |a| a.say("hello"));
        stage.a("hear", |a| a.hear(5));
    }
    stage.a("shutdown", |a| a.shutdown(libc::SHUT_WR));
    stage.a("hear", |a| a.hear(5));
}

fn soon(end: &End) -> String {
    show::events(&sys::epoll_wait(end.epfd, 8, patience()))
}

fn epoll_before_connect(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.a("add", |a| {
        a.hold(tcp(SOCK_NONBLOCK));
        a.epfd = fd_of(sys::epoll_create());
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, EPOLLOUT, 3))
    });
    stage.a("unconnected", |a| soon(a));
    stage.a("connect", |a| {
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.a("settle", |a| a.ready(POLLOUT));
    stage.a("connected", |a| soon(a));
    stage.a("so_error", |a| a.so_error());
    stage.b("accept", |b| accept(b, listener));
    stage.a("mod", |a| {
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_MOD, a.fd, EPOLLIN, 4))
    });
    for _ in 0..40 {
        stage.a("send", |a| a.send(b"hello", 0));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("in", |a| soon(a));
        stage.a("recv", |a| a.recv_once(9, 0));
        stage.a("recv", |a| a.recv_once(9, 0));
    }
    stage.b("close", End::close);
    stage.a("end", |a| soon(a));
}

fn epoll_before_connect_edge(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.a("add", |a| {
        a.hold(tcp(SOCK_NONBLOCK));
        a.epfd = fd_of(sys::epoll_create());
        let _ = sys::connect(a.fd, listener.address);
        let events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, events, 3))
    });
    stage.b("accept", |b| accept(b, listener));
    stage.a("connected", |a| soon(a));
    for _ in 0..40 {
        stage.a("send", |a| a.send(b"hello", 0));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        // An upgrade may post an edge of its own: what counts is that the bytes are announced.
        stage.a("recv", |a| {
            loop {
                let mut out = [0; 9];
                match sys::recv(a.fd, &mut out, 0) {
                    Err(libc::EAGAIN) if soon(a) != "[]" => {}
                    other => return show::got(other, &out),
                }
            }
        });
    }
}

fn accepted_flags(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    for flags in [0, SOCK_NONBLOCK, SOCK_CLOEXEC, SOCK_NONBLOCK | SOCK_CLOEXEC] {
        stage.a("connect", |a| {
            a.hold(tcp(flags));
            show::ret(sys::connect(a.fd, listener.address).or_else(|error| {
                if error == libc::EINPROGRESS {
                    Ok(0)
                } else {
                    Err(error)
                }
            }))
        });
        stage.b("accept", |b| {
            let _ = settle(listener.fd, POLLIN, POLLIN);
            b.hold(fd_of(sys::accept4(listener.fd, flags)));
            let (status, descriptor) = (
                sys::fcntl(b.fd, libc::F_GETFL, 0),
                sys::fcntl(b.fd, libc::F_GETFD, 0),
            );
            format!("{status:?} {descriptor:?}")
        });
        stage.b("recv", |b| b.recv(1, libc::MSG_DONTWAIT));
        stage.a("close", End::close);
        stage.b("close", End::close);
    }
    stage.b("bad flags", |_| show::ret(sys::accept4(listener.fd, 1)));
    stage.b("nobody", |_| {
        let _ = sys::set_nonblocking(listener.fd, true);
        show::ret(sys::accept4(listener.fd, 0))
    });
}

fn accepted_names(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    let own = stage.share(Side::A, |a| {
        a.hold(tcp(0));
        let _ = sys::connect(a.fd, listener.address);
        sys::name(a.fd, false).map_or(0, |own| u64::from(own.port()))
    });
    stage.b("accept", |b| {
        let (fd, from) = sys::accept_from(listener.fd);
        b.hold(fd_of(fd));
        let port = from.map_or(0, |from| u64::from(from.port()));
        let told = sys::name(b.fd, true).ok() == from;
        format!("{} {} {told}", fd.is_ok(), port == own)
    });
    talk(stage);
}

/// The client has written and left before it is accepted.
fn accepted_late(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.a("connect", |a| {
        a.hold(tcp(0));
        show::ret(sys::connect(a.fd, listener.address))
    });
    for _ in 0..20 {
        stage.a("say", |a| a.say("early"));
    }
    stage.a("close", End::close);
    stage.b("accept", |b| accept(b, listener));
    stage.b("hear", |b| b.hear(200));
}

fn accept_waits(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.both(
        "accept",
        |a| {
            std::thread::sleep(core::time::Duration::from_millis(60));
            a.hold(tcp(0));
            show::ret(sys::connect(a.fd, listener.address))
        },
        |b| accept(b, listener),
    );
    stage.both(
        "poll a listener",
        |a| {
            std::thread::sleep(core::time::Duration::from_millis(60));
            let fd = tcp(0);
            let connected = sys::connect(fd, listener.address);
            a.more = vec![fd];
            show::ret(connected)
        },
        |b| {
            let (ret, bits) = sys::poll(&[(b.fd, POLLIN), (listener.fd, POLLIN)], patience());
            format!(
                "{} {} {}",
                show::ret(ret),
                show::bits(bits[0]),
                show::bits(bits[1])
            )
        },
    );
    talk(stage);
}

fn listener_closed(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    stage.a("connect", |a| {
        a.hold(tcp(0));
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("close", |_| show::ret(sys::close(listener.fd)));
    stage.a("ready", |a| a.ready(IN_OUT | POLLRDHUP | POLLERR | POLLHUP));
    stage.a("recv", |a| a.recv(4, 0));
    stage.a("recv", |a| a.recv(4, 0));
    stage.a("connect", |_| {
        show::ret(sys::connect(tcp(0), listener.address))
    });
}

/// An address of this machine that the peer list does not name is served as ever; the list of the
/// runs names 127.0.0.0/8 and ::1 only, so that leaves Unix sockets and UDP.
fn no_peer(stage: &mut Stage) {
    stage.connect();
    stage.a("unix", |_| {
        let (one, other) = sys::socketpair();
        let mut out = [0; 5];
        let sent = sys::send(one, b"hello", 0);
        let got = sys::recv(other, &mut out, 0);
        format!("{} {}", show::ret(sent), show::got(got, &out))
    });
    stage.a("udp", |_| {
        let here = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_DGRAM));
        let _ = sys::bind(fd, here);
        let own = sys::name(fd, false);
        let connected = own.and_then(|own| sys::connect(fd, own));
        let sent = sys::send(fd, b"datagram", 0);
        let mut out = [0; 4];
        let (got, len) = sys::recvfrom(fd, &mut out, 0);
        format!(
            "{} {} {} {len}",
            show::ret(connected),
            show::ret(sent),
            show::got(got, &out)
        )
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

fn one_exchange_each(stage: &mut Stage) {
    const TIMES: usize = 150;
    let listener = stage.listen(Side::B);
    stage.both(
        "exchanges",
        |a| {
            let mut good = 0;
            for _ in 0..TIMES {
                a.hold(tcp(0));
                let connected = sys::connect(a.fd, listener.address);
                let said = a.say("request");
                let heard = a.hear(8);
                let end = a.hear(1);
                good += usize::from(
                    connected == Ok(0)
                        && said == "sent 7"
                        && heard == "\"response\""
                        && end == "\"\" then end",
                );
                let _ = a.close();
            }
            format!("good {good}")
        },
        |b| {
            let mut good = 0;
            for _ in 0..TIMES {
                b.hold(fd_of(sys::accept4(listener.fd, 0)));
                let heard = b.hear(7);
                good += usize::from(heard == "\"request\"" && b.say("response") == "sent 8");
                let _ = b.close();
            }
            format!("good {good}")
        },
    );
}

/// Many connections through one epoll set.
fn many_at_once(stage: &mut Stage) {
    const COUNT: usize = 40;
    const ROUNDS: usize = 30;
    let listener = stage.listen(Side::B);
    stage.both(
        "connect",
        |a| {
            for _ in 0..COUNT {
                let fd = tcp(0);
                let _ = sys::connect(fd, listener.address);
                a.more.push(fd);
            }
            format!("{}", a.more.iter().all(|&fd| fd >= 0))
        },
        |b| {
            b.epfd = fd_of(sys::epoll_create());
            for number in 0..COUNT {
                let fd = fd_of(sys::accept4(listener.fd, SOCK_NONBLOCK));
                let data = u64::try_from(number).unwrap_or(0);
                let _ = sys::epoll_ctl(b.epfd, EPOLL_CTL_ADD, fd, EPOLLIN, data);
                b.more.push(fd);
            }
            format!("{}", b.more.iter().all(|&fd| fd >= 0))
        },
    );
    stage.both(
        "talk",
        |a| {
            let connections = a.more.clone();
            let mut good = 0;
            for round in 0..ROUNDS {
                let message = format!("round {round:02}");
                for &fd in &connections {
                    let _ = sys::send(fd, message.as_bytes(), 0);
                }
                for &fd in &connections {
                    a.hold(fd);
                    good += usize::from(a.hear(8) == format!("\"{message}\""));
                }
            }
            connections.iter().for_each(|&fd| {
                let _ = sys::close(fd);
            });
            format!("good {good}")
        },
        |b| {
            let (mut open, mut echoed) = (COUNT, 0);
            while open > 0 {
                let Ok(events) = sys::epoll_wait(b.epfd, 16, patience()) else {
                    break;
                };
                if events.is_empty() {
                    break;
                }
                for (_, data) in events {
                    let fd = b.more[usize::try_from(data).unwrap_or(0)];
                    let mut buffer = [0; 64];
                    match sys::recv(fd, &mut buffer, 0) {
                        Ok(0) => {
                            let _ = sys::close(fd);
                            open -= 1;
                        }
                        Ok(got) => {
                            let got = usize::try_from(got).unwrap_or(0);
                            let _ = sys::send(fd, &buffer[..got], 0);
                            echoed += got;
                        }
                        Err(_) => {}
                    }
                }
            }
            format!("open {open} echoed {echoed}")
        },
    );
}
