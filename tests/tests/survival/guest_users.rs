//! Programs of several users in one guest, of which only one user's may use the device.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use rustix::process::Pid;
use viaduct_tests::rig::guests::Guests;
use viaduct_tests::rig::program::{Agent, Form};

use crate::duo::{Duo, Way, skipped};

const MIB: usize = 1 << 20;
/// The user that has the device.
const OWNER: u32 = 0;
/// Others, who have not.
const NOBODY: u32 = 65_534;
const SOMEBODY: u32 = 65_533;
/// What the memory of a device without a machine is called.
const REGION: &str = "viaduct-region";

/// A program of that user in a guest.
fn program(guests: &Guests, guest: usize, user: u32) -> Agent {
    let form = Form::accelerated(guests.guests[guest].socket());
    Agent::start(&form.as_user(user))
}

/// Files that a process shares with others, mapped or open: their numbers.
fn shared(pid: Pid) -> BTreeSet<u64> {
    let maps = read(&format!("/proc/{}/maps", pid.as_raw_nonzero()));
    let mapped = maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let is_shared = words.next()?.ends_with('s');
        let number = words.nth(2)?.parse().ok()?;
        is_shared.then_some(number)
    });
    mapped.chain(open(pid).map(|(number, _)| number)).collect()
}

/// Whether a process has the memory of a device.
fn has_region(pid: Pid) -> bool {
    let maps = read(&format!("/proc/{}/maps", pid.as_raw_nonzero()));
    maps.contains(REGION) || open(pid).any(|(_, name)| name.contains(REGION))
}

/// Memory behind the descriptors of a process.
fn open(pid: Pid) -> impl Iterator<Item = (u64, String)> {
    let directory = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let all = std::fs::read_dir(directory).expect("a process of ours");
    all.flatten().filter_map(|entry| {
        let name = std::fs::read_link(entry.path()).ok()?;
        let name = name.to_string_lossy().into_owned();
        let number = std::fs::metadata(entry.path()).ok()?.ino();
        name.starts_with("/memfd:").then_some((number, name))
    })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).expect("a process of ours")
}

/// The two talk by ring, and do not share any memory.
fn talk_apart(duo: &mut Duo, index: usize) {
    duo.connect(index);
    duo.warm_up(index, Way::Ring);
    let kernel = duo.kernel(index);
    duo.stream(index, 4 * MIB);
    duo.both(&format!("ping {index} 500"), &format!("pong {index} 500"));
    assert_eq!(duo.kernel(index), kernel, "all of it went by the rings");
    let [one, other] = [&duo.client, &duo.server].map(|agent| shared(agent.pid()));
    assert!(!one.is_empty() && !other.is_empty());
    assert!(one.is_disjoint(&other), "{one:?} and {other:?}");
}

#[test]
fn talk_without_sharing_memory() {
    if !rustix::process::geteuid().is_root() {
        return skipped("another user's program needs root");
    }
    let guests = Guests::start(&["blue", "red"], &["--uid", "0"]);
    let mut duo = Duo {
        client: program(&guests, 0, OWNER),
        server: program(&guests, 0, NOBODY),
    };
    talk_apart(&mut duo, 0);
    // While one of them uses the device, too, which the other one gets nothing of.
    let mut away = Duo {
        client: program(&guests, 1, OWNER),
        server: duo.client,
    };
    away.connect(1);
    away.warm_up(1, Way::Ring);
    away.stream(1, MIB);
    duo.client = away.server;
    talk_apart(&mut duo, 2);
    assert!(has_region(duo.client.pid()) && !has_region(duo.server.pid()));
    // Towards the outside the others stay on TCP.
    let mut out = Duo {
        client: duo.server,
        server: away.client,
    };
    out.connect(3);
    out.warm_up(3, Way::Kernel);
    // And with each other it is as with the owner.
    let mut others = Duo {
        client: program(&guests, 0, SOMEBODY),
        server: out.client,
    };
    talk_apart(&mut others, 4);
    for agent in [&others.client, &others.server] {
        assert!(!has_region(agent.pid()));
    }
    // Two programs of one user share their rings.
    let mut same = Duo {
        client: program(&guests, 0, SOMEBODY),
        server: others.client,
    };
    same.connect(5);
    same.warm_up(5, Way::Ring);
    let [one, other] = [&same.client, &same.server].map(|agent| shared(agent.pid()));
    assert!(!one.is_disjoint(&other), "{one:?} and {other:?}");
}
