//! A group and the QEMUs that are its members.

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
