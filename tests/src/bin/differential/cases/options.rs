//! ioctl, fcntl and socket options on a connection, timeouts among them.

use libc::{F_GETFD, F_GETFL, F_SETFL, IPPROTO_TCP, MSG_DONTWAIT, O_NONBLOCK, SOL_SOCKET};

use super::{Case, Needs, blocking, case, in_all_forms};
use crate::end::{End, Side};
use crate::form::Form;
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("queue_lengths", Needs::Steps, queue_lengths),
    case("nonblocking", Needs::Steps, nonblocking),
    blocking("receive_timeout", Needs::Steps, receive_timeout),
    blocking("send_timeout", Needs::Steps, send_timeout),
    case("socket_options", Needs::Steps, socket_options),
    case("not_a_file", Needs::Steps, not_a_file),
    case("linger_with_time", Needs::Steps, linger_with_time),
    case("neutral_options", Needs::Steps, neutral_options),
    case("kernel_reports", Needs::Steps, kernel_reports),
    case("zerocopy_receive", Needs::Steps, zerocopy_receive),
    case("user_timeout", Needs::Steps, |stage| {
        user_timeout(stage, true);
    }),
    case("user_timeout_nonblocking", Needs::Steps, |stage| {
        user_timeout(stage, false);
    }),
    in_all_forms("lowat_waits", Needs::Both, lowat_waits),
    in_all_forms("lowat_beyond_buffers", Needs::Both, lowat_beyond_buffers),
];

fn queue_lengths(stage: &mut Stage) {
    stage.connect();
    stage.a("fionread, empty", |a| {
        format!("{:?}", sys::ioctl(a.fd, sys::FIONREAD, -1))
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.b("say", |b| b.say("more"));
    stage.a("arrived", |a| a.arrived(9));
    stage.a("recv", |a| a.recv(4, 0));
    stage.a("fionread", |a| {
        format!("{:?}", sys::ioctl(a.fd, sys::FIONREAD, -1))
    });
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("fionread", |a| {
        format!("{:?}", sys::ioctl(a.fd, sys::FIONREAD, -1))
    });
    stage.a("fionread, null", |a| {
        show::ret(sys::ioctl_at(a.fd, sys::FIONREAD, 0))
    });
    stage.b("outq", |b| {
        // Acknowledged as soon as the far end's kernel has it, which takes a moment.
        for _ in 0..2000 {
            if sys::ioctl(b.fd, sys::SIOCOUTQ, -1).1 == 0 {
                break;
            }
            std::thread::sleep(core::time::Duration::from_millis(1));
        }
        format!("{:?}", sys::ioctl(b.fd, sys::SIOCOUTQ, -1))
    });
    stage.a("unknown", |a| show::ret(sys::ioctl(a.fd, 0x1234, 0).0));
}

fn nonblocking(stage: &mut Stage) {
    stage.connect();
    stage.a("flags", |a| format!("{:?}", sys::fcntl(a.fd, F_GETFL, 0)));
    stage.a("set", |a| show::ret(sys::fcntl(a.fd, F_SETFL, O_NONBLOCK)));
    stage.a("flags", |a| format!("{:?}", sys::fcntl(a.fd, F_GETFL, 0)));
    stage.a("recv", |a| a.recv_once(4, 0));
    stage.a("read", |a| show::ret(sys::read(a.fd, &mut [0; 4])));
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("recv", |a| a.recv_once(9, 0));
    stage.a("recv", |a| a.recv_once(9, 0));
    stage.a("clear by fionbio", |a| {
        show::ret(sys::ioctl(a.fd, sys::FIONBIO, 0).0)
    });
    stage.a("flags", |a| format!("{:?}", sys::fcntl(a.fd, F_GETFL, 0)));
    stage.b("say", |b| b.say("hello"));
    stage.a("hear", |a| a.hear(5));
    stage.a("set by fionbio", |a| {
        show::ret(sys::ioctl(a.fd, sys::FIONBIO, 1).0)
    });
    stage.a("recv", |a| a.recv_once(9, 0));
    stage.a("set on a duplicate", |a| {
        let _ = sys::set_nonblocking(a.fd, false);
        let other = sys::fd_of(sys::dup(a.fd));
        let set = sys::set_nonblocking(other, true);
        format!("{} {}", show::ret(set), show::ret(sys::close(other)))
    });
    stage.a("recv", |a| a.recv_once(9, 0));
    stage.a("close-on-exec", |a| {
        format!("{:?}", sys::fcntl(a.fd, F_GETFD, 0))
    });
}

fn receive_timeout(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 60))
    });
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("read", |a| show::ret(sys::read(a.fd, &mut [0; 4])));
    stage.a("recvmsg", |a| {
        show::ret(sys::recvmsg(a.fd, &mut [&mut [0; 4]], 0).0)
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("very short", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 1))
    });
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("dontwait", |a| a.recv(5, MSG_DONTWAIT));
    stage.a("never", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 0))
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("recv", |a| a.recv(5, 0));
}

fn send_timeout(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_SNDTIMEO, 150))
    });
    stage.a("send until timeout", |a| {
        let chunk = vec![b't'; 100_000];
        loop {
            match sys::send(a.fd, &chunk, 0) {
                Ok(sent) if sent > 0 => {}
                other => return show::ret(other),
            }
        }
    });
    stage.b("drain", |b| {
        let mut buffer = vec![0; 1 << 20];
        while sys::poll(&[(b.fd, libc::POLLIN)], 500).0 == Ok(1) {
            let _ = sys::recv(b.fd, &mut buffer, MSG_DONTWAIT);
        }
        "drained".to_owned()
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

fn socket_options(stage: &mut Stage) {
    stage.connect();
    let options = [
        ("type", SOL_SOCKET, libc::SO_TYPE),
        ("domain", SOL_SOCKET, libc::SO_DOMAIN),
        ("protocol", SOL_SOCKET, libc::SO_PROTOCOL),
        ("acceptconn", SOL_SOCKET, libc::SO_ACCEPTCONN),
        ("error", SOL_SOCKET, libc::SO_ERROR),
        ("keepalive", SOL_SOCKET, libc::SO_KEEPALIVE),
        ("reuseaddr", SOL_SOCKET, libc::SO_REUSEADDR),
        ("rcvlowat", SOL_SOCKET, libc::SO_RCVLOWAT),
        ("oobinline", SOL_SOCKET, libc::SO_OOBINLINE),
        ("nodelay", IPPROTO_TCP, libc::TCP_NODELAY),
        ("cork", IPPROTO_TCP, libc::TCP_CORK),
        ("keepidle", IPPROTO_TCP, libc::TCP_KEEPIDLE),
        ("user timeout", IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        ("unknown", SOL_SOCKET, 9999),
        ("unknown level", 9999, 1),
    ];
    for (label, level, name) in options {
        stage.a(label, |a| show::ret(sys::getsockopt(a.fd, level, name)));
    }
    for (label, level, name, value) in [
        ("set nodelay", IPPROTO_TCP, libc::TCP_NODELAY, 1),
        ("set keepalive", SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        ("set unknown", SOL_SOCKET, 9999, 1),
        ("set error", SOL_SOCKET, libc::SO_ERROR, 1),
        ("set quickack", IPPROTO_TCP, libc::TCP_QUICKACK, 1),
    ] {
        stage.a(label, |a| {
            show::ret(sys::setsockopt(a.fd, level, name, value))
        });
    }
    stage.a("buffers double", |a| {
        let set = sys::setsockopt(a.fd, SOL_SOCKET, libc::SO_RCVBUF, 20_000);
        let got = sys::getsockopt(a.fd, SOL_SOCKET, libc::SO_RCVBUF);
        format!("{} {}", show::ret(set), show::ret(got))
    });
    stage.a("nodelay", |a| {
        show::ret(sys::getsockopt(a.fd, IPPROTO_TCP, libc::TCP_NODELAY))
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

fn not_a_file(stage: &mut Stage) {
    stage.connect();
    stage.a("pread", |a| show::ret(sys::pread(a.fd, &mut [0; 4], 0)));
    stage.a("lseek", |a| show::ret(sys::lseek(a.fd, 0, libc::SEEK_CUR)));
    stage.a("listen", |a| show::ret(sys::listen(a.fd, 1)));
    stage.a("accept", |a| show::ret(sys::accept4(a.fd, 0)));
    stage.a("bind", |a| {
        show::ret(sys::bind(
            a.fd,
            std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        ))
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

/// A close that waits until the far end's kernel (or its ring) has everything.
fn linger_with_time(stage: &mut Stage) {
    const BYTES: usize = 20_000;
    stage.connect();
    stage.a("linger", |a| show::ret(sys::set_linger(a.fd, 1, 20)));
    stage.a("send", |a| format!("{:?}", a.send_all(&[b'l'; BYTES])));
    stage.a("close", End::close);
    stage.b("hear", |b| b.hear(BYTES + 1));
    stage.b("close", End::close);
}

/// Options set to what they are anyway: nothing changes, and no ring is left for them.
fn neutral_options(stage: &mut Stage) {
    stage.connect();
    let kernel = |end: &mut End| sys::kernel_bytes_sent(end.fd).unwrap_or(0);
    let before = stage.share(Side::A, kernel);
    for (label, level, name, value) in [
        ("zerocopy", SOL_SOCKET, 60, 0),
        ("peek offset", SOL_SOCKET, libc::SO_PEEK_OFF, -1),
        ("inline", SOL_SOCKET, libc::SO_OOBINLINE, 0),
        ("timestamp", SOL_SOCKET, libc::SO_TIMESTAMP, 0),
        ("timestamping", SOL_SOCKET, libc::SO_TIMESTAMPING, 0),
        ("keepalive", SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        ("priority", SOL_SOCKET, libc::SO_PRIORITY, 3),
        ("nodelay", IPPROTO_TCP, libc::TCP_NODELAY, 1),
        ("user timeout", IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 60_000),
        ("window clamp", IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 100_000),
        ("not sent", IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 16_384),
        ("inq", IPPROTO_TCP, 36, 0),
        ("send buffer", SOL_SOCKET, libc::SO_SNDBUF, 50_000),
        ("receive buffer", SOL_SOCKET, libc::SO_RCVBUF, 50_000),
        ("pacing", SOL_SOCKET, libc::SO_MAX_PACING_RATE, i32::MAX),
    ] {
        stage.a(label, |a| {
            let set = sys::setsockopt(a.fd, level, name, value);
            let got = sys::getsockopt(a.fd, level, name);
            format!("{} {}", show::ret(set), show::ret(got))
        });
        stage.a("say", |a| a.say("hello"));
        stage.b("hear", |b| b.hear(5));
    }
    let after = stage.share(Side::A, kernel);
    let left = stage.options.ring && before != after;
    stage.a("left the ring", |_| left.to_string());
}

/// What only the kernel knows.
fn kernel_reports(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
    for (label, request) in [("outq", sys::SIOCOUTQ), ("outq, not sent", 0x894b)] {
        stage.a(label, |a| {
            for _ in 0..2000 {
                if sys::ioctl(a.fd, request, -1).1 == 0 {
                    break;
                }
                std::thread::sleep(core::time::Duration::from_millis(1));
            }
            format!("{:?}", sys::ioctl(a.fd, request, -1))
        });
    }
    stage.a("at mark", |a| format!("{:?}", sys::ioctl(a.fd, 0x8905, -1)));
    stage.a("state", |a| a.state());
    stage.a("memory", |a| {
        show::ok(sys::getsockopt(a.fd, SOL_SOCKET, libc::SO_MEMINFO))
    });
    stage.b("shutdown", |b| b.shutdown(libc::SHUT_WR));
    stage.a("fin", |a| {
        a.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP)
    });
    stage.a("state", |a| a.state());
    stage.b("state", |b| b.state_after_fin());
}

/// Pages of the receive queue instead of copies: none of them need come, but no byte is lost.
fn zerocopy_receive(stage: &mut Stage) {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    stage.connect();
    stage.b("say", |b| b.say("before "));
    stage.a("arrived", |a| a.arrived(7));
    stage.a("ask", |a| {
        let mut request = [0u64; 8];
        let mut len = 64u32;
        let at = request.as_mut_ptr().expose_provenance();
        let len = (&raw mut len).expose_provenance();
        let got = sys::getsockopt_at(a.fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, at, len);
        show::ret(got)
    });
    stage.b("say", |b| b.say("and after"));
    stage.a("arrived", |a| a.arrived(16));
    stage.a("recv", |a| a.recv(30, 0));
    stage.a("say", |a| a.say("back"));
    stage.b("hear", |b| b.hear(4));
}

/// TCP_USER_TIMEOUT: a connection whose far end does not read is given up.
fn user_timeout(stage: &mut Stage, blocking: bool) {
    stage.connect();
    stage.a("set", |a| {
        let set = sys::setsockopt(a.fd, IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 700);
        let _ = sys::set_nonblocking(a.fd, !blocking);
        show::ret(set)
    });
    stage.a("say", |a| a.send(b"hello", 0));
    stage.b("hear", |b| b.recv(5, 0));
    stage.a("until given up", |a| {
        let chunk = vec![b'u'; 1_000_000];
        loop {
            match sys::send(a.fd, &chunk, libc::MSG_NOSIGNAL) {
                Ok(sent) if sent > 0 => {}
                Err(libc::EAGAIN) => {
                    let (ret, _) = sys::poll(&[(a.fd, libc::POLLOUT)], crate::end::patience());
                    if ret != Ok(1) {
                        return show::ret(ret);
                    }
                }
                other => return show::ret(other),
            }
        }
    });
    stage.a("close", End::close);
    stage.b("close", End::close);
}

/// SO_RCVLOWAT: nothing is there before enough is.
fn lowat_waits(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        // Edges of the past are not what this is about.
        while a.form == Form::Edge && sys::epoll_wait(a.set, 4, 0).is_ok_and(|e| !e.is_empty()) {}
        show::ret(sys::setsockopt(a.fd, SOL_SOCKET, libc::SO_RCVLOWAT, 8))
    });
    let pause = || std::thread::sleep(core::time::Duration::from_millis(40));
    stage.both(
        "enough in the end",
        |a| {
            let waited = a.wait(false);
            format!("{waited} {}", a.recv(20, 0))
        },
        |b| {
            pause();
            let first = b.say("123");
            pause();
            let second = b.say("45");
            pause();
            format!("{first} {second} {}", b.say("678"))
        },
    );
    stage.both(
        "the end is enough",
        |a| {
            let waited = a.wait(false);
            format!("{waited} {}, {}", a.recv(20, 0), a.hear(1))
        },
        |b| {
            pause();
            let said = b.say("123");
            pause();
            format!("{said} {}", b.shutdown(libc::SHUT_WR))
        },
    );
}

/// SO_RCVLOWAT of more than fits: a full buffer is enough.
fn lowat_beyond_buffers(stage: &mut Stage) {
    const BYTES: usize = 6_000_000;
    let pattern = Pattern::new(61);
    stage.connect();
    stage.a("set", |a| {
        while a.form == Form::Edge && sys::epoll_wait(a.set, 4, 0).is_ok_and(|e| !e.is_empty()) {}
        show::ret(sys::setsockopt(
            a.fd,
            SOL_SOCKET,
            libc::SO_RCVLOWAT,
            5_500_000,
        ))
    });
    stage.both(
        "readable",
        |a| {
            let waited = a.wait(false);
            let back = sys::setsockopt(a.fd, SOL_SOCKET, libc::SO_RCVLOWAT, 1);
            format!(
                "{waited} {} {}",
                show::ret(back),
                a.drink(&pattern, BYTES, 5)
            )
        },
        |b| b.pour(&pattern, BYTES, 7),
    );
}
