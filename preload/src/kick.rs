//! Waking the far end: after something was published, and only if somebody there waits.

#![expect(unsafe_code, reason = "doorbells are raw descriptors of our own")]

use core::sync::atomic::{AtomicU32, Ordering};
use std::os::fd::BorrowedFd;

use rdma_core::control::{ContextRef, Message, doorbell_value};
use rdma_core::event::{CONTEXTS, WaitFor, WaitRef};
use rdma_core::layout::ConnView;

use crate::conn::Conn;
use crate::control::{Bell, Peer};
use crate::{contexts, control, fds, registers};

/// Threads that are using a peer's doorbell or event memory right now.
static KICKING: AtomicU32 = AtomicU32::new(0);

/// How often this process has given the kernel something that a far end may be told of: bytes, a
/// connection, an end of one.
static BY_KERNEL: AtomicU32 = AtomicU32::new(0);

/// Something went by the kernel. A set at the far end that holds its connection and others on rings
/// reports it before what goes by ring from now on.
pub(crate) fn went_by_kernel() {
    BY_KERNEL.fetch_add(1, Ordering::Relaxed);
}

/// Wakes whoever waits at the far end. The caller has published and passed a full barrier (the
/// unlocking exchange).
#[inline(always)]
pub(crate) fn after_publish(conn: &Conn, view: &ConnView, what: WaitFor) {
    if view.theirs.waits.any(what) {
        wake(conn, view, what);
    }
}

/// Wakes all who wait at the far end, for whatever: it has ended or broken.
pub(crate) fn wake_all(conn: &Conn, view: &ConnView) {
    wake(conn, view, WaitFor::Data);
    wake(conn, view, WaitFor::Space);
}

/// Wakes all who wait at the far end, in another machine, for whatever: those as well whose doorbells the daemon alone
/// knew, which is gone by now, or which it was asked to ring and did not.
pub(crate) fn wake_without_daemon(conn: &Conn, view: &ConnView) {
    KICKING.fetch_add(1, Ordering::SeqCst);
    for what in [WaitFor::Data, WaitFor::Space] {
        view.theirs.waits.each(what, |who| {
            if !ring(conn, who)
                && let Some(peer) = peer_of(conn, who)
            {
                match peer.bell(who.context) {
                    Some(bell) => strike(bell),
                    None => strike_all(peer),
                };
            }
        });
    }
    KICKING.fetch_sub(1, Ordering::SeqCst);
}

/// Whether no thread is using a peer's doorbell; its descriptors may then be closed.
pub(crate) fn nobody() -> bool {
    KICKING.load(Ordering::SeqCst) == 0
}

/// In a forked child: the other threads are gone.
pub(crate) fn after_fork() {
    KICKING.store(0, Ordering::SeqCst);
}

#[cold]
#[inline(never)]
fn wake(conn: &Conn, view: &ConnView, what: WaitFor) {
    KICKING.fetch_add(1, Ordering::SeqCst);
    view.theirs.waits.each(what, |who| {
        if ring(conn, who) {
            conn.slot().tx.kicks.fetch_add(1, Ordering::Relaxed);
        }
    });
    KICKING.fetch_sub(1, Ordering::SeqCst);
}

fn peer_of(conn: &Conn, who: WaitRef) -> Option<&'static Peer> {
    let session = conn.session.load(Ordering::Relaxed);
    let usual = control::peer(conn.peer.load(Ordering::Relaxed))
        .filter(|peer| peer.is(session, who.process));
    usual.or_else(|| control::peer_of_process(session, who.process).map(|(_, peer)| peer))
}

/// Posts to one context; true if its doorbell was rung.
fn ring(conn: &Conn, who: WaitRef) -> bool {
    let session = conn.session.load(Ordering::Relaxed);
    let Some(peer) = peer_of(conn, who) else {
        return kick_by_daemon(session, who);
    };
    let Some(words) = peer
        .events
        .get()
        .and_then(|events| contexts::words(&events, who.context))
    else {
        return kick_by_daemon(session, who);
    };
    let mut place = false;
    if let Some(bit) = who.bit {
        let by_kernel = BY_KERNEL.load(Ordering::Relaxed);
        match peer.told_of(who.context) {
            Some(told_of) if told_of.load(Ordering::Relaxed) != by_kernel => {
                place = words.post_behind_kernel(bit);
                if place {
                    told_of.store(by_kernel, Ordering::Relaxed);
                }
            }
            _ => words.post(bit),
        }
    }
    if !words.take_sleeper() {
        // Awake, but the kernel is to know which of its events came before this.
        if let Some(bell) = peer.bell(who.context).filter(|_| place) {
            strike(bell);
        }
        return false;
    }
    if let Some(bell) = peer.bell(who.context) {
        return strike(bell);
    }
    // The doorbell may already lie in our control socket.
    control::drain();
    match peer.bell(who.context) {
        Some(bell) => strike(bell),
        // A daemon that is there and behind with its messages will come to them.
        None => {
            let lives = control::session(session).is_some_and(control::Session::is_live);
            kick_by_daemon(session, who) || !lives && strike_all(peer)
        }
    }
}

/// Rings every doorbell that a process in another machine may have: which of them is a context's, only a daemon knew
/// that is gone. False: it is in no other machine.
#[cold]
fn strike_all(peer: &Peer) -> bool {
    let mut all = 0..u16::try_from(CONTEXTS).unwrap_or(u16::MAX);
    let known = all.find_map(|context| match peer.bell(context)? {
        Bell::Register(value) => Some(value),
        Bell::Event(_) => None,
    });
    let Some(value) = known else { return false };
    let member = u16::try_from(value >> 16).unwrap_or(0);
    // Each answers the same.
    (0..VECTORS).all(|vector| registers::ring(doorbell_value(member, vector)))
}

/// Vectors that a member can have; the device knows how many it has.
const VECTORS: u16 = 2048;

fn strike(bell: Bell) -> bool {
    let bell = match bell {
        Bell::Event(bell) => bell,
        Bell::Register(value) => return registers::ring(value),
    };
    if !fds::lookup(bell).is_internal() {
        return false;
    }
    // SAFETY: a doorbell of ours; it is not closed while KICKING counts us.
    let bell = unsafe { BorrowedFd::borrow_raw(bell) };
    rustix::io::write(bell, &1u64.to_ne_bytes()).is_ok()
}

fn kick_by_daemon(session: u32, who: WaitRef) -> bool {
    // The far end wrote the reference: nonsense must not become an offence of ours.
    if u32::from(who.context) >= CONTEXTS || who.process > WaitRef::PROCESS_MAX {
        return false;
    }
    let message = Message::Kick(ContextRef {
        process: who.process,
        context: u32::from(who.context),
    });
    control::session(session).is_some_and(|session| control::send(session, &message, &[]))
}
