//! With a key, what the key did not make changes nothing.

use rdma_core::link::{Event, MILLISECOND, Psk, SECOND, Stats};

use crate::for_seeds;
use crate::rig::{Path, Random, Rig, index};

fn keyed(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, Path::clean(), Rig::with_key);
    rig.record = true;
    assert!(rig.run_until(SECOND, Rig::both_up));
    rig
}

/// What of a link a stranger must not be able to change: all but the counters of what was dropped.
fn essence(stats: Stats) -> Stats {
    Stats {
        malformed: 0,
        forged: 0,
        replayed: 0,
        strange: 0,
        // Answers to HELLOs and RESETs.
        frames_sent: 0,
        bytes_sent: 0,
        frames_received: 0,
        bytes_received: 0,
        ..stats
    }
}

/// Gives a frame to both hosts, and lets them answer; none of the answers arrives.
fn attack(rig: &mut Rig, frame: &[u8]) {
    for host in [0, 1] {
        rig.deliver(host, frame.to_vec());
    }
    rig.path.down = true;
    rig.send();
    rig.path.down = false;
}

#[test]
fn forged_and_altered_frames_change_nothing() {
    for_seeds(5, |seed| {
        let mut rig = keyed(seed);
        rig.open(1, 1 << 14, [50_000, 50_000], 0);
        rig.run(2 * MILLISECOND);
        // Nothing moves any more: what changes, the attack changed.
        assert!(rig.run_until(SECOND, Rig::all_read));
        rig.run(100 * MILLISECOND);
        let frames: Vec<Vec<u8>> = rig.recorded.iter().flatten().cloned().collect();
        assert!(frames.len() > 20);
        let before = [0, 1].map(|host| essence(rig.hosts[host].link.stats()));
        let mut random = Random(seed);
        for _ in 0..3000 {
            let mut frame = frames[index(random.below(frames.len() as u64))].clone();
            match random.below(4) {
                0 => {
                    let bit = index(random.below(frame.len() as u64 * 8));
                    frame[bit / 8] ^= 1 << (bit % 8);
                }
                1 => frame.truncate(index(random.below(frame.len() as u64))),
                2 => {
                    // A number that was not used yet.
                    if frame.len() >= 16 {
                        frame[8..16].copy_from_slice(&random.below(1 << 40).to_be_bytes());
                    }
                }
                _ => {
                    let at = index(random.below(frame.len() as u64));
                    for byte in &mut frame[at..] {
                        *byte = random.next().to_le_bytes()[0];
                    }
                }
            }
            attack(&mut rig, &frame);
        }
        for host in [0, 1] {
            assert_eq!(essence(rig.hosts[host].link.stats()), before[host]);
            assert!(matches!(rig.events(host)[..], [Event::Up { .. }]));
        }
        let stats = rig.hosts[0].link.stats();
        assert!(stats.forged > 100 && stats.strange > 100, "{stats:?}");
        assert!(stats.malformed > 100 && stats.replayed > 10, "{stats:?}");
        rig.open(2, 1 << 14, [50_000, 50_000], 0);
        assert!(rig.run_until(SECOND, Rig::all_read), "it still works");
    });
}

#[test]
fn replayed_frames_change_nothing() {
    for_seeds(5, |seed| {
        let mut rig = keyed(seed);
        rig.open(1, 1 << 14, [50_000, 50_000], 0);
        assert!(rig.run_until(SECOND, Rig::all_read));
        rig.run(100 * MILLISECOND);
        let mut frames: Vec<Vec<u8>> = rig.recorded.iter().flatten().cloned().collect();
        // A RESET needs no key; it may only make the link ask.
        let mut reset = frames[frames.len() - 1].clone();
        reset.truncate(16);
        (reset[1], reset[2]) = (3, 0);
        frames.push(reset);
        let before = [0, 1].map(|host| essence(rig.hosts[host].link.stats()));
        let mut random = Random(seed);
        for _ in 0..1000 {
            let frame = frames[index(random.below(frames.len() as u64))].clone();
            for host in [0, 1] {
                rig.deliver(host, frame.clone());
            }
            // Here the answers do arrive.
            rig.run(random.below(3) * MILLISECOND);
        }
        for host in [0, 1] {
            let after = essence(rig.hosts[host].link.stats());
            assert_eq!(after.sessions, before[host].sessions);
            assert_eq!(
                after.stream_bytes_received,
                before[host].stream_bytes_received
            );
            assert!(matches!(rig.events(host)[..], [Event::Up { .. }]));
        }
        assert!(rig.hosts[0].link.stats().replayed > 100);
    });
}

#[test]
fn a_recorded_session_cannot_be_set_up_again() {
    let mut rig = keyed(3);
    rig.open(1, 1 << 14, [50_000, 50_000], 0);
    assert!(rig.run_until(SECOND, Rig::all_read));
    let frames: Vec<Vec<u8>> = rig.recorded[0].iter().cloned().collect();
    rig.reboot(0);
    // The real far end is away; somebody plays what it once said.
    rig.path.down = true;
    for frame in &frames {
        rig.deliver(0, frame.clone());
        rig.run(MILLISECOND);
    }
    assert!(!rig.hosts[0].link.is_up());
    assert_eq!(rig.hosts[0].link.stats().stream_bytes_received, 0);
}

#[test]
fn nobody_without_the_key_gets_in() {
    for other in [None, Psk::new(b"another secret of theirs")] {
        let mut rig = Rig::new(5, Path::clean(), |config| {
            config.key = if config.backend == [1; 16] {
                Psk::new(b"a secret of two hosts")
            } else {
                other.clone()
            };
        });
        rig.run(10 * SECOND);
        for host in [0, 1] {
            assert!(!rig.hosts[host].link.is_up());
            assert!(rig.hosts[host].link.stats().forged > 0);
        }
    }
}

#[test]
fn keys_are_rotated_while_data_flows() {
    for_seeds(4, |seed| {
        let mut path = Path::bad(&mut Random(seed));
        path.mtu = 9000;
        let mut rig = Rig::new(seed, path, Rig::with_key);
        assert!(rig.run_until(60 * SECOND, Rig::both_up));
        rig.open(1, 1 << 16, [1_000_000, 1_000_000], 0);
        let mut rotated = [0; 2];
        for _ in 0..100_000 {
            if rig.all_read() {
                break;
            }
            rig.run(MILLISECOND);
            for host in [0, 1] {
                rotated[host] += u64::from(rig.hosts[host].link.rotate_key());
            }
        }
        assert!(rig.all_read());
        assert!(rotated[0] > 0 && rotated[1] > 0, "{rotated:?}");
    });
}
