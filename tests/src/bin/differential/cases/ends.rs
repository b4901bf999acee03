//! How connections end: half closes, closes, resets, and who learns what in which order.

use libc::{
    EPOLLIN, MSG_DONTWAIT, POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_RD, SHUT_RDWR,
    SHUT_WR, SIGPIPE,
};

use super::{Case, Needs, case, in_all_forms};
use crate::end::{End, Side, patience};
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    in_all_forms("half_close_by_a", Needs::Steps, |stage| {
        half_close(stage, Side::A);
    }),
    in_all_forms("half_close_by_b", Needs::Steps, |stage| {
        half_close(stage, Side::B);
    }),
    case("half_close_both_a_first", Needs::Steps, |stage| {
        half_close_both(stage, Side::A);
    }),
    case("half_close_both_b_first", Needs::Steps, |stage| {
        half_close_both(stage, Side::B);
    }),
    case("half_close_twice", Needs::Steps, half_close_twice),
    case("shutdown_rd", Needs::Steps, shutdown_rd),
    case("shutdown_rd_with_data", Needs::Steps, shutdown_rd_with_data),
    case("shutdown_rdwr", Needs::Steps, shutdown_rdwr),
    case(
        "shutdown_rdwr_then_peer_writes",
        Needs::Steps,
        shutdown_rdwr_then_peer_writes,
    ),
    in_all_forms(
        "close_with_data_under_way",
        Needs::Both,
        close_with_data_under_way,
    ),
    in_all_forms(
        "close_then_peer_writes",
        Needs::Steps,
        close_then_peer_writes,
    ),
    case("close_unread_then_recv", Needs::Steps, |stage| {
        close_unread(stage, After::Recv);
    }),
    case("close_unread_then_send", Needs::Steps, |stage| {
        close_unread(stage, After::Send);
    }),
    case("close_unread_then_so_error", Needs::Steps, |stage| {
        close_unread(stage, After::SoError);
    }),
    case(
        "close_unread_nothing_sent",
        Needs::Steps,
        close_unread_nothing_sent,
    ),
    in_all_forms("linger_zero", Needs::Steps, linger_zero),
    case("linger_zero_with_data", Needs::Steps, linger_zero_with_data),
    case("sigpipe", Needs::Processes, sigpipe),
    case("sigpipe_kills", Needs::Processes, sigpipe_kills),
    in_all_forms("recv_woken_by_close", Needs::Both, |stage| {
        recv_woken(stage, How::Close);
    }),
    in_all_forms("recv_woken_by_half_close", Needs::Both, |stage| {
        recv_woken(stage, How::HalfClose);
    }),
    in_all_forms("recv_woken_by_reset", Needs::Both, |stage| {
        recv_woken(stage, How::Reset);
    }),
    in_all_forms("recv_woken_by_data", Needs::Both, |stage| {
        recv_woken(stage, How::Data);
    }),
    in_all_forms("send_woken_by_close", Needs::Both, |stage| {
        send_woken(stage, How::Close);
    }),
    in_all_forms("send_woken_by_reset", Needs::Both, |stage| {
        send_woken(stage, How::Reset);
    }),
    in_all_forms("send_woken_by_reading", Needs::Both, |stage| {
        send_woken(stage, How::Data);
    }),
    case(
        "recv_woken_by_own_shutdown",
        Needs::Both,
        recv_woken_by_own_shutdown,
    ),
    case("recv_twice_after_end", Needs::Steps, recv_twice_after_end),
    case("exit_without_close", Needs::Processes, exit_without_close),
];

const IN_OUT: i16 = POLLIN | POLLOUT;
const FIN: i16 = IN_OUT | POLLRDHUP;
const BOTH_FIN: i16 = FIN | POLLHUP;
const RESET: i16 = BOTH_FIN | POLLERR;

fn half_close(stage: &mut Stage, first: Side) {
    let second = first.other();
    stage.connect();
    stage.one(first, "say", |e| e.say("last words"));
    stage.one(first, "shutdown", |e| e.shutdown(SHUT_WR));
    stage.one(first, "ready", |e| e.ready(POLLOUT));
    stage.one(second, "ready", |e| e.ready(FIN));
    stage.one(second, "hear", |e| e.hear(10));
    stage.one(second, "ready", |e| e.ready(FIN));
    stage.one(second, "recv end", |e| e.recv(10, 0));
    stage.one(second, "recv end again", |e| e.recv(10, 0));
    stage.one(second, "say", |e| e.say("reply"));
    stage.one(first, "ready", |e| e.ready(IN_OUT));
    stage.one(first, "send", |e| e.send(b"x", 0));
    stage.one(first, "hear", |e| e.hear(5));
    stage.one(first, "recv nothing", |e| e.recv(5, MSG_DONTWAIT));
    stage.one(second, "say", |e| e.say("more"));
    stage.one(second, "close", End::close);
    stage.one(first, "ready", |e| e.ready(BOTH_FIN));
    stage.one(first, "hear", |e| e.hear(5));
    stage.one(first, "so_error", |e| e.so_error());
    stage.one(first, "send", |e| e.send(b"x", 0));
    stage.one(first, "close", End::close);
}

fn half_close_both(stage: &mut Stage, first: Side) {
    let second = first.other();
    stage.connect();
    for side in [first, second] {
        stage.one(side, "say", |e| e.say("bye"));
        stage.one(side, "shutdown", |e| e.shutdown(SHUT_WR));
    }
    for side in [second, first] {
        stage.one(side, "ready", |e| e.ready(BOTH_FIN));
        stage.one(side, "hear", |e| e.hear(3));
        stage.one(side, "recv end", |e| e.recv(3, 0));
        stage.one(side, "send", |e| e.send(b"x", 0));
        stage.one(side, "so_error", |e| e.so_error());
    }
    stage.one(first, "close", End::close);
    stage.one(second, "recv end", |e| e.recv(3, 0));
    stage.one(second, "close", End::close);
}

fn half_close_twice(stage: &mut Stage) {
    stage.connect();
    stage.a("shutdown", |a| a.shutdown(SHUT_WR));
    stage.a("shutdown again", |a| a.shutdown(SHUT_WR));
    stage.a("shutdown rd", |a| a.shutdown(SHUT_RD));
    stage.a("ready", |a| a.ready(BOTH_FIN));
    stage.b("recv end", |b| b.recv(3, 0));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("recv end", |a| a.recv(3, 0));
    stage.a("shutdown after both", |a| a.shutdown(SHUT_WR));
    stage.b("ready", |b| b.ready(BOTH_FIN));
    stage.b("shutdown how 7", |b| b.shutdown(7));
}

fn shutdown_rd(stage: &mut Stage) {
    stage.connect();
    stage.a("shutdown rd", |a| a.shutdown(SHUT_RD));
    stage.a("ready", |a| a.ready(FIN));
    stage.a("recv", |a| a.recv(5, 0));
    stage.b("say", |b| b.say("still"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("ready", |a| a.ready(FIN));
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("say", |a| a.say("open"));
    stage.b("hear", |b| b.hear(4));
    stage.b("ready", |b| b.ready(POLLOUT));
    stage.b("say", |b| b.say("again"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("recv", |a| a.recv(5, 0));
    stage.b("close", End::close);
    stage.a("ready", |a| a.ready(FIN));
    stage.a("recv", |a| a.recv(5, 0));
}

fn shutdown_rd_with_data(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("waiting"));
    stage.a("ready", |a| a.ready(IN_OUT));
    stage.a("shutdown rd", |a| a.shutdown(SHUT_RD));
    stage.a("recv", |a| a.recv(4, 0));
    stage.a("recv", |a| a.recv(9, 0));
    stage.a("recv", |a| a.recv(9, 0));
}

fn shutdown_rdwr(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("bye"));
    stage.a("shutdown rdwr", |a| a.shutdown(SHUT_RDWR));
    stage.a("ready", |a| a.ready(BOTH_FIN));
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("send", |a| a.send(b"x", 0));
    stage.b("ready", |b| b.ready(FIN));
    stage.b("hear", |b| b.hear(4));
    stage.b("close", End::close);
    stage.a("ready", |a| a.ready(BOTH_FIN));
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("so_error", |a| a.so_error());
}

fn shutdown_rdwr_then_peer_writes(stage: &mut Stage) {
    stage.connect();
    stage.a("shutdown rdwr", |a| a.shutdown(SHUT_RDWR));
    stage.b("ready", |b| b.ready(FIN));
    stage.b("recv", |b| b.recv(5, 0));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("ready", |b| b.ready(RESET));
    stage.b("recv", |b| b.recv(5, 0));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("so_error", |b| b.so_error());
}

fn close_with_data_under_way(stage: &mut Stage) {
    const BYTES: usize = 3_000_000;
    let pattern = Pattern::new(17);
    stage.connect();
    stage.both(
        "pour and close",
        |a| {
            let poured = a.pour(&pattern, BYTES, 1);
            format!("{poured} {}", a.close())
        },
        |b| {
            let drunk = b.drink(&pattern, BYTES, 2);
            format!("{drunk} {}", b.hear(1))
        },
    );
    stage.b("ready", |b| b.ready(FIN));
}

fn close_then_peer_writes(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("bye"));
    stage.a("close", End::close);
    stage.b("ready", |b| b.ready(FIN));
    stage.b("hear", |b| b.hear(4));
    stage.b("send", |b| b.send(b"first", 0));
    stage.b("ready", |b| b.ready(RESET));
    stage.b("send", |b| b.send(b"second", 0));
    stage.b("send", |b| b.send(b"third", 0));
    stage.b("recv", |b| b.recv(4, 0));
    stage.b("so_error", |b| b.so_error());
    stage.b("ready", |b| b.ready(BOTH_FIN));
    stage.b("close", End::close);
}

/// What the survivor of a reset calls first.
#[derive(Clone, Copy)]
enum After {
    Recv,
    Send,
    SoError,
}

fn close_unread(stage: &mut Stage, after: After) {
    stage.connect();
    stage.b("say", |b| b.say("unread"));
    stage.a("ready", |a| a.ready(IN_OUT));
    stage.a("arrived", |a| a.arrived(6));
    stage.a("say", |a| a.say("farewell"));
    stage.a("close", End::close);
    stage.b("ready", |b| b.ready(RESET));
    match after {
        After::Recv => {}
        After::Send => stage.b("send", |b| b.send(b"x", 0)),
        After::SoError => stage.b("so_error", |b| b.so_error()),
    }
    stage.b("ready", |b| {
        b.ready(if matches!(after, After::Recv) {
            RESET
        } else {
            BOTH_FIN
        })
    });
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("so_error", |b| b.so_error());
    stage.b("ready", |b| b.ready(BOTH_FIN));
}

fn close_unread_nothing_sent(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("unread"));
    stage.a("ready", |a| a.ready(IN_OUT));
    stage.a("close", End::close);
    stage.b("ready", |b| b.ready(RESET));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("send", |b| b.send(b"x", 0));
}

fn linger_zero(stage: &mut Stage) {
    stage.connect();
    stage.a("linger", |a| show::ret(sys::set_linger(a.fd, 1, 0)));
    stage.a("close", End::close);
    stage.b("ready", |b| b.ready(RESET));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("send", |b| b.send(b"x", 0));
    stage.b("ready", |b| b.ready(BOTH_FIN));
    stage.b("close", End::close);
}

fn linger_zero_with_data(stage: &mut Stage) {
    stage.connect();
    stage.a("say", |a| a.say("farewell"));
    stage.b("arrived", |b| b.arrived(8));
    stage.a("linger", |a| show::ret(sys::set_linger(a.fd, 1, 0)));
    stage.a("close", End::close);
    stage.b("ready", |b| b.ready(RESET));
    stage.b("recv", |b| b.recv(4, 0));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("recv", |b| b.recv(100, 0));
    stage.b("recv", |b| b.recv(100, 0));
}

fn sigpipe(stage: &mut Stage) {
    stage.connect();
    stage.a("close", End::close);
    stage.b("ready", |b| b.ready(FIN));
    stage.b("catch", |_| show::ret(sys::catch(SIGPIPE, 0)));
    stage.b("send", |b| show::ret(sys::send(b.fd, b"first", 0)));
    stage.b("ready", |b| b.ready(RESET));
    stage.b("quiet", |b| {
        format!("{} {}", b.send(b"x", 0), sys::caught())
    });
    stage.b("send", |b| {
        format!("{} {}", show::ret(sys::send(b.fd, b"x", 0)), sys::caught())
    });
    stage.b("write", |b| {
        format!("{} {}", show::ret(sys::write(b.fd, b"x")), sys::caught())
    });
    stage.b("writev", |b| {
        format!(
            "{} {}",
            show::ret(sys::writev(b.fd, &[b"x"])),
            sys::caught()
        )
    });
    stage.b("sendmsg", |b| {
        format!(
            "{} {}",
            show::ret(sys::sendmsg(b.fd, &[b"x"], 0)),
            sys::caught()
        )
    });
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.b("send", |b| {
        format!("{} {}", show::ret(sys::send(b.fd, b"x", 0)), sys::caught())
    });
}

fn sigpipe_kills(stage: &mut Stage) {
    stage.connect();
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.b("child", |b| {
        let pid = sys::fork();
        if pid == Ok(0) {
            let _ = sys::uncatch(SIGPIPE, false);
            let _ = sys::write(b.fd, b"x");
            sys::exit_now(9);
        }
        sys::wait_for(pid)
    });
    stage.b("child that ignores", |b| {
        let pid = sys::fork();
        if pid == Ok(0) {
            let _ = sys::uncatch(SIGPIPE, true);
            let sent = sys::write(b.fd, b"x");
            sys::exit_now(if sent == Err(libc::EPIPE) { 3 } else { 4 });
        }
        sys::wait_for(pid)
    });
}

/// What ends a wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Close,
    HalfClose,
    Reset,
    Data,
}

/// Time for the other end to fall asleep; nothing depends on whether it really does.
fn let_it_sleep() {
    std::thread::sleep(core::time::Duration::from_millis(60));
}

fn recv_woken(stage: &mut Stage, how: How) {
    stage.connect();
    stage.both(
        "recv",
        |a| {
            let first = a.hear(5);
            let second = if how == How::Data {
                String::new()
            } else {
                a.recv(5, 0)
            };
            format!("{first}, {second}")
        },
        |b| {
            let_it_sleep();
            match how {
                How::Close => b.close(),
                How::HalfClose => b.shutdown(SHUT_WR),
                How::Reset => {
                    let _ = sys::set_linger(b.fd, 1, 0);
                    b.close()
                }
                How::Data => b.say("hello"),
            }
        },
    );
    stage.a("so_error", |a| a.so_error());
}

/// A sends until nothing fits any more and waits; B then reads or leaves.
fn send_woken(stage: &mut Stage, how: How) {
    const BYTES: usize = 24 << 20;
    let pattern = Pattern::new(19);
    stage.connect();
    stage.both(
        "send",
        |a| {
            let mut done = 0;
            loop {
                let chunk = if how == How::Data {
                    (BYTES - done).min(100_000)
                } else {
                    100_000
                };
                if chunk == 0 {
                    return "all sent".to_owned();
                }
                match a.send_some(pattern.at(done, chunk)) {
                    Ok(sent) => done += usize::try_from(sent).unwrap_or(0),
                    Err(error) => {
                        let again = a.send(b"x", 0);
                        return format!("{}, {again}", show::errno(error));
                    }
                }
            }
        },
        |b| {
            let_it_sleep();
            match how {
                How::Close => b.close(),
                How::Reset => {
                    let _ = sys::set_linger(b.fd, 1, 0);
                    b.close()
                }
                How::Data | How::HalfClose => b.drink(&pattern, BYTES, 5),
            }
        },
    );
}

fn recv_woken_by_own_shutdown(stage: &mut Stage) {
    stage.connect();
    stage.a("recv", |a| {
        let fd = a.fd;
        let other = std::thread::spawn(move || {
            let_it_sleep();
            sys::shutdown(fd, SHUT_RD)
        });
        let heard = a.hear(5);
        format!("{heard} {:?}", other.join().unwrap_or(Err(-1)))
    });
    stage.a("poll", |a| {
        let fd = a.fd;
        let other = std::thread::spawn(move || {
            let_it_sleep();
            sys::shutdown(fd, SHUT_RDWR)
        });
        let (ret, bits) = sys::poll(&[(fd, libc::POLLPRI)], patience());
        let shut = other.join().unwrap_or(Err(-1));
        format!(
            "{} {} {shut:?}",
            show::ret(ret),
            show::bits(bits.first().copied().unwrap_or(0))
        )
    });
    stage.b("set", |b| {
        b.epfd = sys::fd_of(sys::epoll_create());
        show::ret(sys::epoll_ctl(
            b.epfd,
            libc::EPOLL_CTL_ADD,
            b.fd,
            EPOLLIN | libc::EPOLLRDHUP,
            1,
        ))
    });
    stage.b("epoll", |b| {
        show::events(&sys::epoll_wait(b.epfd, 4, patience()))
    });
}

fn recv_twice_after_end(stage: &mut Stage) {
    stage.connect();
    stage.a("close", End::close);
    stage.b("recv", |b| b.recv(3, 0));
    stage.b("recv", |b| b.recv(3, 0));
    stage.b("peek", |b| b.recv(3, libc::MSG_PEEK));
    stage.b("dontwait", |b| b.recv(3, MSG_DONTWAIT));
    stage.b("waitall", |b| b.recv(3, libc::MSG_WAITALL));
    stage.b("read", |b| show::ret(sys::read(b.fd, &mut [0; 4])));
    stage.b("set blocking", |b| {
        show::ret(sys::set_nonblocking(b.fd, false))
    });
    stage.b("recv", |b| b.recv(3, 0));
}

fn exit_without_close(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("read by nobody"));
    stage.a("ready", |a| a.ready(IN_OUT));
    stage.a("child exits", |a| {
        // The child holds the connection's last descriptor, and leaves without a word.
        let pid = sys::fork();
        if pid == Ok(0) {
            let mut out = [0; 4];
            let _ = sys::recv(a.fd, &mut out, 0);
            sys::exit_now(0);
        }
        let closed = a.close();
        format!("{closed} {}", sys::wait_for(pid))
    });
    stage.b("ready", |b| b.ready(RESET));
    stage.b("recv", |b| b.recv(5, 0));
    stage.b("recv", |b| b.recv(5, 0));
}
