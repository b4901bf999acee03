//! Members of a region that have no machine around them, against the daemon's side of the protocol.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::thread;

use backend_drv::vm::server::HOST;
use frontend_drv::device::{Choice, Device, DeviceError, Options, open};
use rustix::fs::fstat;
use rustix::io::{pread, pwrite, write};
use viaduct_tests::vm::region::{Region, bell, is_quiet, rings};

const VECTORS: u16 = 4;
const BYTES: u64 = 1 << 20;

/// A new region.
fn region() -> Region {
    Region::new(BYTES, VECTORS).expect("a region")
}

/// One that joins, while the group answers.
fn join(region: &mut Region) -> Result<Box<dyn Device>, DeviceError> {
    let choice = Choice::Socket(region.socket());
    let joining = thread::spawn(move || {
        open(&Options {
            choice,
            ..Options::default()
        })
    });
    region.accept().expect("a member");
    joining.join().expect("no panic")
}

#[test]
fn a_member_shares_the_memory() {
    let mut region = region();
    let member = join(&mut region).unwrap();
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
    let mut region = region();
    let member = join(&mut region).unwrap();
    for vector in 0..VECTORS {
        member.ring(HOST, vector);
        assert!(rings(region.group.bell(HOST, vector).unwrap()).unwrap());
        let bound = bell().unwrap();
        member.bind(vector, bound.as_fd()).unwrap();
        write(region.group.bell(1, vector).unwrap(), &1u64.to_ne_bytes()).unwrap();
        assert!(rings(&bound).unwrap());
    }
    let refused = member.bind(VECTORS, bell().unwrap().as_fd()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    // Nobody's; nothing happens.
    member.ring(HOST, VECTORS);
    member.ring(17, 0);
}

#[test]
fn what_rang_before_the_binding_is_not_lost() {
    let mut region = region();
    let member = join(&mut region).unwrap();
    let (first, second) = (bell().unwrap(), bell().unwrap());
    write(region.group.bell(1, 2).unwrap(), &1u64.to_ne_bytes()).unwrap();
    member.bind(2, first.as_fd()).unwrap();
    assert!(rings(&first).unwrap());
    member.bind(2, second.as_fd()).unwrap();
    write(region.group.bell(1, 2).unwrap(), &1u64.to_ne_bytes()).unwrap();
    assert!(rings(&second).unwrap() && is_quiet(&first).unwrap());
}

#[test]
fn members_ring_each_other_whoever_came_first() {
    let mut region = region();
    let first = join(&mut region).unwrap();
    let second = join(&mut region).unwrap();
    assert_eq!((first.id(), second.id()), (1, 2));
    for (from, to) in [(&first, &second), (&second, &first)] {
        let bound = bell().unwrap();
        to.bind(1, bound.as_fd()).unwrap();
        from.ring(to.id(), 1);
        assert!(rings(&bound).unwrap());
    }
    // Its own vectors too.
    let own = bell().unwrap();
    first.bind(3, own.as_fd()).unwrap();
    first.ring(first.id(), 3);
    assert!(rings(&own).unwrap());

    drop(second);
    assert!(region.group.is_gone(2));
    region.group.leave(2);
    first.ring(2, 1);
    let again = join(&mut region).unwrap();
    assert_eq!(again.id(), 2);
    let bound = bell().unwrap();
    again.bind(1, bound.as_fd()).unwrap();
    first.ring(2, 1);
    assert!(rings(&bound).unwrap());
}

#[test]
fn a_member_sees_that_its_host_has_gone() {
    let mut region = region();
    let member = join(&mut region).unwrap();
    assert!(member.is_present() && is_quiet(member.news().unwrap()).unwrap());
    region.group.leave(1);
    assert!(!is_quiet(member.news().unwrap()).unwrap());
    assert!(!member.is_present());
}

#[test]
fn what_is_not_a_server_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let absent = Choice::Socket(directory.path().join("absent"));
    assert!(matches!(
        open(&Options {
            choice: absent,
            ..Options::default()
        }),
        Err(DeviceError::System(..))
    ));
    for said in [&b""[..], &7i64.to_le_bytes(), &[0u8; 16][..], b"abc"] {
        let socket = directory.path().join("socket");
        let choice = Choice::Socket(socket);
        let joining = thread::spawn(move || {
            open(&Options {
                choice,
                ..Options::default()
            })
            .map(|_| ())
        });
        let (socket, _) = listener.accept().unwrap();
        write(&socket, said).unwrap();
        drop(socket);
        let error = joining.join().unwrap().unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
