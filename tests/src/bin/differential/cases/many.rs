//! Servers of several processes: a port or a listening socket that all of them accept from, a daemon made by
//! libc, and connections that exec closes.

use core::net::SocketAddr;

use super::descriptors::{child, dialogue};
use super::{Case, Needs, case};
use crate::end::{End, Side};
use crate::stage::{Family, Stage, target};
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("port_of_several_processes", Needs::Processes, |stage| {
        shared(stage, Shared::Port);
    }),
    case("listener_of_several_processes", Needs::Processes, |stage| {
        shared(stage, Shared::Listener);
    }),
    case("daemon_by_libc", Needs::Processes, daemon_by_libc),
    case("closed_by_exec", Needs::Processes, |stage| {
        closed_by_exec(stage, false);
    }),
    case("closed_by_exec_unread", Needs::Processes, |stage| {
        closed_by_exec(stage, true);
    }),
    case("closed_by_execveat", Needs::Processes, closed_by_execveat),
];

/// What the processes of a server have in common.
#[derive(Clone, Copy, PartialEq)]
enum Shared {
    /// A port: each has a listening socket of its own (SO_REUSEPORT).
    Port,
    /// One listening socket, from before they were forked.
    Listener,
}

const SERVERS: usize = 3;
const CLIENTS: usize = 24;

fn shared(stage: &mut Stage, shared: Shared) {
    stage.connect();
    let mut first = -1;
    let port = stage.share(Side::B, |_| {
        first = reused(target(Family::V4, 0));
        let port = sys::name(first, false).map_or(0, |own| own.port());
        if shared == Shared::Listener {
            let _ = sys::listen(first, 64);
        }
        u64::from(port)
    });
    let address = target(Family::V4, u16::try_from(port).unwrap_or(0));
    let mut servers = Vec::new();
    stage.b("servers", |b| {
        let connection = b.fd;
        let (started, tell) = sys::pipe();
        for _ in 0..SERVERS {
            servers.push(child(|| {
                let _ = sys::close(connection);
                let listener = if shared == Shared::Port {
                    let own = reused(address);
                    let _ = sys::listen(own, 64);
                    own
                } else {
                    first
                };
                let _ = sys::write(tell, b"x");
                serve(b, listener)
            }));
        }
        let mut up = [0; SERVERS];
        let counted = (0..SERVERS).filter(|&at| sys::read(started, &mut up[at..=at]) == Ok(1));
        counted.count().to_string()
    });
    stage.a("clients", |a| {
        let connection = a.fd;
        let mut good = 0;
        for client in 0..CLIENTS {
            a.hold(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
            let connected = sys::connect(a.fd, address) == Ok(0);
            let talked = (0..10 + client)
                .all(|_| a.say("hello from a client") == "sent 19" && a.hear(19).len() == 21);
            good += usize::from(connected && talked && a.close() == "ok");
        }
        a.hold(connection);
        good.to_string()
    });
    dialogue(stage);
    stage.b("end", |b| {
        let left = servers.drain(..).map(|pid| {
            let _ = sys::kill(pid);
            sys::wait_for(pid)
        });
        let left: Vec<String> = left.collect();
        let _ = sys::close(first);
        format!("{} {}", left.join(" "), b.say("bye"))
    });
    stage.a("hear", |a| a.hear(3));
}

/// A socket bound to an address that others may bind as well.
fn reused(address: SocketAddr) -> i32 {
    let fd = fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
    let _ = sys::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
    let _ = sys::bind(fd, address);
    fd
}

/// Echoes to one client after the other, until it is killed.
fn serve(b: &mut End, listener: i32) -> bool {
    loop {
        b.hold(fd_of(sys::accept4(listener, 0)));
        let mut buffer = [0; 100];
        while let Ok(got) = sys::recv(b.fd, &mut buffer, 0) {
            let got = usize::try_from(got).unwrap_or(0);
            if got == 0 {
                break;
            }
            let _ = sys::send(b.fd, buffer.get(..got).unwrap_or_default(), 0);
        }
        let _ = b.close();
    }
}

/// daemon(3) in the middle of a connection: the parent is gone, the child goes on with it.
fn daemon_by_libc(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "daemon",
        |a| {
            let (over, tell) = sys::pipe();
            let pid = child(|| {
                let _ = sys::close(over);
                let made = sys::daemon();
                let good = (0..40).all(|_| a.say("ping") == "sent 4" && a.hear(4) == "\"pong\"");
                let closed = a.close();
                let word: &[u8] = if made == Ok(0) && good && closed == "ok" {
                    b"y"
                } else {
                    b"n"
                };
                sys::write(tell, word) == Ok(1)
            });
            let _ = sys::close(tell);
            let closed = a.close();
            let mut word = [0];
            let told = sys::read(over, &mut word);
            format!("{closed} {} {}", sys::wait_for(pid), show::got(told, &word))
        },
        |b| {
            let good = (0..40).filter(|_| b.hear(4) == "\"ping\"" && b.say("pong") == "sent 4");
            format!("{} {}", good.count(), b.hear(1))
        },
    );
}

/// The last holder of a connection becomes a program that does not get it.
fn closed_by_exec(stage: &mut Stage, unread: bool) {
    stage.connect();
    if unread {
        stage.b("say", |b| b.say("never read"));
        stage.a("arrived", |a| a.arrived(10));
    }
    stage.a("exec", |a| {
        let _ = sys::fcntl(a.fd, libc::F_SETFD, libc::FD_CLOEXEC);
        let (go, tell) = sys::pipe();
        let pid = child(|| {
            let _ = sys::read(go, &mut [0]);
            let _ = a.say("last words");
            sys::exec(c"/bin/sleep", c"0.2")
        });
        let closed = a.close();
        let _ = sys::write(tell, b"x");
        format!("{closed} {}", sys::wait_for(pid))
    });
    stage.b("hear", |b| b.hear(11));
    stage.b("again", |b| b.hear(1));
}

/// The same by execveat, beside another holder, who goes on.
fn closed_by_execveat(stage: &mut Stage) {
    stage.connect();
    stage.a("exec", |a| {
        let _ = sys::fcntl(a.fd, libc::F_SETFD, libc::FD_CLOEXEC);
        let pid = child(|| sys::exec_at(c"/bin/sleep", c"0.2"));
        sys::wait_for(pid)
    });
    dialogue(stage);
    stage.a("last exec", |a| {
        let pid = child(|| {
            let _ = a.say("last words");
            sys::exec_at(c"/bin/sleep", c"0")
        });
        let closed = a.close();
        format!("{closed} {}", sys::wait_for(pid))
    });
    stage.b("hear", |b| b.hear(11));
}
