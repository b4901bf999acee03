//! One end's descriptors, and the calls on them.

use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, F_DUPFD, F_DUPFD_CLOEXEC, MSG_DONTWAIT,
    MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, SOL_SOCKET,
};

use super::operation::{Call, DupBy, Fact, How, Knob, PLACES, PollBy, RecvBy, SETS, SendBy, Side};
use super::wire;
use crate::show;
use crate::sys::{self, Ret, fd_of};

/// First number of the descriptors that dup2 makes.
const DUP2_FROM: i32 = 300;

/// What a call did: bytes of the stream that it moved, and how it is written down.
pub(super) type Done = (u64, String);

/// One end's descriptors.
#[derive(Debug)]
pub(super) struct Hand {
    pub(super) side: Side,
    pub(super) places: [i32; PLACES],
    pub(super) sets: [i32; SETS],
}

impl Hand {
    pub(super) const fn new(side: Side) -> Self {
        Self {
            side,
            places: [-1; PLACES],
            sets: [-1; SETS],
        }
    }

    /// A descriptor of the socket, if there is any.
    pub(super) fn any(&self) -> Option<i32> {
        self.places.iter().copied().find(|fd| *fd >= 0)
    }

    /// Closes everything.
    pub(super) fn close_all(&mut self) {
        for fd in self.places.iter_mut().chain(&mut self.sets) {
            if *fd >= 0 {
                let _ = sys::close(*fd);
            }
            *fd = -1;
        }
    }

    /// Makes one call; `position` is where in its stream the next byte lies.
    pub(super) fn make(&mut self, call: Call, position: u64) -> Done {
        let fd = |at: usize| self.places.get(at).copied().unwrap_or(-1);
        match call {
            Call::Send { at, by, len, flags } => self.send(fd(at), by, position, len, flags),
            Call::Recv { at, by, len, flags } => recv(self.side, fd(at), by, position, len, flags),
            Call::Poll { by, events } => (0, self.poll(by, events)),
            Call::EpollAdd { set, at, events } => (0, self.add(set, at, events)),
            Call::EpollMod { set, at, events } => {
                let data = at as u64 + 101;
                (0, self.control(set, EPOLL_CTL_MOD, fd(at), events, data))
            }
            Call::EpollDel { set, at } => (0, self.control(set, EPOLL_CTL_DEL, fd(at), 0, 0)),
            Call::EpollWait { set } => {
                let set = self.sets.get(set).copied().unwrap_or(-1);
                (0, show::events(&sys::epoll_wait(set, 8, 0)))
            }
            Call::EpollClose { set } => (0, close(self.sets.get_mut(set))),
            Call::Shutdown { at, how } => {
                let how = match how {
                    How::Read => libc::SHUT_RD,
                    How::Write => libc::SHUT_WR,
                    How::Both => libc::SHUT_RDWR,
                };
                (0, show::ok(sys::shutdown(fd(at), how)))
            }
            Call::Close { at } => (0, close(self.places.get_mut(at))),
            Call::Dup { at, to, by } => (0, self.dup(at, to, by)),
            Call::Set { at, knob, value } => (0, show::ok(turn(fd(at), knob, value))),
            Call::Get { at, fact } => (0, tell(fd(at), fact)),
            Call::Pour { .. }
            | Call::Fill { .. }
            | Call::Fork { .. }
            | Call::Exit { .. }
            | Call::Reconnect
            | Call::Revoke => (0, "not a call".to_owned()),
        }
    }

    fn send(&self, fd: i32, by: SendBy, position: u64, len: usize, flags: i32) -> Done {
        let data = wire::bytes(self.side, position, len);
        let parts = thirds(&data);
        let ret = match by {
            SendBy::Send => sys::send(fd, &data, flags),
            SendBy::Write => sys::write(fd, &data),
            SendBy::Writev => sys::writev(fd, &parts),
            SendBy::Sendmsg => sys::sendmsg(fd, &parts, flags),
            SendBy::Sendfile => {
                let (offset, ret) = sendfile(fd, &data);
                return (moved(ret), format!("{} offset {offset}", show::ret(ret)));
            }
            SendBy::Sendmmsg => {
                let (ret, lens) = sys::sendmmsg(fd, &parts, flags);
                let sent = sum(ret, &lens);
                return (sent, format!("{} {lens:?}", show::ret(ret)));
            }
        };
        (moved(ret), show::ret(ret))
    }

    fn poll(&self, by: PollBy, events: i32) -> String {
        let open: Vec<i32> = self.places.iter().copied().filter(|fd| *fd >= 0).collect();
        let bits = i16::try_from(events & 0x7fff).unwrap_or(0);
        let wants: Vec<(i32, i16)> = open.iter().map(|fd| (*fd, bits)).collect();
        let mask = sys::signal_set(None);
        let (ret, revents) = match by {
            PollBy::Poll => sys::poll(&wants, 0),
            PollBy::Ppoll => sys::ppoll(&wants, Some(0), Some(&mask)),
            PollBy::Select | PollBy::Pselect => {
                let asked = |bit: i32| {
                    if events & bit != 0 {
                        open.as_slice()
                    } else {
                        &[]
                    }
                };
                let mask = (by == PollBy::Pselect).then_some(&mask);
                let [read, write, except] =
                    [libc::EPOLLIN, libc::EPOLLOUT, libc::EPOLLPRI].map(asked);
                let told = sys::select(read, write, except, Some(0), mask);
                let (read, write, except) = (told.read, told.write, told.except);
                return format!("{} {read:?} {write:?} {except:?}", show::ret(told.ret));
            }
        };
        let each: Vec<String> = revents.iter().map(|bits| show::bits(*bits)).collect();
        format!("{} {}", show::ret(ret), each.join(" "))
    }

    fn add(&mut self, set: usize, at: usize, events: i32) -> String {
        if let Some(set) = self.sets.get_mut(set)
            && *set < 0
        {
            *set = fd_of(sys::epoll_create());
        }
        let fd = self.places.get(at).copied().unwrap_or(-1);
        self.control(set, EPOLL_CTL_ADD, fd, events, at as u64 + 1)
    }

    fn control(&self, set: usize, op: i32, fd: i32, events: i32, data: u64) -> String {
        let set = self.sets.get(set).copied().unwrap_or(-1);
        show::ret(sys::epoll_ctl(set, op, fd, events, data))
    }

    fn dup(&mut self, at: usize, to: usize, by: DupBy) -> String {
        let from = self.places.get(at).copied().unwrap_or(-1);
        let there = self.places.get(to).copied().unwrap_or(-1);
        let over = matches!(by, DupBy::Dup2 | DupBy::Dup3);
        let number = match i32::try_from(to) {
            Ok(to) if there < 0 => DUP2_FROM + 10 * i32::from(self.side == Side::B) + to,
            _ => there,
        };
        if there >= 0 && !over {
            let _ = sys::close(there);
        }
        let ret = match by {
            DupBy::Dup => sys::dup(from),
            DupBy::Dup2 => sys::dup2(from, number),
            DupBy::Dup3 => sys::dup3(from, number, libc::O_CLOEXEC),
            DupBy::Fcntl => sys::fcntl(from, F_DUPFD, 0),
            DupBy::FcntlCloexec => sys::fcntl(from, F_DUPFD_CLOEXEC, 400),
            DupBy::Passed => pass(from),
        };
        if let Some(place) = self.places.get_mut(to) {
            *place = match ret {
                // dup3 onto itself.
                Err(_) if over && there >= 0 => there,
                _ => fd_of(ret),
            };
        }
        show::ok(ret)
    }
}

/// Sends `data` out of a file of its own (TCP may look at the file until the bytes have arrived), from an
/// offset that is not 0; the offset afterwards.
fn sendfile(fd: i32, data: &[u8]) -> (i64, Ret) {
    let mut content = b"???".to_vec();
    content.extend_from_slice(data);
    let file = sys::file_with(&content);
    let (ret, offset) = sys::sendfile(fd, file, Some(3), data.len());
    let _ = sys::close(file);
    (offset.unwrap_or(-1), ret)
}

fn recv(side: Side, fd: i32, by: RecvBy, position: u64, len: usize, flags: i32) -> Done {
    let mut buffer = vec![wire::UNTOUCHED; len];
    let mut header = String::new();
    let (ret, got) = {
        let (first, rest) = buffer.split_at_mut(len / 3);
        let (second, third) = rest.split_at_mut(len / 3);
        let mut parts = [first, second, third];
        let filled = if len < 3 {
            &mut parts[2..]
        } else {
            &mut parts[..]
        };
        let ret = match by {
            RecvBy::Recv => sys::recv(fd, &mut buffer, flags),
            RecvBy::Read => sys::read(fd, &mut buffer),
            RecvBy::Readv => sys::readv(fd, filled),
            RecvBy::Recvmsg => {
                let (ret, told) = sys::recvmsg(fd, filled, flags);
                if ret.is_ok() {
                    let (flags, name, control) = (told.flags, told.name_len, told.control_len);
                    header = format!(" flags {flags:#x} name {name} control {control}");
                }
                ret
            }
            RecvBy::Recvfrom => {
                let (ret, name) = sys::recvfrom(fd, &mut buffer, flags);
                if ret.is_ok() {
                    header = format!(" name {name}");
                }
                ret
            }
            RecvBy::Recvmmsg => return recv_messages(side, fd, position, len, flags),
        };
        (ret, moved(ret))
    };
    let verdict = wire::verdict(side.other(), position, &buffer, got, flags & MSG_TRUNC != 0);
    let taken = if flags & MSG_PEEK != 0 { 0 } else { got };
    (taken, format!("{}{header}{verdict}", show::ret(ret)))
}

/// recvmmsg, whose messages are not full.
fn recv_messages(side: Side, fd: i32, position: u64, len: usize, flags: i32) -> Done {
    let mut buffers = [(); 3].map(|()| vec![wire::UNTOUCHED; len.div_ceil(3)]);
    let (ret, lens) = {
        let [one, two, three] = &mut buffers;
        let mut parts = [one.as_mut_slice(), two.as_mut_slice(), three.as_mut_slice()];
        sys::recvmmsg(fd, &mut parts, flags, None)
    };
    let count = usize::try_from(moved(ret)).unwrap_or(0);
    let mut at = position;
    let mut good = "";
    for (buffer, len) in buffers.iter().zip(&lens).take(count) {
        let trunc = flags & MSG_TRUNC != 0;
        let verdict = wire::verdict(side.other(), at, buffer, u64::from(*len), trunc);
        if !verdict.is_empty() {
            good = verdict;
        }
        if flags & MSG_PEEK == 0 {
            at += u64::from(*len);
        }
    }
    (at - position, format!("{} {lens:?}{good}", show::ret(ret)))
}

/// Sends the descriptor to ourselves.
fn pass(fd: i32) -> Ret {
    let (here, there) = sys::socketpair();
    let sent = sys::send_fds(here, b"x", &[fd]);
    let received = sys::recv_fd(there);
    let _ = (sys::close(here), sys::close(there));
    sent.map(|_| i64::from(received))
}

fn turn(fd: i32, knob: Knob, value: i32) -> Ret {
    match knob {
        Knob::Nonblock => sys::set_nonblocking(fd, value != 0),
        Knob::Fionbio => sys::ioctl(fd, sys::FIONBIO, i32::from(value != 0)).0,
        Knob::Lowat => sys::setsockopt(fd, SOL_SOCKET, libc::SO_RCVLOWAT, value),
        Knob::Timeout => sys::set_timeout(fd, libc::SO_RCVTIMEO, i64::from(value)),
        Knob::Linger => sys::set_linger(fd, i32::from(value != 0), 0),
        Knob::Nodelay => sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, value),
        Knob::Cork => sys::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CORK, value),
    }
}

fn tell(fd: i32, fact: Fact) -> String {
    match fact {
        Fact::Readable => {
            let (ret, bytes) = sys::ioctl(fd, sys::FIONREAD, -1);
            format!("{} {bytes}", show::ret(ret))
        }
        Fact::Error => match sys::getsockopt(fd, SOL_SOCKET, libc::SO_ERROR) {
            Ok(0) => "none".to_owned(),
            Ok(error) => show::errno(i32::try_from(error).unwrap_or(-1)),
            Err(error) => format!("getsockopt {}", show::errno(error)),
        },
        Fact::Peer | Fact::Own => match sys::name(fd, fact == Fact::Peer) {
            Ok(name) => format!("{}", name.ip()),
            Err(error) => show::errno(error),
        },
        Fact::State => sys::getsockopt_byte(fd, libc::IPPROTO_TCP, libc::TCP_INFO)
            .map_or_else(show::errno, |state| state.to_string()),
        Fact::Flags => match sys::fcntl(fd, libc::F_GETFL, 0) {
            Ok(flags) => format!("{flags:#x}"),
            Err(error) => show::errno(error),
        },
    }
}

fn close(place: Option<&mut i32>) -> String {
    let Some(place) = place else {
        return "no such place".to_owned();
    };
    let closed = sys::close(*place);
    *place = -1;
    show::ok(closed)
}

/// Sends until nothing fits, without waiting; how many bytes that were.
pub(super) fn fill(hand: &Hand, fd: i32, position: u64) -> u64 {
    const CHUNKS: [usize; 3] = [65_536, 1000, 1];
    let mut at = position;
    for len in CHUNKS {
        loop {
            let data = wire::bytes(hand.side, at, len);
            match sys::send(fd, &data, MSG_DONTWAIT | MSG_NOSIGNAL) {
                Ok(sent) if sent > 0 => at += u64::try_from(sent).unwrap_or(0),
                _ => break,
            }
        }
    }
    at - position
}

/// Sends `len` bytes, waiting as the descriptor is made to; an error ends it.
pub(super) fn pour(hand: &Hand, fd: i32, position: u64, len: u64) -> Done {
    let mut at = 0;
    while at < len {
        let chunk = usize::try_from(len - at)
            .unwrap_or(usize::MAX)
            .min(wire::CHUNK);
        let data = wire::bytes(hand.side, position + at, chunk);
        match sys::send(fd, &data, MSG_NOSIGNAL) {
            Ok(sent) => at += u64::try_from(sent).unwrap_or(0),
            Err(libc::EAGAIN) if await_event(fd, libc::POLLOUT) => {}
            Err(error) => return (at, format!("{at} then {}", show::errno(error))),
        }
    }
    (at, format!("poured {at}"))
}

/// Receives `len` bytes, waiting as the descriptor is made to.
pub(super) fn drink(hand: &Hand, fd: i32, position: u64, len: u64) -> Done {
    let mut at = 0;
    let mut buffer = vec![0; wire::CHUNK];
    while at < len {
        let room = usize::try_from(len - at)
            .unwrap_or(usize::MAX)
            .min(wire::CHUNK);
        let place = buffer.get_mut(..room).unwrap_or_default();
        match sys::recv(fd, place, 0) {
            Ok(0) => return (at, format!("{at} then end")),
            Ok(got) => {
                let count = usize::try_from(got).unwrap_or(0);
                let expected = wire::bytes(hand.side.other(), position + at, count);
                if place.get(..count) != Some(expected.as_slice()) {
                    return (at, format!("WRONG BYTES after {at}"));
                }
                at += u64::try_from(got).unwrap_or(0);
            }
            Err(libc::EAGAIN) if await_event(fd, libc::POLLIN) => {}
            Err(error) => return (at, format!("{at} then {}", show::errno(error))),
        }
    }
    (at, format!("drank {at}"))
}

/// Waits for an event: true if it came.
pub(super) fn await_event(fd: i32, event: i16) -> bool {
    sys::poll(&[(fd, event)], 5000).0 == Ok(1)
}

/// Three parts of a buffer; only what is not empty, but at least one.
fn thirds(data: &[u8]) -> Vec<&[u8]> {
    if data.len() < 3 {
        return vec![data];
    }
    let (first, rest) = data.split_at(data.len() / 3);
    let (second, third) = rest.split_at(data.len() / 3);
    vec![first, second, third]
}

fn moved(ret: Ret) -> u64 {
    ret.ok().and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

/// Bytes in the messages that were sent.
fn sum(ret: Ret, lens: &[u32]) -> u64 {
    let count = usize::try_from(moved(ret)).unwrap_or(0);
    lens.iter().take(count).map(|len| u64::from(*len)).sum()
}
