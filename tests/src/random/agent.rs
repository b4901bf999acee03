//! The process that makes the calls of a sequence, at one end or at both.
//!
//! It reads commands from its standard input, one a line, and answers each with one line. Commands name
//! an end: `a do 17 recv(0,recv,4096,-)` makes that call, with the bytes from position 17 on.
//! A forked child reads the next commands itself, while its parent waits for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use libc::{AF_INET, SIGPIPE, SO_RCVBUF, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET};

use super::hand::{self, Done, Hand};
use super::operation::{Call, ExitBy, GoesOn, Side};
use super::wire;
use crate::show;
use crate::sys::{self, fd_of};

/// Receive buffers: large enough that nothing ever waits for the window.
const RECEIVE_BUFFER: i32 = 400_000;

/// What is exchanged to warm up.
const BALL: &[u8] = b"pingpong";

/// Bytes that open the receive window.
const WINDOW: usize = 300_000;

#[derive(Debug)]
struct Agent {
    hands: [Hand; 2],
    listener: i32,
    /// What a forked child that merely waits reads from: closing it ends the child.
    held: i32,
    child: i64,
}

/// Obeys until there are no more commands.
pub fn serve() {
    let _ = sys::catch(SIGPIPE, libc::SA_RESTART);
    let mut agent = Agent {
        hands: [Hand::new(Side::A), Hand::new(Side::B)],
        listener: -1,
        held: -1,
        child: -1,
    };
    while let Some(line) = wire::read_line(0) {
        let reply = match agent.obey(&line) {
            Ok((moved, text)) => format!("{moved} {text}\n"),
            Err(error) => format!("0 {line}: {error}\n"),
        };
        if sys::write(0, reply.as_bytes()) != Ok(i64::try_from(reply.len()).unwrap_or(0)) {
            return;
        }
    }
}

impl Agent {
    fn hand(&mut self, side: Side) -> &mut Hand {
        match side {
            Side::A => &mut self.hands[0],
            Side::B => &mut self.hands[1],
        }
    }

    fn obey(&mut self, line: &str) -> Result<Done, String> {
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or_else(|| "too short".to_owned());
        let side: Side = word()?.parse()?;
        let verb = word()?;
        let mut number = || -> Result<u64, String> { word()?.parse().map_err(|_| "?".to_owned()) };
        let place = |hand: &Hand, at: u64| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            hand.places.get(at).copied().unwrap_or(-1)
        };
        match verb {
            "do" => {
                let position = number()?;
                self.call(side, position, word()?.parse()?)
            }
            "counts" => {
                let hand = self.hand(side);
                Ok((0, counts(hand)))
            }
            "fill" => {
                let (at, position) = (number()?, number()?);
                let hand = self.hand(side);
                Ok((hand::fill(hand, place(hand, at), position), String::new()))
            }
            "pour" => {
                let (at, position, len) = (number()?, number()?, number()?);
                let hand = self.hand(side);
                Ok(hand::pour(hand, place(hand, at), position, len))
            }
            "drink" => {
                let (at, position, len) = (number()?, number()?, number()?);
                let hand = self.hand(side);
                Ok(hand::drink(hand, place(hand, at), position, len))
            }
            "listen" => Ok((u64::from(self.listen()), String::new())),
            "connect" => {
                let port = u16::try_from(number()?).unwrap_or(0);
                self.connect(side, port)
            }
            "accept" => self.accept(side),
            "close_all" => {
                self.hand(side).close_all();
                Ok((0, String::new()))
            }
            "open_window" => Ok((0, open_window(self.hand(side), number()? == 1))),
            "look" => {
                if let Some(fd) = self.hand(side).any() {
                    let _ = sys::poll(&[(fd, libc::POLLIN)], 0);
                }
                Ok((0, String::new()))
            }
            "throw" => Ok((0, throw(self.hand(side)))),
            "catch" => Ok((0, catch(self.hand(side)))),
            other => Err(format!("no such command: {other}")),
        }
    }

    fn call(&mut self, side: Side, position: u64, call: Call) -> Result<Done, String> {
        match call {
            Call::Fork { goes_on } => Ok((0, self.fork(goes_on))),
            Call::Exit { by } => Ok((0, self.exit(by))),
            _ => {
                let before = sys::caught();
                let (moved, text) = self.hand(side).make(call, position);
                let pipes = sys::caught() - before;
                let text = match pipes {
                    0 => text,
                    1 => format!("{text} SIGPIPE"),
                    more => format!("{text} SIGPIPE {more} times"),
                };
                Ok((moved, text))
            }
        }
    }

    /// Whoever goes on returns from this; the other process waits for it, or for its own end.
    fn fork(&mut self, goes_on: GoesOn) -> String {
        let (end, held) = sys::pipe();
        let child = sys::fork();
        match (goes_on, child) {
            (_, Err(error)) => show::errno(error),
            (GoesOn::Child, Ok(0)) | (GoesOn::Parent, Ok(1..)) => {
                let _ = sys::close(end);
                self.held = held;
                self.child = child.unwrap_or(-1);
                "forked".to_owned()
            }
            (GoesOn::Child, Ok(_)) => {
                let _ = (sys::close(end), sys::close(held));
                // The child answers; what comes back here is how it ended.
                sys::wait_for(child)
            }
            (GoesOn::Parent, Ok(_)) => {
                let _ = sys::close(held);
                let mut how = [0];
                let _ = sys::read(end, &mut how);
                leave(if how == [1] {
                    ExitBy::AtOnce
                } else {
                    ExitBy::Exit
                })
            }
        }
    }

    fn exit(&mut self, by: ExitBy) -> String {
        if self.child == 0 {
            leave(by);
        }
        let _ = sys::write(self.held, &[u8::from(by == ExitBy::AtOnce)]);
        let _ = sys::close(self.held);
        sys::wait_for(Ok(core::mem::replace(&mut self.child, -1)))
    }

    fn listen(&mut self) -> u16 {
        self.listener = new_socket();
        let bound = sys::bind(self.listener, loopback(0));
        let listening = sys::listen(self.listener, 8);
        assert_eq!((bound, listening), (Ok(0), Ok(0)), "listening");
        sys::name(self.listener, false).map_or(0, |own| own.port())
    }

    fn connect(&mut self, side: Side, port: u16) -> Result<Done, String> {
        let fd = new_socket();
        sys::connect(fd, loopback(port)).map_err(show::errno)?;
        self.hand(side).places[0] = fd;
        Ok((0, String::new()))
    }

    fn accept(&mut self, side: Side) -> Result<Done, String> {
        let fd = sys::accept4(self.listener, SOCK_CLOEXEC).map_err(show::errno)?;
        self.hand(side).places[0] = fd_of(Ok(fd));
        Ok((0, String::new()))
    }
}

fn leave(by: ExitBy) -> ! {
    match by {
        ExitBy::Exit => sys::exit(0),
        ExitBy::AtOnce => sys::exit_now(0),
    }
}

fn new_socket() -> i32 {
    let fd = fd_of(sys::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC));
    let set = sys::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER);
    assert_eq!(set, Ok(0), "SO_RCVBUF");
    fd
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// What the kernel knows of the end's socket: `STATE WRITTEN RECEIVED QUEUED`, or `gone`.
fn counts(hand: &Hand) -> String {
    let counts = hand
        .any()
        .and_then(|fd| sys::counts(fd, hand.side == Side::A));
    counts.map_or_else(
        || "gone".to_owned(),
        |c| format!("{} {} {} {}", c.state, c.written, c.received, c.queued),
    )
}

/// Moves bytes behind the library's back, until the receive window is as large as it gets.
fn open_window(hand: &Hand, sends: bool) -> String {
    let Some(fd) = hand.any() else {
        return "no socket".to_owned();
    };
    let mut chunk = vec![0; WINDOW / 10];
    for _ in 0..10 {
        let moved = if sends {
            sys::send_unseen(fd, &chunk)
        } else {
            sys::recv_unseen(fd, &mut chunk)
        };
        if moved != Ok(i64::try_from(chunk.len()).unwrap_or(0)) {
            return format!("opening the window: {}", show::ret(moved));
        }
    }
    String::new()
}

fn throw(hand: &Hand) -> String {
    match hand.any().map(|fd| sys::send(fd, BALL, 0)) {
        Some(Ok(8)) => String::new(),
        other => format!("warming up: {other:?}"),
    }
}

fn catch(hand: &Hand) -> String {
    let mut ball = [0; 8];
    let received = hand.any().map(|fd| {
        // The bytes are there already: a receive call alone would not show how this program waits.
        let _ = sys::poll(&[(fd, libc::POLLIN)], 5000);
        sys::recv(fd, &mut ball, libc::MSG_WAITALL)
    });
    match received {
        Some(Ok(8)) if ball == *BALL => String::new(),
        other => format!("warming up: {other:?} {ball:?}"),
    }
}
