//! One host's backend: the switchboard that decides, and a stand-in for the engine around it.

use std::net::SocketAddr;
use std::sync::Arc;

use backend_drv::broker::Proof;
use backend_drv::carving::Place;
use backend_drv::ids::{ArenaId, ConnectionId, PeerId, Process};
use backend_drv::keeper::record::Origin;
use backend_drv::pairing::Tuple;
use backend_drv::relay::switchboard::{Parts, Switchboard, Wake, Way};
use backend_drv::relay::{Report, Share};
use backend_drv::shared::ConnectionArena;
use rdma_core::event::WaitRef;
use rdma_core::layout::{End, conn_bytes, ring_offset, ring_span};
use rdma_core::link::{Config, DomainId, Head, Link, Psk, Time};
use rdma_core::mr::RemoteKey;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::Place as FarPlace;
use rustix::fs::FallocateFlags;

use super::random::Random;

/// Process number of the relay, as programs know it.
pub const RELAY: u32 = 0x1000;

/// Frames of one line that are sent before others have their turn.
const BATCH: usize = 64;

/// What links are made of in one simulation.
#[derive(Clone, Debug)]
pub struct LinkHabits {
    /// Nanoseconds.
    pub idle_timeout: u64,
    /// HELLOs before a link rests.
    pub hello_tries: u32,
    /// Frames are sealed.
    pub key: Option<Psk>,
    /// Largest frame.
    pub max_frame: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Host {
    number: usize,
    /// Counts restarts.
    pub epoch: u64,
    board: Switchboard,
    /// What lies in memory outlives the daemon.
    arena: Arc<ConnectionArena>,
    habits: LinkHabits,
    shares: Vec<Share>,
    random: Random,
    head: Head,
    /// Endpoints that programs have something for.
    pub touched: Vec<u32>,
    /// When the backend has its next turn.
    pub round_at: Option<Time>,
    /// It is killed in the middle of that.
    pub dies: bool,
}

impl Host {
    /// A host with memory for `places` connections.
    pub fn new(
        number: usize,
        places: u64,
        ring_log2: u32,
        habits: LinkHabits,
        shares: Vec<Share>,
        random: Random,
    ) -> Self {
        let bytes = conn_bytes(1 << ring_log2) as u64 * 2 * places.max(1);
        let arena = ConnectionArena::create(bytes).unwrap_or_else(|error| {
            panic!("no memory for a simulation: {error}");
        });
        let mut random = random;
        let board = Switchboard::new(&shares, random.next(), Time(0));
        Self {
            number,
            epoch: 1,
            board,
            arena: Arc::new(arena),
            habits,
            shares,
            random,
            head: Head::new(),
            touched: Vec::new(),
            round_at: None,
            dies: false,
        }
    }

    /// The memory.
    pub const fn arena(&self) -> &Arc<ConnectionArena> {
        &self.arena
    }

    /// Gives back the memory of the ring that an end sends by, but for its first page.
    pub fn give_back(&self, place: &Place, end: End) {
        let bytes = 1 << place.ring_log2;
        let from = place.offset + (ring_offset(end.index(), bytes) + 4096) as u64;
        let len = (ring_span(bytes) - 4096) as u64;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let done = rustix::fs::fallocate(self.arena.memory(), how, from, len);
        done.unwrap_or_else(|error| panic!("memory of a simulation: {error}"));
    }

    /// The daemon is killed, and another one started. What it knew is gone.
    pub fn restart(&mut self, now: Time) {
        self.epoch += 1;
        self.board = Switchboard::new(&self.shares, self.random.next(), now);
        self.touched.clear();
    }

    /// The line to another host; made if there is none.
    pub fn line_to(&mut self, far: usize, now: Time) -> usize {
        let peer = peer(far);
        if let Some(line) = self.board.line_of(peer) {
            self.board.connect(line, now);
            return line;
        }
        let mut seed = [0; 32];
        for part in seed.chunks_exact_mut(8) {
            part.copy_from_slice(&self.random.next().to_le_bytes());
        }
        let name = [u8::try_from(self.number + 1).unwrap_or(0); 16];
        let mut config = Config::new(seed, name, self.epoch);
        config.max_frame = self.habits.max_frame;
        config.idle_timeout = self.habits.idle_timeout;
        config.hello_tries = self.habits.hello_tries;
        config.key = self.habits.key.clone();
        self.board.add_line(peer, Link::new(config, now))
    }

    /// Serves one end of a connection.
    ///
    /// # Errors
    /// There is no memory or no key for it.
    pub fn open(
        &mut self,
        seat: Seat,
        line: usize,
        far: Option<FarPlace>,
    ) -> Result<FarPlace, Reason> {
        let endpoint = self.board.reserve().ok_or(Reason::Quota)?;
        let parts = self.parts(seat, Way::Line(line));
        let opened = self.board.open(endpoint, parts, who(endpoint), far);
        if opened.is_err() {
            self.board.give_back(endpoint);
        }
        opened
    }

    /// Serves both ends of a connection; where each is.
    ///
    /// # Errors
    /// As above.
    pub fn open_here(&mut self, seats: [Seat; 2]) -> Result<[u32; 2], Reason> {
        let mut endpoints = [0; 2];
        for endpoint in &mut endpoints {
            *endpoint = self.board.reserve().ok_or(Reason::Quota)?;
        }
        let [one, other] = [0, 1].map(|side: usize| {
            let endpoint = endpoints[side];
            (endpoint, self.parts(seats[side], Way::Here), who(endpoint))
        });
        self.board.open_here([one, other])?;
        Ok(endpoints)
    }

    /// Goes on with an end that the backend before had.
    pub fn restore(&mut self, seat: Seat, kept: Kept, way: Way) -> bool {
        let Kept { own, far } = kept;
        if !self.board.claim(own.endpoint) {
            return false;
        }
        let (parts, who, key) = (
            self.parts(seat, way),
            who(own.endpoint),
            RemoteKey(own.rkey),
        );
        match way {
            Way::Here => self.board.restore_here(own.endpoint, parts, who, key, far),
            Way::Line(_) => self.board.restore(own.endpoint, parts, who, key, far),
        }
    }

    fn parts(&self, seat: Seat, way: Way) -> Parts {
        Parts {
            id: id_of(seat.number, seat.side),
            arena: Arc::clone(&self.arena),
            place: place(seat.number, seat.side, seat.ring_log2),
            end: if seat.side == 0 { End::Zero } else { End::One },
            process: Process(program_of(seat.number, seat.side)),
            way,
            domain: DomainId(seat.domain),
            origin: origin(seat.number),
        }
    }

    /// The switchboard.
    pub const fn board(&mut self) -> &mut Switchboard {
        &mut self.board
    }

    /// One turn of the engine. Frames go to `send`; true if there may be more of them.
    pub fn round(
        &mut self,
        now: Time,
        wakes: &mut Vec<Wake>,
        reports: &mut Vec<Report>,
        mut send: impl FnMut(usize, Vec<u8>),
    ) -> bool {
        for endpoint in self.touched.drain(..) {
            self.board.touch(endpoint);
        }
        if self.board.poll_timeout().is_some_and(|at| at <= now) {
            self.board.handle_timeout(now);
        }
        self.board.settle(now);
        self.board.take_wakes(wakes);
        while let Some(report) = self.board.next_report() {
            reports.push(report);
        }
        let mut more = false;
        let lines: Vec<usize> = self.board.lines().collect();
        for line in lines {
            more |= self.transmit(line, now, &mut send);
        }
        more
    }

    fn transmit(&mut self, line: usize, now: Time, send: &mut impl FnMut(usize, Vec<u8>)) -> bool {
        for _ in 0..BATCH {
            let Some(frame) = self.board.poll_transmit(line, now, &mut self.head) else {
                return false;
            };
            let mut bytes = Vec::with_capacity(frame.size);
            bytes.extend_from_slice(self.head.as_bytes());
            if let Some(payload) = &frame.payload {
                for run in self.board.payload(payload).into_iter().flatten() {
                    run.append_to(&mut bytes);
                }
            }
            if frame.sealed {
                bytes.resize(frame.size, 0);
                let link = self.board.link(line);
                if !link.is_some_and(|link| link.seal(&mut bytes)) {
                    continue;
                }
            }
            send(line, bytes);
        }
        true
    }
}

/// One end of a connection, for its backend.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// The connection.
    pub number: usize,
    /// Which end.
    pub side: usize,
    /// Ring size as a power of two.
    pub ring_log2: u32,
    /// The domain that is charged.
    pub domain: u32,
}

/// What a keeper keeps of an end.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Where the backend takes bytes for it.
    pub own: FarPlace,
    /// Where the far one does.
    pub far: FarPlace,
}

/// How a program wakes its backend for an endpoint.
fn who(endpoint: u32) -> WaitRef {
    WaitRef {
        process: RELAY,
        context: 0,
        bit: u16::try_from(endpoint).ok(),
    }
}

/// How a host is known to another.
pub fn peer(host: usize) -> PeerId {
    PeerId(u32::try_from(host).unwrap_or(u32::MAX))
}

/// How an end of a connection is known to its host.
pub const fn id_of(number: usize, side: usize) -> ConnectionId {
    ConnectionId((number * 2 + side) as u64 + 1)
}

/// The connection, and the end of it, that is known as `id`.
pub fn seat_of(id: ConnectionId) -> (usize, usize) {
    let index = usize::try_from(id.0).unwrap_or(usize::MAX) - 1;
    (index / 2, index % 2)
}

/// The process number of the program at an end.
pub fn program_of(number: usize, side: usize) -> u32 {
    u32::try_from(number * 2 + side).unwrap_or(0) + 1
}

/// Where the memory of an end lies.
pub fn place(number: usize, side: usize, ring_log2: u32) -> Place {
    Place {
        arena: ArenaId(1),
        offset: conn_bytes(1 << ring_log2) as u64 * (number * 2 + side) as u64,
        ring_log2,
        arena_bytes: 0,
        fresh: false,
    }
}

/// Whose end it is; the switchboard only keeps it.
fn origin(number: usize) -> Origin {
    let at = |last| SocketAddr::from(([10, 0, 0, last], 1));
    Origin {
        tuple: Tuple {
            own: at(1),
            far: at(2),
        },
        netns: 1,
        uid: 0,
        proof: Proof {
            inode: 1,
            cookie: number as u64,
        },
    }
}
