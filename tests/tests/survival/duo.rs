//! Two agents and their connections.

use std::time::Duration;

use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::program::{Agent, Form, SESSION};

/// Exchanges of a warm-up.
pub(crate) const WARM_UP: usize = 60;

/// How a connection's bytes are to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Through the kernel's TCP.
    Kernel,
    /// Through the rings.
    Ring,
    /// Either.
    Any,
}

/// Two agents.
pub(crate) struct Duo {
    pub(crate) server: Agent,
    pub(crate) client: Agent,
}

impl Duo {
    /// Two agents in the same form, not connected.
    pub(crate) fn new(form: &Form) -> Self {
        Self {
            server: Agent::start(form),
            client: Agent::start(form),
        }
    }

    /// Two agents with connection 0, warmed up.
    pub(crate) fn connected(form: &Form, way: Way) -> Self {
        let mut duo = Self::new(form);
        duo.connect(0);
        duo.warm_up(0, way);
        duo
    }

    /// Makes connection `index`.
    pub(crate) fn connect(&mut self, index: usize) {
        self.connect_to(index, "127.0.0.1");
    }

    /// The same, to the server at this address.
    pub(crate) fn connect_to(&mut self, index: usize, address: &str) {
        let port = self.server.ask(&format!("listen {address}"));
        self.server.tell(&format!("accept {index}"));
        let line = format!("connect {index} {port} {address}");
        assert_eq!(self.client.ask(&line), "ok");
        assert_eq!(self.server.answer(), "ok");
    }

    /// Has both do `client` and `server` at the same time; both must succeed.
    pub(crate) fn both(&mut self, client: &str, server: &str) {
        self.server.tell(server);
        self.client.tell(client);
        let answers = (self.client.answer(), self.server.answer());
        assert_eq!(answers, ("ok".to_owned(), "ok".to_owned()), "{client}");
    }

    /// Sends `bytes` both ways at once, and checks every one of them.
    pub(crate) fn stream(&mut self, index: usize, bytes: usize) {
        let line = format!("stream {index} {bytes} 11");
        self.both(&line, &line);
    }

    /// Exchanges bytes until the connection goes the way it should.
    pub(crate) fn warm_up(&mut self, index: usize, way: Way) {
        let mut round = || {
            let before = self.kernel(index);
            self.both(
                &format!("ping {index} {WARM_UP}"),
                &format!("pong {index} {WARM_UP}"),
            );
            before == self.kernel(index)
        };
        match way {
            Way::Ring => retry("the ring carries the bytes", || round().then_some(())),
            Way::Kernel => {
                for _ in 0..3 {
                    assert!(!round(), "the kernel carries the bytes");
                }
            }
            Way::Any => {
                round();
            }
        }
    }

    /// Bytes that the kernel delivered to either end.
    pub(crate) fn kernel(&mut self, index: usize) -> [String; 2] {
        let line = format!("kernel {index}");
        [self.client.ask(&line), self.server.ask(&line)]
    }
}

/// Has both send a lot on connection 0, and does `what` in the middle of it.
pub(crate) fn in_the_middle(duo: &mut Duo, bytes: usize, what: impl FnOnce()) {
    let line = format!("stream 0 {bytes} 5");
    duo.server.tell(&line);
    duo.client.tell(&line);
    std::thread::sleep(Duration::from_millis(60));
    what();
    assert_eq!(duo.client.answer(), "ok");
    assert_eq!(duo.server.answer(), "ok");
}

/// Both forms: plain TCP, and under the library with `daemon`.
pub(crate) fn forms(daemon: &Daemon) -> [(Form, Way); 2] {
    [
        (Form::plain(), Way::Kernel),
        (Form::accelerated(daemon.socket()), Way::Ring),
    ]
}

/// Lets what was just started get as far as its blocking call.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_millis(250));
}

/// Asserts that rings carried at least `bytes` bytes in the tests' session.
pub(crate) fn assert_carried(daemon: &Daemon, bytes: u64) {
    retry("the totals count the bytes", || {
        let totals = daemon.totals(SESSION);
        let carried = totals["ring_tx_bytes"].as_u64().unwrap_or(0);
        (carried >= bytes).then_some(())
    });
}

/// Says why a test does nothing here.
#[expect(clippy::print_stdout, reason = "for whoever reads the test's output")]
pub(crate) fn skipped(reason: &str) {
    println!("skipped: {reason}");
}

/// Each pair streams `bytes` both ways on its first connection, all of it by the rings, while `restart` is called a
/// dozen times, with the round, after pauses of up to a tenth of a second.
pub(crate) fn stream_across_restarts(duos: &mut [Duo], bytes: usize, mut restart: impl FnMut(u32)) {
    let before: Vec<_> = duos.iter_mut().map(|duo| duo.kernel(0)).collect();
    let line = format!("stream 0 {bytes} 5");
    for duo in &mut *duos {
        duo.server.tell(&line);
        duo.client.tell(&line);
    }
    for round in 0..12u32 {
        std::thread::sleep(Duration::from_millis(1 + u64::from(round * 37 % 100)));
        restart(round);
    }
    for duo in &mut *duos {
        assert_eq!(duo.client.answer(), "ok");
        assert_eq!(duo.server.answer(), "ok");
    }
    let after: Vec<_> = duos.iter_mut().map(|duo| duo.kernel(0)).collect();
    assert_eq!(after, before, "all of it went by the rings");
}
