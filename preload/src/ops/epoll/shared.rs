//! Sets that another process uses as well, or another program, which no ring can serve: back to the kernel.

#![expect(unsafe_code, reason = "epoll_ctl on the program's sets")]

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;

use super::interest::{INTEREST_NUMBERS, Interest, each_live};
use super::membership::drop_interest;
use super::set::{SET_NUMBERS, SET_TABLE, Set, set_of};
use crate::conn::{CONN_NUMBERS, Conn};
use crate::{control, errno, lifecycle, real};

/// In a forked child: all present sets are the parent's.
pub(crate) fn after_fork() {
    for set in SET_TABLE.iter().take(SET_NUMBERS.used() as usize) {
        set.shared.store(INHERITED, Ordering::Relaxed);
        set.busy.store(0, Ordering::Relaxed);
        set.sleepers.store(0, Ordering::Relaxed);
        set.context.store(0, Ordering::Relaxed);
    }
    SET_NUMBERS.after_fork(false);
    INTEREST_NUMBERS.after_fork(false);
    CONN_NUMBERS.after_fork(false);
}

/// [`Set::shared`]: a forked child has the set, and has not used it.
const INHERITED: u32 = 1;
/// [`Set::shared`]: a forked child uses its parent's set.
const SHARED: u32 = 2;

/// A forked child uses a set of its parent's: two processes now wait on one kernel set, which no ring can
/// serve. What the child knows of goes back to the kernel, and the parent is told to do the same.
#[cold]
fn share(set: &'static Set) {
    set.shared.store(SHARED, Ordering::SeqCst);
    let index = set.index();
    if let Some(parent) = control::parent_arena()
        && let Some(word) = parent.header().shared_sets.get(index as usize / 64)
    {
        word.fetch_or(1 << (index % 64), Ordering::SeqCst);
    }
    leave_rings(set);
}

/// A set is given to another process, which waits on it unseen: its connections are the kernel's from now on.
#[cold]
pub(crate) fn pass_on(index: u32) {
    let Some(set) = set_of(index) else { return };
    if !is_kernels_alone(set) {
        give_up(set);
    }
}

/// A set stays open in the program that takes the place of this one. What a forked child merely inherited is its
/// parent's.
#[cold]
pub(crate) fn leave_to_program(index: u32) {
    if let Some(set) = set_of(index).filter(|set| set.shared.load(Ordering::Relaxed) == 0) {
        give_up(set);
    }
}

fn give_up(set: &'static Set) {
    set.shared.store(SHARED, Ordering::SeqCst);
    leave_rings(set);
}

/// Sends every connection of a set back to the kernel, all at once, and gives the kernel the program's own data.
fn leave_rings(set: &'static Set) {
    let each_of_set = |work: &mut dyn FnMut(&'static Interest)| {
        each_live(|interest| {
            if interest
                .set()
                .is_some_and(|owner| core::ptr::eq(owner, set))
            {
                work(interest);
            }
        });
    };
    let members = |each: &mut dyn FnMut(&'static Conn, c_int)| {
        each_of_set(&mut |interest| {
            if let Some(conn) = interest.conn() {
                each(conn, interest.fd());
            }
        });
    };
    lifecycle::members_to_kernel(&members, Reason::SharedEpoll);
    each_of_set(&mut |interest| dissolve(set, interest));
    set.withdraw();
}

/// A registration becomes the program's own again, in the kernel alone.
pub(super) fn dissolve(set: &'static Set, interest: &'static Interest) {
    let mut event = interest.as_asked();
    let (epfd, fd) = (set.epfd(), interest.fd());
    errno::preserved(|| {
        // SAFETY: a local event.
        unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, fd, &raw mut event) }
    });
    drop_interest(interest);
}

impl Set {
    /// Whether the set is known to be the kernel's alone.
    pub(super) fn is_given_up(&self) -> bool {
        self.shared.load(Ordering::Relaxed) == SHARED
    }

    /// Whether the set is waited on in ways that we do not serve.
    pub(crate) fn is_shared(&self) -> bool {
        let index = self.index();
        self.shared.load(Ordering::Relaxed) != 0
            || control::arena()
                .and_then(|arena| arena.header().shared_sets.get(index as usize / 64))
                .is_some_and(|word| word.load(Ordering::Relaxed) >> (index % 64) & 1 != 0)
    }
}

/// Whether the set is the kernel's alone because two processes use it; notices that they begin to.
#[inline]
pub(super) fn is_kernels_alone(set: &'static Set) -> bool {
    match set.shared.load(Ordering::Relaxed) {
        SHARED => return true,
        INHERITED => share(set),
        // A child of ours has begun to use it.
        _ if set.is_shared() => give_up(set),
        _ => return false,
    }
    true
}
