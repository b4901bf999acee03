//! `viaduct run -- CMD`: runs a program under the library.
//!
//! * [`settings`]: the command line as environment variables of the program.
//! * [`embedded`]: a daemon of this user's own, where no other answers.
//! * [`supervise`]: waiting for the program, passing signals and the exit status on.
//! * [`stats`]: what its connections did, asked for at the end.
//!
//! Where nothing is left to do after the start, the tool becomes the program (exec).

mod embedded;
mod settings;
mod stats;
mod supervise;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;
use rdma_core::control::DEFAULT_SOCKET;

use crate::daemon::{self, Daemon};
use crate::failure::{Failure, complain};
use crate::launch::Inherited;
use crate::locate;
use crate::peers::PeerList;
use crate::program::{Image, Obstacle, Program};
use settings::Settings;
use stats::StatsFile;

/// Run a program with its connections to peers accelerated.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Who is a peer: [!]ADDRESS[/BITS][:PORT[-PORT]],... [default: VIADUCT_PEERS, or this host's own addresses]
    #[arg(long, value_name = "LIST")]
    peers: Option<String>,
    /// The daemon's socket [default: VIADUCT_SOCKET, the system's daemon, or an embedded one]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Data calls or bytes before a connection is upgraded; 0 is at once
    #[arg(long, value_name = "CALLS[,BYTES]")]
    upgrade_after: Option<String>,
    /// Size of a ring (k, m and g are understood), rounded up to a power of two
    #[arg(long, value_name = "N")]
    ring_bytes: Option<String>,
    /// Longest time to spin before sleeping, in microseconds; 0 is never
    #[arg(long, value_name = "N")]
    spin_us: Option<String>,
    /// Make it an error if a connection to a peer is declined
    #[arg(long)]
    strict: bool,
    /// Say at the end, on stderr, what went by ring and what by TCP
    #[arg(long)]
    stats: bool,
    /// Write the same to a file, as JSON
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// The library [default: VIADUCT_LIBRARY, or libviaduct.so where it is installed]
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let inherited = Inherited::take()?;
    let Some((name, arguments)) = args.command.split_first() else {
        bail!(Failure::bad_input("no program to run"));
    };
    let settings = Settings::new(args)?;
    let library = locate::library(args.library.as_deref())?;
    let preload = foresee(&locate::command(name)?, &library, &settings.peers);
    let stats_file = args.stats_json.as_deref().map(StatsFile::new).transpose()?;
    let (held, is_embedded) = find_daemon(args.socket.as_deref())?;
    let session = settings::session(args.stats || args.stats_json.is_some());

    let mut command = Command::new(name);
    command.args(arguments);
    settings.apply(&mut command, &held.socket, session);
    if preload {
        command.env("LD_PRELOAD", settings::preload_list(&library));
    }
    tracing::info!(library = %library.display(), socket = %held.socket.display(),
        peers = settings.peers.text, session = format_args!("{session:016x}"), "starting");

    let wants_stats = args.stats || stats_file.is_some();
    if !is_embedded && !wants_stats {
        let error = inherited.exec(&mut command);
        bail!(cannot_start(Path::new(name), &error));
    }
    let ending = supervise::run(inherited, &mut command)
        .map_err(|error| cannot_start(Path::new(name), &error))?;
    if wants_stats {
        match stats::ask(&held, session) {
            Ok(totals) => {
                if args.stats {
                    stats::print(&totals);
                }
                if let Some(file) = &stats_file {
                    file.write(&totals)
                        .unwrap_or_else(|e| complain(&format!("{e:#}")));
                }
            }
            Err(error) => complain(&format!("no statistics: {error:#}")),
        }
    }
    // Not left to the end of this function, which a signal may cut off.
    drop(stats_file);
    Ok(ending.pass_on())
}

/// Says on stderr what will keep the program plain. False if the library must not be loaded at all.
fn foresee(command: &Path, library: &Path, peers: &PeerList) -> bool {
    let note = |text: &str| complain(&format!("note: {text}"));
    if std::env::var_os("VIADUCT_DISABLE").is_some_and(|v| !v.is_empty() && v != "0") {
        note("VIADUCT_DISABLE is set: nothing will be accelerated");
    }
    if peers.policy.is_empty() {
        note("the peer list names nobody: nothing will be accelerated");
    }
    let program = match Program::open(command) {
        Ok(program) => program,
        Err(error) => {
            // Whether it can be run is the kernel's to say.
            tracing::info!("cannot look at {}: {error:#}", command.display());
            return true;
        }
    };
    let library = Image::open(library)
        .inspect_err(|error| tracing::info!("cannot look at the library: {error:#}"))
        .ok();
    let obstacles = program.obstacles(library.as_ref());
    if let Some(obstacle) = obstacles.first() {
        let name = program.path.display();
        note(&format!("{name} will not be accelerated: {obstacle}"));
    }
    !obstacles.contains(&Obstacle::OtherLibc)
}

/// The daemon that the program is to use, and whether it is an embedded one, which we have to hold.
fn find_daemon(option: Option<&Path>) -> Result<(Daemon, bool)> {
    if let Some(socket) = daemon::named(option) {
        let socket = std::path::absolute(&socket)?;
        return match Daemon::reach(&socket) {
            Ok(daemon) => Ok((daemon, false)),
            Err(error) => bail!(
                "no daemon to use at {}: {error}; start viaductd there, or name no socket for an embedded one",
                socket.display()
            ),
        };
    }
    match Daemon::reach(Path::new(DEFAULT_SOCKET)) {
        Ok(daemon) => return Ok((daemon, false)),
        Err(error) if error.is_absent() => tracing::info!("{DEFAULT_SOCKET}: {error}"),
        Err(error) => complain(&format!(
            "note: the daemon at {DEFAULT_SOCKET} cannot be used ({error}), using an embedded one"
        )),
    }
    Ok((embedded::ensure()?, true))
}

fn cannot_start(name: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => locate::NOT_FOUND,
        _ => locate::CANNOT_RUN,
    };
    Failure::with_code(code, format!("cannot run {}: {error}", name.display()))
}
