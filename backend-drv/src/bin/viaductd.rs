//! `viaductd`: the backend driver of a host.

use std::io::{IsTerminal, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use backend_drv::config::{Config, DEFAULT_FILE};
use backend_drv::daemon::{Daemon, Options};
use backend_drv::listener::{self, Access, Listener};
use backend_drv::raw_bench::{self, RawArgs};
use backend_drv::relay::{Links, Share};
use backend_drv::vm::Vms;
use backend_drv::{keeper, memory, namespaces, privileges};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Pairs the TCP connections of programs that run under libviaduct.so and gives both ends shared
/// memory to talk through.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file [default: /etc/viaduct/viaductd.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
    /// Print the configuration in effect and exit
    #[arg(long)]
    show: bool,
    /// Listen here instead of where the configuration says
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Serve one user's programs and exit when the last has left; reads no configuration
    #[arg(long, requires = "socket", conflicts_with_all = ["config", "check", "show"])]
    embedded: bool,
    /// When stopped, take all connections off the rings first: programs go on over TCP
    #[arg(long)]
    drain: bool,
    /// Write a byte to this open descriptor once programs can connect, and close it
    #[arg(long, value_name = "N")]
    ready_fd: Option<RawFd>,
    /// What to log, for example `debug` or `info,backend_drv::broker=trace`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// What `viaduct bench raw` runs
    #[command(hide = true, bin_name = "viaduct bench raw")]
    BenchRaw(RawArgs),
    /// Holds what a daemon needs to go on where one before it was killed; started by the daemon
    #[command(hide = true, name = keeper::process::SUBCOMMAND)]
    Keeper {
        /// Where it listens; standard input is that socket
        path: PathBuf,
    },
}

/// Exit code for a configuration that cannot be used.
const BAD_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    match &args.command {
        Some(Command::BenchRaw(raw)) => {
            return finish(raw_bench::run(raw).and_then(|result| say(&result)));
        }
        Some(Command::Keeper { path }) => {
            return finish(keeper::process::run(path).context("keeper"));
        }
        None => {}
    }
    let config = match load(&args) {
        Ok(config) => config,
        Err(error) => {
            complain(&format!("{error:#}"));
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let result = if args.show {
        show(&config)
    } else if args.check {
        say(&format!("{}: good", source(&args).display()))
    } else {
        serve(&args, &config)
    };
    finish(result)
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn source(args: &Args) -> &Path {
    match &args.config {
        Some(path) => path,
        None if DEFAULT_FILE.exists() => &DEFAULT_FILE,
        None => Path::new("built-in configuration"),
    }
}

fn load(args: &Args) -> anyhow::Result<Config> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None if !args.embedded && DEFAULT_FILE.exists() => Config::load(&DEFAULT_FILE)?,
        None => Config::built_in()?,
    };
    if let Some(socket) = &args.socket {
        config.socket = std::path::absolute(socket)?;
    }
    if let Some(log) = &args.log {
        config.log.clone_from(log);
    } else if args.embedded {
        "warn".clone_into(&mut config.log);
    }
    EnvFilter::try_new(&config.log)
        .with_context(|| format!("log = {}: must be a filter such as \"info\"", config.log))?;
    Ok(config)
}

fn show(config: &Config) -> anyhow::Result<()> {
    say(config.to_toml()?.trim_end())
}

fn serve(args: &Args, config: &Config) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&config.log)?)
        .with_writer(std::io::stderr)
        // A log that cannot be written is no reason to stop serving.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let descriptors = privileges::raise_descriptor_limit();
    let domains = namespaces::resolve(&config.domains)?;
    let user = match &config.user {
        Some(name) if privileges::is_root() => Some(privileges::find_user(name)?),
        Some(name) => {
            tracing::warn!(user = %name, "not started as root: staying the user we are");
            None
        }
        None => None,
    };
    let access = if args.embedded {
        Access {
            mode: 0o600,
            group: None,
            directory_mode: 0o700,
            directory_owner: None,
        }
    } else {
        let group = config.socket_group.as_deref();
        Access {
            mode: config.socket_mode,
            group: group.map(privileges::find_group).transpose()?,
            directory_mode: 0o755,
            directory_owner: user.as_ref().map(|user| user.uid),
        }
    };
    let listener = Listener::bind(&config.socket, &access)?;
    let links = Links::open(&config.links)?;
    let first_domain = u32::try_from(config.domains.len() + 1).unwrap_or(u32::MAX);
    let vms = Vms::open(&config.vms, first_domain).context("vm")?;
    match &user {
        Some(user) => privileges::become_user(user)?,
        None if privileges::is_root() && !args.embedded => {
            tracing::warn!("running as root: set `user` to give up root after start");
        }
        None => {}
    }
    let options = Options {
        limits: config.limits,
        domains,
        domain_memory: config.domains.iter().map(|d| d.memory_bytes).collect(),
        embedded: args.embedded,
        shares: shares(config),
        relay_here: config.relay_untrusted,
        drain: args.drain,
    };
    let mut daemon = Daemon::new(options, listener, links, None, vms).context("starting")?;
    tracing::info!(
        socket = %config.socket.display(),
        user = user.as_ref().map_or("unchanged", |user| user.name.as_str()),
        descriptors,
        domains = config.domains.len(),
        "listening"
    );
    if let Some(number) = args.ready_fd {
        let pipe = memory::inherited_fd(number).context("--ready-fd")?;
        listener::announce(pipe).context("--ready-fd")?;
    }
    listener::notify("READY=1");
    daemon.run().context("event loop")?;
    listener::notify("STOPPING=1");
    Ok(())
}

/// Parts of the links: of those who are in no domain, and of each domain.
fn shares(config: &Config) -> Vec<Share> {
    let rest = Share {
        weight: 1,
        rate: None,
    };
    let domains = config.domains.iter().map(|domain| Share {
        weight: domain.weight,
        rate: domain.rate_limit,
    });
    let vms = config.vms.iter().map(|vm| Share {
        weight: vm.weight,
        rate: vm.rate_limit,
    });
    std::iter::once(rest).chain(domains).chain(vms).collect()
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("stdout")
}

fn complain(text: &str) {
    // Nothing is left to be done if this fails too.
    let _ = writeln!(std::io::stderr(), "viaductd: {text}");
}
