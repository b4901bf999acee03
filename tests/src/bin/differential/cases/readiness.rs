//! poll and select: what they say, when they wake, how they mix with what is no socket.

use libc::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, POLLRDHUP, SHUT_WR};

use super::{Case, Needs, case};
use crate::end::{End, Side, patience};
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("poll_states", Needs::Steps, poll_states),
    case("poll_asks_little", Needs::Steps, poll_asks_little),
    case("poll_mixed", Needs::Steps, poll_mixed),
    case("poll_bad", Needs::Steps, poll_bad),
    case("poll_full", Needs::Steps, poll_full),
    case("poll_woken", Needs::Both, poll_woken),
    case("poll_many", Needs::Both, poll_many),
    case("select_states", Needs::Steps, select_states),
    case("select_bad", Needs::Steps, select_bad),
    case("select_time_left", Needs::Steps, select_time_left),
    case("select_woken", Needs::Both, select_woken),
    case("lowat", Needs::Steps, lowat),
];

const IN_OUT: i16 = POLLIN | POLLOUT;
const FIN: i16 = IN_OUT | POLLRDHUP;

fn all(polled: (sys::Ret, Vec<i16>)) -> String {
    let bits: Vec<String> = polled.1.iter().map(|&bits| show::bits(bits)).collect();
    format!("{} [{}]", show::ret(polled.0), bits.join(" "))
}

fn poll_states(stage: &mut Stage) {
    stage.connect();
    stage.a("idle", |a| a.ready(POLLOUT));
    stage.a("idle, nothing asked", |a| all(sys::poll(&[(a.fd, 0)], 0)));
    stage.a("idle, in", |a| all(sys::poll(&[(a.fd, POLLIN)], 0)));
    stage.a("idle, in, 20 ms", |a| all(sys::poll(&[(a.fd, POLLIN)], 20)));
    stage.b("say", |b| b.say("data"));
    stage.a("data", |a| a.ready(IN_OUT));
    stage.a("data, all bits", |a| all(sys::poll(&[(a.fd, 0x7fff)], 0)));
    stage.a("data, rdnorm", |a| {
        all(sys::poll(&[(a.fd, 0x40 | 0x80 | 0x100 | 0x200)], 0))
    });
    stage.a("part", |a| a.recv(3, 0));
    stage.a("still data", |a| a.ready(IN_OUT));
    stage.a("rest", |a| a.recv(3, 0));
    stage.a("idle", |a| a.ready(POLLOUT));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| a.ready(FIN));
    stage.a("fin, all bits", |a| all(sys::poll(&[(a.fd, 0x7fff)], 0)));
    stage.a("fin, out only", |a| all(sys::poll(&[(a.fd, POLLOUT)], 0)));
    stage.a("fin, rdhup only", |a| {
        all(sys::poll(&[(a.fd, POLLRDHUP)], 0))
    });
    stage.a("end", |a| a.recv(3, 0));
    stage.a("fin", |a| a.ready(FIN));
    stage.a("shutdown", |a| a.shutdown(SHUT_WR));
    stage.a("both fin", |a| a.ready(FIN | POLLHUP));
    stage.a("nothing asked", |a| all(sys::poll(&[(a.fd, 0)], 0)));
    stage.b("both fin", |b| b.ready(FIN | POLLHUP));
}

fn poll_asks_little(stage: &mut Stage) {
    stage.connect();
    stage.a("linger", |a| show::ret(sys::set_linger(a.fd, 1, 0)));
    stage.a("close", End::close);
    stage.b("ready", |b| b.ready(FIN | POLLHUP | POLLERR));
    stage.b("nothing asked", |b| all(sys::poll(&[(b.fd, 0)], 1000)));
    stage.b("pri", |b| all(sys::poll(&[(b.fd, POLLPRI)], 1000)));
    stage.b("recv", |b| b.recv(1, 0));
    stage.b("nothing asked", |b| all(sys::poll(&[(b.fd, 0)], 1000)));
}

fn poll_mixed(stage: &mut Stage) {
    stage.connect();
    stage.a("pipe", |a| {
        let (read, write) = sys::pipe();
        a.more = vec![read, write];
        "made".to_owned()
    });
    let ask = |a: &End, timeout| {
        let (read, write) = (a.more[0], a.more[1]);
        all(sys::poll(
            &[
                (-1, POLLIN),
                (read, POLLIN),
                (a.fd, POLLIN),
                (write, POLLOUT),
                (a.fd, POLLOUT),
            ],
            timeout,
        ))
    };
    stage.a("empty", |a| ask(a, 0));
    stage.a("write pipe", |a| show::ret(sys::write(a.more[1], b"p")));
    stage.a("pipe ready", |a| ask(a, 1000));
    stage.b("say", |b| b.say("data"));
    stage.a("settle", |a| a.ready(IN_OUT));
    stage.a("both ready", |a| ask(a, 1000));
    stage.a("read pipe", |a| {
        show::ret(sys::read(a.more[0], &mut [0; 4]))
    });
    stage.a("socket ready", |a| ask(a, 1000));
    stage.a("hear", |a| a.hear(4));
    stage.a("close pipe's writer", |a| show::ret(sys::close(a.more[1])));
    stage.a("closed descriptor in the list", |a| ask(a, 0));
    stage.a("same descriptor three times", |a| {
        all(sys::poll(&[(a.fd, POLLOUT); 3], 0))
    });
    stage.a("only negative", |a| {
        all(sys::poll(&[(-1, POLLIN), (-a.fd, POLLIN)], 10))
    });
    stage.a("no entries", |_| show::ret(sys::poll_at(0, 0, 10)));
}

fn poll_bad(stage: &mut Stage) {
    stage.connect();
    stage.a("unused number", |a| {
        all(sys::poll(&[(987, POLLIN), (a.fd, POLLOUT)], 1000))
    });
    stage.a("null", |_| show::ret(sys::poll_at(0, 1, 0)));
    stage.a("page one", |_| show::ret(sys::poll_at(16, 2, 0)));
    stage.a("too many", |_| show::ret(sys::poll_at(4096, 1 << 40, 0)));
    stage.a("closed", |a| {
        let fd = sys::fd_of(sys::dup(a.fd));
        let _ = sys::close(fd);
        all(sys::poll(&[(fd, POLLIN)], 1000)) + &format!(" {POLLNVAL}")
    });
}

/// Sends until nothing fits; how much that was.
fn fill(stage: &mut Stage) -> usize {
    let pattern = Pattern::new(23);
    let mut done = 0;
    stage.a("fill", |a| {
        loop {
            match sys::send(
                a.fd,
                pattern.at(done, 65_536),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            ) {
                Ok(sent) => done += usize::try_from(sent).unwrap_or(0),
                // The kernel moves bytes on for a while: full is when it says so twice.
                Err(libc::EAGAIN) => {
                    std::thread::sleep(core::time::Duration::from_millis(30));
                    if sys::send(a.fd, pattern.at(done, 1), libc::MSG_DONTWAIT).is_err() {
                        return format!("full {}", done > 0);
                    }
                    done += 1;
                }
                Err(error) => return show::errno(error),
            }
        }
    });
    let filled = stage.share(Side::A, |_| done as u64);
    usize::try_from(filled).unwrap_or(0)
}

/// Takes all that it was filled with.
fn drain(end: &End, filled: usize) -> String {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while done < filled {
        match sys::recv(end.fd, &mut buffer, libc::MSG_DONTWAIT) {
            Ok(0) => return "end".to_owned(),
            Ok(got) => done += usize::try_from(got).unwrap_or(0),
            Err(libc::EAGAIN) => {
                if sys::poll(&[(end.fd, POLLIN)], patience()).0 == Ok(0) {
                    return format!("{done} of {filled}");
                }
            }
            Err(error) => return show::errno(error),
        }
    }
    "drained".to_owned()
}

fn poll_full(stage: &mut Stage) {
    stage.connect();
    let filled = fill(stage);
    stage.a("full", |a| a.ready(0));
    stage.a("full, out, 20 ms", |a| {
        all(sys::poll(&[(a.fd, POLLOUT)], 20))
    });
    stage.a("full, select", |a| {
        show::ret(sys::select(&[], &[a.fd], &[], Some(20), None).ret)
    });
    stage.b("say", |b| b.say("hi"));
    stage.a("full and data", |a| a.ready(POLLIN));
    stage.a("hear", |a| a.hear(2));
    stage.b("drain", |b| drain(b, filled));
    stage.a("space", |a| a.ready(POLLOUT));
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
    let _ = fill(stage);
    // The reset is for bytes that lie there unread.
    stage.b("data", |b| b.ready(IN_OUT));
    stage.b("close", End::close);
    stage.a("reset", |a| a.ready(FIN | POLLHUP | POLLERR));
}

fn let_it_sleep() {
    std::thread::sleep(core::time::Duration::from_millis(40));
}

fn poll_woken(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "by data",
        |a| all(sys::poll(&[(a.fd, POLLIN)], patience())),
        |b| {
            let_it_sleep();
            b.say("x")
        },
    );
    stage.a("hear", |a| a.hear(1));
    stage.both(
        "by data, without end",
        |a| all(sys::poll(&[(a.fd, POLLIN | POLLRDHUP)], -1)),
        |b| {
            let_it_sleep();
            b.say("x")
        },
    );
    stage.a("hear", |a| a.hear(1));
    let filled = fill(stage);
    stage.both(
        "by space",
        |a| all(sys::poll(&[(a.fd, POLLOUT | POLLIN)], patience())),
        |b| {
            let_it_sleep();
            drain(b, filled)
        },
    );
    stage.both(
        "by fin",
        |a| all(sys::poll(&[(a.fd, POLLIN | POLLRDHUP)], patience())),
        |b| {
            let_it_sleep();
            b.shutdown(SHUT_WR)
        },
    );
    stage.both(
        "by reset, nothing asked",
        |a| all(sys::poll(&[(a.fd, 0)], patience())),
        |b| {
            let_it_sleep();
            let _ = sys::set_linger(b.fd, 1, 0);
            b.close()
        },
    );
    stage.a("recv", |a| a.recv(1, 0));
}

/// More entries than any array on a stack.
fn poll_many(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "three hundred entries",
        |a| {
            let (read, _) = sys::pipe();
            let mut wants = vec![(read, POLLIN); 300];
            wants[299] = (a.fd, POLLIN);
            let (ret, bits) = sys::poll(&wants, patience());
            format!("{} {}", show::ret(ret), show::bits(bits[299]))
        },
        |b| {
            let_it_sleep();
            b.say("x")
        },
    );
    stage.a("hear", |a| a.hear(1));
}

fn sets(selected: &sys::Selected) -> String {
    let set = |set: &[bool]| {
        set.iter()
            .map(|&on| if on { '1' } else { '0' })
            .collect::<String>()
    };
    format!(
        "{} r{} w{} e{}",
        show::ret(selected.ret),
        set(&selected.read),
        set(&selected.write),
        set(&selected.except)
    )
}

fn select_states(stage: &mut Stage) {
    stage.connect();
    stage.a("idle", |a| {
        sets(&sys::select(&[a.fd], &[a.fd], &[a.fd], Some(0), None))
    });
    stage.a("idle, read", |a| {
        sets(&sys::select(&[a.fd], &[], &[], Some(10), None))
    });
    stage.b("say", |b| b.say("data"));
    stage.a("settle", |a| a.ready(IN_OUT));
    stage.a("data", |a| {
        sets(&sys::select(&[a.fd], &[a.fd], &[a.fd], None, None))
    });
    stage.a("data, pselect", |a| {
        let none = sys::signal_set(None);
        sets(&sys::select(&[a.fd], &[], &[a.fd], Some(100), Some(&none)))
    });
    stage.a("with a pipe", |a| {
        let (read, write) = sys::pipe();
        sets(&sys::select(&[read, a.fd], &[write], &[], Some(1000), None))
    });
    stage.a("hear", |a| a.hear(4));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("settle", |a| a.ready(FIN));
    stage.a("fin", |a| {
        sets(&sys::select(&[a.fd], &[a.fd], &[a.fd], None, None))
    });
    stage.b("reset", |b| {
        let _ = sys::set_linger(b.fd, 1, 0);
        b.close()
    });
    stage.a("settle", |a| a.ready(FIN | POLLHUP | POLLERR));
    stage.a("reset", |a| {
        sets(&sys::select(&[a.fd], &[a.fd], &[a.fd], None, None))
    });
}

fn select_bad(stage: &mut Stage) {
    stage.connect();
    stage.a("closed descriptor", |a| {
        let fd = sys::fd_of(sys::dup(a.fd));
        let _ = sys::close(fd);
        show::ret(sys::select(&[a.fd, fd], &[], &[], Some(0), None).ret)
    });
    stage.a("negative time", |a| {
        show::ret(sys::select(&[a.fd], &[], &[], Some(-1000), None).ret)
    });
    stage.a("nothing", |_| {
        show::ret(sys::select(&[], &[], &[], Some(10), None).ret)
    });
}

fn select_time_left(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("x"));
    stage.a("settle", |a| a.ready(IN_OUT));
    // Linux tells what is left: nearly all if something is ready, nothing after a timeout.
    stage.a("ready", |a| {
        let selected = sys::select(&[a.fd], &[], &[], Some(60_000), None);
        format!(
            "{} {}",
            sets(&selected),
            (30_000..=60_000).contains(&selected.left_ms)
        )
    });
    stage.a("hear", |a| a.hear(1));
    stage.a("timeout", |a| {
        let selected = sys::select(&[a.fd], &[], &[], Some(30), None);
        format!("{} {}", sets(&selected), selected.left_ms)
    });
}

fn select_woken(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "by data",
        |a| {
            sets(&sys::select(
                &[a.fd],
                &[],
                &[a.fd],
                Some(i64::from(patience())),
                None,
            ))
        },
        |b| {
            let_it_sleep();
            b.say("x")
        },
    );
    stage.a("hear", |a| a.hear(1));
    let filled = fill(stage);
    stage.both(
        "by space",
        |a| sets(&sys::select(&[a.fd], &[a.fd], &[], None, None)),
        |b| {
            let_it_sleep();
            drain(b, filled)
        },
    );
    stage.both(
        "by end",
        |a| sets(&sys::select(&[a.fd], &[], &[], None, None)),
        |b| {
            let_it_sleep();
            b.close()
        },
    );
}

fn lowat(stage: &mut Stage) {
    stage.connect();
    stage.a("lowat", |a| {
        show::ret(sys::setsockopt(
            a.fd,
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            10,
        ))
    });
    stage.b("say", |b| b.say("12345"));
    stage.a("too few", |a| a.ready(POLLOUT));
    stage.a("too few, select", |a| {
        sets(&sys::select(&[a.fd], &[], &[], Some(30), None))
    });
    stage.b("say", |b| b.say("67890"));
    stage.a("enough", |a| a.ready(IN_OUT));
    stage.a("recv", |a| a.recv(100, 0));
    stage.b("say", |b| b.say("abc"));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("few and fin", |a| a.ready(FIN));
    stage.a("recv", |a| a.recv(100, 0));
    stage.a("recv", |a| a.recv(100, 0));
}
