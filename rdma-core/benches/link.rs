//! What a link costs per frame, without a system call: two links back to back in memory.
//!
//! `cargo bench -p viaduct-rdma-core --features link --bench link -- --quick`.
//!
//! With COUNT set the program moves so many bytes in frames of SIZE through two links and does nothing
//! else (KEY=1: sealed), for perf:
//!
//! ```text
//! COUNT=20000000000 SIZE=8228 perf record $BINARY
//! ```

use core::hint::black_box;
use std::env;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group};
use rdma_core::link::{
    Config, DomainId, Endpoint, Event, FarEnd, Head, Link, Memory, Positions, Psk, Refusal,
    Schedule, Time,
};
use rdma_core::mr::{Keys, Regions, RemoteKey, Shape};

/// Bytes of each ring.
const CAPACITY: u64 = 4 << 20;

/// Frames in a batch of a driver.
const BATCH: usize = 64;

const DOMAIN: DomainId = DomainId(1);

/// Looks every write up, as an engine does, and copies it if it should.
struct Rings {
    regions: Regions,
    ring: Vec<u8>,
    copy: bool,
}

impl Memory for Rings {
    #[inline]
    fn place(
        &mut self,
        _: Endpoint,
        rkey: u32,
        offset: u64,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let place = self
            .regions
            .look_up(DOMAIN, RemoteKey(rkey), offset, payload.len() as u64)
            .map_err(|_| Refusal::Key)?;
        if self.copy {
            let (start, length) = (index(place.start), index(place.length));
            let (one, two) = payload.split_at(length);
            self.ring[start..start + length].copy_from_slice(one);
            self.ring[..two.len()].copy_from_slice(two);
        }
        Ok(())
    }
}

/// One host.
struct Host {
    link: Link,
    rings: Rings,
    keys: Keys,
    schedule: Schedule,
}

struct Pair {
    hosts: [Host; 2],
    now: Time,
    heads: Vec<Head>,
    frame: Vec<u8>,
    /// What the sending program has written.
    tail: u64,
    payload: Vec<u8>,
}

impl Pair {
    fn new(size: usize, key: bool, copy: bool) -> Self {
        let hosts = [1u8, 2].map(|name| {
            let mut config = Config::new([name; 32], [name; 16], 1);
            (config.max_frame, config.min_frame) = (size, size);
            config.window = 64 << 20;
            if key {
                config.key = Psk::new(b"a key for measurements");
            }
            let mut regions = Regions::new(u64::from(name));
            let keys = regions
                .register(DOMAIN, Shape::Ring(CAPACITY), 0)
                .expect("the first");
            Host {
                link: Link::new(config, Time(1)),
                rings: Rings {
                    regions,
                    ring: vec![0; index(CAPACITY)],
                    copy,
                },
                keys,
                schedule: Schedule::new(),
            }
        });
        let mut pair = Self {
            hosts,
            now: Time(1),
            heads: (0..BATCH).map(|_| Head::new()).collect(),
            frame: vec![0; 70_000],
            tail: 0,
            payload: vec![7; 70_000],
        };
        for host in &mut pair.hosts {
            host.link.handle_timeout(Time(1));
        }
        for _ in 0..10 {
            pair.round(0);
        }
        assert!(pair.hosts.iter().all(|host| host.link.is_up()));
        for host in [0, 1] {
            let rkey = |host: usize| pair.hosts[host].keys.remote.0;
            let (own, far) = (rkey(host), rkey(1 - host));
            let end = FarEnd {
                endpoint: 5,
                rkey: far,
                capacity: CAPACITY,
            };
            pair.hosts[host]
                .link
                .open(Endpoint(5), end, own, DOMAIN, Positions::default());
        }
        // The window opens.
        for _ in 0..200 {
            pair.round(CAPACITY / 2);
        }
        pair
    }

    /// The program writes `bytes`; both links send what they can, one batch each.
    fn round(&mut self, bytes: u64) -> usize {
        self.tail += bytes;
        self.hosts[0].link.produced(Endpoint(5), self.tail);
        let mut frames = 0;
        for _ in 0..1000 {
            let sent = self.batch(0) + self.batch(1);
            frames += sent;
            if sent == 0 {
                break;
            }
        }
        frames
    }

    /// One batch from a host to the other; the receiving program reads at once.
    fn batch(&mut self, from: usize) -> usize {
        self.now = self.now.plus(20_000);
        let now = self.now;
        let [zero, one] = &mut self.hosts;
        let (sender, receiver) = if from == 0 { (zero, one) } else { (one, zero) };
        for host in [&mut *sender, &mut *receiver] {
            if host.link.poll_timeout().is_some_and(|at| at <= now) {
                host.link.handle_timeout(now);
            }
        }
        let mut count = 0;
        for head in &mut self.heads {
            let Some(frame) = sender.link.poll_transmit(now, &mut sender.schedule, head) else {
                break;
            };
            count += 1;
            let bytes = &mut self.frame[..frame.size];
            bytes[..frame.head_len].copy_from_slice(head.as_bytes());
            if let Some(payload) = frame.payload
                && (receiver.rings.copy || frame.sealed)
            {
                bytes[frame.head_len..frame.head_len + payload.len]
                    .copy_from_slice(&self.payload[..payload.len]);
            }
            if frame.sealed {
                assert!(sender.link.seal(bytes));
            }
            let done = receiver
                .link
                .handle_frame(now, Some(now), bytes, &mut receiver.rings);
            debug_assert_eq!(done, Ok(()));
        }
        while let Some(event) = receiver.link.poll_event() {
            if let Event::Arrived { endpoint, edge } = event {
                receiver.link.consumed(endpoint, edge);
            } else {
                black_box(event);
            }
        }
        count
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

fn links(c: &mut Criterion) {
    let mut group = c.benchmark_group("link");
    for (name, size, key, copy) in [
        ("write_8k_no_copy", 8192 + 36, false, false),
        ("write_8k", 8192 + 36, false, true),
        ("write_1400", 1436, false, false),
        ("write_8k_sealed", 8192 + 52, true, true),
    ] {
        let mut pair = Pair::new(size, key, copy);
        let bytes = 64 * if size > 8000 { 8192 } else { 1400 };
        group.throughput(Throughput::Elements(64));
        group.bench_function(name, |b| {
            b.iter(|| black_box(pair.round(bytes)));
        });
    }
    group.finish();
}

fn regions(c: &mut Criterion) {
    let mut regions = Regions::new(9);
    let keys: Vec<Keys> = (0..4096)
        .map(|token| {
            regions
                .register(DOMAIN, Shape::Ring(1 << 20), token)
                .expect("there is room")
        })
        .collect();
    let mut group = c.benchmark_group("regions");
    let mut at = 0usize;
    group.bench_function("look_up_one", |b| {
        let key = keys[77].remote;
        b.iter(|| regions.look_up(DOMAIN, black_box(key), black_box(12_345), 8192));
    });
    group.bench_function("look_up_4096", |b| {
        b.iter(|| {
            at = (at + 1031) % 4096;
            regions.look_up(DOMAIN, black_box(keys[at].remote), 12_345, 8192)
        });
    });
    group.bench_function("refuse_stale", |b| {
        let stale = keys[5];
        regions.revoke(stale.local);
        b.iter(|| regions.look_up(DOMAIN, black_box(stale.remote), 12_345, 8192));
    });
    group.finish();
}

criterion_group!(benches, links, regions);

fn main() {
    let number = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(count) = number("COUNT") {
        let size = index(number("SIZE").unwrap_or(8228));
        let mut pair = Pair::new(size, number("KEY") == Some(1), number("COPY") == Some(1));
        let (from, start) = (pair.tail, Instant::now());
        let mut frames = 0;
        while pair.tail - from < count {
            frames += pair.round(64 * (size as u64 - 36));
        }
        let taken = start.elapsed();
        let each = taken.as_nanos() / u128::try_from(frames).unwrap_or(1);
        black_box((frames, each));
        assert!(each > 0, "{frames} frames");
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
