//! Sleeping on everything that poll was asked about: rings by a doorbell, the rest in the kernel.

use core::ffi::c_int;

use libc::{POLLIN, POLLRDHUP, pollfd, sigset_t};
use rdma_core::event::{EventContext, WaitFor};
use rdma_core::slot::TxState;

use super::news::DEAF_NS;
use super::poll::{asked, ring_bits};
use super::time::kernel_ppoll;
use super::{READ_BITS, WRITE_BITS, ring_conn, settle};
use crate::conn::{Conn, conn};
use crate::wait::Sleeper;
use crate::{control, fds, forsaken};

/// Entries of our own behind the program's: the doorbell, and in a guest its daemon's line.
pub(super) const OWN_ENTRIES: usize = 2;

/// Longest sleep while some far end cannot be relied on to ring.
const BLIND_NS: u64 = 8_000_000;

/// Sleeps on everything: rings by a doorbell, the rest in the kernel; `deaf`: not all of that, and so not for long.
pub(super) fn sleep(
    entries: &[pollfd],
    copy: &mut [pollfd],
    deadline: Option<u64>,
    deaf: bool,
    mask: *const sigset_t,
) -> Result<usize, c_int> {
    forsaken::look(false);
    let bell = entries.len();
    let sleeper = Sleeper::borrow();
    let mut blind = sleeper.is_none();
    if let Some(sleeper) = sleeper {
        let mut prepared = None;
        for entry in entries {
            if let Some(conn) = ring_conn(entry.fd) {
                blind |= !enter(conn, &sleeper, entry.events);
                each_once(
                    &mut prepared,
                    sleeper.words(conn),
                    EventContext::prepare_sleep,
                );
            }
        }
    }
    // A route that has changed since the kernel's part was prepared, by whomever: look again.
    let ready = entries.iter().zip(copy.iter()).any(|(entry, ask)| {
        asked(entry) != ask.events
            || ring_conn(entry.fd).is_some_and(|conn| {
                conn.view().is_some_and(|view| settle(conn, view, entry.fd))
                    || ring_bits(conn, entry) != 0
            })
    });
    copy[bell + 1] = forsaken::entry();
    blind |= forsaken::is_pending();
    let mut left = deadline.map(|at| at.saturating_sub(control::monotonic_ns()));
    if ready {
        left = Some(0);
    } else if blind {
        left = Some(left.map_or(BLIND_NS, |left| left.min(BLIND_NS)));
    }
    if deaf {
        left = Some(left.map_or(DEAF_NS, |left| left.min(DEAF_NS)));
    }
    copy[bell] = pollfd {
        fd: sleeper.map_or(-1, |sleeper| sleeper.bell()),
        events: POLLIN,
        revents: 0,
    };
    let mut result = kernel_ppoll(&mut copy[..bell + OWN_ENTRIES], left, mask);
    if result == Err(libc::EINVAL) {
        // More entries than RLIMIT_NOFILE lets in, because of ours: without them the far end cannot ring.
        let slice = left.map_or(BLIND_NS, |left| left.min(BLIND_NS));
        result = kernel_ppoll(&mut copy[..bell], Some(slice), mask);
    }
    if let Some(sleeper) = sleeper {
        if copy[bell].revents != 0
            && let Some(context) = crate::contexts::context(sleeper.number)
        {
            context.silence();
        }
        let mut finished = None;
        for entry in entries {
            if let Some(index) = fds::lookup(entry.fd).as_conn() {
                let conn = conn(index);
                leave(conn, &sleeper);
                each_once(&mut finished, sleeper.words(conn), |words| {
                    words.finish_sleep();
                });
            }
        }
        crate::contexts::give_back(sleeper.number);
    }
    forsaken::look(copy[bell + 1].revents != 0);
    result
}

/// Enters a sleeper into what a caller of poll waits for; false if the far end might not ring.
fn enter(conn: &Conn, sleeper: &Sleeper, events: i16) -> bool {
    let (Some(view), Some((who, known))) = (conn.view(), sleeper.reference(conn)) else {
        return false;
    };
    let mut good = known;
    let for_space = events & WRITE_BITS != 0 && conn.slot().tx.state() == TxState::Ring;
    // Also for a far end that leaves the ring on which this end sends, and for the backend's word.
    if events & (READ_BITS | POLLRDHUP) != 0 || !for_space {
        good &= view.mine.waits.enter(WaitFor::Data, who);
    }
    if for_space {
        good &= view.mine.waits.enter(WaitFor::Space, who);
    }
    good
}

fn leave(conn: &Conn, sleeper: &Sleeper) {
    let (Some(view), Some((who, _))) = (conn.view(), sleeper.reference(conn)) else {
        return;
    };
    while view.mine.waits.leave(WaitFor::Data, who) {}
    while view.mine.waits.leave(WaitFor::Space, who) {}
}

/// Does something with the words of a context unless that was done just now: connections of one session, which mostly
/// stand together, share them.
///
/// Preparing them once is enough for all. Who finds nobody asleep read that either before it was said, and then the look
/// behind [`enter`], which is a barrier, finds what he wrote; or after somebody else has taken it, and he rings.
fn each_once(
    last: &mut Option<&'static EventContext>,
    words: Option<&'static EventContext>,
    what: impl FnOnce(&EventContext),
) {
    let Some(words) = words else { return };
    if !last.is_some_and(|last| core::ptr::eq(last, words)) {
        what(words);
        *last = Some(words);
    }
}
