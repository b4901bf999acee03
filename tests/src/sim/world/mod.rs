//! Hosts, networks and programs under one clock, and what must hold of them.

mod acts;
mod backends;
mod programs;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use backend_drv::relay::Report;
use backend_drv::relay::switchboard::Wake;
use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::layout::{ConnView, End as Seat};
use rdma_core::link::{MICROSECOND, MILLISECOND, SECOND, Time};
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use crate::sim::host::{self, Host, Kept, RELAY, id_of, peer, program_of, seat_of};
use crate::sim::path::Path;
use crate::sim::plan::{Act, Plan};
use crate::sim::program::{Around, Doze, End, Next, Outcome, Thread};
use crate::sim::random::Random;
use crate::sim::tcp::Tcp;

/// How long everything may take once faults have stopped.
const PATIENCE: u64 = 60 * SECOND;
/// The daemon's second look at a sender that it helps.
const RESCUE_PAUSE: u64 = 20 * MILLISECOND;
/// Lines of what happened that are kept.
const NOTES: usize = 400;

/// What has come of a simulation.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Bytes that programs received.
    pub bytes: u64,
    /// Frames on networks.
    pub frames: u64,
    /// Events.
    pub events: u64,
    /// Connections whose ends had memory.
    pub relayed: u64,
    /// Bytes that went by ring.
    pub by_ring: u64,
    /// Senders that were told where their reader left.
    pub granted: u64,
    /// Sessions that ended because nobody answered, or because the other backend was another run.
    pub sessions_ended: u64,
    /// Directions that ended with a broken connection.
    pub broken: u64,
    /// Programs that were killed while they sent by the kernel again what their readers had left in the ring: the rest
    /// is lost, which only the kernel could prevent.
    pub died_resending: u64,
    /// Readers that left their rings by themselves, and were told that what lies behind is sent again.
    pub confirmed: u64,
    /// Nanoseconds until everything was over.
    pub ended_at: u64,
    /// Ends that a backend took over from one that was killed.
    pub restored: u64,
    /// Bytes that crossed within a host.
    pub crossed: u64,
    /// Rings whose memory was given back.
    pub emptied: u64,
    /// Nanoseconds in which domains had to wait for their rates.
    pub throttled: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.by_ring += other.by_ring;
        self.frames += other.frames;
        self.events += other.events;
        self.relayed += other.relayed;
        self.granted += other.granted;
        self.sessions_ended += other.sessions_ended;
        self.broken += other.broken;
        self.confirmed += other.confirmed;
        self.died_resending += other.died_resending;
        self.ended_at += other.ended_at;
        self.restored += other.restored;
        self.crossed += other.crossed;
        self.emptied += other.emptied;
        self.throttled += other.throttled;
    }
}

#[derive(Debug)]
enum Event {
    Step(usize, usize, Thread, u64),
    Frame(usize, usize, Vec<u8>),
    Round(usize),
    Kernel(usize),
    Kick(usize, usize, WaitFor),
    Rescue(usize, usize),
    Attach(usize, usize),
    Unregister(usize, usize),
    /// The memory of a ring is given back, if the backend is the same run still.
    Emptied(usize, usize, u64),
    Act(Act),
}

#[derive(Debug)]
struct Due {
    at: Time,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What one host's backend knows of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Served {
    /// Nothing.
    No,
    /// Memory is made; the far backend has yet to answer.
    Opened,
    /// Both know each other.
    Joined,
    /// The memory is free.
    Left,
}

#[derive(Debug)]
struct Conn {
    hosts: [usize; 2],
    ends: [End; 2],
    tcp: Tcp,
    delay: u64,
    served: [Served; 2],
    domains: [u32; 2],
    /// Where the backend of each end takes bytes for it,
    own: [Option<FarPlace>; 2],
    /// and where the other one does.
    far: [Option<FarPlace>; 2],
    /// The backend of each end is another one than when the connection was made.
    survives: [bool; 2],
    tickets: [[u64; 4]; 2],
    entered: [[Option<WaitFor>; 4]; 2],
    excuse: Option<&'static str>,
    /// When its backend was restarted, or heard that the other one was.
    orphaned: Option<Time>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct World {
    now: Time,
    random: Random,
    due: BinaryHeap<Reverse<Due>>,
    count: u64,
    hosts: Vec<Host>,
    paths: Vec<Vec<Path>>,
    cut_until: Vec<Vec<Time>>,
    conns: Vec<Conn>,
    sealed: bool,
    /// Backends that are restarted go on with what the one before had.
    keepers: bool,
    idle_timeout: u64,
    calm_at: Time,
    ring_log2: u32,
    summary: Summary,
    wrong: Option<String>,
    notes: Option<std::collections::VecDeque<String>>,
}

impl World {
    /// The world of a plan. `notes`: what happens is written down.
    pub fn new(plan: Plan, mut random: Random, notes: bool) -> Self {
        let places = plan.joints.len() as u64;
        let hosts = (0..plan.hosts)
            .map(|number| {
                let own = Random::new(random.next());
                let (links, shares) = (plan.links.clone(), plan.shares.clone());
                Host::new(number, places, plan.ring_log2, links, shares, own)
            })
            .collect();
        let conns: Vec<Conn> = plan
            .joints
            .iter()
            .enumerate()
            .map(|(number, joint)| {
                let salts = [random.next(), random.next()];
                let end = |side: usize| {
                    let habits = joint.habits[side].clone();
                    End::new(side, program_of(number, side), salts, habits)
                };
                Conn {
                    hosts: joint.hosts,
                    ends: [end(0), end(1)],
                    tcp: Tcp::default(),
                    delay: joint.delay,
                    served: [Served::No; 2],
                    domains: joint.domains,
                    own: [None; 2],
                    far: [None; 2],
                    survives: [false; 2],
                    tickets: [[0; 4]; 2],
                    entered: [[None; 4]; 2],
                    excuse: None,
                    orphaned: None,
                }
            })
            .collect();
        let mut world = Self {
            now: Time(0),
            random,
            due: BinaryHeap::new(),
            count: 0,
            hosts,
            cut_until: vec![vec![Time(0); plan.hosts]; plan.hosts],
            paths: plan.paths,
            conns,
            sealed: plan.links.key.is_some(),
            keepers: plan.keepers,
            idle_timeout: plan.links.idle_timeout,
            calm_at: plan.calm_at,
            ring_log2: plan.ring_log2,
            summary: Summary::default(),
            wrong: None,
            notes: notes.then(std::collections::VecDeque::new),
        };
        for (at, act) in plan.acts {
            world.push(at, Event::Act(act));
        }
        for (number, joint) in plan.joints.iter().enumerate() {
            for side in 0..2 {
                for thread in [Thread::Writer, Thread::Reader] {
                    let at = joint.start.plus(1 + world.random.up_to(MILLISECOND));
                    world.step_at(number, side, thread, at);
                }
            }
        }
        world
    }

    /// Everything, to its end.
    ///
    /// # Errors
    /// What should never happen.
    pub fn run(mut self) -> Result<Summary, String> {
        let end = self.calm_at.plus(PATIENCE);
        while self.wrong.is_none() && !self.is_over() {
            let Some(Reverse(due)) = self.due.pop() else {
                self.wrong = Some("nothing will ever happen again".to_owned());
                break;
            };
            self.now = due.at;
            if self.now > end {
                self.wrong = Some("not over in time".to_owned());
                break;
            }
            self.summary.events += 1;
            self.happen(due.event);
        }
        if self.wrong.is_none() {
            self.judge();
        }
        self.summary.ended_at = self.now.0;
        match self.wrong.take() {
            None => Ok(self.summary),
            Some(wrong) => Err(self.report(&wrong)),
        }
    }

    fn report(&self, wrong: &str) -> String {
        let mut text = String::new();
        for line in self.notes.iter().flatten() {
            text.push_str(line);
            text.push('\n');
        }
        for (number, conn) in self.conns.iter().enumerate() {
            for side in 0..2 {
                let end = conn.ends[side].describe();
                text.push_str(&format!(
                    "connection {number}.{side} on host {}, {:?}, {:?}: {end}\n",
                    conn.hosts[side], conn.served[side], conn.excuse
                ));
            }
        }
        text.push_str(&format!("at {} us: {wrong}", self.now.0 / 1000));
        text
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            if notes.len() == NOTES {
                notes.pop_front();
            }
            notes.push_back(format!("{:>9} {}", self.now.0 / 1000, what()));
        }
    }

    fn wrong(&mut self, what: impl Into<String>) {
        if self.wrong.is_none() {
            self.wrong = Some(what.into());
        }
    }

    fn push(&mut self, at: Time, event: Event) {
        self.count += 1;
        let number = self.count;
        self.due.push(Reverse(Due { at, number, event }));
    }

    fn soon(&mut self, most: u64) -> Time {
        self.now.plus(1 + self.random.up_to(most))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step(number, side, thread, ticket) => {
                if self.conns[number].tickets[side][thread as usize] == ticket {
                    self.step(number, side, thread);
                }
            }
            Event::Frame(from, to, mut bytes) => {
                let line = self.hosts[to].board().line_of(peer(from));
                let now = self.now;
                let line = line.unwrap_or_else(|| self.hosts[to].line_to(from, now));
                let result = self.hosts[to]
                    .board()
                    .handle_frame(line, now, Some(now), &mut bytes);
                if let Err(why) = result {
                    self.note(|| format!("host {to} drops a frame of {from}: {why}"));
                }
                self.round_soon(to);
            }
            Event::Round(host) => {
                if self.hosts[host].round_at == Some(self.now) {
                    self.hosts[host].round_at = None;
                    self.round(host);
                }
            }
            Event::Kernel(number) => {
                let back = self.now.plus(self.conns[number].delay);
                if self.conns[number].tcp.advance(self.now, back) {
                    self.push(back, Event::Kernel(number));
                }
                self.poke(number);
            }
            Event::Kick(number, side, what) => self.kick(number, side, what),
            Event::Rescue(number, side) => self.rescue(number, side),
            Event::Attach(number, side) => self.attach(number, side),
            Event::Emptied(number, side, epoch) => self.emptied(number, side, epoch),
            Event::Unregister(number, side) => {
                let host = self.conns[number].hosts[side];
                let killed = self.conns[number].ends[side].killed;
                let survives = self.conns[number].survives[side];
                let board = self.hosts[host].board();
                if killed {
                    board.depart(id_of(number, side), false);
                }
                if !survives {
                    board.end(id_of(number, side));
                }
                self.round_soon(host);
            }
            Event::Act(act) => self.act(act),
        }
    }

    // ---- What must hold ----

    fn is_over(&self) -> bool {
        self.conns.iter().all(|conn| {
            conn.ends.iter().all(|end| end.closed)
                && conn
                    .served
                    .iter()
                    .all(|served| matches!(served, Served::No | Served::Left))
        })
    }

    fn judge(&mut self) {
        let mut wrong = Vec::new();
        for host in &mut self.hosts {
            let domains = host.board().schedule().domains();
            self.summary.throttled += domains.map(|(.., used)| used.throttled).sum::<u64>();
        }
        for (number, conn) in self.conns.iter().enumerate() {
            let early = conn.ends.iter().any(|end| !end.habits.shuts);
            let excused = conn.excuse.is_some() || early;
            for side in 0..2 {
                let (end, far) = (&conn.ends[side], &conn.ends[1 - side]);
                self.summary.bytes += end.read;
                if conn.hosts[0] == conn.hosts[1] {
                    self.summary.crossed += end.came_by_ring();
                }
                self.summary.by_ring += end.came_by_ring();
                self.summary.confirmed += u64::from(end.has_left && end.is_told);
                let broken = |outcome| matches!(outcome, Some(Outcome::Broken(_)));
                self.summary.broken += u64::from(broken(end.received) || broken(end.sent));
                if end.read > far.written {
                    wrong.push(format!("{number}.{side} has read more than was sent"));
                }
                if far.died_resending() {
                    // The kernel had not taken the rest yet.
                    self.summary.died_resending += 1;
                } else if end.received == Some(Outcome::End) && end.read != far.written {
                    wrong.push(format!(
                        "{number}.{side} has read {} bytes to the end of {}",
                        end.read, far.written
                    ));
                }
                if !excused && end.received != Some(Outcome::End) {
                    wrong.push(format!("{number}.{side} received {:?}", end.received));
                }
                if !excused && end.sent != Some(Outcome::End) {
                    wrong.push(format!("{number}.{side} sent {:?}", end.sent));
                }
            }
        }
        if !wrong.is_empty() {
            self.wrong(wrong.join("; "));
        }
    }
}

const fn seat(side: usize) -> Seat {
    if side == 0 { Seat::Zero } else { Seat::One }
}
