//! `viaduct bench raw`: frames as fast as a NIC driver can, between two ends, with nothing above it.
//!
//! What a link carries is judged by this. One process sends for some seconds; another counts what arrives, which is
//! the result: a driver may well send more than the far end takes. Payload lies in a ring as it does in a connection,
//! and with `--place` the receiving end copies it to one, as a link must.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use rdma_core::mem::HeapRegion;
use serde::Serialize;

use crate::nic::{self, Address, Driver, Nic, NicConfig, NicStats, Outgoing, Slice};

/// Measure how fast a driver carries frames between two ends, with nothing above it.
///
/// Start the receiving end first; it ends by itself.
#[derive(Debug, Args)]
pub struct RawArgs {
    /// The driver to measure
    #[arg(long, value_enum)]
    driver: DriverName,
    /// Own address of the udp driver
    #[arg(long, value_name = "ADDR:PORT", required_if_eq("driver", "udp"))]
    bind: Option<SocketAddr>,
    /// Interface of the ethernet driver
    #[arg(long, value_name = "NAME", required_if_eq("driver", "ethernet"))]
    interface: Option<String>,
    /// The receiving end: ADDR:PORT, or the address of an Ethernet interface
    #[arg(long, value_name = "ADDRESS", required_if_eq("role", "send"))]
    peer: Option<Peer>,
    /// What this end does
    #[arg(long, value_enum)]
    role: Role,
    /// Bytes of a frame [default: the longest that fits]
    #[arg(long, value_name = "N")]
    frame: Option<usize>,
    /// Frames handed to the driver at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Seconds to send; the receiving end waits ten times as long for the first frame
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Copy what arrives to a ring of our own
    #[arg(long)]
    place: bool,
    /// Never sleep
    #[arg(long)]
    spin: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DriverName {
    /// UDP datagrams
    Udp,
    /// Ethernet frames of our own type
    Ethernet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    Send,
    Receive,
}

/// An address as written.
#[derive(Clone, Copy, Debug)]
struct Peer(Address);

impl std::str::FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self(Address::Udp(address)));
        }
        let bytes: Vec<u8> = text
            .split(':')
            .map_while(|part| {
                u8::from_str_radix(part, 16)
                    .ok()
                    .filter(|_| part.len() == 2)
            })
            .collect();
        match bytes.try_into() {
            Ok(mac) if text.len() == 17 => Ok(Self(Address::Mac(mac))),
            _ => Err("must be ADDR:PORT, or like 02:00:00:00:00:01".to_owned()),
        }
    }
}

/// The result of one end.
#[derive(Debug, Serialize)]
pub struct RawResult {
    role: &'static str,
    frame_bytes: usize,
    seconds: f64,
    frames: u64,
    bytes: u64,
    gigabits_per_second: f64,
    frames_per_second: f64,
    cpu_seconds_per_gigabyte: f64,
    /// Frames that were sent and did not arrive; only the receiving end knows.
    lost: Option<u64>,
    /// System calls, or the like.
    calls: u64,
}

/// Measures.
///
/// # Errors
/// The NIC cannot be opened or fails, or nothing arrives.
pub fn run(args: &RawArgs) -> anyhow::Result<String> {
    let driver = match (args.driver, args.bind, &args.interface) {
        (DriverName::Udp, Some(bind), _) => Driver::Udp { bind },
        (DriverName::Ethernet, _, Some(interface)) => Driver::Ethernet {
            interface: interface.clone(),
        },
        (DriverName::Udp, None, _) => bail!("--driver udp needs --bind"),
        (DriverName::Ethernet, _, None) => bail!("--driver ethernet needs --interface"),
    };
    let mut nic = nic::open(&NicConfig::plain(driver))?;
    let result = match (args.role, args.peer) {
        (Role::Send, Some(Peer(to))) => send(nic.as_mut(), to, args)?,
        (Role::Send, None) => bail!("--role send needs --peer"),
        (Role::Receive, _) => receive(nic.as_mut(), args)?,
    };
    if args.json {
        return Ok(serde_json::to_string(&result)?);
    }
    Ok(format!("{:?} {}: {result}", args.driver, nic.address()).to_lowercase())
}

fn send(nic: &mut dyn Nic, to: Address, args: &RawArgs) -> anyhow::Result<RawResult> {
    let len = args.frame.unwrap_or_else(|| nic.max_frame());
    if len < HEAD_BYTES || len > nic.max_frame() {
        let max = nic.max_frame();
        bail!("--frame {len}: between {HEAD_BYTES} and {max} bytes pass");
    }
    let heap = HeapRegion::new(RING_BYTES);
    let ring = heap.region().ring_bytes(0, RING_BYTES).context("a ring")?;
    let mut heads = vec![[0; HEAD_BYTES]; usize::from(args.batch)];
    let mut next = Progress::default();
    let meter = Meter::start();
    let time = Duration::from_secs(args.seconds.into());
    while meter.started.elapsed() < time {
        for head in &mut heads {
            *head = header(next.number, len, false);
            next.number += 1;
        }
        let mut position = next.position;
        let mut frame = |head| {
            let payload = Slice::of_ring(&ring, position, len - HEAD_BYTES);
            position = position.wrapping_add(len - HEAD_BYTES);
            Outgoing { to, head, payload }
        };
        let batch: Vec<_> = heads.iter().map(|head| frame(head)).collect();
        next.position = position;
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let taken = nic.send(rest)?;
            rest = rest.get(taken..).unwrap_or(&[]);
            if nic.wants_write() && !args.spin {
                wait(nic.readiness(), PollFlags::POLLOUT, time)?;
            }
        }
    }
    let result = meter.result("send", len, nic.stats(), None);
    for _ in 0..FAREWELLS {
        let head = header(next.number, HEAD_BYTES, true);
        nic.send(&[Outgoing::of_head(to, &head)])?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(result)
}

/// Where the sending end is.
#[derive(Default)]
struct Progress {
    number: u64,
    position: usize,
}

fn receive(nic: &mut dyn Nic, args: &RawArgs) -> anyhow::Result<RawResult> {
    let mut ring = vec![0u8; if args.place { RING_BYTES } else { 0 }];
    let mut position = 0;
    let mut seen = Seen::default();
    let patience = Duration::from_secs(u64::from(args.seconds) * 10);
    if !wait(nic.readiness(), PollFlags::POLLIN, patience)? {
        bail!("nothing has arrived for {} seconds", patience.as_secs());
    }
    let meter = Meter::start();
    let mut last = meter;
    let mut empty_since = None;
    while !seen.over {
        let count = nic.receive(&mut |_, frame| {
            if seen.note(frame) && args.place {
                position = place(&mut ring, position, frame);
            }
        })?;
        if count > 0 {
            empty_since = None;
            continue;
        }
        // As a relay does: being woken costs more than a short look, above all in a virtual machine.
        let since = *empty_since.get_or_insert_with(Instant::now);
        if args.spin || since.elapsed() < LOOK {
            std::thread::yield_now();
            continue;
        }
        empty_since = None;
        last = Meter::start();
        if !wait(nic.readiness(), PollFlags::POLLIN, SILENCE_MAX)? {
            break;
        }
    }
    if seen.over {
        last = Meter::start();
    }
    let sent = seen.end.or(seen.last.map(|last| last + 1)).unwrap_or(0);
    let lost = sent.saturating_sub(seen.frames);
    let stats = NicStats {
        received_frames: seen.frames,
        received_bytes: seen.bytes,
        ..nic.stats()
    };
    Ok(meter.until(last, "receive", seen.frame_bytes, stats, Some(lost)))
}

/// What has arrived.
#[derive(Debug, Default)]
struct Seen {
    frames: u64,
    bytes: u64,
    frame_bytes: usize,
    last: Option<u64>,
    /// How many frames were sent, if that has been heard.
    end: Option<u64>,
    over: bool,
}

impl Seen {
    /// Counts a frame; true if it has payload.
    fn note(&mut self, frame: &[u8]) -> bool {
        let Some((number, over)) = read_header(frame) else {
            return false;
        };
        if over {
            self.end = Some(number);
            self.over = true;
            return false;
        }
        self.frames += 1;
        self.bytes += frame.len() as u64;
        self.frame_bytes = self.frame_bytes.max(frame.len());
        self.last = self.last.max(Some(number));
        true
    }
}

/// Copies the payload to the ring from `position`; returns where the next goes.
fn place(ring: &mut [u8], position: usize, frame: &[u8]) -> usize {
    let payload = frame.get(HEAD_BYTES..).unwrap_or(&[]);
    let (first, second) = payload.split_at(payload.len().min(ring.len() - position));
    if let Some(to) = ring.get_mut(position..position + first.len()) {
        to.copy_from_slice(first);
    }
    if let Some(to) = ring.get_mut(..second.len()) {
        to.copy_from_slice(second);
    }
    (position + payload.len()) % ring.len()
}

/// Waits; false if the time is over.
fn wait(fd: BorrowedFd<'_>, events: PollFlags, time: Duration) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(fd, events)];
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error).context("poll"),
    }
}

/// The clock, and what this process has used of the processors, at one moment.
#[derive(Clone, Copy, Debug)]
struct Meter {
    started: Instant,
    cpu: f64,
}

impl Meter {
    fn start() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let cpu = usage.map_or(0.0, |usage| {
            [usage.user_time(), usage.system_time()]
                .iter()
                .map(|time| seconds(time.tv_sec()) + seconds(time.tv_usec()) / 1e6)
                .sum()
        });
        Self {
            started: Instant::now(),
            cpu,
        }
    }

    fn result(
        self,
        role: &'static str,
        frame: usize,
        stats: NicStats,
        lost: Option<u64>,
    ) -> RawResult {
        self.until(Self::start(), role, frame, stats, lost)
    }

    fn until(
        self,
        end: Self,
        role: &'static str,
        frame_bytes: usize,
        stats: NicStats,
        lost: Option<u64>,
    ) -> RawResult {
        let time = end
            .started
            .duration_since(self.started)
            .as_secs_f64()
            .max(1e-9);
        let (frames, bytes, calls) = match lost {
            None => (stats.sent_frames, stats.sent_bytes, stats.send_calls),
            Some(_) => (
                stats.received_frames,
                stats.received_bytes,
                stats.receive_calls,
            ),
        };
        RawResult {
            role,
            frame_bytes,
            seconds: time,
            frames,
            bytes,
            gigabits_per_second: approximate(bytes) * 8.0 / time / 1e9,
            frames_per_second: approximate(frames) / time,
            cpu_seconds_per_gigabyte: (end.cpu - self.cpu) / (approximate(bytes).max(1.0) / 1e9),
            lost,
            calls,
        }
    }
}

impl fmt::Display for RawResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frames of {} bytes in {:.2} s: {:.2} Gbit/s, {:.0} frames/s, {:.3} CPU s/GB, {:.1} frames/call",
            self.role,
            self.frame_bytes,
            self.seconds,
            self.gigabits_per_second,
            self.frames_per_second,
            self.cpu_seconds_per_gigabyte,
            approximate(self.frames) / approximate(self.calls.max(1)),
        )?;
        if let Some(lost) = self.lost {
            let share = approximate(lost) / approximate((lost + self.frames).max(1));
            write!(f, ", {:.3} % lost", share * 100.0)?;
        }
        Ok(())
    }
}

/// For quotients that people read.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
const fn approximate(value: u64) -> f64 {
    value as f64
}

/// For quotients that people read.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
const fn seconds(value: i64) -> f64 {
    value as f64
}

/// As long as the head of a frame with a WRITE in it; no kind that a link knows.
fn header(number: u64, len: usize, over: bool) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let fields = [MAGIC, u64::from(over), number, len as u64];
    for (to, field) in head.chunks_exact_mut(8).zip(fields) {
        to.copy_from_slice(&field.to_be_bytes());
    }
    head
}

/// The number in a frame, or how many there were; `None` if it is none of ours.
fn read_header(frame: &[u8]) -> Option<(u64, bool)> {
    let word = |index: usize| {
        let bytes = frame.get(index * 8..)?.first_chunk()?;
        Some(u64::from_be_bytes(*bytes))
    };
    if word(0)? != MAGIC {
        return None;
    }
    Some((word(2)?, word(1)? != 0))
}

/// Begins with a version that no link speaks.
const MAGIC: u64 = 0xff72_6177_2d74_6573;
/// Header, operation header, and the fields of a WRITE.
const HEAD_BYTES: usize = 36;
/// The ring that payload comes from and goes to.
const RING_BYTES: usize = 4 << 20;
/// How often the end is said; any of them may be lost.
const FAREWELLS: u32 = 5;
/// How long the receiving end looks for more before it sleeps.
const LOOK: Duration = Duration::from_micros(100);
/// The receiving end takes silence of this length for the end.
const SILENCE_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_as_written() {
        let read = |text: &str| text.parse::<Peer>().map(|peer| peer.0.to_string());
        for good in ["10.9.0.2:7447", "[::1]:1", "02:00:5e:00:00:0f"] {
            assert_eq!(read(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "10.9.0.2",
            "02:00:5e:00:00",
            "02:00:5e:00:00:0f:",
            "2:0:0:0:0:1",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn frames_are_counted_and_losses_seen() {
        let (mut one, mut two) = nic::loopback::pair(1000).unwrap();
        let mut seen = Seen::default();
        for number in [0, 1, 3] {
            let head = header(number, 100, false);
            let rest = [7; 64];
            let frame = Outgoing {
                to: two.address(),
                head: &head,
                payload: [Slice::of_bytes(&rest), Slice::EMPTY],
            };
            one.send(&[frame]).unwrap();
        }
        let over = header(4, HEAD_BYTES, true);
        one.send(&[Outgoing::of_head(two.address(), &over)])
            .unwrap();
        one.send(&[Outgoing::of_head(two.address(), &[1; 50])])
            .unwrap();
        let mut ring = [0; 100];
        let mut position = 0;
        two.receive(&mut |_, frame| {
            if seen.note(frame) {
                position = place(&mut ring, position, frame);
            }
        })
        .unwrap();
        assert_eq!((seen.frames, seen.bytes, seen.end), (3, 300, Some(4)));
        assert!(seen.over);
        assert_eq!((position, ring), (92, [7; 100]));
    }
}
