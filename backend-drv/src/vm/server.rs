//! The ivshmem server protocol: how the members of one region learn of each other.
//!
//! A QEMU with an `ivshmem-doorbell` device connects to a Unix stream socket and is told by whom and by what
//! it can be interrupted. A message is a number of 8 bytes, little endian, with at most one descriptor:
//! the version; the member's own id; -1 with the memory; for each other member its id with an eventfd, once
//! per vector; its own id with its own eventfds, likewise. Later a member that joins is told to the others
//! in the same way, and one that leaves by its id alone. A member never sends anything.
//!
//! The daemon is member [`HOST`] of every group. This module has no event loop: its user polls the sockets,
//! calls [`Group::leave`] when [`Group::is_gone`] says so, and [`Group::flush`] when one that was
//! [behind](Group::is_behind) has room again.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::ids::Process;
use crate::packet;

/// The daemon's own id.
pub const HOST: u16 = rdma_core::channel::BACKEND;

/// Members of one region, the daemon included. Each knows an eventfd of each other for each vector.
pub const MEMBERS_MAX: u16 = rdma_core::channel::MEMBERS;

/// Vectors of a member: as many as an MSI-X table of QEMU's device can have.
pub const VECTORS_MAX: u16 = 2048;

/// Messages that wait for a member to read. More than one greeting of the longest group takes is no
/// slowness any more.
const BEHIND_MAX: usize = 2 * MEMBERS_MAX as usize * VECTORS_MAX as usize;

const VERSION: i64 = 0;
const MEMORY: i64 = -1;

/// The members of one region. See the module documentation.
#[derive(Debug)]
pub struct Group {
    region: Arc<OwnedFd>,
    vectors: u16,
    own: Bells,
    members: BTreeMap<u16, Member>,
    dropped: Vec<u16>,
}

/// An eventfd for each vector of a member.
type Bells = Vec<Arc<OwnedFd>>;

/// What is kept of a member while the daemon is away; the daemon itself has no socket.
#[derive(Debug)]
pub struct Kept {
    /// Its id.
    pub id: u16,
    /// The connection of its QEMU.
    pub socket: Option<OwnedFd>,
    /// Its eventfds, one for each vector.
    pub bells: Vec<Arc<OwnedFd>>,
}

/// What must be kept of a member, so that another daemon can go on with it.
#[derive(Debug)]
pub struct Part<'a> {
    /// Its id.
    pub id: u16,
    /// The connection of its QEMU; none for the daemon itself.
    pub socket: Option<BorrowedFd<'a>>,
    /// Its eventfds, one for each vector.
    pub bells: &'a [Arc<OwnedFd>],
}

impl Group {
    /// A group of which only the daemon is a member. The size of `region` must be a power of two, since
    /// it becomes a BAR.
    ///
    /// # Errors
    /// `InvalidInput` for another size, for no vectors and for too many; what eventfd(2) and fstat(2) say.
    pub fn new(region: Arc<OwnedFd>, vectors: u16) -> io::Result<Self> {
        check(&region, vectors)?;
        Ok(Self {
            region,
            vectors,
            own: bells(vectors)?,
            members: BTreeMap::new(),
            dropped: Vec::new(),
        })
    }

    /// The group as another daemon has left it. Members of which something is missing are left out: for
    /// them it is as if the host had gone.
    ///
    /// # Errors
    /// As for [`Group::new`]; `NotFound` if the daemon's own eventfds are not there.
    pub fn restore(
        region: Arc<OwnedFd>,
        vectors: u16,
        parts: impl IntoIterator<Item = Kept>,
    ) -> io::Result<Self> {
        check(&region, vectors)?;
        let mut own = None;
        let mut members = BTreeMap::new();
        for part in parts {
            if part.bells.len() != usize::from(vectors) || part.id >= MEMBERS_MAX {
                continue;
            }
            if part.id == HOST {
                own = Some(part.bells);
            } else if let Some(socket) = part.socket {
                members.insert(part.id, Member::new(socket, part.bells));
            }
        }
        Ok(Self {
            region,
            vectors,
            own: own.ok_or(io::ErrorKind::NotFound)?,
            members,
            dropped: Vec::new(),
        })
    }

    /// What must be kept, the daemon's own part first. One that is [behind](Group::is_behind) has not
    /// been told everything yet, and nobody else can tell it.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let own = Part {
            id: HOST,
            socket: None,
            bells: &self.own,
        };
        let members = self.members.iter().map(|(&id, member)| Part {
            id,
            socket: Some(member.socket.as_fd()),
            bells: &member.bells,
        });
        core::iter::once(own).chain(members)
    }

    /// A QEMU has connected: gives it the lowest free id and `memory`, a file that is the region, and tells it and the
    /// others everything.
    ///
    /// # Errors
    /// `QuotaExceeded` if there is no id left; `NotConnected` if it has gone already; what eventfd(2) says.
    pub fn join(&mut self, socket: OwnedFd, memory: &Arc<OwnedFd>) -> io::Result<u16> {
        let id = (HOST + 1..MEMBERS_MAX)
            .find(|id| !self.members.contains_key(id))
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        let bells = bells(self.vectors)?;
        for other in self.members.values_mut() {
            other.tell_of(id, &bells);
        }
        let mut member = Member::new(socket, bells.clone());
        member.tell(VERSION, None);
        member.tell(id.into(), None);
        member.tell(MEMORY, Some(memory));
        member.tell_of(HOST, &self.own);
        for (&other, known) in &self.members {
            member.tell_of(other, &known.bells);
        }
        member.tell_of(id, &bells);
        self.members.insert(id, member);
        self.flush();
        if !self.members.contains_key(&id) {
            self.dropped.retain(|&dropped| dropped != id);
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(id)
    }

    /// A member has left, or is to be treated as if it had: closes its socket and tells the others.
    pub fn leave(&mut self, id: u16) {
        if self.members.remove(&id).is_none() {
            return;
        }
        for other in self.members.values_mut() {
            other.tell(id.into(), None);
        }
        self.flush();
    }

    /// Sends what members have room for now. Those that cannot be told any more have left; see
    /// [`Group::dropped`].
    pub fn flush(&mut self) {
        let mut gone = Vec::new();
        for (&id, member) in &mut self.members {
            if member.flush().is_err() {
                gone.push(id);
            }
        }
        for id in gone {
            self.dropped.push(id);
            self.leave(id);
        }
    }

    /// The members that left because they could not be told something, since the last time this was asked.
    pub fn dropped(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.dropped)
    }

    /// Whether a member must read before it can be told the rest: its socket is to be polled for room.
    pub fn is_behind(&self, id: u16) -> bool {
        let member = self.members.get(&id);
        member.is_some_and(|member| !member.outbox.is_empty())
    }

    /// Whether a member whose socket is readable has closed it, or has sent something, which no QEMU does.
    pub fn is_gone(&self, id: u16) -> bool {
        let Some(member) = self.members.get(&id) else {
            return true;
        };
        let said = recv(&member.socket, &mut [0u8; 8], RecvFlags::DONTWAIT);
        !matches!(said, Err(Errno::AGAIN | Errno::INTR))
    }

    /// The socket of a member.
    pub fn socket(&self, id: u16) -> Option<BorrowedFd<'_>> {
        self.members.get(&id).map(|member| member.socket.as_fd())
    }

    /// The eventfd that signals `vector` of member `id`; those of [`HOST`] are for the daemon to poll.
    pub fn bell(&self, id: u16, vector: u16) -> Option<&Arc<OwnedFd>> {
        let bells = match id {
            HOST => &self.own,
            _ => &self.members.get(&id)?.bells,
        };
        bells.get(usize::from(vector))
    }

    /// The members but the daemon.
    pub fn members(&self) -> impl Iterator<Item = u16> + '_ {
        self.members.keys().copied()
    }

    /// The memory of the group.
    pub const fn region(&self) -> &Arc<OwnedFd> {
        &self.region
    }

    /// The vector of ours by which a program of a member wakes the relay.
    pub fn vector_of_port(&self, process: Process) -> u16 {
        1 + u16::try_from(process.0 % u32::from(self.vectors - 1)).unwrap_or(0)
    }

    /// Vectors of each member.
    pub const fn vectors(&self) -> u16 {
        self.vectors
    }
}

#[derive(Debug)]
struct Member {
    socket: OwnedFd,
    bells: Bells,
    outbox: VecDeque<(i64, Option<Arc<OwnedFd>>)>,
}

impl Member {
    const fn new(socket: OwnedFd, bells: Bells) -> Self {
        Self {
            socket,
            bells,
            outbox: VecDeque::new(),
        }
    }

    fn tell(&mut self, number: i64, fd: Option<&Arc<OwnedFd>>) {
        self.outbox.push_back((number, fd.cloned()));
    }

    fn tell_of(&mut self, id: u16, bells: &Bells) {
        for bell in bells {
            self.tell(id.into(), Some(bell));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some((number, fd)) = self.outbox.front() {
            let fds = fd.as_ref().map(AsFd::as_fd);
            match packet::send(&self.socket, &number.to_le_bytes(), fds.as_slice()) {
                Ok(()) => self.outbox.pop_front(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
        }
        if self.outbox.len() > BEHIND_MAX {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

fn check(region: &OwnedFd, vectors: u16) -> io::Result<()> {
    let bytes = u64::try_from(fstat(region)?.st_size).unwrap_or(0);
    if !bytes.is_power_of_two() || vectors == 0 || vectors > VECTORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(())
}

fn bells(vectors: u16) -> io::Result<Bells> {
    let bell = || {
        Ok(Arc::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    };
    (0..vectors).map(|_| bell()).collect()
}

#[cfg(test)]
mod tests;
