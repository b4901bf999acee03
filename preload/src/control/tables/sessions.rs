//! Sessions with daemons.

use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::OnceLock;

use frontend_drv::client::{Client, Fds, ReceiveError};
use rdma_core::control::Message;
use rustix::io::Errno;

use crate::contexts::RegionCell;
use crate::fds::{self, Entry};
use crate::kernel;

/// Daemons that one process can outlive, forks included.
const SESSION_COUNT: usize = 16;

/// One session with a daemon.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) state: AtomicU32,
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

pub(super) const LIVE: u32 = 1;
pub(super) const ENDED: u32 = 2;
pub(super) const INHERITED: u32 = 3;

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
pub(in crate::control) fn begin_session(client: Client) -> Option<&'static Session> {
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
    pub(in crate::control) fn send(&self, message: &Message<'_>, fds: &[BorrowedFd<'_>]) -> bool {
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
    pub(in crate::control) fn receive<'b>(
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

    /// The program wants this number for a descriptor of its own: the control socket moves.
    pub(in crate::control) fn make_way(&self, fd: RawFd) -> bool {
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
