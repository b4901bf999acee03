//! Taking and freeing a direction's lock.

use core::time::Duration;

use rdma_core::slot::DirectionLock;
use rdma_core::sync::barrier_after_rmw;
use rustix::thread::futex;

use crate::tls;

/// The calling thread holds the lock already: a signal handler interrupted its own operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Nested;

/// Looks before a sleep.
const LOOKS: u32 = 100;

/// Longest sleep on a lock; a holder keeps it for one copy.
const SLEEP: Duration = Duration::from_millis(10);

/// Takes the lock, waiting for other holders.
///
/// # Errors
/// [`Nested`]: waiting would last for ever.
#[inline]
pub(crate) fn take(lock: &DirectionLock) -> Result<(), Nested> {
    match lock.try_lock(tls::token()) {
        Ok(()) => Ok(()),
        Err(owner) => wait(lock, owner),
    }
}

#[cold]
fn wait(lock: &DirectionLock, mut owner: u32) -> Result<(), Nested> {
    let me = tls::token();
    loop {
        if owner == me {
            return Err(Nested);
        }
        for _ in 0..LOOKS {
            match lock.try_lock(me) {
                Ok(()) => return Ok(()),
                Err(now) => owner = now,
            }
            core::hint::spin_loop();
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

/// Frees the lock. A full barrier.
#[inline(always)]
pub(crate) fn free(lock: &DirectionLock) {
    if lock.unlock() {
        wake(lock);
    }
    barrier_after_rmw();
}

#[cold]
fn wake(lock: &DirectionLock) {
    let _ = futex::wake(lock.word(), futex::Flags::empty(), u32::MAX >> 1);
}
