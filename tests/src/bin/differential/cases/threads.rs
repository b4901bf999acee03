//! Several threads on one connection, and on many.

use std::sync::mpsc;
use std::time::Duration;

use libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLET, EPOLLOUT};

use super::{Case, Needs, case};
use crate::end::{End, Side, patience};
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, fd_of};

pub(super) const CASES: &[Case] = &[
    case("two_readers", Needs::Both, two_readers),
    case("two_writers", Needs::Both, two_writers),
    case("two_waiters", Needs::Both, two_waiters),
    case(
        "a_connection_per_thread",
        Needs::Both,
        a_connection_per_thread,
    ),
    case("registered_while_waited_on", Needs::Both, |stage| {
        registered_while_waited_on(stage, false);
    }),
    case("registered_and_told_once", Needs::Both, |stage| {
        registered_while_waited_on(stage, true);
    }),
];

/// How often each byte occurs, as one number.
fn census(counts: &[u64; 256]) -> String {
    let bytes: Vec<u8> = counts
        .iter()
        .flat_map(|count| count.to_le_bytes())
        .collect();
    format!("{} {:016x}", counts.iter().sum::<u64>(), show::hash(&bytes))
}

fn two_readers(stage: &mut Stage) {
    const BYTES: usize = 3_000_000;
    let pattern = Pattern::new(37);
    stage.connect();
    stage.both(
        "pour",
        |a| {
            format!(
                "{} {}",
                a.pour(&pattern, BYTES, 1),
                a.shutdown(libc::SHUT_WR)
            )
        },
        |b| {
            let read = |mut end: End| {
                let mut counts = [0u64; 256];
                let mut buffer = vec![0; 7000];
                loop {
                    match end.recv_some(&mut buffer) {
                        Ok(got) if got > 0 => {
                            let got = usize::try_from(got).unwrap_or(0);
                            for &byte in &buffer[..got] {
                                counts[usize::from(byte)] += 1;
                            }
                        }
                        _ => return counts,
                    }
                }
            };
            let [one, other] = [b.another(), b.another()];
            let other = std::thread::spawn(move || read(other));
            let mut counts = read(one);
            for (sum, more) in counts.iter_mut().zip(other.join().unwrap_or([0; 256])) {
                *sum += more;
            }
            census(&counts)
        },
    );
}

fn two_writers(stage: &mut Stage) {
    const EACH: usize = 1_500_000;
    let patterns = [Pattern::new(41), Pattern::new(43)];
    stage.connect();
    stage.both(
        "pour",
        |a| {
            let poured: Vec<String> = std::thread::scope(|scope| {
                let writers: Vec<_> = patterns
                    .iter()
                    .map(|pattern| {
                        let mut end = a.another();
                        scope.spawn(move || end.pour(pattern, EACH, 3))
                    })
                    .collect();
                writers
                    .into_iter()
                    .map(|writer| writer.join().unwrap_or_default())
                    .collect()
            });
            format!("{} {}", poured.join(" "), a.close())
        },
        |b| {
            let (bytes, ended) = b.recv_all(2 * EACH + 10);
            let mut counts = [0u64; 256];
            for &byte in &bytes {
                counts[usize::from(byte)] += 1;
            }
            format!("{} {ended:?}", census(&counts))
        },
    );
}

/// Two threads wait; each message wakes one of them, and none is lost.
fn two_waiters(stage: &mut Stage) {
    const MESSAGES: usize = 300;
    stage.connect();
    stage.both(
        "messages",
        |a| {
            for _ in 0..MESSAGES {
                let _ = a.say("m");
                let _ = a.hear(1);
            }
            a.shutdown(libc::SHUT_WR)
        },
        |b| {
            let serve = |mut end: End| {
                let mut served = 0;
                let mut byte = [0];
                while end.recv_some(&mut byte) == Ok(1) {
                    let _ = end.send_some(&byte);
                    served += 1;
                }
                served
            };
            let [one, other] = [b.another(), b.another()];
            let other = std::thread::spawn(move || serve(other));
            let served = serve(one) + other.join().unwrap_or(0);
            format!("served {served}")
        },
    );
}

fn a_connection_per_thread(stage: &mut Stage) {
    const THREADS: usize = 6;
    const ROUNDS: usize = 200;
    let listener = stage.listen(Side::B);
    stage.both(
        "talk",
        |_| {
            let client = move || {
                let mut end = End::new(Side::A, crate::form::Form::Blocking);
                end.hold(fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
                let _ = sys::connect(end.fd, listener.address);
                let good = (0..ROUNDS)
                    .filter(|_| end.say("question") == "sent 8" && end.hear(6) == "\"answer\"")
                    .count();
                let _ = end.close();
                good
            };
            let clients: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(client)).collect();
            let good: usize = clients
                .into_iter()
                .map(|client| client.join().unwrap_or(0))
                .sum();
            format!("good {good}")
        },
        |_| {
            let serve = |fd| {
                let mut end = End::new(Side::B, crate::form::Form::Blocking);
                end.hold(fd);
                let mut served = 0;
                while end.hear(8) == "\"question\"" && end.say("answer") == "sent 6" {
                    served += 1;
                }
                let _ = end.close();
                served
            };
            let servers: Vec<_> = (0..THREADS)
                .map(|_| {
                    let fd = fd_of(sys::accept4(listener.fd, 0));
                    std::thread::spawn(move || serve(fd))
                })
                .collect();
            let served: usize = servers
                .into_iter()
                .map(|server| server.join().unwrap_or(0))
                .sum();
            format!("served {served}")
        },
    );
}

/// A thread waits on a set while another one puts a socket into it that is ready: its edge comes while
/// the registration is still being made, and comes once (`once`: that is what is told).
fn registered_while_waited_on(stage: &mut Stage, once: bool) {
    const ROUNDS: u64 = 400;
    stage.connect();
    stage.a("register", |a| {
        let (epfd, fd) = (fd_of(sys::epoll_create()), a.fd);
        a.more.push(epfd);
        let (tell, told) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            while let Ok(events) = sys::epoll_wait(epfd, 1, patience()) {
                for (_, data) in events {
                    if tell.send(data).is_err() || data == ROUNDS {
                        return;
                    }
                }
            }
        });
        let patience = Duration::from_millis(u64::from(patience().unsigned_abs()));
        let (mut missed, mut again) = (Vec::new(), Vec::new());
        'rounds: for round in 1..=ROUNDS {
            let _ = sys::epoll_ctl(epfd, EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLET, round);
            loop {
                match told.recv_timeout(patience) {
                    Ok(now) if now == round => break,
                    Ok(before) => again.push(before),
                    Err(_) => {
                        missed.push(round);
                        break 'rounds;
                    }
                }
            }
            let _ = sys::epoll_ctl(epfd, EPOLL_CTL_DEL, fd, 0, 0);
        }
        if missed.is_empty() {
            let _ = waiter.join();
        }
        if once {
            format!("again {again:?}")
        } else {
            format!("missed {missed:?}")
        }
    });
}
