//! Pointers whose end is missing: buffers and vectors that cannot be read or written from some byte on.

use libc::{MSG_DONTWAIT, MSG_PEEK};

use super::pointers::{NOTHING, each, each_ret, give};
use super::{Case, Needs, case};
use crate::end::Side;
use crate::pattern::Pattern;
use crate::stage::Stage;
use viaduct_tests::show;
use viaduct_tests::sys::{self, Memory, Ret};

pub(super) const CASES: &[Case] = &[
    case("pointers_cut", Needs::Steps, cut_short),
    case("pointers_cut_far_out", Needs::Steps, cut_far_out),
    case("pointers_cut_vectors", Needs::Steps, cut_vectors),
];

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
