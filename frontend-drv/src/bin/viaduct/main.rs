//! `viaduct`: the tool. It starts programs under the library, shows what the daemon knows, measures,
//! and says what would work here and what would not, and why.
//!
//! * [`run`]: `viaduct run -- CMD`, with an embedded daemon where no other answers.
//! * [`status`], [`top`]: what the daemon knows now, once or every second.
//! * [`revoke`]: takes connections back to TCP.
//! * [`doctor`]: checks of this machine and of a program. [`peers`]: who is a peer, by which rule.
//! * [`bench`](mod@bench): the same benchmark over kernel TCP and over Viaduct.
//! * [`daemon`], [`query`], [`report`]: which daemon, asking it, reading its answer.
//! * [`program`]: what a program's file says about preloading. [`locate`]: where our own files are.
//! * [`launch`]: starting programs with the signal state that we were started with.
//! * [`columns`], [`units`], [`output`], [`failure`]: how results and errors look.
//!
//! Results go to stdout, everything else to stderr. Exit status: 0 good, 1 a failure (or the answer
//! no), 2 bad input; `run` passes on that of its command, or 126 and 127 if it cannot be started.
//!
//! The tool never touches a connection itself. Try it with `cargo test -p viaduct-frontend`; the tests in
//! `tests/cli` run the built binary.

mod bench;
mod columns;
mod daemon;
mod doctor;
mod failure;
mod launch;
mod locate;
mod output;
mod peers;
mod program;
mod query;
mod report;
mod revoke;
mod run;
mod runtime_dir;
mod status;
mod top;
mod units;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgAction, Parser, Subcommand};
use tracing::Level;

/// Unmodified TCP programs over shared-memory rings.
#[derive(Debug, Parser)]
#[command(name = "viaduct", version)]
struct Cli {
    /// Log to stderr what is done; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a program with its connections to peers accelerated
    Run(run::RunArgs),
    /// Show the daemon's processes and connections
    Status(status::StatusArgs),
    /// Show the busiest connections, once a second; q ends it
    Top(top::TopArgs),
    /// Take connections back to TCP for good; later ones are not affected
    Revoke(revoke::RevokeArgs),
    /// Check what works on this machine, and whether a program can be accelerated
    Doctor(doctor::DoctorArgs),
    /// Print the peer list, or say which rule decides about an address
    Peers(peers::PeersArgs),
    /// Measure a benchmark over kernel TCP and over Viaduct, side by side
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Revoke(args) => revoke::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Bench(args) => bench::run(args).map(|()| ExitCode::SUCCESS),
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => Level::WARN,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(level)
        .with_target(false)
        .without_time()
        .init();
}
