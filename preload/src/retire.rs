//! When the library must step back in this process: before a seccomp filter that would kill the program
//! for system calls that it does not make itself, when the program sets up io_uring by itself, by which it can use sockets
//! unseen, and when one of its threads gets descriptors of its own.

use core::sync::atomic::{AtomicU32, Ordering};

use rdma_core::Reason;

use crate::conn::conn;
use crate::fds::{self, Entry};
use crate::ops::epoll;
use crate::{config, errno, faults, lifecycle};

/// Why no connection of this process may leave TCP from now on: a reason code, 0 if nothing is known.
static REFUSAL: AtomicU32 = AtomicU32::new(0);

/// Why no connection of this process may leave TCP.
pub(crate) fn refusal() -> Option<Reason> {
    Reason::from_code(REFUSAL.load(Ordering::Relaxed))
}

/// Whether threads of this process may have descriptor tables of their own.
pub(crate) fn has_private_tables() -> bool {
    REFUSAL.load(Ordering::Relaxed) == Reason::PrivateDescriptors.code()
}

/// In a forked child the parent's io_uring is not used.
pub(crate) fn after_fork() {
    REFUSAL.store(0, Ordering::Relaxed);
}

/// The program sets up io_uring: its connections go back to the kernel and stay there.
pub(crate) fn before_io_uring() {
    if config::config().is_none() {
        return;
    }
    REFUSAL.store(Reason::IoUring.code(), Ordering::Relaxed);
    errno::preserved(|| all_to_kernel(Reason::IoUring));
}

/// The calling thread gets a descriptor table of its own: from now on a number may mean one thing to it and another to the
/// other threads, which nothing of ours can tell apart. As long as both are plain sockets that does not matter.
/// False: there are no other threads, and nothing changes.
pub(crate) fn before_private_descriptors() -> bool {
    if config::config().is_none() || !lifecycle::is_own_memory() || is_alone() {
        return false;
    }
    REFUSAL.store(Reason::PrivateDescriptors.code(), Ordering::Relaxed);
    errno::preserved(|| all_to_kernel(Reason::PrivateDescriptors));
    true
}

/// Whether the process has one thread: proc(5) shows each as a directory.
fn is_alone() -> bool {
    const LINKS_OF_ONE: u64 = 3;
    errno::preserved(|| {
        rustix::fs::stat(c"/proc/self/task").is_ok_and(|stat| stat.st_nlink <= LINKS_OF_ONE)
    })
}

/// A seccomp filter comes: everything of ours is given up, as if the library had not been loaded. After
/// this no hook makes a system call that the program did not ask for.
pub(crate) fn before_seccomp() {
    if config::config().is_none() || !lifecycle::is_own_memory() {
        return;
    }
    errno::preserved(|| {
        REFUSAL.store(Reason::Sandboxed.code(), Ordering::Relaxed);
        all_to_kernel(Reason::Sandboxed);
        epoll::dissolve_all();
        fds::each(0, u32::MAX, |fd, entry| {
            if let Some(index) = entry.as_conn() {
                lifecycle::forget(conn(index));
            }
            if !entry.is_internal() {
                fds::replace(fd, Entry::NONE);
            }
        });
        faults::remove();
        lifecycle::know_nothing();
        config::disable();
    });
}

fn all_to_kernel(reason: Reason) {
    lifecycle::all_to_kernel(|_| true, reason);
}
