//! Who may share memory: users, user namespaces, domains, tenants.

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rdma_core::control::Register;
use rdma_core::reason::Reason;

use crate::client::{Daemon, Program, registration, tcp_pair};
use crate::helper::{Helper, Start};

fn is_root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// What becomes of a connection between us and a program started so.
fn outcome(daemon: &Daemon, start: &Start<'_>) -> Option<String> {
    let Some(mut helper) = Helper::start(&daemon.socket, start) else {
        println!("skipped: no such process can be had here");
        return Some("skipped".to_owned());
    };
    let mut program = daemon.program();
    program.register(0, &helper.server, &registration(&helper.server, 2));
    let outcome = helper.outcome();
    match outcome.as_deref() {
        None => assert_eq!(program.expect_pair().0.relayed, 0),
        Some("relayed") => assert_eq!(program.expect_pair().0.relayed, 1),
        Some(reason) => assert_eq!(program.expect_refusal(0).name(), reason),
    }
    helper.finish();
    outcome
}

#[test]
fn another_user_is_not_trusted() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::start();
    let start = Start {
        uid: Some(65_534),
        ..Start::default()
    };
    let outcome = outcome(&daemon, &start);
    assert!(matches!(outcome.as_deref(), Some("relayed" | "skipped")));
    assert_eq!(self::outcome(&daemon, &Start::default()), None);
}

#[test]
fn without_a_relay_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::with_config("relay_untrusted = false");
    let start = Start {
        uid: Some(65_534),
        ..Start::default()
    };
    let outcome = outcome(&daemon, &start);
    assert!(matches!(outcome.as_deref(), Some("untrusted" | "skipped")));
}

#[test]
fn another_user_namespace_is_not_trusted() {
    let daemon = Daemon::start();
    let start = Start {
        wrapper: &["unshare", "--user", "--map-root-user"],
        ..Start::default()
    };
    let outcome = outcome(&daemon, &start);
    assert!(matches!(outcome.as_deref(), Some("relayed" | "skipped")));
}

#[test]
fn a_tenant_may_have_several_users() {
    if !is_root() {
        return;
    }
    let daemon = Daemon::with_config("[[domain]]\nname = \"host\"\ntenant = \"us\"");
    let start = Start {
        uid: Some(65_534),
        ..Start::default()
    };
    let outcome = outcome(&daemon, &start);
    assert!(matches!(outcome.as_deref(), None | Some("skipped")));
}

/// A thread in a network namespace of its own, which has both addresses.
struct Island {
    path: String,
    orders: Option<Sender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Order = Box<dyn FnOnce() + Send>;

const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

impl Island {
    fn new() -> Option<Self> {
        let (orders, queue): (Sender<Order>, Receiver<Order>) = channel();
        let (ready, started) = channel();
        let thread = thread::spawn(move || {
            let good = unshare(CloneFlags::CLONE_NEWNET).is_ok() && {
                let ip = |args: &str| {
                    Command::new("ip")
                        .args(args.split(' '))
                        .status()
                        .is_ok_and(|status| status.success())
                };
                ip("link set lo up")
                    && ADDRESSES
                        .iter()
                        .all(|addr| ip(&format!("addr add {addr}/32 dev lo")))
            };
            let me = std::fs::canonicalize("/proc/thread-self").unwrap();
            ready.send(good.then_some(me)).unwrap();
            for order in queue {
                order();
            }
        });
        let path = started.recv().unwrap()?;
        Some(Self {
            path: format!("{}/ns/net", path.display()),
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    fn run<T: Send + 'static>(&self, order: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, receive) = channel();
        let order = Box::new(move || send.send(order()).unwrap());
        self.orders.as_ref().unwrap().send(order).unwrap();
        receive.recv().unwrap()
    }

    /// A connection between the two addresses, with the same ports on every island.
    fn connection(&self, server_port: u16) -> (TcpStream, TcpStream) {
        self.run(move || {
            let listener = TcpListener::bind((ADDRESSES[1], server_port)).unwrap();
            let client = socket_at(ADDRESSES[0], server_port - 1, ADDRESSES[1], server_port);
            let (server, _) = listener.accept().unwrap();
            (client, server)
        })
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        self.orders.take();
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

fn socket_at(from: &str, from_port: u16, to: &str, to_port: u16) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType};
    use std::net::SocketAddrV4;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let addr = |ip: &str, port| SocketAddrV4::new(ip.parse().unwrap(), port);
    rustix::net::bind(&socket, &addr(from, from_port)).unwrap();
    rustix::net::connect(&socket, &addr(to, to_port)).unwrap();
    socket.into()
}

fn domain(name: &str, island: &Island, address: &str, more: &str) -> String {
    format!(
        "[[domain]]\nname = \"{name}\"\nnetns = \"{}\"\naddresses = [\"{address}\"]\n{more}\n",
        island.path
    )
}

/// Two islands, a daemon configured for them, and the ends that would be one connection if the
/// islands were joined.
struct Archipelago {
    islands: [Island; 2],
    daemon: Daemon,
}

impl Archipelago {
    fn new(more: [&str; 2]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let islands = [Island::new(), Island::new()];
        let [Some(one), Some(other)] = islands else {
            println!("skipped: no network namespaces, or no ip command");
            return None;
        };
        let config = domain("one", &one, ADDRESSES[0], more[0])
            + &domain("other", &other, ADDRESSES[1], more[1]);
        Some(Self {
            daemon: Daemon::with_config(&config),
            islands: [one, other],
        })
    }

    fn program(&self, island: usize) -> Program {
        let socket = self.daemon.socket.clone();
        self.islands[island].run(move || Program::hello(&socket, 0))
    }
}

fn register(program: &Program, slot: u32, socket: &TcpStream, side: u8) {
    let body: Register = registration(socket, side);
    program.register(slot, socket, &body);
}

#[test]
fn ends_in_two_domains_pair_when_their_counts_agree() {
    let Some(world) = Archipelago::new(["", ""]) else {
        return;
    };
    let (mut one, mut other) = (world.program(0), world.program(1));
    // Nothing was sent on either: as far as anybody can tell they are one connection.
    let (client, _far_server) = world.islands[0].connection(7001);
    let (_far_client, server) = world.islands[1].connection(7001);
    register(&one, 0, &client, 1);
    register(&other, 0, &server, 2);
    one.expect_pair();
    other.expect_pair();
}

#[test]
fn different_streams_with_the_same_addresses_are_a_mismatch() {
    use std::io::{Read, Write};
    let Some(world) = Archipelago::new(["", ""]) else {
        return;
    };
    let (mut one, mut other) = (world.program(0), world.program(1));
    let (mut client, mut far_server) = world.islands[0].connection(7001);
    let (_far_client, server) = world.islands[1].connection(7001);
    client.write_all(&[0; 100]).unwrap();
    far_server.read_exact(&mut [0; 100]).unwrap();
    register(&one, 0, &client, 1);
    register(&other, 0, &server, 2);
    assert_eq!(one.expect_refusal(0), Reason::Mismatch);
    assert_eq!(other.expect_refusal(0), Reason::Mismatch);
}

#[test]
fn an_address_that_the_domain_does_not_own_counts_for_nothing() {
    let Some(world) = Archipelago::new(["", ""]) else {
        return;
    };
    let (mut one, mut other) = (world.program(0), world.program(1));
    // The wrong way round: each has the other's address.
    let (_client, server) = world.islands[0].connection(7001);
    let (client, _server) = world.islands[1].connection(7001);
    register(&one, 0, &server, 2);
    register(&other, 0, &client, 1);
    assert!(one.sync().is_empty() && other.sync().is_empty());
    // But inside one namespace it pairs as everywhere.
    let (client, server) = world.islands[0].connection(7003);
    register(&one, 1, &client, 1);
    register(&one, 2, &server, 2);
    one.expect_pair();
    one.expect_pair();
}

#[test]
fn without_a_domain_namespaces_do_not_mix() {
    if !is_root() {
        return;
    }
    let (Some(one), Some(other)) = (Island::new(), Island::new()) else {
        println!("skipped: no network namespaces, or no ip command");
        return;
    };
    let world = Archipelago {
        islands: [one, other],
        daemon: Daemon::start(),
    };
    let (mut one, mut other) = (world.program(0), world.program(1));
    let (client, _far_server) = world.islands[0].connection(7001);
    let (_far_client, server) = world.islands[1].connection(7001);
    register(&one, 0, &client, 1);
    register(&other, 0, &server, 2);
    assert!(one.sync().is_empty() && other.sync().is_empty());
    // A namespace that is not ours cannot be claimed: the socket is looked up where it is not.
    let mut here = world.daemon.program();
    register(&here, 0, &server, 2);
    assert_eq!(here.expect_refusal(0), Reason::Identity);
    let (own_client, _own_server) = tcp_pair();
    register(&one, 1, &own_client, 1);
    assert_eq!(one.expect_refusal(1), Reason::Identity);
}

#[test]
fn tenants_are_kept_apart() {
    let Some(world) = Archipelago::new(["tenant = \"a\"", "tenant = \"b\""]) else {
        return;
    };
    let (mut one, mut other) = (world.program(0), world.program(1));
    let (client, _far_server) = world.islands[0].connection(7001);
    let (_far_client, server) = world.islands[1].connection(7001);
    register(&one, 0, &client, 1);
    register(&other, 0, &server, 2);
    let (near, _) = one.expect_pair();
    let (far, _) = other.expect_pair();
    assert_eq!((near.relayed, far.relayed), (1, 1));
    assert_ne!(near.arena, far.arena, "they share no memory");
}

#[test]
fn a_domain_pays_for_its_memory() {
    let Some(world) = Archipelago::new(["memory_bytes = 1000", ""]) else {
        return;
    };
    let (mut one, mut other) = (world.program(0), world.program(1));
    let (client, _far_server) = world.islands[0].connection(7001);
    let (_far_client, server) = world.islands[1].connection(7001);
    register(&one, 0, &client, 1);
    register(&other, 0, &server, 2);
    assert_eq!(one.expect_refusal(0), Reason::Quota);
    assert_eq!(other.expect_refusal(0), Reason::Quota);
}
