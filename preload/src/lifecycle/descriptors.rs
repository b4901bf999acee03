//! The numbers of descriptors: duplicated, handed out anew, wanted by the program.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;

use super::adopt::adopt_unknown;
use super::births;
use super::close::take_out;
use super::fork::is_own_memory;
use super::leave::to_stdio;
use crate::conn::{Conn, conn};
use crate::fds::{self, Entry};
use crate::ops::{epoll, file::relay};
use crate::{contexts, control, errno, kernel, pins};

/// A descriptor was duplicated by dup, dup2, dup3 or fcntl.
pub(crate) fn duplicated(old: c_int, new: c_int) {
    if old != new {
        births::note_duplicate(old, new);
    }
    let entry = fds::lookup(old);
    if entry.is_none() && fds::lookup(new).is_none() || !is_own_memory() {
        return;
    }
    if let Some(index) = entry.as_conn() {
        conn(index).refs.fetch_add(1, Ordering::AcqRel);
        if !fds::fits(new) {
            // We would not see it used: no ring for this connection.
            conn(index).veto(Reason::FdLimit);
            return;
        }
        fds::insert(new, entry);
        if new <= 2 {
            // libc's own streams are there: what they read and write we do not see.
            to_stdio(new);
        }
    } else if let Some(index) = entry.as_epoll() {
        epoll::share_fd(index);
        fds::insert(new, entry);
    } else if fds::lookup(new).is_internal() {
        // The kernel gave us a number that we thought was ours: ours was closed behind our back.
        fds::replace(new, Entry::NONE);
    } else if !fds::lookup(new).is_none() {
        forget_stale(new);
    }
}

/// A number that the kernel has just handed out cannot still be what we think: a close was missed.
#[inline]
pub(crate) fn created(fd: c_int) {
    if fd >= 0 && !fds::lookup(fd).is_none() && is_own_memory() {
        forget_stale(fd);
    }
}

/// A descriptor came from another process, in a message.
pub(crate) fn received(fd: c_int) {
    created(fd);
    births::note_elsewhere(fd);
    adopt_unknown(fd);
}

/// A descriptor was duplicated out of some process. If that is this one, and the file one of its connections,
/// there is one more descriptor of it.
#[cold]
pub(crate) fn fetched(new: c_int) {
    created(new);
    births::note_elsewhere(new);
    if !super::any_known() {
        return;
    }
    let Some(cookie) = kernel::cookie(new) else {
        return;
    };
    let mut old = None;
    fds::each(0, u32::MAX, |fd, entry| {
        let is_other = fd != new && entry.as_conn().is_some() && old.is_none();
        if is_other && kernel::cookie(fd) == Some(cookie) {
            old = Some(fd);
        }
    });
    if let Some(old) = old {
        duplicated(old, new);
    }
}

/// Before a sleep on a connection: the number may name another file by now, because of a close that no
/// hook saw. True if it did; the connection is forgotten then.
pub(crate) fn is_stale(conn: &Conn, fd: c_int) -> bool {
    let known = conn.slot().meta.cookie.load(Ordering::Relaxed);
    if known == 0 || kernel::cookie(fd) == Some(known) {
        return false;
    }
    errno::preserved(|| created(fd));
    true
}

#[cold]
pub(super) fn forget_stale(fd: c_int) {
    let entry = fds::lookup(fd);
    if entry.is_internal() {
        fds::replace(fd, Entry::NONE);
        return;
    }
    if let Some(closing) = take_out(fd, None, false) {
        closing.finish();
    }
}

/// The program wants the number of one of our own descriptors: ours moves.
pub(crate) fn make_way(fd: c_int) {
    errno::preserved(|| {
        let moved = (0..contexts::made()).any(|number| {
            u16::try_from(number)
                .ok()
                .and_then(contexts::context)
                .is_some_and(|context| context.move_bell(fd))
        });
        if !moved && !pins::make_way(fd) && !relay::make_way(fd) {
            control::make_way(fd);
        }
        fds::replace(fd, Entry::NONE);
    });
}
