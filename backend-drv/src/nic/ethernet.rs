//! Frames as Ethernet frames of our own EtherType, on one interface, through rings that the kernel maps.
//!
//! Needs CAP_NET_RAW to be opened and nothing afterwards. How long frames may be is the interface's MTU. Frames are
//! not looked at by any firewall, router or IP stack; both ends are in one segment.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::mtu::Mtu;
use super::stamp::Stamps;
use super::sys::{self, PacketRings};
use super::{Address, Arrival, Nic, NicStats, Outgoing, RECEIVE_BYTES, Sink};

/// The number that says what our frames carry: one that IEEE 802 keeps for local experiments.
pub const ETHER_TYPE: u16 = 0x88b5;

/// An interface.
#[derive(Debug)]
pub struct Ethernet {
    socket: OwnedFd,
    interface: String,
    /// Which interface of that name.
    index: i32,
    mac: [u8; 6],
    mtu: Mtu,
    rings: PacketRings,
    /// The last send did not take everything.
    full: bool,
    /// How often in a row nothing was there.
    empty: u32,
    stats: NicStats,
}

impl Ethernet {
    /// Opens `interface`; frames are at most `max_frame` bytes long, if that is said.
    ///
    /// # Errors
    /// No such interface, not Ethernet, down, or not allowed.
    pub fn open(interface: &str, max_frame: Option<usize>) -> io::Result<Self> {
        let socket = sys::packet_socket()?;
        let mac = sys::interface_mac(&socket, interface)?;
        let now = sys::interface_mtu(&socket, interface)?;
        // Slots cannot grow later.
        let limit = max_frame.unwrap_or(now).min(FRAME_MAX);
        let mtu = Mtu::of_interface(&socket, interface, 0, limit)?;
        let slot = limit + HEADER_BYTES;
        let rings = PacketRings::map(&socket, slot, INCOMING_BYTES, OUTGOING_BYTES)?;
        // What is on its way counts against the buffer, which the kernel takes twice; the socket is writable while
        // less than half of that is. So: not before a quarter of the ring is free again, and never full before it.
        let buffer = rings.outgoing_bytes() * 3 / 4;
        if setsockopt(&socket, sockopt::SndBufForce, &buffer).is_err() {
            let _ = setsockopt(&socket, sockopt::SndBuf, &buffer);
        }
        let index = sys::interface_index(&socket, interface)?;
        sys::bind_packet(&socket, index, ETHER_TYPE)?;
        Ok(Self {
            socket,
            interface: interface.to_owned(),
            index,
            mac,
            mtu,
            rings,
            full: false,
            empty: 0,
            stats: NicStats::default(),
        })
    }

    /// Now and then: looks at the interface, which may have another MTU, or be another one of the same name.
    fn look_after_interface(&mut self) {
        if !self.mtu.refresh(&self.socket) {
            return;
        }
        let socket = self.socket.as_fd();
        let again = match sys::interface_index(socket, &self.interface) {
            Ok(index) if index != self.index => index,
            Ok(_) | Err(_) => return,
        };
        let mac = sys::interface_mac(socket, &self.interface);
        let bound = mac.and_then(|mac| sys::bind_packet(socket, again, ETHER_TYPE).map(|()| mac));
        match bound {
            Ok(mac) => {
                tracing::info!(
                    interface = self.interface,
                    "there is an interface of this name again"
                );
                (self.index, self.mac) = (again, mac);
            }
            // It may have gone again; there is another look later.
            Err(error) => tracing::debug!(interface = self.interface, %error, "binding again"),
        }
    }

    /// Hands the queued frames to the kernel; false if it cannot take them all now.
    fn kick(&mut self) -> io::Result<bool> {
        self.stats.send_calls += 1;
        let mut attempts = 0;
        loop {
            let Err(error) = self.rings.kick(&self.socket) else {
                return Ok(true);
            };
            attempts += 1;
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(false),
                Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL) => return Err(error),
                // A queue on the way out has refused a frame: the others may still pass.
                Some(libc::ENOBUFS) if attempts < ATTEMPTS_MAX => {}
                // The interface is down, or has gone. What waits would be old when it comes back.
                _ => {
                    self.stats.send_drops += self.rings.abandon() as u64;
                    return Ok(true);
                }
            }
        }
    }
}

impl Nic for Ethernet {
    fn address(&self) -> Address {
        Address::Mac(self.mac)
    }

    fn broadcast(&self) -> Option<Address> {
        Some(Address::Mac([0xff; 6]))
    }

    fn max_frame(&self) -> usize {
        self.mtu.max_frame()
    }

    fn window(&self) -> usize {
        // Every frame takes a slot, however short it is; links send long ones when there is much to send.
        self.rings.incoming_slots() * self.mtu.max_frame()
    }

    fn send(&mut self, batch: &[Outgoing<'_>]) -> io::Result<usize> {
        self.look_after_interface();
        self.full = self.rings.has_unsent() && !self.kick()?;
        if self.full {
            return Ok(0);
        }
        let mut taken = 0;
        for frame in batch {
            let len = frame.len();
            let to = match frame.to {
                Address::Mac(to) if len <= self.mtu.max_frame() => to,
                Address::Mac(_) | Address::Udp(_) => {
                    self.stats.send_drops += 1;
                    taken += 1;
                    continue;
                }
            };
            let header = header(to, self.mac);
            // With the ring full, the kernel may free slots while it sends.
            let queued = self.rings.queue(&header, frame)
                || (self.kick()? && self.rings.queue(&header, frame));
            if !queued {
                self.full = true;
                return Ok(taken);
            }
            self.stats.sent_frames += 1;
            self.stats.sent_bytes += len as u64;
            taken += 1;
        }
        if self.rings.has_unsent() {
            // If it cannot take all now, the rest goes with the next call.
            self.full = !self.kick()?;
        }
        Ok(taken)
    }

    fn receive(&mut self, sink: &mut Sink<'_>) -> io::Result<usize> {
        self.stats.receive_calls += 1;
        let stats = &mut self.stats;
        let before = *stats;
        let mut losing = false;
        let mut slots = 0;
        let mut clock = Stamps::default();
        while slots < BATCH_MAX && stats.received_bytes - before.received_bytes < RECEIVE_BYTES {
            let there = self.rings.receive(|arrived| {
                losing |= arrived.losing;
                let frame = arrived.bytes.split_at_mut_checked(HEADER_BYTES);
                match frame {
                    Some((header, frame)) if arrived.ours && !arrived.cut => {
                        stats.received_frames += 1;
                        stats.received_bytes += frame.len() as u64;
                        let from = Address::Mac(sender(header));
                        let at = clock.moment(arrived.at);
                        sink(Arrival { from, at }, frame);
                    }
                    _ => stats.malformed += 1,
                }
            });
            if !there {
                break;
            }
            slots += 1;
        }
        if losing {
            stats.receive_drops += u64::from(sys::packet_drops(&self.socket).unwrap_or(0));
        }
        // An error that waits, such as that of an interface which went down, makes the socket readable for ever. It is
        // looked for now and then only: looking for frames costs no system call, and shall not.
        self.empty = if slots == 0 { self.empty + 1 } else { 0 };
        if self.empty == EMPTY_MAX {
            self.empty = 0;
            let _ = rustix::net::sockopt::socket_error(&self.socket);
        }
        usize::try_from(stats.received_frames - before.received_frames)
            .map_err(|_| io::ErrorKind::Other.into())
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

fn header(to: [u8; 6], from: [u8; 6]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (addresses, kind) = header.split_at_mut(12);
    let (first, second) = addresses.split_at_mut(6);
    first.copy_from_slice(&to);
    second.copy_from_slice(&from);
    kind.copy_from_slice(&ETHER_TYPE.to_be_bytes());
    header
}

fn sender(header: &[u8]) -> [u8; 6] {
    let from = header.get(6..).and_then(|rest| rest.first_chunk());
    from.copied().unwrap_or_default()
}

/// To whom, from whom, what.
const HEADER_BYTES: usize = 14;
/// Longer frames would not fit the pages that the kernel hangs on a packet.
const FRAME_MAX: usize = 60_000;
/// Room for what arrives while we are busy: a millisecond or two at 20 Gbit/s. A larger ring would be slower, since
/// it is filled round and round, and caches are small.
const INCOMING_BYTES: usize = 4 << 20;
/// Room for what goes out. Frames are copied in, and out again where the interface keeps no pages of others (a veth pair):
/// from a cache, if the ring fits there beside the programs' rings.
const OUTGOING_BYTES: usize = 512 << 10;
/// Frames per call of `receive`.
const BATCH_MAX: usize = 64;
/// So often in a row nothing is there before an error is looked for.
const EMPTY_MAX: u32 = 16;
/// Attempts with an interface whose queue is full.
const ATTEMPTS_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::Slice;
    use crate::nic::veth::{NAMES, Veth};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn open(veth: &Veth) -> (Ethernet, Ethernet) {
        veth.open(|end| Ethernet::open(NAMES[end], None).unwrap())
    }

    /// What arrives until `frames` frames are there, or nothing more comes.
    fn collect(nic: &mut Ethernet, frames: usize) -> Vec<(Address, Vec<u8>)> {
        let mut got = Vec::new();
        while got.len() < frames {
            let mut fds = [PollFd::new(nic.readiness(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(2000u16)).unwrap() == 0 {
                break;
            }
            nic.receive(&mut |arrival, frame| got.push((arrival.from, frame.to_vec())))
                .unwrap();
        }
        got
    }

    /// Sends everything, however often the ring is full.
    fn send_all(nic: &mut Ethernet, mut batch: &[Outgoing<'_>]) {
        while !batch.is_empty() {
            let taken = nic.send(batch).unwrap();
            batch = &batch[taken..];
            if nic.wants_write() {
                let mut fds = [PollFd::new(nic.readiness(), PollFlags::POLLOUT)];
                assert_eq!(poll(&mut fds, PollTimeout::from(2000u16)), Ok(1));
            }
        }
    }

    fn check(mtu: usize) {
        let Some(veth) = Veth::new(mtu) else {
            return;
        };
        let (mut near, mut far) = open(&veth);
        assert_eq!(near.max_frame(), mtu);
        // More than either ring holds, in portions that the receiving one does.
        let mut sent = 0;
        for round in 0..40u32 {
            let bytes: Vec<Vec<u8>> = (0..100)
                .map(|number| {
                    let number = round * 100 + number;
                    let len = 46 + number as usize * 37 % (mtu - 45);
                    let mut bytes = vec![number.to_le_bytes()[0]; len];
                    bytes[..4].copy_from_slice(&number.to_be_bytes());
                    bytes
                })
                .collect();
            let batch: Vec<_> = bytes
                .iter()
                .map(|bytes| {
                    let (head, rest) = bytes.split_at(bytes.len() / 3);
                    let (first, second) = rest.split_at(rest.len() / 2);
                    Outgoing {
                        to: far.address(),
                        head,
                        payload: [Slice::of_bytes(first), Slice::of_bytes(second)],
                    }
                })
                .collect();
            send_all(&mut near, &batch);
            let got = collect(&mut far, 100);
            sent += 100;
            assert!(got.iter().map(|(_, got)| got).eq(&bytes));
            assert!(got.iter().all(|(from, _)| *from == near.address()));
        }
        assert_eq!(near.stats().sent_frames, sent);
        assert_eq!(far.stats().received_frames, sent);
        assert_eq!(near.stats().sent_bytes, far.stats().received_bytes);
        assert_eq!((near.stats().send_drops, far.stats().receive_drops), (0, 0));
    }

    #[test]
    fn frames_arrive_whole_and_in_order() {
        check(1500);
        check(9000);
    }

    #[test]
    fn only_frames_for_us_or_for_all_arrive() {
        let Some(veth) = Veth::new(1500) else {
            return;
        };
        let (mut near, mut far) = open(&veth);
        let stranger = Address::Mac([2, 9, 9, 9, 9, 9]);
        let head = [1; 1501];
        let batch = [
            Outgoing::of_head(stranger, &head[..50]),
            Outgoing::of_head(far.address(), &head),
            Outgoing::of_head(Address::Udp("1.2.3.4:5".parse().unwrap()), &head[..50]),
            Outgoing::of_head(near.broadcast().unwrap(), &head[..51]),
            Outgoing::of_head(far.address(), &head[..52]),
        ];
        send_all(&mut near, &batch);
        let lens: Vec<_> = collect(&mut far, 2).iter().map(|got| got.1.len()).collect();
        assert_eq!(lens, [51, 52]);
        assert_eq!(near.stats().send_drops, 2);
        assert_eq!(far.stats().malformed, 1);
    }

    #[test]
    fn what_no_slot_holds_is_lost_and_counted() {
        let Some(veth) = Veth::new(9000) else {
            return;
        };
        let (mut near, mut far) = open(&veth);
        let head = [1; 9000];
        let batch = vec![Outgoing::of_head(far.address(), &head); 2000];
        send_all(&mut near, &batch);
        let mut got = 0;
        while far.receive(&mut |_, _| got += 1).unwrap() > 0 {}
        assert!((100..2000).contains(&got));
        // The kernel says so with the first frame that finds a slot again.
        send_all(&mut near, &batch[..1]);
        assert_eq!(collect(&mut far, 1).len(), 1);
        let stats = far.stats();
        assert_eq!(stats.received_frames + stats.receive_drops, 2001);
    }

    #[test]
    fn an_interface_may_go_down_and_come_back_with_another_mtu() {
        let Some(veth) = Veth::new(9000) else {
            return;
        };
        let (mut near, mut far) = open(&veth);
        let head = [1; 1400];
        let batch = [Outgoing::of_head(far.address(), &head); 3];
        assert!(veth.ip(0, "link set one down"));
        // The error of that makes the socket readable, but not for ever.
        for _ in 0..EMPTY_MAX {
            assert_eq!(near.receive(&mut |_, _| panic!("nothing")).unwrap(), 0);
        }
        let mut fds = [PollFd::new(near.readiness(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0));
        assert_eq!(near.send(&batch).unwrap(), 3);
        assert!(!near.wants_write());
        assert_eq!(near.stats().send_drops, 3);
        for mtu in [1500, 9000] {
            assert!(veth.ip(0, &format!("link set one mtu {mtu} up")));
            near.mtu.look(&near.socket);
            assert_eq!(near.max_frame(), mtu);
            while far.receive(&mut |_, _| {}).unwrap() > 0 {}
            send_all(&mut near, &batch);
            assert_eq!(collect(&mut far, 3).len(), 3);
        }
    }

    #[test]
    fn an_interface_may_go_and_come_again() {
        let Some(veth) = Veth::new(1500) else {
            return;
        };
        let (mut near, mut far) = open(&veth);
        let head = [1; 100];
        assert!(veth.ip(0, "link del one"));
        let batch = [Outgoing::of_head(far.address(), &head); 3];
        assert_eq!(near.send(&batch).unwrap(), 3);
        assert_eq!(near.stats().send_drops, 3);
        assert!(veth.make(1500));
        // Each finds out when it sends, within a second or so.
        let mut got = Vec::new();
        for _ in 0..50 {
            far.send(&[]).unwrap();
            let batch = [Outgoing::of_head(far.address(), &head)];
            send_all(&mut near, &batch);
            far.receive(&mut |arrival, frame| got.push((arrival.from, frame.len())))
                .unwrap();
            if !got.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(got, [(near.address(), 100)]);
    }
}
