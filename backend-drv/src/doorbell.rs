//! Rings doorbells of programs: adds to eventfds that the programs hold too.
//!
//! A program can fill its eventfd and make it blocking at any moment, so a write to it might never return. The relay
//! serves everybody by one thread, which must not wait for anybody: the kernel itself is asked to add to the eventfd
//! ([`Notices`]), and that never waits. On a kernel that does not do that it is written to if it does not block, which its
//! program could change between the look and the write.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::LazyLock;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::memory::Notices;

static NOTICES: LazyLock<Option<Notices>> = LazyLock::new(|| {
    let notices = Notices::new();
    let notices = notices.inspect_err(|error| {
        tracing::warn!(%error, "no asynchronous operations: programs could make the relay wait");
    });
    notices.ok()
});

/// Rings `bell`, and never waits. One that is full is ringing already.
pub fn ring(bell: impl AsFd) {
    let bell = bell.as_fd();
    let result = match &*NOTICES {
        Some(notices) => match notices.add_to(bell) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => write(bell),
            result => result,
        },
        None => write(bell),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "doorbell");
    }
}

fn write(bell: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(bell, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        nix::unistd::write(bell, &1u64.to_ne_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::{Duration, Instant};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    const FULL: u64 = u64::MAX - 1;
    /// For whatever never returns.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn rings(bell: &EventFd) -> bool {
        let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(1)
    }

    #[test]
    fn rings_of_many_threads_count() {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| ring(&bell)));
            }
        });
        assert_eq!(bell.read(), Ok(40_000));
    }

    /// More than the kernel keeps of what it has done.
    #[test]
    fn every_ring_counts() {
        for flags in [EfdFlags::empty(), EfdFlags::EFD_NONBLOCK] {
            let bell = EventFd::from_flags(flags).expect("an eventfd");
            for _ in 0..5000 {
                ring(&bell);
            }
            assert_eq!(bell.read(), Ok(5000));
            assert!(!rings(&bell));
            write(bell.as_fd()).expect("an eventfd");
            assert_eq!(rings(&bell), flags == EfdFlags::EFD_NONBLOCK);
        }
    }

    #[test]
    fn what_is_no_doorbell_is_left_alone() {
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        ring(&write);
        let mut fds = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0));
    }

    #[test]
    fn a_full_doorbell_that_blocks_is_no_obstacle() {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::empty()).expect("an eventfd"));
        assert!(bell.write(FULL).is_ok());
        let (told, done) = channel();
        let own = Arc::clone(&bell);
        thread::spawn(move || {
            for _ in 0..1000 {
                ring(&*own);
            }
            let _ = told.send(());
        });
        assert!(done.recv_timeout(PATIENCE).is_ok(), "it waits");
        assert!(rings(&bell));
        assert!(bell.read().is_ok());
        assert!(!rings(&bell));
    }

    /// A program that fills its doorbell between any look at it and the ring.
    #[test]
    fn a_doorbell_that_is_full_now_and_then_is_no_obstacle() {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
        let (rung, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let stuck = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    ring(&bell);
                    rung.fetch_add(1, Ordering::Relaxed);
                }
            });
            let set = |flags| fcntl(&bell, FcntlArg::F_SETFL(flags));
            let mut stuck = false;
            for _ in 0..2000 {
                let _ = (bell.read(), bell.write(FULL), set(OFlag::empty()));
                let (before, since) = (rung.load(Ordering::Relaxed), Instant::now());
                while rung.load(Ordering::Relaxed) < before + 2 && !stuck {
                    stuck = since.elapsed() > PATIENCE;
                    thread::yield_now();
                }
                let _ = set(OFlag::O_NONBLOCK);
            }
            over.store(true, Ordering::Relaxed);
            // Whoever waits goes on.
            let _ = bell.read();
            stuck
        });
        assert!(!stuck);
    }
}
