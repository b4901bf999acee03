//! What a random sequence is made of, and how it is written down.
//!
//! A sequence is one line of text: operations with spaces between them, each
//! `END.WHAT(ARGUMENT,...)`, for example `a.send(0,writev,4096,-) b.recv(1,recv,17,peek+dontwait)`.
//! Numbers before the first name are *places*: each end keeps the descriptors of its socket in a few of
//! them, and an operation on an empty place is skipped.

use core::fmt;
use core::str::FromStr;

use super::text::{Arguments, Bits, named};

/// Descriptors that an end can have of its socket.
pub const PLACES: usize = 3;

/// Epoll sets that an end can have.
pub const SETS: usize = 2;

named! {
    /// An end of the connection.
    pub enum Side {
        /// It connects.
        A = "a",
        /// It accepts.
        B = "b",
    }
}

impl Side {
    /// The far end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

named! {
    /// How bytes are sent.
    pub enum SendBy {
        /// send(2).
        Send = "send",
        /// write(2).
        Write = "write",
        /// writev(2), three parts.
        Writev = "writev",
        /// sendmsg(2), three parts.
        Sendmsg = "sendmsg",
        /// sendmmsg(2), three messages.
        Sendmmsg = "sendmmsg",
        /// sendfile(2) from a memory file, with an offset.
        Sendfile = "sendfile",
    }
}

named! {
    /// How bytes are received.
    pub enum RecvBy {
        /// recv(2).
        Recv = "recv",
        /// read(2).
        Read = "read",
        /// readv(2), three parts.
        Readv = "readv",
        /// recvmsg(2), three parts.
        Recvmsg = "recvmsg",
        /// recvmmsg(2), three messages.
        Recvmmsg = "recvmmsg",
        /// recvfrom(2) with room for an address.
        Recvfrom = "recvfrom",
    }
}

named! {
    /// How readiness is asked for.
    pub enum PollBy {
        /// poll(2).
        Poll = "poll",
        /// ppoll(2) with a signal mask.
        Ppoll = "ppoll",
        /// select(2).
        Select = "select",
        /// pselect(2) with a signal mask.
        Pselect = "pselect",
    }
}

named! {
    /// How a descriptor is duplicated.
    pub enum DupBy {
        /// dup(2).
        Dup = "dup",
        /// dup2(2), to a number of the place's own or over the descriptor that is there.
        Dup2 = "dup2",
        /// dup3(2), likewise.
        Dup3 = "dup3",
        /// fcntl(F_DUPFD).
        Fcntl = "dupfd",
        /// fcntl(F_DUPFD_CLOEXEC).
        FcntlCloexec = "dupfd_cloexec",
        /// SCM_RIGHTS over a pair of Unix sockets.
        Passed = "passed",
    }
}

named! {
    /// A direction of shutdown(2).
    pub enum How {
        /// SHUT_RD.
        Read = "rd",
        /// SHUT_WR.
        Write = "wr",
        /// SHUT_RDWR.
        Both = "rdwr",
    }
}

named! {
    /// What can be set.
    pub enum Knob {
        /// O_NONBLOCK by fcntl.
        Nonblock = "nonblock",
        /// O_NONBLOCK by ioctl(FIONBIO).
        Fionbio = "fionbio",
        /// SO_RCVLOWAT.
        Lowat = "lowat",
        /// SO_RCVTIMEO in milliseconds.
        Timeout = "rcvtimeo",
        /// SO_LINGER with no seconds: close resets.
        Linger = "linger",
        /// TCP_NODELAY.
        Nodelay = "nodelay",
        /// TCP_CORK.
        Cork = "cork",
    }
}

named! {
    /// What can be asked.
    pub enum Fact {
        /// ioctl(FIONREAD).
        Readable = "fionread",
        /// SO_ERROR, which also clears it.
        Error = "so_error",
        /// getpeername(2).
        Peer = "peer",
        /// getsockname(2).
        Own = "own",
        /// The state in TCP_INFO.
        State = "state",
        /// F_GETFL.
        Flags = "flags",
    }
}

named! {
    /// Who goes on after fork(2); the other process holds its descriptors and waits.
    pub enum GoesOn {
        /// The child.
        Child = "child",
        /// The parent.
        Parent = "parent",
    }
}

named! {
    /// How a forked child ends.
    pub enum ExitBy {
        /// exit(3).
        Exit = "exit",
        /// _exit(2): nothing of libc runs.
        AtOnce = "_exit",
    }
}

/// Flags of a send.
pub const SEND_FLAGS: &[(&str, i32)] = &[
    ("dontwait", libc::MSG_DONTWAIT),
    ("more", libc::MSG_MORE),
    ("nosignal", libc::MSG_NOSIGNAL),
];

/// Flags of a receive.
pub const RECV_FLAGS: &[(&str, i32)] = &[
    ("dontwait", libc::MSG_DONTWAIT),
    ("peek", libc::MSG_PEEK),
    ("waitall", libc::MSG_WAITALL),
    ("trunc", libc::MSG_TRUNC),
];

/// Events of poll and epoll.
pub const EVENTS: &[(&str, i32)] = &[
    ("in", libc::EPOLLIN),
    ("out", libc::EPOLLOUT),
    ("rdhup", libc::EPOLLRDHUP),
    ("pri", libc::EPOLLPRI),
    ("et", libc::EPOLLET),
    ("oneshot", libc::EPOLLONESHOT),
];

/// What one end does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the fields are the arguments that the text names"
)]
pub enum Call {
    /// Sends `len` bytes.
    Send {
        at: usize,
        by: SendBy,
        len: usize,
        flags: i32,
    },
    /// Receives into `len` bytes.
    Recv {
        at: usize,
        by: RecvBy,
        len: usize,
        flags: i32,
    },
    /// Sends `len` bytes while the far end receives them.
    Pour { at: usize, len: usize },
    /// Sends without waiting until nothing fits; the far end then receives everything.
    Fill { at: usize },
    /// Asks all places at once.
    Poll { by: PollBy, events: i32 },
    /// EPOLL_CTL_ADD.
    EpollAdd { set: usize, at: usize, events: i32 },
    /// EPOLL_CTL_MOD.
    EpollMod { set: usize, at: usize, events: i32 },
    /// EPOLL_CTL_DEL.
    EpollDel { set: usize, at: usize },
    /// epoll_wait(2) without waiting.
    EpollWait { set: usize },
    /// Closes the set.
    EpollClose { set: usize },
    /// shutdown(2).
    Shutdown { at: usize, how: How },
    /// close(2).
    Close { at: usize },
    /// Duplicates the descriptor.
    Dup { at: usize, to: usize, by: DupBy },
    /// Sets an option or a flag.
    Set { at: usize, knob: Knob, value: i32 },
    /// Asks for a fact.
    Get { at: usize, fact: Fact },
    /// fork(2).
    Fork { goes_on: GoesOn },
    /// The forked child ends.
    Exit { by: ExitBy },
    /// Both ends close everything and connect again.
    Reconnect,
    /// `viaduct revoke`: the connection goes back to TCP, which nobody may notice.
    Revoke,
}

/// One step of a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who takes it.
    pub side: Side,
    /// What it is.
    pub call: Call,
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.side, self.call)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Send { at, by, len, flags } => {
                write!(out, "send({at},{by},{len},{})", Bits(flags, SEND_FLAGS))
            }
            Self::Recv { at, by, len, flags } => {
                write!(out, "recv({at},{by},{len},{})", Bits(flags, RECV_FLAGS))
            }
            Self::Pour { at, len } => write!(out, "pour({at},{len})"),
            Self::Fill { at } => write!(out, "fill({at})"),
            Self::Poll { by, events } => write!(out, "poll({by},{})", Bits(events, EVENTS)),
            Self::EpollAdd { set, at, events } => {
                write!(out, "epoll_add({set},{at},{})", Bits(events, EVENTS))
            }
            Self::EpollMod { set, at, events } => {
                write!(out, "epoll_mod({set},{at},{})", Bits(events, EVENTS))
            }
            Self::EpollDel { set, at } => write!(out, "epoll_del({set},{at})"),
            Self::EpollWait { set } => write!(out, "epoll_wait({set})"),
            Self::EpollClose { set } => write!(out, "epoll_close({set})"),
            Self::Shutdown { at, how } => write!(out, "shutdown({at},{how})"),
            Self::Close { at } => write!(out, "close({at})"),
            Self::Dup { at, to, by } => write!(out, "dup({at},{to},{by})"),
            Self::Set { at, knob, value } => write!(out, "set({at},{knob},{value})"),
            Self::Get { at, fact } => write!(out, "get({at},{fact})"),
            Self::Fork { goes_on } => write!(out, "fork({goes_on})"),
            Self::Exit { by } => write!(out, "exit({by})"),
            Self::Reconnect => write!(out, "reconnect()"),
            Self::Revoke => write!(out, "revoke()"),
        }
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (side, call) = text
            .split_once('.')
            .ok_or_else(|| format!("{text}: no end named"))?;
        Ok(Self {
            side: side.parse()?,
            call: call.parse()?,
        })
    }
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, mut args) = Arguments::split(text)?;
        let call = match what {
            "send" => Self::Send {
                at: args.below(PLACES)?,
                by: args.next()?,
                len: args.next()?,
                flags: args.bits(SEND_FLAGS)?,
            },
            "recv" => Self::Recv {
                at: args.below(PLACES)?,
                by: args.next()?,
                len: args.next()?,
                flags: args.bits(RECV_FLAGS)?,
            },
            "pour" => Self::Pour {
                at: args.below(PLACES)?,
                len: args.next()?,
            },
            "fill" => Self::Fill {
                at: args.below(PLACES)?,
            },
            "poll" => Self::Poll {
                by: args.next()?,
                events: args.bits(EVENTS)?,
            },
            "epoll_add" => Self::EpollAdd {
                set: args.below(SETS)?,
                at: args.below(PLACES)?,
                events: args.bits(EVENTS)?,
            },
            "epoll_mod" => Self::EpollMod {
                set: args.below(SETS)?,
                at: args.below(PLACES)?,
                events: args.bits(EVENTS)?,
            },
            "epoll_del" => Self::EpollDel {
                set: args.below(SETS)?,
                at: args.below(PLACES)?,
            },
            "epoll_wait" => Self::EpollWait {
                set: args.below(SETS)?,
            },
            "epoll_close" => Self::EpollClose {
                set: args.below(SETS)?,
            },
            "shutdown" => Self::Shutdown {
                at: args.below(PLACES)?,
                how: args.next()?,
            },
            "close" => Self::Close {
                at: args.below(PLACES)?,
            },
            "dup" => Self::Dup {
                at: args.below(PLACES)?,
                to: args.below(PLACES)?,
                by: args.next()?,
            },
            "set" => Self::Set {
                at: args.below(PLACES)?,
                knob: args.next()?,
                value: args.next()?,
            },
            "get" => Self::Get {
                at: args.below(PLACES)?,
                fact: args.next()?,
            },
            "fork" => Self::Fork {
                goes_on: args.next()?,
            },
            "exit" => Self::Exit { by: args.next()? },
            "reconnect" => Self::Reconnect,
            "revoke" => Self::Revoke,
            other => return Err(format!("no such operation: {other}")),
        };
        args.end()?;
        Ok(call)
    }
}

/// A sequence as text.
#[must_use]
pub fn to_text(operations: &[Operation]) -> String {
    let each: Vec<String> = operations.iter().map(ToString::to_string).collect();
    each.join(" ")
}

/// A sequence out of its text.
///
/// # Errors
/// What could not be read.
pub fn from_text(text: &str) -> Result<Vec<Operation>, String> {
    text.split_whitespace().map(str::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_back() {
        let text = "a.send(0,writev,4096,dontwait+more) b.recv(1,recvmmsg,17,peek+waitall) \
                    a.pour(0,300000) b.fill(2) a.poll(select,in+out) a.epoll_add(1,0,in+et) \
                    a.epoll_mod(1,0,-) a.epoll_del(0,2) b.epoll_wait(0) b.epoll_close(1) \
                    a.shutdown(0,rdwr) b.close(0) b.dup(0,1,dupfd_cloexec) a.set(0,lowat,20) \
                    a.get(0,so_error) a.fork(child) a.exit(_exit) b.reconnect() a.revoke()";
        let operations = from_text(text).unwrap();
        let spaced = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(to_text(&operations), spaced);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "send(0,send,1,-)",
            "c.send(0,send,1,-)",
            "a.send(0,send,1)",
            "a.send(0,send,1,-,2)",
            "a.send(9,send,1,-)",
            "a.send(0,send,1,urgent)",
            "a.leap()",
            "a.close(0",
        ] {
            assert!(from_text(text).is_err(), "{text}");
        }
    }
}
