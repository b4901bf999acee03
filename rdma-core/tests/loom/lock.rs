//! The direction lock: one owner at a time, and no sleeper is forgotten.

use loom::sync::{Condvar, Mutex};
use loom::thread;
use rdma_core::slot::DirectionLock;
use rdma_core::sync::{AtomicU32, Ordering};

use crate::rig::{explore, keep};

/// A futex: compares and sleeps under the lock that a wake-up takes too.
struct Futex {
    queue: Mutex<()>,
    changed: Condvar,
}

impl Futex {
    fn wait(&self, word: &AtomicU32, expected: u32) {
        let queue = self.queue.lock().unwrap();
        if word.load(Ordering::Relaxed) == expected {
            drop(self.changed.wait(queue).unwrap());
        }
    }

    fn wake_all(&self) {
        let _queue = self.queue.lock().unwrap();
        self.changed.notify_all();
    }
}

struct Shared {
    lock: DirectionLock,
    futex: Futex,
    /// Counts by load and store: exact only under the lock.
    count: AtomicU32,
}

impl Shared {
    fn lock(&self, owner: u32) {
        while let Err(present) = self.lock.try_lock(owner) {
            assert_ne!(present, owner);
            if let Some(word) = self.lock.contend() {
                self.futex.wait(self.lock.word(), word);
            }
        }
    }

    fn unlock(&self) {
        if self.lock.unlock() {
            self.futex.wake_all();
        }
    }
}

fn contended(preemptions: usize, threads: u32, rounds: u32) {
    explore(preemptions, move || {
        let shared: &Shared = keep(Shared {
            lock: DirectionLock::new(),
            futex: Futex {
                queue: Mutex::new(()),
                changed: Condvar::new(),
            },
            count: AtomicU32::new(0),
        });
        let run = move |owner| {
            for _ in 0..rounds {
                shared.lock(owner);
                let count = shared.count.load(Ordering::Relaxed);
                shared.count.store(count + 1, Ordering::Relaxed);
                shared.unlock();
            }
        };
        let others: Vec<_> = (2..=threads)
            .map(|owner| thread::spawn(move || run(owner)))
            .collect();
        run(1);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(shared.count.load(Ordering::Relaxed), threads * rounds);
        assert_eq!(shared.lock.contend(), None, "free");
    });
}

#[test]
fn two_threads_take_turns() {
    contended(3, 2, 2);
}

/// With three threads a lock that changes hands may leave somebody asleep: hence all are woken.
#[test]
fn three_threads_all_get_the_lock() {
    contended(3, 3, 1);
}
