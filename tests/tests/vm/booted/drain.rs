//! A guest whose daemon is drained or killed and whose device is unplugged, under programs that sleep, and that gets it back,
//! also after it was migrated.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use viaduct_tests::rig::daemon::retry;
use viaduct_tests::vm::guest::{Guest, Network, Spec};
use viaduct_tests::vm::monitor::Monitor;

use crate::rig::{HOST, Rig, TAP, in_own_network, ip};
use crate::site::{
    GUEST, Machine, Member, Running, Site, VECTORS, accelerated, by_ring, start_daemon,
};

/// A process of this machine.
const OTHER: Machine = Machine {
    name: "b",
    address: HOST,
    ..GUEST
};

/// How the server in the guest waits, and its port.
const WAYS: [(&str, u16); 3] = [("read", 7000), ("poll", 7001), ("epoll", 7002)];

/// More than QEMU has descriptors of a device: those of three members, the memory and the connection.
const NUMBERS: usize = 4 * VECTORS as usize;

/// Another interface for the guest, on the same network.
const SECOND_TAP: &str = "tap-second";

/// A guest with servers that wait in every way, and a machine that talks to each of them, on rings.
struct Pair<'a> {
    site: Site<'a>,
    rig: &'a Rig,
    guest: Guest,
    /// Connected throughout: QEMU may close what it was given when nobody is.
    qemu: Monitor,
    other: Member,
    talks: Vec<Running>,
}

impl<'a> Pair<'a> {
    fn new(rig: &'a Rig) -> Result<Self> {
        let site = Site::new(rig, &[GUEST, OTHER], "");
        let mut guest = rig.boot(&spec(&site, TAP))?;
        start_daemon(&mut guest, "")?;
        let other = site.member(&OTHER)?;
        Ok(Self {
            site,
            rig,
            qemu: guest.monitor()?,
            guest,
            other,
            talks: Vec::new(),
        })
    }

    fn talk(&mut self, rounds: &str, pause: &str) -> Result<()> {
        for (how, port) in WAYS {
            let line = accelerated(&format!("serve {port} {how}"), how);
            self.guest.spawn(how, &line)?;
        }
        for (how, port) in WAYS {
            self.guest
                .until(&format!("netstat -ltn | grep -q :{port}"))?;
            let to = format!("{}:{port}", GUEST.address);
            let line = ["talk", OTHER.address, &to, rounds, "20000", pause];
            let mut program = self.other.program(&line);
            program.stdout(File::create(self.log(how))?);
            self.talks.push(Running::start(program)?);
        }
        self.on_rings(WAYS.len());
        Ok(())
    }

    /// Moves the guest, which has no device now, to another QEMU, on another interface of our network.
    fn migrate(&mut self) -> Result<()> {
        let spec = Spec {
            directory: self.rig.path("migrated"),
            migrates_from: Some(self.rig.path(GUEST.name)),
            region: None,
            ..spec(&self.site, SECOND_TAP)
        };
        let mut guest = Guest::start(&self.rig.kernel, &spec)?;
        retry("the other QEMU waits for it", || {
            spec.incoming().exists().then_some(())
        });
        self.qemu.migrate(&spec.incoming())?;
        self.guest.end();
        guest.wait()?;
        self.qemu = guest.monitor()?;
        self.guest = guest;
        Ok(())
    }

    fn log(&self, how: &str) -> PathBuf {
        self.rig.path(&format!("talk-{how}"))
    }

    /// Waits until so many connections are on rings.
    fn on_rings(&self, count: usize) {
        retry("they are on rings", || {
            (self.direct() == count as u64).then_some(())
        });
    }

    fn direct(&self) -> u64 {
        let status = self.site.daemon.status();
        status["vms"]["direct"].as_u64().unwrap_or(u64::MAX)
    }

    /// Waits until every talk is some rounds further.
    fn goes_on(&self) {
        for (how, _) in WAYS {
            let rounds = || {
                let said = fs::read_to_string(self.log(how)).unwrap_or_default();
                said.matches("round").count()
            };
            let before = rounds();
            retry("a talk goes on", || (rounds() > before + 3).then_some(()));
        }
    }

    /// Signals the programs that talk.
    fn signal_talks(&self, signal: Signal) -> Result<()> {
        for talk in &self.talks {
            let tool = talk.pid().to_string();
            let said = Command::new("pgrep").args(["-P", &tool]).output()?;
            let pid = String::from_utf8_lossy(&said.stdout).trim().parse()?;
            let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
            kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// Every talk has ended well, and every server serves.
    fn ends(&mut self) -> Result<()> {
        for talk in std::mem::take(&mut self.talks) {
            let output = talk.output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{error}");
        }
        for (how, _) in WAYS {
            let said = fs::read_to_string(self.log(how))?;
            ensure!(said.ends_with("done\n"), "{how}: {said}");
            self.guest.run(&format!("kill -0 $(cat /tmp/{how}.pid)"))?;
        }
        Ok(())
    }
}

fn spec(site: &Site<'_>, tap: &str) -> Spec {
    Spec {
        pluggable: true,
        ..site.spec(&GUEST, Network::Tap(tap.to_owned()))
    }
}

fn drain(guest: &mut Guest) -> Result<()> {
    guest.run("viaduct-guest --drain")?;
    guest.until("! kill -0 $(cat /tmp/daemon.pid) 2>/dev/null")
}

fn unplug(pair: &mut Pair<'_>) -> Result<()> {
    let Pair { guest, qemu, .. } = pair;
    qemu.ask("device_del", &json!({"id": "region"}))?;
    guest.until("! grep -q 0x1110 /sys/bus/pci/devices/*/device")?;
    // QEMU needs a moment longer than the guest.
    retry("QEMU lets go of the connection", || {
        let removed = qemu.ask("chardev-remove", &json!({"id": "region"}));
        removed.is_ok().then_some(())
    });
    Ok(())
}

/// The same device, with the memory of its tenant.
fn plug(pair: &mut Pair<'_>) -> Result<()> {
    let socket = pair.rig.path(&format!("{}.sock", GUEST.name));
    let Pair { guest, qemu, .. } = pair;
    qemu.occupy_numbers(NUMBERS)?;
    let address = json!({"type": "unix", "data": {"path": socket}});
    let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
    qemu.ask("chardev-add", &json!({"id": "region", "backend": backend}))?;
    let device = json!({
        "driver": "ivshmem-doorbell", "id": "region", "chardev": "region", "vectors": VECTORS, "bus": "plug",
    });
    qemu.ask("device_add", &device)?;
    guest.until("grep -q 0x1110 /sys/bus/pci/devices/*/device")
}

/// The device goes away, as for a migration, and comes back, as after one.
#[test]
fn programs_come_back_to_the_device_that_was_unplugged() -> Result<()> {
    in_own_network(&[], || {
        let Some(rig) = Rig::new()? else {
            return Ok(());
        };
        let mut pair = Pair::new(&rig)?;
        pair.talk("400", "100")?;
        pair.goes_on();

        drain(&mut pair.guest)?;
        ensure!(pair.direct() == 0, "still on rings");
        pair.goes_on();
        start_daemon(&mut pair.guest, "")?;
        pair.on_rings(WAYS.len());
        pair.goes_on();

        drain(&mut pair.guest)?;
        unplug(&mut pair)?;
        pair.goes_on();
        plug(&mut pair)?;
        start_daemon(&mut pair.guest, "")?;
        pair.on_rings(WAYS.len());
        pair.goes_on();

        drain(&mut pair.guest)?;
        unplug(&mut pair)?;
        pair.goes_on();
        pair.ends()?;
        let stats = pair.other.stats()?;
        ensure!(by_ring(&stats) > 0, "{stats}");
        Ok(())
    })
}

/// As docs/deploy.md says under "Live migration".
#[test]
fn programs_come_back_to_the_device_after_a_migration() -> Result<()> {
    in_own_network(&[], || {
        let Some(rig) = Rig::new()? else {
            return Ok(());
        };
        ip("link add bridge type bridge")?;
        ip(&format!("tuntap add {SECOND_TAP} mode tap vnet_hdr"))?;
        ip(&format!("addr flush dev {TAP}"))?;
        ip(&format!("addr add {HOST}/24 dev bridge"))?;
        for port in [TAP, SECOND_TAP] {
            ip(&format!("link set {port} master bridge"))?;
            ip(&format!("link set {port} up"))?;
        }
        ip("link set bridge up")?;

        let mut pair = Pair::new(&rig)?;
        pair.talk("400", "100")?;
        pair.goes_on();
        drain(&mut pair.guest)?;
        unplug(&mut pair)?;
        pair.goes_on();
        pair.migrate()?;
        pair.goes_on();
        plug(&mut pair)?;
        start_daemon(&mut pair.guest, "")?;
        pair.on_rings(WAYS.len());
        pair.goes_on();
        pair.ends()
    })
}

/// Servers that sleep when the daemon dies by whose interrupts they are woken, and when the next one comes.
#[test]
fn programs_go_on_when_their_daemon_is_killed() -> Result<()> {
    in_own_network(&[], || {
        let Some(rig) = Rig::new()? else {
            return Ok(());
        };
        let mut pair = Pair::new(&rig)?;
        pair.talk("400", "100")?;
        pair.goes_on();
        pair.guest.run("kill -9 $(cat /tmp/daemon.pid)")?;
        pair.goes_on();
        start_daemon(&mut pair.guest, "")?;
        retry("the host forgets them", || {
            (pair.direct() == 0).then_some(())
        });
        pair.on_rings(WAYS.len());
        pair.goes_on();
        pair.ends()
    })
}

/// Servers that hear nothing between the drain and the end of their connections, and then close them.
#[test]
fn programs_that_sleep_over_it_all_are_not_harmed() -> Result<()> {
    in_own_network(&[], || {
        let Some(rig) = Rig::new()? else {
            return Ok(());
        };
        let mut pair = Pair::new(&rig)?;
        pair.talk("150", "100")?;
        pair.signal_talks(Signal::STOP)?;
        drain(&mut pair.guest)?;
        unplug(&mut pair)?;
        pair.signal_talks(Signal::CONT)?;
        pair.ends()
    })
}
