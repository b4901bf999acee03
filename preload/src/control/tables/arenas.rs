//! Mapped arenas, and how many connections lie in each.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::os::fd::OwnedFd;

use frontend_drv::memory;
use rdma_core::control as wire;
use rdma_core::mem::Region;

use super::release::reclaim_arenas;
use crate::contexts::RegionCell;
use crate::control::monotonic_ns;

/// Arenas mapped at once; with the largest arena 64 connections share a mapping.
const ARENA_COUNT: usize = 4096;

/// A mapped arena: the memory of the connections with one process.
#[derive(Debug)]
pub(super) struct Arena {
    /// Session index + 1 in the high half, the daemon's number in the low half; 0 free.
    pub(super) key: AtomicU64,
    pub(super) region: RegionCell,
    pub(super) peer: AtomicU32,
    pub(super) users: AtomicU32,
    /// When the process at the far end had left (monotonic nanoseconds); 0 while it is there.
    pub(super) gone_at: AtomicU64,
    /// Not 0: the mapping is there still, but holds no memory of others.
    pub(super) vacated: AtomicU32,
}

pub(super) static ARENAS: [Arena; ARENA_COUNT] = [const {
    Arena {
        key: AtomicU64::new(0),
        region: RegionCell::new(),
        peer: AtomicU32::new(0),
        users: AtomicU32::new(0),
        gone_at: AtomicU64::new(0),
        vacated: AtomicU32::new(0),
    }
}; ARENA_COUNT];

/// The arena that a connection lies in, mapped now if its descriptor came along, with one
/// user more; and its index, for [`release_arena`].
pub(in crate::control) fn use_arena(
    session: u32,
    paired: &wire::Paired,
    fd: Option<OwnedFd>,
) -> Option<(u32, Region)> {
    let bytes = paired.arena_bytes;
    let key = u64::from(session + 1) << 32 | u64::from(paired.arena);
    let found = ARENAS
        .iter()
        .position(|arena| arena.key.load(Ordering::Acquire) == key);
    let (index, region) = match found {
        Some(index) => (index, ARENAS.get(index)?.region.get()?),
        None => {
            reclaim_arenas();
            let index = ARENAS
                .iter()
                .position(|arena| arena.key.load(Ordering::Relaxed) == 0)?;
            let arena = ARENAS.get(index)?;
            let fd = fd?;
            let region = memory::map(&fd, paired.at, usize::try_from(bytes).ok()?).ok()?;
            arena.region.set_from(&region, &fd);
            arena.peer.store(paired.peer, Ordering::Relaxed);
            arena.gone_at.store(0, Ordering::Relaxed);
            arena.vacated.store(0, Ordering::Relaxed);
            arena.key.store(key, Ordering::Release);
            (index, region)
        }
    };
    if (region.len() as u64) < bytes {
        return None;
    }
    ARENAS.get(index)?.users.fetch_add(1, Ordering::AcqRel);
    Some((u32::try_from(index).ok()?, region))
}

/// A connection in the arena is closed.
pub(crate) fn release_arena(index: u32) {
    if let Some(arena) = ARENAS.get(index as usize) {
        // A thread may still be on its way out of a call on this connection.
        let now = monotonic_ns();
        let _ = arena
            .gone_at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |gone| {
                (gone != 0).then_some(now)
            });
        arena.users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a connection lies in an arena of that session.
pub(super) fn is_used(session: u32) -> bool {
    ARENAS.iter().any(|arena| {
        arena.key.load(Ordering::Acquire) >> 32 == u64::from(session + 1)
            && arena.users.load(Ordering::Acquire) != 0
    })
}
