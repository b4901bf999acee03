//! How much is under way, by where it waits.

use rdma_core::link::{DomainId, MICROSECOND, MILLISECOND, SECOND, Stats};

use crate::rig::{Path, Rig};

/// One stream that always has more, for `nanos`: what the sending link says then, and the bytes since half
/// of that.
fn stats_and_bytes(nanos: u64, change: impl Fn(&mut Path)) -> (Stats, u64) {
    let mut path = Path::clean();
    path.delay = 10 * MICROSECOND;
    change(&mut path);
    let mut rig = Rig::new(1, path, |config| config.window = 8 << 20);
    assert!(rig.run_until(SECOND, Rig::both_up));
    rig.open(1, 1 << 22, [u64::MAX / 2, 0], 0);
    rig.run(nanos / 2);
    let sent = |rig: &Rig| rig.hosts[0].link.stats().stream_bytes_sent;
    let before = sent(&rig);
    rig.run(nanos / 2);
    (rig.hosts[0].link.stats(), sent(&rig) - before)
}

#[test]
fn a_slow_path_has_a_short_queue_and_is_never_idle() {
    let (stats, bytes) = stats_and_bytes(SECOND, |path| path.rate = 125_000_000);
    assert!(stats.window <= 256 << 10, "{stats:?}");
    assert!(bytes > 57_000_000, "{bytes}");
}

#[test]
fn who_looks_late_gets_a_large_window_all_the_same() {
    let (stats, _) = stats_and_bytes(SECOND / 10, |path| {
        path.rate = 10_000_000_000;
        path.looks_after = 400 * MICROSECOND;
    });
    assert!(stats.window >= 1 << 20, "{stats:?}");
    let looked = 400 * MICROSECOND;
    assert!(
        stats.rtt_least > looked && stats.way_least < looked,
        "{stats:?}"
    );
}

/// A stream that always has more, and beside it, for the second of three parts, another that says `call` bytes every `pause`: the
/// window of the sending link at the end of each part, and bytes in a second.
fn beside_a_caller(
    [one, other]: [DomainId; 2],
    call: u64,
    pause: u64,
    change: impl Fn(&mut Path),
) -> [(u64, u64); 3] {
    // A link counts as shared for 100 ms after it was.
    let lasts = [40, 60, if one == other { 60 } else { 160 }];
    let mut path = Path::clean();
    path.delay = 10 * MICROSECOND;
    path.rate = 4_000_000_000;
    let mut rig = Rig::new(1, path, |config| config.window = 8 << 20);
    assert!(rig.run_until(SECOND, Rig::both_up));
    rig.run(10 * MILLISECOND);
    // From here on processors are busy.
    change(&mut rig.path);
    rig.open_in(1, 1 << 22, [u64::MAX / 2, 0], 0, one);
    rig.open_in(2, 1 << 22, [0, 0], 0, other);
    let caller = 4;
    [0, 1, 2].map(|part| {
        let before = rig.hosts[0].link.stats().stream_bytes_sent;
        for _ in 0..lasts[part] * MILLISECOND / pause {
            if part == 1 {
                let programs = &mut rig.hosts[0].programs;
                let program = programs.ends.get_mut(&caller).expect("it is open");
                program.total += call;
            }
            rig.run(pause);
        }
        let stats = rig.hosts[0].link.stats();
        let called = rig.hosts[0].link.has_callers(rig.now);
        let expected = part == 1 && call <= 4096 && pause < MILLISECOND;
        assert_eq!(called, expected, "{part}: {stats:?}");
        let bytes = stats.stream_bytes_sent - before;
        (stats.window, bytes * 1000 / lasts[part])
    })
}

const OFTEN: u64 = 500 * MICROSECOND;

#[test]
fn callers_wait_behind_little_where_a_backend_is_slow() {
    for domains in [[DomainId(0); 2], [DomainId(0), DomainId(1)]] {
        let all = beside_a_caller(domains, 100, OFTEN, |path| path.takes = 2_000_000_000);
        let [before, beside, after] = all;
        assert!(before.0 >= 1 << 20, "{all:?}");
        assert!(beside.0 <= 320 << 10, "{all:?}");
        assert!(after.0 >= 1 << 20, "{all:?}");
        assert!(beside.1 > before.1 * 9 / 10, "{all:?}");
    }
    // Neither what says much nor what speaks rarely is one.
    for (call, pause) in [(9000, OFTEN), (100, 5 * MILLISECOND)] {
        let all = beside_a_caller([DomainId(0); 2], call, pause, |path| {
            path.takes = 2_000_000_000;
        });
        assert!(all[1].0 >= 1 << 20, "{all:?}");
    }
}

#[test]
fn callers_cost_little_where_a_backend_looks_late() {
    let all = beside_a_caller([DomainId(0); 2], 100, OFTEN, |path| {
        path.looks_after = 400 * MICROSECOND;
    });
    assert!(all[1].1 > all[0].1 * 7 / 10, "{all:?}");
}
