//! Who gets how much of a link.

use rdma_core::link::{DomainConfig, DomainId, SECOND, Time};

use crate::rig::{Path, Rig};

/// A link of 100 MB/s that is never idle.
fn saturated() -> Rig {
    let mut path = Path::clean();
    path.rate = 100_000_000;
    path.queue = 1_000_000;
    let mut rig = Rig::new(1, path, |config| config.window = 1_000_000);
    assert!(rig.run_until(SECOND, Rig::both_up));
    rig
}

fn bytes(rig: &Rig, domain: u32) -> u64 {
    rig.hosts[0]
        .schedule
        .counters(DomainId(domain))
        .map_or(0, |counters| counters.bytes)
}

fn entitle(rig: &mut Rig, domain: u32, weight: u32, rate: Option<u64>) {
    rig.hosts[0]
        .schedule
        .set_domain(DomainId(domain), DomainConfig { weight, rate }, Time(1));
}

fn within(actual: u64, expected: u64, percent: u64) -> bool {
    actual.abs_diff(expected) * 100 <= expected * percent
}

#[test]
fn weights_three_to_one() {
    let mut rig = saturated();
    entitle(&mut rig, 1, 3, None);
    entitle(&mut rig, 2, 1, None);
    for number in 0..8 {
        // One stream for the heavy domain, seven for the light one.
        let domain = DomainId(if number == 0 { 1 } else { 2 });
        rig.open_in(number, 1 << 20, [u64::MAX / 2, 0], 0, domain);
    }
    rig.run(SECOND / 2);
    let (heavy, light) = (bytes(&rig, 1), bytes(&rig, 2));
    assert!(within(heavy, 3 * light, 5), "{heavy} {light}");
    assert!(heavy + light > 40_000_000, "{heavy} {light}");
}

#[test]
fn a_rate_holds() {
    let mut rig = saturated();
    entitle(&mut rig, 1, 1, Some(80_000_000));
    rig.open_in(1, 1 << 20, [u64::MAX / 2, 0], 0, DomainId(1));
    rig.open_in(2, 1 << 20, [u64::MAX / 2, 0], 0, DomainId(2));
    rig.run(SECOND);
    let (limited, other) = (bytes(&rig, 1), bytes(&rig, 2));
    assert!(within(limited, 10_000_000, 3), "{limited}");
    assert!(other > 75_000_000, "{other}");
}

#[test]
fn streams_of_one_domain_share_alike() {
    let mut rig = saturated();
    for number in 0..16 {
        rig.open(number, 1 << 18, [u64::MAX / 2, 0], 0);
    }
    rig.run(SECOND / 2);
    let read = rig.hosts[1].programs.ends.values().map(|end| end.head);
    let (least, most) = (read.clone().min(), read.max());
    assert!(
        most < least.map(|least| least * 3 / 2),
        "{least:?} {most:?}"
    );
}

#[test]
fn a_small_message_does_not_wait_behind_a_flood() {
    let mut rig = saturated();
    rig.open_in(1, 1 << 20, [u64::MAX / 2, 0], 0, DomainId(1));
    rig.run(SECOND / 10);
    let flooded = rig.hosts[0].link.stats().rtt;
    rig.open_in(2, 1 << 16, [1, 0], 0, DomainId(2));
    let from = rig.now;
    assert!(rig.run_until(SECOND, |rig| rig.hosts[1].programs.ends[&5].head == 1));
    assert!(
        rig.now.since(from) < 2 * flooded,
        "{:?}",
        rig.now.since(from)
    );
}

#[test]
fn one_frame_lost_in_a_hundred_leaves_more_than_half() {
    let total = 20_000_000;
    let time = |drop| {
        let mut rig = saturated();
        rig.path.drop = drop;
        rig.open(1, 1 << 20, [total, 0], 0);
        let from = rig.now;
        assert!(rig.run_until(60 * SECOND, Rig::all_read));
        rig.now.since(from)
    };
    let (clean, lossy) = (time(0), time(10));
    assert!(clean < total * 13, "{clean}");
    assert!(lossy < 2 * clean, "{clean} {lossy}");
}

#[test]
fn a_fast_path_is_filled_also_if_it_loses_one_in_a_hundred() {
    for drop in [0, 10] {
        let mut path = Path::clean();
        path.rate = 1_250_000_000;
        path.delay = 100_000;
        path.queue = 2_000_000;
        path.drop = drop;
        let mut rig = Rig::new(1, path, |_| {});
        assert!(rig.run_until(SECOND, Rig::both_up));
        let total = 60_000_000;
        rig.open(1, 1 << 22, [total, 0], 0);
        let from = rig.now;
        assert!(rig.run_until(10 * SECOND, Rig::all_read));
        let rate = total * 1000 / (rig.now.since(from) / 1_000_000);
        let stats = rig.hosts[0].link.stats();
        assert!(rate > 1_000_000_000, "{rate} {stats:?}");
        assert!(stats.acks_received * 5 < stats.frames_sent, "{stats:?}");
    }
}
