//! What a message costs without a system call: rings, events, control protocol, policy.
//!
//! `cargo bench -p viaduct-rdma-core -- --quick`, or with a name: `... -- publish_read/64`.
//!
//! Times on a shared machine are coarse, instructions are not. With COUNT and SIZE set the program
//! sends so many messages of so many bytes through one ring, on one thread, and does nothing else:
//!
//! ```text
//! B=$(cargo bench -p viaduct-rdma-core --no-run 2>&1 | sed -n 's/.*ring.*(\(.*\)).*/\1/p')
//! COUNT=10000000 SIZE=1 perf stat -e instructions:u,cycles:u $B
//! ```
//!
//! Instructions per message are the total over COUNT. (A guest may not see its processor's counters;
//! perf then says "not supported".)

use core::hint::{black_box, spin_loop};
use core::net::SocketAddr;
use core::time::Duration;
use std::time::Instant;
use std::{env, thread};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use rdma_core::Policy;
use rdma_core::control::{Message, Register, parse};
use rdma_core::event::{EventContext, WaitFor};
use rdma_core::layout::{ConnView, End, RING_LOG2_DEFAULT, conn_bytes};
use rdma_core::mem::HeapRegion;
use rdma_core::ring::{Consumer, Producer, RxCursor, TxCursor};
use rdma_core::sync::full_barrier;

const SIZES: [usize; 5] = [1, 64, 1024, 4096, 65_536];

/// One end of a connection, with its cursors.
struct Side {
    view: ConnView,
    send: TxCursor,
    recv: RxCursor,
}

impl Side {
    fn pair(heap: &HeapRegion) -> [Self; 2] {
        [End::Zero, End::One].map(|end| Self {
            view: ConnView::new(&heap.region(), end, RING_LOG2_DEFAULT).expect("it fits"),
            send: TxCursor::default(),
            recv: RxCursor::default(),
        })
    }

    /// Sends what fits: bytes, tail, barrier, one load.
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> usize {
        let (tx, rx) = (Producer::of(&self.view), Consumer::of(&self.view));
        self.send.hint(rx.ack());
        let put = tx
            .write_slice(&mut self.send, bytes)
            .expect("a correct end");
        tx.publish(&self.send, rx.published(), 0);
        full_barrier();
        black_box(self.view.theirs.waits.any(WaitFor::Data));
        put
    }

    /// Receives what is there: bytes, head, barrier, one load.
    #[inline]
    fn recv(&mut self, bytes: &mut [u8]) -> usize {
        let rx = Consumer::of(&self.view);
        let got = rx.read_slice(&mut self.recv, bytes).expect("a correct end");
        if got > 0 {
            rx.publish(&self.recv);
            full_barrier();
            black_box(self.view.theirs.waits.any(WaitFor::Space));
        }
        got
    }

    fn send_all(&mut self, mut bytes: &[u8]) {
        let mut pause = Pause::default();
        while !bytes.is_empty() {
            let put = self.send(bytes);
            bytes = &bytes[put..];
            pause.after(put);
        }
    }

    fn recv_all(&mut self, bytes: &mut [u8]) {
        let (mut pause, mut done) = (Pause::default(), 0);
        while done < bytes.len() {
            let got = self.recv(&mut bytes[done..]);
            done += got;
            pause.after(got);
        }
    }
}

/// Spins, but not for ever: the other thread may need this processor.
#[derive(Default)]
struct Pause(u32);

impl Pause {
    fn after(&mut self, progress: usize) {
        self.0 = if progress > 0 { 0 } else { self.0 + 1 };
        if self.0 > 10_000 {
            thread::yield_now();
        } else if self.0 > 0 {
            spin_loop();
        }
    }
}

fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish_read");
    for size in SIZES {
        let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_DEFAULT));
        let [mut near, mut far] = Side::pair(&heap);
        let (message, mut buffer) = (vec![7; size], vec![0; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                assert_eq!(near.send(black_box(&message)), size);
                assert_eq!(far.recv(&mut buffer), size);
            });
        });
    }
    group.finish();
}

fn ping_pong(c: &mut Criterion) {
    c.bench_function("two_threads/ping_pong/1", |b| {
        b.iter_custom(|rounds| {
            let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_DEFAULT));
            let [mut near, mut far] = Side::pair(&heap);
            thread::scope(|scope| {
                scope.spawn(move || {
                    let mut byte = [0];
                    for _ in 0..rounds {
                        far.recv_all(&mut byte);
                        far.send_all(&byte);
                    }
                });
                let mut byte = [7];
                timed(|| {
                    for _ in 0..rounds {
                        near.send_all(&byte);
                        near.recv_all(&mut byte);
                    }
                })
            })
        });
    });
}

fn stream(c: &mut Criterion) {
    let mut group = c.benchmark_group("two_threads/stream");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_custom(|messages| {
                let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_DEFAULT));
                let [mut near, mut far] = Side::pair(&heap);
                thread::scope(|scope| {
                    scope.spawn(move || {
                        let message = vec![7; size];
                        for _ in 0..messages {
                            near.send_all(&message);
                        }
                    });
                    let mut buffer = vec![0; size];
                    timed(|| {
                        for _ in 0..messages {
                            far.recv_all(&mut buffer);
                        }
                    })
                })
            });
        });
    }
    group.finish();
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn events(c: &mut Criterion) {
    let context = EventContext::standalone();
    c.bench_function("event/post/set", |b| {
        context.post(3);
        b.iter(|| {
            context.post(black_box(3));
            black_box(context.take_sleeper());
        });
    });
    c.bench_function("event/post_take", |b| {
        b.iter(|| {
            context.post(black_box(3));
            black_box(context.take_sleeper());
            context.take_pending(|bit| {
                black_box(bit);
            });
        });
    });
    c.bench_function("event/sleep", |b| {
        b.iter(|| {
            context.prepare_sleep();
            black_box(context.has_pending());
            black_box(context.finish_sleep());
        });
    });
    c.bench_function("full_barrier", |b| b.iter(full_barrier));
}

fn control(c: &mut Criterion) {
    let message = Message::Register(Register {
        slot: 3,
        generation: 1,
        cookie: 0x1234,
        connects: 1,
        side: 1,
        family: 4,
        own_port: 40_000,
        far_port: 80,
        reserved: [0; 6],
        own_addr: [10; 16],
        far_addr: [11; 16],
    });
    let mut buffer = [0; 256];
    let length = message.emit(&mut buffer).expect("it fits");
    c.bench_function("control/parse", |b| {
        b.iter(|| parse(black_box(&buffer[..length]), 1));
    });
}

fn policy(c: &mut Criterion) {
    let far: SocketAddr = "10.200.0.2:5500".parse().expect("an address");
    for rules in [1usize, 16, 128] {
        let mut list: Vec<String> = (1..rules).map(|i| format!("10.9.{i}.0/24:80")).collect();
        list.push("10.200.0.0/16".to_owned());
        let policy = Policy::parse(&list.join(",")).expect("a list");
        c.bench_function(&format!("policy/judge/{rules}"), |b| {
            b.iter(|| policy.judge(black_box(far)));
        });
    }
}

criterion_group!(
    benches, one_thread, ping_pong, stream, events, control, policy
);

fn main() {
    let number = |name| env::var(name).ok()?.parse().ok();
    if let Some(count) = number("COUNT") {
        plain(count, number("SIZE").unwrap_or(1));
    } else {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}

/// For perf.
fn plain(count: usize, size: usize) {
    let heap = HeapRegion::new(conn_bytes(1 << RING_LOG2_DEFAULT));
    let [mut near, mut far] = Side::pair(&heap);
    let (message, mut buffer) = (vec![7; size], vec![0; size]);
    for _ in 0..count {
        near.send_all(black_box(&message));
        far.recv_all(&mut buffer);
    }
}
