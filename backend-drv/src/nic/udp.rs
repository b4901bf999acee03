//! Frames as UDP datagrams, one each.
//!
//! Out: successive frames to one address and of one size are one message, which the kernel cuts up as late as it can
//! (UDP_SEGMENT); several messages are one call. In: the kernel joins what came (UDP_GRO), and several messages are
//! one call. Where the kernel or the route cannot segment, every frame is a message of its own.
//!
//! No frame is ever fragmented: path MTU discovery is in probe mode, in which the kernel refuses what is longer than
//! the interface allows and believes nobody else. What passes further on is found out by the link.

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::mtu::Mtu;
use super::sys::{self, Inbox, Outbox, Run};
use super::{Address, Arrival, Nic, NicStats, Outgoing, RECEIVE_BYTES, Sink};

/// A UDP socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    address: SocketAddr,
    mtu: Mtu,
    window: usize,
    /// The kernel can cut messages up.
    segments: bool,
    /// The last send did not take everything.
    full: bool,
    outbox: Outbox,
    runs: Vec<Run>,
    inbox: Inbox,
    /// Messages since the last one into which the kernel had joined much.
    short_messages: u32,
    /// What the socket said last about losses.
    lost: u32,
    stats: NicStats,
}

impl Udp {
    /// Binds `address`; frames are at most `max_frame` bytes long, if that is said.
    ///
    /// # Errors
    /// The address cannot be had, or the socket not be set up.
    pub fn open(address: SocketAddr, max_frame: Option<usize>) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        never_fragment(&socket, address.ip())?;
        let window = enlarge(&socket);
        // Both are missing in old kernels, and then not needed for anything but speed.
        let segments = sys::set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        if setsockopt(&socket, sockopt::UdpGroSegment, &true).is_err() || !segments {
            tracing::info!(%address, "the kernel has no UDP segmentation: slower");
        }
        if let Err(error) = sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1) {
            tracing::debug!(%error, "SO_RXQ_OVFL");
        }
        if let Err(error) = sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1) {
            tracing::debug!(%error, "SO_TIMESTAMPNS");
        }
        let overhead = match address.ip() {
            IpAddr::V4(_) => UDP_HEADER + IPV4_HEADER,
            IpAddr::V6(_) => UDP_HEADER + IPV6_HEADER,
        };
        let limit = max_frame.unwrap_or(usize::MAX).min(IP_MAX - overhead);
        let mtu = Mtu::of_address(&socket, address.ip(), overhead, limit)?;
        Ok(Self {
            socket,
            address,
            mtu,
            window,
            segments,
            full: false,
            outbox: Outbox::default(),
            runs: Vec::new(),
            inbox: Inbox::new(MESSAGES_IN_MAX),
            short_messages: SHORT_MESSAGES,
            lost: 0,
            stats: NicStats::default(),
        })
    }

    /// The address as this socket's family writes it; `None` if it cannot.
    fn reachable(&self, to: Address) -> Option<SocketAddr> {
        match (to, self.address) {
            (Address::Udp(to @ SocketAddr::V4(_)), SocketAddr::V4(_))
            | (Address::Udp(to @ SocketAddr::V6(_)), SocketAddr::V6(_)) => Some(to),
            (Address::Udp(SocketAddr::V4(to)), SocketAddr::V6(_)) => {
                let ip: Ipv6Addr = to.ip().to_ipv6_mapped();
                Some(SocketAddr::V6(SocketAddrV6::new(ip, to.port(), 0, 0)))
            }
            (Address::Udp(SocketAddr::V6(_)), SocketAddr::V4(_)) | (Address::Mac(_), _) => None,
        }
    }

    /// Divides the batch, from frame `first` on, into as many messages as one call takes; returns where it stopped.
    /// Frames that this socket cannot send to are lost once they are the first.
    fn plan(&mut self, batch: &[Outgoing<'_>], mut first: usize, segments: bool) -> usize {
        self.runs.clear();
        while let Some(rest) = batch.get(first..).filter(|rest| !rest.is_empty()) {
            if self.runs.len() == MESSAGES_MAX {
                break;
            }
            let (frames, segment) = next_run(rest, if segments { SEGMENTS_MAX } else { 1 });
            match rest.first().and_then(|frame| self.reachable(frame.to)) {
                Some(to) => self.runs.push(Run {
                    to,
                    first,
                    frames,
                    segment,
                }),
                None if self.runs.is_empty() => self.stats.send_drops += frames as u64,
                None => break,
            }
            first += frames;
        }
        first
    }

    /// Counts what the first `sent` messages carried.
    fn count(&mut self, batch: &[Outgoing<'_>], sent: usize) {
        for run in self.runs.iter().take(sent) {
            let frames = batch.iter().skip(run.first).take(run.frames);
            self.stats.sent_bytes += frames.map(|frame| frame.len() as u64).sum::<u64>();
            self.stats.sent_frames += run.frames as u64;
        }
    }

    /// Receives what one call brings, at most so many messages; returns how many.
    fn receive_some(&mut self, most: usize, sink: &mut Sink<'_>) -> io::Result<usize> {
        self.stats.receive_calls += 1;
        let datagrams = match self.inbox.receive(&self.socket, most) {
            Ok(datagrams) => datagrams,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::ENOMEM) => Err(error),
                    // Nothing there, or an error of an earlier frame, which this call has taken away.
                    _ => Ok(0),
                };
            }
        };
        let stats = &mut self.stats;
        let lost = &mut self.lost;
        let short = &mut self.short_messages;
        let mut messages = 0;
        datagrams.for_each(|message| {
            messages += 1;
            if let Some(now) = message.lost {
                stats.receive_drops += u64::from(now.wrapping_sub(*lost));
                *lost = now;
            }
            let Some(from) = message.from.filter(|_| !message.cut) else {
                stats.malformed += 1;
                return;
            };
            stats.received_bytes += message.bytes.len() as u64;
            *short = if message.bytes.len() < LONG_MESSAGE {
                short.saturating_add(1)
            } else {
                0
            };
            for frame in message.bytes.chunks_mut(message.segment) {
                stats.received_frames += 1;
                let from = Address::Udp(from);
                let at = message.at;
                sink(Arrival { from, at }, frame);
            }
        });
        Ok(messages)
    }

    /// The message of `run` was refused. Says what to do about it.
    fn refused(&mut self, run: &Run, error: &io::Error) -> Refusal {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Refusal::Full,
            Some(libc::EINTR) => Refusal::Again,
            // The message is too long for what the interface is now, or the way to this address cannot segment.
            Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)
                if run.segment.is_some() =>
            {
                if error.raw_os_error() == Some(libc::EIO) {
                    tracing::info!(address = %self.address, to = %run.to, "no UDP segmentation: slower");
                    self.segments = false;
                }
                Refusal::Apart
            }
            Some(libc::EMSGSIZE) => {
                self.mtu.look(&self.socket);
                Refusal::Lost
            }
            Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::ENOMEM) => Refusal::Broken,
            // An earlier frame met nobody, or a queue on the way out is full, or there is no route at present, or a
            // filter forbids it: for the link, all of that is loss.
            _ => Refusal::Lost,
        }
    }
}

/// What to do about a message that the kernel did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Wait until the socket is writable.
    Full,
    /// Try at once.
    Again,
    /// Send its frames one by one.
    Apart,
    /// Go on without it.
    Lost,
    /// The socket is of no use.
    Broken,
}

impl Nic for Udp {
    fn address(&self) -> Address {
        Address::Udp(self.address)
    }

    fn max_frame(&self) -> usize {
        self.mtu.max_frame()
    }

    fn window(&self) -> usize {
        self.window
    }

    fn send(&mut self, batch: &[Outgoing<'_>]) -> io::Result<usize> {
        self.mtu.refresh(&self.socket);
        self.full = false;
        let mut taken = 0;
        // Frames before this one go one by one.
        let mut apart_until = 0;
        while taken < batch.len() {
            let apart = taken < apart_until;
            let end = if apart { apart_until } else { batch.len() };
            let part = batch.get(..end).unwrap_or(batch);
            let planned = self.plan(part, taken, self.segments && !apart);
            if self.runs.is_empty() {
                taken = planned;
                continue;
            }
            self.stats.send_calls += 1;
            match self.outbox.send(&self.socket, batch, &self.runs) {
                Ok(sent) => {
                    self.count(batch, sent);
                    taken = self.runs.get(sent).map_or(planned, |run| run.first);
                }
                Err(error) => {
                    let Some(run) = self.runs.first().copied() else {
                        continue;
                    };
                    match self.refused(&run, &error) {
                        Refusal::Full => {
                            self.full = true;
                            return Ok(run.first);
                        }
                        Refusal::Again => {}
                        Refusal::Apart => apart_until = run.first + run.frames,
                        Refusal::Lost => {
                            self.stats.send_drops += run.frames as u64;
                            taken = run.first + run.frames;
                        }
                        Refusal::Broken => return Err(error),
                    }
                }
            }
        }
        Ok(taken)
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> io::Result<usize> {
        let before = self.stats;
        // Where the kernel joins nothing, a message brings little, and a call takes several.
        let most = if self.short_messages < SHORT_MESSAGES {
            1
        } else {
            MESSAGES_IN_MAX
        };
        for _ in 0..CALLS_IN_MAX {
            let messages = self.receive_some(most, sink)?;
            let bytes = self.stats.received_bytes - before.received_bytes;
            if messages < most || bytes >= RECEIVE_BYTES {
                break;
            }
        }
        let frames = self.stats.received_frames - before.received_frames;
        usize::try_from(frames).map_err(|_| io::ErrorKind::Other.into())
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn wants_write(&self) -> bool {
        self.full
    }

    fn stats(&self) -> NicStats {
        self.stats
    }
}

/// The longest run at the beginning of `frames` that can be one message: one address, one size, of which the last may
/// fall short. Returns how many frames, and where to cut.
fn next_run(frames: &[Outgoing<'_>], segments_max: usize) -> (usize, Option<u16>) {
    let Some(first) = frames.first() else {
        return (0, None);
    };
    let segment = first.len();
    let mut bytes = 0;
    let mut count = 0;
    for frame in frames.iter().take(segments_max) {
        let len = frame.len();
        if frame.to != first.to || len > segment || bytes + len > MESSAGE_MAX {
            break;
        }
        // An empty datagram cannot be a part of a message.
        if len == 0 && count > 0 {
            break;
        }
        bytes += len;
        count += 1;
        if len < segment {
            break;
        }
    }
    match u16::try_from(segment) {
        Ok(segment) if count > 1 => (count, Some(segment)),
        _ => (1, None),
    }
}

/// Never fragments, never asks for it, and believes no router about the path.
fn never_fragment(socket: &UdpSocket, ip: IpAddr) -> io::Result<()> {
    let probe = libc::IP_PMTUDISC_PROBE;
    if ip.is_ipv6() {
        let name = libc::IPV6_MTU_DISCOVER;
        sys::set_option(socket, libc::IPPROTO_IPV6, name, libc::IPV6_PMTUDISC_PROBE)?;
        // For IPv4 addresses over the same socket; an IPv6-only one refuses.
        let _ = sys::set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe);
        return Ok(());
    }
    sys::set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)
}

/// Asks for big buffers: beyond the system's limit if allowed, else up to it. Returns what can be received meanwhile.
fn enlarge(socket: &UdpSocket) -> usize {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &BUFFER_BYTES);
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &BUFFER_BYTES);
    }
    // The kernel counts its own structures too, and doubles the number for them.
    getsockopt(socket, sockopt::RcvBuf).map_or(0, |bytes| bytes / 2)
}

const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// What the length field of IP can say.
const IP_MAX: usize = 65_535;
/// Bytes that one message may have: the longest datagram over IPv4, less than that over IPv6.
const MESSAGE_MAX: usize = IP_MAX - UDP_HEADER - IPV6_HEADER;
/// Most frames that the kernel cuts one message into (UDP_MAX_SEGMENTS of the oldest kernels that can).
const SEGMENTS_MAX: usize = 64;
/// Messages that one call sends.
const MESSAGES_MAX: usize = 16;
/// Messages that one call receives.
const MESSAGES_IN_MAX: usize = 4;
/// After so many messages shorter than this, the kernel joins nothing.
const SHORT_MESSAGES: u32 = 256;
const LONG_MESSAGE: usize = 16 << 10;
/// Calls at once.
const CALLS_IN_MAX: usize = 4;
/// Room for what arrives while we are busy: a few milliseconds at 20 Gbit/s.
const BUFFER_BYTES: usize = 8 << 20;
