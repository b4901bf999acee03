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

/// A stream that always has more, and where asked another that says little and often: the window of the
/// sending link after some time with neither, with it, and without it again.
fn windows_with_a_caller(domains: [DomainId; 2], call: u64, pause: u64) -> [Stats; 3] {
    // A link counts as shared for 100 ms after it was.
    let is_shared = domains[0] != domains[1];
    let lasts = [40, 40, if is_shared { 160 } else { 60 }];
    let mut path = Path::clean();
    path.delay = 10 * MICROSECOND;
    path.rate = 4_000_000_000;
    let mut rig = Rig::new(1, path, |config| config.window = 8 << 20);
    assert!(rig.run_until(SECOND, Rig::both_up));
    rig.run(10 * MILLISECOND);
    // From here on processors are busy.
    rig.path.looks_after = 400 * MICROSECOND;
    rig.open_in(1, 1 << 22, [u64::MAX / 2, 0], 0, domains[0]);
    rig.open_in(2, 1 << 22, [0, 0], 0, domains[1]);
    let caller = 4;
    let mut windows = [Stats::default(); 3];
    for (part, window) in (0..3).zip(&mut windows) {
        for _ in 0..lasts[part] * MILLISECOND / pause {
            if part == 1 {
                let programs = &mut rig.hosts[0].programs;
                let program = programs.ends.get_mut(&caller).expect("it is open");
                program.total += call;
            }
            rig.run(pause);
        }
        *window = rig.hosts[0].link.stats();
        let called = rig.hosts[0].link.has_callers(rig.now);
        let expected = part == 1 && call <= 4096 && pause < MILLISECOND;
        assert_eq!(called, expected, "{part}: {window:?}");
    }
    windows
}

#[test]
fn who_says_little_and_often_waits_behind_little() {
    let long = 1 << 20;
    for domains in [[DomainId(0); 2], [DomainId(0), DomainId(1)]] {
        let [before, beside, after] = windows_with_a_caller(domains, 100, 500 * MICROSECOND);
        assert!(before.window >= long, "{before:?}");
        assert!(beside.window <= 256 << 10, "{beside:?}");
        assert!(after.window >= long, "{after:?}");
    }
    // Neither what says much nor what speaks rarely is one.
    for (call, pause) in [(9000, 500 * MICROSECOND), (100, 5 * MILLISECOND)] {
        let [_, beside, _] = windows_with_a_caller([DomainId(0); 2], call, pause);
        assert!(beside.window >= long, "{beside:?}");
    }
}
