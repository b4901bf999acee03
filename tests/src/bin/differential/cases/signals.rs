//! Signals during waits: EINTR or restart, masks that change for the time of a wait.

use libc::{EPOLL_CTL_ADD, EPOLLIN, MSG_WAITALL, POLLIN, SA_RESTART, SIGALRM};

use super::{Case, Needs, blocking, case};
use crate::end::{End, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    blocking("recv_interrupted", Needs::Processes, recv_interrupted),
    blocking("recv_restarted", Needs::Processes, recv_restarted),
    blocking(
        "recv_with_timeout_interrupted",
        Needs::Processes,
        recv_with_timeout_interrupted,
    ),
    blocking("waitall_interrupted", Needs::Processes, waitall_interrupted),
    blocking("part_restarted", Needs::Processes, part_restarted),
    blocking("sigpipe_sent", Needs::Processes, sigpipe_sent),
    blocking("send_interrupted", Needs::Processes, send_interrupted),
    blocking("send_restarted", Needs::Processes, send_restarted),
    case("waits_interrupted", Needs::Processes, waits_interrupted),
    case("waits_with_masks", Needs::Processes, waits_with_masks),
    case("signal_ignored", Needs::Processes, signal_ignored),
    blocking("handler_of_old", Needs::Processes, handler_of_old),
    case("storm_of_signals", Needs::Processes, storm_of_signals),
];

/// Runs `work` while SIGALRM comes every 40 ms.
fn with_alarm(flags: i32, work: impl FnOnce() -> String) -> String {
    let _ = sys::catch(SIGALRM, flags);
    sys::alarm(40, 40);
    let result = work();
    sys::alarm(0, 0);
    format!("{result} caught {}", sys::caught() > 0)
}

fn recv_interrupted(stage: &mut Stage) {
    stage.connect();
    stage.a("recv", |a| with_alarm(0, || a.recv(5, 0)));
    stage.a("read", |a| {
        with_alarm(0, || show::ret(sys::read(a.fd, &mut [0; 4])))
    });
    stage.a("readv", |a| {
        with_alarm(0, || show::ret(sys::readv(a.fd, &mut [&mut [0; 4]])))
    });
    stage.a("recvmsg", |a| {
        with_alarm(0, || show::ret(sys::recvmsg(a.fd, &mut [&mut [0; 4]], 0).0))
    });
    stage.a("peek", |a| with_alarm(0, || a.recv(5, libc::MSG_PEEK)));
    stage.b("say", |b| b.say("hello"));
    stage.a("recv", |a| a.recv(5, 0));
}

/// Says something after several signals have come at the other end.
fn much_later(b: &mut End) -> String {
    std::thread::sleep(core::time::Duration::from_millis(150));
    b.say("hello")
}

fn recv_restarted(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "recv",
        |a| with_alarm(SA_RESTART, || a.recv(5, 0)),
        much_later,
    );
    stage.both(
        "read",
        |a| with_alarm(SA_RESTART, || show::ret(sys::read(a.fd, &mut [0; 5]))),
        much_later,
    );
    stage.both(
        "waitall",
        |a| with_alarm(SA_RESTART, || a.recv(5, MSG_WAITALL)),
        much_later,
    );
}

fn recv_with_timeout_interrupted(stage: &mut Stage) {
    stage.connect();
    // With a timeout the kernel does not restart, whatever SA_RESTART says.
    stage.a("timeout", |a| {
        show::ret(sys::set_timeout(
            a.fd,
            libc::SO_RCVTIMEO,
            i64::from(patience()),
        ))
    });
    stage.a("recv", |a| with_alarm(SA_RESTART, || a.recv(5, 0)));
    stage.a("recv", |a| with_alarm(0, || a.recv(5, 0)));
}

fn waitall_interrupted(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("123"));
    stage.a("arrived", |a| a.arrived(3));
    stage.a("part", |a| with_alarm(0, || a.recv(10, MSG_WAITALL)));
    stage.a("nothing", |a| with_alarm(0, || a.recv(10, MSG_WAITALL)));
}

/// What has moved bytes is not restarted.
fn part_restarted(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("123"));
    stage.a("arrived", |a| a.arrived(3));
    let look = MSG_WAITALL | libc::MSG_PEEK;
    stage.a("look", |a| with_alarm(SA_RESTART, || a.recv(10, look)));
    stage.a("part", |a| {
        with_alarm(SA_RESTART, || a.recv(10, MSG_WAITALL))
    });
    stage.b("say", |b| b.say("456"));
    stage.a("mark", |a| {
        show::ret(sys::setsockopt(
            a.fd,
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            10,
        ))
    });
    stage.a("arrived", |a| a.arrived(3));
    stage.a("below", |a| with_alarm(SA_RESTART, || a.recv(20, 0)));
    let bytes = vec![b'p'; 32 << 20];
    let is_part = |sent: sys::Ret| {
        let part = sent.is_ok_and(|sent| (1..32 << 20).contains(&sent));
        format!("{part}")
    };
    stage.a("send", |a| {
        with_alarm(SA_RESTART, || is_part(sys::send(a.fd, &bytes, 0)))
    });
    stage.b("drain", |b| drain(b));
    stage.a("sendfile", |a| {
        let file = sys::file_with(&bytes);
        let part = with_alarm(SA_RESTART, || {
            is_part(sys::sendfile(a.fd, file, Some(0), bytes.len()).0)
        });
        format!("{part} {}", show::ok(sys::close(file)))
    });
    stage.b("drain", |b| drain(b));
}

/// Where SIGPIPE comes from, as its handler is told.
fn sigpipe_sent(stage: &mut Stage) {
    stage.connect();
    stage.a("shutdown", |a| a.shutdown(libc::SHUT_WR));
    stage.a("send", |a| {
        let caught = sys::catch_told(libc::SIGPIPE);
        let sent = sys::send(a.fd, b"x", 0);
        let told = sys::told();
        let _ = sys::uncatch(libc::SIGPIPE, true);
        format!("{} {} {told}", show::ret(caught), show::ret(sent))
    });
}

/// Small buffers, of a size that the kernel does not change by itself: they are full soon and stay so.
pub(super) fn small_buffers(stage: &mut Stage) {
    let set = |end: &mut End| {
        let [send, receive] = [libc::SO_SNDBUF, libc::SO_RCVBUF]
            .map(|name| show::ret(sys::setsockopt(end.fd, libc::SOL_SOCKET, name, 65_536)));
        format!("{send} {receive}")
    };
    stage.a("buffers", set);
    stage.b("buffers", set);
}

/// Sends until nothing fits.
pub(super) fn fill(end: &End) {
    let chunk = vec![b'f'; 65_536];
    let mut calm = 0;
    while calm < 6 {
        for len in [chunk.len(), 1] {
            if sys::send(end.fd, &chunk[..len], libc::MSG_DONTWAIT).is_err() {
                calm += 1;
                std::thread::sleep(core::time::Duration::from_millis(10));
            } else {
                calm = 0;
            }
        }
    }
}

/// What `send` does in front of full buffers. The kernel may still move bytes to the far end some time
/// after they were full: if that was why `send` did not have to wait, it is made again.
fn in_front_of_full_buffers(end: &End, had_to_wait: &str, send: impl Fn(&End) -> String) -> String {
    let mut shown = String::new();
    for _ in 0..50 {
        fill(end);
        shown = send(end);
        if shown.contains(had_to_wait) {
            break;
        }
    }
    shown
}

fn drain(end: &End) -> String {
    let mut buffer = vec![0; 1 << 20];
    while sys::poll(&[(end.fd, POLLIN)], 500).0 == Ok(1) {
        let _ = sys::recv(end.fd, &mut buffer, libc::MSG_DONTWAIT);
    }
    "drained".to_owned()
}

fn send_interrupted(stage: &mut Stage) {
    stage.connect();
    small_buffers(stage);
    stage.a("send", |a| {
        in_front_of_full_buffers(a, "EINTR", |a| with_alarm(0, || a.send(&[b'x'; 4000], 0)))
    });
    stage.a("write", |a| {
        in_front_of_full_buffers(a, "EINTR", |a| {
            with_alarm(0, || show::ret(sys::write(a.fd, &[b'x'; 4000])))
        })
    });
    stage.b("drain", |b| drain(b));
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

fn send_restarted(stage: &mut Stage) {
    stage.connect();
    small_buffers(stage);
    stage.both(
        "send",
        |a| {
            in_front_of_full_buffers(a, "caught true", |a| {
                with_alarm(SA_RESTART, || a.send(&[b'x'; 4000], 0))
            })
        },
        |b| {
            // Not before the other end has filled everything, looked again, and waited for a while.
            let mut last = -1;
            let mut calm = 0;
            while calm < 40 {
                let readable = sys::ioctl(b.fd, sys::FIONREAD, -1).1;
                calm = if readable == last { calm + 1 } else { 0 };
                last = readable;
                std::thread::sleep(core::time::Duration::from_millis(10));
            }
            drain(b)
        },
    );
}

fn waits_interrupted(stage: &mut Stage) {
    stage.connect();
    stage.a("set", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1))
    });
    for flags in [0, SA_RESTART] {
        stage.a("poll", |a| {
            with_alarm(flags, || {
                // Whatever stood there is overwritten.
                let (got, told) = sys::poll(&[(a.fd, POLLIN), (-1, POLLIN)], patience());
                format!("{} {told:?}", show::ret(got))
            })
        });
        stage.a("poll for ever", |a| {
            with_alarm(flags, || show::ret(sys::poll(&[(a.fd, POLLIN)], -1).0))
        });
        stage.a("select", |a| {
            with_alarm(flags, || {
                show::ret(sys::select(&[a.fd], &[], &[], None, None).ret)
            })
        });
        stage.a("epoll_wait", |a| {
            with_alarm(flags, || show::events(&sys::epoll_wait(a.epfd, 4, -1)))
        });
        stage.a("epoll_wait with timeout", |a| {
            with_alarm(flags, || {
                show::events(&sys::epoll_wait(a.epfd, 4, patience()))
            })
        });
    }
    stage.b("say", |b| b.say("hello"));
    stage.a("epoll_wait", |a| {
        show::events(&sys::epoll_wait(a.epfd, 4, -1))
    });
}

/// A signal that is blocked, pending, and let in for the time of a wait.
fn waits_with_masks(stage: &mut Stage) {
    let pending = |work: &dyn Fn() -> String| {
        let _ = sys::catch(SIGALRM, 0);
        sys::mask(SIGALRM, true);
        sys::alarm(10, 0);
        std::thread::sleep(core::time::Duration::from_millis(40));
        let before = sys::caught();
        let result = work();
        let after = sys::caught();
        sys::mask(SIGALRM, false);
        format!("{result} caught {before} {after}")
    };
    stage.connect();
    stage.a("set", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        show::ret(sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1))
    });
    stage.a("ppoll", |a| {
        let open = sys::signal_set(None);
        pending(&|| show::ret(sys::ppoll(&[(a.fd, POLLIN)], None, Some(&open)).0))
    });
    stage.a("ppoll, no mask", |a| {
        pending(&|| show::ret(sys::ppoll(&[(a.fd, POLLIN)], Some(30), None).0))
    });
    stage.a("ppoll, still blocked", |a| {
        let closed = sys::signal_set(Some(SIGALRM));
        pending(&|| show::ret(sys::ppoll(&[(a.fd, POLLIN)], Some(30), Some(&closed)).0))
    });
    stage.a("pselect", |a| {
        let open = sys::signal_set(None);
        pending(&|| show::ret(sys::select(&[a.fd], &[], &[], None, Some(&open)).ret))
    });
    stage.a("epoll_pwait", |a| {
        let open = sys::signal_set(None);
        pending(&|| show::events(&sys::epoll_pwait(a.epfd, 4, -1, Some(&open))))
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    // Something is ready: whether the signal is let in as well is the kernel's business (it is not).
    stage.a("ppoll, ready", |a| {
        let open = sys::signal_set(None);
        pending(&|| show::ret(sys::ppoll(&[(a.fd, POLLIN)], None, Some(&open)).0))
    });
    stage.a("epoll_pwait, ready", |a| {
        let open = sys::signal_set(None);
        pending(&|| show::events(&sys::epoll_pwait(a.epfd, 4, -1, Some(&open))))
    });
}

fn signal_ignored(stage: &mut Stage) {
    stage.connect();
    stage.a("ignore", |_| {
        let _ = sys::catch(SIGALRM, 0);
        show::ret(sys::uncatch(SIGALRM, true))
    });
    stage.both(
        "recv",
        |a| {
            sys::alarm(40, 40);
            let got = a.recv(5, 0);
            sys::alarm(0, 0);
            got
        },
        much_later,
    );
}

fn handler_of_old(stage: &mut Stage) {
    stage.connect();
    stage.a("what was set is what is told", |_| {
        let mut told = Vec::new();
        for flags in [0, SA_RESTART, libc::SA_NODEFER, libc::SA_RESETHAND] {
            let _ = sys::catch(SIGALRM, flags);
            told.push(sys::is_caught(SIGALRM, flags));
        }
        let _ = sys::uncatch(SIGALRM, false);
        told.push(!sys::is_caught(SIGALRM, 0));
        format!("{told:?}")
    });
    stage.a("one shot", |a| {
        let _ = sys::catch(SIGALRM, libc::SA_RESETHAND);
        sys::alarm(20, 0);
        let got = a.recv(5, 0);
        format!("{got} {} {}", sys::caught(), sys::is_caught(SIGALRM, 0))
    });
}

/// Signals at every moment of a transfer: no byte is lost or doubled.
fn storm_of_signals(stage: &mut Stage) {
    const BYTES: usize = 8_000_000;
    let pattern = crate::pattern::Pattern::new(29);
    stage.connect();
    let storm = |work: &mut dyn FnMut() -> String| {
        let _ = sys::catch(SIGALRM, SA_RESTART);
        sys::alarm(1, 1);
        let result = work();
        sys::alarm(0, 0);
        result
    };
    stage.both(
        "restarted",
        |a| storm(&mut || a.pour(&pattern, BYTES, 1)),
        |b| storm(&mut || b.drink(&pattern, BYTES, 2)),
    );
}
