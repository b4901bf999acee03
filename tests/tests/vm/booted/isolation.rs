//! Guests that harm their host, and what others notice of it: nothing.
//!
//! The others are two machines of another tenant, which are processes here: what they share with the guest is the
//! daemon.

use anyhow::{Result, ensure};
use serde_json::Value;
use viaduct_tests::rig::daemon::retry;
use viaduct_tests::vm::guest::{Guest, Network};

use crate::rig::{HOST, Rig, TAP, in_own_network};
use crate::site::{
    Machine, Member, Running, Site, accelerated, by_ring, serve, start_daemon, talk,
};

const HOSTILE: Machine = Machine {
    name: "hostile",
    address: "10.77.0.1",
    tenant: "",
};

const VICTIMS: [Machine; 2] = [
    Machine {
        name: "one",
        address: "10.78.0.1",
        tenant: "victims",
    },
    Machine {
        name: "two",
        address: "10.78.0.2",
        tenant: "victims",
    },
];

/// How long an attack goes on.
const SECONDS: u64 = 5;

/// Two machines that talk to each other.
struct Victims {
    members: [Member; 2],
    _server: Running,
    port: String,
}

impl Victims {
    fn new(site: &Site<'_>) -> Result<Self> {
        let [one, two] = &VICTIMS;
        let members = [site.member(one)?, site.member(two)?];
        let free = std::net::TcpListener::bind((members[0].address, 0))?;
        let port = free.local_addr()?.port().to_string();
        drop(free);
        let program = members[0].program(&["serve", &port]);
        let server = Running::serve(program, &format!("{}:{port}", one.address))?;
        Ok(Self {
            members,
            _server: server,
            port,
        })
    }

    fn talk(&self, rounds: &str, pause: &str) -> Result<Running> {
        let [one, two] = &VICTIMS;
        let to = format!("{}:{}", one.address, self.port);
        let line = ["talk", two.address, &to, rounds, "65536", pause];
        Running::start(self.members[1].program(&line))
    }

    /// A talk has gone well, and by ring.
    fn are_well(&self, talk: Running) -> Result<()> {
        ends_well(talk)?;
        let stats = self.members[1].stats()?;
        ensure!(by_ring(&stats) > 0, "not by ring: {stats}");
        Ok(())
    }
}

/// A talk has come to its end.
fn ends_well(talk: Running) -> Result<()> {
    let output = talk.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.ends_with("done\n"),
        "{said}{error}"
    );
    Ok(())
}

/// What the guest does, while others talk; and that it is served again afterwards.
fn suffers(attack: impl FnOnce(&mut Guest, &Site<'_>) -> Result<()> + Send) -> Result<()> {
    let addresses = VICTIMS.map(|victim| victim.address);
    in_own_network(&addresses, || suffers_here(attack))
}

fn suffers_here(attack: impl FnOnce(&mut Guest, &Site<'_>) -> Result<()>) -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let [one, two] = VICTIMS;
    let mut site = Site::new(&rig, &[HOSTILE, one, two], "");
    let mut guest = site.boot(&HOSTILE, Network::Tap(TAP.to_owned()))?;
    let victims = Victims::new(&site)?;
    victims.are_well(victims.talk("30", "10")?)?;
    // Those who talk meanwhile go on, others begin.
    let meanwhile = victims.talk("60", "100")?;
    attack(&mut guest, &site)?;
    victims.are_well(victims.talk("30", "10")?)?;
    victims.are_well(meanwhile)?;
    assert!(site.daemon.is_alive());
    // Its next daemon begins anew.
    guest.run("kill -9 $(cat /tmp/daemon.pid); rm -f /run/viaduct/viaductd.sock")?;
    start_daemon(&mut guest, "")?;
    serve(&mut guest)?;
    let stats = talk(&mut guest, "talk 127.0.0.1 127.0.0.1:7000 20 65536 0")?;
    ensure!(by_ring(&stats) > 0, "{stats}");
    assert!(site.daemon.is_alive());
    Ok(())
}

fn attacks(guest: &mut Guest, line: &str) -> Result<()> {
    let said = guest.run(&format!("guest {line}"))?;
    ensure!(said.ends_with("done\n"), "{said}");
    Ok(())
}

/// As [`attacks`], with what the daemon reads: it must have noticed.
fn offends(guest: &mut Guest, site: &Site<'_>, line: &str) -> Result<()> {
    attacks(guest, line)?;
    retry("the host has noticed", || {
        let status = site.daemon.status();
        let machines = status["vms"]["machines"].as_array()?;
        let hostile = machines
            .iter()
            .find(|machine| machine["name"] == HOSTILE.name)?;
        (hostile["offences"].as_u64()? > 0).then_some(())
    });
    Ok(())
}

#[test]
fn garbage_in_the_region_harms_its_guest_alone() -> Result<()> {
    suffers(|guest, site| offends(guest, site, &format!("garbage 1 {SECONDS}")))
}

/// The relay looks at rings, positions and waiting contexts while they are overwritten.
#[test]
fn garbage_under_a_relayed_connection_harms_its_guest_alone() -> Result<()> {
    suffers(|guest, site| {
        let _server = Running::serve(site.program(&["serve", "7001"]), &format!("{HOST}:7001"))?;
        let line = format!("talk {} {HOST}:7001 1000000 65536 0", HOSTILE.address);
        guest.spawn("meanwhile", &accelerated(&line, "meanwhile"))?;
        retry("the connection is relayed", || {
            (site.daemon.status()["vms"]["relayed"] == 1).then_some(())
        });
        guest.until("grep -q 'round 20' /tmp/meanwhile.log")?;
        offends(guest, site, &format!("garbage 2 {SECONDS}"))?;
        // The server that was at the other end serves others.
        let to = format!("{HOST}:7001");
        ends_well(Running::start(
            site.program(&["talk", HOST, &to, "20", "65536", "0"]),
        )?)
    })
}

#[test]
fn lies_in_the_control_ring_harm_its_guest_alone() -> Result<()> {
    suffers(|guest, site| offends(guest, site, &format!("lies 1 {SECONDS}")))
}

#[test]
fn a_flood_of_doorbells_harms_its_guest_alone() -> Result<()> {
    suffers(|guest, _| attacks(guest, &format!("flood {SECONDS}")))
}

#[test]
fn more_connections_than_there_is_memory_for_stay_on_tcp() -> Result<()> {
    suffers(|guest, site| {
        let _server = Running::serve(site.program(&["serve", "7001"]), &format!("{HOST}:7001"))?;
        let line = format!("crowd {} {HOST}:7001 200", HOSTILE.address);
        let said = guest.run(&accelerated(&line, "crowd"))?;
        ensure!(said.ends_with("done\n"), "{said}");
        let stats: Value = serde_json::from_str(&guest.run("cat /tmp/crowd.json")?)?;
        let count = |name: &str| stats.get(name).and_then(Value::as_u64).unwrap_or(0);
        ensure!(count("upgraded") > 0 && count("upgraded") < 200, "{stats}");
        Ok(())
    })
}
