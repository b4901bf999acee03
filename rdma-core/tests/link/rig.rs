//! The rig: two links, programs that write and read, and a path with seeded faults.

use std::collections::{BTreeMap, VecDeque};

use rdma_core::link::{
    Config, DomainId, Endpoint, Event, FarEnd, Head, Link, MILLISECOND, Memory, Positions, Psk,
    Refusal, Schedule, State, Time,
};

/// A small generator (SplitMix64): the same numbers for the same seed, everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True so often in a thousand.
    pub(crate) fn per_mille(&mut self, share: u64) -> bool {
        self.below(1000) < share
    }
}

/// What the path does to frames.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// Per mille.
    pub(crate) drop: u64,
    pub(crate) duplicate: u64,
    pub(crate) corrupt: u64,
    /// Per mille of frames that are held back for longer, so that others overtake them.
    pub(crate) reorder: u64,
    /// Nanoseconds.
    pub(crate) delay: u64,
    /// Bytes per second; 0: no limit.
    pub(crate) rate: u64,
    /// Bytes that wait for the path at most.
    pub(crate) queue: u64,
    pub(crate) mtu: usize,
    /// Nothing gets through.
    pub(crate) down: bool,
    /// Nanoseconds until a host looks at what has arrived,
    pub(crate) looks_after: u64,
    /// and how much it takes then, in bytes per second; 0: no limit.
    pub(crate) takes: u64,
}

impl Path {
    pub(crate) fn clean() -> Self {
        Self {
            drop: 0,
            duplicate: 0,
            corrupt: 0,
            reorder: 0,
            delay: 50_000,
            rate: 100_000_000,
            queue: u64::MAX,
            mtu: 9000,
            down: false,
            looks_after: 0,
            takes: 0,
        }
    }

    pub(crate) fn bad(random: &mut Random) -> Self {
        Self {
            drop: random.below(150),
            duplicate: random.below(100),
            corrupt: random.below(50),
            reorder: random.below(200),
            delay: 1_000 + random.below(5 * MILLISECOND),
            rate: match random.below(3) {
                0 => 0,
                _ => 1_000_000 + random.below(2_000_000_000),
            },
            queue: 20_000 + random.below(4_000_000),
            mtu: 1200 + index(random.below(8000)),
            down: false,
            looks_after: 0,
            takes: 0,
        }
    }
}

/// A program's end of one stream: it writes a known sequence and checks the one it reads.
#[derive(Debug)]
pub(crate) struct Program {
    ring: Vec<u8>,
    /// Bytes for the far end: written, read there.
    pub(crate) tail: u64,
    pub(crate) tail_read: u64,
    pub(crate) total: u64,
    /// Arriving bytes.
    inbox: Vec<u8>,
    rkey: u32,
    pub(crate) edge: u64,
    pub(crate) head: u64,
    salt: u64,
    far_salt: u64,
    pub(crate) state: State,
    pub(crate) reads: bool,
}

pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("64 bits")
}

/// Eight bytes of the sequence that a program writes.
fn word_at(salt: u64, word: u64) -> [u8; 8] {
    let mixed = (word + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).to_le_bytes()
}

/// The bytes `from..to` of the sequence.
fn sequence(salt: u64, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(index(to - from) + 16);
    for word in from / 8..to.div_ceil(8) {
        bytes.extend_from_slice(&word_at(salt, word));
    }
    bytes.drain(..index(from % 8));
    bytes.truncate(index(to - from));
    bytes
}

/// Where the bytes `from..to` are in a ring: two runs.
fn runs(ring: &[u8], from: u64, to: u64) -> [core::ops::Range<usize>; 2] {
    let start = index(from % ring.len() as u64);
    let length = index(to - from);
    let first = length.min(ring.len() - start);
    [start..start + first, 0..length - first]
}

fn put(ring: &mut [u8], from: u64, bytes: &[u8]) {
    let [first, second] = runs(ring, from, from + bytes.len() as u64);
    let (one, two) = bytes.split_at(first.len());
    ring[first].copy_from_slice(one);
    ring[second].copy_from_slice(two);
}

impl Program {
    fn capacity(&self) -> u64 {
        self.ring.len() as u64
    }

    /// Writes what fits, up to `most`.
    pub(crate) fn write(&mut self, most: u64) {
        let room = self.capacity() - (self.tail - self.tail_read);
        let count = room.min(most).min(self.total - self.tail);
        let bytes = sequence(self.salt, self.tail, self.tail + count);
        put(&mut self.ring, self.tail, &bytes);
        self.tail += count;
    }

    /// Reads and checks up to `most` bytes.
    pub(crate) fn read(&mut self, most: u64) {
        let end = self.edge.min(self.head.saturating_add(most));
        let expected = sequence(self.far_salt, self.head, end);
        let [first, second] = runs(&self.inbox, self.head, end);
        let (one, two) = expected.split_at(first.len());
        assert!(
            self.inbox[first] == *one && self.inbox[second] == *two,
            "other bytes at {}..{end}",
            self.head
        );
        self.head = end;
    }
}

/// The programs of one host, and where their bytes go.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    pub(crate) ends: BTreeMap<u32, Program>,
    pub(crate) refuse: bool,
}

impl Memory for Programs {
    fn place(
        &mut self,
        endpoint: Endpoint,
        rkey: u32,
        offset: u64,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let program = self.ends.get_mut(&endpoint.0).ok_or(Refusal::Key)?;
        if rkey != program.rkey || self.refuse {
            return Err(Refusal::Key);
        }
        let end = offset + payload.len() as u64;
        assert!(offset >= program.edge, "below what was told");
        assert!(end <= program.head + program.capacity(), "overrun");
        put(&mut program.inbox, offset, payload);
        Ok(())
    }
}

/// One host.
pub(crate) struct Host {
    pub(crate) link: Link,
    pub(crate) schedule: Schedule,
    pub(crate) programs: Programs,
    pub(crate) events: Vec<Event>,
    pub(crate) config: Config,
    head: Head,
}

impl Host {
    fn new(config: Config, now: Time) -> Self {
        Self {
            link: Link::new(config.clone(), now),
            schedule: Schedule::new(),
            programs: Programs::default(),
            events: Vec::new(),
            config,
            head: Head::new(),
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.link.poll_event() {
            match event {
                Event::Arrived { endpoint, edge } => {
                    let program = self.programs.ends.get_mut(&endpoint.0).expect("a program");
                    assert!(edge > program.edge);
                    program.edge = edge;
                }
                Event::Consumed { endpoint, head } => {
                    let program = self.programs.ends.get_mut(&endpoint.0).expect("a program");
                    assert!(head > program.tail_read && head <= program.tail);
                    // What the far program has read may be overwritten from now on.
                    for run in runs(&program.ring, program.tail_read, head) {
                        program.ring[run].fill(0xee);
                    }
                    program.tail_read = head;
                }
                Event::State { endpoint, state } => {
                    self.programs
                        .ends
                        .get_mut(&endpoint.0)
                        .expect("a program")
                        .state = state;
                }
                other => self.events.push(other),
            }
        }
    }

    /// The next frame, put together and sealed.
    pub(crate) fn next_frame(&mut self, now: Time) -> Option<Vec<u8>> {
        let frame = self
            .link
            .poll_transmit(now, &mut self.schedule, &mut self.head)?;
        let mut bytes = self.head.as_bytes().to_vec();
        assert_eq!(bytes.len(), frame.head_len);
        if let Some(payload) = frame.payload {
            let program = &self.programs.ends[&payload.endpoint.0];
            assert!(payload.len > 0 && payload.offset >= program.tail_read);
            assert!(payload.offset + payload.len as u64 <= program.tail);
            let end = payload.offset + payload.len as u64;
            for run in runs(&program.ring, payload.offset, end) {
                bytes.extend_from_slice(&program.ring[run]);
            }
        }
        if frame.sealed {
            bytes.resize(bytes.len() + 16, 0);
            assert!(self.link.seal(&mut bytes));
        }
        assert_eq!(bytes.len(), frame.size);
        assert!(bytes.len() <= self.config.max_frame);
        Some(bytes)
    }
}

/// A frame under way.
struct Coming {
    to: usize,
    /// When the machine has it, which looks at it later.
    arrives: Time,
    frame: Vec<u8>,
}

/// Two hosts and what is between them.
pub(crate) struct Rig {
    pub(crate) now: Time,
    pub(crate) hosts: [Host; 2],
    pub(crate) path: Path,
    pub(crate) random: Random,
    /// Frames under way: when they arrive, a number that keeps their order, to whom.
    under_way: BTreeMap<(Time, u64), Coming>,
    sequence: u64,
    /// When the path has sent what waits for it, in each direction.
    free_at: [Time; 2],
    /// When each host has taken what waits for it.
    taken_at: [Time; 2],
    /// All frames that were sent to each host, for replays.
    pub(crate) recorded: [VecDeque<Vec<u8>>; 2],
    pub(crate) record: bool,
}

impl Rig {
    pub(crate) fn new(seed: u64, path: Path, change: impl Fn(&mut Config)) -> Self {
        let mut random = Random(seed);
        let hosts = [1u8, 2].map(|name| {
            let mut config = Config::new([0; 32], [name; 16], 100 + u64::from(name));
            for chunk in config.seed.chunks_mut(8) {
                chunk.copy_from_slice(&random.next().to_le_bytes());
            }
            config.max_frame = 8972;
            change(&mut config);
            Host::new(config, Time(1))
        });
        Self {
            now: Time(1),
            hosts,
            path,
            random,
            under_way: BTreeMap::new(),
            sequence: 0,
            free_at: [Time(0); 2],
            taken_at: [Time(0); 2],
            recorded: [VecDeque::new(), VecDeque::new()],
            record: false,
        }
    }

    pub(crate) fn with_key(config: &mut Config) {
        config.key = Psk::new(b"a secret of two hosts");
    }

    /// Makes a stream of `capacity` whose ends send `totals` bytes, starting at `start`.
    pub(crate) fn open(&mut self, number: u32, capacity: usize, totals: [u64; 2], start: u64) {
        self.open_in(number, capacity, totals, start, DomainId(0));
    }

    pub(crate) fn open_in(
        &mut self,
        number: u32,
        capacity: usize,
        totals: [u64; 2],
        start: u64,
        domain: DomainId,
    ) {
        let name = |host: usize| number * 2 + u32::from(host == 1);
        let rkey = |host: usize| 7_000 + name(host);
        for host in [0, 1] {
            let far = 1 - host;
            let program = Program {
                ring: vec![0; capacity],
                tail: start,
                tail_read: start,
                total: start + totals[host],
                inbox: vec![0; capacity],
                rkey: rkey(host),
                edge: start,
                head: start,
                salt: u64::from(name(host)) << 40,
                far_salt: u64::from(name(far)) << 40,
                state: State::default(),
                reads: true,
            };
            self.hosts[host].programs.ends.insert(name(host), program);
            self.hosts[host].link.open(
                Endpoint(name(host)),
                FarEnd {
                    endpoint: name(far),
                    rkey: rkey(far),
                    capacity: capacity as u64,
                },
                rkey(host),
                domain,
                Positions {
                    sent: start,
                    far_consumed: start,
                    received: start,
                    consumed: start,
                },
            );
        }
    }

    /// Replaces a host by a new run of it, without streams.
    pub(crate) fn reboot(&mut self, host: usize) {
        let mut config = self.hosts[host].config.clone();
        config.epoch += 1000;
        for chunk in config.seed.chunks_mut(8) {
            chunk.copy_from_slice(&self.random.next().to_le_bytes());
        }
        self.hosts[host] = Host::new(config, self.now);
    }

    /// A frame to `to` enters the path.
    pub(crate) fn inject(&mut self, to: usize, frame: Vec<u8>) {
        if self.record {
            self.recorded[to].push_back(frame.clone());
        }
        let (path, random) = (&self.path, &mut self.random);
        if path.down || frame.len() > path.mtu || random.per_mille(path.drop) {
            return;
        }
        let mut leaves = self.now;
        if path.rate > 0 {
            let start = self.free_at[to].max(self.now);
            let waiting = u128::from(start.since(self.now)) * u128::from(path.rate) / 1_000_000_000;
            if waiting > u128::from(path.queue) {
                return;
            }
            leaves = start.plus(frame.len() as u64 * 1_000_000_000 / path.rate);
            self.free_at[to] = leaves;
        }
        let copies = 1 + u64::from(random.per_mille(path.duplicate));
        for _ in 0..copies {
            let mut frame = frame.clone();
            let mut arrives = leaves.plus(path.delay);
            if random.per_mille(path.reorder) {
                arrives = arrives.plus(random.below(2 * path.delay + 1));
            }
            if random.per_mille(path.corrupt) {
                // UDP and Ethernet find such frames, nearly always; a link with a key must find them all.
                if self.hosts[0].config.key.is_none() {
                    continue;
                }
                let bit = index(random.below(frame.len() as u64 * 8));
                frame[bit / 8] ^= 1 << (bit % 8);
            }
            self.sequence += 1;
            let mut looked_at = arrives.plus(path.looks_after);
            let nanos = frame.len() as u64 * 1_000_000_000;
            if let Some(taking) = nanos.checked_div(path.takes) {
                looked_at = looked_at.max(self.taken_at[to]).plus(taking);
                self.taken_at[to] = looked_at;
            }
            let coming = Coming { to, arrives, frame };
            self.under_way.insert((looked_at, self.sequence), coming);
        }
    }

    /// Lets the programs write and read, and the links send.
    pub(crate) fn work(&mut self) {
        for host in [0, 1] {
            let Host { link, programs, .. } = &mut self.hosts[host];
            for (&name, program) in &mut programs.ends {
                let most = 1 + self.random.below(300_000);
                program.write(most);
                link.produced(Endpoint(name), program.tail);
                if program.reads {
                    let most = 1 + self.random.below(300_000);
                    program.read(most);
                    link.consumed(Endpoint(name), program.head);
                }
            }
        }
        self.send();
    }

    /// Lets the links send.
    pub(crate) fn send(&mut self) {
        for host in [0, 1] {
            for _ in 0..64 {
                let Some(frame) = self.hosts[host].next_frame(self.now) else {
                    break;
                };
                self.inject(1 - host, frame);
            }
        }
    }

    /// Hands a frame to a host, as if it had arrived.
    pub(crate) fn deliver(&mut self, to: usize, frame: Vec<u8>) {
        let arrives = self.now;
        self.take(Coming { to, arrives, frame });
    }

    fn take(&mut self, coming: Coming) {
        let Coming {
            to,
            arrives,
            mut frame,
        } = coming;
        let now = self.now;
        let host = &mut self.hosts[to];
        // What is dropped shows in the statistics.
        let _ = host
            .link
            .handle_frame(now, Some(arrives), &mut frame, &mut host.programs);
        host.take_events();
    }

    /// Goes to the next moment at which something happens, but not beyond `end`; false if that is it.
    pub(crate) fn step(&mut self, end: Time) -> bool {
        let arrival = self.under_way.keys().next().map(|key| key.0);
        let timeouts = [0, 1].map(|host| self.hosts[host].link.poll_timeout());
        // Programs work now and then without being woken.
        let next = [
            arrival,
            timeouts[0],
            timeouts[1],
            Some(self.now.plus(MILLISECOND)),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(end);
        self.now = self.now.max(next.min(end));
        while let Some(entry) = self.under_way.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let coming = entry.remove();
            self.take(coming);
        }
        for host in &mut self.hosts {
            if host.link.poll_timeout().is_some_and(|at| at <= self.now) {
                host.link.handle_timeout(self.now);
                assert!(
                    host.link.poll_timeout().is_none_or(|at| at > self.now),
                    "a timeout that does not pass"
                );
            }
            host.take_events();
        }
        self.work();
        self.now < end
    }

    /// Runs for so long.
    pub(crate) fn run(&mut self, nanos: u64) {
        let end = self.now.plus(nanos);
        while self.step(end) {}
    }

    /// Runs until `done`, at most for so long.
    pub(crate) fn run_until(&mut self, nanos: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now.plus(nanos);
        while !done(self) {
            if !self.step(end) {
                return done(self);
            }
        }
        true
    }

    pub(crate) fn both_up(&self) -> bool {
        self.hosts.iter().all(|host| host.link.is_up())
    }

    /// Whether every program has read all that it will get.
    pub(crate) fn all_read(&self) -> bool {
        [0, 1].iter().all(|&host| {
            self.hosts[host]
                .programs
                .ends
                .iter()
                .all(|(&name, program)| {
                    let far = &self.hosts[1 - host].programs.ends[&(name ^ 1)];
                    program.head == far.total && far.tail_read == far.total
                })
        })
    }

    /// Both programs of a stream say the same.
    pub(crate) fn set_state(&mut self, number: u32, state: State) {
        for (end, host) in (0..).zip(&mut self.hosts) {
            host.link.set_state(Endpoint(number * 2 + end), state);
        }
    }

    /// Takes the events of a host that are not about streams.
    pub(crate) fn events(&mut self, host: usize) -> Vec<Event> {
        core::mem::take(&mut self.hosts[host].events)
    }
}
