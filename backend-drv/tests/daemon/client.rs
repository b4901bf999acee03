//! A program's side of the control protocol, and a tool's.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use backend_drv::memory::Mapping;
use backend_drv::packet::{self, Inbox};
use backend_drv::shared::{SlotArena, sealed_memory};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rdma_core::control::{
    Context, Hello, MESSAGE_MAX, Message, Paired, Query, Register, Revoke, SlotRef, Welcome, parse,
};
use rdma_core::event::EVENT_BYTES;
use rdma_core::layout::{
    EndState, EndWaits, LAYOUT_VERSION, ProducerWords, RING_LOG2_MIN, end_offset, ring_offset,
};
use rdma_core::reason::Reason;
use rdma_core::ring::{RxCursor, TxCursor};
use rdma_core::slot::{ARENA_BYTES, ARENA_MAGIC, RxState, Slot, Stage, TxState};
use rdma_core::sync::Ordering;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub(crate) use crate::server::{Daemon, VIADUCTD, WATCHDOG, retry};

/// A message and its descriptors; text lives as long as the test.
pub(crate) type Incoming = (Message<'static>, Vec<OwnedFd>);

/// A control socket.
pub(crate) struct Wire {
    pub(crate) socket: OwnedFd,
    inbox: Inbox,
}

impl Wire {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::try_connect(path).unwrap()
    }

    pub(crate) fn try_connect(path: &Path) -> std::io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self {
            socket,
            inbox: Inbox::new(),
        })
    }

    pub(crate) fn send(&self, message: &Message<'_>, fds: &[BorrowedFd<'_>]) {
        let mut buffer = vec![0; MESSAGE_MAX];
        let length = message.emit(&mut buffer).unwrap();
        self.send_bytes(&buffer[..length], fds);
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.try_send_bytes(bytes, fds).unwrap();
    }

    pub(crate) fn try_send_bytes(
        &self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> std::io::Result<()> {
        loop {
            match packet::send(&self.socket, bytes, fds) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT);
                }
                other => return other,
            }
        }
    }

    fn wait(&self, what: PollFlags) {
        let mut fds = [PollFd::new(self.socket.as_fd(), what)];
        let timeout = PollTimeout::try_from(WATCHDOG).unwrap();
        assert_eq!(poll(&mut fds, timeout), Ok(1), "nothing came in time");
    }

    /// The next message, if the connection is not at its end and nothing went wrong.
    pub(crate) fn try_receive(&mut self) -> Option<Incoming> {
        self.wait(PollFlags::POLLIN);
        let received = self.inbox.receive(&self.socket).ok()?;
        let bytes = self.inbox.bytes(received.length).to_vec().leak();
        let message = parse(bytes, received.fds.len()).ok()?;
        Some((message, received.fds))
    }

    /// The next message; `None` at the end.
    pub(crate) fn receive(&mut self) -> Option<Incoming> {
        loop {
            match self.inbox.receive(&self.socket) {
                Ok(received) if received.length == 0 => return None,
                Ok(received) => {
                    let bytes = self.inbox.bytes(received.length).to_vec().leak();
                    let message = parse(bytes, received.fds.len()).unwrap();
                    return Some((message, received.fds));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLIN);
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn expect_end(&mut self) {
        if let Some((message, _)) = self.receive() {
            panic!("{message:?} instead of the end");
        }
    }

    /// The daemon's complaint, and the end of the connection behind it.
    pub(crate) fn expect_failure(&mut self) -> (Reason, &'static str) {
        match self.receive() {
            Some((Message::Failure(body, text), _)) => {
                self.expect_end();
                (Reason::from_code(body.more).unwrap(), text)
            }
            other => panic!("{other:?} instead of FAILURE"),
        }
    }
}

/// A tool.
pub(crate) struct Tool(pub(crate) Wire);

impl Tool {
    pub(crate) fn connect(path: &Path) -> Self {
        Self(Wire::connect(path))
    }

    pub(crate) fn ask(&mut self, what: u32, session: u64) -> serde_json::Value {
        let query = Query {
            what,
            reserved: 0,
            session,
        };
        self.0.send(&Message::Query(query), &[]);
        self.answer()
    }

    /// Asks for connections to be revoked.
    pub(crate) fn revoke(&mut self, body: &Revoke) -> serde_json::Value {
        self.0.send(&Message::Revoke(*body), &[]);
        self.answer()
    }

    fn answer(&mut self) -> serde_json::Value {
        let mut text = String::new();
        loop {
            match self.0.receive() {
                Some((Message::Report(body, piece), _)) => {
                    text.push_str(piece);
                    if body.more == 0 {
                        return serde_json::from_str(&text).unwrap();
                    }
                }
                other => panic!("{other:?} instead of REPORT"),
            }
        }
    }
}

/// All connections.
pub(crate) const ALL: Revoke = Revoke {
    what: 0,
    pid: 0,
    conn_id: 0,
    addr: [0; 16],
    family: 4,
    prefix: 0,
    port: 0,
    reserved: 0,
};

/// What a program's library has.
pub(crate) struct Program {
    pub(crate) wire: Wire,
    pub(crate) slots: SlotArena,
    pub(crate) welcome: Welcome,
    pub(crate) events: OwnedFd,
    pub(crate) netlink: OwnedFd,
    memory: OwnedFd,
}

impl Program {
    pub(crate) fn hello(path: &Path, session: u64) -> Self {
        Self::say_hello(Wire::connect(path), session, RING_LOG2_MIN)
    }

    pub(crate) fn with_ring(path: &Path, ring_log2: u32) -> Self {
        Self::say_hello(Wire::connect(path), 0, ring_log2)
    }

    fn say_hello(mut wire: Wire, session: u64, ring_log2: u32) -> Self {
        let memory = slot_memory();
        let slots = SlotArena::new(memory.try_clone().unwrap()).unwrap();
        let netlink = netlink();
        let hello = Hello {
            layout_version: LAYOUT_VERSION,
            ring_log2,
            session,
        };
        wire.send(&Message::Hello(hello), &[memory.as_fd(), netlink.as_fd()]);
        match wire.receive() {
            Some((Message::Welcome(welcome), fds)) => {
                let [events] = <[OwnedFd; 1]>::try_from(fds).unwrap();
                Mapping::of_sealed(&events, EVENT_BYTES).unwrap();
                Self {
                    wire,
                    slots,
                    welcome,
                    events,
                    netlink,
                    memory,
                }
            }
            other => panic!("{other:?} instead of WELCOME"),
        }
    }

    pub(crate) fn receive(&mut self) -> Incoming {
        self.wire.receive().expect("the daemon goes on")
    }

    /// Memory that its slot arena takes, in blocks of 512 bytes.
    pub(crate) fn blocks(&self) -> u64 {
        let status = rustix::fs::fstat(&self.memory).unwrap();
        u64::try_from(status.st_blocks).unwrap()
    }

    pub(crate) fn mailbox(&self) -> u32 {
        self.slots.header().mailbox.load(Ordering::SeqCst)
    }

    pub(crate) fn register(&self, slot: u32, socket: impl AsFd, body: &Register) {
        let path = path_of(socket);
        let body = Register { slot, ..*body };
        self.wire.send(&Message::Register(body), &[path.as_fd()]);
    }

    /// A slot as the library has it while the connection is attached.
    pub(crate) fn slot(&self, index: u32) -> &Slot {
        let slot = self.slots.slot(index).unwrap();
        self.slots
            .header()
            .slots_used
            .fetch_max(index + 1, Ordering::SeqCst);
        slot.meta.generation.store(7, Ordering::SeqCst);
        slot.set_stage(Stage::Attached);
        slot
    }

    pub(crate) fn retracted(&self, slot: u32) {
        let slot = SlotRef {
            slot,
            generation: 7,
        };
        self.wire.send(&Message::Retracted(slot), &[]);
    }

    pub(crate) fn unregister(&self, slot: u32) {
        let slot = SlotRef {
            slot,
            generation: 7,
        };
        self.wire.send(&Message::Unregister(slot), &[]);
    }

    pub(crate) fn add_context(&self, context: u32, bell: impl AsFd) {
        let context = Context {
            context,
            reserved: 0,
        };
        self.wire.send(&Message::Context(context), &[bell.as_fd()]);
    }

    /// Has the daemon handle everything sent so far; returns what it said meanwhile.
    pub(crate) fn sync(&mut self) -> Vec<Incoming> {
        let bell = eventfd();
        self.add_context(255, &bell);
        let mut said = Vec::new();
        loop {
            let incoming = self.receive();
            match incoming.0 {
                Message::ContextKnown(known) if known.context == 255 => return said,
                _ => said.push(incoming),
            }
        }
    }

    pub(crate) fn expect_refusal(&mut self, slot: u32) -> Reason {
        match self.receive().0 {
            Message::Refused(refused) => {
                assert_eq!((refused.slot, refused.generation), (slot, 7));
                Reason::from_code(refused.reason).unwrap()
            }
            other => panic!("{other:?} instead of REFUSED"),
        }
    }

    /// Reads up to PAIRED and returns it with the arena, if it came along.
    pub(crate) fn expect_pair(&mut self) -> (Paired, Option<OwnedFd>) {
        loop {
            let (message, mut fds) = self.receive();
            match message {
                Message::Paired(paired) => return (paired, fds.pop()),
                Message::Peer(_) | Message::PeerContext(_) => {}
                other => panic!("{other:?} instead of PAIRED"),
            }
        }
    }
}

/// A slot arena as the library makes it.
pub(crate) fn slot_memory() -> OwnedFd {
    let memory = sealed_memory("test-slots", ARENA_BYTES as u64).unwrap();
    let slots = SlotArena::new(memory.try_clone().unwrap()).unwrap();
    let header = slots.header();
    header.magic.store(ARENA_MAGIC, Ordering::SeqCst);
    header.version.store(LAYOUT_VERSION, Ordering::SeqCst);
    memory
}

pub(crate) fn netlink() -> OwnedFd {
    rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(rustix::net::netlink::SOCK_DIAG),
    )
    .unwrap()
}

pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
}

/// An O_PATH descriptor of whatever `fd` is.
pub(crate) fn path_of(fd: impl AsFd) -> OwnedFd {
    let name = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    rustix::fs::open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// A loopback connection: the connecting and the accepting end.
pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// The registration of an end; `side` is 1 for the connecting one.
pub(crate) fn registration(socket: &TcpStream, side: u8) -> Register {
    let (own, far) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
    Register {
        slot: 0,
        generation: 7,
        cookie: rustix::net::sockopt::socket_cookie(socket).unwrap(),
        connects: u32::from(side == 1),
        side,
        family: if own.is_ipv4() { 4 } else { 6 },
        own_port: own.port(),
        far_port: far.port(),
        reserved: [0; 6],
        own_addr: octets(own),
        far_addr: octets(far),
    }
}

fn octets(addr: SocketAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match addr.ip() {
        IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes.copy_from_slice(&v6.octets()),
    }
    bytes
}

/// Two programs that share one connection: each with its socket in slot 0.
pub(crate) struct Couple {
    pub(crate) one: Program,
    pub(crate) other: Program,
    pub(crate) sockets: (TcpStream, TcpStream),
    pub(crate) paired: (Paired, Paired),
    pub(crate) arena: OwnedFd,
    more: Vec<(TcpStream, TcpStream)>,
}

impl Couple {
    pub(crate) fn new(daemon: &Daemon) -> Self {
        Self::of(daemon.program(), daemon.program())
    }

    pub(crate) fn of(mut one: Program, mut other: Program) -> Self {
        let sockets = tcp_pair();
        one.register(0, &sockets.0, &registration(&sockets.0, 1));
        other.register(0, &sockets.1, &registration(&sockets.1, 2));
        let (first, arena) = one.expect_pair();
        let (second, _) = other.expect_pair();
        Self {
            one,
            other,
            sockets,
            paired: (first, second),
            arena: arena.unwrap(),
            more: Vec::new(),
        }
    }

    /// The connection's memory.
    pub(crate) fn map(&self) -> Connection {
        Connection::of(&self.paired.0, &self.arena)
    }

    /// The first program sends by ring: `bytes` were published in its ring, and the far end has read `head`
    /// of them, if it has accepted the switch at all.
    pub(crate) fn send_by_ring(&self, bytes: &[u8], head: Option<u64>) {
        let memory = self.map();
        let (sender, receiver) = (self.one.slot(0), self.other.slot(0));
        let tail = bytes.len() as u64;
        let ring = ring_offset(0, 1 << RING_LOG2_MIN) + size_of::<ProducerWords>();
        let at = self.paired.0.offset + ring as u64;
        assert_eq!(rustix::io::pwrite(&self.arena, bytes, at), Ok(bytes.len()));
        memory.state(1).arm();
        assert!(memory.state(0).switch(0));
        memory.producer(0).tail.store(tail, Ordering::SeqCst);
        sender.tx.set_cursor(&TxCursor {
            tail,
            head: 0,
            base: 0,
        });
        sender.tx.set_state(TxState::Ring);
        let fd = self.sockets.0.as_raw_fd().unsigned_abs() + 1;
        sender.meta.fd.store(fd, Ordering::SeqCst);
        receiver.rx.set_state(RxState::Armed);
        if let Some(head) = head {
            assert_eq!(memory.state(0).accept(), Some(0));
            receiver.rx.set_cursor(&RxCursor { head, tail });
            receiver.rx.set_state(RxState::Ring);
        }
    }

    /// Another connection of the two, in slot `slot` of both; the arena, if it is new.
    pub(crate) fn again(&mut self, slot: u32) -> (Paired, Option<OwnedFd>) {
        let sockets = tcp_pair();
        self.one
            .register(slot, &sockets.0, &registration(&sockets.0, 1));
        self.other
            .register(slot, &sockets.1, &registration(&sockets.1, 2));
        let paired = self.one.expect_pair();
        self.other.expect_pair();
        self.more.push(sockets);
        paired
    }
}

/// A connection's memory.
pub(crate) struct Connection {
    arena: Mapping,
    offset: usize,
}

impl Connection {
    pub(crate) fn of(paired: &Paired, arena: &OwnedFd) -> Self {
        let bytes = usize::try_from(paired.arena_bytes).unwrap();
        Self {
            arena: Mapping::of_sealed(arena, bytes).unwrap(),
            offset: usize::try_from(paired.offset).unwrap(),
        }
    }

    pub(crate) fn state(&self, end: usize) -> &EndState {
        self.get(end_offset(end)).unwrap()
    }

    pub(crate) fn waits(&self, end: usize) -> &EndWaits {
        self.get(end_offset(end) + 128).unwrap()
    }

    pub(crate) fn producer(&self, end: usize) -> &ProducerWords {
        self.get(ring_offset(end, 1 << RING_LOG2_MIN)).unwrap()
    }

    pub(crate) fn get<T: rdma_core::mem::Shared + 'static>(&self, at: usize) -> Option<&T> {
        self.arena.get(self.offset + at)
    }
}

pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}
