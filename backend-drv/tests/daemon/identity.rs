//! Lies: other people's sockets, other addresses, other kinds of descriptors.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rdma_core::control::{Context, Hello, Message, Register};
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::reason::Reason;
use rdma_core::slot::ARENA_BYTES;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::client::{
    Daemon, Program, Wire, eventfd, netlink, path_of, registration, slot_memory, tcp_pair,
};

/// Registers `fd` itself, not its path.
fn register_fd(program: &Program, fd: impl AsFd, body: &Register) {
    program.wire.send(&Message::Register(*body), &[fd.as_fd()]);
}

#[test]
fn a_lie_about_the_addresses_is_refused() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let (client, _server) = tcp_pair();
    let (other, _other_server) = tcp_pair();
    let honest = registration(&client, 1);
    let lies: [fn(&mut Register); 6] = [
        |body| body.own_port ^= 1,
        |body| body.far_port ^= 1,
        |body| body.own_addr[3] ^= 2,
        |body| body.far_addr[3] ^= 2,
        |body| body.cookie ^= 1 << 40,
        |body| body.family = 6,
    ];
    for lie in lies {
        let mut body = honest;
        lie(&mut body);
        program.register(0, &client, &body);
        assert_eq!(program.expect_refusal(0), Reason::Identity);
    }
    // A real connection, but not the one whose inode is shown.
    program.register(0, &other, &honest);
    assert_eq!(program.expect_refusal(0), Reason::Identity);
    // And the truth, with the same sockets.
    program.register(0, &client, &honest);
    assert!(program.sync().is_empty());
}

#[test]
fn only_the_path_of_a_tcp_connection_will_do() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let (client, _server) = tcp_pair();
    let body = registration(&client, 1);
    let directory = tempfile::tempdir().unwrap();
    let socket_file = directory.path().join("s");
    let _unix = UnixListener::bind(&socket_file).unwrap();
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let flags = rustix::fs::OFlags::PATH;
    let wrong: Vec<OwnedFd> = vec![
        // The connection itself: the daemon must not hold it.
        client.try_clone().unwrap().into(),
        path_of(UdpSocket::bind("127.0.0.1:0").unwrap()),
        path_of(TcpListener::bind("127.0.0.1:0").unwrap()),
        path_of(&pipe),
        path_of(std::fs::File::open("/proc/self/exe").unwrap()),
        path_of(eventfd()),
        pipe,
        std::fs::File::open("/dev/null").unwrap().into(),
        rustix::fs::open(&socket_file, flags, rustix::fs::Mode::empty()).unwrap(),
    ];
    for fd in wrong {
        register_fd(&program, fd, &Register { slot: 5, ..body });
        assert_eq!(program.expect_refusal(5), Reason::Identity);
    }
}

#[test]
fn a_socket_that_is_not_connected_is_refused() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, _server) = tcp_pair();
    let mut body = registration(&client, 2);
    body.own_port = listener.local_addr().unwrap().port();
    body.far_port = 1;
    body.cookie = 0;
    program.register(0, &listener, &body);
    assert_eq!(program.expect_refusal(0), Reason::Identity);
}

#[test]
fn an_end_that_has_been_shut_is_not_established() {
    let daemon = Daemon::start();
    let mut program = daemon.program();
    let (client, _server) = tcp_pair();
    let body = registration(&client, 1);
    client.shutdown(std::net::Shutdown::Write).unwrap();
    program.register(0, &client, &body);
    assert_eq!(program.expect_refusal(0), Reason::NotEstablished);
}

#[test]
fn a_hello_with_other_descriptors_is_refused() {
    let daemon = Daemon::start();
    let hello = Message::Hello(Hello {
        layout_version: LAYOUT_VERSION,
        ring_log2: 22,
        session: 0,
    });
    let memfd = |bytes: usize, seals: SealFlags| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&memory, bytes as u64).unwrap();
        rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
        memory
    };
    let sealed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let udp = || -> OwnedFd { UdpSocket::bind("127.0.0.1:0").unwrap().into() };
    let route = || {
        rustix::net::socket_with(
            rustix::net::AddressFamily::NETLINK,
            rustix::net::SocketType::RAW,
            rustix::net::SocketFlags::empty(),
            None,
        )
        .unwrap()
    };
    let file = tempfile::tempfile().unwrap();
    file.set_len(ARENA_BYTES as u64).unwrap();
    let wrong: Vec<[OwnedFd; 2]> = vec![
        [
            memfd(ARENA_BYTES, SealFlags::SHRINK | SealFlags::GROW),
            netlink(),
        ],
        [
            memfd(ARENA_BYTES, SealFlags::GROW | SealFlags::SEAL),
            netlink(),
        ],
        [memfd(ARENA_BYTES, sealed | SealFlags::WRITE), netlink()],
        [memfd(ARENA_BYTES - 4096, sealed), netlink()],
        [memfd(ARENA_BYTES + 4096, sealed), netlink()],
        // Right, but without its first word.
        [memfd(ARENA_BYTES, sealed), netlink()],
        [file.into(), netlink()],
        [netlink(), slot_memory()],
        [eventfd(), netlink()],
        [slot_memory(), udp()],
        [slot_memory(), route()],
        [slot_memory(), eventfd()],
    ];
    for (index, [memory, socket]) in wrong.iter().enumerate() {
        let mut wire = Wire::connect(&daemon.socket);
        wire.send(&hello, &[memory.as_fd(), socket.as_fd()]);
        let (reason, text) = wire.expect_failure();
        assert!(
            matches!(reason, Reason::Identity | Reason::NoMemory),
            "{index}: {reason} {text}"
        );
    }
    daemon.program().sync();
}

#[test]
fn huge_pages_are_not_accepted() {
    let daemon = Daemon::start();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let Ok(memory) = rustix::fs::memfd_create("test", flags) else {
        println!("skipped: no huge pages here");
        return;
    };
    let size = (ARENA_BYTES as u64).next_multiple_of(2 << 20);
    if rustix::fs::ftruncate(&memory, size).is_err() {
        println!("skipped: no huge pages here");
        return;
    }
    let sealed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&memory, sealed).unwrap();
    let hello = Hello {
        layout_version: LAYOUT_VERSION,
        ring_log2: 22,
        session: 0,
    };
    let mut wire = Wire::connect(&daemon.socket);
    wire.send(&Message::Hello(hello), &[memory.as_fd(), netlink().as_fd()]);
    assert_eq!(wire.expect_failure().0, Reason::Identity);
}

#[test]
fn a_doorbell_must_be_an_eventfd() {
    let daemon = Daemon::start();
    let (pipe, writer) = rustix::pipe::pipe().unwrap();
    for fd in [pipe, writer, netlink(), slot_memory()] {
        let mut program = daemon.program();
        let context = Context {
            context: 0,
            reserved: 0,
        };
        program.wire.send(&Message::Context(context), &[fd.as_fd()]);
        assert_eq!(program.wire.expect_failure().0, Reason::Identity);
    }
}

#[test]
fn a_client_that_reads_its_own_answers_is_not_believed() {
    use rustix::net::{RecvFlags, SendFlags, netlink::SocketAddrNetlink};
    let daemon = Daemon::start();
    let mut program = daemon.program();
    // Old answers lie on the socket, and it is full of them.
    let (client, server) = tcp_pair();
    for _ in 0..10_000 {
        let _ = rustix::net::sendto(
            &program.netlink,
            &[0; 16],
            SendFlags::DONTWAIT,
            &SocketAddrNetlink::new(0, 0),
        );
    }
    program.register(0, &client, &registration(&client, 1));
    assert!(program.sync().is_empty());
    let _ = rustix::net::recv(&program.netlink, &mut [0u8; 16][..], RecvFlags::DONTWAIT);
    program.register(1, &server, &registration(&server, 2));
    program.expect_pair();
}
