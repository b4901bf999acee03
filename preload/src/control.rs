//! Talking to the daemon: sessions, peers, arenas, and what its messages do.
//!
//! Nothing here waits for the daemon. HELLO, CONTEXT and REGISTER are sent one behind the other; the
//! answers are noticed through the mailbox word and worked off by whatever data call comes next.
//! Everything happens under one lock that is only ever tried: whoever finds it taken goes on without.

mod messages;
mod tables;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use frontend_drv::client::{BUFFER_BYTES, Client, ReceiveError};
use frontend_drv::descriptor::lift;
use frontend_drv::memory;
use rdma_core::Reason;
use rdma_core::control::{Context, Hello, Message};
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::slot::{ARENA_BYTES, ARENA_MAGIC, ArenaView};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use rustix::time::{ClockId, clock_gettime};

use crate::config::Config;
use crate::conn::Conn;
use crate::contexts::{self, RegionCell};
use crate::tls;

pub(crate) use tables::{
    Bell, Peer, SESSIONS, Session, bind_slot, is_device_at, is_device_ring_at, peer,
    peer_of_process, release_arena, session,
};

/// Who works on the control state; 0 nobody.
static BUSY: AtomicU32 = AtomicU32::new(0);
/// Index + 1 of the session in use; 0 none.
static CURRENT: AtomicU32 = AtomicU32::new(0);
/// The mailbox as last worked off.
static SEEN: AtomicU32 = AtomicU32::new(0);
/// When the daemon may be looked for again (monotonic nanoseconds).
static RETRY_AT: AtomicU64 = AtomicU64::new(0);

/// The slot arena of this process.
static ARENA: RegionCell = RegionCell::new();
/// The slot arena of the process that this one was forked from.
static PARENT: RegionCell = RegionCell::new();
static ARENA_FD: AtomicU32 = AtomicU32::new(0);

/// How long an absent daemon is not looked for.
const RETRY_NS: u64 = 500_000_000;

/// The slot arena, if it has been made.
#[inline]
pub(crate) fn arena() -> Option<ArenaView> {
    ArenaView::new(ARENA.get()?)
}

/// The slot arena of the process that this one was forked from.
pub(crate) fn parent_arena() -> Option<ArenaView> {
    ArenaView::new(PARENT.get()?)
}

/// The slot arena, made at first use.
pub(crate) fn make_arena() -> Option<ArenaView> {
    for look in 0..ARENA_LOOKS {
        if let Some(arena) = arena() {
            return Some(arena);
        }
        if let Some(made) = locked(make_arena_locked) {
            return made;
        }
        if BUSY.load(Ordering::Relaxed) == tls::token() {
            // A signal handler that interrupted its maker.
            return None;
        }
        // Several threads make the first connections: one makes the arena, which takes some system
        // calls, and the others' connections are not lost for that.
        if look < ARENA_YIELDS {
            rustix::thread::sched_yield();
        } else {
            let _ = rustix::thread::nanosleep(&ARENA_PAUSE);
        }
    }
    None
}

/// How often [`make_arena`] looks for the arena that another thread makes, a tenth of a second in all.
const ARENA_LOOKS: u32 = 1_000;
/// The looks before it sleeps in between.
const ARENA_YIELDS: u32 = 100;
const ARENA_PAUSE: rustix::thread::Timespec = rustix::thread::Timespec {
    tv_sec: 0,
    tv_nsec: 100_000,
};

/// As [`make_arena`], for a caller that holds the control lock.
pub(crate) fn make_arena_locked() -> Option<ArenaView> {
    if ARENA.get().is_none() {
        let Ok(fd) = memory::create(c"viaduct-slots", ARENA_BYTES).and_then(lift) else {
            return None;
        };
        let Ok(region) = memory::map(&fd, 0, ARENA_BYTES) else {
            return None;
        };
        if let Some(view) = ArenaView::new(region) {
            let header = view.header();
            header.magic.store(ARENA_MAGIC, Ordering::Relaxed);
            header.version.store(LAYOUT_VERSION, Ordering::Relaxed);
            let pid = rustix::process::getpid()
                .as_raw_nonzero()
                .get()
                .unsigned_abs();
            header.pid.store(pid, Ordering::Relaxed);
            contexts::keep(&fd);
            let raw = fd.into_raw_fd();
            ARENA_FD.store(raw.unsigned_abs() + 1, Ordering::Relaxed);
            ARENA.set(&region);
        }
    }
    arena()
}

/// Runs `work` unless somebody else (or the code that this signal handler interrupted) is at it.
pub(crate) fn locked<T>(work: impl FnOnce() -> T) -> Option<T> {
    if BUSY
        .compare_exchange(0, tls::token(), Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        return None;
    }
    let result = work();
    BUSY.store(0, Ordering::Release);
    Some(result)
}

/// The session in use.
pub(crate) fn current() -> Option<&'static Session> {
    session(CURRENT.load(Ordering::Acquire).checked_sub(1)?)
}

/// The session in use, or a new one with the daemon; under the lock.
pub(crate) fn ensure(config: &Config) -> Result<&'static Session, Reason> {
    if let Some(session) = current()
        && session.is_live()
    {
        return Ok(session);
    }
    let now = monotonic_ns();
    if now < RETRY_AT.load(Ordering::Relaxed) {
        return Err(Reason::NoDaemon);
    }
    RETRY_AT.store(now + RETRY_NS, Ordering::Relaxed);
    open(config)
}

/// Whether the daemon that a connection was made with has ended, as the kernel says.
pub(crate) fn has_hung_up(conn: &Conn) -> bool {
    let session = if conn.view().is_some() {
        session(conn.session.load(Ordering::Relaxed))
    } else {
        current()
    };
    session.is_none_or(Session::has_hung_up)
}

/// Whether the daemon did not answer lately, so that asking again must wait.
pub(crate) fn is_absent() -> bool {
    !current().is_some_and(Session::is_live) && monotonic_ns() < RETRY_AT.load(Ordering::Relaxed)
}

fn open(config: &Config) -> Result<&'static Session, Reason> {
    let arena = ARENA_FD
        .load(Ordering::Relaxed)
        .checked_sub(1)
        .ok_or(Reason::MapLimit)?;
    let client = Client::connect(&config.socket).map_err(|error| match error {
        rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => Reason::FdLimit,
        _ => Reason::NoDaemon,
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let diag = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        flags,
        Some(netlink::SOCK_DIAG),
    )
    .map_err(|_| Reason::Identity)?;
    let hello = Hello {
        layout_version: LAYOUT_VERSION,
        ring_log2: config.ring_log2,
        session: config.session,
    };
    let arena = tables::borrow(arena);
    client
        .send(&Message::Hello(hello), &[arena, diag.as_fd()])
        .map_err(|_| Reason::NoDaemon)?;
    tables::abandon_ended(monotonic_ns());
    let session = tables::begin_session(client).ok_or(Reason::NoDaemon)?;
    CURRENT.store(session.index() + 1, Ordering::Release);
    // One context from the start: the doorbell then reaches every peer before the first pairing.
    if contexts::made() == 0 {
        if let Some(first) = contexts::borrow() {
            contexts::give_back(first);
        }
    } else {
        for number in 0..contexts::made() {
            announce_to(session, u16::try_from(number).unwrap_or(0));
        }
    }
    Ok(session)
}

/// Tells the daemon of a new context. Called with or without the lock: one message, one system call.
pub(crate) fn announce(number: u16) {
    if let Some(session) = current() {
        announce_to(session, number);
    }
}

fn announce_to(session: &Session, number: u16) {
    let Some(bell) = contexts::context(number).and_then(contexts::Context::bell) else {
        return;
    };
    let message = Message::Context(Context {
        context: u32::from(number),
        reserved: 0,
    });
    session.send(&message, &[tables::borrow(bell.unsigned_abs())]);
}

/// Works the daemon's messages off, if the mailbox says that there are any.
#[inline]
pub(crate) fn check_mailbox() {
    let Some(arena) = arena() else { return };
    if arena.header().mailbox.load(Ordering::Relaxed) != SEEN.load(Ordering::Relaxed) {
        drain();
    }
}

/// Works all waiting messages off.
#[cold]
pub(crate) fn drain() {
    locked(|| {
        let Some(arena) = arena() else { return };
        // Read first: a message that comes meanwhile raises it again.
        let mail = arena.header().mailbox.load(Ordering::Acquire);
        for session in SESSIONS.iter().filter(|session| session.is_live()) {
            drain_session(session);
        }
        SEEN.store(mail, Ordering::Relaxed);
    });
}

fn drain_session(session: &'static Session) {
    let mut buffer = [0u8; BUFFER_BYTES];
    loop {
        match session.receive(&mut buffer) {
            Ok((message, fds)) => messages::handle(session, &message, fds),
            Err(ReceiveError::Empty) => return,
            Err(_) => {
                // Closed, or not speaking our language: what is attached goes on without it.
                session.end();
                return;
            }
        }
    }
}

/// Now, in nanoseconds.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// The same clock as of the kernel's last tick, some milliseconds ago at most: cheaper.
pub(crate) fn coarse_ns() -> u64 {
    nanoseconds(ClockId::MonotonicCoarse)
}

#[inline]
fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// In a forked child: the parent's session stays open (it counts us as a holder of the parent's
/// connections), but ours is a new one, with an arena of our own.
pub(crate) fn after_fork() {
    BUSY.store(0, Ordering::Relaxed);
    CURRENT.store(0, Ordering::Relaxed);
    RETRY_AT.store(0, Ordering::Relaxed);
    SEEN.store(0, Ordering::Relaxed);
    match ARENA.get() {
        Some(arena) => PARENT.set(&arena),
        None => PARENT.clear(),
    }
    ARENA.clear();
    ARENA_FD.store(0, Ordering::Relaxed);
    tables::after_fork();
}

/// The program wants this number for a descriptor of its own: ours moves away.
pub(crate) fn make_way(fd: RawFd) {
    if SESSIONS.iter().any(|session| session.make_way(fd)) {
        return;
    }
    if ARENA_FD.load(Ordering::Relaxed) == fd.unsigned_abs() + 1 {
        // Only needed to greet another daemon; its mapping stays.
        let new = tables::borrow(fd.unsigned_abs())
            .try_clone_to_owned()
            .ok()
            .and_then(|new| lift(new).ok());
        let new = new.map_or(0, |new| {
            contexts::keep(&new);
            new.into_raw_fd().unsigned_abs() + 1
        });
        ARENA_FD.store(new, Ordering::Relaxed);
        return;
    }
    tables::make_way_for_bell(fd);
}

/// A descriptor that belongs to us.
pub(crate) fn owned(fds: &mut frontend_drv::client::Fds) -> Option<OwnedFd> {
    fds.iter_mut().find_map(Option::take)
}

/// Sends over the session in use.
pub(crate) fn send(session: &Session, message: &Message<'_>, fds: &[BorrowedFd<'_>]) -> bool {
    session.send(message, fds)
}
