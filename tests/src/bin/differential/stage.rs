//! The script of a case: steps that one end takes while the other waits, and steps that both take.
//!
//! Every end runs the same script and takes only its own steps; a link beside the connection (a Unix
//! socket, never accelerated) keeps them in step. So the same case runs as two processes, as two
//! threads, or in one thread that holds both ends, and prints the same lines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::end::{End, Side};
use crate::form::Form;
use viaduct_tests::sys;

/// What is common to all cases of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Exchange messages before the case, so that the case itself runs upgraded.
    pub(crate) warm: bool,
    /// The run is accelerated: warming up ends when the kernel's counters stand still.
    pub(crate) ring: bool,
    /// B connects and A accepts.
    pub(crate) swap: bool,
}

/// Addresses of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
    /// An IPv4 connection through IPv6 sockets.
    Mapped,
}

/// Messages exchanged to warm up in any case.
const WARM_ROUNDS: u32 = 40;

/// Times that the counters are looked at before warming up is given up.
const WARM_LOOKS: u32 = 2000;

/// The script under way, at one end or at both.
#[derive(Debug)]
pub(crate) struct Stage {
    name: String,
    /// The end that this thread is; `None`: both.
    me: Option<Side>,
    a: End,
    b: End,
    link: i32,
    step: u32,
    pub(crate) options: Options,
}

impl Stage {
    pub(crate) fn new(
        case: &str,
        form: Form,
        me: Option<Side>,
        link: i32,
        options: Options,
    ) -> Self {
        Self {
            name: format!("{case}/{}", form.name()),
            me,
            a: End::new(Side::A, form),
            b: End::new(Side::B, form),
            link,
            step: 0,
            options,
        }
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    fn is(&self, side: Side) -> bool {
        self.me.is_none_or(|me| me == side)
    }

    /// A step of end A.
    pub(crate) fn a(&mut self, label: &str, work: impl FnOnce(&mut End) -> String) {
        self.one(Side::A, label, work);
    }

    /// A step of end B.
    pub(crate) fn b(&mut self, label: &str, work: impl FnOnce(&mut End) -> String) {
        self.one(Side::B, label, work);
    }

    /// A step of one end.
    pub(crate) fn one(&mut self, side: Side, label: &str, work: impl FnOnce(&mut End) -> String) {
        self.step += 1;
        if self.is(side) {
            let result = work(self.end(side));
            self.print(side, label, &result);
            self.signal(0);
        } else {
            self.await_signal();
        }
    }

    /// A step that both ends take at the same time.
    pub(crate) fn both(
        &mut self,
        label: &str,
        at_a: impl FnOnce(&mut End) -> String,
        at_b: impl FnOnce(&mut End) -> String,
    ) {
        self.step += 1;
        match self.me {
            None => unreachable!("one thread cannot take a step at both ends"),
            Some(Side::A) => {
                let result = at_a(&mut self.a);
                self.print(Side::A, label, &result);
                self.signal(0);
                self.await_signal();
            }
            Some(Side::B) => {
                let result = at_b(&mut self.b);
                self.await_signal();
                self.print(Side::B, label, &result);
                self.signal(0);
            }
        }
    }

    /// A silent step of one end whose value the other learns.
    pub(crate) fn share(&mut self, side: Side, work: impl FnOnce(&mut End) -> u64) -> u64 {
        if self.is(side) {
            let value = work(self.end(side));
            self.signal(value);
            value
        } else {
            self.await_signal()
        }
    }

    /// A listening socket of one end, whose address both know.
    pub(crate) fn listen(&mut self, side: Side) -> Listener {
        let mut fd = -1;
        let port = self.share(side, |_| {
            let (listener, port) = listen_on(Family::V4);
            fd = listener;
            u64::from(port)
        });
        Listener {
            fd,
            address: target(Family::V4, u16::try_from(port).unwrap_or(0)),
        }
    }

    /// An address at which nobody listens: a socket of one end is bound to it, so that nobody else can.
    pub(crate) fn nobody(&mut self, side: Side) -> SocketAddr {
        let port = self.share(side, |end| {
            let fd = sys::fd_of(sys::socket(
                libc::AF_INET,
                libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            ));
            end.more.push(fd);
            assert_eq!(sys::bind(fd, target(Family::V4, 0)), Ok(0), "binding");
            sys::name(fd, false).map_or(0, |own| own.port()).into()
        });
        target(Family::V4, u16::try_from(port).unwrap_or(0))
    }

    /// Puts the connection among the other descriptors of each end, so that another can be made.
    pub(crate) fn set_aside(&mut self) {
        for end in [&mut self.a, &mut self.b] {
            end.more.push(end.fd);
            end.fd = -1;
        }
    }

    fn print(&self, side: Side, label: &str, result: &str) {
        crate::print(&format!(
            "{} {:02} {} {label}: {result}",
            self.name,
            self.step,
            side.name()
        ));
    }

    fn signal(&self, value: u64) {
        if self.me.is_some() {
            require_other(sys::write(self.link, &value.to_ne_bytes()));
        }
    }

    fn await_signal(&self) -> u64 {
        let mut bytes = [0; 8];
        require_other(sys::read(self.link, &mut bytes));
        u64::from_ne_bytes(bytes)
    }

    /// The end that connects.
    pub(crate) const fn connector(&self) -> Side {
        if self.options.swap { Side::B } else { Side::A }
    }

    /// Connects the two ends over IPv4 loopback, and warms up if the run asks for it.
    pub(crate) fn connect(&mut self) {
        self.connect_over(Family::V4);
    }

    /// Connects the two ends, and warms up if the run asks for it.
    pub(crate) fn connect_over(&mut self, family: Family) {
        self.connect_cold(family);
        if self.options.warm {
            self.warm_up();
            self.a.settled = true;
            self.b.settled = true;
        }
    }

    /// Connects the two ends without warming up.
    pub(crate) fn connect_cold(&mut self, family: Family) {
        let connector = self.connector();
        let mut listener = -1;
        let port = self.share(connector.other(), |_| {
            let (fd, port) = listen_on(family);
            listener = fd;
            u64::from(port)
        });
        let to = target(family, u16::try_from(port).unwrap_or(0));
        self.share(connector, |end| {
            let fd = sys::fd_of(sys::socket(
                domain(family),
                libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            ));
            let connected = sys::connect(fd, to);
            assert_eq!(connected, Ok(0), "connecting to {to}");
            end.take(fd);
            0
        });
        self.share(connector.other(), |end| {
            let accepted = sys::accept4(listener, libc::SOCK_CLOEXEC);
            assert!(accepted.is_ok(), "accepting: {accepted:?}");
            let _ = sys::close(listener);
            end.take(sys::fd_of(accepted));
            0
        });
    }

    /// Exchanges messages until the connection is upgraded (in a plain run: a fixed number).
    pub(crate) fn warm_up(&mut self) {
        for _ in 0..WARM_ROUNDS {
            self.ping_pong();
        }
        if !self.options.ring {
            return;
        }
        for _ in 0..WARM_LOOKS {
            let before = self.kernel_sent();
            self.ping_pong();
            self.ping_pong();
            let after = self.kernel_sent();
            if before == after {
                return;
            }
            std::thread::sleep(core::time::Duration::from_millis(1));
        }
        crate::print(&format!("{} stays on TCP", self.name));
    }

    fn kernel_sent(&mut self) -> [u64; 2] {
        let count = |end: &mut End| sys::kernel_bytes_sent(end.fd).unwrap_or(0);
        [self.share(Side::A, count), self.share(Side::B, count)]
    }

    /// Eight bytes there and back, without a line of output. The waiting end really waits.
    fn ping_pong(&mut self) {
        const BALL: &[u8] = b"pingpong";
        let alone = self.me.is_none();
        let catch = |end: &mut End| {
            // Who holds both ends finds the bytes there already, and would never wait.
            let waited = if !alone {
                true
            } else if end.form.has_set() {
                end.wait(false)
            } else {
                sys::poll(&[(end.fd, libc::POLLIN)], 5000).0 == Ok(1)
            };
            assert!(waited, "warming up: nothing is reported");
            let (bytes, ended) = end.recv_all(BALL.len());
            assert!(
                ended.is_none() && bytes == BALL,
                "warming up: {ended:?} after {bytes:?}"
            );
        };
        let throw = |end: &mut End| {
            let thrown = end.send_all(BALL);
            assert_eq!(thrown, Ok(()), "warming up");
        };
        if self.is(Side::A) {
            throw(&mut self.a);
        }
        if self.is(Side::B) {
            catch(&mut self.b);
            throw(&mut self.b);
        }
        if self.is(Side::A) {
            catch(&mut self.a);
        }
    }
}

/// The other end has left, and has said why: leave too, without a word.
fn require_other(moved: sys::Ret) {
    if moved != Ok(8) {
        sys::exit_now(101);
    }
}

/// A listening socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listener {
    /// The descriptor, at the end that listens; -1 at the other.
    pub(crate) fd: i32,
    pub(crate) address: SocketAddr,
}

/// Socket domain of a family.
pub(crate) const fn domain(family: Family) -> i32 {
    match family {
        Family::V4 => libc::AF_INET,
        Family::V6 | Family::Mapped => libc::AF_INET6,
    }
}

/// Where a listener of [`listen_on`] is reached.
pub(crate) fn target(family: Family, port: u16) -> SocketAddr {
    let ip = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        Family::Mapped => IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
    };
    SocketAddr::new(ip, port)
}

/// A listening socket on loopback and its port.
pub(crate) fn listen_on(family: Family) -> (i32, u16) {
    let fd = sys::fd_of(sys::socket(
        domain(family),
        libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
    ));
    let bound = sys::bind(fd, target(family, 0));
    assert_eq!(bound, Ok(0), "binding to {:?}", target(family, 0));
    assert_eq!(sys::listen(fd, 64), Ok(0), "listening");
    let port = sys::name(fd, false).map_or(0, |own| own.port());
    (fd, port)
}
