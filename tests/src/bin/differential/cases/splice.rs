//! Pipes and sockets: what splice refuses, pipes of several kinds, and what the other cases share.

use libc::{F_SETFL, O_APPEND, O_NONBLOCK, O_RDWR, SIGALRM, SPLICE_F_MOVE, SPLICE_F_NONBLOCK};

use super::{Case, Needs, case};
use crate::end::End;
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("splice_fresh", Needs::Steps, |stage| splice(stage, true)),
    case("splice_later", Needs::Steps, |stage| splice(stage, false)),
    case("splice_refused", Needs::Steps, splice_refused),
    case(
        "splice_both_ways_opened",
        Needs::Steps,
        splice_both_ways_opened,
    ),
    case("splice_pages", Needs::Steps, splice_pages),
    case("splice_forked", Needs::Processes, splice_forked),
];

pub(super) fn let_it_sleep() {
    std::thread::sleep(core::time::Duration::from_millis(40));
}

/// A pipe of the end: reading end, writing end.
pub(super) fn pipe_of(end: &mut End) -> (i32, i32) {
    let pair = sys::pipe();
    end.more = vec![pair.0, pair.1];
    pair
}

/// A pipe kept in `more`, made before; reading end, writing end.
pub(super) fn kept(end: &End) -> (i32, i32) {
    (end.more[0], end.more[1])
}

/// What can be read from a pipe now.
pub(super) fn contents(end: &End) -> String {
    let mut out = vec![0; 1 << 20];
    let (read, _) = kept(end);
    let _ = sys::fcntl(read, F_SETFL, O_NONBLOCK);
    let got = sys::read(read, &mut out);
    let _ = sys::fcntl(read, F_SETFL, 0);
    show::got(got, &out)
}

/// Writes until nothing fits any more.
pub(super) fn fill(write: i32) {
    let _ = sys::fcntl(write, F_SETFL, O_NONBLOCK);
    while sys::write(write, &[b'f'; 4096]).is_ok() {}
    let _ = sys::fcntl(write, F_SETFL, 0);
}

/// Runs `work` while SIGALRM comes every 40 ms.
pub(super) fn with_alarm(flags: i32, work: impl FnOnce() -> String) -> String {
    let _ = sys::catch(SIGALRM, flags);
    sys::alarm(40, 40);
    let result = work();
    sys::alarm(0, 0);
    format!("{result} caught {}", sys::caught() > 0)
}

/// Socket to pipe to socket, as proxies do it.
fn splice(stage: &mut Stage, fresh: bool) {
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    stage.b("say", |b| b.say("through a pipe"));
    stage.a("arrived", |a| a.arrived(14));
    stage.a("to the pipe", |a| {
        let (_, write) = pipe_of(a);
        show::ret(sys::splice(
            a.fd,
            write,
            100,
            SPLICE_F_MOVE | SPLICE_F_NONBLOCK,
        ))
    });
    stage.a("nothing more", |a| {
        // The flag is for the pipe; the socket has its own.
        let _ = sys::set_nonblocking(a.fd, true);
        let nothing = sys::splice(a.fd, a.more[1], 100, SPLICE_F_NONBLOCK);
        let _ = sys::set_nonblocking(a.fd, false);
        show::ret(nothing)
    });
    stage.a("from the pipe", |a| {
        show::ret(sys::splice(a.more[0], a.fd, 100, SPLICE_F_MOVE))
    });
    stage.b("hear", |b| b.hear(14));
    stage.a("say", |a| a.say("after"));
    stage.b("hear", |b| b.hear(5));
    stage.b("close", End::close);
    stage.a("end", |a| show::ret(sys::splice(a.fd, a.more[1], 100, 0)));
}

fn splice_refused(stage: &mut Stage) {
    const HALF: usize = usize::MAX / 2;
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("pipe", |a| {
        let (_, write) = pipe_of(a);
        show::ret(sys::write(write, b"pipe"))
    });
    type Try = fn(i32, i32, i32) -> sys::Ret;
    let tries: &[(&str, Try)] = &[
        ("nothing, in", |fd, _, write| sys::splice(fd, write, 0, 0)),
        ("nothing, out", |fd, read, _| sys::splice(read, fd, 0, 0)),
        ("nothing, bad flags", |fd, _, write| {
            sys::splice(fd, write, 0, 0x100)
        }),
        ("bad flags, in", |fd, _, write| {
            sys::splice(fd, write, 1, 0x10)
        }),
        ("bad flags, out", |fd, read, _| {
            sys::splice(read, fd, 1, 0x10)
        }),
        ("too much, in", |fd, _, write| {
            sys::splice(fd, write, HALF + 1, 0)
        }),
        ("too much, out", |fd, read, _| {
            sys::splice(read, fd, usize::MAX, 0)
        }),
        ("to a closed descriptor", |fd, _, _| {
            sys::splice(fd, 987, 1, 0)
        }),
        ("from a closed descriptor", |fd, _, _| {
            sys::splice(987, fd, 1, 0)
        }),
        ("to itself", |fd, _, _| sys::splice(fd, fd, 1, 0)),
        ("to a file", |fd, _, _| {
            sys::splice(fd, sys::file_with(b"file"), 1, 0)
        }),
        ("from a file", |fd, _, _| {
            sys::splice(sys::file_with(b"file"), fd, 1, 0)
        }),
        ("to the reading end", |fd, read, _| {
            sys::splice(fd, read, 1, 0)
        }),
        ("from the writing end", |fd, _, write| {
            sys::splice(write, fd, 1, 0)
        }),
        ("in, offset of the socket", |fd, _, write| {
            sys::splice_with(fd, Some(0), write, None, 1, 0)
        }),
        ("in, offset of the pipe", |fd, _, write| {
            sys::splice_with(fd, None, write, Some(0), 1, 0)
        }),
        ("in, both offsets", |fd, _, write| {
            sys::splice_with(fd, Some(1), write, Some(0), 1, 0)
        }),
        ("out, offset of the pipe", |fd, read, _| {
            sys::splice_with(read, Some(0), fd, None, 1, 0)
        }),
        ("out, offset of the socket", |fd, read, _| {
            sys::splice_with(read, None, fd, Some(0), 1, 0)
        }),
        ("tee to the socket", |fd, read, _| sys::tee(read, fd, 1, 0)),
        ("tee from the socket", |fd, _, write| {
            sys::tee(fd, write, 1, 0)
        }),
        ("vmsplice", |fd, _, _| sys::vmsplice(fd, b"pages")),
        ("append", |fd, read, _| {
            let _ = sys::fcntl(fd, F_SETFL, O_APPEND);
            let out = sys::splice(read, fd, 1, 0);
            let _ = sys::fcntl(fd, F_SETFL, 0);
            out
        }),
    ];
    for (label, attempt) in tries {
        stage.a(label, |a| {
            let (read, write) = kept(a);
            show::ret(attempt(a.fd, read, write))
        });
    }
    stage.a("the pipe is as it was", |a| contents(a));
    stage.a("the bytes are still there", |a| {
        a.recv(20, libc::MSG_DONTWAIT)
    });
    stage.b("nothing came", |b| b.recv(20, libc::MSG_DONTWAIT));
}

/// A pipe whose descriptor is open for reading and writing.
fn splice_both_ways_opened(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("in and out", |a| {
        let (read, _) = pipe_of(a);
        let both = sys::reopen(read, O_RDWR);
        let put = sys::splice(a.fd, both, 100, 0);
        let sent = sys::splice(both, a.fd, 100, 0);
        let empty = sys::splice(both, a.fd, 100, SPLICE_F_NONBLOCK);
        format!(
            "{} {} {}",
            show::ret(put),
            show::ret(sent),
            show::ret(empty)
        )
    });
    stage.b("hear", |b| b.hear(5));
}

/// Pages that were given to the pipe, and bytes that were copied from one pipe to another.
fn splice_pages(stage: &mut Stage) {
    stage.connect();
    stage.a("pages", |a| {
        let (read, write) = pipe_of(a);
        let given = sys::vmsplice(write, b"a page of mine");
        let sent = sys::splice(read, a.fd, 100, 0);
        format!("{} {}", show::ret(given), show::ret(sent))
    });
    stage.b("hear", |b| b.hear(14));
    stage.a("from a file", |a| {
        let (read, write) = kept(a);
        let file = sys::cold_file_with(&[b'f'; 50_000]);
        let put = sys::splice_with(file, Some(100), write, None, 40_000, 0);
        let sent = sys::splice(read, a.fd, 1 << 20, 0);
        format!("{} {}", put == sent, sent.is_ok_and(|sent| sent > 0))
    });
    stage.a("say", |a| a.say("."));
    stage.b("hear", |b| {
        let mut other = 0;
        let mut byte = [0];
        while b.recv_some(&mut byte) == Ok(1) && byte != *b"." {
            other += i32::from(byte != *b"f");
        }
        format!("{other} other bytes")
    });
    stage.b("say", |b| b.say("copied"));
    stage.a("arrived", |a| a.arrived(6));
    stage.a("tee", |a| {
        let (read, write) = kept(a);
        let (copy, into) = sys::pipe();
        let put = sys::splice(a.fd, write, 100, 0);
        let copied = sys::tee(read, into, 100, 0);
        let sent = sys::splice(copy, a.fd, 100, 0);
        format!(
            "{} {} {} {}",
            show::ret(put),
            show::ret(copied),
            show::ret(sent),
            contents(a)
        )
    });
    stage.b("hear", |b| b.hear(6));
}

/// A child splices what its parent began to.
fn splice_forked(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("parent child parent"));
    stage.a("arrived", |a| a.arrived(19));
    stage.a("in turn", |a| {
        let (read, write) = pipe_of(a);
        // Once by the kernel: a pipe that was spliced by it knows less afterwards.
        let file = sys::file_with(b"file ");
        let _ = sys::splice_with(file, Some(0), write, None, 5, 0);
        let first = sys::splice(a.fd, write, 7, 0);
        let child = sys::fork();
        if child == Ok(0) {
            let second = sys::splice(a.fd, write, 6, 0);
            sys::exit_now(i32::from(second != Ok(6)));
        }
        let left = sys::wait_for(child);
        let third = sys::splice(a.fd, write, 100, 0);
        let shown = contents(a);
        let _ = sys::write(write, b"back");
        let child = sys::fork();
        if child == Ok(0) {
            let sent = sys::splice(read, a.fd, 100, 0);
            sys::exit_now(i32::from(sent != Ok(4)));
        }
        format!(
            "{} {left} {} {shown} {}",
            show::ret(first),
            show::ret(third),
            sys::wait_for(child)
        )
    });
    stage.b("hear", |b| b.hear(4));
}
