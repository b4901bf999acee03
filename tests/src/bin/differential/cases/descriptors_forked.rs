//! Descriptors in forked children: shared, closed by the hundred.

use libc::{MSG_DONTWAIT, POLLOUT};

use super::descriptors::{FIN, child};
use super::{Case, Needs, case};
use crate::end::{End, Side, settle};
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case(
        "fork_child_continues",
        Needs::Processes,
        fork_child_continues,
    ),
    case("fork_child_leaves", Needs::Processes, fork_child_leaves),
    case(
        "fork_child_waits_beside",
        Needs::Processes,
        fork_child_waits_beside,
    ),
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
    case("daemonize_by_loop", Needs::Processes, |stage| {
        daemonize(stage, CloseAll::Loop);
    }),
    case("daemonize_by_range", Needs::Processes, |stage| {
        daemonize(stage, CloseAll::Range);
    }),
    case("daemonize_by_closefrom", Needs::Processes, |stage| {
        daemonize(stage, CloseAll::From);
    }),
];

fn let_it_sleep(ms: u64) {
    std::thread::sleep(core::time::Duration::from_millis(ms));
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
            // With a set of its own: in one set the child would change what the parent waits for.
            let mut own = a.another();
            let pid = child(|| own.drink(&pattern, BYTES, 1) == format!("drank {BYTES}"));
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

/// A child waits for another connection again and again while its parent sleeps, and is gone when bytes come for the parent.
fn fork_child_waits_beside(stage: &mut Stage) {
    stage.connect();
    stage.set_aside();
    stage.connect();
    for polls in [true, false] {
        stage.both(
            "hear",
            |a| {
                let other = a.aside();
                let pid = child(|| {
                    let set = fd_of(sys::epoll_create());
                    let added = sys::epoll_ctl(set, libc::EPOLL_CTL_ADD, other, libc::EPOLLIN, 1);
                    for _ in 0..8 {
                        if polls {
                            let _ = sys::poll(&[(other, libc::POLLIN)], 5);
                        } else {
                            let _ = sys::epoll_wait(set, 1, 5);
                        }
                    }
                    added == Ok(0)
                });
                format!("{} {}", a.hear(5), sys::wait_for(pid))
            },
            |b| {
                std::thread::sleep(core::time::Duration::from_millis(150));
                b.say("hello")
            },
        );
    }
    stage.a("close", End::close);
    stage.b("end", |b| b.hear(1));
}
