//! Epoll sets: the program's own kernel set, in which our connections carry our data and which also
//! holds an event channel.
//!
//! Every registration of a TCP socket is an *interest*: what the program asked for, and the data it
//! wants back. In the kernel the socket stands with a cookie instead of that data. As long as a
//! connection is on TCP, events pass through with the data put back (and tell us that the program
//! waits here, which is the evidence that arming needs). Once a ring is involved the kernel's
//! registration is edge-triggered and only reports what the kernel knows (end of stream, errors);
//! level, edge and one-shot behaviour are computed from the ring for the interests that a doorbell's
//! pending bit or an edge has put on the set's ready list.
//!
//! * This file: epoll_ctl. [`mod@wait`]: epoll_wait, with [`events`], the program's array, and
//!   [`report`], which decides what is ready.
//! * [`set`], [`mod@interest`]: the tables. [`membership`]: which socket is in which set. [`list`]: a
//!   set's ready list.
//! * [`channel`]: the doorbell in a kernel set. [`mod@news`]: what far ends have to say to a set.
//! * [`connection`]: the sets that hold a connection. [`shared`]: sets that two processes use. [`registered`]: what
//!   stands in the kernel.

#![expect(unsafe_code, reason = "epoll_ctl of libc with events of the program")]

mod channel;
mod connection;
mod events;
mod interest;
mod list;
mod membership;
mod news;
mod registered;
mod report;
mod set;
mod shared;
mod wait;

use core::ffi::c_int;

use libc::epoll_event;
use rdma_core::Reason;

pub(crate) use channel::{mark_polled, refresh_watched};
pub(crate) use connection::{
    dissolve_all, forget_conn, forget_ring, is_registered, may_arm, on_change, post_edge,
    want_space,
};
pub(crate) use membership::{adopt_watched, forget_watched};
pub(crate) use set::{create, forget_set, make_set, share_fd};
pub(crate) use shared::{after_fork, leave_to_program, pass_on};
pub(crate) use wait::wait;

use crate::conn::conn;
use crate::{errno, fds, lifecycle, probe, real};
use connection::engage;
use set::{Set, set_of};

/// epoll_ctl(2).
///
/// # Safety
/// `event` is the program's; nobody changes it.
pub(crate) unsafe fn control(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // SAFETY: by contract, in each use.
    let native = || unsafe { real::epoll_ctl(epfd, op, fd, event) };
    let entry = fds::lookup(fd);
    if entry.as_epoll().is_some() && op == libc::EPOLL_CTL_ADD {
        mark_polled(fd);
    }
    let is_ours = entry.as_conn().is_some()
        || entry.as_watched().is_some()
        || membership::is_unconnected_tcp(fd, entry);
    if !is_ours {
        return native();
    }
    let Some(set) = make_set(epfd).filter(|set| !shared::is_kernels_alone(set)) else {
        if let Some(index) = entry.as_conn() {
            lifecycle::to_kernel(conn(index), fd, Reason::UnseenWaiter);
        }
        return native();
    };
    match op {
        // SAFETY: by contract.
        libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD => match unsafe { wish(epfd, op, event) } {
            Some(asked) if op == libc::EPOLL_CTL_ADD => add(set, epfd, fd, asked),
            Some(asked) => modify(set, epfd, fd, asked),
            None => native(),
        },
        libc::EPOLL_CTL_DEL => {
            let rc = native();
            if rc == 0
                && let Some((_, interest)) = membership::find(set, fd)
            {
                membership::drop_interest(interest);
            }
            rc
        }
        _ => native(),
    }
}

/// The program's event; `None` if it cannot be read.
///
/// # Safety
/// As [`control()`].
unsafe fn wish(epfd: c_int, op: c_int, event: *mut epoll_event) -> Option<epoll_event> {
    if lifecycle::any_known() {
        // SAFETY: any bytes are an event.
        return unsafe { probe::read(event) };
    }
    // As long as nothing catches faults, the kernel is asked: it reads the event before it looks at
    // the descriptor, which is none.
    let is_there = errno::preserved(|| {
        // SAFETY: changes nothing.
        let rc = unsafe { real::epoll_ctl(epfd, op, -1, event) };
        rc < 0 && errno::get() != libc::EFAULT
    });
    // SAFETY: the kernel could read it (packed on x86-64, so read unaligned).
    is_there.then(|| unsafe { event.read_unaligned() })
}

fn add(set: &'static Set, epfd: c_int, fd: c_int, asked: epoll_event) -> c_int {
    if asked.events & interest::EXCLUSIVE != 0 && asked.events & !interest::WITH_EXCLUSIVE != 0 {
        errno::set(libc::EINVAL);
        return -1;
    }
    let known = membership::find(set, fd).is_some();
    let Some((_, interest)) = membership::new_interest(set, fd, asked) else {
        // No room: the kernel serves this registration, and the connection stays there or goes back.
        if let Some(index) = fds::lookup(fd).as_conn() {
            lifecycle::to_kernel(conn(index), fd, Reason::Waiters);
        }
        let mut event = asked;
        // SAFETY: a local event.
        return unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    };
    let mut event = interest.as_needed();
    // Before the call: while it returns, another thread may be told of the socket already, and of an edge
    // only once. A registration that is there twice is refused, and must not be reported meanwhile.
    if !known {
        membership::go_live(set, interest);
    }
    // SAFETY: a local event.
    let rc = unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
    if rc < 0 {
        membership::drop_interest(interest);
        return rc;
    }
    if known {
        membership::go_live(set, interest);
    }
    engage(interest);
    rc
}

fn modify(set: &'static Set, epfd: c_int, fd: c_int, asked: epoll_event) -> c_int {
    let Some((_, interest)) = membership::find(set, fd) else {
        let mut event = asked;
        // SAFETY: a local event.
        return unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, fd, &raw mut event) };
    };
    if interest.is_exclusive() || asked.events & interest::EXCLUSIVE != 0 {
        // What the kernel says of exclusive registrations, whatever it holds now.
        errno::set(libc::EINVAL);
        return -1;
    }
    interest.ask(asked);
    let mut event = interest.as_needed();
    // SAFETY: a local event.
    let rc = unsafe { real::epoll_ctl(epfd, libc::EPOLL_CTL_MOD, fd, &raw mut event) };
    if rc == 0 {
        engage(interest);
    }
    rc
}

/// The set behind `epfd`, if it was made through us or holds sockets of ours.
#[inline]
pub(crate) fn known_set(epfd: c_int) -> Option<&'static Set> {
    set_of(fds::lookup(epfd).as_epoll()?)
}
