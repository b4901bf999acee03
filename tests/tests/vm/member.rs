//! Members of a region that have no machine around them, against the daemon's [`Group`].

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use frontend_drv::device::{Choice, Device, DeviceError, Options, open};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::io::{pread, pwrite, read, write};

use backend_drv::vm::server::{Group, HOST};

const VECTORS: u16 = 4;
const BYTES: u64 = 1 << 20;

/// A region, its group, and where its members connect.
struct Region {
    group: Group,
    listener: UnixListener,
    directory: tempfile::TempDir,
}

impl Region {
    fn new() -> Self {
        let memory = memfd_create("region", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&memory, BYTES).expect("memory");
        let directory = tempfile::tempdir().expect("a directory");
        Self {
            group: Group::new(Arc::new(memory), VECTORS).expect("a group"),
            listener: UnixListener::bind(directory.path().join("socket")).expect("a listener"),
            directory,
        }
    }

    /// One that joins, while the group answers.
    fn join(&mut self) -> Result<Box<dyn Device>, DeviceError> {
        let choice = Choice::Socket(self.directory.path().join("socket"));
        let joining = thread::spawn(move || open(&Options { choice }));
        let (socket, _) = self.listener.accept().expect("a member");
        self.group.join(socket.into()).expect("room");
        joining.join().expect("no panic")
    }
}

fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// Waits until `bell` rings, and takes it back.
fn rings(bell: impl AsFd) -> bool {
    let limit = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let mut entry = [PollFd::new(&bell, PollFlags::IN)];
    poll(&mut entry, Some(&limit)).expect("poll") == 1 && read(&bell, &mut [0u8; 8]).is_ok()
}

fn is_quiet(bell: impl AsFd) -> bool {
    let mut entry = [PollFd::new(&bell, PollFlags::IN)];
    poll(&mut entry, Some(&Timespec::default())).expect("poll") == 0
}

#[test]
fn a_member_shares_the_memory() {
    let mut region = Region::new();
    let member = region.join().unwrap();
    assert_eq!((member.id(), member.vectors()), (1, VECTORS));
    assert_eq!(member.memory_bytes(), BYTES);
    assert!(member.register().is_none());
    assert_eq!(
        fstat(member.memory()).unwrap().st_ino,
        fstat(region.group.region()).unwrap().st_ino
    );
    pwrite(member.memory(), b"hello", 4096).unwrap();
    let mut seen = [0; 5];
    pread(region.group.region(), &mut seen, 4096).unwrap();
    assert_eq!(&seen, b"hello");
}

#[test]
fn doorbells_ring_both_ways() {
    let mut region = Region::new();
    let member = region.join().unwrap();
    for vector in 0..VECTORS {
        member.ring(HOST, vector);
        assert!(rings(region.group.bell(HOST, vector).unwrap()));
        let bound = bell();
        member.bind(vector, bound.as_fd()).unwrap();
        write(region.group.bell(1, vector).unwrap(), &1u64.to_ne_bytes()).unwrap();
        assert!(rings(&bound));
    }
    let refused = member.bind(VECTORS, bell().as_fd()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    // Nobody's; nothing happens.
    member.ring(HOST, VECTORS);
    member.ring(17, 0);
}

#[test]
fn what_rang_before_the_binding_is_not_lost() {
    let mut region = Region::new();
    let member = region.join().unwrap();
    let (first, second) = (bell(), bell());
    write(region.group.bell(1, 2).unwrap(), &1u64.to_ne_bytes()).unwrap();
    member.bind(2, first.as_fd()).unwrap();
    assert!(rings(&first));
    member.bind(2, second.as_fd()).unwrap();
    write(region.group.bell(1, 2).unwrap(), &1u64.to_ne_bytes()).unwrap();
    assert!(rings(&second) && is_quiet(&first));
}

#[test]
fn members_ring_each_other_whoever_came_first() {
    let mut region = Region::new();
    let first = region.join().unwrap();
    let second = region.join().unwrap();
    assert_eq!((first.id(), second.id()), (1, 2));
    for (from, to) in [(&first, &second), (&second, &first)] {
        let bound = bell();
        to.bind(1, bound.as_fd()).unwrap();
        from.ring(to.id(), 1);
        assert!(rings(&bound));
    }
    // Its own vectors too.
    let own = bell();
    first.bind(3, own.as_fd()).unwrap();
    first.ring(first.id(), 3);
    assert!(rings(&own));

    drop(second);
    assert!(region.group.is_gone(2));
    region.group.leave(2);
    first.ring(2, 1);
    let again = region.join().unwrap();
    assert_eq!(again.id(), 2);
    let bound = bell();
    again.bind(1, bound.as_fd()).unwrap();
    first.ring(2, 1);
    assert!(rings(&bound));
}

#[test]
fn a_member_sees_that_its_host_has_gone() {
    let mut region = Region::new();
    let member = region.join().unwrap();
    assert!(member.is_present() && is_quiet(member.news().unwrap()));
    region.group.leave(1);
    assert!(!is_quiet(member.news().unwrap()));
    assert!(!member.is_present());
}

#[test]
fn what_is_not_a_server_is_refused() {
    let region = Region::new();
    let absent = Choice::Socket(region.directory.path().join("absent"));
    assert!(matches!(
        open(&Options { choice: absent }),
        Err(DeviceError::System(..))
    ));
    for said in [&b""[..], &7i64.to_le_bytes(), &[0u8; 16][..], b"abc"] {
        let choice = Choice::Socket(region.directory.path().join("socket"));
        let joining = thread::spawn(move || open(&Options { choice }).map(|_| ()));
        let (socket, _) = region.listener.accept().unwrap();
        write(&socket, said).unwrap();
        drop(socket);
        let error = joining.join().unwrap().unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
