//! Streams over a bad path.

use rdma_core::link::{DomainId, Endpoint, Event, FarEnd, MILLISECOND, Positions, SECOND, State};

use crate::for_seeds;
use crate::life::up;
use crate::rig::{Path, Random, Rig, index};

/// Several streams in both directions, and control messages, over any path.
fn everything_arrives(seed: u64, sealed: bool) {
    let mut random = Random(seed ^ 0x5eed);
    let path = Path::bad(&mut random);
    let mut rig = Rig::new(seed, path, |config| {
        if sealed {
            Rig::with_key(config);
        }
    });
    assert!(rig.run_until(60 * SECOND, Rig::both_up), "{:?}", rig.path);
    let streams = 1 + small(random.below(6));
    for number in 0..streams {
        let capacity = 1 << (12 + random.below(8));
        let totals = [random.below(400_000), random.below(400_000)];
        rig.open(number, capacity, totals, random.below(1 << 40));
    }
    let messages = small(random.below(600));
    for number in 0..messages {
        let length = 4 + index(random.below(1000));
        let mut message = vec![7; length];
        message[..4].copy_from_slice(&number.to_be_bytes());
        rig.hosts[0]
            .link
            .send_control(&message)
            .expect("there is room");
    }
    for number in 0..streams {
        rig.set_state(number, state(1));
    }
    rig.run(20 * MILLISECOND);
    for number in 0..streams {
        rig.set_state(number, state(2));
    }
    let mut received = Vec::new();
    let done = rig.run_until(3000 * SECOND, |rig| {
        rig.all_read()
            && rig.hosts.iter().all(|host| {
                host.programs
                    .ends
                    .values()
                    .all(|program| program.state == state(2))
            })
            && rig.hosts[1]
                .events
                .iter()
                .filter(|event| matches!(event, Event::Control(_)))
                .count()
                >= messages as usize
    });
    for event in rig.events(1) {
        match event {
            Event::Control(message) => received.push(message),
            Event::Up { .. } | Event::Silent | Event::Heard => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(done, "{:?} {:?}", rig.path, rig.hosts[0].link.stats());
    assert_eq!(received.len(), messages as usize);
    for (number, message) in (0u32..).zip(&received) {
        assert_eq!(message[..4], number.to_be_bytes());
    }
}

fn small(number: u64) -> u32 {
    u32::try_from(number).expect("32 bits")
}

fn state(number: u32) -> State {
    State {
        flags: number,
        end_at: u64::from(number) << 33,
        ..State::default()
    }
}

#[test]
fn everything_arrives_byte_for_byte() {
    for_seeds(30, |seed| everything_arrives(seed, false));
}

#[test]
fn everything_arrives_sealed() {
    for_seeds(8, |seed| everything_arrives(seed, true));
}

/// More streams than messages that can be under way: what is said of a stream too early must not hold up the message
/// that opens it.
#[test]
fn streams_are_opened_by_messages_however_many() {
    const STREAMS: u32 = 1000;
    let mut rig = up(1, Path::clean());
    let name = |number: u32| Endpoint(number * 2 + 1);
    let state = State {
        flags: 1,
        ..State::default()
    };
    for number in 0..STREAMS {
        rig.open(number, 4096, [10, 0], 0);
        let host = &mut rig.hosts[1];
        host.link.close(name(number));
        host.link.expect(name(number));
        let message = number.to_be_bytes();
        assert_eq!(rig.hosts[0].link.send_control(&message), Ok(()));
        rig.hosts[0].link.set_state(Endpoint(number * 2), state);
    }
    let mut opened = 0;
    for _ in 0..1000 {
        rig.run(MILLISECOND);
        for event in rig.events(1) {
            let Event::Control(message) = event else {
                panic!("{event:?}");
            };
            let number = u32::from_be_bytes(message[..].try_into().expect("a number"));
            let far = FarEnd {
                endpoint: number * 2,
                rkey: 7_000 + number * 2,
                capacity: 4096,
            };
            let host = &mut rig.hosts[1];
            let rkey = 7_000 + name(number).0;
            let at = Positions::default();
            host.link.open(name(number), far, rkey, DomainId(0), at);
            opened += 1;
        }
    }
    assert_eq!(opened, STREAMS);
    assert!(rig.run_until(10 * SECOND, Rig::all_read));
    for number in 0..STREAMS {
        let far = &rig.hosts[1].programs.ends[&name(number).0];
        assert_eq!(far.state, state, "{number}");
    }
}
