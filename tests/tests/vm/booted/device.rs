//! Guests and their device, without the daemon.

use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use anyhow::{Context, Result, ensure};
use backend_drv::vm::server::HOST;
use rustix::io::write;
use serde_json::json;
use viaduct_tests::vm::guest::{Guest, Network, Spec};
use viaduct_tests::vm::region::{Region, is_quiet, rings};
use viaduct_tests::vm::slots::{ADDED, END, answer, question};
use viaduct_tests::vm::window::Window;

use crate::rig::Rig;

const VECTORS: u16 = 4;
const BYTES: u64 = 1 << 20;

/// A guest that is to be in a region.
fn member(rig: &Rig, name: &str, region: &Region) -> Spec {
    Spec {
        region: Some(region.socket()),
        vectors: VECTORS,
        ..rig.spec(name)
    }
}

/// Boots one in a region.
fn join(rig: &Rig, spec: &Spec, region: &mut Region) -> Result<Guest> {
    let mut guest = Guest::start(&rig.kernel, spec)?;
    region.accept()?;
    guest.wait()?;
    Ok(guest)
}

/// Starts the echo in a guest, and what it says of the device.
fn echo(guest: &mut Guest) -> Result<String> {
    guest.spawn("echo", &format!("guest echo auto {VECTORS}"))?;
    guest.until("grep -q id /tmp/echo.log || ! kill -0 $(cat /tmp/echo.pid)")?;
    guest.run("cat /tmp/echo.log")
}

/// Waits until something that was spawned in a guest has ended.
fn ended(guest: &mut Guest, name: &str) -> Result<()> {
    guest.until(&format!("! kill -0 $(cat /tmp/{name}.pid) 2>/dev/null"))
}

/// Asks a member's echo, from the host.
fn ask(region: &Region, memory: &Window, target: u16, vector: u16, what: u64) -> Result<()> {
    memory.word(question(HOST, vector)).store(what, SeqCst);
    let bell = region.group.bell(target, vector).context("no bell")?;
    write(bell, &1u64.to_ne_bytes())?;
    let own = region.group.bell(HOST, vector).context("no bell")?;
    ensure!(
        rings(own)?,
        "member {target} does not answer by vector {vector}"
    );
    let said = memory.word(answer(HOST, vector)).load(SeqCst);
    ensure!(said == what, "{said} in answer to {what}");
    Ok(())
}

#[test]
fn commands_run_in_a_guest() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let mut spec = rig.spec("a");
    let file = (Path::new("/etc/debian_version").into(), "/etc/some".into());
    spec.contents.files.push(file);
    let mut guest = rig.boot(&spec)?;
    assert!(guest.console().contains("up"));
    assert_eq!(guest.run("hostname")?, "a\n");
    let same = std::fs::read_to_string("/etc/debian_version")?;
    assert_eq!(guest.run("cat /etc/some")?, same);
    let said = guest.run_within("echo out; echo err >&2; exit 3", spec.limit)?;
    assert_eq!((said.status, said.text()), (3, "out\n".to_owned()));
    assert_eq!(said.err, b"err\n");
    assert!(guest.run("false").is_err());
    // Programs of this machine find their libraries.
    let said = guest.run_within("guest", spec.limit)?;
    assert!(said.err.starts_with(b"guest: "));
    guest.end();
    assert!(guest.run("true").is_err());
    Ok(())
}

#[test]
fn guests_reach_each_other_by_tcp() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let wire = rig.path("wire");
    let mut one = rig.spec("a");
    one.network = Network::Listen(wire.clone());
    one.address = Some("10.77.0.1/24".into());
    let mut two = rig.spec("b");
    two.network = Network::Connect(wire);
    two.address = Some("10.77.0.2/24".into());
    let mut one = rig.boot(&one)?;
    let mut two = rig.boot(&two)?;
    one.spawn("server", "nc -l -p 7000 -e cat")?;
    one.until("netstat -ltn | grep -q :7000")?;
    let said = two.run("echo across | timeout 20 nc 10.77.0.1 7000")?;
    assert_eq!(said, "across\n");
    Ok(())
}

#[test]
fn a_guest_shares_memory_and_interrupts_with_its_host() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let mut region = Region::new(BYTES, VECTORS)?;
    let memory = region.window()?;
    let mut guest = join(&rig, &member(&rig, "a", &region), &mut region)?;
    let said = echo(&mut guest)?;
    let expected = format!("id 1 vectors {VECTORS} bytes {BYTES} register true\n");
    assert_eq!(said, expected);
    for round in 1..=50 {
        for vector in 0..VECTORS {
            ask(&region, &memory, 1, vector, round)?;
        }
    }
    ask(&region, &memory, 1, 0, END)?;
    ended(&mut guest, "echo")?;
    // Its successor gets the device as it was.
    assert_eq!(echo(&mut guest)?, expected);
    ask(&region, &memory, 1, VECTORS - 1, 1)?;
    assert!(!region.group.is_gone(1));
    guest.end();
    assert!(region.group.is_gone(1));
    Ok(())
}

#[test]
fn guests_of_one_region_interrupt_each_other() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let mut region = Region::new(BYTES, VECTORS)?;
    let mut one = join(&rig, &member(&rig, "a", &region), &mut region)?;
    let mut two = join(&rig, &member(&rig, "b", &region), &mut region)?;
    let said = echo(&mut one)?;
    ensure!(said.starts_with("id 1 "), "{said}");
    for vector in 0..VECTORS {
        let said = two.run(&format!("guest ask auto 1 {vector}"))?;
        assert_eq!(said, "answered\n");
    }
    // They go on without their host.
    drop(region);
    assert_eq!(two.run("guest ask auto 1 2")?, "answered\n");
    Ok(())
}

#[test]
fn without_an_iommu_a_guest_looks_at_the_memory_and_rings() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let mut region = Region::new(BYTES, VECTORS)?;
    let memory = region.window()?;
    let spec = Spec {
        iommu: false,
        ..member(&rig, "a", &region)
    };
    let mut guest = join(&rig, &spec, &mut region)?;
    let said = echo(&mut guest)?;
    assert_eq!(
        said,
        format!("id 1 vectors 0 bytes {BYTES} register true\n")
    );
    for vector in 0..VECTORS {
        ask(&region, &memory, 1, vector, 7)?;
    }
    Ok(())
}

/// Emulators take them apart for a guest that can only ever have one processor.
#[test]
fn what_guest_and_host_add_atomically_is_not_lost() -> Result<()> {
    const TIMES: u64 = 2_000_000;
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let mut region = Region::new(BYTES, VECTORS)?;
    let memory = region.window()?;
    let mut guest = join(&rig, &member(&rig, "a", &region), &mut region)?;
    guest.spawn("add", &format!("guest add auto {TIMES}"))?;
    guest.until("grep -q adding /tmp/add.log")?;
    for _ in 0..TIMES {
        memory.word(ADDED).fetch_add(1, SeqCst);
    }
    ended(&mut guest, "add")?;
    assert_eq!(memory.word(ADDED).load(SeqCst), 2 * TIMES);
    Ok(())
}

#[test]
fn a_device_can_be_unplugged_and_plugged_again() -> Result<()> {
    let Some(rig) = Rig::new()? else {
        return Ok(());
    };
    let mut region = Region::new(BYTES, VECTORS)?;
    let spec = Spec {
        pluggable: true,
        ..member(&rig, "a", &region)
    };
    let mut guest = join(&rig, &spec, &mut region)?;
    guest.spawn("wait", "guest wait auto")?;
    guest.until("grep -q there /tmp/wait.log || ! kill -0 $(cat /tmp/wait.pid)")?;
    guest.tell_qemu("device_del", &json!({"id": "region"}))?;
    ended(&mut guest, "wait")?;
    assert_eq!(guest.run("cat /tmp/wait.log")?, "there\nwanted back\n");
    guest.until("! grep -q 0x1110 /sys/bus/pci/devices/*/device")?;
    let said = guest.run_within("guest wait auto", spec.limit)?;
    let error = String::from_utf8_lossy(&said.err).into_owned();
    ensure!(error.contains("no ivshmem device"), "{error}");
    // QEMU keeps its connection to the server until it is told.
    guest.tell_qemu("chardev-remove", &json!({"id": "region"}))?;
    assert!(!is_quiet(region.group.socket(1).context("no member")?)?);
    assert!(region.group.is_gone(1));
    region.group.leave(1);

    let address = json!({"type": "unix", "data": {"path": region.socket()}});
    let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
    guest.tell_qemu("chardev-add", &json!({"id": "region", "backend": backend}))?;
    let device = json!({
        "driver": "ivshmem-doorbell", "id": "region", "chardev": "region",
        "vectors": VECTORS, "bus": "plug",
    });
    thread::scope(|scope| {
        let plugging = scope.spawn(|| guest.tell_qemu("device_add", &device));
        let joined = region.accept();
        plugging.join().expect("no panic").and(joined)
    })?;
    guest.until("grep -q 0x1110 /sys/bus/pci/devices/*/device")?;
    let said = echo(&mut guest)?;
    ensure!(said.starts_with("id 1 "), "{said}");
    ask(&region, &region.window()?, 1, 0, 1)
}
