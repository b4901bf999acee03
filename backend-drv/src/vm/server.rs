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
mod tests {
    use std::io::IoSliceMut;
    use std::mem::MaybeUninit;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, SocketFlags, SocketType, recvmsg,
        socketpair,
    };

    use super::*;

    const VECTORS: u16 = 3;

    fn memory(bytes: u64) -> Arc<OwnedFd> {
        let memory = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, bytes).unwrap();
        Arc::new(memory)
    }

    fn group() -> Group {
        Group::new(memory(1 << 20), VECTORS).unwrap()
    }

    fn pair() -> (OwnedFd, Qemu) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        (ours, Qemu(its))
    }

    fn joined(group: &mut Group) -> (u16, Qemu) {
        let (socket, qemu) = pair();
        (join(group, socket).unwrap(), qemu)
    }

    fn join(group: &mut Group, socket: OwnedFd) -> io::Result<u16> {
        let memory = Arc::clone(group.region());
        group.join(socket, &memory)
    }

    /// The other end of a member's socket.
    struct Qemu(OwnedFd);

    impl Qemu {
        fn try_next(&self) -> Option<(i64, Option<OwnedFd>)> {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 8];
            let room = &mut [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(&self.0, room, &mut control, flags) {
                Err(Errno::AGAIN) => return None,
                got => got.unwrap(),
            };
            assert_eq!(got.bytes, 8);
            let mut fds = Vec::new();
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = part {
                    fds.extend(rights);
                }
            }
            assert!(fds.len() <= 1);
            Some((i64::from_le_bytes(bytes), fds.pop()))
        }

        fn next(&self) -> (i64, Option<OwnedFd>) {
            self.try_next().expect("a message")
        }

        /// The next messages are the eventfds of a member, in order.
        fn hears_of(&self, group: &Group, id: u16) {
            for vector in 0..group.vectors() {
                let (number, bell) = self.next();
                assert_eq!(number, i64::from(id));
                rings(bell.unwrap(), group.bell(id, vector).unwrap());
            }
        }

        /// The next messages are a greeting; others it is told of come between `HOST` and its own.
        fn is_greeted(&self, group: &Group, id: u16, others: &[u16]) {
            assert!(matches!(self.next(), (VERSION, None)));
            let (own, fd) = self.next();
            assert_eq!((own, fd.is_none()), (id.into(), true));
            let (number, memory) = self.next();
            assert_eq!(number, -1);
            assert_eq!(inode(memory.unwrap()), inode(group.region()));
            self.hears_of(group, HOST);
            for &other in others {
                self.hears_of(group, other);
            }
            self.hears_of(group, id);
            assert!(self.try_next().is_none());
        }
    }

    fn inode(file: impl AsFd) -> u64 {
        fstat(file).unwrap().st_ino
    }

    fn is_readable(fd: impl AsFd) -> bool {
        let mut entry = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut entry, PollTimeout::ZERO).unwrap() == 1
    }

    /// What is written to `from` arrives at `to`, and nothing was there before.
    fn rings(from: impl AsFd, to: impl AsFd) {
        assert!(!is_readable(&to));
        rustix::io::write(from, &1u64.to_ne_bytes()).unwrap();
        assert!(is_readable(&to));
        assert_eq!(rustix::io::read(to, &mut [0u8; 8]), Ok(8));
    }

    #[test]
    fn a_member_is_told_memory_host_and_own_vectors() {
        let mut group = group();
        let (id, qemu) = joined(&mut group);
        assert_eq!(id, 1);
        qemu.is_greeted(&group, 1, &[]);
        assert!(!group.is_gone(1) && !group.is_behind(1));
    }

    #[test]
    fn members_are_told_of_each_other() {
        let mut group = group();
        let (_, first) = joined(&mut group);
        first.is_greeted(&group, 1, &[]);
        let (id, second) = joined(&mut group);
        assert_eq!(id, 2);
        first.hears_of(&group, 2);
        assert!(first.try_next().is_none());
        second.is_greeted(&group, 2, &[1]);
        assert_eq!(group.members().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn who_leaves_is_told_to_the_others_and_its_id_is_free() {
        let mut group = group();
        let (_, first) = joined(&mut group);
        let (_, second) = joined(&mut group);
        let (_, third) = joined(&mut group);
        for qemu in [&first, &third] {
            while qemu.try_next().is_some() {}
        }
        drop(second);
        assert!(group.is_gone(2) && !group.is_gone(1));
        group.leave(2);
        assert!(group.bell(2, 0).is_none() && group.socket(2).is_none());
        for qemu in [&first, &third] {
            assert!(matches!(qemu.next(), (2, None)));
            assert!(qemu.try_next().is_none());
        }
        let (id, again) = joined(&mut group);
        assert_eq!(id, 2);
        again.is_greeted(&group, 2, &[1, 3]);
        assert!(group.dropped().is_empty());
    }

    #[test]
    fn who_says_something_is_gone() {
        let mut group = group();
        let (id, qemu) = joined(&mut group);
        rustix::io::write(&qemu.0, b"hello").unwrap();
        assert!(group.is_gone(id));
    }

    #[test]
    fn who_reads_late_is_told_everything_in_the_end() {
        let mut group = Group::new(memory(4096), 1000).unwrap();
        let (id, qemu) = joined(&mut group);
        assert!(group.is_behind(id));
        let mut heard = 0;
        while group.is_behind(id) {
            while qemu.try_next().is_some() {
                heard += 1;
            }
            group.flush();
        }
        while qemu.try_next().is_some() {
            heard += 1;
        }
        assert_eq!(heard, 3 + 2 * 1000);
        assert!(group.dropped().is_empty());
    }

    #[test]
    fn who_cannot_be_told_is_dropped() {
        let mut group = group();
        let (socket, qemu) = pair();
        drop(qemu);
        assert_eq!(
            join(&mut group, socket).unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
        assert!(group.dropped().is_empty());

        let (first, qemu) = joined(&mut group);
        drop(qemu);
        let (second, qemu) = joined(&mut group);
        assert_eq!((first, second), (1, 2));
        assert_eq!(group.dropped(), [1]);
        assert_eq!(group.members().collect::<Vec<_>>(), [2]);
        // It has been told of the other before that turned out to be gone.
        qemu.next();
        let mut last = None;
        while let Some((number, fd)) = qemu.try_next() {
            last = Some((number, fd.is_none()));
        }
        assert_eq!(last, Some((1, true)));
    }

    #[test]
    fn there_are_only_so_many_ids() {
        let mut group = group();
        let all: Vec<_> = (1..MEMBERS_MAX).map(|_| joined(&mut group)).collect();
        assert_eq!(all.last().unwrap().0, MEMBERS_MAX - 1);
        let (socket, _qemu) = pair();
        assert_eq!(
            join(&mut group, socket).unwrap_err().kind(),
            io::ErrorKind::QuotaExceeded
        );
    }

    #[test]
    fn another_daemon_goes_on() {
        let mut group = group();
        let (_, first) = joined(&mut group);
        let (_, second) = joined(&mut group);
        for qemu in [&first, &second] {
            while qemu.try_next().is_some() {}
        }
        let kept: Vec<_> = group
            .parts()
            .map(|part| Kept {
                id: part.id,
                socket: part
                    .socket
                    .map(|socket| socket.try_clone_to_owned().unwrap()),
                bells: part.bells.to_vec(),
            })
            .collect();
        let old_bell = Arc::clone(group.bell(2, 1).unwrap());
        let region = Arc::clone(group.region());
        drop(group);

        let mut group = Group::restore(region, VECTORS, kept).unwrap();
        rings(group.bell(2, 1).unwrap(), old_bell);
        assert!(first.try_next().is_none() && !group.is_gone(1));
        let (id, third) = joined(&mut group);
        assert_eq!(id, 3);
        first.hears_of(&group, 3);
        third.is_greeted(&group, 3, &[1, 2]);

        let nobody = Group::restore(memory(4096), VECTORS, []);
        assert_eq!(nobody.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_cannot_be_a_device_is_refused() {
        for (bytes, vectors) in [
            (0, 1),
            (3 << 20, 1),
            (1 << 20, 0),
            (1 << 20, VECTORS_MAX + 1),
        ] {
            let refused = Group::new(memory(bytes), vectors).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
