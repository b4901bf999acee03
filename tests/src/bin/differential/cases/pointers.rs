//! Pointers that are none: buffers, vectors, headers, arrays, addresses and option values that cannot be
//! read or written, wholly or from some byte on.

use libc::{EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, POLLIN};

use super::{Case, Needs, case};
use crate::end::{End, Side};
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, Memory, Ret};

pub(super) const CASES: &[Case] = &[
    case("pointers_of_receives", Needs::Steps, receives),
    case("pointers_of_sends", Needs::Steps, sends),
    case("pointers_without_data", Needs::Steps, without_data),
    case("pointers_cut", Needs::Steps, cut_short),
    case("pointers_cut_far_out", Needs::Steps, cut_far_out),
    case("pointers_cut_vectors", Needs::Steps, cut_vectors),
    case("pointers_of_headers", Needs::Steps, headers),
    case("pointers_of_batches", Needs::Steps, batches),
    case("pointers_of_names", Needs::Steps, names),
    case("pointers_of_polls", Needs::Steps, polls),
    case("pointers_of_selects", Needs::Steps, selects),
    case("pointers_of_sets", Needs::Steps, sets),
    case("pointers_of_events", Needs::Steps, events),
    case("pointers_of_options", Needs::Steps, options),
    case("pointers_of_offsets", Needs::Steps, offsets),
    case("accepted_into_nothing", Needs::Steps, accepted_into_nothing),
    case("connect_to_nothing", Needs::Steps, connect_to_nothing),
];

/// What can be neither read nor written.
const NOTHING: [Memory; 4] = [
    Memory::Forbidden,
    Memory::Ended,
    Memory::Kernel,
    Memory::Last,
];

/// As [`NOTHING`], and what can only be read.
const NO_ROOM: [Memory; 5] = [
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
fn each(kinds: &[Memory], mut call: impl FnMut(Memory) -> Ret) -> String {
    let said: Vec<String> = kinds.iter().map(|&kind| show::ret(call(kind))).collect();
    said.join(" ")
}

/// Makes `text` arrive at A.
fn give(stage: &mut Stage, text: &str) {
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

/// Small buffers whose end is missing: all or nothing.
fn cut_short(stage: &mut Stage) {
    stage.connect();
    give(stage, "0123456789");
    for good in [1, 4, 9] {
        stage.a("recv", |a| {
            let at = sys::good_before(good);
            let long = sys::recv_at(a.fd, at, 10, 0);
            let peek = sys::recv_at(a.fd, at, 10, MSG_PEEK);
            format!("{} {}", show::ret(long), show::ret(peek))
        });
    }
    stage.a("what is there fits", |a| {
        let at = sys::good_before(10);
        let got = sys::recv_at(a.fd, at, 5000, 0);
        format!("{} {}", show::ret(got), show::data(&sys::bytes_at(at, 10)))
    });
    for good in [1, 4, 4096, 5000] {
        stage.a("send", |a| {
            let at = sys::good_before(good);
            each(&[Memory::Good], |_| sys::send_at(a.fd, at, good + 1, 0))
        });
    }
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
    stage.a("send what is there", |a| {
        let at = sys::good_before(4);
        sys::fill(at, b"fine");
        show::ret(sys::send_at(a.fd, at, 4, 0))
    });
    stage.b("hear", |b| b.hear(4));
}

/// Large buffers whose end is missing: how much is taken before is TCP's own affair, but not none, and
/// no byte is lost or comes twice.
fn cut_far_out(stage: &mut Stage) {
    const ALL: usize = 60_000;
    const GOOD: usize = 40_000;
    let pattern = Pattern::new(17);
    stage.connect();
    let mut taken = 0;
    stage.a("send", |a| {
        let at = sys::good_before(GOOD);
        sys::fill(at, pattern.first(GOOD));
        taken = sys::send_at(a.fd, at, ALL, 0).map_or(0, |sent| usize::try_from(sent).unwrap_or(0));
        format!("{}", (1..=GOOD).contains(&taken))
    });
    let taken = stage.share(Side::A, |_| taken as u64);
    stage.b("hear", |b| {
        let (bytes, ended) = b.recv_all(usize::try_from(taken).unwrap_or(0));
        format!("{} {ended:?}", bytes == pattern.first(bytes.len()))
    });
    stage.b("no more came", |b| b.recv(20, MSG_DONTWAIT));
    stage.b("send", |b| format!("{:?}", b.send_all(pattern.first(ALL))));
    stage.a("arrived", |a| a.arrived(i32::try_from(ALL).unwrap_or(0)));
    stage.a("recv", |a| {
        let at = sys::good_before(GOOD);
        let got = sys::recv_at(a.fd, at, ALL, 0);
        let got = got.map_or(0, |got| usize::try_from(got).unwrap_or(0));
        let same = sys::bytes_at(at, got.min(GOOD)) == pattern.first(got);
        let (rest, ended) = a.recv_all(ALL - got);
        let is_rest = rest == pattern.at(got, ALL - got);
        format!("{} {same} {is_rest} {ended:?}", (1..=GOOD).contains(&got))
    });
    stage.a("say", |a| a.say("hello"));
    stage.b("hear", |b| b.hear(5));
}

/// Vectors that end too early, and vectors of which some entry is nothing.
fn cut_vectors(stage: &mut Stage) {
    stage.connect();
    give(stage, "0123456789");
    for (label, write) in [("readv", false), ("writev", true)] {
        stage.a(label, |a| {
            let here = sys::memory(Memory::Good, b"................");
            let whole = [(here, 4), (here + 4, 4)];
            let pair: [u64; 4] = [whole[0].0, whole[0].1, whole[1].0, whole[1].1].map(|n| n as u64);
            let tries: Vec<Ret> = [8, 16, 24]
                .into_iter()
                .map(|good| sys::vector_at(a.fd, sys::cut(&pair, good), 2, write))
                .collect();
            each_ret(&tries)
        });
        stage.a("an entry that is nothing", |a| {
            let here = sys::memory(Memory::Good, b"................");
            each(&NOTHING, |kind| {
                let nothing = sys::memory(kind, b"....");
                let vec = sys::raw_vector(&[(here, 2), (nothing, 2), (here, 2)]);
                sys::vector_at(a.fd, vec, 3, write)
            })
        });
    }
    stage.b("nothing came", |b| b.recv(20, MSG_DONTWAIT));
    stage.a("entries beyond the bytes do not matter", |a| {
        let here = sys::memory(Memory::Good, b"................");
        let nothing = sys::memory(Memory::Forbidden, b"....");
        let vec = sys::raw_vector(&[(here, 3), (here + 3, 7), (nothing, 20)]);
        let got = sys::vector_at(a.fd, vec, 3, false);
        format!(
            "{} {}",
            show::ret(got),
            show::data(&sys::bytes_at(here, 12))
        )
    });
    stage.a("a vector at an odd address", |a| {
        let here = sys::memory(Memory::Good, b"odd");
        let entry: [u64; 2] = [here as u64, 3];
        show::ret(sys::vector_at(a.fd, odd(&entry), 1, true))
    });
    stage.b("hear", |b| b.hear(3));
}

/// A copy of a vector's entry at an address that is not aligned.
fn odd(entry: &[u64; 2]) -> usize {
    let [one, two] = entry.map(u64::to_ne_bytes);
    let mut bytes = [0; 17];
    bytes[1..9].copy_from_slice(&one);
    bytes[9..].copy_from_slice(&two);
    sys::memory(Memory::Good, &bytes) + 1
}

fn each_ret(rets: &[Ret]) -> String {
    let said: Vec<String> = rets.iter().map(|&ret| show::ret(ret)).collect();
    said.join(" ")
}

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

fn polls(stage: &mut Stage) {
    stage.connect();
    give(stage, "hello");
    let wish = |a: &End| libc::pollfd {
        fd: a.fd,
        events: POLLIN,
        revents: 0,
    };
    stage.a("poll", |a| {
        each(&NO_ROOM, |kind| {
            sys::poll_at(sys::memory(kind, &wish(a)), 1, -1)
        })
    });
    stage.a("second entry", |a| {
        show::ret(sys::poll_at(sys::cut(&[wish(a), wish(a)], 8), 2, -1))
    });
    stage.a("ppoll", |a| {
        each(&NO_ROOM, |kind| {
            sys::ppoll_at(sys::memory(kind, &wish(a)), 1, 0)
        })
    });
    stage.a("mask", |a| {
        each(&NOTHING, |kind| {
            let at = sys::memory(Memory::Good, &wish(a));
            sys::ppoll_at(at, 1, sys::memory(kind, &[0u64; 16]))
        })
    });
    stage.a("so many that they need memory", |a| {
        let many = [wish(a); 200];
        let good = sys::poll_at(sys::memory(Memory::Good, &many), 200, -1);
        let bad = sys::poll_at(sys::memory(Memory::ReadOnly, &many), 200, -1);
        format!("{} {}", show::ret(good), show::ret(bad))
    });
    stage.a("recv", |a| a.recv(20, 0));
}

fn selects(stage: &mut Stage) {
    stage.connect();
    give(stage, "hello");
    let set = |a: &End| {
        let mut words = [0u64; 16];
        let fd = usize::try_from(a.fd).unwrap_or(0);
        words[fd / 64] |= 1 << (fd % 64);
        words
    };
    stage.a("select", |a| {
        each(&NO_ROOM, |kind| {
            sys::select_at(a.fd + 1, sys::memory(kind, &set(a)), 0, 0)
        })
    });
    stage.a("another set", |a| {
        each(&NO_ROOM, |kind| {
            let good = sys::memory(Memory::Good, &set(a));
            sys::select_at(a.fd + 1, good, sys::memory(kind, &[0u64; 16]), 0)
        })
    });
    stage.a("recv", |a| a.recv(20, 0));
}

fn sets(stage: &mut Stage) {
    stage.connect();
    let wish = libc::epoll_event {
        events: EPOLLIN.cast_unsigned(),
        u64: 7,
    };
    stage.a("add", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        each(&NOTHING, |kind| {
            sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, a.fd, sys::memory(kind, &wish))
        })
    });
    stage.a("add, cut", |a| {
        let at = sys::cut(&wish, 5);
        show::ret(sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, a.fd, at))
    });
    stage.a("not there", |a| {
        let none = sys::epoll_ctl(a.epfd, EPOLL_CTL_MOD, a.fd, EPOLLIN, 7);
        let added = sys::epoll_ctl_at(
            a.epfd,
            EPOLL_CTL_ADD,
            a.fd,
            sys::memory(Memory::ReadOnly, &wish),
        );
        format!("{} {}", show::ret(none), show::ret(added))
    });
    stage.a("modify", |a| {
        each(&NOTHING, |kind| {
            sys::epoll_ctl_at(a.epfd, EPOLL_CTL_MOD, a.fd, sys::memory(kind, &wish))
        })
    });
    give(stage, "hello");
    stage.a("is there", |a| show::events(&sys::epoll_wait(a.epfd, 4, 0)));
    stage.a("a socket that is not connected", |a| {
        let fd = sys::fd_of(sys::socket(libc::AF_INET, libc::SOCK_STREAM));
        let said = each(&NOTHING, |kind| {
            sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, fd, sys::memory(kind, &wish))
        });
        let cut = sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, fd, sys::cut(&wish, 5));
        let good = sys::memory(Memory::ReadOnly, &wish);
        let added = sys::epoll_ctl_at(a.epfd, EPOLL_CTL_ADD, fd, good);
        let _ = sys::close(fd);
        format!("{said} {} {}", show::ret(cut), show::ret(added))
    });
}

fn events(stage: &mut Stage) {
    stage.connect();
    stage.set_aside();
    stage.connect();
    stage.b("say", |b| b.say("hello"));
    stage.b("say by the other", |b| {
        let other = b.more.first().copied().unwrap_or(-1);
        show::ret(sys::send(other, b"hello", 0))
    });
    stage.a("arrived", |a| a.arrived(5));
    stage.a("arrived at the other", |a| {
        let other = a.more.first().copied().unwrap_or(-1);
        crate::end::settle(other, POLLIN, POLLIN)
    });
    stage.a("add both", |a| {
        a.epfd = sys::fd_of(sys::epoll_create());
        let other = a.more.first().copied().unwrap_or(-1);
        let one = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, a.fd, EPOLLIN, 1);
        let two = sys::epoll_ctl(a.epfd, EPOLL_CTL_ADD, other, EPOLLIN, 2);
        format!("{} {}", show::ret(one), show::ret(two))
    });
    stage.a("nothing", |a| {
        each(&NO_ROOM, |kind| {
            sys::epoll_wait_at(a.epfd, sys::memory(kind, &[0u64; 8]), 4, 1000)
        })
    });
    stage.a("room for a part of one", |a| {
        show::ret(sys::epoll_wait_at(a.epfd, sys::good_before(7), 4, 1000))
    });
    stage.a("room for one", |a| {
        let room = sys::good_before(size_of::<libc::epoll_event>());
        show::ret(sys::epoll_wait_at(a.epfd, room, 4, 1000))
    });
    stage.a("both are there", |a| {
        show::events(&sys::epoll_wait(a.epfd, 4, 0))
    });
    stage.a("mask", |a| {
        each(&NOTHING, |kind| {
            let room = sys::memory(Memory::Good, &[0u64; 8]);
            sys::epoll_pwait_at(a.epfd, room, 4, sys::memory(kind, &[0u64; 16]))
        })
    });
    stage.a("time", |a| {
        each(&NOTHING, |kind| {
            let room = sys::memory(Memory::Good, &[0u64; 8]);
            sys::epoll_pwait2_at(a.epfd, room, 4, sys::memory(kind, &[0u64; 2]))
        })
    });
    stage.a("recv", |a| a.recv(20, 0));
}

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
