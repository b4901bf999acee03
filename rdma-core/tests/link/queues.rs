//! How much is under way, by where it waits.

use rdma_core::link::{MICROSECOND, SECOND, Stats};

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
