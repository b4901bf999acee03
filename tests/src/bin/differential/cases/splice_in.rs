//! splice from a socket into a pipe: parts, ends, waits on either side.

use libc::{
    F_SETFL, O_NONBLOCK, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SA_RESTART, SHUT_RD,
    SHUT_WR, SIGPIPE, SPLICE_F_MORE, SPLICE_F_NONBLOCK,
};

use super::splice::{contents, fill, kept, let_it_sleep, pipe_of, with_alarm};
use super::{Case, Needs, blocking, case};
use crate::end::End;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("splice_in_parts", Needs::Steps, splice_in_parts),
    case("splice_in_full_pipe", Needs::Steps, splice_in_full_pipe),
    case("splice_in_no_reader", Needs::Processes, splice_in_no_reader),
    case("splice_in_ends", Needs::Steps, splice_in_ends),
    case("splice_in_lowat", Needs::Steps, splice_in_lowat),
    blocking("splice_in_waits", Needs::Both, splice_in_waits),
    blocking(
        "splice_in_interrupted",
        Needs::Processes,
        splice_in_interrupted,
    ),
];

fn splice_in_parts(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("0123456789"));
    stage.a("arrived", |a| a.arrived(10));
    stage.a("part", |a| {
        let (_, write) = pipe_of(a);
        let part = sys::splice(a.fd, write, 4, 0);
        format!("{} {}", show::ret(part), contents(a))
    });
    stage.a("fionread", |a| {
        format!("{:?}", sys::ioctl(a.fd, sys::FIONREAD, -1))
    });
    stage.a("recv between", |a| a.recv(2, 0));
    stage.a("peek", |a| a.recv(20, libc::MSG_PEEK));
    stage.a("readable", |a| a.ready(POLLIN | POLLOUT));
    stage.a("rest", |a| {
        let rest = sys::splice(a.fd, a.more[1], 1000, SPLICE_F_MORE);
        format!("{} {}", show::ret(rest), contents(a))
    });
    stage.a("not readable", |a| a.ready(POLLOUT));
    stage.b("say", |b| b.say("behind"));
    stage.a("arrived", |a| a.arrived(6));
    stage.a("behind what is there", |a| {
        let said = sys::write(a.more[1], b"before ");
        let more = sys::splice(a.fd, a.more[1], 1 << 40, 0);
        format!("{} {} {}", show::ret(said), show::ret(more), contents(a))
    });
    stage.a("nothing", |a| {
        let _ = sys::set_nonblocking(a.fd, true);
        let without = sys::splice(a.fd, a.more[1], 10, 0);
        let with = sys::splice(a.fd, a.more[1], 10, SPLICE_F_NONBLOCK);
        let _ = sys::set_nonblocking(a.fd, false);
        format!("{} {}", show::ret(without), show::ret(with))
    });
    stage.a("timeout", |a| {
        let _ = sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 50);
        let without = sys::splice(a.fd, a.more[1], 10, 0);
        let with = sys::splice(a.fd, a.more[1], 10, SPLICE_F_NONBLOCK);
        let _ = sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 0);
        format!("{} {}", show::ret(without), show::ret(with))
    });
    stage.b("say", |b| b.say("last"));
    stage.a("recv", |a| a.recv(10, 0));
}

fn splice_in_full_pipe(stage: &mut Stage) {
    stage.connect();
    stage.a("full, nothing there", |a| {
        let (_, write) = pipe_of(a);
        fill(write);
        let by_flag = sys::splice(a.fd, write, 10, SPLICE_F_NONBLOCK);
        let _ = sys::fcntl(write, F_SETFL, O_NONBLOCK);
        let by_pipe = sys::splice(a.fd, write, 10, 0);
        let _ = sys::fcntl(write, F_SETFL, 0);
        format!("{} {}", show::ret(by_flag), show::ret(by_pipe))
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("full, bytes there", |a| {
        let (_, write) = kept(a);
        let by_flag = sys::splice(a.fd, write, 10, SPLICE_F_NONBLOCK);
        let _ = sys::fcntl(write, F_SETFL, O_NONBLOCK);
        let by_pipe = sys::splice(a.fd, write, 10, 0);
        let _ = sys::fcntl(write, F_SETFL, 0);
        format!("{} {}", show::ret(by_flag), show::ret(by_pipe))
    });
    stage.a("room again", |a| {
        let (read, write) = kept(a);
        let fd = a.fd;
        let other = std::thread::spawn(move || {
            let_it_sleep();
            sys::read(read, &mut [0; 8192])
        });
        let waited = sys::splice(fd, write, 10, 0);
        let read = other.join().unwrap_or(Err(-1));
        format!("{} {}", show::ret(waited), show::ret(read))
    });
    stage.b("say", |b| b.say("more"));
    stage.a("arrived", |a| a.arrived(4));
    stage.a("the other one, too", |a| {
        let before = contents(a);
        let more = sys::splice(a.fd, a.more[1], 10, SPLICE_F_NONBLOCK);
        format!("{} {} {}", before.len() > 10, show::ret(more), contents(a))
    });
}

fn splice_in_no_reader(stage: &mut Stage) {
    stage.connect();
    stage.a("nothing there", |a| {
        let _ = sys::catch(SIGPIPE, 0);
        let (read, write) = pipe_of(a);
        let _ = sys::close(read);
        let ret = sys::splice(a.fd, write, 10, 0);
        format!("{} {}", show::ret(ret), sys::caught())
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("bytes there", |a| {
        let before = sys::caught();
        let ret = sys::splice(a.fd, a.more[1], 10, SPLICE_F_NONBLOCK);
        format!("{} {}", show::ret(ret), sys::caught() - before)
    });
    stage.a("they are still there", |a| a.recv(10, 0));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP));
    stage.a("at the end", |a| {
        let before = sys::caught();
        let ret = sys::splice(a.fd, a.more[1], 10, 0);
        format!("{} {}", show::ret(ret), sys::caught() - before)
    });
}

fn splice_in_ends(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("last"));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP));
    stage.a("bytes, then end", |a| {
        let (_, write) = pipe_of(a);
        let rets = [100, 100, 100].map(|len| show::ret(sys::splice(a.fd, write, len, 0)));
        format!("{} {}", rets.join(" "), contents(a))
    });
    stage.a("full pipe at the end", |a| {
        fill(a.more[1]);
        show::ret(sys::splice(a.fd, a.more[1], 10, SPLICE_F_NONBLOCK))
    });
    stage.a("close", End::close);
    stage.set_aside();
    stage.connect();
    stage.b("say", |b| b.say("reset"));
    stage.a("arrived", |a| a.arrived(5));
    stage.b("reset", |b| {
        let _ = sys::set_linger(b.fd, 1, 0);
        b.close()
    });
    stage.a("reset", |a| {
        a.ready(POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR)
    });
    stage.a("bytes, then error, then end", |a| {
        let (_, write) = pipe_of(a);
        let rets = [100, 100, 100].map(|len| show::ret(sys::splice(a.fd, write, len, 0)));
        format!("{} {}", rets.join(" "), contents(a))
    });
    stage.set_aside();
    stage.connect();
    stage.a("own shutdown", |a| {
        let (_, write) = pipe_of(a);
        let shut = a.shutdown(SHUT_RD);
        format!("{shut} {}", show::ret(sys::splice(a.fd, write, 10, 0)))
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("bytes all the same", |a| {
        let ret = sys::splice(a.fd, a.more[1], 10, 0);
        format!("{} {}", show::ret(ret), contents(a))
    });
}

/// SO_RCVLOWAT is nothing to a splice.
fn splice_in_lowat(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        show::ret(sys::setsockopt(
            a.fd,
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            8,
        ))
    });
    stage.b("say", |b| b.say("abc"));
    stage.a("arrived", |a| a.arrived(3));
    stage.a("splice", |a| {
        let (_, write) = pipe_of(a);
        let ret = sys::splice(a.fd, write, 100, 0);
        format!("{} {}", show::ret(ret), contents(a))
    });
}

fn splice_in_waits(stage: &mut Stage) {
    stage.connect();
    for flags in [0, SPLICE_F_NONBLOCK] {
        stage.both(
            "for bytes",
            |a| {
                let (_, write) = pipe_of(a);
                let ret = sys::splice(a.fd, write, 100, flags);
                format!("{} {}", show::ret(ret), contents(a))
            },
            |b| {
                let_it_sleep();
                b.say("hello")
            },
        );
    }
    stage.both(
        "for the end",
        |a| show::ret(sys::splice(a.fd, a.more[1], 100, 0)),
        |b| {
            let_it_sleep();
            b.shutdown(SHUT_WR)
        },
    );
    stage.set_aside();
    stage.connect();
    stage.both(
        "for a reset",
        |a| {
            let (_, write) = pipe_of(a);
            let rets = [1, 1].map(|len| show::ret(sys::splice(a.fd, write, len, 0)));
            rets.join(" ")
        },
        |b| {
            let_it_sleep();
            let _ = sys::set_linger(b.fd, 1, 0);
            b.close()
        },
    );
}

fn splice_in_interrupted(stage: &mut Stage) {
    stage.connect();
    stage.a("waiting for bytes", |a| {
        let (_, write) = pipe_of(a);
        with_alarm(0, || show::ret(sys::splice(a.fd, write, 10, 0)))
    });
    stage.both(
        "restarted",
        |a| {
            with_alarm(SA_RESTART, || {
                let ret = sys::splice(a.fd, a.more[1], 10, 0);
                format!("{} {}", show::ret(ret), contents(a))
            })
        },
        |b| {
            std::thread::sleep(core::time::Duration::from_millis(150));
            b.say("hello")
        },
    );
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("waiting for the pipe", |a| {
        fill(a.more[1]);
        with_alarm(0, || show::ret(sys::splice(a.fd, a.more[1], 10, 0)))
    });
    stage.a("restarted for the pipe", |a| {
        let (read, write) = kept(a);
        let other = std::thread::spawn(move || {
            std::thread::sleep(core::time::Duration::from_millis(150));
            sys::read(read, &mut [0; 8192])
        });
        let shown = with_alarm(SA_RESTART, || show::ret(sys::splice(a.fd, write, 10, 0)));
        format!("{shown} {:?}", other.join().unwrap_or(Err(-1)))
    });
}
