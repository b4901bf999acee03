//! A descriptor is closed, replaced or shut down while another thread waits on it.
//!
//! close and dup2 do not wake who is inside the kernel: the call goes on, and the end of the stream is
//! sent when it is over. shutdown does.

use std::thread::JoinHandle;

use libc::{EPOLL_CTL_ADD, EPOLLIN, EPOLLRDHUP, POLLHUP, POLLIN, POLLOUT, POLLRDHUP};
use libc::{SHUT_RD, SHUT_RDWR, SHUT_WR};

use super::signals::{fill, small_buffers};
use super::{Case, Needs, blocking, case};
use crate::end::{End, patience};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    blocking("close_while_recv", Needs::Processes, |stage| {
        while_receiving(stage, |fd| show::ok(sys::close(fd)));
    }),
    blocking("close_and_reuse_while_recv", Needs::Processes, |stage| {
        while_receiving(stage, close_and_reuse);
    }),
    blocking("dup2_while_recv", Needs::Processes, |stage| {
        while_receiving(stage, replace);
    }),
    case("shutdown_wr_while_recv", Needs::Processes, |stage| {
        while_receiving(stage, |fd| show::ok(sys::shutdown(fd, SHUT_WR)));
    }),
    blocking(
        "close_all_while_recv",
        Needs::Processes,
        close_all_while_recv,
    ),
    blocking(
        "close_while_two_recv",
        Needs::Processes,
        close_while_two_recv,
    ),
    blocking("close_while_waitall", Needs::Processes, close_while_waitall),
    case("close_while_recv_times_out", Needs::Processes, times_out),
    case(
        "far_end_closes_after_close",
        Needs::Processes,
        far_end_closes,
    ),
    case(
        "dup2_and_signal_while_recv",
        Needs::Processes,
        dup2_and_signal_while_recv,
    ),
    blocking("close_while_send", Needs::Processes, close_while_send),
    case("shutdown_while_recv", Needs::Processes, shutdown_while_recv),
    case("shutdown_while_send", Needs::Processes, shutdown_while_send),
    case(
        "shutdown_while_waiting",
        Needs::Processes,
        shutdown_while_waiting,
    ),
    case(
        "close_while_epoll_wait",
        Needs::Processes,
        close_while_epoll_wait,
    ),
    case("close_while_poll", Needs::Processes, close_while_poll),
];

const FIN: i16 = POLLIN | POLLOUT | POLLRDHUP;

fn let_it_sleep(ms: u64) {
    std::thread::sleep(core::time::Duration::from_millis(ms));
}

/// What a thread does, once it sleeps in it.
fn asleep(work: impl FnOnce() -> String + Send + 'static) -> JoinHandle<String> {
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = tell.send(sys::thread_number());
        work()
    });
    let number = told.recv().unwrap_or_default();
    // Not only for a moment on the way there.
    let mut calm = 0;
    for _ in 0..patience() / 4 {
        calm = if sys::is_asleep(number) { calm + 1 } else { 0 };
        if calm == 10 || thread.is_finished() {
            break;
        }
        let_it_sleep(4);
    }
    thread
}

fn receiver(fd: i32, room: usize, flags: i32) -> JoinHandle<String> {
    asleep(move || {
        let mut out = vec![0; room];
        let got = sys::recv(fd, &mut out, flags);
        show::got(got, &out)
    })
}

fn outcome(thread: JoinHandle<String>) -> String {
    thread.join().unwrap_or_else(|_| "panicked".to_owned())
}

/// The number is a pipe's before the receiver wakes, and there is something in it.
fn close_and_reuse(fd: i32) -> String {
    let closed = sys::close(fd);
    let (from, to) = sys::pipe();
    let written = sys::write(to, b"pipe");
    format!("{} {} {}", show::ok(closed), from == fd, show::ret(written))
}

fn replace(fd: i32) -> String {
    let (from, to) = sys::pipe();
    let written = sys::write(to, b"pipe");
    format!("{} {}", show::ok(sys::dup2(from, fd)), show::ret(written))
}

/// A thread receives while another does something to the descriptor that does not wake it.
fn while_receiving(stage: &mut Stage, act: fn(i32) -> String) {
    stage.connect();
    stage.both(
        "recv",
        |a| {
            let thread = receiver(a.fd, 9, 0);
            let acted = act(a.fd);
            format!("{acted} {}", outcome(thread))
        },
        |b| {
            let_it_sleep(200);
            let before = sys::poll(&[(b.fd, FIN)], 0).1;
            format!("{before:?} {}", b.say("late"))
        },
    );
    stage.b("end", |b| b.ready(FIN));
    stage.b("read", |b| b.hear(1));
}

/// Two descriptors, both closed.
fn close_all_while_recv(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "recv",
        |a| {
            let other = fd_of(sys::dup(a.fd));
            let thread = receiver(a.fd, 9, 0);
            let closed = [a.fd, other].map(|fd| show::ok(sys::close(fd)));
            format!("{closed:?} {}", outcome(thread))
        },
        |b| {
            let_it_sleep(200);
            b.say("late")
        },
    );
    stage.b("end", |b| b.ready(FIN));
}

fn close_while_two_recv(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "recv",
        |a| {
            let threads = [receiver(a.fd, 4, 0), receiver(a.fd, 4, 0)];
            let closed = show::ok(sys::close(a.fd));
            let mut heard = threads.map(outcome);
            heard.sort();
            format!("{closed} {heard:?}")
        },
        |b| {
            // Both threads are asleep by then, also on a busy machine.
            let_it_sleep(1000);
            let first = b.say("one.");
            let_it_sleep(60);
            let between = b.ready(POLLOUT);
            format!("{first} {between} {}", b.say("two."))
        },
    );
    stage.b("end", |b| b.ready(FIN));
}

/// The call collects bytes over several waits, all of them after the close.
fn close_while_waitall(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "recv",
        |a| {
            let thread = receiver(a.fd, 12, libc::MSG_WAITALL);
            let closed = show::ok(sys::close(a.fd));
            format!("{closed} {}", outcome(thread))
        },
        |b| {
            let said = ["one.", "two.", "six."].map(|word| {
                let_it_sleep(100);
                b.say(word)
            });
            format!("{said:?}")
        },
    );
    stage.b("end", |b| b.ready(FIN));
}

/// The timeout that was set before the close counts.
fn times_out(stage: &mut Stage) {
    stage.connect();
    stage.a("recv", |a| {
        let set = sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 300);
        let thread = receiver(a.fd, 9, 0);
        let closed = show::ok(sys::close(a.fd));
        format!("{} {closed} {}", show::ret(set), outcome(thread))
    });
    stage.b("end", |b| b.ready(FIN));
}

fn far_end_closes(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "recv",
        |a| {
            let thread = receiver(a.fd, 9, 0);
            let closed = show::ok(sys::close(a.fd));
            format!("{closed} {}", outcome(thread))
        },
        |b| {
            let_it_sleep(200);
            b.close()
        },
    );
}

/// As Java does it: the descriptor is replaced by a closed one, and a signal wakes who waits on it.
fn dup2_and_signal_while_recv(stage: &mut Stage) {
    stage.connect();
    stage.a("recv", |a| {
        let fd = a.fd;
        let _ = sys::catch(libc::SIGUSR1, 0);
        let (tell, told) = std::sync::mpsc::channel();
        let thread = asleep(move || {
            let _ = tell.send(sys::this_thread());
            let mut out = [0; 9];
            let got = sys::recv(fd, &mut out, 0);
            let again = sys::recv(fd, &mut out, 0);
            format!("{}, {}", show::got(got, &out), show::ret(again))
        });
        let number = told.recv().unwrap_or_default();
        let (one, other) = sys::socketpair();
        let _ = sys::close(other);
        let replaced = sys::dup2(one, fd) == Ok(i64::from(fd));
        // Until it is woken: the signal may come before the call.
        while !thread.is_finished() {
            sys::signal_thread(number, libc::SIGUSR1);
            let_it_sleep(20);
        }
        format!("{replaced} {}", outcome(thread))
    });
    stage.b("end", |b| b.ready(FIN));
}

/// Receives to the end; how the stream ended, and its last bytes.
fn drain_to_end(end: &mut End, last: usize) -> String {
    let mut tail = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    let ended = loop {
        match sys::recv(end.fd, &mut buffer, 0) {
            Ok(got) if got > 0 => {
                let got = usize::try_from(got).unwrap_or(0);
                tail.extend_from_slice(&buffer[..got]);
                tail.drain(..tail.len().saturating_sub(last));
            }
            other => break other,
        }
    };
    format!("{} {}", show::ret(ended), show::data(&tail))
}

fn close_while_send(stage: &mut Stage) {
    stage.connect();
    small_buffers(stage);
    stage.both(
        "send",
        |a| {
            let fd = a.fd;
            fill(a);
            let thread = asleep(move || show::ret(sys::send(fd, &[b'x'; 4000], 0)));
            let closed = a.close();
            format!("{closed} {}", outcome(thread))
        },
        |b| {
            let_it_sleep(600);
            let before = sys::poll(&[(b.fd, POLLRDHUP)], 0).1;
            format!("{before:?} {}", drain_to_end(b, 4000))
        },
    );
}

fn shutdown_while_recv(stage: &mut Stage) {
    for how in [SHUT_RD, SHUT_RDWR] {
        stage.connect();
        stage.a("recv", |a| {
            let thread = receiver(a.fd, 9, 0);
            let shut = a.shutdown(how);
            format!("{shut} {}", outcome(thread))
        });
        stage.a("close", End::close);
        stage.b("end", |b| b.ready(FIN));
        stage.b("close", End::close);
    }
}

fn shutdown_while_send(stage: &mut Stage) {
    for how in [SHUT_WR, SHUT_RDWR] {
        stage.connect();
        small_buffers(stage);
        stage.both(
            "send",
            |a| {
                let fd = a.fd;
                let _ = sys::catch(libc::SIGPIPE, 0);
                fill(a);
                let thread = asleep(move || show::ret(sys::send(fd, &[b'x'; 4000], 0)));
                let shut = a.shutdown(how);
                let sent = outcome(thread);
                format!("{shut} {sent} SIGPIPE {}", sys::caught())
            },
            |b| {
                let_it_sleep(600);
                drain_to_end(b, 100)
            },
        );
        stage.a("close", End::close);
        stage.b("close", End::close);
    }
}

fn shutdown_while_waiting(stage: &mut Stage) {
    for how in [SHUT_RD, SHUT_WR, SHUT_RDWR] {
        // SHUT_WR wakes nobody.
        let ms = if how == SHUT_WR { 200 } else { 5000 };
        stage.connect();
        stage.a("poll", |a| {
            let fd = a.fd;
            let thread = asleep(move || {
                let (ret, bits) = sys::poll(&[(fd, POLLIN | POLLRDHUP)], ms);
                format!("{} {bits:?}", show::ret(ret))
            });
            let shut = a.shutdown(how);
            format!("{shut} {}", outcome(thread))
        });
        stage.a("close", End::close);
        stage.b("close", End::close);
        stage.connect();
        stage.a("select", |a| {
            let fd = a.fd;
            let thread = asleep(move || {
                let told = sys::select(&[fd], &[], &[], Some(i64::from(ms)), None);
                format!("{} {:?}", show::ret(told.ret), told.read)
            });
            let shut = a.shutdown(how);
            format!("{shut} {}", outcome(thread))
        });
        stage.a("close", End::close);
        stage.b("close", End::close);
        stage.connect();
        stage.a("epoll_wait", |a| {
            let set = fd_of(sys::epoll_create());
            let _ = sys::epoll_ctl(set, EPOLL_CTL_ADD, a.fd, EPOLLIN | EPOLLRDHUP, 1);
            let thread = asleep(move || show::events(&sys::epoll_wait(set, 4, ms)));
            let shut = a.shutdown(how);
            let told = outcome(thread);
            let _ = sys::close(set);
            format!("{shut} {told}")
        });
        stage.a("close", End::close);
        stage.b("close", End::close);
    }
}

/// The registration ends with the descriptor, and nobody is woken.
fn close_while_epoll_wait(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "epoll_wait",
        |a| {
            let set = fd_of(sys::epoll_create());
            let _ = sys::epoll_ctl(set, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1);
            let thread = asleep(move || show::events(&sys::epoll_wait(set, 4, 400)));
            let closed = a.close();
            format!("{closed} {}", outcome(thread))
        },
        |b| {
            let ended = b.ready(FIN);
            let first = b.send(b"late", 0);
            // A close that is still under way has not answered that yet.
            let reset = b.ready(POLLHUP);
            format!("{ended} {first} {reset} {}", b.send(b"later", 0))
        },
    );
}

/// poll goes on with the socket that it was called for, and finds the number closed at its end.
fn close_while_poll(stage: &mut Stage) {
    stage.connect();
    stage.a("poll", |a| {
        let fd = a.fd;
        let thread = asleep(move || {
            let (ret, bits) = sys::poll(&[(fd, POLLIN)], 300);
            format!("{} {}", show::ret(ret), show::bits(bits[0]))
        });
        let closed = a.close();
        format!("{closed} {}", outcome(thread))
    });
    stage.b("end", |b| b.ready(FIN));
}
