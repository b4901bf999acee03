//! Sessions with daemons, processes at the far ends, arenas, and which slot is which connection.

mod arenas;
mod bells;
mod peers;
mod release;
mod sessions;

use core::sync::atomic::{AtomicU32, Ordering};

use rdma_core::slot::SLOTS;

use arenas::ARENAS;
use peers::PEERS;
use sessions::{INHERITED, LIVE};

pub(crate) use arenas::release_arena;
pub(super) use arenas::use_arena;
pub(crate) use bells::Bell;
pub(super) use bells::{borrow, make_way_for_bell};
pub(super) use peers::add_peer;
pub(crate) use peers::{Peer, peer, peer_of_process};
pub(super) use release::{abandon_arenas, abandon_ended};
pub(super) use sessions::begin_session;
pub(crate) use sessions::{SESSIONS, Session, session};

static SLOT_CONNS: [AtomicU32; SLOTS as usize] = [const { AtomicU32::new(0) }; SLOTS as usize];

/// Says which connection is in a slot (`None`: none).
pub(crate) fn bind_slot(slot: u32, conn: Option<u32>) {
    if let Some(word) = SLOT_CONNS.get(slot as usize) {
        word.store(conn.map_or(0, |conn| conn + 1), Ordering::Release);
    }
}

/// The connection in a slot.
pub(super) fn conn_in_slot(slot: u32) -> Option<u32> {
    SLOT_CONNS
        .get(slot as usize)?
        .load(Ordering::Acquire)
        .checked_sub(1)
}

/// In a forked child: sessions are the parent's, and so is the memory in which its threads and sets are told of events. Our
/// contexts have the same numbers.
pub(super) fn after_fork() {
    for session in &SESSIONS {
        session.events.clear();
        let _ =
            session
                .state
                .compare_exchange(LIVE, INHERITED, Ordering::Relaxed, Ordering::Relaxed);
    }
    for word in &SLOT_CONNS {
        word.store(0, Ordering::Relaxed);
    }
}

/// Whether an address lies in event memory of the device through which a guest shares memory. For a signal handler.
pub(crate) fn is_device_at(address: usize) -> bool {
    SESSIONS
        .iter()
        .map(|session| &session.events)
        .chain(PEERS.iter().map(|peer| &peer.events))
        .any(|cell| cell.is_device_at(address))
}

/// The same of the memory of connections.
pub(crate) fn is_device_ring_at(address: usize) -> bool {
    let mut cells = ARENAS.iter().map(|arena| &arena.region);
    cells.any(|cell| cell.is_device_at(address))
}
