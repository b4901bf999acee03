//! Pointers that are none: headers, batches and names of messages.

use libc::MSG_DONTWAIT;

use super::pointers::{NO_ROOM, NOTHING, each, each_ret, give};
use super::{Case, Needs, case};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, Memory};

pub(super) const CASES: &[Case] = &[
    case("pointers_of_headers", Needs::Steps, headers),
    case("pointers_of_batches", Needs::Steps, batches),
    case("pointers_of_names", Needs::Steps, names),
];

fn headers(stage: &mut Stage) {
    stage.connect();
    give(stage, "hello");
    let room = || sys::memory(Memory::Good, b"........");
    stage.a("recvmsg", |a| {
        let message = sys::message((room(), 5), (0, 0), (0, 0));
        let cut = sys::recvmsg_at(a.fd, sys::cut(&message, 24), 0);
        let said = each(&NOTHING, |kind| {
            sys::recvmsg_at(a.fd, sys::memory(kind, &message), 0)
        });
        format!("{} {said}", show::ret(cut))
    });
    stage.a("sendmsg", |a| {
        let message = sys::message((room(), 5), (0, 0), (0, 0));
        let cut = sys::sendmsg_at(a.fd, sys::cut(&message, 24), 0);
        let said = each(&NOTHING, |kind| {
            sys::sendmsg_at(a.fd, sys::memory(kind, &message), 0)
        });
        format!("{} {said}", show::ret(cut))
    });
    stage.a("sendmsg, beside the data", |a| {
        let call = |name, control| {
            let message = sys::message((room(), 5), name, control);
            sys::sendmsg_at(a.fd, sys::memory(Memory::Good, &message), 0)
        };
        let names = each(&NOTHING, |kind| call((sys::memory(kind, b""), 16), (0, 0)));
        let controls = each(&NOTHING, |kind| call((0, 0), (sys::memory(kind, b""), 64)));
        let negative = call((room(), u32::MAX), (0, 0));
        format!("{names}, {controls}, {}", show::ret(negative))
    });
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
    stage.a("recvmsg, beside the data", |a| {
        let nothing = sys::memory(Memory::Forbidden, b"");
        let message = sys::message((room(), 2), (nothing, 16), (nothing, 64));
        show::ret(sys::recvmsg_at(
            a.fd,
            sys::memory(Memory::Good, &message),
            0,
        ))
    });
    // The bytes are taken before that is noticed.
    stage.a("recvmsg, header that cannot be written", |a| {
        let message = sys::message((room(), 2), (0, 0), (0, 0));
        show::ret(sys::recvmsg_at(
            a.fd,
            sys::memory(Memory::ReadOnly, &message),
            0,
        ))
    });
    stage.a("rest", |a| a.recv(20, MSG_DONTWAIT));
}

fn batches(stage: &mut Stage) {
    stage.connect();
    give(stage, "hello");
    let one = || {
        let room = sys::memory(Memory::Good, b"sent....");
        sys::entry(sys::message((room, 4), (0, 0), (0, 0)))
    };
    stage.a("recvmmsg", |a| {
        let cut = sys::recvmmsg_at(a.fd, sys::cut(&one(), 24), 1, 0);
        let said = each(&NOTHING, |kind| {
            sys::recvmmsg_at(a.fd, sys::memory(kind, &one()), 1, 0)
        });
        format!("{} {said}", show::ret(cut))
    });
    stage.a("sendmmsg", |a| {
        let cut = sys::sendmmsg_at(a.fd, sys::cut(&one(), 24), 1);
        let said = each(&NOTHING, |kind| {
            sys::sendmmsg_at(a.fd, sys::memory(kind, &one()), 1)
        });
        format!("{} {said}", show::ret(cut))
    });
    stage.a("timeouts", |a| {
        each(&NOTHING, |kind| {
            let entry = sys::memory(Memory::Good, &one());
            sys::recvmmsg_at(a.fd, entry, 1, sys::memory(kind, &[0u64; 2]))
        })
    });
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
    stage.a("the second entry is nothing", |a| {
        let pair = [one(), one()];
        show::ret(sys::sendmmsg_at(
            a.fd,
            sys::cut(&pair, size_of_val(&pair[0])),
            2,
        ))
    });
    stage.b("hear", |b| b.hear(4));
    // The bytes are sent before that is noticed.
    stage.a("lengths that cannot be written", |a| {
        show::ret(sys::sendmmsg_at(
            a.fd,
            sys::memory(Memory::ReadOnly, &one()),
            1,
        ))
    });
    stage.b("hear", |b| b.hear(4));
    stage.a("a timeout that cannot be written", |a| {
        let (entry, time) = (sys::memory(Memory::Good, &one()), [60u64, 0]);
        show::ret(sys::recvmmsg_at(
            a.fd,
            entry,
            1,
            sys::memory(Memory::ReadOnly, &time),
        ))
    });
    stage.a("rest", |a| a.recv(20, MSG_DONTWAIT));
    give(stage, "more");
    stage.a("the time that is left", |a| {
        let (entry, time) = (sys::memory(Memory::Good, &one()), [60u64, 0]);
        let at = sys::memory(Memory::Good, &time);
        let got = sys::recvmmsg_at(a.fd, entry, 1, at);
        let left = sys::bytes_at(at, 8);
        let seconds = left.try_into().map_or(0, u64::from_ne_bytes);
        format!("{} {}", show::ret(got), (50..60).contains(&seconds))
    });
}

fn names(stage: &mut Stage) {
    stage.connect();
    give(stage, "0123456789");
    let room = || sys::memory(Memory::Good, b"........");
    stage.a("recvfrom, length", |a| {
        each(&NO_ROOM, |kind| {
            sys::recvfrom_at(a.fd, room(), 1, room(), sys::memory(kind, &16u32))
        })
    });
    stage.a("recvfrom, no length", |a| {
        show::ret(sys::recvfrom_at(a.fd, room(), 1, room(), 0))
    });
    stage.a("recvfrom, negative length", |a| {
        let length = sys::memory(Memory::Good, &u32::MAX);
        show::ret(sys::recvfrom_at(a.fd, room(), 1, room(), length))
    });
    stage.a("recvfrom, address", |a| {
        let length = sys::memory(Memory::Good, &16u32);
        let nothing = sys::memory(Memory::Forbidden, b"");
        let got = sys::recvfrom_at(a.fd, room(), 1, nothing, length);
        format!("{} {:?}", show::ret(got), sys::bytes_at(length, 4))
    });
    stage.a("sendto", |a| {
        each(&NOTHING, |kind| {
            sys::sendto_at(a.fd, room(), 5, sys::memory(kind, b""), 16)
        })
    });
    stage.a("sendto, lengths", |a| {
        let nothing = sys::memory(Memory::Forbidden, b"");
        let tries = [129, u32::MAX, 0].map(|len| sys::sendto_at(a.fd, room(), 5, nothing, len));
        each_ret(&tries)
    });
    stage.b("hear", |b| b.hear(5));
}
