//! Connections of guests that the host's daemon relays go on when that is killed and comes back: between guests of two
//! tenants, with a program of the host, and with one of another host.

use std::time::Duration;

use rustix::process::Signal;
use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::guests::Guests;
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way, in_the_middle, settle, stream_across_restarts};
use crate::revoked::revoke;
use crate::two_guests::{ONE, all_free, are_free, free, joined, settled};

const MIB: usize = 1 << 20;
/// An address of this machine that is none of an interface's: another host is asked for it. The other address being
/// smaller, its end leads.
const ELSEWHERE: &str = "127.0.0.9";
/// Longer than any of these tests.
const TIMEOUT_S: u32 = 100;

/// Who has the two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pair {
    /// Guests of two tenants.
    Guests,
    /// A program of a guest, and one of the host, which connects or is connected to.
    FromHost,
    ToHost,
    /// A program of a guest, and one of another host.
    FromFar,
    ToFar,
}

const ALL: [Pair; 5] = [
    Pair::Guests,
    Pair::FromHost,
    Pair::ToHost,
    Pair::FromFar,
    Pair::ToFar,
];

/// A host with guests, and perhaps another host.
struct Rig {
    guests: Guests,
    far: Option<Daemon>,
    pair: Pair,
}

impl Rig {
    fn start(pair: Pair) -> Self {
        let tenants: &[&str] = match pair {
            Pair::Guests => &["blue", "red"],
            _ => &["blue"],
        };
        if !matches!(pair, Pair::FromFar | Pair::ToFar) {
            let guests = Guests::start(tenants, &[]);
            let far = None;
            return Self { guests, far, pair };
        }
        let sockets = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0"));
        let [one, other] = sockets.map(|socket| {
            let socket = socket.expect("a free port");
            socket.local_addr().expect("bound")
        });
        let link = |own, far| {
            format!(
                "[[link]]\nname = \"lan\"\ndriver = \"udp\"\nbind = \"{own}\"\ntimeout_s = {TIMEOUT_S}\n\
                 peers = [{{ prefix = \"127.0.0.0/8\", backend = \"{far}\" }}]\n"
            )
        };
        let far = Some(Daemon::configured(&link(other, one)));
        let guests = Guests::linked(tenants, &link(one, other));
        Self { guests, far, pair }
    }

    /// A program at each end, with connection 0 on the rings.
    fn join(&self) -> Duo {
        let [first, second] = match &self.guests.guests[..] {
            [one, other] => [one.socket(), other.socket()],
            [one] => {
                let far = self.far.as_ref().unwrap_or(&self.guests.host);
                [one.socket(), far.socket()]
            }
            _ => unreachable!("one or two"),
        };
        let agents = [first, second].map(|socket| Agent::start(&Form::accelerated(socket)));
        let [guest, other] = agents;
        let (client, server) = match self.pair {
            Pair::FromHost | Pair::FromFar => (other, guest),
            _ => (guest, other),
        };
        let mut duo = Duo { server, client };
        self.connect(&mut duo, 0);
        duo
    }

    fn connect(&self, duo: &mut Duo, index: usize) {
        duo.connect_to(index, self.address());
        duo.warm_up(index, Way::Ring);
    }

    /// Where servers are.
    const fn address(&self) -> &'static str {
        match self.pair {
            Pair::FromFar | Pair::ToFar => ELSEWHERE,
            _ => "127.0.0.1",
        }
    }

    fn relayed(&self, connections: u64) {
        retry("the host relays so many connections", || {
            let status = self.guests.host.status();
            (status["vms"]["relayed"] == connections).then_some(())
        });
    }

    /// Ends the guest's machine.
    fn end_machine(&mut self) {
        self.guests.guests[0].kill();
    }
}

/// Whoever has been in a guest, and who has not.
fn of_guest(duo: &mut Duo, pair: Pair) -> [&mut Agent; 2] {
    match pair {
        Pair::FromHost | Pair::FromFar => [&mut duo.server, &mut duo.client],
        _ => [&mut duo.client, &mut duo.server],
    }
}

fn reset() -> String {
    format!("err {}", libc::ECONNRESET)
}

fn close(duo: &mut Duo, index: usize) {
    assert_eq!(duo.client.ask(&format!("close {index}")), "ok");
    assert_eq!(duo.server.ask(&format!("recv {index} 1")), "ret 0");
    assert_eq!(duo.server.ask(&format!("close {index}")), "ok");
}

fn read_all(agent: &mut Agent, mut left: usize) {
    while left > 0 {
        let answer = agent.ask(&format!("recv 0 {left}"));
        let got = answer.strip_prefix("ret ").map(str::parse::<usize>);
        let Some(Ok(got @ 1..)) = got else {
            panic!("{answer}: {left} are left");
        };
        left -= got;
    }
}

fn go_on(pair: Pair) {
    let mut rig = Rig::start(pair);
    let mut duo = rig.join();
    rig.relayed(1);
    let before = duo.kernel(0);
    for pause in [0, 1, 30, 100] {
        let host = &mut rig.guests.host;
        in_the_middle(&mut duo, 24 * MIB, || {
            host.kill();
            std::thread::sleep(Duration::from_millis(pause));
            host.restart();
        });
        // Nothing is under way while it is away.
        host.restart();
        duo.both("ping 0 100", "pong 0 100");
        rig.relayed(1);
    }
    assert_eq!(duo.kernel(0), before, "all of it went by the rings");
    // The same programs, with the new daemon.
    for index in 1..4 {
        rig.connect(&mut duo, index);
        duo.stream(index, MIB);
    }
    duo.stream(0, MIB);
    rig.relayed(4);
    for index in 0..4 {
        close(&mut duo, index);
    }
    rig.relayed(0);
    // And others.
    let mut other = rig.join();
    other.stream(0, MIB);
}

#[test]
fn between_guests_of_two_tenants() {
    go_on(Pair::Guests);
}

#[test]
fn from_the_host_to_a_guest() {
    go_on(Pair::FromHost);
}

#[test]
fn from_a_guest_to_the_host() {
    go_on(Pair::ToHost);
}

#[test]
fn from_another_host_to_a_guest() {
    go_on(Pair::FromFar);
}

#[test]
fn from_a_guest_to_another_host() {
    go_on(Pair::ToFar);
}

/// Both hosts, one after the other and at once.
#[test]
fn when_both_hosts_are_killed() {
    let mut rig = Rig::start(Pair::ToFar);
    let mut duo = rig.join();
    let before = duo.kernel(0);
    for _ in 0..2 {
        let (near, far) = (&mut rig.guests.host, rig.far.as_mut().expect("it has one"));
        in_the_middle(&mut duo, 24 * MIB, || {
            near.kill();
            far.kill();
            near.restart();
            far.restart();
        });
        far.restart();
        duo.both("ping 0 100", "pong 0 100");
        near.restart();
        duo.both("ping 0 100", "pong 0 100");
    }
    assert_eq!(duo.kernel(0), before, "all of it went by the rings");
}

/// Each sort of sleeper, roused by what comes after a restart.
#[test]
fn sleepers_hear_of_what_comes() {
    for pair in ALL {
        let mut rig = Rig::start(pair);
        let mut duo = rig.join();
        for wait in ["recv 0 1", "poll 0", "epoll 0"] {
            for [sleeper, other] in [[0, 1], [1, 0]] {
                let agents = of_guest(&mut duo, pair);
                agents[sleeper].tell(wait);
                settle();
                rig.guests.host.kill();
                assert_eq!(agents[other].ask("send 0 1"), "ret 1");
                rig.guests.host.restart();
                let answer = agents[sleeper].answer();
                assert!(answer.starts_with("ret 1"), "{pair:?} {wait}: {answer}");
                if wait != "recv 0 1" {
                    assert_eq!(agents[sleeper].ask("recv 0 1"), "ret 1");
                }
            }
        }
    }
}

/// A program that writes more than the ring holds sleeps until the far end reads, and that is after the restart.
#[test]
fn a_writer_on_a_full_ring_goes_on() {
    for pair in ALL {
        let mut rig = Rig::start(pair);
        let mut duo = rig.join();
        for [writer, reader] in [[0, 1], [1, 0]] {
            let line = format!("stream 0 {} 7", 24 * MIB);
            let agents = of_guest(&mut duo, pair);
            agents[writer].tell(&line);
            settle();
            rig.guests.host.restart();
            settle();
            agents[reader].tell(&line);
            assert_eq!(agents[writer].answer(), "ok", "{pair:?}");
            assert_eq!(agents[reader].answer(), "ok", "{pair:?}");
        }
    }
}

/// The guest's program, then the other one, has written, closed and left while nobody was there.
#[test]
fn a_program_that_wrote_and_left_meanwhile() {
    for pair in ALL {
        for leaves in [0, 1] {
            let mut rig = Rig::start(pair);
            let mut duo = rig.join();
            rig.guests.host.kill();
            {
                let agents = of_guest(&mut duo, pair);
                assert_eq!(agents[leaves].ask("send 0 100000"), "ret 100000");
                assert_eq!(agents[leaves].ask("close 0"), "ok");
            }
            let Duo { client, server } = duo;
            let mut agents = match pair {
                Pair::FromHost | Pair::FromFar => [server, client],
                _ => [client, server],
            };
            if leaves == 0 {
                agents.reverse();
            }
            let [mut stays, left] = agents;
            left.dismiss();
            rig.guests.host.restart();
            read_all(&mut stays, 100_000);
            assert_eq!(stays.ask("recv 0 1"), "ret 0", "{pair:?}");
            assert_eq!(stays.ask("close 0"), "ok");
            rig.relayed(0);
        }
    }
}

/// The same, killed, and with bytes unread: the far end hears of that as from a kernel.
#[test]
fn a_program_that_is_killed_meanwhile() {
    for pair in ALL {
        for (dies, unread) in [(0, false), (1, false), (0, true), (1, true)] {
            let mut rig = Rig::start(pair);
            let mut duo = rig.join();
            let left = 1 - dies;
            if unread {
                let agents = of_guest(&mut duo, pair);
                assert_eq!(agents[left].ask("send 0 5000"), "ret 5000");
                settle();
            }
            rig.guests.host.kill();
            of_guest(&mut duo, pair)[dies].kill();
            rig.guests.host.restart();
            let answer = of_guest(&mut duo, pair)[left].ask("recv 0 1");
            let expected = if unread { reset() } else { "ret 0".to_owned() };
            assert_eq!(answer, expected, "{pair:?} {dies} {unread}");
            assert_eq!(of_guest(&mut duo, pair)[left].ask("close 0"), "ok");
            rig.relayed(0);
        }
    }
}

/// Nobody is left there to go on with.
#[test]
fn a_machine_that_ends_meanwhile_resets_its_far_ends() {
    for pair in ALL {
        let mut rig = Rig::start(pair);
        let mut duo = rig.join();
        of_guest(&mut duo, pair)[1].tell("recv 0 1");
        settle();
        rig.guests.host.kill();
        rig.end_machine();
        rig.guests.host.restart();
        assert_eq!(of_guest(&mut duo, pair)[1].answer(), reset(), "{pair:?}");
        drop(duo);
        rig.relayed(0);
        rig.guests.guests[0].restart();
        let mut duo = rig.join();
        duo.stream(0, MIB);
    }
}

/// Guests name what the next daemon knows nothing of, and go on with that.
#[test]
fn a_host_that_stops_in_order_ends_what_it_relays() {
    for pair in [Pair::Guests, Pair::FromHost, Pair::ToHost] {
        let mut rig = Rig::start(pair);
        let mut duo = rig.join();
        for agent in of_guest(&mut duo, pair) {
            agent.tell("recv 0 1");
        }
        settle();
        rig.guests.host.signal(Signal::TERM);
        for agent in of_guest(&mut duo, pair) {
            assert_eq!(agent.answer(), reset(), "{pair:?}");
        }
        retry("the daemon ends", || rig.guests.host.end());
        rig.guests.host.restart();
        rig.connect(&mut duo, 1);
        duo.stream(1, MIB);
        for agent in of_guest(&mut duo, pair) {
            assert_eq!(agent.ask("close 0"), "ok");
        }
        rig.relayed(1);
    }
}

fn again_and_again(pair: Pair) {
    let mut rig = Rig::start(pair);
    let mut duos: Vec<Duo> = (0..3).map(|_| rig.join()).collect();
    stream_across_restarts(&mut duos, 60 * MIB, |_| rig.guests.host.restart());
}

/// Killed while guests still say what they have.
#[test]
fn hosts_are_killed_again_and_again() {
    for pair in [Pair::Guests, Pair::FromHost, Pair::ToFar] {
        again_and_again(pair);
    }
}

/// Connections that are being made when the host is killed go on, by the ring or without.
#[test]
fn killed_while_connections_are_made() {
    for pair in [Pair::Guests, Pair::ToHost, Pair::FromFar] {
        let mut rig = Rig::start(pair);
        let mut duo = rig.join();
        for round in 1..20 {
            duo.connect_to(round, rig.address());
            duo.server.tell(&format!("pong {round} 300"));
            duo.client.tell(&format!("ping {round} 300"));
            std::thread::sleep(Duration::from_micros(300 * round as u64 % 3100));
            rig.guests.host.restart();
            let answers = [duo.client.answer(), duo.server.answer()];
            assert_eq!(answers, ["ok", "ok"], "{pair:?}, connection {round}");
            duo.stream(round, MIB / 4);
            duo.stream(0, MIB / 4);
        }
    }
}

/// Nothing is lost to restarts: neither what was in use, nor what lay beside it.
#[test]
fn all_memory_is_free_in_the_end() {
    for pair in ALL {
        let mut rig = Rig::start(pair);
        let before = free(&rig.guests.host);
        let mut duo = rig.join();
        for index in 1..4 {
            rig.connect(&mut duo, index);
        }
        close(&mut duo, 0);
        for _ in 0..2 {
            rig.guests.host.restart();
            duo.stream(1, MIB);
        }
        rig.connect(&mut duo, 4);
        for index in 1..5 {
            close(&mut duo, index);
        }
        rig.relayed(0);
        duo.client.dismiss();
        duo.server.dismiss();
        all_free(&rig.guests.host, before);
    }
}

/// The same of guests that need no host, but for its memory.
#[test]
fn all_memory_of_direct_connections_is_free_in_the_end() {
    let mut guests = Guests::start(ONE, &[]);
    let before = free(&guests.host);
    let mut duo = joined(&guests);
    for index in 1..4 {
        duo.connect(index);
        duo.warm_up(index, Way::Ring);
    }
    close(&mut duo, 0);
    for _ in 0..2 {
        guests.host.restart();
        settled(&guests.host, 3, 0);
        duo.stream(1, MIB);
    }
    guests.host.kill();
    close(&mut duo, 1);
    guests.host.restart();
    settled(&guests.host, 2, 0);
    close(&mut duo, 2);
    close(&mut duo, 3);
    settled(&guests.host, 0, 0);
    duo.client.dismiss();
    duo.server.dismiss();
    all_free(&guests.host, before);
}

/// No kernel tells the far end of a direct connection that its machine has ended; the host does, whenever it did.
#[test]
fn a_machine_that_ends_breaks_direct_connections() {
    for meanwhile in [false, true] {
        let mut guests = Guests::start(ONE, &[]);
        let mut duo = joined(&guests);
        duo.server.tell("recv 0 1");
        settle();
        guests.host.kill();
        if meanwhile {
            guests.guests[0].kill();
        }
        guests.host.restart();
        if !meanwhile {
            settled(&guests.host, 1, 0);
            guests.guests[0].kill();
        }
        assert_eq!(duo.server.answer(), reset(), "{meanwhile}");
        drop(duo);
        settled(&guests.host, 0, 0);
        guests.guests[0].restart();
        let mut duo = joined(&guests);
        duo.stream(0, MIB);
    }
}

#[test]
fn direct_connections_are_taken_back_to_tcp_by_the_next_daemon() {
    let mut guests = Guests::start(ONE, &[]);
    let mut duo = joined(&guests);
    guests.host.restart();
    settled(&guests.host, 1, 0);
    in_the_middle(&mut duo, 24 * MIB, || {
        let (code, answer) = revoke(&guests.host, &["--peer", "127.0.0.0/8"]);
        assert_eq!((code, &answer["revoked"]), (Some(0), &1.into()));
    });
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
}

#[test]
fn relayed_connections_are_taken_back_to_tcp_by_the_next_daemon() {
    for pair in ALL {
        let mut rig = Rig::start(pair);
        let mut duo = rig.join();
        rig.guests.host.restart();
        rig.relayed(1);
        in_the_middle(&mut duo, 24 * MIB, || {
            let (code, answer) = revoke(&rig.guests.host, &["--all"]);
            assert_eq!(code, Some(0), "{pair:?}: {answer}");
            assert_ne!(answer["revoked"], 0, "{pair:?}: {answer}");
        });
        // Nobody says when another host has followed.
        retry("both directions leave the rings", || {
            let before = duo.kernel(0);
            duo.warm_up(0, Way::Any);
            let after = duo.kernel(0);
            (before[0] != after[0] && before[1] != after[1]).then_some(())
        });
        duo.warm_up(0, Way::Kernel);
        duo.stream(0, MIB);
    }
}

/// The driver, and with it the device: programs live on, and so does what they hold.
#[test]
fn a_driver_that_is_killed_after_a_restart() {
    for pair in ALL {
        let mut rig = Rig::start(pair);
        let mut duo = rig.join();
        rig.guests.host.restart();
        duo.stream(0, MIB);
        of_guest(&mut duo, pair)[1].tell("recv 0 1");
        settle();
        rig.end_machine();
        assert_eq!(of_guest(&mut duo, pair)[1].answer(), reset(), "{pair:?}");
        rig.guests.guests[0].restart();
        let mut other = rig.join();
        other.stream(0, MIB);
        for duo in [duo, other] {
            duo.client.dismiss();
            duo.server.dismiss();
        }
        for guest in &mut rig.guests.guests {
            guest.kill();
        }
        retry("all memory is the host's again", || {
            are_free(&rig.guests.host).then_some(())
        });
    }
}
