//! The far end of an accelerated connection, written against the protocol and nothing else.
//!
//! [`Session`] is what a program's library has at the daemon; [`FarEnd`] is one connection of it. The
//! words of its memory are open to the test.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use frontend_drv::client::{BUFFER_BYTES, Client};
use frontend_drv::memory;
use rdma_core::Reason;
use rdma_core::control::{Context, ContextRef, Hello, Message, Paired, Register, SlotRef, Welcome};
use rdma_core::event::{CONTEXT_STRIDE, EVENT_BYTES, EventContext, WaitFor};
use rdma_core::layout::{
    ConnHeader, ConnView, EndWords, LAYOUT_VERSION, ProducerWords, conn_bytes,
};
use rdma_core::mem::Region;
use rdma_core::ring::{Consumer, Producer, RxCursor, TxCursor};
use rdma_core::slot::{ARENA_BYTES, ARENA_MAGIC, ArenaView};
use rdma_core::sync::{AtomicU32, AtomicU64, Ordering, full_barrier};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};

use super::program::WATCHDOG;

/// Generation of every slot that a [`Session`] registers.
const GENERATION: u32 = 7;

/// Ring size that a [`Session`] asks for.
const RING_LOG2: u32 = 16;

/// A program's control connection.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// The answer to HELLO.
    pub welcome: Welcome,
    next_slot: u32,
    peers: HashMap<u32, Region>,
    bells: HashMap<(u32, u32), OwnedFd>,
    arenas: HashMap<u32, Region>,
    _own: (OwnedFd, OwnedFd, OwnedFd),
}

impl Session {
    /// Says HELLO at `socket` and introduces one waiting context.
    pub fn hello(socket: &Path) -> Self {
        let client = Client::connect(socket.to_str().expect("a path of ours")).expect("a daemon");
        let slots = memory::create(c"test-slots", ARENA_BYTES).expect("memory");
        let arena = ArenaView::new(memory::map(&slots, 0, ARENA_BYTES).expect("memory"))
            .expect("it is large enough");
        let header = arena.header();
        header.magic.store(ARENA_MAGIC, Ordering::Relaxed);
        header.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        header.pid.store(std::process::id(), Ordering::Relaxed);
        let netlink = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )
        .expect("a netlink socket");
        let hello = Hello {
            layout_version: LAYOUT_VERSION,
            ring_log2: RING_LOG2,
            session: 0,
        };
        client
            .send(&Message::Hello(hello), &[slots.as_fd(), netlink.as_fd()])
            .expect("HELLO");
        let mut buffer = [0; BUFFER_BYTES];
        let welcome = match client.receive_blocking(&mut buffer, WATCHDOG) {
            Ok((Message::Welcome(welcome), _)) => welcome,
            other => panic!("{other:?} instead of WELCOME"),
        };
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
            .expect("an event descriptor");
        let context = Context {
            context: 0,
            reserved: 0,
        };
        client
            .send(&Message::Context(context), &[bell.as_fd()])
            .expect("CONTEXT");
        Self {
            client,
            welcome,
            next_slot: 0,
            peers: HashMap::new(),
            bells: HashMap::new(),
            arenas: HashMap::new(),
            _own: (slots, netlink, bell),
        }
    }

    /// Sends REGISTER with the inode of `shown`, which honest programs take from the connection that
    /// `body` describes.
    pub fn register(&self, shown: impl AsFd, body: &Register) {
        let name = format!("/proc/self/fd/{}", shown.as_fd().as_raw_fd());
        let path = open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("/proc");
        self.client
            .send(&Message::Register(*body), &[path.as_fd()])
            .expect("REGISTER");
    }

    /// The honest registration of `stream`, which called connect.
    pub fn registration(&mut self, stream: &TcpStream) -> Register {
        let own = stream.local_addr().expect("connected");
        let far = stream.peer_addr().expect("connected");
        let slot = self.next_slot;
        self.next_slot += 1;
        Register {
            slot,
            generation: GENERATION,
            cookie: rustix::net::sockopt::socket_cookie(stream).expect("a socket"),
            connects: 1,
            side: 1,
            family: if own.is_ipv4() { 4 } else { 6 },
            own_port: own.port(),
            far_port: far.port(),
            reserved: [0; 6],
            own_addr: octets(own),
            far_addr: octets(far),
        }
    }

    /// The daemon's verdict on the registration in `slot`, if it comes within `timeout`.
    pub fn verdict(&mut self, slot: u32, timeout: Duration) -> Option<Result<Paired, Reason>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (message, mut fds) = self.client.receive_blocking(&mut buffer, left).ok()?;
            let fd = fds.iter_mut().find_map(Option::take);
            match message {
                Message::Peer(peer) => {
                    let events = memory::map(fd?, 0, EVENT_BYTES).expect("sealed memory");
                    self.peers.insert(peer.process, events);
                }
                Message::PeerContext(who) => {
                    self.bells.insert((who.process, who.context), fd?);
                }
                Message::Paired(paired) => {
                    if let Some(fd) = fd {
                        let bytes = usize::try_from(paired.arena_bytes).expect("it fits");
                        let region = memory::map(fd, 0, bytes).expect("sealed memory");
                        self.arenas.insert(paired.arena, region);
                    }
                    if paired.slot == slot {
                        return Some(Ok(paired));
                    }
                }
                Message::Refused(refused) if refused.slot == slot => {
                    return Some(Err(Reason::from_code(refused.reason).expect("known")));
                }
                _ => {}
            }
        }
    }

    /// The connection's memory.
    fn view(&self, paired: &Paired) -> ConnView {
        let bytes = conn_bytes(1 << paired.ring_log2);
        let offset = usize::try_from(paired.offset).expect("it fits");
        let end = paired.end.try_into().expect("0 or 1");
        self.arenas
            .get(&paired.arena)
            .and_then(|arena| arena.part(offset, bytes))
            .and_then(|region| ConnView::new(&region, end, paired.ring_log2))
            .expect("the arena holds the connection")
    }

    /// Wakes whoever waits for `what` at the far end.
    fn wake(&self, view: &ConnView, what: WaitFor) {
        full_barrier();
        view.theirs.waits.each(what, |who| {
            let at = usize::from(who.context) * CONTEXT_STRIDE;
            let words = self
                .peers
                .get(&who.process)
                .and_then(|events| events.get::<EventContext>(at));
            let Some(words) = words else { return };
            if let Some(bit) = who.bit {
                words.post(bit);
            }
            if words.take_sleeper() {
                let context = u32::from(who.context);
                match self.bells.get(&(who.process, context)) {
                    Some(bell) => {
                        let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
                    }
                    None => {
                        let kick = ContextRef {
                            process: who.process,
                            context,
                        };
                        let _ = self.client.send(&Message::Kick(kick), &[]);
                    }
                }
            }
        });
    }
}

fn octets(address: SocketAddr) -> [u8; 16] {
    match address.ip() {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// One connection, at the end that called connect.
#[derive(Debug)]
pub struct FarEnd {
    stream: TcpStream,
    /// The memory, as this end sees it.
    pub view: ConnView,
    paired: Paired,
    tx: TxCursor,
    rx: RxCursor,
    kernel_sent: u64,
    kernel_read: u64,
    on_ring: bool,
    switched_at: Option<u64>,
}

impl FarEnd {
    /// Connects to an echoing program at `port` under the library and brings both directions onto
    /// the ring. Returns `None` if that does not happen.
    pub fn connect(session: &mut Session, port: u16) -> Option<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream
            .set_read_timeout(Some(WATCHDOG))
            .expect("a TCP socket");
        let body = session.registration(&stream);
        session.register(&stream, &body);
        // The program registers at its first data call.
        let mut byte = [1];
        stream.write_all(&byte).ok()?;
        stream.read_exact(&mut byte).ok()?;
        let paired = session.verdict(body.slot, WATCHDOG / 4)?.ok()?;
        stream.set_nonblocking(true).expect("a socket");
        let view = session.view(&paired);
        let mut end = Self {
            stream,
            view,
            paired,
            tx: TxCursor::default(),
            rx: RxCursor::default(),
            kernel_sent: 1,
            kernel_read: 1,
            on_ring: false,
            switched_at: None,
        };
        end.view.mine.state.arm();
        for round in 0..200u8 {
            if !end.echo(session, &[round], WATCHDOG / 4) {
                return None;
            }
            if end.on_ring && end.switched_at.is_some() {
                return Some(end);
            }
        }
        None
    }

    /// Sends `bytes` and reads them back, if they come within `timeout`.
    pub fn echo(&mut self, session: &Session, bytes: &[u8], timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        if !self.send(session, bytes, deadline) {
            return false;
        }
        let mut back = vec![0; bytes.len()];
        let mut got = 0;
        while got < back.len() {
            match self.receive(session, &mut back[got..]) {
                Some(0) => {
                    if Instant::now() >= deadline {
                        return false;
                    }
                    std::thread::sleep(Duration::from_micros(20));
                }
                Some(some) => got += some,
                None => return false,
            }
        }
        back == bytes
    }

    /// Sends everything, by whichever way this direction goes.
    fn send(&mut self, session: &Session, mut bytes: &[u8], deadline: Instant) -> bool {
        if !self.on_ring && self.view.theirs.state.is_armed() {
            self.on_ring = self.view.mine.state.switch(self.kernel_sent);
        }
        while !bytes.is_empty() {
            let sent = if self.on_ring {
                let ring = Producer::of(&self.view);
                let Ok(sent) = ring.write_slice(&mut self.tx, bytes) else {
                    return false;
                };
                ring.publish(&self.tx, self.rx.head, 0);
                session.wake(&self.view, WaitFor::Data);
                sent
            } else {
                match self.stream.write(bytes) {
                    Ok(sent) => {
                        self.kernel_sent += sent as u64;
                        sent
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    Err(_) => return false,
                }
            };
            bytes = &bytes[sent..];
            if sent == 0 {
                if Instant::now() >= deadline {
                    return false;
                }
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        true
    }

    /// Receives what is there; `None` at the end or after an error.
    fn receive(&mut self, session: &Session, into: &mut [u8]) -> Option<usize> {
        let state = &self.view.theirs.state;
        self.switched_at = self.switched_at.or_else(|| state.accept());
        if self.switched_at == Some(self.kernel_read) {
            let ring = Consumer::of(&self.view);
            let got = ring.read_slice(&mut self.rx, into).ok()?;
            if got > 0 {
                ring.publish(&self.rx);
                session.wake(&self.view, WaitFor::Space);
            }
            return Some(got);
        }
        match self.stream.read(into) {
            Ok(0) => None,
            Ok(got) => {
                self.kernel_read += got as u64;
                Some(got)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
            Err(_) => None,
        }
    }

    /// Wakes the program at the far end, whatever it waits for.
    pub fn wake_all(&self, session: &Session) {
        session.wake(&self.view, WaitFor::Data);
        session.wake(&self.view, WaitFor::Space);
    }

    /// Every word of the memory outside the data.
    pub fn words(&self) -> Vec<(String, Word)> {
        let mut words = Vec::new();
        header_words(self.view.header, &mut words);
        end_words("mine", self.view.mine, &mut words);
        end_words("theirs", self.view.theirs, &mut words);
        producer_words("tx", self.view.tx_words, &mut words);
        producer_words("rx", self.view.rx_words, &mut words);
        words
    }

    /// Closes the socket and gives the memory back.
    pub fn close(self, session: &Session) {
        drop(self.stream);
        let slot = SlotRef {
            slot: self.paired.slot,
            generation: GENERATION,
        };
        let _ = session.client.send(&Message::Unregister(slot), &[]);
    }
}

/// A word of connection memory.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// 32 bits.
    Narrow(&'static AtomicU32),
    /// 64 bits.
    Wide(&'static AtomicU64),
}

impl Word {
    /// Overwrites it; the low half of `value` if it is narrow.
    pub fn write(self, value: u64) {
        match self {
            Self::Narrow(word) => {
                let low = u32::try_from(value & u64::from(u32::MAX)).expect("masked");
                word.store(low, Ordering::SeqCst);
            }
            Self::Wide(word) => word.store(value, Ordering::SeqCst),
        }
    }
}

fn header_words(header: &'static ConnHeader, words: &mut Vec<(String, Word)>) {
    words.push(("header.magic".to_owned(), Word::Wide(&header.magic)));
    words.push(("header.version".to_owned(), Word::Narrow(&header.version)));
    let log2 = Word::Narrow(&header.ring_log2);
    words.push(("header.ring_log2".to_owned(), log2));
    words.push(("header.conn_id".to_owned(), Word::Wide(&header.conn_id)));
}

fn end_words(whose: &str, end: &'static EndWords, words: &mut Vec<(String, Word)>) {
    let state = &end.state;
    let waits = &end.waits;
    let narrow = [
        ("armed", &state.armed),
        ("route", &state.route),
        ("ended", &state.ended),
        ("reader_gone", &state.reader_gone),
        ("broken", &state.broken),
        ("rx_waiters", &waits.rx_waiters),
        ("tx_waiters", &waits.tx_waiters),
    ];
    let wide = [
        ("switch_at", &state.switch_at),
        ("end_at", &state.end_at),
        ("return_at", &state.return_at),
        ("retract_at", &state.retract_at),
        ("head", &end.consumer.head),
    ];
    words.extend(narrow.map(|(name, word)| (format!("{whose}.{name}"), Word::Narrow(word))));
    words.extend(wide.map(|(name, word)| (format!("{whose}.{name}"), Word::Wide(word))));
    for (name, list) in [("rx", &waits.rx), ("tx", &waits.tx)] {
        for (index, word) in list.iter().enumerate() {
            words.push((format!("{whose}.{name}[{index}]"), Word::Wide(word)));
        }
    }
}

fn producer_words(whose: &str, ring: &'static ProducerWords, words: &mut Vec<(String, Word)>) {
    for (name, word) in [
        ("tail", Word::Wide(&ring.tail)),
        ("base", Word::Wide(&ring.base)),
        ("ack", Word::Wide(&ring.ack)),
        ("cpu", Word::Narrow(&ring.cpu)),
        ("reserved", Word::Narrow(&ring.reserved)),
    ] {
        words.push((format!("{whose}.{name}"), word));
    }
}
