//! Sends what a receiver left in its ring through the sender's own socket, while the sender is idle.
//!
//! The receiver has left the ring (somebody uses its socket who does not see rings), and the sender's
//! program would send the rest at its next call. It may not make one for a long time. So its socket is
//! duplicated (pidfd_getfd), used and closed again at once: a duplicate that is kept would hold back the
//! end of the stream. Without the right to do so (an unprivileged daemon, Yama) nothing happens, and the
//! program follows at its next call.
//!
//! Work for [`crate::workers`]. The number of the descriptor, the states and the positions come from
//! memory that the program can write; that the descriptor is the registered socket is proved by its
//! SO_COOKIE, and the rest concerns this connection only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt;
use rdma_core::layout::End;
use rdma_core::slot::{Slot, TxState};
use rdma_core::sync::Ordering;
use rdma_core::withdraw::{begin_resending, note_resent};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::broker::Proof;
use crate::carving::Place;
use crate::direction::take;
use crate::shared::ConnectionArena;
use crate::withdrawal::Seat;

/// Bytes sent under the lock at once.
const PIECE: usize = 256 * 1024;
/// Bytes sent before others have their turn.
const TURN: usize = 64 << 20;
/// One wait for the kernel to take more.
const SLICE: u16 = 20;
/// How long nothing may move before the duplicate is given up.
const PATIENCE: Duration = Duration::from_millis(240);
/// Descriptors of a program looked at in search of the socket.
const SEARCH_MAX: usize = 65_536;

/// Who is to be helped.
#[derive(Clone, Debug)]
pub struct Rescue {
    /// The sender's slot.
    pub seat: Seat,
    /// The connection's memory.
    pub arena: Arc<ConnectionArena>,
    /// Where.
    pub place: Place,
    /// Which end the sender is.
    pub end: End,
    /// Its control socket, by which its process is known.
    pub control: Arc<OwnedFd>,
    /// What its socket is.
    pub proof: Proof,
}

/// How far it got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rescued {
    /// Nothing is left to be sent.
    Done,
    /// There is more; something was sent.
    Moved,
    /// There is more; the kernel took nothing, or somebody is at it.
    Stuck,
    /// It cannot be done from here.
    Never,
}

/// Whether the sender of a slot has yet to follow its receiver, as far as its state says.
pub fn is_needed(slot: &Slot, is_retracted: bool) -> bool {
    match slot.tx.state() {
        TxState::Ring => is_retracted,
        TxState::Returning => true,
        _ => false,
    }
}

impl Rescue {
    /// Does what can be done now.
    pub fn perform(&self) -> Rescued {
        match self.send_piece(None) {
            Piece::Left => {}
            other => return other.outcome(false),
        }
        let Some(pidfd) = self.pidfd() else {
            return Rescued::Never;
        };
        let Some(socket) = self.duplicate(&pidfd) else {
            return Rescued::Never;
        };
        let mut sent = 0;
        let mut moved_at = Instant::now();
        loop {
            match wait(&socket, &pidfd) {
                Wait::Gone => return Rescued::Never,
                Wait::Full if moved_at.elapsed() >= PATIENCE => {
                    return Piece::Full.outcome(sent > 0);
                }
                // Closed meanwhile, or done by the program: it is looked at under the lock.
                Wait::Full | Wait::Room => {}
            }
            match self.send_piece(Some(&socket)) {
                Piece::Sent(bytes) => {
                    sent += bytes;
                    moved_at = Instant::now();
                    if sent >= TURN {
                        return Rescued::Moved;
                    }
                }
                Piece::Full | Piece::Left if moved_at.elapsed() < PATIENCE => {}
                other => return other.outcome(sent > 0),
            }
        }
    }

    /// Sends one piece under the lock, or without a socket only finds out whether there is any.
    fn send_piece(&self, socket: Option<&OwnedFd>) -> Piece {
        let Some(slot) = self.seat.look() else {
            return Piece::Done;
        };
        let words = |end| self.arena.end(self.place.offset, end);
        let (Some(own), Some(far)) = (words(self.end), words(self.end.far())) else {
            return Piece::Refused;
        };
        let Some(_held) = take(&slot.tx.lock) else {
            return Piece::Full;
        };
        if self.seat.look().is_none() {
            return Piece::Done;
        }
        if !is_needed(slot, own.state.retracted_at(&far.state).is_some()) {
            return Piece::Done;
        }
        let capacity = 1 << self.place.ring_log2;
        let Some(rest) = begin_resending(&slot.tx, &own.state, &far.state, capacity) else {
            // The program says so itself, and openly.
            return Piece::Refused;
        };
        if rest.is_empty() {
            note_resent(&slot.tx, &rest, 0);
            return Piece::Done;
        }
        let Some(socket) = socket else {
            return Piece::Left;
        };
        let len = usize::try_from(rest.len()).unwrap_or(PIECE).min(PIECE);
        let ring = (self.place.offset, self.place.ring_log2, self.end);
        match self.arena.send(socket, ring, rest.index, len) {
            Ok(bytes) => {
                note_resent(&slot.tx, &rest, bytes as u64);
                if bytes as u64 == rest.len() {
                    Piece::Done
                } else {
                    Piece::Sent(bytes)
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Piece::Full,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Piece::Sent(0),
            Err(_) => Piece::Refused,
        }
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        // Before Linux 6.5 there is no such option. A number that was given out anew meanwhile is no danger:
        // its sockets are others.
        let holder = nix::sys::socket::getsockopt(&*self.control, sockopt::PeerPidfd);
        holder.ok().or_else(|| {
            let pid = i32::try_from(self.seat.program.pid).ok()?;
            pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
        })
    }

    /// The sender's socket. It is where it was registered, or, after a dup2, elsewhere.
    fn duplicate(&self, pidfd: &OwnedFd) -> Option<OwnedFd> {
        let noted = self.seat.look()?.meta.fd.load(Ordering::Relaxed);
        let noted = i32::try_from(noted).ok()?.checked_sub(1)?;
        let found = self.duplicate_of(pidfd, noted);
        found.or_else(|| self.duplicate_of(pidfd, self.search()?))
    }

    fn duplicate_of(&self, pidfd: &OwnedFd, number: i32) -> Option<OwnedFd> {
        let duplicate = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()).ok()?;
        let cookie = rustix::net::sockopt::socket_cookie(&duplicate).ok();
        (cookie == Some(self.proof.cookie)).then_some(duplicate)
    }

    /// The number of a descriptor of the program that is the socket.
    fn search(&self) -> Option<i32> {
        let name = format!("socket:[{}]", self.proof.inode);
        let pid = self.seat.program.pid;
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let found = entries.take(SEARCH_MAX).flatten().find(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == name.as_str())
        })?;
        found.file_name().to_str()?.parse().ok()
    }
}

/// What one look under the lock gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Piece {
    Done,
    Left,
    Sent(usize),
    Full,
    Refused,
}

impl Piece {
    const fn outcome(self, moved: bool) -> Rescued {
        match self {
            Self::Done => Rescued::Done,
            Self::Refused => Rescued::Never,
            Self::Sent(_) => Rescued::Moved,
            Self::Left | Self::Full if moved => Rescued::Moved,
            Self::Left | Self::Full => Rescued::Stuck,
        }
    }
}

enum Wait {
    Room,
    Full,
    /// The program has ended, or the socket has an error, which is for the program to see.
    Gone,
}

/// Waits a moment until the kernel takes more.
fn wait(socket: &OwnedFd, pidfd: &OwnedFd) -> Wait {
    let mut entries = [
        PollFd::new(socket.as_fd(), PollFlags::POLLOUT),
        PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
    ];
    if !matches!(poll(&mut entries, PollTimeout::from(SLICE)), Ok(1..)) {
        return Wait::Full;
    }
    let [socket, program] = entries.map(|entry| entry.revents().unwrap_or(PollFlags::empty()));
    if !program.is_empty() || socket.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
        Wait::Gone
    } else if socket.contains(PollFlags::POLLOUT) {
        Wait::Room
    } else {
        Wait::Full
    }
}
