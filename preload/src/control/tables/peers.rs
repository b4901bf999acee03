//! Processes at the far ends.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::os::fd::OwnedFd;

use frontend_drv::memory;
use rdma_core::control as wire;
use rdma_core::event::{CONTEXTS, EVENT_BYTES};

use crate::contexts::RegionCell;

/// Processes at far ends.
const PEER_COUNT: usize = 1024;

/// A process at a far end.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Session index + 1 in the high half, process number in the low half; 0 free.
    pub(super) key: AtomicU64,
    /// Its event memory.
    pub events: RegionCell,
    /// Its doorbells: descriptor + 1, 0 unknown; below 0 what to store to a register, as [`Bell`](super::Bell) reads it.
    pub(super) bells: [AtomicI32; CONTEXTS as usize],
    /// What the kernel had been given when a context of this peer was last told of a ring (`kick`).
    told_of: [AtomicU32; CONTEXTS as usize],
}

pub(super) static PEERS: [Peer; PEER_COUNT] = [const {
    Peer {
        key: AtomicU64::new(0),
        events: RegionCell::new(),
        bells: [const { AtomicI32::new(0) }; CONTEXTS as usize],
        told_of: [const { AtomicU32::new(0) }; CONTEXTS as usize],
    }
}; PEER_COUNT];

fn peer_key(session: u32, process: u32) -> u64 {
    u64::from(session + 1) << 32 | u64::from(process)
}

/// Peer `index`.
#[inline]
pub(crate) fn peer(index: u32) -> Option<&'static Peer> {
    PEERS.get(index as usize)
}

/// The peer with this number in that session, and its index.
pub(crate) fn peer_of_process(session: u32, process: u32) -> Option<(u32, &'static Peer)> {
    let key = peer_key(session, process);
    let index = PEERS
        .iter()
        .position(|peer| peer.key.load(Ordering::Acquire) == key)?;
    Some((u32::try_from(index).ok()?, PEERS.get(index)?))
}

/// Enters a peer.
pub(in crate::control) fn add_peer(session: u32, body: &wire::Peer, events: &OwnedFd) -> bool {
    let process = body.process;
    if peer_of_process(session, process).is_some() {
        return true;
    }
    let Some(peer) = PEERS
        .iter()
        .find(|peer| peer.key.load(Ordering::Relaxed) == 0)
    else {
        return false;
    };
    let Ok(region) = memory::map(events, body.at, EVENT_BYTES) else {
        return false;
    };
    for bell in &peer.bells {
        bell.store(0, Ordering::Relaxed);
    }
    for told_of in &peer.told_of {
        told_of.store(0, Ordering::Relaxed);
    }
    peer.events.set_from(&region, events);
    peer.key
        .store(peer_key(session, process), Ordering::Release);
    true
}

impl Peer {
    /// Whether this is still the process `process` of that session.
    #[inline]
    pub(crate) fn is(&self, session: u32, process: u32) -> bool {
        self.key.load(Ordering::Relaxed) == peer_key(session, process)
    }

    /// Its number; that of nobody if it has left.
    pub(crate) fn process(&self) -> u32 {
        let low = self.key.load(Ordering::Relaxed) & u64::from(u32::MAX);
        u32::try_from(low).unwrap_or(0)
    }

    /// What the kernel had been given when that context was last told of a ring.
    #[inline]
    pub(crate) fn told_of(&self, context: u16) -> Option<&AtomicU32> {
        self.told_of.get(usize::from(context))
    }
}

/// Key of a peer that has left but whose place cannot be reused yet.
pub(super) const GONE: u64 = u64::MAX;
