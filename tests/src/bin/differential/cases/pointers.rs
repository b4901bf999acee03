//! Pointers that are none: buffers that cannot be read or written, and what the other cases share.

use libc::{MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC};

use super::{Case, Needs, case};
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, Memory, Ret};

pub(super) const CASES: &[Case] = &[
    case("pointers_of_receives", Needs::Steps, receives),
    case("pointers_of_sends", Needs::Steps, sends),
    case("pointers_without_data", Needs::Steps, without_data),
    case("pointers_of_offsets", Needs::Steps, offsets),
];

/// What can be neither read nor written.
pub(super) const NOTHING: [Memory; 4] = [
    Memory::Forbidden,
    Memory::Ended,
    Memory::Kernel,
    Memory::Last,
];

/// As [`NOTHING`], and what can only be read.
pub(super) const NO_ROOM: [Memory; 5] = [
    Memory::ReadOnly,
    Memory::Forbidden,
    Memory::Ended,
    Memory::Kernel,
    Memory::Last,
];

/// A call of a descriptor and an address.
type Call = fn(i32, usize) -> Ret;

const RECEIVES: [(&str, Call); 7] = [
    ("recv", |fd, at| sys::recv_at(fd, at, 5, 0)),
    ("peek", |fd, at| sys::recv_at(fd, at, 5, MSG_PEEK)),
    ("read", |fd, at| sys::read_at(fd, at, 5)),
    ("readv", |fd, at| {
        sys::vector_at(fd, sys::raw_vector(&[(at, 5)]), 1, false)
    }),
    ("recvfrom", |fd, at| sys::recvfrom_at(fd, at, 5, 0, 0)),
    ("recvmsg", |fd, at| {
        let message = sys::message((at, 5), (0, 0), (0, 0));
        sys::recvmsg_at(fd, sys::memory(Memory::Good, &message), 0)
    }),
    ("recvmmsg", |fd, at| {
        let entry = sys::entry(sys::message((at, 5), (0, 0), (0, 0)));
        sys::recvmmsg_at(fd, sys::memory(Memory::Good, &entry), 1, 0)
    }),
];

const SENDS: [(&str, Call); 6] = [
    ("send", |fd, at| sys::send_at(fd, at, 5, 0)),
    ("write", |fd, at| sys::write_at(fd, at, 5)),
    ("writev", |fd, at| {
        sys::vector_at(fd, sys::raw_vector(&[(at, 5)]), 1, true)
    }),
    ("sendto", |fd, at| sys::sendto_at(fd, at, 5, 0, 0)),
    ("sendmsg", |fd, at| {
        let message = sys::message((at, 5), (0, 0), (0, 0));
        sys::sendmsg_at(fd, sys::memory(Memory::Good, &message), 0)
    }),
    ("sendmmsg", |fd, at| {
        let entry = sys::entry(sys::message((at, 5), (0, 0), (0, 0)));
        sys::sendmmsg_at(fd, sys::memory(Memory::Good, &entry), 1)
    }),
];

/// What a call answers to memory of each kind.
pub(super) fn each(kinds: &[Memory], mut call: impl FnMut(Memory) -> Ret) -> String {
    let said: Vec<String> = kinds.iter().map(|&kind| show::ret(call(kind))).collect();
    said.join(" ")
}

/// Makes `text` arrive at A.
pub(super) fn give(stage: &mut Stage, text: &str) {
    stage.b("say", |b| b.say(text));
    stage.a("arrived", |a| {
        a.arrived(i32::try_from(text.len()).unwrap_or(0))
    });
}

fn receives(stage: &mut Stage) {
    stage.connect();
    give(stage, "hello");
    for (name, call) in RECEIVES {
        stage.a(name, |a| {
            each(&NO_ROOM, |kind| call(a.fd, sys::memory(kind, b"......")))
        });
    }
    stage.a("a look needs no room", |a| {
        let flags = MSG_PEEK | MSG_TRUNC;
        each(&[Memory::Forbidden, Memory::Kernel], |kind| {
            sys::recv_at(a.fd, sys::memory(kind, b"......"), 5, flags)
        })
    });
    stage.a("the bytes are still there", |a| a.recv(20, MSG_DONTWAIT));
    for (name, call) in RECEIVES {
        give(stage, "again");
        stage.a(name, |a| {
            let at = sys::memory(Memory::Good, b"......");
            format!(
                "{} {}",
                show::ret(call(a.fd, at)),
                show::data(&sys::bytes_at(at, 6))
            )
        });
        stage.a("rest", |a| a.recv(20, MSG_DONTWAIT));
    }
}

fn sends(stage: &mut Stage) {
    stage.connect();
    for (name, call) in SENDS {
        stage.a(name, |a| {
            each(&NOTHING, |kind| call(a.fd, sys::memory(kind, b"hello")))
        });
    }
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
    for (name, call) in SENDS {
        stage.a(name, |a| {
            show::ret(call(a.fd, sys::memory(Memory::ReadOnly, b"hello")))
        });
        stage.b("hear", |b| b.hear(5));
    }
}

/// Where an address lies is looked at before there are any data; what it holds is not.
fn without_data(stage: &mut Stage) {
    stage.connect();
    stage.a("without waiting", |a| {
        each(&NO_ROOM, |kind| {
            sys::recv_at(a.fd, sys::memory(kind, b"......"), 5, MSG_DONTWAIT)
        })
    });
    stage.a("waiting", |a| {
        each(&[Memory::Kernel, Memory::Last], |kind| {
            sys::recv_at(a.fd, sys::memory(kind, b"......"), 5, 0)
        })
    });
    stage.a("readv", |a| {
        let vec = sys::raw_vector(&[
            (sys::memory(Memory::Good, b"......"), 2),
            (sys::memory(Memory::Kernel, b"......"), 0),
        ]);
        show::ret(sys::vector_at(a.fd, vec, 2, false))
    });
    stage.a("no bytes", |a| {
        each(&NO_ROOM, |kind| {
            sys::recv_at(a.fd, sys::memory(kind, b"......"), 0, MSG_DONTWAIT)
        })
    });
    give(stage, "hello");
    stage.a("recv", |a| a.recv(20, 0));
}

pub(super) fn each_ret(rets: &[Ret]) -> String {
    let said: Vec<String> = rets.iter().map(|&ret| show::ret(ret)).collect();
    said.join(" ")
}

fn offsets(stage: &mut Stage) {
    stage.connect();
    stage.a("sendfile", |a| {
        let file = sys::file_with(b"hello");
        let said = each(&NOTHING, |kind| {
            sys::sendfile_at(a.fd, file, sys::memory(kind, &0u64), 5)
        });
        let _ = sys::close(file);
        said
    });
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
    // The bytes are sent before that is noticed.
    stage.a("sendfile, cannot be written", |a| {
        let file = sys::file_with(b"hello");
        let sent = sys::sendfile_at(a.fd, file, sys::memory(Memory::ReadOnly, &0u64), 5);
        let _ = sys::close(file);
        show::ret(sent)
    });
    stage.b("hear", |b| b.hear(5));
}
