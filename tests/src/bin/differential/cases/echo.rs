//! Bytes there and back, in all sizes and all forms.

use super::{Case, Needs, case, in_all_forms};
use viaduct_tests::sys;

use crate::pattern::Pattern;
use crate::stage::{Family, Stage};
use viaduct_tests::show;

pub(super) const CASES: &[Case] = &[
    in_all_forms("echo", Needs::Both, echo),
    in_all_forms("ping_pong", Needs::Steps, ping_pong),
    in_all_forms("both_ways", Needs::Both, both_ways),
    in_all_forms("one_way", Needs::Both, one_way),
    case("large_both_ways", Needs::Both, large_both_ways),
    case(
        "megabyte_before_reading",
        Needs::Steps,
        megabyte_before_reading,
    ),
    case("over_ipv6", Needs::Steps, |stage| over(stage, Family::V6)),
    case("over_mapped", Needs::Steps, |stage| {
        over(stage, Family::Mapped);
    }),
];

const SIZES: &[usize] = &[
    1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 1447, 1448, 4095,
    4096, 4097, 16_384, 65_535, 65_536, 65_537, 131_072, 262_144, 500_000, 1_048_573,
];

fn echo(stage: &mut Stage) {
    let pattern = Pattern::new(3);
    stage.connect();
    for &size in SIZES {
        stage.both(
            &format!("echo {size}"),
            |a| {
                let sent = a.send_all(pattern.first(size));
                let (bytes, ended) = a.recv_all(size);
                format!("{sent:?} {} {ended:?}", show::data(&bytes))
            },
            |b| {
                let (bytes, ended) = b.recv_all(size);
                let sent = b.send_all(&bytes);
                format!("{} {ended:?} {sent:?}", show::data(&bytes))
            },
        );
    }
}

fn ping_pong(stage: &mut Stage) {
    stage.connect();
    for round in 0..60 {
        let message = format!("message {round}");
        stage.a("send", |a| a.say(&message));
        stage.b("recv", |b| b.hear(message.len()));
        stage.b("send", |b| b.say(&message));
        stage.a("recv", |a| a.hear(message.len()));
    }
}

fn one_way(stage: &mut Stage) {
    const BYTES: usize = 6_000_000;
    let pattern = Pattern::new(5);
    stage.connect();
    stage.both(
        "to b",
        |a| a.pour(&pattern, BYTES, 1),
        |b| b.drink(&pattern, BYTES, 2),
    );
    stage.both(
        "to a",
        |a| a.drink(&pattern, BYTES, 3),
        |b| b.pour(&pattern, BYTES, 4),
    );
    stage.a("close", |a| a.close());
    stage.b("end", |b| b.hear(1));
}

fn both_ways(stage: &mut Stage) {
    const BYTES: usize = 8 << 20;
    exchange(stage, BYTES);
}

fn large_both_ways(stage: &mut Stage) {
    const BYTES: usize = 64 << 20;
    exchange(stage, BYTES);
}

/// Both ends pour and drink at the same time, each with two threads.
fn exchange(stage: &mut Stage, bytes: usize) {
    let (from_a, from_b) = (Pattern::new(7), Pattern::new(9));
    stage.connect();
    stage.both(
        "exchange",
        |a| a.duplex(&from_a, &from_b, bytes, 11),
        |b| b.duplex(&from_b, &from_a, bytes, 12),
    );
    stage.a("send after", |a| a.say("after"));
    stage.b("recv after", |b| b.hear(5));
}

fn megabyte_before_reading(stage: &mut Stage) {
    // As much as the kernel's buffers surely take.
    const BYTES: usize = 1_048_573;
    let pattern = Pattern::new(13);
    stage.connect();
    stage.a("send", |a| {
        format!("{:?}", a.send_all(pattern.first(BYTES)))
    });
    stage.b("recv", |b| b.hear(BYTES));
    stage.b("send", |b| {
        format!("{:?}", b.send_all(pattern.first(BYTES)))
    });
    stage.a("recv", |a| a.hear(BYTES));
}

fn over(stage: &mut Stage, family: Family) {
    stage.connect_over(family);
    for round in 0..10 {
        stage.a("send", |a| a.say(&format!("hello {round}")));
        stage.b("recv", |b| b.hear(7));
        stage.b("send", |b| b.say(&format!("world {round}")));
        stage.a("recv", |a| a.hear(7));
    }
    for (label, far) in [("own", false), ("far", true)] {
        stage.a(label, |a| {
            format!("{:?}", sys::name(a.fd, far).map(|name| name.ip()))
        });
        stage.b(label, |b| {
            format!("{:?}", sys::name(b.fd, far).map(|name| name.ip()))
        });
    }
}
