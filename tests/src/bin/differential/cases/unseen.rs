//! Programs that use their sockets in ways a preloaded library hardly sees: by number, under a seccomp
//! filter, beside io_uring, through a spawned program.

#![expect(unsafe_code, reason = "descriptors change their owner")]

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use super::{Case, Needs, blocking, case};
use crate::end::{End, patience};
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("calls_by_number", Needs::Steps, calls_by_number),
    case("more_by_number", Needs::Steps, more_by_number),
    case("waits_by_number", Needs::Steps, waits_by_number),
    case("other_names", Needs::Steps, other_names),
    case("dissolved_by_number", Needs::Steps, dissolved_by_number),
    case("asked_by_number", Needs::Processes, asked_by_number),
    case("numbers_handed_out", Needs::Processes, numbers_handed_out),
    case("fetched_from_itself", Needs::Processes, fetched_from_itself),
    case("fork_by_number", Needs::Processes, fork_by_number),
    case("printed_unseen", Needs::Steps, printed_unseen),
    case("asynchronous_io", Needs::Steps, asynchronous_io),
    case("polled_unseen", Needs::Steps, polled_unseen),
    case("beside_io_uring", Needs::Processes, beside_io_uring),
    case("sandboxed", Needs::Processes, |stage| {
        sandboxed(stage, false);
    }),
    case("sandboxed_beside_others", Needs::Processes, |stage| {
        sandboxed(stage, true);
    }),
    case(
        "sandboxed_with_a_set",
        Needs::Processes,
        sandboxed_with_a_set,
    ),
    blocking("spawned_later", Needs::Processes, |stage| {
        spawned(stage, false);
    }),
    blocking("spawned_fresh", Needs::Processes, |stage| {
        spawned(stage, true);
    }),
];

fn calls_by_number(stage: &mut Stage) {
    stage.connect();
    for _ in 0..4 {
        stage.a("write", |a| show::ret(sys::raw_write(a.fd, b"by number")));
        stage.b("hear", |b| b.hear(9));
        stage.b("send", |b| show::ret(sys::raw_send(b.fd, b"and back", 0)));
        stage.a("arrived", |a| a.arrived(8));
        stage.a("read", |a| {
            let mut out = [0; 4];
            let got = sys::raw_read(a.fd, &mut out);
            show::got(got, &out)
        });
        stage.a("recv", |a| {
            let mut out = [0; 9];
            let got = sys::raw_recv(a.fd, &mut out, libc::MSG_DONTWAIT);
            show::got(got, &out)
        });
    }
    stage.a("dup", |a| {
        let other = sys::fd_of(sys::raw_dup(a.fd));
        let closed = sys::raw_close(a.fd);
        a.hold(other);
        show::ok(closed)
    });
    stage.a("say", |a| a.say("by the duplicate"));
    stage.b("hear", |b| b.hear(16));
    stage.a("close", |a| {
        let closed = sys::raw_close(a.fd);
        a.hold(-1);
        show::ok(closed)
    });
    stage.b("end", |b| b.hear(1));
}

fn waits_by_number(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        let set = sys::fd_of(sys::epoll_create());
        a.more = vec![set];
        let wishes = libc::EPOLLIN | libc::EPOLLRDHUP;
        show::ok(sys::epoll_ctl(set, libc::EPOLL_CTL_ADD, a.fd, wishes, 99))
    });
    let waits = |a: &mut End| {
        let ms = i64::from(patience());
        format!(
            "{:?} {:?} {:?} {:?} {:?}",
            sys::raw_ppoll(a.fd, libc::POLLIN, ms),
            sys::raw_select(a.fd, ms, false),
            sys::raw_select(a.fd, ms, true),
            sys::raw_epoll_pwait(a.more[0], ms, false),
            sys::raw_epoll_pwait(a.more[0], ms, true),
        )
    };
    for _ in 0..4 {
        stage.a("nothing", |a| {
            format!(
                "{:?} {:?} {:?} {:?}",
                sys::raw_ppoll(a.fd, libc::POLLIN, 3),
                sys::raw_select(a.fd, 0, true),
                sys::raw_epoll_pwait(a.more[0], 3, false),
                sys::raw_epoll_pwait(a.more[0], 3, true),
            )
        });
        stage.b("say", |b| b.say("by number"));
        stage.a("waits", waits);
        stage.a("read", |a| a.hear(9));
        stage.a("option", |a| format!("{:?}", sys::raw_nodelay(a.fd, 1)));
        stage.a("say", |a| a.say("back"));
        stage.b("hear", |b| b.hear(4));
    }
    stage.b("close", End::close);
    stage.a("waits", waits);
    stage.a("end", |a| a.hear(1));
}

/// Names with two underscores under which glibc exports the same calls.
fn other_names(stage: &mut Stage) {
    stage.connect();
    for _ in 0..4 {
        stage.b("say", |b| b.say("an answer"));
        stage.a("calls", |a| {
            let mut out = [0; 9];
            let done = sys::by_other_names(a.fd, &mut out);
            let shown: Vec<String> = done.into_iter().map(show::ret).collect();
            format!("{} {}", shown.join(" "), show::data(&out))
        });
        stage.b("hear", |b| b.hear(28));
        stage.a("say", |a| a.say("seen"));
        stage.b("hear", |b| b.hear(4));
    }
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// A child made by number goes on with the connection, beside its parent and after it.
fn fork_by_number(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "talk",
        |a| {
            let pid = sys::raw_fork();
            if pid == Ok(0) {
                let good = talk(a, true) == "talked" && a.close() == "ok";
                sys::exit_now(i32::from(!good));
            }
            let left = sys::wait_for(pid);
            format!("{left} {}", talk(a, true))
        },
        |b| format!("{} {}", talk(b, false), talk(b, false)),
    );
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// Formatted output, which libc writes by itself.
fn printed_unseen(stage: &mut Stage) {
    stage.connect();
    for round in 0..3 {
        stage.a("say", |a| a.say("seen"));
        stage.a("print", |a| show::ret(sys::print_to(a.fd, round, 2.5)));
        stage.b("hear", |b| b.hear(4));
        stage.b("hear", |b| b.hear(20));
        stage.b("say", |b| b.say("answer"));
        stage.a("hear", |a| a.hear(6));
    }
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// POSIX's asynchronous I/O, which threads of libc do.
fn asynchronous_io(stage: &mut Stage) {
    stage.connect();
    for listed in [false, true, false] {
        stage.b("say", |b| b.say("to be read"));
        stage.a("arrived", |a| a.arrived(10));
        stage.a("read", |a| {
            let mut out = [0; 10];
            let got = sys::asynchronously(a.fd, &mut out, false, listed);
            show::got(got, &out)
        });
        stage.a("write", |a| {
            let mut bytes = *b"written";
            show::ret(sys::asynchronously(a.fd, &mut bytes, true, listed))
        });
        stage.b("hear", |b| b.hear(7));
        stage.a("say", |a| a.say("seen"));
        stage.b("hear", |b| b.hear(4));
    }
    stage.b("close", End::close);
    stage.a("end", |a| {
        let got = sys::asynchronously(a.fd, &mut [0; 4], false, false);
        show::got(got, &[])
    });
}

/// A blocking socket that is read only after a wait that the library does not see.
fn polled_unseen(stage: &mut Stage) {
    stage.connect_cold(Family::V4);
    for _ in 0..30 {
        stage.b("say", |b| b.say("hello"));
        stage.a("poll", |a| sys::poll_unseen(a.fd, patience()).to_string());
        stage.a("part", |a| a.recv(3, 0));
        stage.a("rest is there", |a| {
            sys::poll_unseen(a.fd, patience()).to_string()
        });
        stage.a("rest", |a| a.recv(9, 0));
        stage.a("nothing more", |a| sys::poll_unseen(a.fd, 0).to_string());
    }
}

/// Every other way of moving bytes, each after one that is seen by its name.
fn more_by_number(stage: &mut Stage) {
    stage.connect();
    type Send = fn(i32) -> sys::Ret;
    let sends: [Send; 5] = [
        |fd| sys::raw_sendto(fd, b"bytes"),
        |fd| sys::raw_vector2(fd, &mut b"bytes".to_vec(), 0, true),
        |fd| sys::raw_sendmmsg(fd, b"bytes"),
        |fd| sys::raw_sendfile(fd, sys::file_with(b"bytes"), 5),
        |fd| {
            let (read, write) = sys::pipe();
            sys::write(write, b"bytes")?;
            sys::raw_splice(read, fd, 5)
        },
    ];
    for send in sends {
        stage.a("say", |a| a.say("by name "));
        stage.a("by number", |a| show::ret(send(a.fd)));
        stage.b("hear", |b| b.hear(8));
        stage.b("hear", |b| b.hear(5));
    }
    type Recv = fn(i32, &mut [u8]) -> sys::Ret;
    fn through(fd: i32, out: &mut [u8], put: fn(i32, i32) -> sys::Ret) -> sys::Ret {
        let (read, write) = sys::pipe();
        put(fd, write)?;
        sys::read(read, out)
    }
    let recvs: [Recv; 5] = [
        |fd, out| {
            let (got, len) = sys::raw_recvfrom(fd, out);
            if len == 0 { got } else { Err(-1) }
        },
        |fd, out| sys::raw_vector2(fd, out, 0, false),
        sys::raw_recvmmsg,
        |fd, out| through(fd, out, |fd, write| sys::raw_splice(fd, write, 5)),
        |fd, out| through(fd, out, |fd, write| sys::raw_sendfile(write, fd, 5)),
    ];
    for recv in recvs {
        stage.b("say", |b| b.say("by name bytes"));
        stage.a("arrived", |a| a.arrived(13));
        stage.a("recv", |a| a.recv(8, 0));
        stage.a("by number", |a| {
            let mut out = [0; 5];
            let got = recv(a.fd, &mut out);
            show::got(got, &out)
        });
    }
}

/// Rounds of a dialogue.
fn talk(end: &mut End, first: bool) -> String {
    for round in 0..20 {
        let said = if first { end.say("ping") } else { end.hear(4) };
        let heard = if first { end.hear(4) } else { end.say("ping") };
        if said.contains("then") || heard.contains("then") {
            return format!("{round}: {said} {heard}");
        }
    }
    "talked".to_owned()
}

/// A socket is closed unseen, and its number names a file: what is written goes there.
fn numbers_handed_out(stage: &mut Stage) {
    for (label, make) in sys::MAKERS {
        stage.connect();
        stage.a(label, |a| {
            let closed = sys::close_unseen(a.fd);
            // Lower numbers may be free as well.
            let new = (0..8).map(|_| make()).find(|&fd| fd == a.fd || fd < 0);
            let new = new.unwrap_or(-1);
            let written = show::ret(sys::write(new, b"x"));
            let at = show::ret(sys::lseek(new, 0, libc::SEEK_CUR));
            format!("{} {written} {at} {}", show::ok(closed), a.close())
        });
        stage.b("close", End::close);
    }
}

/// pidfd_getfd of the program's own socket gives a duplicate.
fn fetched_from_itself(stage: &mut Stage) {
    stage.connect();
    stage.a("fetch", |a| {
        let fetched = sys::fetch_from_itself(a.fd);
        if fetched.is_ok() {
            a.more = vec![a.fd];
            a.hold(sys::fd_of(fetched));
        }
        show::ok(fetched)
    });
    stage.both("talk", |a| talk(a, true), |b| talk(b, false));
    stage.a("close the other", |a| {
        a.more
            .pop()
            .map_or_else(String::new, |old| show::ok(sys::close(old)))
    });
    stage.both("talk", |a| talk(a, true), |b| talk(b, false));
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

fn beside_io_uring(stage: &mut Stage) {
    stage.connect();
    stage.both("talk", |a| talk(a, true), |b| talk(b, false));
    stage.both(
        "set up",
        |a| {
            sys::io_uring_setup();
            talk(a, true)
        },
        |b| talk(b, false),
    );
}

/// A connection is ended by a connect to nowhere, by number.
fn dissolved_by_number(stage: &mut Stage) {
    stage.connect();
    stage.a("dissolve", |a| show::ret(sys::raw_dissolve(a.fd)));
    stage.b("reset", |b| {
        b.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP | libc::POLLERR | libc::POLLHUP)
    });
    stage.b("recv", |b| b.recv(1, 0));
    stage.a("send", |a| a.send(b"x", 0));
}

/// The kernel's older asynchronous I/O tells of the connection.
fn asked_by_number(stage: &mut Stage) {
    stage.connect();
    for _ in 0..2 {
        stage.b("say", |b| b.say("hello"));
        // Or else Nagle's algorithm decides whether the kernel is asked before.
        stage.a("arrived", |a| a.arrived(5));
        stage.a("tells", |a| format!("{:?}", sys::polled_by_number(a.fd)));
        stage.a("hear", |a| a.hear(5));
        stage.a("say", |a| a.say("world"));
        stage.b("hear", |b| b.hear(5));
    }
}

/// What a careful program allows itself: its own calls, and nothing that a library might like.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_poll,
    libc::SYS_pselect6,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// A child shuts itself into a filter and goes on with the connection, alone or beside its parent.
fn sandboxed(stage: &mut Stage, beside: bool) {
    stage.connect();
    stage.both(
        "talk",
        |a| {
            let (go, tell) = sys::pipe();
            let pid = sys::fork();
            if pid == Ok(0) {
                let _ = sys::read(go, &mut [0]);
                let first = talk(a, true);
                let confined = sys::allow_only(ALLOWED);
                let second = talk(a, true);
                let good = first == "talked" && confined == Ok(0) && second == "talked";
                let closed = sys::close(a.fd) == Ok(0);
                sys::exit_now(i32::from(!good) + 2 * i32::from(!closed));
            }
            let closed = if beside { String::new() } else { a.close() };
            let _ = sys::write(tell, b"x");
            format!("{closed} {}", sys::wait_for(pid))
        },
        |b| format!("{} {}", talk(b, false), talk(b, false)),
    );
    if beside {
        stage.both("go on", |a| talk(a, true), |b| talk(b, false));
    } else {
        stage.b("end", |b| b.hear(1));
    }
}

fn sandboxed_with_a_set(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "talk",
        |a| {
            let pid = sys::fork();
            if pid == Ok(0) {
                let set = sys::fd_of(sys::epoll_create());
                let _ = sys::epoll_ctl(set, libc::EPOLL_CTL_ADD, a.fd, libc::EPOLLIN, 77);
                let mut echo = || {
                    let told = sys::epoll_wait(set, 4, -1);
                    let heard = a.hear(4);
                    let said = a.say("pong");
                    told.is_ok_and(|told| told == [(1, 77)])
                        && heard == "\"ping\""
                        && said == "sent 4"
                };
                let mut good = (0..10).all(|_| echo());
                good &= sys::allow_only(ALLOWED) == Ok(0);
                good &= (0..10).all(|_| echo());
                sys::exit_now(i32::from(!good));
            }
            format!("{} {}", a.close(), sys::wait_for(pid))
        },
        |b| talk(b, true),
    );
    stage.b("end", |b| b.hear(1));
}

/// Another program gets the connection as its standard input and output, by posix_spawn.
fn spawned(stage: &mut Stage, fresh: bool) {
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    stage.both(
        "cat",
        |a| {
            for round in 0..30 {
                let said = a.say("through the cat");
                let heard = a.hear(15);
                if said != "sent 15" || heard != "\"through the cat\"" {
                    return format!("{round} rounds, then {said}, {heard}");
                }
            }
            let shut = a.shutdown(libc::SHUT_WR);
            format!("{shut} {}", a.hear(1))
        },
        |b| {
            // SAFETY: both are open, and nobody else closes them.
            let (input, output) = unsafe {
                let second = sys::fd_of(sys::dup(b.fd));
                (OwnedFd::from_raw_fd(b.fd), OwnedFd::from_raw_fd(second))
            };
            b.hold(-1);
            let mut cat = Command::new("/bin/cat");
            cat.stdin(Stdio::from(input)).stdout(Stdio::from(output));
            let child = cat.spawn();
            drop(cat);
            match child.and_then(|mut child| child.wait()) {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            }
        },
    );
}
