//! How sessions begin, suffer and end.

use rdma_core::link::{DownReason, Event, Link, MILLISECOND, SECOND, Time};

use crate::for_seeds;
use crate::rig::{Path, Random, Rig};

pub(crate) fn up(seed: u64, path: Path) -> Rig {
    let mut rig = Rig::new(seed, path, |_| {});
    assert!(rig.run_until(20 * SECOND, Rig::both_up));
    for host in [0, 1] {
        assert!(matches!(rig.events(host)[..], [Event::Up { .. }]));
    }
    rig
}

#[test]
fn both_come_up_at_once() {
    let rig = up(1, Path::clean());
    assert!(rig.now < Time(10 * MILLISECOND), "{:?}", rig.now);
}

#[test]
fn one_side_need_not_know_the_other() {
    // The second link rests, as one that has given up does; the first one's HELLO wakes it.
    let mut rig = Rig::new(3, Path::clean(), |config| config.hello_tries = 3);
    rig.path.down = true;
    assert_eq!(rig.hosts[0].link.send_control(b"of old"), Ok(()));
    rig.run(10 * SECOND);
    for host in [0, 1] {
        assert_eq!(rig.events(host), [Event::Down(DownReason::NoAnswer)]);
        assert_eq!(rig.hosts[host].link.poll_timeout(), None, "it rests");
    }
    rig.path.down = false;
    let now = rig.now;
    rig.hosts[0].link.connect(now);
    assert_eq!(rig.hosts[0].link.send_control(b"of now"), Ok(()));
    assert!(rig.run_until(SECOND, Rig::both_up));
    rig.run(SECOND);
    assert_eq!(
        rig.events(1).last(),
        Some(&Event::Control(b"of now"[..].into()))
    );
}

#[test]
fn an_outage_is_survived() {
    for_seeds(3, |seed| {
        let mut rig = up(seed, Path::clean());
        rig.path.rate = 20_000_000;
        rig.open(1, 1 << 16, [4_000_000, 100_000], 0);
        rig.run(50 * MILLISECOND);
        rig.path.down = true;
        rig.run(5 * SECOND);
        rig.path.down = false;
        let back = rig.now;
        assert!(rig.run_until(30 * SECOND, Rig::all_read));
        assert!(rig.now.since(back) < 2 * SECOND, "{:?}", rig.now);
        assert_eq!(rig.events(0), []);
    });
}

#[test]
fn a_longer_outage_is_told_and_then_ends_the_session() {
    let mut rig = up(5, Path::clean());
    rig.path.rate = 1_000_000;
    rig.open(1, 1 << 16, [u64::MAX / 2, 0], 0);
    rig.run(50 * MILLISECOND);
    rig.path.down = true;
    rig.run(20 * SECOND);
    assert_eq!(rig.events(0), [Event::Silent]);
    rig.path.down = false;
    rig.run(2 * SECOND);
    assert_eq!(rig.events(0), [Event::Heard]);
    rig.path.down = true;
    rig.run(31 * SECOND);
    // The second host only listens: it notices by its keep-alive.
    assert_eq!(
        rig.events(0),
        [Event::Silent, Event::Down(DownReason::Silent)]
    );
    rig.run(30 * SECOND);
    assert_eq!(rig.events(1).last(), Some(&Event::Down(DownReason::Silent)));
    rig.hosts
        .iter_mut()
        .for_each(|host| host.programs.ends.clear());
    rig.path.down = false;
    assert!(rig.run_until(5 * SECOND, Rig::both_up));
}

#[test]
fn an_idle_link_stays_up_and_is_quiet() {
    let mut rig = up(6, Path::clean());
    rig.run(SECOND);
    let before = rig.hosts[0].link.stats().frames_sent;
    rig.run(300 * SECOND);
    let without = rig.hosts[0].link.stats().frames_sent;
    assert_eq!(without, before, "nothing depends on it");
    rig.open(1, 4096, [0, 0], 0);
    rig.run(300 * SECOND);
    let with = rig.hosts[0].link.stats().frames_sent;
    assert!((30..150).contains(&(with - without)), "{}", with - without);
    assert!(rig.both_up());
}

#[test]
fn a_reboot_is_noticed_at_once() {
    for_seeds(8, |seed| {
        let mut rig = up(seed, Path::clean());
        rig.open(1, 1 << 16, [u64::MAX / 2, u64::MAX / 2], 0);
        rig.run(20 * MILLISECOND);
        let far_epoch = rig.hosts[1].config.epoch + 1000;
        let far_backend = [2; 16];
        rig.hosts[0].programs.refuse = true;
        rig.reboot(1);
        let from = rig.now;
        let told = |rig: &Rig| rig.hosts[0].events.len() >= 2;
        assert!(rig.run_until(SECOND, told));
        assert!(rig.now.since(from) < 10 * MILLISECOND);
        rig.hosts[0].programs.ends.clear();
        let events = rig.events(0);
        assert_eq!(
            events[0],
            Event::Rebooted {
                far_backend,
                far_epoch
            }
        );
        assert!(matches!(events[1], Event::Up { far_epoch: epoch, .. } if epoch == far_epoch));
        // Both go on with the new session.
        rig.hosts[0].programs.refuse = false;
        rig.open(2, 1 << 16, [300_000, 300_000], 1 << 20);
        assert!(rig.run_until(10 * SECOND, Rig::all_read));
    });
}

#[test]
fn a_reboot_that_nobody_announces_is_found_by_a_reset() {
    let mut rig = up(8, Path::clean());
    rig.open(1, 1 << 16, [u64::MAX / 2, 0], 0);
    rig.run(20 * MILLISECOND);
    rig.reboot(1);
    // Its HELLO is lost: the first host goes on sending to a session that nobody knows.
    while rig.hosts[1].next_frame(rig.now).is_some() {}
    let told = |rig: &Rig| rig.hosts[0].events.len() >= 2;
    assert!(rig.run_until(90 * MILLISECOND, told));
    assert!(matches!(rig.events(0)[0], Event::Rebooted { .. }));
}

#[test]
fn a_session_ends_with_a_reason() {
    let mut rig = up(9, Path::clean());
    rig.open(1, 4096, [100, 100], 0);
    rig.run(SECOND);
    rig.hosts[0].link.shut_down(77);
    rig.run(SECOND);
    assert_eq!(rig.events(0), [Event::Down(DownReason::ShutDown)]);
    assert_eq!(rig.events(1), [Event::Down(DownReason::Closed(77))]);
    rig.hosts
        .iter_mut()
        .for_each(|host| host.programs.ends.clear());
    rig.run(60 * SECOND);
    assert!(!rig.both_up(), "both rest");
    let now = rig.now;
    rig.hosts[1].link.connect(now);
    assert!(rig.run_until(SECOND, Rig::both_up));
}

#[test]
fn a_session_comes_up_on_any_path() {
    for_seeds(100, |seed| {
        let path = Path::bad(&mut Random(seed ^ 0xbad));
        let mut rig = Rig::new(seed, path, |_| {});
        assert!(rig.run_until(60 * SECOND, Rig::both_up), "{:?}", rig.path);
        rig.run(5 * SECOND);
        for host in [0, 1] {
            let events = rig.events(host);
            assert!(matches!(events[..], [Event::Up { .. }]), "{events:?}");
        }
    });
}

#[test]
fn the_path_is_used_as_far_as_it_goes_and_may_shrink() {
    for_seeds(3, |seed| {
        let mut rig = up(seed, Path::clean());
        rig.path.rate = 20_000_000;
        rig.open(1, 1 << 18, [15_000_000, 10_000], 0);
        rig.run(20 * MILLISECOND);
        assert_eq!(rig.hosts[0].link.stats().frame, 8972);
        rig.path.mtu = 1500;
        rig.run(400 * MILLISECOND);
        let frame = rig.hosts[0].link.stats().frame;
        assert!((1468..=1500).contains(&frame), "{frame}");
        assert!(rig.run_until(30 * SECOND, Rig::all_read));
        rig.path.mtu = 9000;
        rig.run(40 * SECOND);
        assert_eq!(rig.hosts[0].link.stats().frame, 8972);
    });
}

#[test]
fn a_path_that_reorders_is_not_taken_for_one_that_loses() {
    let mut rig = up(17, Path::clean());
    rig.path.reorder = 300;
    rig.path.delay = 2 * MILLISECOND;
    rig.open(1, 1 << 20, [8_000_000, 0], 0);
    rig.run(50 * MILLISECOND);
    let early = rig.hosts[0].link.stats();
    assert!(early.frames_found > 0, "{early:?}");
    assert!(rig.run_until(10 * SECOND, Rig::all_read));
    let late = rig.hosts[0].link.stats();
    let lost = late.frames_lost - early.frames_lost;
    assert!(lost * 100 < late.frames_sent, "{early:?} {late:?}");
}

#[test]
fn a_lost_frame_delays_only_its_stream() {
    let mut rig = up(11, Path::clean());
    rig.path.delay = 20 * MILLISECOND;
    rig.open(1, 1 << 16, [1000, 0], 0);
    rig.open(2, 1 << 16, [1000, 0], 0);
    // The first frame with bytes is lost, whichever stream it is of.
    rig.path.down = true;
    for program in rig.hosts[0].programs.ends.values_mut() {
        program.write(1000);
    }
    let host = &mut rig.hosts[0];
    host.link.produced(rdma_core::link::Endpoint(2), 1000);
    rig.send();
    rig.path.down = false;
    rig.hosts[0]
        .link
        .produced(rdma_core::link::Endpoint(4), 1000);
    rig.send();
    rig.run(21 * MILLISECOND);
    assert_eq!(rig.hosts[1].programs.ends[&5].head, 1000);
    assert_eq!(rig.hosts[1].programs.ends[&3].head, 0);
    rig.run(SECOND);
    assert_eq!(rig.hosts[1].programs.ends[&3].head, 1000);
}

#[test]
fn a_program_that_does_not_read_stops_only_its_stream() {
    let mut rig = up(12, Path::clean());
    rig.open(1, 1 << 14, [1 << 20, 0], 0);
    rig.open(2, 1 << 14, [1 << 20, 0], 0);
    if let Some(program) = rig.hosts[1].programs.ends.get_mut(&3) {
        program.reads = false;
    }
    rig.run(5 * SECOND);
    let ends = &rig.hosts[1].programs.ends;
    assert_eq!((ends[&3].edge, ends[&3].head), (1 << 14, 0));
    assert_eq!(ends[&5].head, 1 << 20);
    assert_eq!(rig.hosts[0].link.stats().in_flight, 0);
}

#[test]
fn what_comes_early_comes_again() {
    let mut rig = up(13, Path::clean());
    rig.open(1, 1 << 14, [5000, 0], 0);
    rig.hosts[1].link.close(rdma_core::link::Endpoint(3));
    rig.hosts[1].link.expect(rdma_core::link::Endpoint(3));
    rig.run(5 * MILLISECOND);
    assert!(rig.hosts[1].link.stats().postponed > 0);
    rig.hosts[1].link.open(
        rdma_core::link::Endpoint(3),
        rdma_core::link::FarEnd {
            endpoint: 2,
            rkey: 7002,
            capacity: 1 << 14,
        },
        7003,
        rdma_core::link::DomainId(0),
        rdma_core::link::Positions::default(),
    );
    assert!(rig.run_until(SECOND, Rig::all_read));
}

#[test]
fn what_comes_for_a_closed_or_foreign_stream_is_dropped() {
    let mut rig = up(14, Path::clean());
    rig.open(1, 1 << 14, [5000, 0], 0);
    rig.open(2, 1 << 14, [5000, 0], 0);
    rig.hosts[1].link.close(rdma_core::link::Endpoint(3));
    rig.hosts[1].programs.ends.remove(&5);
    rig.run(SECOND);
    let stats = rig.hosts[1].link.stats();
    assert!(stats.for_closed > 0 && stats.refused > 0, "{stats:?}");
    assert_eq!(rig.hosts[0].link.stats().in_flight, 0, "it is not repeated");
}

#[test]
fn a_stream_that_is_stopped_sends_no_more() {
    let mut rig = up(15, Path::clean());
    rig.path.rate = 10_000_000;
    rig.open(1, 1 << 18, [u64::MAX / 2, 0], 0);
    rig.run(20 * MILLISECOND);
    rig.hosts[0].link.stop_sending(rdma_core::link::Endpoint(2));
    let sent = rig.hosts[0].link.stats().stream_bytes_sent;
    assert!(sent > 0);
    rig.run(SECOND);
    assert_eq!(rig.hosts[0].link.stats().stream_bytes_sent, sent);
}

#[test]
fn a_link_to_itself_is_none() {
    let mut rig = Rig::new(16, Path::clean(), |config| config.backend = [9; 16]);
    rig.run(5 * SECOND);
    assert!(
        rig.hosts
            .iter()
            .all(|host: &crate::rig::Host| !Link::is_up(&host.link))
    );
    assert!(rig.hosts[0].link.stats().strange > 0);
}

#[test]
fn what_is_meant_for_the_stream_before_does_not_reach_the_one_after() {
    use rdma_core::link::{DomainId, Endpoint, FarEnd, Positions, State};
    let mut rig = up(18, Path::clean());
    rig.open(1, 1 << 14, [1000, 1000], 0);
    assert!(rig.run_until(SECOND, Rig::all_read));
    // The first host gives the number to another stream; the second one still speaks of the old one.
    let link = &mut rig.hosts[0].link;
    link.close(Endpoint(2));
    let far = FarEnd {
        endpoint: 99,
        rkey: 98,
        capacity: 1 << 14,
    };
    let at = Positions {
        sent: 5000,
        far_consumed: 0,
        received: 0,
        consumed: 0,
    };
    link.open(Endpoint(2), far, 97, DomainId(0), at);
    rig.hosts[0].programs.ends.clear();
    rig.hosts[1].programs.ends.clear();
    let link = &mut rig.hosts[1].link;
    link.set_state(
        Endpoint(3),
        State {
            flags: 7,
            ..State::default()
        },
    );
    rig.run(SECOND);
    // An event would find no program, and panic.
    assert!(rig.hosts[0].link.stats().refused > 0);
}
