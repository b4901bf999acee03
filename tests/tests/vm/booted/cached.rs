//! Guests that have the memory of their region from a device that they may cache.

use anyhow::{Context, Result, ensure};
use viaduct_tests::vm::guest::{Guest, Network};

use super::paths::B;
use crate::rig::Rig;
use crate::site::{GUEST, Machine, Site, by_ring, serve, start_daemon, talk};

/// 100 rounds of 64 KiB, there and back.
const TALK: &str = "talk 10.77.0.2 10.77.0.1:7000 100 65536 0";
const BYTES: u64 = 2 * 100 * 65536;

/// Boots a machine whose daemon takes the memory from the character device that the kernel has made of it.
fn boot(rig: &Rig, site: &Site<'_>, machine: &Machine, network: Network) -> Result<Guest> {
    let mut guest = rig.boot(&site.cached(machine, network))?;
    guest
        .until("[ -c /dev/dax0.0 ]")
        .with_context(|| guest.run("dmesg | tail -n 20").unwrap_or_default())?;
    start_daemon(&mut guest, "--device dax:/dev/dax0.0")?;
    Ok(guest)
}

/// The programs of this guest have mapped the device.
fn maps(guest: &mut Guest, program: &str) -> Result<()> {
    let line = format!("grep -c /dev/dax0.0 /proc/$(cat /tmp/{program}.pid)/maps");
    let said = guest.run(&line)?;
    ensure!(said.trim() != "0", "{program} has mapped none of it");
    Ok(())
}

#[test]
fn guests_that_cache_reach_each_other_and_one_that_does_not() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let site = Site::named(&rig, &[GUEST, B]);
    let wire = rig.path("wire");
    let mut one = boot(&rig, &site, &GUEST, Network::Listen(wire.clone()))?;
    let mut two = boot(&rig, &site, &B, Network::Connect(wire))?;
    serve(&mut one)?;
    let stats = talk(&mut two, TALK)?;
    ensure!(by_ring(&stats) > BYTES / 2, "{stats}");
    maps(&mut one, "daemon")?;
    // The other one without a cache from now on: the same memory.
    two.run("kill $(cat /tmp/daemon.pid)")?;
    two.until("! kill -0 $(cat /tmp/daemon.pid) 2>/dev/null")?;
    start_daemon(&mut two, "")?;
    let stats = talk(&mut two, TALK)?;
    ensure!(by_ring(&stats) > BYTES / 2, "{stats}");
    Ok(())
}
