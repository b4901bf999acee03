//! Programs in two guests: of one tenant, which share memory, and of two, between which the host copies. What happens
//! to their connections when programs, drivers and devices go away.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rdma_core::channel::HEAP_START;
use rdma_core::event::EVENT_BYTES;
use rustix::process::Signal;
use viaduct_tests::rig::daemon::{Daemon, retry};
use viaduct_tests::rig::guests::Guests;
use viaduct_tests::rig::held::Held;
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way, in_the_middle, settle, skipped};
use crate::revoked::{revoke, revoke_at};

const MIB: usize = 1 << 20;
pub(crate) const ONE: &[&str] = &["blue", "blue"];
const TWO: &[&str] = &["blue", "red"];
/// As many as would take longer than any test if each waited for the far backend alone.
const MANY: usize = 40;
/// What an agent can sleep in; the first takes the byte that comes.
const WAITS: [&str; 5] = ["recv 0 1", "poll 0", "select 0", "epoll 0", "epoll-level 0"];

/// A program in each guest.
fn apart(guests: &Guests) -> Duo {
    let [client, server] = [0, 1].map(|index: usize| {
        let form = Form::accelerated(guests.guests[index].socket());
        Agent::start(&form)
    });
    Duo { server, client }
}

/// The same, with connection 0 on the rings.
pub(crate) fn joined(guests: &Guests) -> Duo {
    let mut duo = apart(guests);
    duo.connect(0);
    duo.warm_up(0, Way::Ring);
    duo
}

/// Connections in guests that the host knows of: direct and relayed.
fn counted(host: &Daemon) -> (u64, u64) {
    let status = host.status();
    let number = |name: &str| status["vms"][name].as_u64().expect("a number");
    (number("direct"), number("relayed"))
}

pub(crate) fn settled(host: &Daemon, direct: u64, relayed: u64) {
    retry("the host counts so many connections", || {
        (counted(host) == (direct, relayed)).then_some(())
    });
}

pub(crate) fn free(host: &Daemon) -> u64 {
    let status = retry("both guests are served", || {
        let status = host.status();
        let machines = status["vms"]["machines"].as_array()?;
        let all = machines.iter().all(|vm| vm["served"] == true);
        all.then_some(status)
    });
    let machines = status["vms"]["machines"].as_array().expect("a list");
    let free = machines.iter().map(|vm| vm["region_free"].as_u64());
    free.sum::<Option<u64>>().expect("numbers")
}

fn reset() -> String {
    format!("err {}", libc::ECONNRESET)
}

fn talk(tenants: &[&str], (direct, relayed): (u64, u64)) {
    let guests = Guests::start(tenants, &[]);
    let before = free(&guests.host);
    let mut duo = joined(&guests);
    settled(&guests.host, direct, relayed);
    let kernel = duo.kernel(0);
    duo.stream(0, 24 * MIB);
    duo.both("ping 0 2000", "pong 0 2000");
    assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
    for index in 1..5 {
        duo.connect(index);
        duo.warm_up(index, Way::Ring);
        duo.stream(index, MIB);
    }
    for index in 0..5 {
        close(&mut duo, index);
    }
    settled(&guests.host, 0, 0);
    duo.client.dismiss();
    duo.server.dismiss();
    all_free(&guests.host, before);
}

/// Both ends of a connection end it in order.
fn close(duo: &mut Duo, index: usize) {
    assert_eq!(duo.client.ask(&format!("close {index}")), "ok");
    assert_eq!(duo.server.ask(&format!("recv {index} 1")), "ret 0");
    assert_eq!(duo.server.ask(&format!("close {index}")), "ok");
}

pub(crate) fn all_free(host: &Daemon, before: u64) {
    retry("all memory is the host's again", || {
        (free(host) == before).then_some(())
    });
}

/// Programs whose bytes stay on their rings while the daemon of the host is killed and started again.
fn go_on_over_a_restart(guests: &mut Guests) -> Duo {
    let mut duo = joined(guests);
    let kernel = duo.kernel(0);
    in_the_middle(&mut duo, 24 * MIB, || {
        guests.host.kill();
        guests.host.restart();
    });
    duo.both("ping 0 100", "pong 0 100");
    assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
    duo
}

#[test]
fn of_one_tenant_talk_without_the_host() {
    talk(ONE, (1, 0));
}

#[test]
fn guests_go_on_when_the_daemon_of_the_host_is_restarted() {
    let mut guests = Guests::start(ONE, &[]);
    let mut duo = go_on_over_a_restart(&mut guests);
    // The same programs, with the new daemon; nothing of theirs is given to others.
    for index in 1..4 {
        duo.connect(index);
        duo.warm_up(index, Way::Ring);
        duo.stream(index, MIB);
    }
    duo.stream(0, MIB);
    settled(&guests.host, 4, 0);
    for index in 0..4 {
        close(&mut duo, index);
    }
    settled(&guests.host, 0, 0);
    // New programs as well, and a daemon that was told to stop.
    guests.host.restart_with("--drain");
    let mut duo = joined(&guests);
    duo.stream(0, MIB);
}

#[test]
fn guests_go_on_when_a_manager_restarts_the_daemon_of_the_host() {
    let mut guests = Guests::managed(TWO);
    let mut duo = go_on_over_a_restart(&mut guests);
    let manager = guests.host.manager().expect("it has one");
    assert!(manager.stored() > 0 && guests.host.keeper().is_none());
    close(&mut duo, 0);
    settled(&guests.host, 0, 0);
}

#[test]
fn what_a_guest_has_relayed_is_limited_as_its_machine_is() {
    let guests = Guests::limited(TWO, &["rate_limit = \"64 MiB\"", ""]);
    let mut duo = joined(&guests);
    duo.stream(0, 24 * MIB);
    // Of the two domains that sent: what was copied for each, and whether it had to wait. The counts may be some
    // moments old.
    let counts = retry("the bytes of both are counted", || {
        let status = guests.host.status();
        let domains = status["relay"]["domains"].as_array()?;
        let counts = domains.iter().map(|domain| {
            let bytes = domain["bytes"].as_u64()?;
            Some((bytes, domain["throttled_us"].as_u64()? > 0))
        });
        let mut counts = counts.collect::<Option<Vec<_>>>()?;
        counts.retain(|(bytes, _)| *bytes > 20 * MIB as u64);
        (counts.len() == 2).then_some(counts)
    });
    let limited = counts.iter().filter(|(_, throttled)| *throttled);
    assert_eq!(limited.count(), 1, "{counts:?}");
}

#[test]
fn without_interrupts_memory_is_looked_at() {
    let guests = Guests::start(TWO, &["--no-interrupts"]);
    let mut duo = joined(&guests);
    let kernel = duo.kernel(0);
    duo.stream(0, 4 * MIB);
    duo.both("ping 0 100", "pong 0 100");
    // Long enough for both to be asleep.
    for _ in 0..5 {
        duo.client.tell("recv 0 1");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(duo.server.ask("send 0 1"), "ret 1");
        assert_eq!(duo.client.answer(), "ret 1");
    }
    assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
}

#[test]
fn of_two_tenants_talk_through_the_host() {
    talk(TWO, (0, 1));
}

/// The relay lets go of what wakes it after everything else of a program has gone, however much later that is.
#[test]
fn memory_that_comes_back_last_is_counted() {
    let guests = Guests::start(TWO, &[]);
    let before = free(&guests.host);
    let mut duo = joined(&guests);
    close(&mut duo, 0);
    settled(&guests.host, 0, 0);
    settle();
    let Ok(relay) = Held::thread(guests.host.pid(), "viaduct-relay") else {
        return skipped("threads cannot be held up here");
    };
    duo.client.dismiss();
    duo.server.dismiss();
    retry("all but the relay's memory is free", || {
        (free(&guests.host) == before - 2 * EVENT_BYTES as u64).then_some(())
    });
    drop(relay);
    all_free(&guests.host, before);
}

#[test]
fn of_one_tenant_need_no_daemon_once_they_talk() {
    let mut guests = Guests::start(ONE, &[]);
    let mut duo = joined(&guests);
    let kernel = duo.kernel(0);
    guests.host.kill();
    duo.stream(0, 24 * MIB);
    duo.both("ping 0 100", "pong 0 100");
    assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
}

fn killed(tenants: &[&str]) {
    let guests = Guests::start(tenants, &[]);
    let mut duo = joined(&guests);
    duo.client.tell("recv 0 1");
    settle();
    duo.server.kill();
    assert_eq!(
        duo.client.answer(),
        "ret 0",
        "as the kernel says of a process that was killed"
    );
    drop(duo);
    settled(&guests.host, 0, 0);
}

#[test]
fn a_program_that_is_killed_ends_a_direct_connection() {
    killed(ONE);
}

#[test]
fn a_program_that_is_killed_ends_a_relayed_connection() {
    killed(TWO);
}

fn device_gone(tenants: &[&str]) {
    let mut guests = Guests::start(tenants, &[]);
    let mut duo = joined(&guests);
    duo.client.tell("recv 0 1");
    settle();
    guests.guests[1].kill();
    assert_eq!(duo.client.answer(), reset(), "its machine is no more");
    drop(duo);
    settled(&guests.host, 0, 0);
    // The next one is served.
    guests.guests[1].restart();
    let mut duo = joined(&guests);
    duo.stream(0, MIB);
}

#[test]
fn a_device_that_vanishes_breaks_direct_connections() {
    device_gone(ONE);
}

#[test]
fn a_device_that_vanishes_breaks_relayed_connections() {
    device_gone(TWO);
}

/// Programs that sleep when the daemon of their guest dies, whose machine runs on.
#[test]
fn programs_go_on_when_the_daemon_of_their_guest_is_killed() {
    for wait in WAITS {
        let mut guests = Guests::start(ONE, &[]);
        let mut duo = joined(&guests);
        duo.server.tell(wait);
        settle();
        let device = guests.guests[1].abandon();
        settle();
        assert_eq!(duo.client.ask("send 0 1"), "ret 1", "{wait}");
        let answer = duo.server.answer();
        assert!(answer.starts_with("ret 1"), "{wait}: {answer}");
        if wait != WAITS[0] {
            assert_eq!(duo.server.ask("recv 0 1"), "ret 1", "{wait}");
        }
        duo.warm_up(0, Way::Kernel);
        duo.stream(0, MIB);
        // New ones stay on TCP.
        duo.connect(1);
        duo.stream(1, MIB);
        assert_eq!(duo.client.ask("close 0"), "ok");
        assert_eq!(duo.server.ask("recv 0 1"), "ret 0");
        drop(device);
    }
}

/// Programs with many connections, whose host does not say anything when the daemon of their guest dies.
#[test]
fn a_program_with_many_connections_does_not_wait_for_each() {
    let mut guests = Guests::start(TWO, &[]);
    let mut duo = joined(&guests);
    for index in 1..MANY {
        duo.connect(index);
        duo.warm_up(index, Way::Ring);
    }
    duo.server.tell("recv 0 1");
    settle();
    let Ok(relay) = Held::thread(guests.host.pid(), "viaduct-relay") else {
        return skipped("threads cannot be held up here");
    };
    let device = guests.guests[1].abandon();
    assert_eq!(duo.server.answer(), reset());
    for index in 1..MANY {
        let answer = duo.server.ask(&format!("recv {index} 1"));
        assert_eq!(answer, reset(), "{index}");
    }
    drop((relay, device));
}

/// What had not been read when the daemon died comes first.
#[test]
fn nothing_is_lost_when_the_daemon_of_a_guest_is_killed() {
    let mut guests = Guests::start(ONE, &[]);
    let mut duo = joined(&guests);
    duo.connect(1);
    duo.warm_up(1, Way::Ring);
    assert_eq!(duo.client.ask("send 0 100000"), "ret 100000");
    duo.server.tell("recv 1 1");
    settle();
    let device = guests.guests[1].abandon();
    settle();
    assert_eq!(duo.client.ask("send 0 100000"), "ret 100000");
    assert_eq!(duo.client.ask("send 1 1"), "ret 1");
    assert_eq!(duo.server.answer(), "ret 1");
    let mut left = 200_000;
    while left > 0 {
        let answer = duo.server.ask(&format!("recv 0 {left}"));
        let got = answer.strip_prefix("ret ").map(str::parse::<usize>);
        let Some(Ok(got @ 1..)) = got else {
            panic!("{answer}: {left} are left");
        };
        left -= got;
    }
    for index in 0..2 {
        duo.warm_up(index, Way::Any);
        duo.stream(index, MIB);
        duo.warm_up(index, Way::Kernel);
    }
    drop(device);
}

/// Whether a stream that broke off was ended by an error, or after all the bytes that were sent at the other end.
fn is_honest(answer: &str, far: &str) -> bool {
    let Some((how, _)) = answer.rsplit_once(", ") else {
        return answer == "ok";
    };
    let sent = far.rsplit_once(", ");
    let sent = sent.and_then(|(_, sent)| sent.strip_suffix(" sent"));
    match how.strip_prefix("end after ") {
        Some(came) => Some(came) == sent,
        None => how.starts_with("err "),
    }
}

/// Whether nothing is in use of any region.
pub(crate) fn are_free(host: &Daemon) -> bool {
    let status = host.status();
    let machines = status["vms"]["machines"].as_array().expect("a list");
    machines.iter().all(|vm| {
        let number = |name: &str| vm[name].as_u64().expect("a number");
        number("region_free") == number("region_bytes") - HEAP_START
    })
}

/// Programs of a container live on when its daemon is killed, and with it what was its device. They have its memory, and
/// so nobody else gets it until they have ended.
fn killed_in_mid_stream(tenants: &[&str]) {
    let runs = if std::env::var_os("VIADUCT_LONG").is_some() {
        60
    } else {
        4
    };
    let mut guests = Guests::start(tenants, &[]);
    for run in 0..runs {
        let mut duo = joined(&guests);
        let killed = &mut guests.guests[run % 2];
        let line = format!("stream 0 {} 5", 32 * MIB);
        duo.server.tell(&line);
        duo.client.tell(&line);
        std::thread::sleep(Duration::from_millis(50 + run as u64 % 9 * 4));
        killed.kill();
        let (client, server) = (duo.client.answer(), duo.server.answer());
        let are_honest = is_honest(&client, &server) && is_honest(&server, &client);
        assert!(are_honest, "{run}: {client} and {server}");
        // The same programs, without a daemon and with the next one.
        duo.connect(1);
        duo.stream(1, MIB);
        killed.restart();
        duo.connect(2);
        duo.warm_up(2, Way::Ring);
        duo.stream(2, MIB);
    }
    for guest in &mut guests.guests {
        guest.kill();
    }
    retry("all memory is the host's again", || {
        are_free(&guests.host).then_some(())
    });
}

#[test]
fn direct_streams_end_well_when_the_daemon_of_a_container_is_killed() {
    killed_in_mid_stream(ONE);
}

#[test]
fn relayed_streams_end_well_when_the_daemon_of_a_container_is_killed() {
    killed_in_mid_stream(TWO);
}

/// A program that sleeps when the daemon of its container is killed gets the next byte, or hears that the connection is
/// no more, even where it has gone back to TCP before the host reset the far end; and then both are what they are after
/// a reset.
#[test]
fn a_program_that_sleeps_hears_that_the_daemon_of_its_container_was_killed() {
    for (tenants, wait) in [ONE, TWO]
        .into_iter()
        .flat_map(|tenants| WAITS.map(|wait| (tenants, wait)))
    {
        let mut guests = Guests::start(tenants, &[]);
        let mut duo = joined(&guests);
        duo.server.tell(wait);
        settle();
        guests.guests[1].kill();
        settle();
        let sent = duo.client.ask("send 0 1");
        let mut came = duo.server.answer();
        if wait != WAITS[0] {
            assert!(came.starts_with("ret 1"), "{tenants:?} {wait}: {came}");
            came = duo.server.ask("recv 0 1");
        }
        assert_eq!(came, sent, "{tenants:?} {wait}");
        if sent == reset() {
            for agent in [&mut duo.client, &mut duo.server] {
                assert_eq!(agent.ask("recv 0 1"), "ret 0");
                assert_eq!(agent.ask("send 0 1"), format!("err {}", libc::EPIPE));
            }
        }
    }
}

fn revoked(tenants: &[&str]) {
    let guests = Guests::start(tenants, &[]);
    let mut duo = joined(&guests);
    in_the_middle(&mut duo, 24 * MIB, || {
        std::thread::sleep(Duration::from_millis(50));
        let (code, _) = revoke_at(guests.guests[0].socket(), &["--all"]);
        assert_eq!(code, Some(0));
    });
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
}

#[test]
fn connections_are_taken_back_to_tcp_by_the_host() {
    for tenants in [ONE, TWO] {
        let guests = Guests::start(tenants, &[]);
        let mut duo = joined(&guests);
        in_the_middle(&mut duo, 24 * MIB, || {
            std::thread::sleep(Duration::from_millis(50));
            let (code, answer) = revoke(&guests.host, &["--all"]);
            assert_eq!(code, Some(0), "{answer}");
            assert_eq!(answer["revoked"], 1, "{answer}");
        });
        duo.warm_up(0, Way::Kernel);
        duo.stream(0, MIB);
    }
}

#[test]
fn a_direct_connection_is_taken_back_to_tcp_by_one_guest() {
    revoked(ONE);
}

#[test]
fn a_relayed_connection_is_taken_back_to_tcp_by_one_guest() {
    revoked(TWO);
}

fn drained(tenants: &[&str]) {
    let mut guests = Guests::start(tenants, &[]);
    let mut duo = joined(&guests);
    let guest = &mut guests.guests[1];
    in_the_middle(&mut duo, 24 * MIB, || guest.drain());
    duo.warm_up(0, Way::Kernel);
    duo.stream(0, MIB);
    // The device is back: the same programs use it again.
    guests.guests[1].restart();
    duo.connect(1);
    duo.warm_up(1, Way::Ring);
    duo.stream(1, MIB);
    duo.stream(0, MIB);
    // So does the connection that was taken back.
    duo.warm_up(0, Way::Ring);
    let kernel = duo.kernel(0);
    duo.stream(0, MIB);
    assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
}

#[test]
fn a_guest_that_drains_leaves_direct_connections_on_tcp() {
    drained(ONE);
}

#[test]
fn a_guest_that_drains_leaves_relayed_connections_on_tcp() {
    drained(TWO);
}

#[test]
fn idle_programs_are_taken_back_to_tcp_with_what_was_not_read() {
    for tenants in [ONE, TWO] {
        let guests = Guests::start(tenants, &[]);
        let mut duo = joined(&guests);
        assert_eq!(duo.client.ask("send 0 1000"), "ret 1000");
        settle();
        let (code, _) = revoke_at(guests.guests[1].socket(), &["--all"]);
        assert_eq!(code, Some(0));
        assert_eq!(duo.server.ask("recv 0 4000"), "ret 1000");
        duo.warm_up(0, Way::Kernel);
    }
}

/// A program of the host itself, and one in a guest.
#[test]
fn a_program_of_the_host_talks_to_one_in_a_guest() {
    let guests = Guests::start(&["blue"], &[]);
    for swap in [false, true] {
        let mut sockets = [guests.host.socket(), guests.guests[0].socket()];
        if swap {
            sockets.reverse();
        }
        let [client, server] = sockets.map(|socket| Agent::start(&Form::accelerated(socket)));
        let mut duo = Duo { server, client };
        duo.connect(0);
        duo.warm_up(0, Way::Ring);
        let kernel = duo.kernel(0);
        duo.stream(0, 8 * MIB);
        assert_eq!(duo.kernel(0), kernel, "all of it went by the rings");
        close(&mut duo, 0);
        settled(&guests.host, 0, 0);
    }
}

#[test]
fn a_region_that_is_full_leaves_connections_on_tcp() {
    let guests = Guests::configured(ONE, "64 MiB", &[]);
    let mut duo = apart(&guests);
    for index in 0..12 {
        duo.connect(index);
        duo.warm_up(index, Way::Any);
        duo.stream(index, MIB / 4);
    }
    let (direct, relayed) = counted(&guests.host);
    assert!((1..12).contains(&direct) && relayed == 0, "{direct}");
}

/// What the host made for its own program, too, where its guest had no room for the other end.
#[test]
fn a_region_that_is_full_costs_the_host_nothing() {
    let guests = Guests::configured(&["blue"], "64 MiB", &[]);
    let before = free(&guests.host);
    // The end with the lower port leads, and that is sometimes this one and sometimes that one.
    for swap in [false, true] {
        let mut sockets = [guests.host.socket(), guests.guests[0].socket()];
        if swap {
            sockets.reverse();
        }
        let [client, server] = sockets.map(|socket| Agent::start(&Form::accelerated(socket)));
        let mut duo = Duo { server, client };
        for index in 0..12 {
            duo.connect(index);
            let way = if index == 0 { Way::Ring } else { Way::Any };
            duo.warm_up(index, way);
        }
        let (direct, relayed) = counted(&guests.host);
        assert!((1..12).contains(&relayed) && direct == 0, "{relayed}");
        for index in 0..12 {
            close(&mut duo, index);
        }
        duo.client.dismiss();
        duo.server.dismiss();
        all_free(&guests.host, before);
        retry("the host has no memory of connections", || {
            let status = guests.host.status();
            (status["daemon"]["arenas"] == 0).then_some(())
        });
    }
}

#[test]
fn the_daemon_of_the_host_leaves_no_socket_behind() {
    let mut guests = Guests::start(TWO, &[]);
    guests.host.signal(Signal::TERM);
    retry("the daemon ends", || guests.host.end());
}

/// A program lets go of the memory of a daemon that has gone when it meets the next one, if it has closed what it had by
/// it, however many there are.
#[test]
fn a_program_outlives_the_daemons_of_its_container() {
    let mut guests = Guests::start(ONE, &[]);
    let mut duo = joined(&guests);
    for index in 1..=8 {
        guests.guests[1].kill();
        for agent in [&mut duo.client, &mut duo.server] {
            assert_eq!(agent.ask(&format!("close {}", index - 1)), "ok");
        }
        guests.guests[1].restart();
        duo.connect(index);
        duo.warm_up(index, Way::Ring);
        duo.stream(index, MIB);
    }
}

/// Programs that do nothing have the memory of the device that they have seen, so there are only so many.
#[test]
fn programs_outlive_some_daemons_of_their_container() {
    let mut guests = Guests::start(ONE, &[]);
    let mut duos = vec![joined(&guests)];
    for _ in 1..=4 {
        guests.guests[1].kill();
        guests.guests[1].restart();
        let mut duo = joined(&guests);
        duo.stream(0, MIB);
        duos.push(duo);
    }
    guests.guests[1].kill();
    let device = guests.guests[1].device();
    let mut next = UnixStream::connect(device).expect("the host listens");
    let told = next.read(&mut [0; 8]).expect("an answer");
    assert_eq!(told, 0, "turned away");
    drop(duos);
    guests.guests[1].restart();
    let mut duo = joined(&guests);
    duo.stream(0, MIB);
}
