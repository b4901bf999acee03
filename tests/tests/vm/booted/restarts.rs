//! A guest whose daemon is killed and started again, many times.

use anyhow::{Result, ensure};
use viaduct_tests::rig::daemon::retry;
use viaduct_tests::vm::guest::Network;

use crate::rig::Rig;
use crate::site::{GUEST, Site, start_daemon};

/// More than four times a quarter of the region.
const TIMES: usize = 7;

#[test]
fn memory_of_the_daemons_before_is_used_again() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let site = Site::new(&rig, &[GUEST], "");
    let mut guest = site.boot(&GUEST, Network::None)?;
    let free = || {
        let status = site.daemon.status();
        let machine = &status["vms"]["machines"][0];
        let served = machine["served"] == true;
        machine["region_free"].as_u64().filter(|_| served)
    };
    let mut seen = Vec::new();
    for _ in 0..TIMES {
        guest.run("kill -9 $(cat /tmp/daemon.pid); rm -f /run/viaduct/viaductd.sock")?;
        start_daemon(&mut guest, "")?;
        guest.until("grep -q 'served by the host' /tmp/daemon.log")?;
        seen.push(retry("the host serves it", free));
    }
    // That of the daemon before is kept.
    ensure!(
        seen.iter().skip(1).all(|free| Some(free) == seen.last()),
        "{seen:?}"
    );
    Ok(())
}
