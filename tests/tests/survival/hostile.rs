//! Far ends that lie, in the connection's memory and to the daemon.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdma_core::Reason;
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::far::{FarEnd, Session};
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way};
use crate::pattern::Pattern;

/// How long a lie is given to do its work.
const BRIEFLY: Duration = Duration::from_millis(5);

/// Connections to one victim between two checks of its health.
const HEALTH_CHECK: usize = 25;

/// A program under the library that serves one connection after the other.
struct Victim {
    agent: Agent,
    port: u16,
    form: Form,
}

impl Victim {
    fn new(daemon: &Daemon) -> Self {
        let form = Form::accelerated(daemon.socket());
        let mut agent = Agent::start(&form);
        let port = agent.ask("listen").parse().expect("a port");
        Self { agent, port, form }
    }

    /// Echoes on the next connection until it ends. Three answers follow.
    fn serve(&mut self, echo: &str) {
        self.agent.tell("accept 0");
        self.agent.tell("patience 0 10000");
        self.agent.tell(&format!("{echo} 0"));
    }

    /// The connection that it served has ended, one way or another: the victim neither crashed nor
    /// hangs.
    fn expect_end(&mut self, what: &str) {
        assert_eq!(self.agent.answer(), "ok");
        assert_eq!(self.agent.answer(), "ok");
        let end = self.agent.answer();
        assert!(
            end.starts_with("ret ") || end.starts_with("err "),
            "{what}: {end}"
        );
        assert_eq!(self.agent.ask("close 0"), "ok");
    }

    /// It still serves honest programs, by ring and byte for byte.
    fn expect_health(self) -> Self {
        let Self { agent, form, .. } = self;
        let mut duo = Duo {
            server: agent,
            client: Agent::start(&form),
        };
        duo.connect(1);
        duo.warm_up(1, Way::Ring);
        duo.stream(1, 1 << 20);
        duo.both("close 1", "close 1");
        let mut agent = duo.server;
        let port = agent.ask("listen").parse().expect("a port");
        Self { agent, port, form }
    }
}

#[test]
fn every_word_overwritten_for_a_blocked_receiver() {
    overwrite_every_word("echo");
}

#[test]
fn every_word_overwritten_for_an_epoll_loop() {
    overwrite_every_word("echo-epoll");
}

fn overwrite_every_word(echo: &str) {
    let mut daemon = Daemon::start();
    let mut victim = Victim::new(&daemon);
    let mut session = Session::hello(daemon.socket());
    let mut random = Pattern::new(42);
    let mut attacks = 0;
    let mut index = 0;
    loop {
        let mut name = String::new();
        let mut more = true;
        for value in [0, 1, u64::MAX, random.next()] {
            victim.serve(echo);
            let mut end = FarEnd::connect(&mut session, victim.port)
                .unwrap_or_else(|| panic!("not upgraded after attack {attacks} (word {index})"));
            let words = end.words();
            let Some((word, place)) = words.get(index) else {
                end.close(&session);
                victim.expect_end("honest");
                more = false;
                break;
            };
            name.clone_from(word);
            // Once while the victim sleeps, once with bytes in both rings.
            place.write(value);
            end.wake_all(&session);
            end.echo(&session, &[7; 300], BRIEFLY);
            place.write(value);
            end.echo(&session, &[8; 30_000], BRIEFLY);
            end.wake_all(&session);
            end.close(&session);
            victim.expect_end(&format!("{name} = {value:#x}"));
            attacks += 1;
            if attacks % HEALTH_CHECK == 0 {
                victim = victim.expect_health();
            }
        }
        if !more {
            break;
        }
        index += 1;
    }
    assert!(index > 40, "{index} words were overwritten");
    victim.expect_health().agent.dismiss();
    assert!(daemon.is_alive());
}

#[test]
fn random_words_overwritten_while_data_flows() {
    let mut daemon = Daemon::start();
    let mut victim = Victim::new(&daemon);
    let mut session = Session::hello(daemon.socket());
    let seeds = if std::env::var_os("VIADUCT_LONG").is_some() {
        500
    } else {
        20
    };
    for seed in 1..=seeds {
        victim.serve("echo");
        let mut end = FarEnd::connect(&mut session, victim.port).expect("it is upgraded");
        let words = end.words();
        let done = AtomicBool::new(false);
        let deadline = Instant::now() + Duration::from_millis(60);
        std::thread::scope(|scope| {
            let done = &done;
            scope.spawn(move || {
                let mut random = Pattern::new(seed);
                // The longer a round lives, the further it gets: early lies end most of them.
                std::thread::sleep(Duration::from_micros(random.next() % 3_000));
                while !done.load(Ordering::Relaxed) {
                    let (_, word) = random.pick(&words);
                    let value = random.next() >> (random.next() % 64);
                    word.write(value);
                    std::thread::sleep(Duration::from_micros(random.next() % 300));
                }
            });
            while Instant::now() < deadline && end.echo(&session, &[9; 5_000], BRIEFLY) {}
            done.store(true, Ordering::Relaxed);
        });
        end.wake_all(&session);
        end.close(&session);
        victim.expect_end(&format!("seed {seed}"));
    }
    victim.expect_health().agent.dismiss();
    assert!(daemon.is_alive());
}

/// A loopback connection: the connecting and the accepting end.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let (server, _) = listener.accept().expect("a client");
    (client, server)
}

#[test]
fn lies_about_sockets_are_refused() {
    let daemon = Daemon::start();
    let mut session = Session::hello(daemon.socket());
    let verdict = Duration::from_secs(20);
    let (own, _own_far) = tcp_pair();
    let (other, _other_far) = tcp_pair();

    // The inode of another socket.
    let body = session.registration(&own);
    session.register(&other, &body);
    let answer = session.verdict(body.slot, verdict);
    assert_eq!(answer, Some(Err(Reason::Identity)));

    // Somebody else's connection, of which only the addresses are known; its true ends talk.
    let form = Form::accelerated(daemon.socket());
    let mut duo = Duo::new(&form);
    let port: u16 = duo.server.ask("listen").parse().expect("a port");
    duo.server.tell("accept 0");
    assert_eq!(duo.client.ask(&format!("connect 0 {port}")), "ok");
    assert_eq!(duo.server.answer(), "ok");
    let mut lie = session.registration(&own);
    lie.far_port = port;
    session.register(&own, &lie);
    let answer = session.verdict(lie.slot, verdict);
    assert_eq!(answer, Some(Err(Reason::Identity)));
    duo.warm_up(0, Way::Ring);
    duo.stream(0, 1 << 20);

    // Nothing is ever paired with a liar.
    let answer = session.verdict(lie.slot, Duration::from_millis(200));
    assert_eq!(answer, None);
}
