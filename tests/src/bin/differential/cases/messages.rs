//! Messages and vectors with more than bytes: control data, addresses, batches, flags of their own.

use libc::{
    IPPROTO_TCP, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_PEEK, MSG_TRUNC, MSG_WAITFORONE,
    POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SHUT_WR, SIGPIPE, SOL_SOCKET,
};

use super::{Case, Needs, case};
use crate::end::{End, Side};
use crate::pattern::Pattern;
use crate::stage::{Family, Stage};
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("inq", Needs::Steps, inq),
    case("inq_in_streams", Needs::Both, inq_in_streams),
    case("timestamps_fresh", Needs::Steps, |stage| {
        timestamps(stage, true);
    }),
    case("timestamps_later", Needs::Steps, |stage| {
        timestamps(stage, false);
    }),
    case("control_of_a_sender", Needs::Steps, control_of_a_sender),
    case("flags_of_a_message", Needs::Steps, flags_of_a_message),
    case("flags_of_the_kernel", Needs::Steps, flags_of_the_kernel),
    case("vector_over_itself", Needs::Steps, vector_over_itself),
    case("lengths_of_addresses", Needs::Steps, lengths_of_addresses),
    case("peek_and_trunc", Needs::Steps, peek_and_trunc),
    case("receive_batches", Needs::Steps, receive_batches),
    case(
        "receive_batch_at_the_end",
        Needs::Steps,
        receive_batch_at_the_end,
    ),
    case(
        "receive_batch_after_reset",
        Needs::Steps,
        receive_batch_after_reset,
    ),
    case("send_batches", Needs::Steps, send_batches),
    case("send_batch_in_part", Needs::Both, send_batch_in_part),
    case(
        "send_batch_after_end",
        Needs::Processes,
        send_batch_after_end,
    ),
    case("flags_of_vectors", Needs::Steps, flags_of_vectors),
    case(
        "vector_without_signal",
        Needs::Processes,
        vector_without_signal,
    ),
    case("at_mark", Needs::Steps, at_mark),
];

/// MSG_CMSG_COMPAT is no program's to give.
fn flags_of_the_kernel(stage: &mut Stage) {
    const COMPAT: i32 = i32::MIN;
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("refused", |a| {
        let mut out = [0; 5];
        let results = [
            sys::recvmsg(a.fd, &mut [&mut out], COMPAT).0,
            sys::recvmmsg(a.fd, &mut [&mut out], COMPAT, None).0,
            sys::sendmsg(a.fd, &[b"x"], COMPAT),
            sys::sendmmsg(a.fd, &[b"x"], COMPAT).0,
        ];
        results.map(show::ret).join(" ")
    });
    stage.a("hear", |a| a.hear(5));
    stage.a("say", |a| a.say("y"));
    stage.b("hear", |b| b.hear(1));
}

/// A vector whose first buffer is its own second entry: the kernel works on a copy.
fn vector_over_itself(stage: &mut Stage) {
    stage.connect();
    for _ in 0..2 {
        stage.b("say", |b| b.say("0123456789abcdefghijklmnopqrstuv"));
        stage.a("arrived", |a| a.arrived(32));
        stage.a("readv", |a| {
            let mut out = [0; 16];
            let got = sys::readv_over_itself(a.fd, &mut out);
            format!("{} {}", show::ret(got), show::data(&out))
        });
    }
}

const TCP_INQ: i32 = 36;

/// One receive with room for control data; the values of control messages only if `values`.
fn beside(end: &End, room: usize, flags: i32, control: usize, values: bool) -> String {
    let mut out = vec![0; room];
    let (got, beside) = sys::recvmsg_with_control(end.fd, &mut out, flags, control);
    let parts: Vec<String> = beside
        .parts
        .iter()
        .map(|(level, kind, len, value)| {
            let value = if values {
                value.to_string()
            } else {
                "?".to_owned()
            };
            format!("{level}/{kind} of {len}: {value}")
        })
        .collect();
    format!(
        "{} flags {:#x} control {} [{}]",
        show::got(got, &out),
        beside.flags,
        beside.control_len,
        parts.join(", ")
    )
}

/// TCP_INQ: how many bytes are left behind those of the message.
fn inq(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("0123456789"));
    stage.a("arrived", |a| a.arrived(10));
    stage.a("not asked for", |a| beside(a, 1, 0, 200, true));
    stage.a("set", |a| {
        let wrong = sys::setsockopt(a.fd, IPPROTO_TCP, TCP_INQ, 2);
        let set = sys::setsockopt(a.fd, IPPROTO_TCP, TCP_INQ, 1);
        let got = sys::getsockopt(a.fd, IPPROTO_TCP, TCP_INQ);
        [wrong, set, got].map(show::ret).join(" ")
    });
    stage.a("part", |a| beside(a, 2, 0, 200, true));
    stage.a("peek", |a| beside(a, 3, MSG_PEEK, 200, true));
    for room in [0, 10, 15, 16, 19, 20, 23, 24, 25] {
        stage.a("little room", |a| beside(a, 3, MSG_PEEK, room, true));
    }
    stage.a("discard", |a| beside(a, 2, MSG_TRUNC, 200, true));
    stage.a("recvmmsg", |a| {
        let (got, bytes, _) = sys::recvmmsg_copies(a.fd, &mut [0; 1], 2, 0, None);
        format!("{} {bytes}", show::ret(got))
    });
    stage.a("rest", |a| beside(a, 20, MSG_CMSG_CLOEXEC, 200, true));
    stage.a("nothing", |a| beside(a, 20, MSG_DONTWAIT, 200, true));
    stage.b("say", |b| b.say("last"));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP));
    stage.a("no bytes", |a| beside(a, 0, 0, 200, true));
    stage.a("before the end", |a| beside(a, 3, 0, 200, true));
    stage.a("last byte", |a| beside(a, 3, 0, 200, true));
    stage.a("end", |a| beside(a, 3, 0, 200, true));
    stage.a("peek end", |a| beside(a, 3, MSG_PEEK, 200, true));
    stage.a("unset", |a| {
        show::ret(sys::setsockopt(a.fd, IPPROTO_TCP, TCP_INQ, 0))
    });
    stage.a("end", |a| beside(a, 3, 0, 200, true));
}

/// A reader that only believes in TCP_INQ loses nothing.
fn inq_in_streams(stage: &mut Stage) {
    const BYTES: usize = 2_000_000;
    let pattern = Pattern::new(89);
    stage.connect();
    stage.a("set", |a| {
        show::ret(sys::setsockopt(a.fd, IPPROTO_TCP, TCP_INQ, 1))
    });
    stage.both(
        "stream",
        |a| {
            let mut done = 0;
            let mut buffer = vec![0; 30_000];
            loop {
                let mut beside = None;
                let got = a.patiently(false, |fd| {
                    let (got, parts) = sys::recvmsg_with_control(fd, &mut buffer, 0, 64);
                    beside = parts.parts.first().map(|part| part.3);
                    got
                });
                let Ok(got) = got.map(|got| usize::try_from(got).unwrap_or(0)) else {
                    return format!("{done} then {}", show::ret(got));
                };
                if buffer.get(..got) != Some(pattern.at(done, got)) {
                    return format!("other bytes between {done} and {}", done + got);
                }
                done += got;
                let left = beside.unwrap_or(-1);
                // What is said to be there is there, an end of stream apart.
                let there = sys::ioctl(a.fd, sys::FIONREAD, -1).1;
                if there + 1 < left {
                    return format!("{left} said, {there} there at {done}");
                }
                if got == 0 {
                    return format!("{done}");
                }
            }
        },
        |b| format!("{} {}", b.pour(&pattern, BYTES, 14), b.close()),
    );
}

/// SO_TIMESTAMP and its relatives: when the bytes came.
fn timestamps(stage: &mut Stage, fresh: bool) {
    if fresh {
        stage.connect_cold(Family::V4);
    } else {
        stage.connect();
    }
    stage.a("clock", |a| {
        // The kernel takes times of packets a moment after the first socket that asks for them; this
        // one keeps it at that.
        let spare = sys::fd_of(sys::socket(libc::AF_INET, libc::SOCK_DGRAM));
        let set = sys::setsockopt(spare, SOL_SOCKET, libc::SO_TIMESTAMP, 1);
        a.more.push(spare);
        std::thread::sleep(core::time::Duration::from_millis(800));
        show::ret(set)
    });
    for (label, name, value) in [
        ("timestamp", 29, 1),
        ("timestamp, nanoseconds", 35, 1),
        ("timestamp beyond 2038", 63, 1),
        ("none", 63, 0),
        ("timestamping by software", 37, 0x18),
    ] {
        stage.a(label, |a| {
            show::ret(sys::setsockopt(a.fd, SOL_SOCKET, name, value))
        });
        stage.b("say", |b| b.say("hello"));
        stage.a("arrived", |a| a.arrived(5));
        stage.a("part", |a| beside(a, 3, 0, 200, false));
        stage.a("rest", |a| beside(a, 3, 0, 200, false));
    }
    stage.a("say", |a| a.say("back"));
    stage.b("hear", |b| b.hear(4));
}

fn control_of_a_sender(stage: &mut Stage) {
    stage.connect();
    for (label, head, control_len) in [
        ("descriptors", (SOL_SOCKET, libc::SCM_RIGHTS, 20), 24),
        ("credentials", (SOL_SOCKET, libc::SCM_CREDENTIALS, 28), 32),
        ("unknown", (SOL_SOCKET, 99, 20), 24),
        ("of another level", (99, 1, 20), 24),
        ("of IP", (libc::IPPROTO_IP, libc::IP_TOS, 20), 24),
        ("too short", (SOL_SOCKET, libc::SCM_RIGHTS, 3), 24),
        (
            "longer than there is",
            (SOL_SOCKET, libc::SCM_RIGHTS, 200),
            24,
        ),
        ("cut off", (SOL_SOCKET, 99, 20), 4),
        ("none", (0, 0, 0), 0),
        ("too much", (SOL_SOCKET, 99, 20), 1 << 30),
        ("far too much", (SOL_SOCKET, 99, 20), 1 << 40),
    ] {
        stage.a(label, |a| {
            let some = sys::sendmsg_with_control(a.fd, b"abc", head, control_len);
            let nothing = sys::sendmsg_with_control(a.fd, b"", head, control_len);
            format!("{} {}", show::ret(some), show::ret(nothing))
        });
    }
    stage.a("say", |a| a.say("."));
    stage.b("hear", |b| {
        let mut all = Vec::new();
        let mut byte = [0];
        while b.recv_some(&mut byte) == Ok(1) && byte != *b"." {
            all.push(byte[0]);
        }
        show::data(&all)
    });
}

fn flags_of_a_message(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    for flags in [0, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC] {
        stage.a("one", |a| beside(a, 1, flags, 100, true));
    }
    stage.a("without room", |a| beside(a, 1, 0, 0, true));
    stage.a("error queue", |a| beside(a, 1, MSG_ERRQUEUE, 100, true));
    stage.a("error queue in a batch", |a| {
        show::ret(sys::recvmmsg(a.fd, &mut [&mut [0; 4]], MSG_ERRQUEUE, None).0)
    });
    stage.a("nothing", |a| beside(a, 1, MSG_DONTWAIT, 100, true));
}

fn lengths_of_addresses(stage: &mut Stage) {
    stage.connect();
    stage.a("sendto", |a| {
        let data = b"x".as_ptr().expose_provenance();
        let name = [0u8; 300].as_ptr().expose_provenance();
        [0, 1, 16, 128, 129, 300, u32::MAX]
            .map(|len| show::ret(sys::sendto_at(a.fd, data, 1, name, len)))
            .join(" ")
    });
    stage.a("sendto nobody", |a| {
        let data = b"x".as_ptr().expose_provenance();
        [0, 16, 300]
            .map(|len| show::ret(sys::sendto_at(a.fd, data, 1, 0, len)))
            .join(" ")
    });
    stage.b("arrived", |b| b.arrived(7));
    stage.b("recvfrom", |b| {
        let mut out = [0u8; 4];
        let to = out.as_mut_ptr().expose_provenance();
        let name = [0u8; 300].as_mut_ptr().expose_provenance();
        [0u32, 16, 1000, u32::MAX]
            .map(|len| {
                let mut len = len;
                let at = (&raw mut len).expose_provenance();
                let got = sys::recvfrom_at(b.fd, to, 1, name, at);
                format!("{} {}", show::ret(got), len.cast_signed())
            })
            .join(", ")
    });
    stage.b("recvmsg", |b| {
        let mut shown = [0, 77, u32::MAX]
            .map(|len| {
                let (got, after) = sys::recvmsg_unnamed(b.fd, &mut [0; 1], len);
                format!("{} {}", show::ret(got), after.cast_signed())
            })
            .join(", ");
        shown += &b.recv(20, MSG_DONTWAIT);
        shown
    });
}

fn peek_and_trunc(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("0123456789"));
    stage.a("arrived", |a| a.arrived(10));
    for flags in [
        MSG_PEEK | MSG_TRUNC,
        MSG_PEEK,
        MSG_TRUNC,
        MSG_TRUNC | libc::MSG_WAITALL,
        MSG_PEEK | libc::MSG_WAITALL,
        MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT,
    ] {
        stage.a("three", |a| {
            let mut buffer = *b".....";
            let got = sys::recv(a.fd, &mut buffer[..3], flags);
            format!("{} {}", show::ret(got), show::data(&buffer))
        });
    }
    stage.a("more than there is", |a| {
        let mut buffer = [b'.'; 20];
        let got = sys::recv(a.fd, &mut buffer, MSG_PEEK | MSG_TRUNC);
        format!("{} {}", show::ret(got), show::data(&buffer))
    });
    stage.a("no room", |a| {
        let shown = [MSG_TRUNC, MSG_PEEK | MSG_TRUNC]
            .map(|flags| show::ret(sys::recv(a.fd, &mut [], flags)));
        shown.join(" ")
    });
    stage.a("rest", |a| a.recv(20, 0));
}

fn receive_batches(stage: &mut Stage) {
    stage.connect();
    let batch = |a: &End, room: usize, count: usize, flags: i32, time: Option<i64>| {
        let (got, bytes, left) = sys::recvmmsg_copies(a.fd, &mut vec![0; room], count, flags, time);
        format!("{} {bytes} {left:?}", show::ret(got))
    };
    for (label, room, count, flags, time) in [
        ("what is there", 2, 5, MSG_DONTWAIT, Some(1500)),
        ("one", 3, 5, MSG_WAITFORONE, Some(10_500)),
        ("no time", 2, 5, 0, Some(0)),
        ("as many as asked for", 1, 5, 0, Some(3500)),
        ("as many as asked for, for ever", 1, 5, 0, None),
    ] {
        stage.b("say", |b| b.say("hello"));
        stage.a("arrived", |a| a.arrived(5));
        stage.a(label, |a| batch(a, room, count, flags, time));
        stage.a("rest", |a| a.recv(20, MSG_DONTWAIT));
    }
    stage.a("nothing", |a| batch(a, 2, 5, MSG_DONTWAIT, Some(1500)));
    stage.a("nothing wanted", |a| batch(a, 2, 0, 0, Some(1500)));
    stage.a("no time at all", |a| {
        [-1, -1500].map(|ms| batch(a, 2, 1, 0, Some(ms))).join(" ")
    });
}

fn receive_batch_at_the_end(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP));
    stage.a("bytes and ends", |a| {
        let (got, bytes, _) = sys::recvmmsg_copies(a.fd, &mut [0; 2], 1500, 0, None);
        format!("{} {bytes}", show::ret(got))
    });
}

fn receive_batch_after_reset(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.b("reset", |b| {
        let _ = sys::set_linger(b.fd, 1, 0);
        b.close()
    });
    stage.a("reset", |a| {
        a.ready(POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR)
    });
    stage.a("the error comes first", |a| {
        let mut shown = Vec::new();
        for _ in 0..3 {
            let (got, bytes, _) = sys::recvmmsg_copies(a.fd, &mut [0; 2], 2, 0, None);
            shown.push(format!("{} {bytes}", show::ret(got)));
        }
        shown.join(", ")
    });
    stage.a("rest", |a| a.recv(10, 0));
}

fn send_batches(stage: &mut Stage) {
    stage.connect();
    stage.a("two thousand", |a| {
        let (sent, bytes) = sys::sendmmsg_copies(a.fd, b"ab", 2000);
        format!("{} {bytes}", show::ret(sent))
    });
    stage.b("hear", |b| b.hear(2048));
    stage.a("of nothing", |a| {
        let (sent, bytes) = sys::sendmmsg_copies(a.fd, b"", 3);
        format!("{} {bytes}", show::ret(sent))
    });
    stage.a("say", |a| a.say("end"));
    stage.b("hear", |b| b.hear(3));
}

/// A batch that does not fit: what follows a message that was sent in part is not sent at all.
fn send_batch_in_part(stage: &mut Stage) {
    const PART: usize = 300_000;
    let pattern = Pattern::new(97);
    stage.connect();
    stage.both(
        "batches",
        |a| {
            let _ = sys::set_nonblocking(a.fd, true);
            let data = pattern.first(PART);
            let mut total = 0u64;
            let mut rounds = 0;
            // Each batch begins where the last one ended, as its count of bytes says.
            while total < 40_000_000 && rounds < 1000 {
                rounds += 1;
                let from = usize::try_from(total).unwrap_or(0) % PART;
                if from > 0 {
                    match sys::send(a.fd, &data[from..], libc::MSG_NOSIGNAL) {
                        Ok(sent) => total += sent.cast_unsigned(),
                        Err(libc::EAGAIN) => {
                            let _ = sys::poll(&[(a.fd, POLLOUT)], 2000);
                        }
                        Err(error) => return show::errno(error),
                    }
                    continue;
                }
                let (sent, bytes) = sys::sendmmsg_copies(a.fd, data, 40);
                total += bytes;
                if sent == Err(libc::EAGAIN) {
                    let _ = sys::poll(&[(a.fd, POLLOUT)], 2000);
                } else if sent.is_err() {
                    return show::ret(sent);
                }
            }
            let whole = total % u64::try_from(PART).unwrap_or(1);
            let _ = sys::set_nonblocking(a.fd, false);
            let from = usize::try_from(whole).unwrap_or(0);
            format!("{:?} {}", a.send_all(&data[from..]), a.close())
        },
        |b| {
            std::thread::sleep(core::time::Duration::from_millis(50));
            let expected = pattern.first(PART);
            let mut buffer = vec![0; 100_000];
            let mut at = 0;
            loop {
                let room = buffer.len().min(PART - at);
                match b.recv_some(&mut buffer[..room]) {
                    Ok(0) => return format!("whole: {}", at == 0),
                    Ok(got) => {
                        let got = usize::try_from(got).unwrap_or(0);
                        if buffer[..got] != expected[at..at + got] {
                            return "other bytes".to_owned();
                        }
                        at = (at + got) % PART;
                    }
                    Err(error) => return show::errno(error),
                }
            }
        },
    );
}

fn send_batch_after_end(stage: &mut Stage) {
    stage.connect();
    stage.a("after shutdown", |a| {
        let _ = sys::catch(SIGPIPE, 0);
        let shut = a.shutdown(SHUT_WR);
        let quiet = sys::sendmmsg_copies(a.fd, b"x", 2).0;
        let before = sys::caught();
        let loud = sys::sendmmsg(a.fd, &[b"x", b"y"], 0).0;
        format!(
            "{shut} {} {before} {} {}",
            show::ret(quiet),
            show::ret(loud),
            sys::caught()
        )
    });
    stage.b("end", |b| b.hear(1));
}

fn flags_of_vectors(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("0123456789abcdefghij"));
    stage.a("arrived", |a| a.arrived(20));
    for write in [false, true] {
        stage.a(if write { "pwritev2" } else { "preadv2" }, |a| {
            let flag = |bit: u32| {
                let name64 = bit.is_multiple_of(2);
                show::ret(sys::vector2_at(
                    a.fd,
                    &mut [b'x'],
                    -1,
                    1 << bit,
                    write,
                    name64,
                ))
            };
            (0..12).map(flag).collect::<Vec<_>>().join(" ")
        });
        stage.a("together", |a| {
            let with =
                |flags| show::ret(sys::vector2_at(a.fd, &mut [b'x'], -1, flags, write, false));
            [with(0), with(0x1f), with(0x30), with(0x4000), with(-1)].join(" ")
        });
        stage.a("offsets", |a| {
            let at =
                |offset| show::ret(sys::vector2_at(a.fd, &mut [b'x'], offset, 0, write, false));
            [at(0), at(1), at(-2), at(i64::MAX)].join(" ")
        });
        stage.a("nothing", |a| {
            let with = |flags| show::ret(sys::vector2_at(a.fd, &mut [], -1, flags, write, false));
            [with(0), with(8), with(0x4000)].join(" ")
        });
    }
    stage.a("rest", |a| a.recv(50, MSG_DONTWAIT));
    stage.a("no wait", |a| {
        let with = |flags| show::ret(sys::vector2_at(a.fd, &mut [0; 4], -1, flags, false, true));
        [with(8), with(9)].join(" ")
    });
    stage.a("say", |a| a.say("."));
    stage.b("hear", |b| {
        let mut count = 0;
        let mut byte = [0];
        while b.recv_some(&mut byte) == Ok(1) && byte != *b"." {
            count += i32::from(byte == *b"x");
        }
        count.to_string()
    });
}

/// A flag of newer kernels: EPIPE without SIGPIPE.
fn vector_without_signal(stage: &mut Stage) {
    stage.connect();
    stage.b("close", End::close);
    stage.a("fin", |a| a.ready(POLLIN | POLLOUT | POLLRDHUP));
    stage.a("to nobody", |a| {
        let _ = sys::catch(SIGPIPE, 0);
        show::ret(sys::vector2_at(a.fd, &mut [b'x'], -1, 0x100, true, false))
    });
    stage.a("reset", |a| {
        a.ready(POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR)
    });
    stage.a("with and without", |a| {
        let mut shown = Vec::new();
        for flags in [0x100, 0x100, 0, 8] {
            let before = sys::caught();
            let ret = sys::vector2_at(a.fd, &mut [b'x'], -1, flags, true, false);
            shown.push(format!("{} {}", show::ret(ret), sys::caught() - before));
        }
        shown.join(", ")
    });
}

fn at_mark(stage: &mut Stage) {
    stage.connect();
    for side in [Side::A, Side::B] {
        stage.one(side, "nothing there", |end| {
            show::ret(sys::sockatmark(end.fd))
        });
    }
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("bytes there", |a| show::ret(sys::sockatmark(a.fd)));
    stage.a("recv", |a| a.recv(9, 0));
    stage.a("behind them", |a| show::ret(sys::sockatmark(a.fd)));
}
