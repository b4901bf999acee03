//! A daemon with virtual machines: real guests, and members of a region that are processes of this machine.

use std::net::{IpAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use viaduct_tests::rig::build;
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::vm::guest::{Guest, Network, Spec};

use crate::rig::Rig;

/// Memory of a region, and vectors of a member.
const MEMORY: &str = "256MiB";
const MEMORY_BYTES: u64 = 256 << 20;
pub(crate) const VECTORS: u16 = 16;

/// What programs are started with.
const ENVIRONMENT: &str =
    "VIADUCT_PEERS=10.77.0.0/24,10.78.0.0/16,127.0.0.0/8 VIADUCT_UPGRADE_AFTER=0";

/// A virtual machine that the daemon is to know.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) address: &'static str,
    /// Nothing: one of its own.
    pub(crate) tenant: &'static str,
}

/// The first guest of a test.
pub(crate) const GUEST: Machine = Machine {
    name: "a",
    address: "10.77.0.1",
    tenant: "blue",
};

/// A daemon that waits for machines.
pub(crate) struct Site<'a> {
    pub(crate) daemon: Daemon,
    rig: &'a Rig,
    /// The memory of machines has names, by which they can have it as persistent memory.
    named: bool,
}

impl<'a> Site<'a> {
    /// Starts one. `more` stands in its configuration.
    pub(crate) fn new(rig: &'a Rig, machines: &[Machine], more: &str) -> Self {
        Self::start(rig, machines, more, false)
    }

    /// Starts one, of whose machines the memory has names.
    pub(crate) fn named(rig: &'a Rig, machines: &[Machine]) -> Self {
        Self::start(rig, machines, "", true)
    }

    fn start(rig: &'a Rig, machines: &[Machine], more: &str, named: bool) -> Self {
        let mut text = more.to_owned();
        for machine in machines {
            let socket = rig.path(&format!("{}.sock", machine.name));
            text += &format!(
                "[[vm]]\nname = \"{}\"\nsocket = \"{}\"\naddresses = [\"{}\"]\nmemory = \"{MEMORY}\"\nvectors = {VECTORS}\n",
                machine.name,
                socket.display(),
                machine.address
            );
            if named {
                let path = rig.path(&format!("{}.mem", machine.name));
                text += &format!("memory_path = \"{}\"\n", path.display());
            }
            if !machine.tenant.is_empty() {
                text += &format!("tenant = \"{}\"\n", machine.tenant);
            }
        }
        Self {
            daemon: Daemon::configured(&text),
            rig,
            named,
        }
    }

    /// What a machine is as a guest.
    pub(crate) fn spec(&self, machine: &Machine, network: Network) -> Spec {
        let mut spec = self.rig.spec(machine.name);
        spec.contents
            .programs
            .extend([build::viaduct_guest(), build::viaduct()]);
        let library = (build::library(), "/usr/bin/libviaduct.so".to_owned());
        spec.contents.files.push(library);
        spec.region = Some(self.rig.path(&format!("{}.sock", machine.name)));
        spec.vectors = VECTORS;
        spec.memory = 512;
        spec.address = Some(format!("{}/24", machine.address));
        spec.network = network;
        spec
    }

    /// What a machine is that has the memory as persistent memory too.
    pub(crate) fn cached(&self, machine: &Machine, network: Network) -> Spec {
        assert!(self.named);
        let mut spec = self.spec(machine, network);
        let memory = self.rig.path(&format!("{}.mem", machine.name));
        spec.persistent = Some((memory, MEMORY_BYTES));
        let modules = ["virtio_pmem", "nd_pmem", "dax_pmem", "device_dax"];
        spec.contents.modules.extend(modules.map(str::to_owned));
        spec
    }

    /// Boots a machine, with its daemon.
    pub(crate) fn boot(&self, machine: &Machine, network: Network) -> Result<Guest> {
        let mut guest = self.rig.boot(&self.spec(machine, network))?;
        start_daemon(&mut guest, "")?;
        Ok(guest)
    }

    /// A program `guest ...` of the host, under the library.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        program(&self.daemon.socket().to_string_lossy(), arguments)
    }

    /// A machine that is a process.
    pub(crate) fn member(&self, machine: &Machine) -> Result<Member> {
        let socket = self.rig.path(&format!("{}.guest", machine.name));
        let region = self.rig.path(&format!("{}.sock", machine.name));
        let child = Command::new(build::viaduct_guest())
            .arg("--device")
            .arg(format!("socket:{}", region.display()))
            .arg("--socket")
            .arg(&socket)
            .args(["--log", "warn"])
            .stdin(Stdio::null())
            .spawn()?;
        let member = Member {
            child,
            socket: socket.to_string_lossy().into_owned(),
            address: machine.address.parse()?,
        };
        for _ in 0..600 {
            if socket.exists() {
                return Ok(member);
            }
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("{} does not start", machine.name)
    }
}

/// Starts the daemon inside a guest.
pub(crate) fn start_daemon(guest: &mut Guest, more: &str) -> Result<()> {
    guest.run("mkdir -p /run/viaduct; rm -f /run/viaduct/viaductd.sock")?;
    guest.spawn("daemon", &format!("viaduct-guest --any-user {more}"))?;
    guest
        .until("[ -S /run/viaduct/viaductd.sock ]")
        .with_context(|| guest.run("cat /tmp/daemon.log").unwrap_or_default())
}

/// The command line that runs `guest ...` under the library; what it counted comes into a file.
pub(crate) fn accelerated(what: &str, name: &str) -> String {
    format!("env {ENVIRONMENT} viaduct run --stats-json /tmp/{name}.json -- guest {what}")
}

/// Starts the server in a guest.
pub(crate) fn serve(guest: &mut Guest) -> Result<()> {
    guest.spawn("serve", &accelerated("serve 7000", "serve"))?;
    guest.until("netstat -ltn | grep -q :7000")
}

/// Talks to a server from a guest until it is done, and what the library counted.
pub(crate) fn talk(guest: &mut Guest, line: &str) -> Result<Value> {
    let said = guest.run(&accelerated(line, "talk"))?;
    ensure!(said.ends_with("done\n"), "{said}");
    Ok(serde_json::from_str(&guest.run("cat /tmp/talk.json")?)?)
}

/// Waits until somebody listens, on this machine.
fn listens(address: &str) -> Result<()> {
    for _ in 0..600 {
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("nobody listens at {address}")
}

/// Bytes that went by ring, both ways.
pub(crate) fn by_ring(stats: &Value) -> u64 {
    let count = |name: &str| stats.get(name).and_then(Value::as_u64).unwrap_or(0);
    count("ring_tx_bytes") + count("ring_rx_bytes")
}

/// A machine that is a process of this machine: its daemon, and programs that use it.
pub(crate) struct Member {
    child: Child,
    socket: String,
    pub(crate) address: IpAddr,
}

impl Member {
    /// A program `guest ...` under the library.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        program(&self.socket, arguments)
    }

    /// What the program that ended last has counted.
    pub(crate) fn stats(&self) -> Result<Value> {
        let text = std::fs::read_to_string(format!("{}.json", self.socket))?;
        Ok(serde_json::from_str(&text)?)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program `guest ...` under the library, of the daemon at a socket.
fn program(socket: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(build::viaduct());
    command
        .args(["run", "--socket", socket, "--library"])
        .arg(build::library())
        .envs(
            ENVIRONMENT
                .split(' ')
                .filter_map(|pair| pair.split_once('=')),
        )
        .args(["--stats-json", &format!("{socket}.json"), "--"])
        .arg(env!("CARGO_BIN_EXE_guest"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A program of a member; it is ended when this is dropped.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        Ok(Self(Some(command.spawn()?)))
    }

    /// The same of a server, once it listens at this address of this machine.
    pub(crate) fn serve(command: Command, address: &str) -> Result<Self> {
        let server = Self::start(command)?;
        listens(address)?;
        Ok(server)
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    /// Waits for its end.
    pub(crate) fn output(mut self) -> Result<Output> {
        let child = self.0.take().context("it has ended")?;
        Ok(child.wait_with_output()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // `viaduct run` passes it on; its program would outlive it otherwise.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            let _ = child.wait();
        }
    }
}
