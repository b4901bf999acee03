//! Signals that a socket sends: SIGIO by `O_ASYNC` and `FIOASYNC`, SIGURG for urgent data.

use libc::{F_GETFL, F_SETFL, F_SETOWN, MSG_OOB, O_ASYNC, POLLIN, POLLOUT, POLLPRI, SIGIO, SIGURG};

use super::descriptors::dialogue;
use super::{Case, Needs, case};
use crate::end::{End, Side, patience};
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("async_by_fcntl_fresh", Needs::Processes, |stage| {
        fresh(stage, by_fcntl);
    }),
    case("async_by_fcntl_later", Needs::Processes, |stage| {
        later(stage, by_fcntl);
    }),
    case("async_by_ioctl_fresh", Needs::Processes, |stage| {
        fresh(stage, by_ioctl);
    }),
    case("async_by_ioctl_later", Needs::Processes, |stage| {
        later(stage, by_ioctl);
    }),
    case("async_received", Needs::Processes, received),
    case("urgent_signal", Needs::Processes, |stage| {
        urgent(stage, false, false);
    }),
    case("urgent_signal_waitall", Needs::Processes, |stage| {
        urgent(stage, false, true);
    }),
    case("urgent_signal_inline", Needs::Processes, |stage| {
        urgent(stage, true, false);
    }),
];

const SIOCATMARK: u64 = 0x8905;

/// A way of asking for signals.
type Ask = fn(i32) -> sys::Ret;

fn own(fd: i32) -> sys::Ret {
    sys::fcntl(fd, F_SETOWN, std::process::id().cast_signed())
}

fn by_fcntl(fd: i32) -> sys::Ret {
    own(fd)?;
    sys::fcntl(fd, F_SETFL, fd_of(sys::fcntl(fd, F_GETFL, 0)) | O_ASYNC)
}

fn by_ioctl(fd: i32) -> sys::Ret {
    const FIOASYNC: u64 = 0x5452;
    own(fd)?;
    sys::ioctl(fd, FIOASYNC, 1).0
}

/// Whether a signal has come since it was last caught, or comes soon.
fn told() -> String {
    for _ in 0..patience() / 8 {
        if sys::caught() > 0 {
            return "told".to_owned();
        }
        std::thread::sleep(core::time::Duration::from_millis(1));
    }
    "not told".to_owned()
}

/// Whatever B says, A is told of by a signal.
fn each_is_told(stage: &mut Stage) {
    for _ in 0..2 {
        stage.a("catch", |_| show::ret(sys::catch(SIGIO, libc::SA_RESTART)));
        stage.b("say", |b| b.say("hello"));
        stage.a("told", |_| told());
        stage.a("hear", |a| a.hear(5));
        stage.a("say", |a| a.say("world"));
        stage.b("hear", |b| b.hear(5));
    }
    stage.a("catch", |_| show::ret(sys::catch(SIGIO, libc::SA_RESTART)));
    stage.b("close", End::close);
    stage.a("told", |_| told());
    stage.a("end", |a| a.hear(1));
}

/// Asked for before the socket has a connection.
fn fresh(stage: &mut Stage, ask: Ask) {
    let listener = stage.listen(Side::B);
    stage.a("catch", |_| show::ret(sys::catch(SIGIO, libc::SA_RESTART)));
    stage.a("ask, connect", |a| {
        a.hold(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
        let asked = ask(a.fd);
        let connected = sys::connect(a.fd, listener.address);
        format!("{} {}", show::ret(asked), show::ret(connected))
    });
    stage.b("accept", |b| {
        b.hold(fd_of(sys::accept4(listener.fd, 0)));
        (b.fd >= 0).to_string()
    });
    dialogue(stage);
    dialogue(stage);
    each_is_told(stage);
}

/// Asked for on a connection that goes on for long.
fn later(stage: &mut Stage, ask: Ask) {
    stage.connect();
    stage.a("catch", |_| show::ret(sys::catch(SIGIO, libc::SA_RESTART)));
    stage.a("ask", |a| show::ret(ask(a.fd)));
    each_is_told(stage);
}

/// Asked for by somebody who then passes the socket on.
fn received(stage: &mut Stage) {
    stage.connect_cold(Family::V4);
    stage.a("catch", |_| show::ret(sys::catch(SIGIO, libc::SA_RESTART)));
    stage.a("ask, pass", |a| {
        let asked = by_fcntl(a.fd);
        let (here, there) = sys::socketpair();
        let passed = sys::send_fds(here, b"x", &[a.fd]);
        let new = sys::recv_fd(there);
        let closed = a.close();
        a.hold(new);
        format!("{} {} {closed}", show::ret(asked), show::ret(passed))
    });
    dialogue(stage);
    dialogue(stage);
    each_is_told(stage);
}

/// The owner of a socket is told of urgent data, whether it asked for other signals or not.
fn urgent(stage: &mut Stage, inline: bool, to_the_end: bool) {
    stage.connect();
    stage.b("catch", |_| show::ret(sys::catch(SIGURG, libc::SA_RESTART)));
    stage.b("own", |b| show::ret(own(b.fd)));
    if inline {
        stage.b("inline", |b| {
            let (level, name) = (libc::SOL_SOCKET, libc::SO_OOBINLINE);
            show::ret(sys::setsockopt(b.fd, level, name, 1))
        });
    }
    stage.a("say", |a| a.say("before"));
    stage.a("urgent", |a| a.send(b"!", MSG_OOB));
    stage.a("say", |a| a.say("after"));
    stage.b("told", |_| told());
    stage.b("ready", |b| b.ready(POLLIN | POLLOUT | POLLPRI));
    stage.b("not at mark", |b| show::ret(sys::sockatmark(b.fd)));
    stage.b("not at mark", |b| {
        format!("{:?}", sys::ioctl(b.fd, SIOCATMARK, -1))
    });
    stage.b("peek", |b| b.recv(20, libc::MSG_PEEK));
    if to_the_end {
        stage.b("hear", |b| b.recv(20, libc::MSG_WAITALL));
    } else {
        stage.b("hear", |b| b.recv(20, 0));
    }
    stage.b("at mark", |b| show::ret(sys::sockatmark(b.fd)));
    stage.b("urgent", |b| b.recv(1, MSG_OOB));
    stage.b("hear", |b| b.hear(if inline { 6 } else { 5 }));
    stage.b("at mark", |b| show::ret(sys::sockatmark(b.fd)));
    dialogue(stage);
}
