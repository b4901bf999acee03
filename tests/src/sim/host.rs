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
use rdma_core::layout::{End, conn_bytes};
use rdma_core::link::{Config, DomainId, Head, Link, Psk, Time};
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::Place as FarPlace;

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
    random: Random,
    head: Head,
    /// Endpoints that programs have something for.
    pub touched: Vec<u32>,
    /// When the backend has its next turn.
    pub round_at: Option<Time>,
}

impl Host {
    /// A host with memory for `places` connections.
    pub fn new(
        number: usize,
        places: u64,
        ring_log2: u32,
        habits: LinkHabits,
        random: Random,
    ) -> Self {
        let bytes = conn_bytes(1 << ring_log2) as u64 * places.max(1);
        let arena = ConnectionArena::create(bytes).unwrap_or_else(|error| {
            panic!("no memory for a simulation: {error}");
        });
        let mut random = random;
        let board = board(&mut random, Time(0));
        Self {
            number,
            epoch: 1,
            board,
            arena: Arc::new(arena),
            habits,
            random,
            head: Head::new(),
            touched: Vec::new(),
            round_at: None,
        }
    }

    /// The memory.
    pub const fn arena(&self) -> &Arc<ConnectionArena> {
        &self.arena
    }

    /// The daemon is killed, and another one started. What it knew is gone.
    pub fn restart(&mut self, now: Time) {
        self.epoch += 1;
        self.board = board(&mut self.random, now);
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

    /// Serves connection `number`, whose program's end is `end`.
    ///
    /// # Errors
    /// There is no memory or no key for it.
    pub fn open(
        &mut self,
        number: usize,
        ring_log2: u32,
        end: End,
        line: usize,
        far: Option<FarPlace>,
    ) -> Result<FarPlace, Reason> {
        let endpoint = self.board.reserve().ok_or(Reason::Quota)?;
        let parts = Parts {
            id: id_of(number),
            arena: Arc::clone(&self.arena),
            place: place(number, ring_log2),
            end,
            process: Process(program_of(number)),
            way: Way::Line(line),
            domain: DomainId(0),
            origin: origin(number),
        };
        let who = WaitRef {
            process: RELAY,
            context: 0,
            bit: u16::try_from(endpoint).ok(),
        };
        let opened = self.board.open(endpoint, parts, who, far);
        if opened.is_err() {
            self.board.give_back(endpoint);
        }
        opened
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

fn board(random: &mut Random, now: Time) -> Switchboard {
    let share = Share {
        weight: 1,
        rate: None,
    };
    Switchboard::new(&[share], random.next(), now)
}

/// How a host is known to another.
pub fn peer(host: usize) -> PeerId {
    PeerId(u32::try_from(host).unwrap_or(u32::MAX))
}

/// How a connection is known to both of its hosts.
pub const fn id_of(number: usize) -> ConnectionId {
    ConnectionId(number as u64 + 1)
}

/// The connection that is known as `id`.
pub fn number_of(id: ConnectionId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX) - 1
}

/// The process number of a connection's program.
pub fn program_of(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(0) + 1
}

/// Where the memory of a connection lies.
pub fn place(number: usize, ring_log2: u32) -> Place {
    Place {
        arena: ArenaId(1),
        offset: conn_bytes(1 << ring_log2) as u64 * number as u64,
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
