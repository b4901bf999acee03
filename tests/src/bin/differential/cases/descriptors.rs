//! Descriptors: duplicated, replaced, inherited, passed on, closed by the hundred.

use libc::{F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, MSG_DONTWAIT, POLLIN, POLLOUT, POLLRDHUP, SHUT_WR};

use super::{Case, Needs, blocking, case};
use crate::end::{End, Side, settle};
use crate::pattern::Pattern;
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
    case(
        "fork_child_continues",
        Needs::Processes,
        fork_child_continues,
    ),
    case("fork_child_leaves", Needs::Processes, fork_child_leaves),
    case("fork_both_write", Needs::Processes, fork_both_write),
    case(
        "fork_reader_and_writer",
        Needs::Processes,
        fork_reader_and_writer,
    ),
    case("fork_server", Needs::Processes, |stage| {
        fork_server(stage, false);
    }),
    case("fork_server_slow", Needs::Processes, |stage| {
        fork_server(stage, true);
    }),
    blocking("inetd", Needs::Processes, inetd),
    blocking("exec_later", Needs::Processes, exec_later),
    case("exec_fails", Needs::Processes, exec_fails),
    case("helper_closes_by_exec", Needs::Processes, |stage| {
        helper(stage, Helper::ClosesByExec);
    }),
    case("helper_keeps_open", Needs::Processes, |stage| {
        helper(stage, Helper::KeepsOpen);
    }),
    case("helper_leaves", Needs::Processes, |stage| {
        helper(stage, Helper::Leaves);
    }),
    case("helper_is_killed", Needs::Processes, |stage| {
        helper(stage, Helper::IsKilled);
    }),
    case("left_to_a_stranger", Needs::Processes, left_to_a_stranger),
    case("pass_fresh_to_child", Needs::Processes, |stage| {
        pass_to_child(stage, true);
    }),
    case("pass_later_to_child", Needs::Processes, |stage| {
        pass_to_child(stage, false);
    }),
    case("pass_fresh_to_itself", Needs::Steps, |stage| {
        pass_to_itself(stage, true);
    }),
    case("pass_later_to_itself", Needs::Steps, |stage| {
        pass_to_itself(stage, false);
    }),
    case("daemonize_by_loop", Needs::Processes, |stage| {
        daemonize(stage, CloseAll::Loop);
    }),
    case("daemonize_by_range", Needs::Processes, |stage| {
        daemonize(stage, CloseAll::Range);
    }),
    case("daemonize_by_closefrom", Needs::Processes, |stage| {
        daemonize(stage, CloseAll::From);
    }),
    case("stdio_fresh", Needs::Steps, |stage| stdio(stage, true)),
    case("stdio_later", Needs::Steps, |stage| stdio(stage, false)),
];

const FIN: i16 = POLLIN | POLLOUT | POLLRDHUP;

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

fn let_it_sleep(ms: u64) {
    std::thread::sleep(core::time::Duration::from_millis(ms));
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

fn fork_child_continues(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "exchange",
        |a| {
            let pid = child(|| {
                let said = a.say("from the child");
                let heard = a.hear(12);
                said == "sent 14" && heard == "\"to the child\""
            });
            let closed = a.close();
            format!("{closed} {}", sys::wait_for(pid))
        },
        |b| {
            let heard = b.hear(14);
            let said = b.say("to the child");
            format!("{heard} {said} {}", b.hear(1))
        },
    );
}

fn fork_child_leaves(stage: &mut Stage) {
    stage.connect();
    stage.a("child closes", |a| {
        let fd = a.fd;
        sys::wait_for(child(|| sys::close(fd) == Ok(0)))
    });
    stage.a("child exits", |_| sys::wait_for(child(|| true)));
    stage.b("no end", |b| b.ready(POLLOUT));
    for _ in 0..20 {
        stage.a("say", |a| a.say("hello"));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("hear", |a| a.hear(5));
    }
    stage.a("close", End::close);
    stage.b("end", |b| b.ready(FIN));
}

fn fork_both_write(stage: &mut Stage) {
    const EACH: usize = 2000;
    stage.connect();
    stage.both(
        "write",
        |a| {
            let fd = a.fd;
            let write = |byte| (0..EACH).all(|_| sys::send(fd, &[byte], 0) == Ok(1));
            let pid = child(|| write(b'c'));
            let wrote = write(b'p');
            let waited = sys::wait_for(pid);
            format!("{wrote} {waited} {}", a.close())
        },
        |b| {
            let (bytes, ended) = b.recv_all(3 * EACH);
            let count = |byte| bytes.iter().filter(|b| **b == byte).count();
            format!("{} {} {} {ended:?}", bytes.len(), count(b'p'), count(b'c'))
        },
    );
}

fn fork_reader_and_writer(stage: &mut Stage) {
    const BYTES: usize = 2_000_000;
    let pattern = Pattern::new(31);
    stage.connect();
    stage.both(
        "echo",
        |a| {
            let pid = child(|| a.drink(&pattern, BYTES, 1) == format!("drank {BYTES}"));
            let poured = a.pour(&pattern, BYTES, 2);
            format!("{poured} {}", sys::wait_for(pid))
        },
        |b| {
            let mut done = 0;
            let mut buffer = vec![0; 50_000];
            while done < BYTES {
                match b.recv_some(&mut buffer) {
                    Ok(got) if got > 0 => {
                        let got = usize::try_from(got).unwrap_or(0);
                        if b.send_all(&buffer[..got]).is_err() {
                            break;
                        }
                        done += got;
                    }
                    other => return format!("{done} then {}", show::ret(other)),
                }
            }
            format!("echoed {done}")
        },
    );
}

/// `slow`: the far end has long registered when the server forks.
fn fork_server(stage: &mut Stage, slow: bool) {
    const CLIENTS: usize = 3;
    // Enough for the child to register, and to see its connection paired.
    const ROUNDS: usize = 500;
    let listener = stage.listen(Side::B);
    stage.both(
        "serve",
        |a| {
            let mut shown = String::new();
            for client in 0..CLIENTS {
                let fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
                let connected = sys::connect(fd, listener.address);
                a.hold(fd);
                let mut good = 0;
                for _ in 0..ROUNDS {
                    let said = a.say("hello from a client");
                    good +=
                        usize::from(a.hear(19) == "\"hello from a client\"" && said == "sent 19");
                }
                shown += &format!("{client}: {} {good} {}; ", show::ret(connected), a.close());
            }
            shown
        },
        |b| {
            let mut children = Vec::new();
            for _ in 0..CLIENTS {
                b.hold(fd_of(sys::accept4(listener.fd, 0)));
                if slow {
                    let_it_sleep(30);
                }
                children.push(child(|| {
                    let _ = sys::close(listener.fd);
                    let mut buffer = [0; 100];
                    while let Ok(got) = sys::recv(b.fd, &mut buffer, 0) {
                        let got = usize::try_from(got).unwrap_or(0);
                        if got == 0 {
                            return true;
                        }
                        let _ = sys::send(b.fd, &buffer[..got], 0);
                    }
                    false
                }));
                let _ = b.close();
            }
            children
                .into_iter()
                .map(sys::wait_for)
                .collect::<Vec<_>>()
                .join(" ")
        },
    );
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

/// Accept, fork, exec: the connection becomes standard input and output of another program.
fn inetd(stage: &mut Stage) {
    stage.connect_cold(Family::V4);
    stage.both("cat", talk_to_cat, |b| {
        let fd = b.fd;
        let pid = child(|| sys::exec_cat(fd));
        let closed = b.close();
        format!("{closed} {}", sys::wait_for(pid))
    });
}

/// The same after a while, with nothing under way.
fn exec_later(stage: &mut Stage) {
    stage.connect();
    let mut pid = Err(-1);
    stage.b("exec", |b| {
        let fd = b.fd;
        let (go, tell) = sys::pipe();
        // Closed by exec, which its reader learns as the end.
        let (done, held) = sys::pipe();
        pid = child(|| {
            let _ = sys::close(done);
            sys::read(go, &mut [0]) == Ok(1) && sys::exec_cat(fd)
        });
        let _ = sys::close(held);
        let closed = b.close();
        let _ = sys::write(tell, b"x");
        format!("{closed} {}", show::ret(sys::read(done, &mut [0])))
    });
    stage.a("cat", talk_to_cat);
    stage.b("left", |_| sys::wait_for(pid));
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

/// An exec that fails changes nothing.
fn exec_fails(stage: &mut Stage) {
    stage.connect();
    stage.a("exec", |a| {
        let _ = sys::fcntl(a.fd, libc::F_SETFD, libc::FD_CLOEXEC);
        sys::exec(c"/nonexistent", c"x").to_string()
    });
    dialogue(stage);
    stage.a("keep and exec", |a| {
        let _ = sys::fcntl(a.fd, libc::F_SETFD, 0);
        sys::exec(c"/nonexistent", c"x").to_string()
    });
    dialogue(stage);
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// What a child does with a connection that it inherits and does not use.
#[derive(Clone, Copy, PartialEq)]
enum Helper {
    ClosesByExec,
    KeepsOpen,
    Leaves,
    IsKilled,
}

/// A program that forks a helper goes on with its young connection as if it were alone.
fn helper(stage: &mut Stage, helper: Helper) {
    stage.connect_cold(Family::V4);
    stage.a("helper", |a| {
        if helper == Helper::ClosesByExec {
            let _ = sys::fcntl(a.fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        let (started, tell) = sys::pipe();
        let pid = child(|| match helper {
            Helper::ClosesByExec => sys::exec(c"/bin/sleep", c"0"),
            Helper::KeepsOpen => sys::exec(c"/bin/sleep", c"0.3"),
            Helper::Leaves => true,
            Helper::IsKilled => {
                let _ = sys::write(tell, b"x");
                std::thread::sleep(core::time::Duration::from_secs(60));
                false
            }
        });
        let _ = sys::close(tell);
        // Killed only once it runs.
        let _ = sys::read(started, &mut [0]);
        let _ = sys::close(started);
        match helper {
            Helper::ClosesByExec | Helper::Leaves => sys::wait_for(pid),
            Helper::KeepsOpen => "goes on".to_owned(),
            Helper::IsKilled => format!("{} {}", show::ret(sys::kill(pid)), sys::wait_for(pid)),
        }
    });
    for _ in 0..3 {
        dialogue(stage);
    }
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}

/// The last process with the library closes a connection that another program still has.
fn left_to_a_stranger(stage: &mut Stage) {
    stage.connect();
    stage.a("helper", |a| {
        let _ = sys::fcntl(a.fd, libc::F_SETFD, 0);
        // Longer than the rest takes.
        let _ = child(|| sys::exec(c"/bin/sleep", c"2"));
        std::thread::sleep(core::time::Duration::from_millis(100));
        a.say("last words")
    });
    stage.a("close", End::close);
    stage.b("hear", |b| b.hear(10));
    stage.b("not yet", |b| b.recv(1, MSG_DONTWAIT));
    stage.b("ready", |b| b.ready(POLLOUT));
    stage.b("say", |b| b.say("to nobody"));
}

fn pass_to_child(stage: &mut Stage, fresh: bool) {
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    stage.both(
        "exchange",
        |a| {
            let (here, there) = sys::socketpair();
            let fd = a.fd;
            // The child must not hold what it is to receive.
            let pid = child(|| {
                let _ = sys::close(fd);
                let _ = sys::write(there, b"x");
                a.hold(sys::recv_fd(there));
                let said = a.say("from the child");
                said == "sent 14" && a.hear(12) == "\"to the child\""
            });
            let _ = sys::read(here, &mut [0]);
            let passed = sys::send_fds(here, b"x", &[fd]);
            let closed = a.close();
            format!("{} {closed} {}", show::ret(passed), sys::wait_for(pid))
        },
        |b| {
            let heard = b.hear(14);
            let said = b.say("to the child");
            format!("{heard} {said} {}", b.hear(1))
        },
    );
}

fn pass_to_itself(stage: &mut Stage, fresh: bool) {
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    stage.a("pass", |a| {
        let (here, there) = sys::socketpair();
        let passed = sys::send_fds(here, b"x", &[a.fd]);
        let new = sys::recv_fd(there);
        let closed = a.close();
        a.hold(new);
        format!("{} {closed} {}", show::ret(passed), new >= 0)
    });
    for _ in 0..20 {
        stage.a("say", |a| a.say("hello"));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("world"));
        stage.a("hear", |a| a.hear(5));
    }
    stage.a("close", End::close);
    stage.b("end", |b| b.ready(FIN));
}

/// How a daemon closes everything it has inherited.
#[derive(Clone, Copy)]
enum CloseAll {
    Loop,
    Range,
    From,
}

fn daemonize(stage: &mut Stage, how: CloseAll) {
    stage.connect();
    let listener = stage.listen(Side::B);
    stage.both(
        "daemon",
        |a| {
            let pid = child(|| {
                a.leave_set();
                match how {
                    CloseAll::Loop => (3..1024).for_each(|fd| {
                        let _ = sys::close(fd);
                    }),
                    CloseAll::Range => {
                        let _ = sys::close_range(3, u32::MAX, 0);
                    }
                    CloseAll::From => sys::closefrom(3),
                }
                a.hold(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
                let connected = sys::connect(a.fd, listener.address);
                let good = (0..60).all(|_| a.say("hello") == "sent 5" && a.hear(5) == "\"hello\"");
                a.fd == 3 && connected == Ok(0) && good
            });
            sys::wait_for(pid)
        },
        |b| {
            let first = b.fd;
            b.hold(fd_of(sys::accept4(listener.fd, 0)));
            let mut echoed = 0;
            while b.hear(5) == "\"hello\"" {
                let _ = b.say("hello");
                echoed += 1;
            }
            let _ = sys::close(b.fd);
            b.hold(first);
            format!("echoed {echoed}")
        },
    );
    stage.b("the first is still there", |b| settle(b.fd, FIN, POLLOUT));
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
    stage.b("nothing more", |b| b.recv(5, MSG_DONTWAIT));
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
