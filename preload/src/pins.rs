//! Which threads may be blocked on which connection: a close in another thread must not end it under
//! them.
//!
//! The kernel keeps a socket for as long as a call is inside it, whoever closes the descriptor meanwhile:
//! the call goes on, and the end of the stream is sent when it is over. So a thread notes the connection
//! before it sleeps. Who closes a descriptor of a connection that others have noted keeps a duplicate,
//! with which they go on; the last of them closes it.
//!
//! A note is only as good as its thread: one that was cancelled does not count, and one that left by
//! siglongjmp drops its note at its next call.

#![expect(unsafe_code, reason = "duplicates the program's descriptors")]

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use frontend_drv::descriptor::duplicate;

use crate::conn::{CONN_NUMBERS, Conn, conn};
use crate::fds::{self, Entry};
use crate::{errno, holders, kernel, lifecycle, tls};

/// Threads that can have a note. Others are woken by a close, and answer EBADF.
const NOTES: usize = 512;

/// [`Conn::kept`]: nothing is kept.
pub(crate) const NOT_KEPT: c_int = -1;
/// As [`NOT_KEPT`], and who is blocked must give up.
const LOST: c_int = -2;

/// Looks for the duplicate that a closing thread is about to make.
const LOOKS: u32 = 1000;

/// What one thread may be blocked on.
struct Note {
    /// Its number; 0: nobody's.
    thread: AtomicU32,
    /// The connection's index plus one; 0: none.
    conn: AtomicU32,
}

static TABLE: [Note; NOTES] = [const {
    Note {
        thread: AtomicU32::new(0),
        conn: AtomicU32::new(0),
    }
}; NOTES];

/// Notes that ever were somebody's: those below this number.
static USED: AtomicU32 = AtomicU32::new(0);

/// Duplicates kept at present.
static KEPT: AtomicU32 = AtomicU32::new(0);

/// A call that may wait, from one wait to the next. No destructor: it may be left by cancellation.
#[derive(Debug)]
pub(crate) struct Call {
    fd: c_int,
    entry: Entry,
    noted: bool,
    /// Bytes were moved: a signal ends it, whatever SA_RESTART says.
    pub begun: bool,
    /// When it gives up, by the monotonic clock; `None` inside: never. Known from the first sleep on.
    pub deadline: Option<Option<u64>>,
}

impl Call {
    /// A call on `fd`, which was `entry` when it began.
    pub(crate) const fn new(fd: c_int, entry: Entry) -> Self {
        Self {
            fd,
            entry,
            noted: false,
            begun: false,
            deadline: None,
        }
    }

    /// The descriptor by which the call goes on: the program's, or the duplicate kept of it. `None`: closed
    /// by another thread.
    pub(crate) fn descriptor(&self, owner: &Conn) -> Option<c_int> {
        if fds::lookup(self.fd) == self.entry {
            return Some(self.fd);
        }
        for _ in 0..LOOKS {
            match owner.kept.load(Ordering::SeqCst) {
                _ if !self.noted => return None,
                NOT_KEPT => rustix::thread::sched_yield(),
                LOST => return None,
                kept => return Some(kept),
            }
        }
        None
    }

    /// Before a sleep: whoever closes the descriptor from now on keeps the socket for this call. False: it
    /// is closed already.
    pub(crate) fn note(&mut self, owner: &'static Conn) -> bool {
        if self.noted {
            return true;
        }
        self.noted = note(owner);
        if fds::lookup(self.fd) == self.entry {
            return true;
        }
        self.end(owner);
        false
    }

    /// See [`Call::deadline`]; `name`: the socket's timeout that counts, `now`: the call began to wait.
    pub(crate) fn gives_up_at(
        &mut self,
        owner: &Conn,
        fd: c_int,
        name: c_int,
        now: u64,
    ) -> Option<u64> {
        *self.deadline.get_or_insert_with(|| {
            if owner.never_waits(name) {
                return Some(0);
            }
            kernel::timeout_ns(fd, name).map(|ns| now.saturating_add(ns))
        })
    }

    /// After the last wait.
    pub(crate) fn end(&mut self, owner: &'static Conn) {
        if core::mem::take(&mut self.noted) {
            forget(owner);
        }
    }
}

/// Runs a call of libc's on `fd`, which names the connection, as one that may be blocked in the kernel.
/// `None`: it names the connection no more.
pub(crate) fn inside<T>(owner: &'static Conn, fd: c_int, call: impl FnOnce() -> T) -> Option<T> {
    // Noted already by a call that slept before.
    let nested =
        own_note().is_some_and(|note| note.conn.load(Ordering::Relaxed) == owner.index() + 1);
    let noted = !nested && note(owner);
    let result = (fds::lookup(fd) == owner.entry()).then(call);
    if noted {
        forget(owner);
    }
    result
}

/// The calling thread may be blocked on the connection, or is in the middle of an operation on it, from now on; false if
/// there is no room for a note.
pub(crate) fn note(owner: &'static Conn) -> bool {
    let Some(note) = own_note() else {
        return false;
    };
    let before = note.conn.swap(owner.index() + 1, Ordering::SeqCst);
    if before != 0 {
        settle_index(before - 1);
    }
    true
}

/// It is not any more.
pub(crate) fn forget(owner: &'static Conn) {
    if let Some(note) = own_note() {
        note.conn.store(0, Ordering::SeqCst);
    }
    if owner.kept.load(Ordering::SeqCst) != NOT_KEPT {
        settle(owner);
    }
}

/// Whether a thread other than the calling one may be blocked on the connection.
pub(crate) fn others(conn: &Conn) -> bool {
    notes_of(conn, tls::token())
}

/// `fd`, which names the connection and is about to be closed, is kept for those who are blocked.
/// `still`: it is the connection's socket, and will remain so.
pub(crate) fn keep(conn: &'static Conn, fd: c_int, still: bool) {
    let copy = still.then(|| errno::preserved(|| copy_of(fd))).flatten();
    let number = copy.as_ref().map_or(LOST, AsRawFd::as_raw_fd);
    // Both before somebody else can close it again.
    KEPT.fetch_add(1, Ordering::SeqCst);
    if copy.is_some() {
        conn.refs.fetch_add(1, Ordering::AcqRel);
        fds::insert(number, Entry::INTERNAL);
    }
    let first = conn
        .kept
        .compare_exchange(NOT_KEPT, number, Ordering::SeqCst, Ordering::SeqCst);
    if first.is_ok() {
        copy.map(IntoRawFd::into_raw_fd);
        return;
    }
    // Another descriptor of the connection was closed before, and a duplicate is there.
    KEPT.fetch_sub(1, Ordering::SeqCst);
    if copy.is_some() {
        conn.refs.fetch_sub(1, Ordering::AcqRel);
        fds::take(number, Entry::INTERNAL);
    }
}

fn copy_of(fd: c_int) -> Option<OwnedFd> {
    // SAFETY: the caller's caller has not closed it yet.
    duplicate(unsafe { BorrowedFd::borrow_raw(fd) }).ok()
}

/// The program wants the number of a kept duplicate for a descriptor of its own: ours moves.
pub(crate) fn make_way(fd: c_int) -> bool {
    let Some(owner) = (0..CONN_NUMBERS.used())
        .map(conn)
        .find(|owner| owner.kept.load(Ordering::SeqCst) == fd)
    else {
        return false;
    };
    let copy = copy_of(fd);
    let number = copy.as_ref().map_or(LOST, AsRawFd::as_raw_fd);
    fds::insert(number, Entry::INTERNAL);
    let moved = owner
        .kept
        .compare_exchange(fd, number, Ordering::SeqCst, Ordering::SeqCst);
    match moved {
        Ok(_) => {
            copy.map(IntoRawFd::into_raw_fd);
        }
        // Nobody was blocked any more, and it is closed.
        Err(_) => {
            fds::take(number, Entry::INTERNAL);
        }
    }
    true
}

/// Closes the duplicate if nobody is blocked any more.
pub(crate) fn settle(owner: &'static Conn) {
    if notes_of(owner, 0) {
        return;
    }
    match owner.kept.swap(NOT_KEPT, Ordering::SeqCst) {
        NOT_KEPT => {}
        LOST => {
            KEPT.fetch_sub(1, Ordering::SeqCst);
        }
        kept => {
            KEPT.fetch_sub(1, Ordering::SeqCst);
            lifecycle::close_kept(owner, kept, || {
                fds::take(kept, Entry::INTERNAL);
                // SAFETY: ours alone since the exchange above.
                drop(unsafe { OwnedFd::from_raw_fd(kept) });
            });
        }
    }
}

/// Closes duplicates whose threads have died.
pub(crate) fn sweep() {
    if KEPT.load(Ordering::SeqCst) == 0 {
        return;
    }
    (0..CONN_NUMBERS.used()).for_each(settle_index);
}

fn settle_index(index: u32) {
    let owner = conn(index);
    if owner.kept.load(Ordering::SeqCst) != NOT_KEPT {
        settle(owner);
    }
}

/// In a forked child: only the calling thread is left, and it is not blocked.
pub(crate) fn after_fork() {
    for note in &TABLE {
        note.thread.store(0, Ordering::Relaxed);
        note.conn.store(0, Ordering::Relaxed);
    }
}

/// Whether a living thread but `except` has a note of the connection.
fn notes_of(conn: &Conn, except: u32) -> bool {
    let wanted = conn.index() + 1;
    let used = USED.load(Ordering::SeqCst) as usize;
    TABLE.iter().take(used).any(|note| {
        let thread = note.thread.load(Ordering::SeqCst);
        note.conn.load(Ordering::SeqCst) == wanted && thread != except && !holders::is_dead(thread)
    })
}

/// The calling thread's place in the table; `None` if there is none.
fn own_note() -> Option<&'static Note> {
    let me = tls::token();
    if let Some(note) = TABLE.get((tls::note() as usize).wrapping_sub(1))
        && note.thread.load(Ordering::Relaxed) == me
    {
        return Some(note);
    }
    let take = |note: &Note, from: u32| {
        note.thread
            .compare_exchange(from, me, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    };
    let free = TABLE.iter().position(|note| take(note, 0)).or_else(|| {
        TABLE.iter().position(|note| {
            let owner = note.thread.load(Ordering::Relaxed);
            holders::is_dead(owner) && take(note, owner)
        })
    })?;
    let number = u32::try_from(free).ok()? + 1;
    USED.fetch_max(number, Ordering::SeqCst);
    tls::set_note(number);
    let note = TABLE.get(free)?;
    note.conn.store(0, Ordering::SeqCst);
    Some(note)
}
