//! Every way that the bytes of a connection can take, between programs of real guests.

use anyhow::{Result, ensure};
use viaduct_tests::vm::guest::{Guest, Network, Spec};

use crate::rig::{HOST, Rig, TAP, in_own_network};
use crate::site::{GUEST, Machine, Running, Site, accelerated, by_ring, serve, start_daemon, talk};

const A: Machine = GUEST;

pub(super) const B: Machine = Machine {
    name: "b",
    address: "10.77.0.2",
    ..GUEST
};

/// 100 rounds of 64 KiB, there and back.
const TALK: &str = "100 65536 0";
const BYTES: u64 = 2 * 100 * 65536;

/// Both guests, on one wire.
fn both(rig: &Rig, site: &Site<'_>, one: &Machine, two: &Machine) -> Result<[Guest; 2]> {
    let wire = rig.path("wire");
    let one = site.boot(one, Network::Listen(wire.clone()))?;
    let two = site.boot(two, Network::Connect(wire))?;
    Ok([one, two])
}

/// Nearly everything goes by ring: the first bytes of a connection cannot.
fn rides(guest: &mut Guest, line: &str) -> Result<()> {
    let stats = talk(guest, line)?;
    ensure!(by_ring(&stats) > BYTES / 2, "{stats}");
    Ok(())
}

#[test]
fn programs_of_one_guest_reach_each_other() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let site = Site::new(&rig, &[A], "");
    let mut guest = site.boot(&A, Network::None)?;
    serve(&mut guest)?;
    rides(&mut guest, &format!("talk 127.0.0.1 127.0.0.1:7000 {TALK}"))
}

#[test]
fn guests_of_one_tenant_reach_each_other() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let site = Site::new(&rig, &[A, B], "");
    let [mut one, mut two] = both(&rig, &site, &A, &B)?;
    serve(&mut one)?;
    rides(&mut two, &format!("talk 10.77.0.2 10.77.0.1:7000 {TALK}"))?;
    // The tools work in there as on a host.
    let status = two.run("viaduct status --json")?;
    ensure!(
        serde_json::from_str::<serde_json::Value>(&status).is_ok(),
        "{status}"
    );
    let doctor = two.run("viaduct doctor 2>&1")?;
    ensure!(doctor.contains("viaductd"), "{doctor}");
    Ok(())
}

/// Whom nothing interrupts looks at the memory, programs as well as the daemon.
#[test]
fn a_guest_without_an_iommu_is_reached_and_reaches_others() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let site = Site::new(&rig, &[A, B], "");
    let wire = rig.path("wire");
    let mut one = site.boot(&A, Network::Listen(wire.clone()))?;
    let spec = Spec {
        iommu: false,
        ..site.spec(&B, Network::Connect(wire))
    };
    let mut two = rig.boot(&spec)?;
    start_daemon(&mut two, "")?;
    serve(&mut one)?;
    rides(&mut two, &format!("talk 10.77.0.2 10.77.0.1:7000 {TALK}"))?;
    serve(&mut two)?;
    rides(&mut one, &format!("talk 10.77.0.1 10.77.0.2:7000 {TALK}"))
}

#[test]
fn guests_of_two_tenants_reach_each_other() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let other = Machine { tenant: "red", ..B };
    let site = Site::new(&rig, &[A, other], "");
    let [mut one, mut two] = both(&rig, &site, &A, &other)?;
    serve(&mut one)?;
    rides(&mut two, &format!("talk 10.77.0.2 10.77.0.1:7000 {TALK}"))
}

#[test]
fn a_guest_and_a_program_of_its_host_reach_each_other() -> Result<()> {
    in_own_network(&[], || {
        let Some(rig) = Rig::new()? else {
            return Ok(());
        };
        let site = Site::new(&rig, &[A], "");
        let mut guest = site.boot(&A, Network::Tap(TAP.to_owned()))?;
        let _server = Running::serve(site.program(&["serve", "7000"]), &format!("{HOST}:7000"))?;
        rides(&mut guest, &format!("talk 10.77.0.1 {HOST}:7000 {TALK}"))
    })
}

#[test]
fn guests_of_two_hosts_reach_each_other() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let ports = [free_port()?, free_port()?];
    let link = |own: u16, other: u16, there: &Machine| {
        let peer = format!(
            "prefix = \"{}\", backend = \"127.0.0.1:{other}\"",
            there.address
        );
        format!(
            "[[link]]\nname = \"cable\"\ndriver = \"udp\"\nbind = \"127.0.0.1:{own}\"\npeers = [{{ {peer} }}]\n"
        )
    };
    let [own, other] = ports;
    let here = Site::new(&rig, &[A], &link(own, other, &B));
    let there = Site::new(&rig, &[B], &link(other, own, &A));
    let wire = rig.path("wire");
    let mut one = here.boot(&A, Network::Listen(wire.clone()))?;
    let mut two = there.boot(&B, Network::Connect(wire))?;
    serve(&mut one)?;
    rides(&mut two, &format!("talk 10.77.0.2 10.77.0.1:7000 {TALK}"))
}

#[test]
fn guests_of_one_tenant_go_on_when_the_daemon_of_their_host_starts_anew() -> Result<()> {
    go_on(&B)
}

#[test]
fn guests_of_two_tenants_go_on_when_the_daemon_of_their_host_starts_anew() -> Result<()> {
    go_on(&Machine { tenant: "red", ..B })
}

fn go_on(other: &Machine) -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let mut site = Site::new(&rig, &[A, *other], "");
    let [mut one, mut two] = both(&rig, &site, &A, other)?;
    serve(&mut one)?;
    let line = "talk 10.77.0.2 10.77.0.1:7000 60 65536 100";
    two.spawn("meanwhile", &accelerated(line, "meanwhile"))?;
    two.until("grep -q 'round 5' /tmp/meanwhile.log")?;
    site.daemon.restart();
    two.until("! kill -0 $(cat /tmp/meanwhile.pid) 2>/dev/null")?;
    let said = two.run("cat /tmp/meanwhile.log")?;
    ensure!(said.ends_with("done\n"), "{said}");
    // On its rings all the time, not on TCP after the first daemon's end.
    let stats = serde_json::from_str(&two.run("cat /tmp/meanwhile.json")?)?;
    ensure!(by_ring(&stats) > 9 * (2 * 60 * 65536) / 10, "{stats}");
    rides(&mut two, &format!("talk 10.77.0.2 10.77.0.1:7000 {TALK}"))
}

fn free_port() -> Result<u16> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    Ok(socket.local_addr()?.port())
}

/// A program of guest B, with an address that it was not given, connects to guest `one`.
fn poses(one: &Machine) -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let address = one.address;
    let site = Site::new(&rig, &[*one, B], "");
    let [mut one, mut two] = both(&rig, &site, one, &B)?;
    serve(&mut one)?;
    two.run("ip addr add 10.77.0.3/24 dev eth0")?;
    let stats = talk(&mut two, &format!("talk 10.77.0.3 {address}:7000 {TALK}"))?;
    ensure!(by_ring(&stats) == 0, "{stats}");
    rides(&mut two, &format!("talk 10.77.0.2 {address}:7000 {TALK}"))
}

// The end with the lower address offers a connection to the other.

#[test]
fn an_address_that_is_not_the_guests_own_is_not_reached_by_ring() -> Result<()> {
    poses(&A)
}

#[test]
fn an_address_that_is_not_the_guests_own_reaches_nobody_by_ring() -> Result<()> {
    poses(&Machine {
        address: "10.77.0.9",
        ..A
    })
}
