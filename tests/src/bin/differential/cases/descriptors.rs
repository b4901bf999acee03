//! Descriptors: duplicated, replaced, numbered; and what the other cases share.

use libc::{F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, POLLIN, POLLOUT, POLLRDHUP, SHUT_WR};

use super::{Case, Needs, blocking, case};
use crate::end::{End, Side};
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("dup_and_close", Needs::Steps, dup_and_close),
    case("dup_ways", Needs::Steps, dup_ways),
    case("dup_errors", Needs::Steps, dup_errors),
    case("dup2_over_connection", Needs::Steps, dup2_over_connection),
    case(
        "dup2_pipe_over_connection",
        Needs::Steps,
        dup2_pipe_over_connection,
    ),
    case("number_used_again", Needs::Steps, number_used_again),
    case("lowest_numbers", Needs::Processes, lowest_numbers),
    case("stdio_fresh", Needs::Steps, |stage| stdio(stage, true)),
    case("stdio_later", Needs::Steps, |stage| stdio(stage, false)),
    blocking(
        "standard_output_on_connection",
        Needs::Processes,
        standard_output_on_connection,
    ),
];

pub(super) const FIN: i16 = POLLIN | POLLOUT | POLLRDHUP;

fn dup_and_close(stage: &mut Stage) {
    stage.connect();
    stage.a("dup", |a| {
        a.more = vec![a.fd, fd_of(sys::dup(a.fd))];
        format!("{}", a.more[1] >= 0)
    });
    for turn in [0, 1, 0, 1] {
        stage.a("send", |a| show::ret(sys::send(a.more[turn], b"hello", 0)));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("recv", |a| {
            let (mut out, other) = ([0; 5], a.more[1 - turn]);
            let _ = sys::poll(&[(other, POLLIN)], crate::end::patience());
            let got = sys::recv(other, &mut out, libc::MSG_WAITALL);
            show::got(got, &out)
        });
    }
    stage.a("close one", |a| show::ret(sys::close(a.more[0])));
    stage.a("closed", |a| show::ret(sys::send(a.more[0], b"x", 0)));
    stage.b("no end", |b| b.ready(POLLOUT));
    stage.a("send", |a| show::ret(sys::send(a.more[1], b"again", 0)));
    stage.b("hear", |b| b.hear(5));
    stage.b("say", |b| b.say("last"));
    stage.a("other", |a| {
        a.hold(a.more[1]);
        a.hear(4)
    });
    stage.a("close other", End::close);
    stage.b("end", |b| b.ready(FIN));
    stage.b("hear", |b| b.hear(1));
}

fn dup_ways(stage: &mut Stage) {
    stage.connect();
    type Way = fn(i32) -> sys::Ret;
    let ways: [(&str, Way); 5] = [
        ("dup", sys::dup),
        ("dup2", |fd| sys::dup2(fd, 300)),
        ("dup3", |fd| sys::dup3(fd, 301, libc::O_CLOEXEC)),
        ("f_dupfd", |fd| sys::fcntl(fd, F_DUPFD, 400)),
        ("f_dupfd_cloexec", |fd| sys::fcntl(fd, F_DUPFD_CLOEXEC, 401)),
    ];
    for (label, way) in ways {
        stage.a(label, |a| {
            let new = fd_of(way(a.fd));
            a.more = vec![new];
            format!(
                "{} {}",
                new >= 300 || label == "dup",
                show::ret(sys::fcntl(new, F_GETFD, 0))
            )
        });
        stage.a("send", |a| show::ret(sys::send(a.more[0], b"hello", 0)));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("arrived", |a| a.arrived(5));
        stage.a("recv", |a| {
            let mut out = [0; 9];
            let got = sys::recv(a.more[0], &mut out, 0);
            show::got(got, &out)
        });
        stage.a("close", |a| show::ret(sys::close(a.more[0])));
    }
    stage.a("the first still works", |a| a.say("bye"));
    stage.b("hear", |b| b.hear(3));
}

fn dup_errors(stage: &mut Stage) {
    stage.connect();
    stage.a("dup -1", |_| show::ret(sys::dup(-1)));
    stage.a("dup2 to itself", |a| {
        format!("{}", sys::dup2(a.fd, a.fd) == Ok(i64::from(a.fd)))
    });
    stage.a("dup3 to itself", |a| show::ret(sys::dup3(a.fd, a.fd, 0)));
    stage.a("dup3 with flags", |a| show::ret(sys::dup3(a.fd, 310, 77)));
    stage.a("dup2 to -1", |a| show::ret(sys::dup2(a.fd, -1)));
    stage.a("dup2 of nothing", |a| show::ret(sys::dup2(311, a.fd)));
    stage.a("dup2 of a duplicate", |a| {
        let other = fd_of(sys::dup(a.fd));
        let again = sys::dup2(a.fd, other);
        format!(
            "{} {}",
            again == Ok(i64::from(other)),
            show::ret(sys::close(other))
        )
    });
    stage.a("close -1", |_| show::ret(sys::close(-1)));
    stage.a("close twice", |_| show::ret(sys::close(312)));
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

fn dup2_over_connection(stage: &mut Stage) {
    stage.connect();
    stage.set_aside();
    stage.connect();
    stage.a("first over second", |a| {
        let replaced = sys::dup2(a.more[0], a.fd);
        a.hold(a.fd);
        format!(
            "{} {}",
            replaced == Ok(i64::from(a.fd)),
            show::ret(sys::close(a.more[0]))
        )
    });
    stage.b("second has ended", |b| b.ready(FIN));
    stage.b("end", |b| b.hear(1));
    stage.a("say on first", |a| a.say("hello"));
    stage.b("first", |b| {
        let _ = sys::close(b.fd);
        b.hold(b.more[0]);
        b.hear(5)
    });
    stage.b("say on first", |b| b.say("world"));
    stage.a("hear", |a| a.hear(5));
    stage.a("close", End::close);
    stage.b("first has ended", |b| b.ready(FIN));
}

fn dup2_pipe_over_connection(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("for the pipe?"));
    stage.a("hear", |a| a.hear(13));
    stage.a("pipe over connection", |a| {
        let (read, write) = sys::pipe();
        a.more = vec![read, write];
        format!("{}", sys::dup2(read, a.fd) == Ok(i64::from(a.fd)))
    });
    stage.b("has ended", |b| b.ready(FIN));
    stage.a("write pipe", |a| show::ret(sys::write(a.more[1], b"piped")));
    stage.a("read", |a| {
        let mut out = [0; 9];
        let got = sys::read(a.fd, &mut out);
        show::got(got, &out)
    });
    stage.a("recv", |a| a.recv(4, 0));
}

/// A closed connection's number is a pipe, then another connection.
fn number_used_again(stage: &mut Stage) {
    stage.connect();
    let listener = stage.listen(Side::B);
    stage.a("close", |a| {
        a.more = vec![a.fd];
        // No lower number is free after this.
        while fd_of(sys::dup(0)) < a.fd {}
        a.close()
    });
    stage.b("ended", |b| b.hear(1));
    stage.a("pipe in its place", |a| {
        let (read, write) = sys::pipe();
        let _ = sys::write(write, b"pipe");
        let mut out = [0; 9];
        let got = sys::read(read, &mut out);
        let shown = format!("{} {}", a.more[0] == read, show::got(got, &out));
        let _ = (sys::close(read), sys::close(write));
        shown
    });
    stage.a("connection in its place", |a| {
        a.hold(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
        format!(
            "{} {}",
            a.more[0] == a.fd,
            show::ret(sys::connect(a.fd, listener.address))
        )
    });
    stage.b("accept", |b| {
        b.hold(fd_of(sys::accept4(listener.fd, 0)));
        format!("{}", b.fd >= 0)
    });
    for _ in 0..20 {
        stage.a("say", |a| a.say("hello"));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("hear", |a| a.hear(5));
    }
}

/// The program sees the numbers that it would see without the library.
fn lowest_numbers(stage: &mut Stage) {
    stage.connect();
    let numbers = |end: &mut End| {
        let made = [
            fd_of(sys::dup(0)),
            fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)),
            sys::pipe().1,
            fd_of(sys::epoll_create()),
        ];
        format!("{} {made:?}", end.fd)
    };
    stage.a("numbers", numbers);
    stage.b("numbers", numbers);
}

/// Runs `work` in a forked child, which exits with 0 if it says so.
pub(super) fn child(work: impl FnOnce() -> bool) -> sys::Ret {
    let pid = sys::fork();
    if pid == Ok(0) {
        let good = work();
        sys::exit_now(i32::from(!good));
    }
    pid
}

/// Messages that come back from `cat`, and the end.
pub(super) fn talk_to_cat(a: &mut End) -> String {
    for round in 0..30 {
        let said = a.say("through the cat");
        let heard = a.hear(15);
        if said != "sent 15" || heard != "\"through the cat\"" {
            return format!("{round} rounds, then {said}, {heard}");
        }
    }
    let shut = a.shutdown(SHUT_WR);
    format!("{shut} {}", a.hear(1))
}

/// Twenty rounds of a dialogue between the ends.
pub(super) fn dialogue(stage: &mut Stage) {
    stage.both(
        "dialogue",
        |a| {
            let good = (0..20).filter(|_| a.say("ping") == "sent 4" && a.hear(4) == "\"pong\"");
            good.count().to_string()
        },
        |b| {
            let good = (0..20).filter(|_| b.hear(4) == "\"ping\"" && b.say("pong") == "sent 4");
            good.count().to_string()
        },
    );
    // Time for whatever goes on behind.
    std::thread::sleep(core::time::Duration::from_millis(40));
}

/// A socket wrapped into stdio streams: before anything else, or after a while with nothing under way.
fn stdio(stage: &mut Stage, fresh: bool) {
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    let mut streams = None;
    stage.a("open", |a| {
        let input = sys::Stream::open(a.fd);
        streams = Some((input, sys::Stream::open(fd_of(sys::dup(a.fd)))));
        "opened".to_owned()
    });
    stage.b("say", |b| b.say("first line\nsecond line\n"));
    stage.a("arrived", |a| a.arrived(23));
    stage.a("streams", |_| {
        let Some((input, output)) = streams.take() else {
            return "no streams".to_owned();
        };
        let mut shown = Vec::new();
        for round in 0..2 {
            shown.push(format!("{:?}", input.line()));
            shown.push(show::ok(output.put(&format!("answer {round}\n"))));
        }
        shown.push(show::ret(output.close()));
        shown.push(show::ret(input.close()));
        shown.join(" ")
    });
    stage.b("hear", |b| b.hear(18));
    stage.b("end", |b| b.ready(FIN));
}

/// The connection is standard output for a while, for libc's stream and for `write`.
fn standard_output_on_connection(stage: &mut Stage) {
    stage.connect();
    stage.a("print", |a| {
        let kept = fd_of(sys::dup(1));
        let replaced = sys::dup2(a.fd, 1);
        let printed = sys::print("printed");
        let written = sys::write(1, b"written");
        let back = sys::dup2(kept, 1);
        let results = [replaced, printed, written, back, sys::close(kept)];
        results.map(show::ok).join(" ")
    });
    stage.b("hear", |b| b.hear(14));
    stage.b("say", |b| b.say("answer"));
    stage.a("hear", |a| a.hear(6));
    stage.a("say", |a| a.say("more"));
    stage.b("hear", |b| b.hear(4));
}
