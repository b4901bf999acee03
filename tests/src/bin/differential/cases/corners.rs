//! Corners that random sequences found: each once differed from the kernel.

use libc::{EPOLL_CTL_ADD, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, POLLIN, POLLOUT, POLLRDHUP};
use libc::{MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, SHUT_RD, SHUT_RDWR};

use super::descriptors::child;
use super::{Case, Needs, blocking, case};
use crate::end::End;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case(
        "recvmmsg_tells_the_error_first",
        Needs::Steps,
        recvmmsg_tells_the_error_first,
    ),
    case(
        "reset_after_both_are_shut",
        Needs::Steps,
        reset_after_both_are_shut,
    ),
    case("reset_is_told_once", Needs::Steps, reset_is_told_once),
    case("peek_and_trunc", Needs::Steps, peek_and_trunc),
    case("peek_for_more", Needs::Steps, peek_for_more),
    blocking("peek_below_the_mark", Needs::Both, peek_below_the_mark),
    blocking(
        "timeouts_beyond_bounds",
        Needs::Both,
        timeouts_beyond_bounds,
    ),
    case("empty_recv_at_the_end", Needs::Steps, empty_recv_at_the_end),
    case(
        "epoll_after_own_shutdown",
        Needs::Steps,
        epoll_after_own_shutdown,
    ),
    case("edge_for_space_only", Needs::Steps, edge_for_space_only),
    case(
        "fork_child_exits_at_once",
        Needs::Processes,
        fork_child_exits_at_once,
    ),
    case("exit_closes", Needs::Processes, exit_closes),
    case(
        "exit_with_bytes_unread",
        Needs::Processes,
        exit_with_bytes_unread,
    ),
    case("killed_closes", Needs::Processes, killed_closes),
    case(
        "killed_with_bytes_unread",
        Needs::Processes,
        killed_with_bytes_unread,
    ),
    case(
        "killed_while_the_far_end_sends",
        Needs::Processes,
        killed_while_the_far_end_sends,
    ),
    case("shutdown_in_child", Needs::Processes, shutdown_in_child),
];

const FIN: i16 = POLLIN | POLLOUT | POLLRDHUP;

/// What poll says of a reset connection, until the error is fetched.
pub(super) const RESET: i16 = FIN | libc::POLLERR | libc::POLLHUP;

fn recvmmsg(end: &End) -> String {
    let (mut one, mut two) = ([0; 4], [0; 4]);
    let (ret, lens) = sys::recvmmsg(end.fd, &mut [&mut one, &mut two], MSG_DONTWAIT, None);
    format!("{} {lens:?}", show::ret(ret))
}

fn recvmmsg_tells_the_error_first(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("unread"));
    stage.a("say", |a| a.say("more"));
    stage.a("arrived", |a| a.arrived(6));
    stage.b("close", End::close);
    stage.a("reset", |a| a.ready(RESET));
    stage.a("recvmmsg", |a| recvmmsg(a));
    stage.a("again", |a| recvmmsg(a));
    stage.a("at the end", |a| recvmmsg(a));
}

/// What comes to an end that has shut both directions is answered with RST.
fn reset_after_both_are_shut(stage: &mut Stage) {
    stage.connect();
    stage.a("shutdown", |a| a.shutdown(SHUT_RDWR));
    stage.b("end", |b| b.ready(FIN));
    stage.b("say", |b| b.say("to nobody"));
    stage.b("reset", |b| b.ready(RESET));
    stage.a("recv", |a| a.recv(9, 0));
    stage.a("again", |a| a.recv(9, 0));
    stage.b("recv", |b| b.recv(9, 0));
}

/// With bytes unread at both ends.
fn reset_is_told_once(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("unread"));
    stage.b("say", |b| b.say("unread as well"));
    stage.b("shutdown", |b| b.shutdown(SHUT_RDWR));
    stage.a("say", |a| a.say("to nobody"));
    stage.b("reset", |b| b.ready(RESET));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("poll", |b| show::bits(sys::poll(&[(b.fd, FIN)], 0).1[0]));
    stage.b("SO_ERROR", |b| b.so_error());
    stage.b("hear", |b| b.hear(20));
}

fn peek_and_trunc(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("look", |a| {
        let mut out = [b'?'; 9];
        let got = sys::recv(a.fd, &mut out, MSG_PEEK | MSG_TRUNC);
        format!("{} {}", show::ret(got), show::data(&out))
    });
    stage.a("hear", |a| a.hear(5));
}

/// A look that wants more than there is waits; if it must not or cannot, it gets what there is.
fn peek_for_more(stage: &mut Stage) {
    const ALL: i32 = MSG_PEEK | MSG_WAITALL;
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("not waiting", |a| a.recv(9, ALL | MSG_DONTWAIT));
    stage.a("timeout", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 20))
    });
    stage.a("times out", |a| a.recv(9, ALL));
    stage.a("no timeout", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 0))
    });
    stage.a("shutdown", |a| a.shutdown(SHUT_RD));
    stage.a("nothing will come", |a| a.recv(9, ALL));
    stage.a("hear", |a| a.hear(5));
}

/// recv of no bytes tells of an error, and succeeds after a wait in vain.
fn empty_recv_at_the_end(stage: &mut Stage) {
    stage.connect();
    stage.a("timeout", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 20))
    });
    stage.a("in vain", |a| a.recv_once(0, 0));
    stage.a("not waiting", |a| a.recv(0, MSG_DONTWAIT));
    stage.a("say", |a| a.say("unread"));
    stage.b("arrived", |b| b.arrived(6));
    stage.b("close", End::close);
    stage.a("reset", |a| a.ready(RESET));
    stage.a("error", |a| a.recv(0, 0));
    stage.a("end", |a| a.recv(0, 0));
}

fn set_with(end: &mut End, events: i32) -> String {
    end.epfd = fd_of(sys::epoll_create());
    show::ret(sys::epoll_ctl(end.epfd, EPOLL_CTL_ADD, end.fd, events, 1))
}

fn wait(end: &End) -> String {
    show::events(&sys::epoll_wait(end.epfd, 4, 0))
}

/// A set that is made after the shutdown knows of it; an edge is reported once.
fn epoll_after_own_shutdown(stage: &mut Stage) {
    for how in [SHUT_RD, SHUT_RDWR] {
        for events in [EPOLLOUT | EPOLLRDHUP, EPOLLIN, EPOLLET] {
            stage.connect();
            stage.a("shutdown", |a| a.shutdown(how));
            stage.a("state", |a| a.state_after_fin());
            stage.a("set", |a| set_with(a, events));
            stage.a("wait", |a| wait(a));
            stage.a("again", |a| wait(a));
            stage.a("close", |a| {
                let _ = sys::close(a.epfd);
                a.close()
            });
            stage.b("close", End::close);
        }
    }
}

/// Arriving bytes are no edge for who asked for space.
fn edge_for_space_only(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| set_with(a, EPOLLOUT | EPOLLET));
    stage.a("wait", |a| wait(a));
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("nothing", |a| wait(a));
    stage.b("close", End::close);
    stage.a("end", |a| a.ready(FIN));
    stage.a("an end is one", |a| wait(a));
}

/// A child that ends without destructors does not hold the connection any more.
fn fork_child_exits_at_once(stage: &mut Stage) {
    stage.connect();
    stage.a("child", |_| sys::wait_for(child(|| true)));
    stage.a("close", End::close);
    stage.b("not a byte", |b| b.hear(1));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("reset", |b| b.ready(FIN | libc::POLLERR | libc::POLLHUP));
    stage.b("send again", |b| b.send(b"x", 0));
}

/// The last holder exits: a far end that never waits learns of it all the same.
fn exit_closes(stage: &mut Stage) {
    for at_once in [false, true] {
        stage.connect();
        stage.a("child", |a| {
            let (end, held) = sys::pipe();
            let pid = sys::fork();
            if pid == Ok(0) {
                let _ = (sys::close(held), sys::read(end, &mut [0]));
                if at_once {
                    sys::exit_now(0);
                }
                sys::exit(0);
            }
            let closed = a.close();
            let _ = (sys::close(end), sys::close(held));
            format!("{closed} {}", sys::wait_for(pid))
        });
        stage.b("recv", |b| b.recv(5, MSG_DONTWAIT));
        stage.b("send", |b| b.send(b"x", 0));
        stage.b("reset", |b| b.ready(FIN | libc::POLLERR | libc::POLLHUP));
        stage.b("send again", |b| b.send(b"x", 0));
        stage.b("close", End::close);
    }
}

fn exit_with_bytes_unread(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("unread"));
    stage.a("child", |a| {
        let pid = sys::fork();
        if pid == Ok(0) {
            sys::exit(0);
        }
        let waited = sys::wait_for(pid);
        let arrived = a.arrived(6);
        let pid = child(|| true);
        let closed = a.close();
        format!("{waited} {arrived} {closed} {}", sys::wait_for(pid))
    });
    stage.b("reset", |b| b.ready(RESET));
    stage.b("recv", |b| b.recv(5, 0));
}

/// A child that only holds the connection.
fn holder() -> sys::Ret {
    let (end, held) = sys::pipe();
    let pid = sys::fork();
    if pid == Ok(0) {
        // Nobody ever writes.
        let _ = sys::read(end, &mut [0]);
        sys::exit_now(0);
    }
    let _ = (sys::close(end), sys::close(held));
    pid
}

/// Leaves the connection to a child, and kills that.
pub(super) fn leave_and_kill(a: &mut End) -> String {
    let pid = holder();
    let closed = a.close();
    let killed = sys::kill(pid);
    format!("{closed} {} {}", show::ret(killed), sys::wait_for(pid))
}

/// The last holder is killed, while the process that made the connection goes on.
fn killed_closes(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("last words"));
    stage.a("kill", leave_and_kill);
    stage.b("hear", |b| b.hear(11));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("reset", |b| b.ready(FIN | libc::POLLERR | libc::POLLHUP));
    stage.b("send again", |b| b.send(b"x", 0));
}

fn killed_with_bytes_unread(stage: &mut Stage) {
    for sends in [false, true] {
        stage.connect();
        stage.a("say", |a| a.say("read"));
        stage.b("say", |b| b.say("unread"));
        stage.a("arrived", |a| a.arrived(6));
        stage.a("kill", leave_and_kill);
        stage.b("reset", |b| b.ready(RESET));
        if sends {
            stage.b("send", |b| b.send(b"x", 0));
        }
        stage.b("hear", |b| b.hear(5));
        stage.b("send", |b| b.send(b"x", 0));
        stage.b("SO_ERROR", |b| b.so_error());
        stage.b("close", End::close);
    }
}

/// A look waits for as much as SO_RCVLOWAT says.
fn peek_below_the_mark(stage: &mut Stage) {
    stage.connect();
    stage.a("mark", |a| {
        let set = sys::setsockopt(a.fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 10);
        let time = sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 50);
        format!("{} {}", show::ret(set), show::ret(time))
    });
    stage.a("nothing", |a| a.recv_once(20, MSG_PEEK));
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("times out", |a| a.recv_once(20, MSG_PEEK));
    stage.a("less room", |a| a.recv_once(3, MSG_PEEK));
    stage.a("not waiting", |a| a.recv_once(20, MSG_PEEK | MSG_DONTWAIT));
    stage.a("no timeout", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 0))
    });
    stage.both(
        "enough",
        |a| a.recv_once(20, MSG_PEEK),
        |b| {
            std::thread::sleep(core::time::Duration::from_millis(100));
            b.say("world")
        },
    );
}

/// Negative timeouts do not wait, huge ones do.
fn timeouts_beyond_bounds(stage: &mut Stage) {
    stage.connect();
    let set = |end: &End, name, ms| show::ret(sys::set_timeout(end.fd, name, ms));
    stage.a("negative", |a| set(a, libc::SO_RCVTIMEO, -1000));
    stage.a("at once", |a| a.recv_once(5, 0));
    stage.a("negative", |a| set(a, libc::SO_SNDTIMEO, -1000));
    stage.a("full at once", |a| {
        super::signals::fill(a);
        a.send(&vec![0; 1 << 20], 0)
    });
    for seconds in [20_000_000_000, 1 << 40, i64::MAX / 1_000_000] {
        stage.a("huge", |a| set(a, libc::SO_RCVTIMEO, seconds * 1000));
        stage.both(
            "waits",
            |a| a.recv_once(5, 0),
            |b| {
                std::thread::sleep(core::time::Duration::from_millis(50));
                b.say("hello")
            },
        );
    }
}

/// With bytes unread, of course.
fn killed_while_the_far_end_sends(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "kill",
        |a| {
            let _ = a.arrived(6);
            std::thread::sleep(core::time::Duration::from_millis(100));
            leave_and_kill(a)
        },
        |b| {
            let error = loop {
                if let Err(error) = b.send_some(&[b'x'; 65_536]) {
                    break error;
                }
            };
            format!("{} {}", show::ret(Err(error)), b.send(b"x", 0))
        },
    );
}

fn shutdown_in_child(stage: &mut Stage) {
    stage.connect();
    stage.a("child", |a| {
        let fd = a.fd;
        sys::wait_for(child(|| sys::shutdown(fd, SHUT_RD) == Ok(0)))
    });
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("poll", |a| a.ready(FIN));
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("hear", |a| a.hear(5));
}
