//! Flags of receive and send calls, vectors and messages, lengths of zero, pointers that are none.

use libc::{
    MSG_DONTWAIT, MSG_ERRQUEUE, MSG_MORE, MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITALL,
    MSG_WAITFORONE, SHUT_WR,
};

use super::{Case, Needs, blocking, case};
use crate::end::End;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys;

pub(super) const CASES: &[Case] = &[
    case("peek", Needs::Steps, peek),
    case("peek_waits", Needs::Both, peek_waits),
    blocking("peek_waits_for_all", Needs::Both, peek_waits_for_all),
    blocking("waitall", Needs::Both, waitall),
    blocking("waitall_cut_short", Needs::Both, waitall_cut_short),
    blocking("waitall_timeout", Needs::Steps, waitall_timeout),
    case("dontwait", Needs::Steps, dontwait),
    case("trunc", Needs::Steps, trunc),
    case("zero_length", Needs::Steps, zero_length),
    case("vectors", Needs::Steps, vectors),
    case("bad_vectors", Needs::Steps, bad_vectors),
    case("messages", Needs::Steps, messages),
    case("batches", Needs::Steps, batches),
    blocking("batches_wait", Needs::Both, batches_wait),
    case("names", Needs::Steps, names),
    case("null_pointers", Needs::Steps, null_pointers),
    case("unmapped_pointers", Needs::Steps, unmapped_pointers),
    case("buffers_that_end", Needs::Steps, buffers_that_end),
    case("more", Needs::Steps, more),
    case("rare_flags", Needs::Steps, rare_flags),
    case("every_call", Needs::Steps, every_call),
];

fn peek(stage: &mut Stage) {
    stage.connect();
    stage.a("peek nothing", |a| a.recv(5, MSG_PEEK | MSG_DONTWAIT));
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("peek part", |a| a.recv(3, MSG_PEEK));
    stage.a("peek all", |a| a.recv(50, MSG_PEEK));
    stage.a("peek no bytes", |a| a.recv(0, MSG_PEEK));
    stage.a("recv part", |a| a.recv(2, 0));
    stage.a("peek rest", |a| a.recv(50, MSG_PEEK));
    stage.b("say", |b| b.say(" world"));
    stage.a("arrived", |a| a.arrived(9));
    stage.a("peek all", |a| a.recv(50, MSG_PEEK | MSG_DONTWAIT));
    stage.a("readable", |a| a.ready(libc::POLLIN | libc::POLLOUT));
    stage.a("recv all", |a| a.recv(50, 0));
    stage.a("peek nothing", |a| a.recv(5, MSG_PEEK | MSG_DONTWAIT));
    stage.b("say", |b| b.say("last"));
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| {
        a.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP)
    });
    stage.a("peek", |a| a.recv(5, MSG_PEEK));
    stage.a("recv", |a| a.recv(5, 0));
    stage.a("peek end", |a| a.recv(5, MSG_PEEK));
    stage.a("recv end", |a| a.recv(5, 0));
}

fn let_it_sleep() {
    std::thread::sleep(core::time::Duration::from_millis(40));
}

fn later(b: &mut End, text: &str) -> String {
    let_it_sleep();
    b.say(text)
}

fn peek_waits(stage: &mut Stage) {
    stage.connect();
    stage.both("peek", |a| a.recv(5, MSG_PEEK), |b| later(b, "hello"));
    stage.a("recv", |a| a.recv(9, 0));
}

fn peek_waits_for_all(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "peek all",
        |a| a.recv(10, MSG_PEEK | MSG_WAITALL),
        |b| format!("{} {}", later(b, "hello"), later(b, "world")),
    );
    stage.a("recv", |a| a.recv(20, 0));
}

fn waitall(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("there"));
    stage.a("there", |a| a.recv(5, MSG_WAITALL));
    stage.both(
        "in pieces",
        |a| a.recv(10, MSG_WAITALL),
        |b| {
            format!(
                "{} {} {}",
                later(b, "123"),
                later(b, "4"),
                later(b, "567890")
            )
        },
    );
    stage.both(
        "more than asked for",
        |a| a.recv(4, MSG_WAITALL),
        |b| format!("{} {}", later(b, "12"), later(b, "3456")),
    );
    stage.a("rest", |a| a.recv(2, MSG_WAITALL));
    stage.b("say", |b| b.say("abc"));
    stage.a("arrived", |a| a.arrived(3));
    stage.a("without waiting", |a| {
        a.recv(10, MSG_WAITALL | MSG_DONTWAIT)
    });
    stage.a("non-blocking", |a| {
        show::ret(sys::set_nonblocking(a.fd, true))
    });
    stage.b("say", |b| b.say("def"));
    stage.a("arrived", |a| a.arrived(3));
    stage.a("without waiting", |a| a.recv(10, MSG_WAITALL));
    stage.a("nothing", |a| a.recv(10, MSG_WAITALL));
    stage.a("blocking", |a| show::ret(sys::set_nonblocking(a.fd, false)));
    stage.both(
        "large",
        |a| a.recv(500_000, MSG_WAITALL),
        |b| {
            let data = vec![b'z'; 500_000];
            format!("{:?}", b.send_all(&data))
        },
    );
}

fn waitall_cut_short(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "by end",
        |a| a.recv(10, MSG_WAITALL),
        |b| {
            let said = later(b, "123");
            let_it_sleep();
            format!("{said} {}", b.shutdown(SHUT_WR))
        },
    );
    stage.a("end", |a| a.recv(10, MSG_WAITALL));
    stage.both(
        "by reset",
        |a| {
            let said = later(a, "abc");
            let_it_sleep();
            let _ = sys::set_linger(a.fd, 1, 0);
            format!("{said} {}", a.close())
        },
        |b| {
            let first = b.recv(10, MSG_WAITALL);
            format!("{first}, {}", b.recv(10, MSG_WAITALL))
        },
    );
}

fn waitall_timeout(stage: &mut Stage) {
    stage.connect();
    stage.a("timeout", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 80))
    });
    stage.a("nothing", |a| a.recv(10, MSG_WAITALL));
    stage.a("nothing", |a| a.recv(10, 0));
    stage.b("say", |b| b.say("123"));
    stage.a("part", |a| a.recv(10, MSG_WAITALL));
    stage.a("nothing", |a| a.recv(10, 0));
    stage.a("peek", |a| a.recv(10, MSG_PEEK));
    stage.a("no timeout", |a| {
        show::ret(sys::set_timeout(a.fd, libc::SO_RCVTIMEO, 0))
    });
    stage.b("say", |b| b.say("456"));
    stage.a("hear", |a| a.hear(3));
}

fn dontwait(stage: &mut Stage) {
    stage.connect();
    stage.a("recv", |a| a.recv(10, MSG_DONTWAIT));
    stage.a("recv again", |a| a.recv(10, MSG_DONTWAIT));
    stage.a("send", |a| a.send(b"hello", MSG_DONTWAIT));
    stage.b("arrived", |b| b.arrived(5));
    stage.b("recv", |b| b.recv(10, MSG_DONTWAIT));
    stage.b("recv", |b| b.recv(10, MSG_DONTWAIT));
    stage.b("preadv2 nowait", |b| {
        show::ret(sys::vector2(b.fd, &mut [0; 4], libc::RWF_NOWAIT, false))
    });
    stage.a("pwritev2", |a| {
        show::ret(sys::vector2(a.fd, &mut [b'x'; 4], 0, true))
    });
    stage.b("arrived", |b| b.arrived(4));
    stage.b("preadv2 nowait", |b| {
        show::ret(sys::vector2(b.fd, &mut [0; 4], libc::RWF_NOWAIT, false))
    });
}

fn trunc(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("0123456789"));
    stage.a("arrived", |a| a.arrived(10));
    stage.a("discard three", |a| {
        let mut buffer = *b"......";
        let got = sys::recv(a.fd, &mut buffer[..3], MSG_TRUNC);
        format!("{} {}", show::ret(got), show::data(&buffer))
    });
    stage.a("recv", |a| a.recv(2, 0));
    stage.a("peek and trunc", |a| {
        show::ret(sys::recv(a.fd, &mut [0; 2], MSG_PEEK | MSG_TRUNC))
    });
    stage.a("discard without buffer", |a| {
        show::ret(sys::recv_at(a.fd, 0, 2, MSG_TRUNC))
    });
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("nothing", |a| {
        show::ret(sys::recv(a.fd, &mut [0; 2], MSG_TRUNC | MSG_DONTWAIT))
    });
}

fn zero_length(stage: &mut Stage) {
    stage.connect();
    stage.a("read nothing", |a| show::ret(sys::read(a.fd, &mut [])));
    stage.a("recv nothing, nothing there", |a| a.recv(0, MSG_DONTWAIT));
    stage.a("send nothing", |a| a.send(b"", 0));
    stage.a("write nothing", |a| show::ret(sys::write(a.fd, b"")));
    stage.a("writev nothing", |a| {
        show::ret(sys::writev(a.fd, &[b"", b""]))
    });
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("recv nothing", |a| a.recv(0, MSG_DONTWAIT));
    stage.a("recv nothing, waiting", |a| a.recv(0, 0));
    stage.a("read nothing", |a| show::ret(sys::read(a.fd, &mut [])));
    stage.a("readv nothing", |a| {
        show::ret(sys::readv(a.fd, &mut [&mut [], &mut []]))
    });
    stage.a("recvmsg nothing", |a| {
        show::ret(sys::recvmsg(a.fd, &mut [&mut []], MSG_DONTWAIT).0)
    });
    stage.a("recv", |a| a.recv(10, 0));
    stage.b("close", End::close);
    stage.a("fin", |a| {
        a.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP)
    });
    stage.a("send nothing", |a| a.send(b"", 0));
    stage.a("recv nothing", |a| a.recv(0, 0));
    stage.a("shutdown", |a| a.shutdown(SHUT_WR));
    stage.a("send nothing", |a| a.send(b"", 0));
    stage.a("write nothing", |a| show::ret(sys::write(a.fd, b"")));
}

fn vectors(stage: &mut Stage) {
    stage.connect();
    stage.a("writev", |a| {
        show::ret(sys::writev(
            a.fd,
            &[b"", b"he", b"", b"llo wor", b"ld", b""],
        ))
    });
    stage.b("arrived", |b| b.arrived(11));
    stage.b("readv", |b| {
        let (mut one, mut two, mut three) = ([0; 3], [0; 4], [0; 40]);
        let got = sys::readv(b.fd, &mut [&mut one, &mut [], &mut two, &mut three]);
        let text = [show::data(&one), show::data(&two), show::data(&three[..4])];
        format!("{} {}", show::ret(got), text.join(" "))
    });
    stage.a("no entries", |a| show::ret(sys::writev(a.fd, &[])));
    stage.b("no entries", |b| show::ret(sys::readv(b.fd, &mut [])));
    stage.a("thousand entries", |a| {
        show::ret(sys::writev(a.fd, &[b"x" as &[u8]; 1024]))
    });
    stage.b("hear", |b| b.hear(1024));
    stage.a("1025 entries", |a| {
        show::ret(sys::writev(a.fd, &[b"x" as &[u8]; 1025]))
    });
    stage.a("sendmsg, 1025 entries", |a| {
        show::ret(sys::sendmsg(a.fd, &[b"x" as &[u8]; 1025], 0))
    });
    stage.a("many large", |a| {
        let part = vec![b'v'; 10_000];
        let parts: Vec<&[u8]> = vec![&part; 20];
        show::ret(sys::writev(a.fd, &parts))
    });
    stage.b("hear", |b| b.hear(200_000));
}

fn bad_vectors(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    for (label, write) in [("readv", false), ("writev", true)] {
        stage.a(label, |a| {
            let mut good = [b'x'; 8];
            let here = good.as_mut_ptr().expose_provenance();
            let two_halves = sys::raw_vector(&[(here, usize::MAX / 2), (here, usize::MAX / 2)]);
            let negative = sys::raw_vector(&[(here, usize::MAX)]);
            let null_entry = sys::raw_vector(&[(0, 5)]);
            let tries = [
                (here, -1),
                (here, 1025),
                (here, i32::MAX),
                (0, 1),
                (0, 0),
                (16, 2),
                (negative, 1),
                (null_entry, 1),
            ];
            let mut shown: Vec<String> = tries
                .iter()
                .map(|&(at, count)| show::ret(sys::vector_at(a.fd, at, count, write)))
                .collect();
            if !write {
                shown.push(show::ret(sys::vector_at(a.fd, two_halves, 2, write)));
            }
            shown.join(" ")
        });
    }
    stage.a("recv", |a| a.recv(20, MSG_DONTWAIT));
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
}

fn messages(stage: &mut Stage) {
    stage.connect();
    stage.a("sendmsg", |a| {
        show::ret(sys::sendmsg(a.fd, &[b"one ", b"two"], 0))
    });
    stage.b("arrived", |b| b.arrived(7));
    let receive = |b: &mut End, room: usize, flags| {
        let mut out = vec![0; room];
        let mut header = None;
        let got = b.patiently(false, |fd| {
            let (got, told) = sys::recvmsg(fd, &mut [&mut out], flags);
            header = Some(told);
            got
        });
        let Some(header) = header else {
            return "nothing is reported".to_owned();
        };
        format!(
            "{} flags {:#x} name {} control {}",
            show::got(got, &out),
            header.flags,
            header.name_len,
            header.control_len
        )
    };
    stage.b("peek", |b| receive(b, 3, MSG_PEEK));
    stage.b("part", |b| receive(b, 3, 0));
    stage.b("rest", |b| receive(b, 10, 0));
    stage.b("nothing", |b| {
        show::ret(sys::recvmsg(b.fd, &mut [&mut [0; 4]], MSG_DONTWAIT).0)
    });
    stage.a("sendmsg, no parts", |a| {
        show::ret(sys::sendmsg(a.fd, &[], 0))
    });
    stage.a("shutdown", |a| a.shutdown(SHUT_WR));
    stage.b("end", |b| receive(b, 10, 0));
}

fn batches(stage: &mut Stage) {
    stage.connect();
    stage.a("sendmmsg", |a| {
        let (sent, lengths) = sys::sendmmsg(a.fd, &[b"one", b"", b"three"], 0);
        format!("{} {lengths:?}", show::ret(sent))
    });
    stage.b("arrived", |b| b.arrived(8));
    stage.b("recvmmsg", |b| {
        let (mut one, mut two, mut three) = ([0; 2], [0; 4], [0; 10]);
        let (got, lengths) = sys::recvmmsg(
            b.fd,
            &mut [&mut one, &mut two, &mut three],
            MSG_DONTWAIT,
            None,
        );
        format!(
            "{} {lengths:?} {} {}",
            show::ret(got),
            show::data(&one),
            show::data(&two)
        )
    });
    stage.b("nothing", |b| {
        show::ret(sys::recvmmsg(b.fd, &mut [&mut [0; 4]], MSG_DONTWAIT, None).0)
    });
    stage.b("no messages", |b| {
        show::ret(sys::recvmmsg(b.fd, &mut [], MSG_DONTWAIT, None).0)
    });
    stage.a("no messages", |a| show::ret(sys::sendmmsg(a.fd, &[], 0).0));
    stage.b("bad timeout", |b| {
        show::ret(sys::recvmmsg(b.fd, &mut [&mut [0; 4]], 0, Some(-1000)).0)
    });
    stage.a("say", |a| a.say("xyz"));
    stage.a("shutdown", |a| a.shutdown(SHUT_WR));
    stage.b("fin", |b| {
        b.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP)
    });
    stage.b("data and end", |b| {
        let (mut one, mut two) = ([0; 10], [0; 10]);
        let (got, lengths) = sys::recvmmsg(b.fd, &mut [&mut one, &mut two], 0, None);
        format!("{} {lengths:?}", show::ret(got))
    });
    stage.a("after shutdown", |a| {
        show::ret(sys::sendmmsg(a.fd, &[b"x", b"y"], libc::MSG_NOSIGNAL).0)
    });
}

fn batches_wait(stage: &mut Stage) {
    stage.connect();
    stage.both(
        "wait for one",
        |a| {
            let (mut one, mut two) = ([0; 10], [0; 10]);
            let (got, lengths) =
                sys::recvmmsg(a.fd, &mut [&mut one, &mut two], MSG_WAITFORONE, None);
            format!("{} {:?}", show::ret(got), lengths.first())
        },
        |b| later(b, "first"),
    );
    stage.both(
        "wait for all",
        |a| {
            // As much room as is said, however late this end begins.
            let (mut one, mut two) = ([0; 2], [0; 3]);
            let (got, lengths) = sys::recvmmsg(a.fd, &mut [&mut one, &mut two], 0, None);
            format!("{} {lengths:?}", show::ret(got))
        },
        |b| format!("{} {}", later(b, "12"), later(b, "345")),
    );
}

fn names(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    stage.a("recvfrom", |a| {
        let mut out = [0; 10];
        let (got, len) = sys::recvfrom(a.fd, &mut out, 0);
        format!("{} address of {len}", show::got(got, &out))
    });
    stage.a("recvfrom nothing", |a| {
        show::ret(sys::recvfrom(a.fd, &mut [0; 4], MSG_DONTWAIT).0)
    });
    stage.a("sendto another address", |a| {
        let elsewhere = std::net::SocketAddr::from(([127, 0, 0, 9], 9));
        show::ret(sys::sendto(a.fd, b"straight on", 0, elsewhere))
    });
    stage.b("hear", |b| b.hear(11));
    stage.a("own and far", |a| {
        let (own, far) = (sys::name(a.fd, false), sys::name(a.fd, true));
        format!("{} {}", own.is_ok(), own != far)
    });
    stage.b("shutdown", |b| b.shutdown(SHUT_WR));
    stage.a("fin", |a| {
        a.ready(libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP)
    });
    stage.a("recvfrom end", |a| {
        let (got, len) = sys::recvfrom(a.fd, &mut [0; 4], 0);
        format!("{} address of {len}", show::ret(got))
    });
}

/// Addresses that no program has mapped; calls with data to receive and room to send.
fn bad_addresses(stage: &mut Stage, addresses: &'static [usize]) {
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.a("arrived", |a| a.arrived(5));
    for &at in addresses {
        stage.a("recv", |a| show::ret(sys::recv_at(a.fd, at, 5, 0)));
        stage.a("peek", |a| show::ret(sys::recv_at(a.fd, at, 5, MSG_PEEK)));
        stage.a("send", |a| show::ret(sys::send_at(a.fd, at, 5, 0)));
        stage.a("readv", |a| {
            show::ret(sys::vector_at(a.fd, sys::raw_vector(&[(at, 5)]), 1, false))
        });
        stage.a("writev", |a| {
            show::ret(sys::vector_at(a.fd, sys::raw_vector(&[(at, 5)]), 1, true))
        });
        stage.a("vector", |a| show::ret(sys::vector_at(a.fd, at, 1, true)));
        stage.a("fionread", |a| {
            show::ret(sys::ioctl_at(a.fd, sys::FIONREAD, at))
        });
        stage.a("poll", |_| show::ret(sys::poll_at(at, 1, 0)));
    }
    stage.a("the bytes are still there", |a| a.recv(20, MSG_DONTWAIT));
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
}

fn null_pointers(stage: &mut Stage) {
    bad_addresses(stage, &[0, 24, 4088]);
}

fn unmapped_pointers(stage: &mut Stage) {
    // The last user address's page is never mapped; the others are the kernel's, and no address at all.
    bad_addresses(
        stage,
        &[
            0x7fff_ffff_f000,
            0xffff_8000_0000_0000,
            0x8000_0000_0000_0000,
        ],
    );
}

/// Buffers whose beginning is good and whose end is not.
fn buffers_that_end(stage: &mut Stage) {
    stage.connect();
    stage.b("say", |b| b.say("0123456789"));
    stage.a("arrived", |a| a.arrived(10));
    stage.a("recv into nothing", |a| {
        show::ret(sys::recv_at(a.fd, sys::guarded_page(), 5, 0))
    });
    stage.a("recv across", |a| {
        show::ret(sys::recv_at(a.fd, sys::guarded_page() - 4, 10, 0))
    });
    stage.a("peek across", |a| {
        show::ret(sys::recv_at(a.fd, sys::guarded_page() - 4, 10, MSG_PEEK))
    });
    stage.a("recv", |a| a.recv(20, MSG_DONTWAIT));
    stage.a("send from nothing", |a| {
        show::ret(sys::send_at(a.fd, sys::guarded_page(), 5, 0))
    });
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
    stage.a("say", |a| a.say("fine"));
    stage.b("hear", |b| b.hear(4));
}

fn more(stage: &mut Stage) {
    stage.connect();
    stage.a("more", |a| a.send(b"one ", MSG_MORE));
    stage.a("more", |a| a.send(b"two ", MSG_MORE));
    stage.a("end", |a| a.send(b"three", 0));
    stage.b("hear", |b| b.hear(13));
    stage.a("cork", |a| {
        show::ret(sys::setsockopt(a.fd, libc::IPPROTO_TCP, libc::TCP_CORK, 1))
    });
    stage.a("send", |a| a.send(b"corked ", 0));
    stage.a("send", |a| a.send(b"bottle", 0));
    stage.a("uncork", |a| {
        show::ret(sys::setsockopt(a.fd, libc::IPPROTO_TCP, libc::TCP_CORK, 0))
    });
    stage.b("hear", |b| b.hear(13));
    stage.a("more, then close", |a| a.send(b"last", MSG_MORE));
    stage.a("close", End::close);
    stage.b("hear", |b| b.hear(10));
}

fn rare_flags(stage: &mut Stage) {
    stage.connect();
    stage.a("no urgent byte", |a| a.recv(1, MSG_OOB));
    stage.a("error queue", |a| a.recv(1, MSG_ERRQUEUE));
    stage.a("send eor", |a| a.send(b"eor", libc::MSG_EOR));
    stage.a("send dontroute", |a| a.send(b"route", libc::MSG_DONTROUTE));
    stage.b("hear", |b| b.hear(8));
    stage.b("at mark", |b| {
        let (ret, value) = sys::ioctl(b.fd, 0x8905, -1);
        format!("{} {value}", show::ret(ret))
    });
    stage.a("send cmsg_cloexec", |a| {
        a.send(b"x", libc::MSG_CMSG_CLOEXEC)
    });
    stage.b("recv cmsg_cloexec", |b| b.recv(4, libc::MSG_CMSG_CLOEXEC));
    stage.a("send fastopen", |a| a.send(b"y", libc::MSG_FASTOPEN));
    stage.a("sendmmsg fastopen", |a| {
        show::ret(sys::sendmmsg(a.fd, &[b"y", b"z"], libc::MSG_FASTOPEN).0)
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

/// Every pair of a sending and a receiving call.
fn every_call(stage: &mut Stage) {
    stage.connect();
    type Send = fn(i32, &[u8]) -> sys::Ret;
    let sends: [(&str, Send); 5] = [
        ("send", |fd, data| sys::send(fd, data, 0)),
        ("write", sys::write),
        ("writev", |fd, data| {
            sys::writev(fd, &[&data[..2], &data[2..]])
        }),
        ("sendmsg", |fd, data| sys::sendmsg(fd, &[data], 0)),
        ("sendmmsg", |fd, data| sys::sendmmsg(fd, &[data], 0).0),
    ];
    type Recv = fn(i32, &mut [u8]) -> sys::Ret;
    let recvs: [(&str, Recv); 6] = [
        ("recv", |fd, out| sys::recv(fd, out, 0)),
        ("read", sys::read),
        ("readv", |fd, out| {
            let (one, two) = out.split_at_mut(3);
            sys::readv(fd, &mut [one, two])
        }),
        ("recvfrom", |fd, out| sys::recvfrom(fd, out, 0).0),
        ("recvmsg", |fd, out| sys::recvmsg(fd, &mut [out], 0).0),
        ("recvmmsg", |fd, out| {
            let (got, lengths) = sys::recvmmsg(fd, &mut [out], 0, None);
            got?;
            Ok(lengths.first().copied().map_or(-1, i64::from))
        }),
    ];
    for (sent_by, send) in sends {
        for (received_by, recv) in recvs {
            stage.a(sent_by, |a| show::ret(send(a.fd, sent_by.as_bytes())));
            stage.b(received_by, |b| {
                let mut out = [0; 20];
                let got = b.patiently(false, |fd| recv(fd, &mut out));
                show::got(got, &out)
            });
        }
    }
}
