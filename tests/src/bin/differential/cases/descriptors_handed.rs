//! Descriptors that others get: by exec, or passed on through a socket.

use core::time::Duration;

use libc::{MSG_DONTWAIT, POLLOUT};

use super::descriptors::{FIN, child, dialogue, talk_to_cat};
use super::{Case, Needs, blocking, case};
use crate::end::End;
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
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
        pass_to_child(stage, true, Duration::ZERO);
    }),
    case("pass_later_to_child", Needs::Processes, |stage| {
        pass_to_child(stage, false, Duration::ZERO);
    }),
    // The child, which shares its parent's set, waits there before the parent closes what it has passed on.
    case("pass_fresh_to_waiting_child", Needs::Processes, |stage| {
        pass_to_child(stage, true, Duration::from_millis(100));
    }),
    case("pass_fresh_to_itself", Needs::Steps, |stage| {
        pass_to_itself(stage, true);
    }),
    case("pass_later_to_itself", Needs::Steps, |stage| {
        pass_to_itself(stage, false);
    }),
];

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
                std::thread::sleep(Duration::from_secs(60));
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
        std::thread::sleep(Duration::from_millis(100));
        a.say("last words")
    });
    stage.a("close", End::close);
    stage.b("hear", |b| b.hear(10));
    stage.b("not yet", |b| b.recv(1, MSG_DONTWAIT));
    stage.b("ready", |b| b.ready(POLLOUT));
    stage.b("say", |b| b.say("to nobody"));
}

/// `pause`: between passing and closing, and twice that before the child is answered.
fn pass_to_child(stage: &mut Stage, fresh: bool, pause: Duration) {
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
            std::thread::sleep(pause);
            let closed = a.close();
            format!("{} {closed} {}", show::ret(passed), sys::wait_for(pid))
        },
        |b| {
            let heard = b.hear(14);
            std::thread::sleep(2 * pause);
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
