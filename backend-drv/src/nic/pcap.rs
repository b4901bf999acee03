//! Writes every frame that passes another NIC to a file that Wireshark and tcpdump read (classic pcap, nanoseconds);
//! scripts/viaduct.lua takes the frames apart there.
//!
//! Around the frame stands what would stand there on the wire: the Ethernet header, or IP and UDP headers as the far
//! ends would see them. Writing stops at a gibibyte, or when it fails; the NIC goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::ethernet::ETHER_TYPE;
use super::{Address, Nic, NicStats, Outgoing, Sink};

/// A NIC and the file.
#[derive(Debug)]
pub struct Pcap<N: ?Sized = dyn Nic> {
    own: Address,
    file: Option<Writer>,
    /// The frame at hand.
    bytes: Vec<u8>,
    nic: Box<N>,
}

#[derive(Debug)]
struct Writer {
    file: BufWriter<File>,
    /// Bytes that may still be written.
    left: u64,
    /// Something is in the buffer.
    dirty: bool,
}

impl<N: Nic + ?Sized> Pcap<N> {
    /// Writes what passes `nic` to a file that is made anew.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(nic: Box<N>, path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, options.open(path)?);
        let own = nic.address();
        let link_type = match own {
            Address::Mac(_) => LINKTYPE_ETHERNET,
            Address::Udp(_) => LINKTYPE_RAW,
        };
        for word in [MAGIC, VERSION, 0, 0, SNAP_BYTES, link_type] {
            file.write_all(&word.to_le_bytes())?;
        }
        file.flush()?;
        Ok(Self {
            own,
            file: Some(Writer {
                file,
                left: FILE_BYTES_MAX,
                dirty: false,
            }),
            bytes: Vec::new(),
            nic,
        })
    }
}

impl<N: ?Sized> Pcap<N> {
    fn end(file: &mut Option<Writer>, error: &io::Error) {
        tracing::warn!(%error, "the capture of frames ends");
        *file = None;
    }
}

impl Writer {
    /// Writes a frame with what stands around it on the wire.
    fn write(&mut self, from: Address, to: Address, frame: &[u8]) -> io::Result<()> {
        let mut around = [0; AROUND_MAX];
        let around_len = match (from, to) {
            (Address::Mac(from), Address::Mac(to)) => ethernet(&mut around, from, to),
            (Address::Udp(from), Address::Udp(to)) => udp(&mut around, from, to, frame),
            // One end does not know such an address; nothing is sent there either.
            (Address::Mac(_), Address::Udp(_)) | (Address::Udp(_), Address::Mac(_)) => {
                return Ok(());
            }
        };
        let around = around.get(..around_len).unwrap_or(&[]);
        let bytes = around.len() + frame.len();
        self.left = (self.left)
            .checked_sub(16 + bytes as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let len = u32::try_from(bytes).unwrap_or(u32::MAX);
        for word in [seconds, now.subsec_nanos(), len, len] {
            self.file.write_all(&word.to_le_bytes())?;
        }
        self.file.write_all(around)?;
        self.file.write_all(frame)?;
        self.dirty = true;
        Ok(())
    }
}

impl<N: Nic + ?Sized> Nic for Pcap<N> {
    fn address(&self) -> Address {
        self.own
    }

    fn broadcast(&self) -> Option<Address> {
        self.nic.broadcast()
    }

    fn max_frame(&self) -> usize {
        self.nic.max_frame()
    }

    fn window(&self) -> usize {
        self.nic.window()
    }

    fn send(&mut self, batch: &[Outgoing<'_>]) -> io::Result<usize> {
        let sent = self.nic.send(batch)?;
        for frame in batch.iter().take(sent) {
            let Some(file) = &mut self.file else {
                break;
            };
            self.bytes.clear();
            frame.append_to(&mut self.bytes);
            if let Err(error) = file.write(self.own, frame.to, &self.bytes) {
                Self::end(&mut self.file, &error);
            }
        }
        Ok(sent)
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> io::Result<usize> {
        let (file, own) = (&mut self.file, self.own);
        let count = self.nic.receive(&mut |arrival, frame| {
            let written = file
                .as_mut()
                .map(|file| file.write(arrival.from, own, frame));
            if let Some(Err(error)) = written {
                Self::end(file, &error);
            }
            sink(arrival, frame);
        })?;
        // Nothing to do at the moment: time for the disk.
        if let Some(file) = self.file.as_mut().filter(|file| file.dirty && count == 0) {
            file.dirty = false;
            if let Err(error) = file.file.flush() {
                Self::end(&mut self.file, &error);
            }
        }
        Ok(count)
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.nic.readiness()
    }

    fn wants_write(&self) -> bool {
        self.nic.wants_write()
    }

    fn wake_at(&self) -> Option<Instant> {
        self.nic.wake_at()
    }

    fn stats(&self) -> NicStats {
        self.nic.stats()
    }
}

/// Puts an Ethernet header there; returns its length.
fn ethernet(out: &mut [u8; AROUND_MAX], from: [u8; 6], to: [u8; 6]) -> usize {
    let parts: [&[u8]; 3] = [&to, &from, &ETHER_TYPE.to_be_bytes()];
    put(out, &parts)
}

/// Puts IP and UDP headers there; returns their length.
fn udp(out: &mut [u8; AROUND_MAX], from: SocketAddr, to: SocketAddr, frame: &[u8]) -> usize {
    let payload = u16::try_from(frame.len() + UDP_BYTES).unwrap_or(u16::MAX);
    let ports = [from.port(), to.port()].map(u16::to_be_bytes);
    let [from_port, to_port] = &ports;
    let len = payload.to_be_bytes();
    if let (IpAddr::V6(from), IpAddr::V6(to)) = (from.ip(), to.ip()) {
        let pseudo: [&[u8]; 7] = [
            &from.octets(),
            &to.octets(),
            &[0, 0],
            &len,
            &[0, 0, 0, UDP],
            from_port,
            to_port,
        ];
        let sum = sum(&pseudo) + sum(&[&len, frame]);
        // Zero would mean that there is none.
        let checksum = match fold(sum) {
            0 => [0xff, 0xff],
            checksum => checksum.to_be_bytes(),
        };
        let parts: [&[u8]; 8] = [
            &[0x60, 0, 0, 0],
            &len,
            &[UDP, HOPS],
            &from.octets(),
            &to.octets(),
            from_port,
            to_port,
            &len,
        ];
        let at = put(out, &parts);
        return at + put_at(out, at, &checksum);
    }
    let (from, to) = (v4(from.ip()).octets(), v4(to.ip()).octets());
    let total = u16::try_from(frame.len() + UDP_BYTES + 20).unwrap_or(u16::MAX);
    // Not to be fragmented.
    let head = [0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, UDP];
    let checksum = fold(sum(&[&head, &total.to_be_bytes(), &from, &to])).to_be_bytes();
    let parts: [&[u8]; 10] = [
        &[0x45, 0],
        &total.to_be_bytes(),
        &[0, 0, 0x40, 0, HOPS, UDP],
        &checksum,
        &from,
        &to,
        from_port,
        to_port,
        &len,
        // None, as UDP over IPv4 allows.
        &[0, 0],
    ];
    put(out, &parts)
}

/// The own address may be unspecified in the other family.
fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => Ipv6Addr::to_ipv4_mapped(&ip).unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

fn put(out: &mut [u8; AROUND_MAX], parts: &[&[u8]]) -> usize {
    parts.iter().fold(0, |at, part| at + put_at(out, at, part))
}

fn put_at(out: &mut [u8; AROUND_MAX], at: usize, part: &[u8]) -> usize {
    let Some(to) = out.get_mut(at..at + part.len()) else {
        return 0;
    };
    to.copy_from_slice(part);
    part.len()
}

/// Sum of 16-bit words; every part but the last has an even length.
fn sum(parts: &[&[u8]]) -> u64 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    words
        .map(|word| match word {
            [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
            [high] => u64::from(*high) << 8,
            _ => 0,
        })
        .sum()
}

/// The Internet checksum of a sum.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Nanoseconds, and the order of bytes.
const MAGIC: u32 = 0xa1b2_3c4d;
/// 2.4.
const VERSION: u32 = 4 << 16 | 2;
/// Longer packets do not exist.
const SNAP_BYTES: u32 = 1 << 18;
const LINKTYPE_ETHERNET: u32 = 1;
/// IPv4 or IPv6, as the first byte says.
const LINKTYPE_RAW: u32 = 101;
const UDP: u8 = 17;
const HOPS: u8 = 64;
const UDP_BYTES: usize = 8;
/// IPv6 and UDP headers.
const AROUND_MAX: usize = 40 + UDP_BYTES;
const BUFFER_BYTES: usize = 1 << 16;
/// A forgotten capture shall not fill the disk.
const FILE_BYTES_MAX: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::loopback;
    use crate::nic::udp::Udp;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    /// The packets of a capture, and its link type.
    fn read(path: &Path) -> (u32, Vec<Vec<u8>>) {
        let bytes = std::fs::read(path).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(16)), (MAGIC, VERSION, SNAP_BYTES));
        let mut packets = Vec::new();
        let mut at = 24;
        while at < bytes.len() {
            let len = word(at + 8) as usize;
            assert_eq!(len, word(at + 12) as usize);
            packets.push(bytes[at + 16..at + 16 + len].to_vec());
            at += 16 + len;
        }
        (word(20), packets)
    }

    #[test]
    fn both_directions_are_written_as_on_the_wire() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("frames.pcap");
        let (mut one, two) = loopback::pair(100).unwrap();
        let mut two = Pcap::new(Box::new(two), &path).unwrap();
        one.send(&[Outgoing::of_head(two.address(), &[1, 2, 3])])
            .unwrap();
        while two.receive(&mut |_, _| {}).unwrap() > 0 {}
        two.send(&[Outgoing::of_head(one.address(), &[9])]).unwrap();
        assert_eq!(two.receive(&mut |_, _| {}).unwrap(), 0);
        let (kind, packets) = read(&path);
        assert_eq!(kind, 1);
        let expected = [
            vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5, 1, 2, 3],
            vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5, 9],
        ];
        assert_eq!(packets, expected);
    }

    fn capture_udp(address: &str) -> Vec<u8> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("frames.pcap");
        let mut one = Udp::open(address.parse().unwrap(), None).unwrap();
        let two = Udp::open(address.parse().unwrap(), None).unwrap();
        let mut two = Pcap::new(Box::new(two), &path).unwrap();
        let frame = [0xab; 101];
        one.send(&[Outgoing::of_head(two.address(), &frame)])
            .unwrap();
        let mut fds = [PollFd::new(two.readiness(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(2000u16)), Ok(1));
        while two.receive(&mut |_, _| {}).unwrap() > 0 {}
        let (kind, mut packets) = read(&path);
        assert_eq!((kind, packets.len()), (101, 1));
        packets.remove(0)
    }

    #[test]
    fn udp_headers_check_out() {
        let packet = capture_udp("127.0.0.1:0");
        assert_eq!(packet.len(), 28 + 101);
        assert_eq!(packet[..4], [0x45, 0, 0, 129]);
        assert_eq!(packet[12..20], [127, 0, 0, 1, 127, 0, 0, 1]);
        // A header with its checksum sums up to zero.
        assert_eq!(fold(sum(&[&packet[..20]])), 0);
        assert_eq!(packet[24..28], [0, 109, 0, 0]);

        if std::net::UdpSocket::bind("[::1]:0").is_err() {
            println!("skipped: no IPv6");
            return;
        }
        let packet = capture_udp("[::1]:0");
        assert_eq!(packet.len(), 48 + 101);
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 109, 17, 64]);
        let pseudo = [0, 0, 0, 109, 0, 0, 0, 17];
        assert_eq!(fold(sum(&[&packet[8..40], &pseudo, &packet[40..]])), 0);
    }
}
