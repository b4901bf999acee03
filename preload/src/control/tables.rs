//! Sessions with daemons, processes at the far ends, arenas, and which slot is which connection.

#![expect(unsafe_code, reason = "raw descriptors of our own in static tables")]

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use frontend_drv::client::{BUFFER_BYTES, Client, Fds, ReceiveError};
use frontend_drv::descriptor::lift;
use frontend_drv::memory;
use rdma_core::control::{self as wire, Message};
use rdma_core::event::{CONTEXTS, EVENT_BYTES};
use rdma_core::mem::Region;
use rdma_core::slot::SLOTS;
use rustix::io::Errno;

use crate::contexts::RegionCell;
use crate::fds::{self, Entry};
use crate::kernel;

/// Daemons that one process can outlive, forks included.
const SESSION_COUNT: usize = 16;
/// Processes at far ends.
const PEER_COUNT: usize = 1024;
/// Arenas mapped at once; with the largest arena 64 connections share a mapping.
const ARENA_COUNT: usize = 4096;

/// One session with a daemon.
#[derive(Debug)]
pub(crate) struct Session {
    state: AtomicU32,
    client: OnceLock<Client>,
    /// Our number, once WELCOME has come; 0 before.
    pub process: AtomicU32,
    /// Our event memory.
    pub events: RegionCell,
    /// Not 0: we are in a guest, and this daemon has far ends outside wake us.
    guest: AtomicU32,
}

/// One wait for room in the control socket.
const ROOM_WAIT: Duration = Duration::from_millis(10);

const LIVE: u32 = 1;
const ENDED: u32 = 2;
const INHERITED: u32 = 3;

/// All sessions.
pub(crate) static SESSIONS: [Session; SESSION_COUNT] = [const {
    Session {
        state: AtomicU32::new(0),
        client: OnceLock::new(),
        process: AtomicU32::new(0),
        events: RegionCell::new(),
        guest: AtomicU32::new(0),
    }
}; SESSION_COUNT];

/// Session `index`.
pub(crate) fn session(index: u32) -> Option<&'static Session> {
    SESSIONS.get(index as usize)
}

/// A session over a new control socket.
pub(super) fn begin_session(client: Client) -> Option<&'static Session> {
    let session = SESSIONS
        .iter()
        .find(|session| session.state.load(Ordering::Relaxed) == 0)?;
    fds::insert(client.raw(), Entry::INTERNAL);
    session.client.set(client).ok()?;
    session.state.store(LIVE, Ordering::Release);
    Some(session)
}

impl Session {
    /// Its number in the table.
    pub(crate) fn index(&self) -> u32 {
        let offset = core::ptr::from_ref(self).addr() - SESSIONS.as_ptr().addr();
        u32::try_from(offset / size_of::<Self>()).unwrap_or(0)
    }

    /// Whether the daemon is there.
    pub(crate) fn is_live(&self) -> bool {
        self.state.load(Ordering::Acquire) == LIVE
    }

    /// Whether it is the session of the process that we were forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        self.state.load(Ordering::Relaxed) == INHERITED
    }

    /// Whether the daemon has left.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) == ENDED
    }

    /// Whether it is the daemon of a guest, and connections that it brought about may depend on it.
    pub(crate) fn is_in_guest(&self) -> bool {
        self.guest.load(Ordering::Acquire) != 0
    }

    /// Says so, or that none does any more.
    pub(crate) fn set_in_guest(&self, is_it: bool) {
        self.guest.store(is_it.into(), Ordering::Release);
    }

    /// The control socket, by which the kernel says that the daemon has died.
    pub(crate) fn line(&self) -> Option<RawFd> {
        self.client.get().map(Client::raw)
    }

    /// Sends; false if the daemon is behind or gone.
    pub(super) fn send(&self, message: &Message<'_>, fds: &[BorrowedFd<'_>]) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if state != LIVE && state != INHERITED {
            return false;
        }
        match self.client.get().map(|client| client.send(message, fds)) {
            Some(Ok(())) => true,
            Some(Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN)) => {
                // A daemon that was killed raises no mailbox; this is how we hear of it.
                self.end();
                false
            }
            Some(Err(_)) | None => false,
        }
    }

    /// Whether the daemon's end of the control socket is closed.
    pub(crate) fn has_hung_up(&self) -> bool {
        self.client
            .get()
            .is_none_or(|client| kernel::poll_now(client.raw(), 0) & libc::POLLHUP != 0)
    }

    /// Waits a few milliseconds for the daemon to read.
    pub(crate) fn wait_for_room(&self) {
        if let Some(client) = self.client.get() {
            client.wait_for_room(ROOM_WAIT);
        }
    }

    /// Receives.
    pub(super) fn receive<'b>(
        &self,
        buffer: &'b mut [u8],
    ) -> Result<(Message<'b>, Fds), ReceiveError> {
        self.client
            .get()
            .ok_or(ReceiveError::Closed)?
            .receive(buffer)
    }

    /// The daemon has left. The descriptor stays open: closing it would let the number be reused.
    pub(crate) fn end(&self) {
        let _ = self
            .state
            .compare_exchange(LIVE, ENDED, Ordering::AcqRel, Ordering::Relaxed);
    }

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

    /// The program wants this number for a descriptor of its own: the control socket moves.
    pub(super) fn make_way(&self, fd: RawFd) -> bool {
        let Some(client) = self.client.get().filter(|client| client.raw() == fd) else {
            return false;
        };
        match client.relocate() {
            Ok(new) => {
                fds::insert(new, Entry::INTERNAL);
            }
            Err(_) => self.state.store(ENDED, Ordering::Release),
        }
        true
    }
}

/// How a context of a far process is woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bell {
    /// By a write to this eventfd.
    Event(RawFd),
    /// By a store of this value to the device's doorbell register.
    Register(u32),
}

/// A process at a far end.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Session index + 1 in the high half, process number in the low half; 0 free.
    key: AtomicU64,
    /// Its event memory.
    pub events: RegionCell,
    /// Its doorbells: descriptor + 1, 0 unknown; below 0 what to store to a register, as [`Bell`] reads it.
    bells: [AtomicI32; CONTEXTS as usize],
    /// What the kernel had been given when a context of this peer was last told of a ring (`kick`).
    told_of: [AtomicU32; CONTEXTS as usize],
}

static PEERS: [Peer; PEER_COUNT] = [const {
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
pub(super) fn add_peer(session: u32, body: &wire::Peer, events: &OwnedFd) -> bool {
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

    /// The doorbell of one of its contexts.
    #[inline]
    pub(crate) fn bell(&self, context: u16) -> Option<Bell> {
        match self
            .bells
            .get(usize::from(context))?
            .load(Ordering::Acquire)
        {
            0 => None,
            value @ i32::MIN..0 => Some(Bell::Register(!value.cast_unsigned())),
            fd => Some(Bell::Event(fd - 1)),
        }
    }

    /// Stores what rings a context of a process in another virtual machine.
    pub(super) fn set_register(&self, context: u32, value: u32) {
        let Some(place) = self.bells.get(context as usize) else {
            return;
        };
        // The highest bit of `value` is not set.
        let old = place.swap((!value).cast_signed(), Ordering::AcqRel);
        if old > 0 {
            close_bell(old - 1);
        }
    }

    /// Stores a doorbell.
    pub(super) fn set_bell(&self, context: u32, bell: OwnedFd) {
        let Some(place) = self.bells.get(context as usize) else {
            return;
        };
        fds::insert(bell.as_raw_fd(), Entry::INTERNAL);
        let old = place.swap(bell.into_raw_fd() + 1, Ordering::AcqRel);
        if old > 0 {
            close_bell(old - 1);
        }
    }

    /// The process has left. Its doorbells are closed and its event memory is unmapped, unless a
    /// thread is using some peer's right now: then that happens at the next departure.
    pub(super) fn leave(&self) {
        self.key.store(GONE, Ordering::SeqCst);
        if !crate::kick::nobody() {
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

/// Key of a peer that has left but whose place cannot be reused yet.
const GONE: u64 = u64::MAX;

/// The program wants this number for a descriptor of its own: a peer's doorbell moves.
pub(super) fn make_way_for_bell(fd: RawFd) {
    for bell in PEERS.iter().flat_map(|peer| &peer.bells) {
        if bell.load(Ordering::Relaxed) == fd + 1 {
            // SAFETY: ours.
            let new = unsafe { BorrowedFd::borrow_raw(fd) }
                .try_clone_to_owned()
                .ok()
                .and_then(|new| lift(new).ok());
            let new = new.map_or(0, |new| {
                fds::insert(new.as_raw_fd(), Entry::INTERNAL);
                new.into_raw_fd() + 1
            });
            bell.store(new, Ordering::Release);
        }
    }
}

fn close_bell(fd: RawFd) {
    if fds::take(fd, Entry::INTERNAL) {
        // SAFETY: our own descriptor, taken out of the table just now.
        drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) });
    }
}

/// A mapped arena: the memory of the connections with one process.
#[derive(Debug)]
struct Arena {
    /// Session index + 1 in the high half, the daemon's number in the low half; 0 free.
    key: AtomicU64,
    region: RegionCell,
    peer: AtomicU32,
    users: AtomicU32,
    /// When the process at the far end had left (monotonic nanoseconds); 0 while it is there.
    gone_at: AtomicU64,
    /// Not 0: the mapping is there still, but holds no memory of others.
    vacated: AtomicU32,
}

static ARENAS: [Arena; ARENA_COUNT] = [const {
    Arena {
        key: AtomicU64::new(0),
        region: RegionCell::new(),
        peer: AtomicU32::new(0),
        users: AtomicU32::new(0),
        gone_at: AtomicU64::new(0),
        vacated: AtomicU32::new(0),
    }
}; ARENA_COUNT];

/// How long an arena without users stays mapped after its peer has left: a thread may still be on its
/// way out of a call on a connection that another thread has closed.
const GRACE_NS: u64 = 10_000_000_000;

/// The arena that a connection lies in, mapped now if its descriptor came along, with one
/// user more; and its index, for [`release_arena`].
pub(super) fn use_arena(
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
        let now = super::monotonic_ns();
        let _ = arena
            .gone_at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |gone| {
                (gone != 0).then_some(now)
            });
        arena.users.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The process has left: no new connection will lie in its arenas.
pub(super) fn abandon_arenas(session: u32, process: u32, now: u64) {
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
pub(super) fn abandon_ended(now: u64) {
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

/// Whether a connection lies in an arena of that session.
fn is_used(session: u32) -> bool {
    ARENAS.iter().any(|arena| {
        arena.key.load(Ordering::Acquire) >> 32 == u64::from(session + 1)
            && arena.users.load(Ordering::Acquire) != 0
    })
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

/// Lets go of what no connection uses any more, and unmaps what nobody can use; under the control lock.
fn reclaim_arenas() {
    let now = super::monotonic_ns();
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

/// In a forked child: sessions are the parent's.
pub(super) fn after_fork() {
    for session in &SESSIONS {
        let _ =
            session
                .state
                .compare_exchange(LIVE, INHERITED, Ordering::Relaxed, Ordering::Relaxed);
    }
    for word in &SLOT_CONNS {
        word.store(0, Ordering::Relaxed);
    }
}

/// A descriptor of ours, by number.
pub(super) fn borrow(fd: u32) -> BorrowedFd<'static> {
    // SAFETY: a number that this library opened and keeps open.
    unsafe { BorrowedFd::borrow_raw(RawFd::try_from(fd).unwrap_or(RawFd::MAX)) }
}
