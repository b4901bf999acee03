//! Nobody sleeps while there is something to do: publish and sleep, both ways, threads and epoll.

use loom::thread;
use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::ring::{RxCursor, TxCursor};
use rdma_core::sync::{AtomicU32, Ordering, full_barrier};

use crate::rig::{Direction, Sleeper, explore, keep};

/// A blocking receiver sleeps on the empty ring, again and again.
fn data(preemptions: usize, bytes: u8) {
    explore(preemptions, move || {
        let direction = Direction::new(4);
        let receiver = Sleeper::new();
        let sender = thread::spawn(move || {
            let mut cursor = TxCursor::default();
            for byte in 1..=bytes {
                assert_eq!(direction.put(&mut cursor, &[byte]), 1);
                receiver.notify(&direction.receiver.waits, WaitFor::Data);
            }
        });
        let mut cursor = RxCursor::default();
        let mut got = Vec::new();
        while got.len() < usize::from(bytes) {
            if direction.take(&mut cursor, 4, &mut got) == 0 {
                receiver.wait_in(&direction.receiver.waits, WaitFor::Data, || {
                    direction.consumer().refresh(&mut cursor).unwrap() != 0
                });
            }
        }
        assert!(got.into_iter().eq(1..=bytes));
        sender.join().unwrap();
    });
}

#[test]
fn a_receiver_never_sleeps_on_a_byte() {
    data(3, 1);
}

#[test]
fn a_receiver_never_sleeps_on_the_next_byte() {
    data(3, 2);
}

#[test]
fn a_sender_never_sleeps_on_free_space() {
    explore(3, || {
        let direction = Direction::new(2);
        let sender = Sleeper::new();
        let mut cursor = TxCursor::default();
        assert_eq!(direction.put(&mut cursor, &[1, 2]), 2);
        let writer = thread::spawn(move || {
            while direction.put(&mut cursor, &[3]) == 0 {
                sender.wait_in(&direction.sender.waits, WaitFor::Space, || {
                    direction.producer().refresh(&mut cursor).unwrap() != 0
                });
            }
        });
        let mut cursor = RxCursor::default();
        let mut got = Vec::new();
        assert_eq!(direction.take(&mut cursor, 1, &mut got), 1);
        sender.notify(&direction.sender.waits, WaitFor::Space);
        writer.join().unwrap();
        while direction.take(&mut cursor, 4, &mut got) != 0 {}
        assert_eq!(got, [1, 2, 3]);
    });
}

/// Sender and receiver both sleep: the ring is smaller than the message.
#[test]
fn a_message_larger_than_the_ring_gets_through() {
    explore(2, || {
        let direction = Direction::new(2);
        let (sender, receiver) = (Sleeper::new(), Sleeper::new());
        let writer = thread::spawn(move || {
            let mut cursor = TxCursor::default();
            let mut left = &[1, 2, 3][..];
            while !left.is_empty() {
                let put = direction.put(&mut cursor, left);
                left = &left[put..];
                if put != 0 {
                    receiver.notify(&direction.receiver.waits, WaitFor::Data);
                } else {
                    sender.wait_in(&direction.sender.waits, WaitFor::Space, || {
                        direction.producer().refresh(&mut cursor).unwrap() != 0
                    });
                }
            }
        });
        let mut cursor = RxCursor::default();
        let mut got = Vec::new();
        while got.len() < 3 {
            if direction.take(&mut cursor, 4, &mut got) != 0 {
                sender.notify(&direction.sender.waits, WaitFor::Space);
            } else {
                receiver.wait_in(&direction.receiver.waits, WaitFor::Data, || {
                    direction.consumer().refresh(&mut cursor).unwrap() != 0
                });
            }
        }
        assert_eq!(got, [1, 2, 3]);
        writer.join().unwrap();
    });
}

const fn epoll(bit: u16) -> WaitRef {
    WaitRef {
        process: 1,
        context: 0,
        bit: Some(bit),
    }
}

/// An epoll instance: enters its references once, looks at every ring once, then only where a bit is
/// pending.
fn epoll_loop(owner: Sleeper, connections: &[(u16, Direction)], want: usize) -> Vec<Vec<u8>> {
    let mut cursors = vec![RxCursor::default(); connections.len()];
    let mut got = vec![Vec::new(); connections.len()];
    let mut drain = |bit: u16| {
        for (i, (own, direction)) in connections.iter().enumerate() {
            if *own == bit {
                while direction.take(&mut cursors[i], 4, &mut got[i]) != 0 {}
            }
        }
        got.iter().map(Vec::len).sum::<usize>()
    };
    let mut total = 0;
    for (bit, direction) in connections {
        assert!(direction.receiver.waits.enter(WaitFor::Data, epoll(*bit)));
        total = drain(*bit);
    }
    while total < want {
        owner.context.take_pending(|bit| total = drain(bit));
        if total < want {
            owner.sleep_unless(|| owner.context.has_pending());
        }
    }
    got
}

fn epoll_sender(owner: Sleeper, direction: Direction, bytes: &'static [u8]) {
    let mut cursor = TxCursor::default();
    for byte in bytes {
        assert_eq!(direction.put(&mut cursor, &[*byte]), 1);
        owner.notify(&direction.receiver.waits, WaitFor::Data);
    }
}

/// The second post may find its bit set, and the owner may be taking it at that moment.
#[test]
fn an_epoll_set_sees_a_byte_whose_bit_was_pending_already() {
    explore(3, || {
        let owner = Sleeper::new();
        let direction = Direction::new(4);
        let sender = thread::spawn(move || epoll_sender(owner, direction, &[1, 2]));
        assert_eq!(epoll_loop(owner, &[(3, direction)], 2), [[1, 2]]);
        sender.join().unwrap();
    });
}

fn two_connections(bits: [u16; 2]) {
    explore(2, move || {
        let owner = Sleeper::new();
        let (one, two) = (Direction::new(4), Direction::new(4));
        let senders = [
            thread::spawn(move || epoll_sender(owner, one, &[1])),
            thread::spawn(move || epoll_sender(owner, two, &[2])),
        ];
        let got = epoll_loop(owner, &[(bits[0], one), (bits[1], two)], 2);
        assert_eq!(got, [[1], [2]]);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn an_epoll_set_sees_two_connections_in_one_word() {
    two_connections([3, 4]);
}

#[test]
fn an_epoll_set_sees_two_connections_in_two_words() {
    two_connections([3, 70]);
}

/// A thread of an epoll set that several threads wait on: serves one connection, then goes away.
fn serve_one(set: Sleeper, sleepers: &AtomicU32) -> u16 {
    loop {
        let mut mine = None;
        set.context.take_pending(|bit| {
            if mine.is_none() {
                mine = Some(bit);
            } else {
                set.context.post(bit);
            }
        });
        if let Some(bit) = mine {
            if set.context.has_pending() && sleepers.load(Ordering::SeqCst) > 0 {
                set.kernel.ring();
            }
            return bit;
        }
        sleepers.fetch_add(1, Ordering::SeqCst);
        set.context.prepare_sleep();
        if !set.context.has_pending() {
            set.kernel.wait();
        }
        // In this order: a thread that counts itself after us must find its word untouched.
        set.context.finish_sleep();
        if sleepers.fetch_sub(1, Ordering::SeqCst) > 1 {
            set.context.prepare_sleep();
        }
    }
}

/// The sleeping word is one for all threads of a context: who wakes up keeps it up for the others, and
/// who leaves work wakes the next.
#[test]
fn two_threads_of_one_epoll_set_share_the_work() {
    explore(3, || {
        let set = Sleeper::new();
        let sleepers: &AtomicU32 = keep(AtomicU32::new(0));
        let other = thread::spawn(move || serve_one(set, sleepers));
        let sender = thread::spawn(move || {
            for bit in [3, 4] {
                full_barrier();
                set.context.post(bit);
                set.rouse();
            }
        });
        let here = serve_one(set, sleepers);
        assert_eq!(here + other.join().unwrap(), 7);
        sender.join().unwrap();
    });
}
