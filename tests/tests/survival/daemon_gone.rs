//! Daemons that die, hang, are not there, or speak another version.

use std::os::fd::OwnedFd;
use std::path::Path;

use frontend_drv::client::BUFFER_BYTES;
use frontend_drv::memory;
use rdma_core::Reason;
use rdma_core::control::{Message, Text};
use rdma_core::slot::{ARENA_BYTES, ArenaView, DirectionLock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use rustix::process::Signal;
use viaduct_tests::rig::daemon::{Daemon, wait_readable};
use viaduct_tests::rig::program::{Agent, Form, WATCHDOG};

use crate::duo::{Duo, Way, assert_carried, settle, skipped};

const MIB: usize = 1 << 20;

#[test]
fn killed_with_traffic_running() {
    let mut daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let mut duo = Duo::connected(&form, Way::Ring);
    duo.stream(0, MIB);
    assert_carried(&daemon, 2 * MIB as u64);
    let before = duo.kernel(0);

    // In the middle of a stream, and after it.
    let line = format!("stream 0 {} 5", 64 * MIB);
    duo.server.tell(&line);
    duo.client.tell(&line);
    std::thread::sleep(std::time::Duration::from_millis(20));
    daemon.kill();
    assert_eq!(duo.client.answer(), "ok");
    assert_eq!(duo.server.answer(), "ok");
    duo.stream(0, 8 * MIB);
    assert_eq!(duo.kernel(0), before, "all of it went through the rings");

    // New connections are plain.
    duo.connect(1);
    duo.warm_up(1, Way::Kernel);
    duo.stream(1, MIB);

    // A new daemon accelerates again, in the same programs and in new ones.
    daemon.restart();
    duo.connect(2);
    duo.warm_up(2, Way::Ring);
    duo.stream(2, MIB);
    assert_carried(&daemon, 2 * MIB as u64);
    let mut others = Duo::connected(&form, Way::Ring);
    others.stream(0, MIB);
    assert_carried(&daemon, 4 * MIB as u64);

    // The oldest connection still is what it was.
    duo.stream(0, MIB);
    assert_eq!(duo.kernel(0), before, "all of it went through the rings");
}

/// The slots of an agent's program, mapped; `None` where they cannot be looked at.
fn slots_of(agent: &Agent) -> Option<ArenaView> {
    let directory = format!("/proc/{}/fd", agent.pid().as_raw_nonzero());
    let entries = std::fs::read_dir(directory).ok()?;
    let memory = entries.flatten().find(|entry| {
        std::fs::read_link(entry.path())
            .is_ok_and(|link| link.to_string_lossy().contains("viaduct-slots"))
    })?;
    let memory = std::fs::File::options()
        .read(true)
        .write(true)
        .open(memory.path())
        .ok()?;
    ArenaView::new(memory::map(&memory, 0, ARENA_BYTES).ok()?)
}

#[test]
fn killed_while_it_holds_locks() {
    let mut daemon = Daemon::start();
    let mut duo = Duo::connected(&Form::accelerated(daemon.socket()), Way::Ring);
    let Some(slots) = slots_of(&duo.client) else {
        return skipped("the slots of another process cannot be opened here");
    };
    let slot = slots.slot(0).expect("the first");
    let before = duo.kernel(0);
    for lock in [&slot.tx.lock, &slot.rx.lock] {
        assert_eq!(lock.try_lock(DirectionLock::DAEMON), Ok(()));
    }
    daemon.kill();
    duo.stream(0, MIB);
    assert_eq!(duo.kernel(0), before, "the rings are still there");
}

#[test]
fn absent() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut duo = Duo::connected(
        &Form::accelerated(&directory.path().join("nobody")),
        Way::Kernel,
    );
    duo.stream(0, 4 * MIB);
    duo.client.dismiss();
    duo.server.dismiss();
}

#[test]
fn stopped() {
    let daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let mut old = Duo::connected(&form, Way::Ring);
    daemon.signal(Signal::STOP);
    old.stream(0, 4 * MIB);
    old.connect(1);
    old.warm_up(1, Way::Kernel);
    old.stream(1, 4 * MIB);
    // Connecting to a daemon that does not accept must not block either.
    let mut new = Duo::connected(&form, Way::Kernel);
    new.stream(0, 4 * MIB);
    daemon.signal(Signal::CONT);
    // Whether a connection that waited is upgraded now is up to it; it goes on in any case.
    new.warm_up(0, Way::Any);
    new.stream(0, MIB);
    let mut fresh = Duo::connected(&form, Way::Ring);
    fresh.stream(0, MIB);
}

#[test]
fn killed_between_registration_and_first_use() {
    let mut daemon = Daemon::start();
    let form = Form::accelerated(daemon.socket());
    let mut duo = Duo::new(&form);
    duo.connect(0);
    // One exchange registers both ends; nobody has looked at the answer.
    duo.both("ping 0 1", "pong 0 1");
    settle();
    daemon.kill();
    duo.warm_up(0, Way::Any);
    duo.stream(0, 4 * MIB);
}

#[test]
fn of_another_version() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("d.sock");
    let listener = fake(&path);
    let server = std::thread::spawn(move || {
        let mut greeted = 0;
        // The programs come within their first data calls; both of them, and nobody else.
        while wait_readable(&listener, WATCHDOG) {
            let client = accept_with(&listener, SocketFlags::CLOEXEC).expect("a client");
            let text = Text {
                more: Reason::Version.code(),
                reserved: 0,
            };
            let mut buffer = [0; BUFFER_BYTES];
            let length = Message::Failure(text, "another version")
                .emit(&mut buffer)
                .expect("it fits");
            let _ = rustix::io::write(&client, &buffer[..length]);
            greeted += 1;
            if greeted == 2 {
                break;
            }
        }
        greeted
    });
    let mut duo = Duo::connected(&Form::accelerated(&path), Way::Kernel);
    duo.stream(0, 4 * MIB);
    duo.connect(1);
    duo.stream(1, MIB);
    assert_eq!(server.join().expect("the server"), 2, "both programs asked");
    duo.client.dismiss();
    duo.server.dismiss();
}

/// A socket that is not a daemon's.
fn fake(path: &Path) -> OwnedFd {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket");
    bind(&socket, &SocketAddrUnix::new(path).expect("a short path")).expect("a free path");
    listen(&socket, 16).expect("bound");
    socket
}
