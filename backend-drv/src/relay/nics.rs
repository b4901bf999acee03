//! The NICs of the links, and who is reached over which.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use arrayvec::ArrayVec;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use rdma_core::link::{Config, Frame, Head, Link, Psk, Time};

use super::announcing::{Announcing, announced};
use super::switchboard::Switchboard;
use crate::config::{DriverConfig, LinkConfig};
use crate::nic::{self, Address, Arrival, Driver, Nic, NicConfig, NicStats, Outgoing, Slice};

/// Frames that are prepared at once,
const BATCH: usize = 64;
/// and no more once it is so many bytes, where a line has callers: nobody looks at what they say while a batch is sent.
const BATCH_BYTES_BESIDE: usize = 16 << 10;
/// A frame of so many bytes at most says that somebody waits for an answer, or gives one.
const BRIEF: usize = 1024;
/// Kind of a frame that announces.
const ANNOUNCE: u8 = 4;
/// Backends that are remembered to have announced themselves.
const HEARD_MAX: usize = 4096;
/// HELLOs to a backend that was never heard of; one to two seconds.
const HELLO_TRIES: u32 = 4;

/// Links whose NICs are open.
#[derive(Debug, Default)]
pub struct Links(Vec<OpenLink>);

#[derive(Debug)]
struct OpenLink {
    config: LinkConfig,
    nic: Box<dyn Nic>,
    key: Option<Psk>,
}

impl Links {
    /// Opens the NICs; needs what root can do where a driver does.
    ///
    /// # Errors
    /// One line that names the link.
    pub fn open(links: &[LinkConfig]) -> anyhow::Result<Self> {
        let open = |config: &LinkConfig| {
            let key = config.key_file.as_deref().map(read_key).transpose()?;
            let driver = match &config.driver {
                DriverConfig::Udp { bind } => Driver::Udp { bind: *bind },
                DriverConfig::Ethernet { interface } => Driver::Ethernet {
                    interface: interface.clone(),
                },
            };
            let nic = nic::open(&NicConfig {
                driver,
                max_frame: config.max_frame,
                faults: config.faults,
                pcap: config.pcap.clone(),
            })?;
            anyhow::Ok(OpenLink {
                config: config.clone(),
                nic,
                key,
            })
        };
        let opened = links
            .iter()
            .map(|config| open(config).with_context(|| format!("link \"{}\"", config.name)));
        Ok(Self(opened.collect::<anyhow::Result<_>>()?))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How they are configured.
    pub fn configs(&self) -> impl Iterator<Item = &LinkConfig> {
        self.0.iter().map(|link| &link.config)
    }
}

/// Shortest key: what an attacker cannot try.
const KEY_MIN: usize = 16;

fn read_key(path: &std::path::Path) -> anyhow::Result<Psk> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let secret = bytes.trim_ascii();
    Psk::new(secret).with_context(|| {
        format!(
            "{}: {} bytes; a key needs at least {KEY_MIN}: head -c 32 /dev/urandom | base64",
            path.display(),
            secret.len()
        )
    })
}

/// One NIC at work.
#[derive(Debug)]
struct Port {
    config: LinkConfig,
    nic: Box<dyn Nic>,
    key: Option<Psk>,
    by_address: HashMap<Address, usize>,
    /// Lines over this NIC, and the one whose turn is next.
    lines: Vec<(usize, Address)>,
    next: usize,
    ready: VecDeque<Ready>,
    spare: Vec<Ready>,
    watches_writing: bool,
    announcing: Option<Announcing>,
}

/// What one call of a NIC has brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    /// 0: there is nothing more, or the NIC is of no use.
    pub(super) frames: usize,
    pub(super) bytes: usize,
    /// One of them was short, and of use.
    pub(super) brief: bool,
}

/// A frame that is ready to be sent. Its memory is used again and again.
#[derive(Debug)]
struct Ready {
    to: Address,
    head: Head,
    frame: Frame,
    /// All of it, if it is sealed.
    sealed: Vec<u8>,
}

/// All NICs.
#[derive(Debug)]
pub(super) struct Nics {
    ports: Vec<Port>,
    backend: [u8; 16],
    epoch: u64,
    /// Who has announced himself.
    heard: Vec<[u8; 16]>,
}

impl Nics {
    /// NIC number i is readable in `epoll` as i.
    pub(super) fn new(
        links: Links,
        backend: [u8; 16],
        epoch: u64,
        epoll: &Epoll,
    ) -> nix::Result<Self> {
        let mut ports = Vec::new();
        for (token, link) in (0u64..).zip(links.0) {
            epoll.add(
                link.nic.readiness(),
                EpollEvent::new(EpollFlags::EPOLLIN, token),
            )?;
            ports.push(Port {
                announcing: Announcing::of(&link.config),
                config: link.config,
                nic: link.nic,
                key: link.key,
                by_address: HashMap::new(),
                lines: Vec::new(),
                next: 0,
                ready: VecDeque::with_capacity(BATCH),
                spare: Vec::with_capacity(BATCH),
                watches_writing: false,
            });
        }
        Ok(Self {
            ports,
            backend,
            epoch,
            heard: Vec::new(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.ports.len()
    }

    /// The name of the link over NIC `port`.
    pub(super) fn name(&self, port: usize) -> Option<&str> {
        Some(self.ports.get(port)?.config.name.as_str())
    }

    /// A link over NIC `port`.
    pub(super) fn new_link(&self, port: usize, now: Time) -> Option<Link> {
        let port = self.ports.get(port)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).ok()?;
        let mut config = Config::new(seed, self.backend, self.epoch);
        config.max_frame = port.nic.max_frame();
        config.window = u32::try_from(port.nic.window()).unwrap_or(u32::MAX);
        config.idle_timeout = nanos(port.config.timeout);
        config.hello_tries = HELLO_TRIES;
        config.key = port.key.clone();
        Some(Link::new(config, now))
    }

    /// A line goes over NIC `port` to `address`.
    pub(super) fn attach(&mut self, port: usize, address: Address, line: usize) {
        if let Some(port) = self.ports.get_mut(port) {
            port.by_address.insert(address, line);
            port.lines.push((line, address));
        }
    }

    /// Takes what has come over NIC `port`, as much as one call takes. `strangers` gets the
    /// frames of those who were not heard of before.
    pub(super) fn receive(
        &mut self,
        index: usize,
        now: Time,
        clock: Instant,
        board: &mut Switchboard,
        strangers: &mut Vec<(Address, Vec<u8>)>,
    ) -> Received {
        let mut received = Received::default();
        let Some(port) = self.ports.get_mut(index) else {
            return received;
        };
        let by_address = &port.by_address;
        let announces = port.announcing.is_some();
        // Successive frames mostly come from one address.
        let mut last = None;
        let mut line_of = |from: Address| match last {
            Some((address, line)) if address == from => Some(line),
            _ => {
                let line = *by_address.get(&from)?;
                last = Some((from, line));
                Some(line)
            }
        };
        let mut sink = |Arrival { from, at }: Arrival, frame: &mut [u8]| {
            received.bytes += frame.len();
            match line_of(from) {
                Some(line) if !announces || frame.get(1) != Some(&ANNOUNCE) => {
                    let arrived = at.map(|at| Time(nanos(at.saturating_duration_since(clock))));
                    match board.handle_frame(line, now, arrived, frame) {
                        Ok(()) => received.brief |= frame.len() <= BRIEF,
                        Err(why) => tracing::trace!(%from, %why, "frame"),
                    }
                }
                _ => {
                    if strangers.len() < BATCH {
                        strangers.push((from, frame.to_vec()));
                    }
                }
            }
        };
        let frames = port.nic.receive(&mut sink).unwrap_or_else(|error| {
            tracing::error!(link = port.config.name, %error, "the NIC is of no use any more");
            0
        });
        Received { frames, ..received }
    }

    /// Sends one batch of what the lines have, as far as the NICs take it. True if anything was sent.
    pub(super) fn transmit(&mut self, now: Time, board: &mut Switchboard) -> bool {
        let mut some = false;
        for port in &mut self.ports {
            if port.ready.is_empty() {
                port.prepare(now, board);
            }
            // A NIC may have kept some of what it took before.
            some |= (!port.ready.is_empty() || port.nic.wants_write()) && port.send(board);
        }
        some
    }

    /// What epoll has to tell apart from arrivals: NICs that are full.
    pub(super) fn watch(&mut self, epoll: &Epoll) {
        for (token, port) in (0u64..).zip(&mut self.ports) {
            let wants = port.nic.wants_write();
            if wants != port.watches_writing {
                let mut events = EpollFlags::EPOLLIN;
                events.set(EpollFlags::EPOLLOUT, wants);
                let mut event = EpollEvent::new(events, token);
                if epoll
                    .modify(port.nic.readiness().as_fd(), &mut event)
                    .is_ok()
                {
                    port.watches_writing = wants;
                }
            }
        }
    }

    /// When a NIC wants to be looked at although nothing is readable.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let nics = self.ports.iter().filter_map(|port| port.nic.wake_at());
        let announcing = self
            .ports
            .iter()
            .filter_map(|port| port.announcing.as_ref());
        nics.chain(announcing.map(Announcing::due)).min()
    }

    /// Announces, where and when that is due.
    pub(super) fn announce(&mut self) {
        for port in &mut self.ports {
            if let Some(announcing) = &mut port.announcing {
                announcing.tick(&mut *port.nic, self.backend, self.epoch);
            }
        }
    }

    /// What a frame that came over NIC `port` announces, if it is an announcement of somebody else.
    pub(super) fn announced(&mut self, port: usize, frame: &[u8]) -> Option<Vec<IpAddr>> {
        let announcing = self.ports.get_mut(port)?.announcing.as_mut()?;
        let (backend, addresses) = announced(frame)?;
        if backend == self.backend {
            return None;
        }
        let is_new = !self.heard.contains(&backend);
        if is_new && self.heard.len() < HEARD_MAX {
            self.heard.push(backend);
            announcing.hurry();
        }
        Some(addresses)
    }

    /// Name, backend and counters of each line, and of its NIC.
    pub(super) fn stats(&self) -> impl Iterator<Item = (&str, usize, Address, NicStats)> {
        self.ports.iter().flat_map(|port| {
            let stats = port.nic.stats();
            let lines = port.lines.iter();
            lines.map(move |(line, address)| (port.config.name.as_str(), *line, *address, stats))
        })
    }
}

impl Port {
    /// Fills the batch, one line after the other.
    fn prepare(&mut self, now: Time, board: &mut Switchboard) {
        let has_callers = |line| board.link(line).is_some_and(|link| link.has_callers(now));
        let mut room = if self.lines.iter().any(|(line, _)| has_callers(*line)) {
            BATCH_BYTES_BESIDE
        } else {
            usize::MAX
        };
        let lines = self.lines.len();
        let first = self.next;
        for turn in 0..lines {
            let index = (first + turn) % lines;
            let Some((line, to)) = self.lines.get(index).copied() else {
                continue;
            };
            while self.ready.len() < BATCH && room > 0 {
                let mut ready = self.spare.pop().unwrap_or_else(|| Ready::new(to));
                let Some(frame) = board.poll_transmit(line, now, &mut ready.head) else {
                    self.spare.push(ready);
                    break;
                };
                room = room.saturating_sub(frame.size);
                (ready.to, ready.frame) = (to, frame);
                if !frame.sealed || ready.seal(line, board) {
                    self.ready.push_back(ready);
                } else {
                    self.spare.push(ready);
                }
                // Whoever had his share is the last next time.
                self.next = (index + 1) % lines;
            }
        }
    }

    /// Sends the batch, or what the NIC takes of it; false if that is nothing.
    fn send(&mut self, board: &Switchboard) -> bool {
        let mut batch: ArrayVec<Outgoing<'_>, BATCH> = ArrayVec::new();
        for ready in &self.ready {
            if ready.frame.sealed {
                batch.push(Outgoing::of_head(ready.to, &ready.sealed));
                continue;
            }
            // Of a connection that was closed meanwhile the head goes out alone, and nobody takes it.
            let payload = ready.payload(board);
            batch.push(Outgoing {
                to: ready.to,
                head: ready.head.as_bytes(),
                payload: payload.unwrap_or([Slice::EMPTY; 2]),
            });
        }
        let sent = match self.nic.send(&batch) {
            Ok(sent) => sent,
            Err(error) => {
                tracing::error!(link = self.config.name, %error, "the NIC is of no use any more");
                batch.len()
            }
        };
        drop(batch);
        self.spare.extend(self.ready.drain(..sent));
        sent > 0
    }
}

impl Ready {
    fn new(to: Address) -> Self {
        let frame = Frame {
            head_len: 0,
            payload: None,
            sealed: false,
            size: 0,
        };
        Self {
            to,
            head: Head::new(),
            frame,
            sealed: Vec::new(),
        }
    }

    fn payload<'a>(&self, board: &'a Switchboard) -> Option<[Slice<'a>; 2]> {
        board.payload(&self.frame.payload?)
    }

    /// Puts the frame together and seals it; false: it is not to be sent.
    fn seal(&mut self, line: usize, board: &Switchboard) -> bool {
        let mut bytes = std::mem::take(&mut self.sealed);
        bytes.clear();
        bytes.extend_from_slice(self.head.as_bytes());
        for run in self.payload(board).unwrap_or([Slice::EMPTY; 2]) {
            run.append_to(&mut bytes);
        }
        bytes.resize(self.frame.size, 0);
        let sealed = board.link(line).is_some_and(|link| link.seal(&mut bytes));
        self.sealed = bytes;
        sealed
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
