//! Pointers that are none: option values, and addresses of sockets.

use super::pointers::{NO_ROOM, NOTHING, each, give};
use super::{Case, Needs, case};
use crate::end::{End, Side};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, Memory};

pub(super) const CASES: &[Case] = &[
    case("pointers_of_options", Needs::Steps, options),
    case("accepted_into_nothing", Needs::Steps, accepted_into_nothing),
    case("connect_to_nothing", Needs::Steps, connect_to_nothing),
];

fn options(stage: &mut Stage) {
    const SO_ZEROCOPY: i32 = 60;
    stage.connect();
    give(stage, "hello");
    let of =
        |a: &End, name, value, len| sys::getsockopt_at(a.fd, libc::SOL_SOCKET, name, value, len);
    for name in [libc::SO_ERROR, libc::SO_RCVLOWAT] {
        stage.a("getsockopt", |a| {
            let values = each(&NO_ROOM, |kind| {
                let len = sys::memory(Memory::Good, &4u32);
                of(a, name, sys::memory(kind, &0u32), len)
            });
            let lengths = each(&NO_ROOM, |kind| {
                let value = sys::memory(Memory::Good, &0u32);
                of(a, name, value, sys::memory(kind, &4u32))
            });
            format!("{values}, {lengths}")
        });
        stage.a("room for a part", |a| {
            let len = sys::memory(Memory::Good, &2u32);
            let said = of(a, name, sys::good_before(2), len);
            format!("{} {:?}", show::ret(said), sys::bytes_at(len, 4))
        });
    }
    for (level, name) in [
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
        (libc::SOL_SOCKET, libc::SO_OOBINLINE),
        (libc::SOL_SOCKET, SO_ZEROCOPY),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    ] {
        stage.a("setsockopt", |a| {
            each(&NOTHING, |kind| {
                sys::setsockopt_at(a.fd, level, name, sys::memory(kind, &1u32), 4)
            })
        });
    }
    for request in [sys::FIONREAD, sys::SIOCOUTQ, sys::FIONBIO] {
        stage.a("ioctl", |a| {
            each(&NOTHING, |kind| {
                sys::ioctl_at(a.fd, request, sys::memory(kind, &0u32))
            })
        });
    }
    stage.a("fionread", |a| {
        show::ret(sys::ioctl_at(
            a.fd,
            sys::FIONREAD,
            sys::memory(Memory::ReadOnly, &0u32),
        ))
    });
    stage.a("recv", |a| a.recv(20, 0));
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

/// The connection is lost if its address cannot be told.
fn accepted_into_nothing(stage: &mut Stage) {
    let listener = stage.listen(Side::B);
    for (label, address) in [("address", true), ("length", false)] {
        for kind in NO_ROOM {
            stage.a("connect", |a| {
                a.hold(sys::fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
                show::ret(sys::connect(a.fd, listener.address))
            });
            stage.b(label, |_| {
                let (bad, good) = (sys::memory(kind, &16u32), sys::memory(Memory::Good, &16u32));
                let (addr, len) = if address {
                    (bad, good)
                } else {
                    (good + 64, bad)
                };
                show::ret(sys::accept_at(listener.fd, addr, len))
            });
            stage.a("recv", |a| a.recv(1, 0));
            stage.a("close", End::close);
        }
    }
    stage.a("connect", |a| {
        a.hold(sys::fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM)));
        show::ret(sys::connect(a.fd, listener.address))
    });
    stage.b("room for a part of the address", |b| {
        let (room, len) = (sys::good_before(4), sys::memory(Memory::Good, &4u32));
        b.hold(sys::fd_of(sys::accept_at(listener.fd, room, len)));
        format!("{} {:?}", b.fd >= 0, sys::bytes_at(len, 4))
    });
    for _ in 0..20 {
        stage.a("say", |a| a.say("hello"));
        stage.b("hear", |b| b.hear(5));
        stage.b("say", |b| b.say("hello"));
        stage.a("hear", |a| a.hear(5));
    }
}

fn connect_to_nothing(stage: &mut Stage) {
    stage.connect();
    for (label, again) in [("connect", false), ("connect again", true)] {
        stage.a(label, |a| {
            let fresh = sys::fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
            let fd = if again { a.fd } else { fresh };
            let said = each(&NOTHING, |kind| {
                sys::connect_at(fd, sys::memory(kind, &[0u16; 8]), 16)
            });
            let cut = sys::connect_at(fd, sys::cut(&[2u16; 8], 1), 16);
            let _ = sys::close(fresh);
            format!("{said} {}", show::ret(cut))
        });
    }
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}
