//! Connections that must be the kernel's for good, and what the daemon is told of them.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use rdma_core::Reason;
use rdma_core::control::{Message, SlotRef};
use rdma_core::slot::{Slot, Stage};

use super::births;
use crate::conn::{Conn, conn};
use crate::downgrade::Members;
use crate::ops::epoll;
use crate::{control, downgrade, errno, fds, upgrade};

pub(crate) fn unregister(conn: &Conn, slot: &Slot, index: u32) {
    let session = match slot.stage() {
        Stage::Attached => control::session(conn.session.load(Ordering::Relaxed)),
        _ => control::current(),
    };
    // The daemon keeps the memory until it hears of this.
    tell(session, &Message::Unregister(slot_ref(conn, slot, index)));
}

/// The connection has left its ring: its far end may be idle with bytes that it must send once more.
pub(crate) fn tell_retracted(conn: &Conn) {
    let slot = conn.slot();
    let session = control::session(conn.session.load(Ordering::Relaxed));
    let slot = slot_ref(conn, slot, conn.slot_index.load(Ordering::Relaxed));
    tell(session, &Message::Retracted(slot));
}

/// How the daemon calls the connection.
fn slot_ref(conn: &Conn, slot: &Slot, index: u32) -> SlotRef {
    SlotRef {
        slot: if index == u32::MAX {
            conn.inherited_slot()
        } else {
            index
        },
        generation: slot.meta.generation.load(Ordering::Relaxed),
    }
}

/// Tells the daemon; if it is behind, waits a little.
pub(crate) fn tell(session: Option<&control::Session>, message: &Message<'_>) {
    let Some(session) = session else { return };
    for _ in 0..TELL_TRIES {
        if control::send(session, message, &[]) || !session.is_live() {
            break;
        }
        session.wait_for_room();
    }
}

/// Tries of 10 ms each to tell a busy daemon something.
const TELL_TRIES: u32 = 20;

/// Descriptors are passed to another process, which may not have the library: their connections stay on
/// TCP or go back there. Those that are not connected yet will stay there. So do those in an epoll set that is passed.
pub(crate) fn passed_on(all: impl Fn(&mut dyn FnMut(c_int))) {
    let members = |each: &mut dyn FnMut(&'static Conn, c_int)| {
        all(&mut |fd| {
            if let Some(index) = fds::lookup(fd).as_conn() {
                each(conn(index), fd);
            }
        });
    };
    members_to_kernel(&members, Reason::FdPassed);
    all(&mut |fd| {
        if let Some(index) = fds::lookup(fd).as_epoll() {
            epoll::pass_on(index);
        }
    });
    all(&mut births::note_elsewhere);
}

/// A descriptor is wrapped into a stdio stream or given to POSIX's asynchronous I/O: libc's own reads and writes we do not
/// see.
pub(crate) fn to_stdio(fd: c_int) {
    leave_to_others(fd, Reason::Stdio);
}

fn leave_to_others(fd: c_int, reason: Reason) {
    let Some(index) = fds::lookup(fd).as_conn() else {
        return;
    };
    to_kernel(conn(index), fd, reason);
}

/// The connection must be the kernel's from now on, for `reason`.
#[cold]
pub(crate) fn to_kernel(conn: &'static Conn, fd: c_int, reason: Reason) {
    members_to_kernel(&|each| each(conn, fd), reason);
}

/// The same for all connections that are `meant`.
pub(crate) fn all_to_kernel(meant: impl Fn(&'static Conn) -> bool, reason: Reason) {
    let members = |each: &mut dyn FnMut(&'static Conn, c_int)| {
        fds::each(0, u32::MAX, |fd, entry| {
            if let Some(conn) = entry.as_conn().map(conn)
                && meant(conn)
            {
                each(conn, fd);
            }
        });
    };
    members_to_kernel(&members, reason);
}

/// The same for several.
#[cold]
pub(crate) fn members_to_kernel(members: Members<'_>, reason: Reason) {
    errno::preserved(|| {
        members(&mut |conn, _| withdraw(conn, reason));
        downgrade::leave_rings(members, reason);
    });
}

/// A registration that nobody has answered is taken back.
fn withdraw(conn: &'static Conn, reason: Reason) {
    let slot = conn.slot();
    if slot.stage() == Stage::Registered {
        unregister(conn, slot, conn.slot_index.load(Ordering::Relaxed));
    }
    if matches!(slot.stage(), Stage::Registered | Stage::Candidate) {
        upgrade::decline(conn, reason);
    }
}
