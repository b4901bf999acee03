//! Direction locks in the slots of programs, taken for a moment on their behalf.
//!
//! The words are in memory that the program can write. A lock that is not to be had within some
//! milliseconds is not waited for, and one that has changed hands is not freed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdma_core::slot::DirectionLock;
use rustix::thread::futex;

/// How long a lock is tried. Its holders keep it for one copy, but take it again and again.
const PATIENCE: Duration = Duration::from_millis(20);
/// Looks between two sleeps.
const LOOKS: u32 = 200;
/// Longest sleep.
const SLEEP: Duration = Duration::from_millis(2);
/// How long a daemon that ends waits for its own threads to free their locks.
const FAREWELL: Duration = Duration::from_secs(1);

/// Locks held or being taken.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// No more locks are taken.
static RETIRED: AtomicBool = AtomicBool::new(false);

/// A lock of a direction, held by the daemon.
#[derive(Debug)]
pub struct Held<'a>(&'a DirectionLock);

/// Takes `lock`. `None`: somebody keeps it.
pub fn take(lock: &DirectionLock) -> Option<Held<'_>> {
    HELD.fetch_add(1, Ordering::SeqCst);
    if !RETIRED.load(Ordering::SeqCst) && try_patiently(lock) {
        return Some(Held(lock));
    }
    HELD.fetch_sub(1, Ordering::SeqCst);
    None
}

/// The daemon ends: takes no more locks, and waits until none is held. Programs would wait for it.
pub fn retire() {
    RETIRED.store(true, Ordering::SeqCst);
    let started = Instant::now();
    while HELD.load(Ordering::SeqCst) != 0 && started.elapsed() < FAREWELL {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn try_patiently(lock: &DirectionLock) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for _ in 0..LOOKS {
            if lock.try_lock(DirectionLock::DAEMON).is_ok() {
                return true;
            }
            core::hint::spin_loop();
        }
        if Instant::now() >= deadline || RETIRED.load(Ordering::SeqCst) {
            return false;
        }
        if let Some(word) = lock.contend() {
            let timeout = futex::Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(SLEEP.subsec_nanos()),
            };
            let _ = futex::wait(lock.word(), futex::Flags::empty(), word, Some(&timeout));
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.0.unlock_by(DirectionLock::DAEMON) {
            let _ = futex::wake(self.0.word(), futex::Flags::empty(), u32::MAX >> 1);
        }
        HELD.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_taken_from_busy_holders_and_given_back() {
        let lock = DirectionLock::new();
        std::thread::scope(|scope| {
            for owner in 1..3 {
                let lock = &lock;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        while lock.try_lock(owner).is_err() {
                            std::thread::yield_now();
                        }
                        std::hint::black_box([0u8; 4096]);
                        if lock.unlock() {
                            let _ = futex::wake(lock.word(), futex::Flags::empty(), u32::MAX >> 1);
                        }
                    }
                });
            }
            for _ in 0..50 {
                if let Some(held) = take(&lock) {
                    assert_eq!(lock.try_lock(7), Err(DirectionLock::DAEMON));
                    drop(held);
                }
            }
        });
        assert!(take(&lock).is_some());
        assert_eq!(lock.try_lock(7), Ok(()), "nobody holds it");
    }

    #[test]
    fn a_lock_that_is_kept_is_not_waited_for() {
        let lock = DirectionLock::new();
        assert_eq!(lock.try_lock(7), Ok(()));
        assert!(take(&lock).is_none());
        assert!(lock.unlock(), "it was marked");
    }
}
