//! `viaduct-guest`: the frontend driver's daemon of a virtual machine.

use std::io::{IsTerminal, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use backend_drv::config::{Config, DEFAULT_SOCKET_PATH};
use backend_drv::daemon::{self, Daemon, Options};
use backend_drv::keeper::{self, Item, Keeper};
use backend_drv::listener::{self, Access, Listener};
use backend_drv::relay::Links;
use backend_drv::uplink::{Outside, Uplink};
use backend_drv::vm::Vms;
use backend_drv::{memory, privileges};
use clap::Parser;
use frontend_drv::client::Client;
use frontend_drv::device::{self, Choice, Device, DeviceError};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tracing_subscriber::EnvFilter;

/// Serves the programs of a virtual machine as viaductd serves those of a host, and reaches the far ends of their
/// connections through the machine's shared-memory device.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// The device: `auto`, a PCI address such as 00:04.0, dax:PATH, or socket:PATH of viaductd's socket for a member
    /// that is no virtual machine
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Choice,
    /// Where programs connect
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET_PATH.as_os_str())]
    socket: PathBuf,
    /// Permissions of the socket, in octal
    #[arg(long, value_name = "MODE", default_value = "0666", value_parser = octal)]
    socket_mode: u32,
    /// The user whose programs may use the device [default: the one that starts this daemon]
    #[arg(long, value_name = "UID", conflicts_with = "any_user")]
    uid: Option<u32>,
    /// All users' programs may use the device: whoever does can read and change what all of them send
    #[arg(long)]
    any_user: bool,
    /// This is no machine but a container that shares its network namespace with others: their loopback addresses are
    /// ours, too
    #[arg(long)]
    shared_network: bool,
    /// Do not use the device's interrupts, but look at its memory from time to time
    #[arg(long)]
    no_interrupts: bool,
    /// Wait for the device as long as it is not there
    #[arg(long)]
    wait: bool,
    /// Stop the daemon that serves at the socket: it takes all connections off the rings first, so that programs go on
    /// over TCP, and lets go of the device
    #[arg(long)]
    drain: bool,
    /// Write a byte to this open descriptor once programs can connect, and close it
    #[arg(long, value_name = "N")]
    ready_fd: Option<RawFd>,
    /// What to log, for example `debug` or `info,backend_drv::uplink=trace`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: EnvFilter,
}

/// Looks for a device that is there and cannot be opened.
const BUSY_TRIES: u32 = 6;
/// Between two looks for a device.
const LOOK_EVERY: Duration = Duration::from_millis(500);

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("\"{text}\" must be octal permissions such as 0660"))
}

fn main() -> ExitCode {
    // In a process of our own that keeps the device; see `Keeper`.
    let mut words = std::env::args_os().skip(1);
    if words
        .next()
        .is_some_and(|word| word == keeper::process::SUBCOMMAND)
    {
        let path = words.next().unwrap_or_default();
        return match keeper::process::run(Path::new(&path)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let args = Args::parse();
    let result = if args.drain {
        drain(&args.socket)
    } else {
        serve(args)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done if this fails too.
            let _ = writeln!(std::io::stderr(), "viaduct-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: Args) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(args.log)
        .with_writer(std::io::stderr)
        // A log that cannot be written is no reason to stop serving.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    daemon::block_signals()?;
    privileges::raise_descriptor_limit();
    let config = Config::built_in()?;
    let wanted = device::Options {
        choice: args.device,
        no_interrupts: args.no_interrupts,
    };
    let socket = std::path::absolute(&args.socket)?;
    let (mut keeper, mut kept) = kept_for(&socket);
    let device = open_device(&wanted, &mut kept, args.wait)?;
    drop(kept);
    keep(&*device, &socket, &mut keeper);
    tracing::info!(
        member = device.id(),
        bytes = device.memory_bytes(),
        vectors = device.vectors(),
        "device"
    );
    let outside = match (args.any_user, args.uid) {
        (true, _) => Outside::Anybody,
        (false, uid) => Outside::User(uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw())),
    };
    let uplink =
        Uplink::new(device, outside, args.shared_network, nonce()).context("device memory")?;
    let access = Access {
        mode: args.socket_mode,
        group: None,
        directory_mode: 0o755,
        directory_owner: None,
    };
    let listener = Listener::bind(&socket, &access)?;
    let options = Options {
        limits: config.limits,
        domains: Vec::new(),
        domain_memory: Vec::new(),
        embedded: false,
        shares: Vec::new(),
        // Nobody can be woken once the device is let go of.
        drain: true,
        relay_here: true,
    };
    let mut daemon = Daemon::new(
        options,
        listener,
        Links::default(),
        Some(uplink),
        Vms::default(),
    )
    .context("starting")?;
    daemon.wait_for_host();
    tracing::info!(socket = %socket.display(), "listening");
    if let Some(number) = args.ready_fd {
        let pipe = memory::inherited_fd(number).context("--ready-fd")?;
        listener::announce(pipe).context("--ready-fd")?;
    }
    listener::notify("READY=1");
    daemon.run().context("event loop")?;
    listener::notify("STOPPING=1");
    let has_lost_device = daemon.has_lost_device();
    drop(daemon);
    if let Some(keeper) = keeper {
        keeper.finish();
    }
    // Whoever looks after us starts us again, to wait for the next one.
    anyhow::ensure!(!has_lost_device, "the device is gone");
    Ok(())
}

/// Names the keeper of the device, as opposed to that of the daemon's connections.
fn beside(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".device");
    path.into()
}

/// What a daemon before us has left, if it was killed: the device as it was.
fn kept_for(socket: &Path) -> (Option<Keeper>, Vec<Item>) {
    let found = Keeper::open_own(&beside(socket), true).unwrap_or_else(|error| {
        tracing::warn!(%error, "whoever keeps the device does not answer");
        None
    });
    found.map_or((None, Vec::new()), |(keeper, items)| (Some(keeper), items))
}

/// Has a device kept: the kernel resets it when nobody holds it any more, under programs that are using its memory.
fn keep(device: &dyn Device, socket: &Path, keeper: &mut Option<Keeper>) {
    let parts = device.keep();
    if parts.is_empty() {
        return;
    }
    if keeper.is_none() {
        match Keeper::open_own(&beside(socket), false) {
            Ok(found) => *keeper = found.map(|(keeper, _)| keeper),
            Err(error) => {
                tracing::warn!(%error, "nobody keeps the device: programs lose it if this daemon is killed");
            }
        }
    }
    let Some(keeper) = keeper else { return };
    if parts.iter().all(|(name, _)| keeper.has(name)) {
        return;
    }
    keeper.forget_all("");
    for (name, fd) in parts {
        keeper.keep(&name, fd);
    }
}

/// Longer than a daemon takes to drain.
const DRAIN_PATIENCE: Duration = Duration::from_secs(15);

/// Stops the daemon that serves at `socket`, and waits until it has.
fn drain(socket: &Path) -> anyhow::Result<()> {
    let at = || format!("{}", socket.display());
    let path = socket.to_str().context("the socket's path is not UTF-8")?;
    let client = Client::connect(path).with_context(|| format!("no daemon at {}", at()))?;
    let pid = client.daemon_pid().with_context(at)?;
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM)
        .with_context(|| format!("stopping process {pid}"))?;
    if client.wait_for_end(DRAIN_PATIENCE) {
        Ok(())
    } else {
        anyhow::bail!("process {pid} has not stopped in {DRAIN_PATIENCE:?}")
    }
}

/// The device; `wait`: however long it takes to be there.
fn open_device(
    wanted: &device::Options,
    kept: &mut Vec<Item>,
    wait: bool,
) -> anyhow::Result<Box<dyn Device>> {
    let mut is_told = false;
    let mut tries = 0;
    loop {
        match device::open_kept(wanted, kept) {
            Ok(device) => return Ok(device),
            // A daemon that has just ended may not have let go of it.
            Err(DeviceError::System(..)) if tries < BUSY_TRIES => tries += 1,
            Err(error) if !wait => return Err(error).context("device"),
            Err(error) if !is_told => {
                tracing::info!(%error, "waiting for the device");
                is_told = true;
            }
            Err(_) => {}
        }
        // A signal ends us as soon as it is looked at: there is nothing to be left in order.
        if daemon::is_signalled(LOOK_EVERY)? {
            anyhow::bail!("told to stop while waiting for the device");
        }
    }
}

/// Differs between two runs.
fn nonce() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
