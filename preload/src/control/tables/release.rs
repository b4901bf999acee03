//! Letting go of the memory of others: of processes that have left, and of daemons whose sessions have ended.

#![expect(unsafe_code, reason = "unmapping what nobody finds any more")]

use core::sync::atomic::Ordering;

use frontend_drv::client::BUFFER_BYTES;
use frontend_drv::memory;

use super::arenas::{ARENAS, is_used};
use super::bells::close_bell;
use super::peers::{GONE, PEERS, Peer};
use super::sessions::{ENDED, SESSIONS, Session, session};
use crate::control::monotonic_ns;
use crate::kick;

/// How long an arena without users stays mapped after its peer has left: a thread may still be on its
/// way out of a call on a connection that another thread has closed.
const GRACE_NS: u64 = 10_000_000_000;

/// The process has left: no new connection will lie in its arenas.
pub(in crate::control) fn abandon_arenas(session: u32, process: u32, now: u64) {
    for arena in &ARENAS {
        if arena.key.load(Ordering::Relaxed) >> 32 == u64::from(session + 1)
            && arena.peer.load(Ordering::Relaxed) == process
        {
            let _ = arena
                .gone_at
                .compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    reclaim_arenas();
}

/// Sessions have ended: no new connection will lie in their arenas. What no connection uses is let go of, for others may
/// wait for it: in a container, the memory of a daemon that has gone is nobody else's before.
pub(in crate::control) fn abandon_ended(now: u64) {
    for session in &SESSIONS {
        if session.state.load(Ordering::Relaxed) == ENDED && !is_used(session.index()) {
            session.let_go();
        }
    }
    for arena in &ARENAS {
        let key = arena.key.load(Ordering::Relaxed);
        let number = (key >> 32).checked_sub(1);
        let found = number.and_then(|number| session(u32::try_from(number).ok()?));
        if found.is_some_and(|session| session.state.load(Ordering::Relaxed) == ENDED) {
            let _ = arena
                .gone_at
                .compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    reclaim_arenas();
}

impl Peer {
    /// The process has left. Its doorbells are closed and its event memory is unmapped, unless a
    /// thread is using some peer's right now: then that happens at the next departure.
    pub(in crate::control) fn leave(&self) {
        self.key.store(GONE, Ordering::SeqCst);
        if !kick::nobody() {
            return;
        }
        for peer in PEERS
            .iter()
            .filter(|peer| peer.key.load(Ordering::Relaxed) == GONE)
        {
            for bell in &peer.bells {
                let old = bell.swap(0, Ordering::AcqRel);
                if old > 0 {
                    close_bell(old - 1);
                }
            }
            if let Some(region) = peer.events.get() {
                peer.events.clear();
                // SAFETY: the key said gone before nobody was found kicking, so nobody finds it now.
                unsafe { memory::unmap(region) };
            }
            peer.key.store(0, Ordering::Release);
        }
    }
}

impl Session {
    /// It has ended, and no connection of it is left: its memory and that of its peers is let go of.
    fn let_go(&self) {
        // What was not read of the daemon's messages may bring memory along.
        let mut buffer = [0u8; BUFFER_BYTES];
        while self.receive(&mut buffer).is_ok() {}
        if let Some(region) = self.events.get() {
            self.events.clear();
            // SAFETY: nobody finds it any more; whoever has found it takes what is there for what others wrote.
            let _ = unsafe { memory::vacate(&region) };
        }
        let its = u64::from(self.index() + 1);
        for peer in &PEERS {
            let key = peer.key.load(Ordering::Relaxed);
            if key >> 32 == its && key != GONE {
                peer.leave();
            }
        }
    }
}

/// Lets go of what no connection uses any more, and unmaps what nobody can use; under the control lock.
pub(super) fn reclaim_arenas() {
    let now = monotonic_ns();
    for arena in &ARENAS {
        let gone_at = arena.gone_at.load(Ordering::Acquire);
        if gone_at == 0 || arena.users.load(Ordering::Acquire) != 0 {
            continue;
        }
        if arena.vacated.swap(1, Ordering::Relaxed) == 0
            && let Some(region) = arena.region.get()
        {
            // SAFETY: no connection lies in it; a thread on its way out takes what it finds for what others wrote.
            let _ = unsafe { memory::vacate(&region) };
        }
        if now < gone_at + GRACE_NS {
            continue;
        }
        if arena.key.swap(0, Ordering::AcqRel) != 0
            && let Some(region) = arena.region.get()
        {
            arena.region.clear();
            arena.gone_at.store(0, Ordering::Relaxed);
            // SAFETY: no connection lies in it any more, and the grace period is over.
            unsafe { memory::unmap(region) };
        }
    }
}
