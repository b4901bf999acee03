//! Guests by hand and for scripts: see `vm --help` and `viaduct_tests::vm`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use viaduct_tests::vm::check_tools;
use viaduct_tests::vm::guest::{Guest, Network, Spec};
use viaduct_tests::vm::initramfs::Contents;
use viaduct_tests::vm::kernel::Kernel;

/// Virtual machines made of Debian's packages, on an emulated processor.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Gets the kernel, if it is not there yet
    Prepare,
    /// Boots a guest and leaves it running
    Up(Box<Up>),
    /// Runs a command in a shell of a guest
    Run(Run),
    /// Ends a guest
    Down {
        /// The directory that it was booted in
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Up {
    /// For its files
    at: PathBuf,
    /// MiB of memory
    #[arg(long, default_value_t = 256)]
    memory: u32,
    /// Its address, as 10.77.0.1/24
    #[arg(long)]
    address: Option<String>,
    /// How it is connected: none, tap:INTERFACE, listen:PATH or connect:PATH
    #[arg(long, default_value = "none", value_parser = network)]
    network: Network,
    /// Socket of the server of its shared memory
    #[arg(long)]
    region: Option<PathBuf>,
    /// Vectors of the shared memory's device
    #[arg(long, default_value_t = 32)]
    vectors: u16,
    /// Without IOMMU, and so without interrupts from that device
    #[arg(long)]
    no_iommu: bool,
    /// Programs of this machine that it gets, with their libraries
    #[arg(long = "program", value_name = "NAME")]
    programs: Vec<PathBuf>,
    /// Files that it gets, and where
    #[arg(long = "file", value_name = "FROM:TO", value_parser = file)]
    files: Vec<(PathBuf, String)>,
    /// Directories that it gets, and where, with the libraries of what is in them
    #[arg(long = "directory", value_name = "FROM:TO", value_parser = file)]
    directories: Vec<(PathBuf, String)>,
    /// More modules of the kernel
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// It is ended after so many seconds
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// More options for QEMU
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(Debug, Args)]
struct Run {
    /// The directory that it was booted in
    directory: PathBuf,
    /// Seconds that the command may take
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match act(Arguments::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "vm: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn act(action: Action) -> Result<u8> {
    match action {
        Action::Prepare => {
            check_tools()?;
            let kernel = Kernel::prepare()?;
            writeln!(std::io::stdout(), "{}", kernel.image().display())?;
            Ok(0)
        }
        Action::Up(up) => {
            let kernel = Kernel::prepared().context("no kernel: start with `vm prepare`")?;
            Guest::boot(&kernel, &up.spec())?.leave_running();
            Ok(0)
        }
        Action::Run(run) => {
            let limit = Duration::from_secs(run.limit);
            let said = Guest::of(&run.directory)?.run_within(&run.command.join(" "), limit)?;
            std::io::stdout().write_all(&said.out)?;
            std::io::stderr().write_all(&said.err)?;
            Ok(u8::try_from(said.status).unwrap_or(124))
        }
        Action::Down { directory } => {
            Guest::of(&directory)?.end();
            Ok(0)
        }
    }
}

impl Up {
    fn spec(self: Box<Self>) -> Spec {
        Spec {
            contents: Contents {
                modules: self.modules,
                programs: self.programs,
                files: self.files,
                directories: self.directories,
            },
            memory: self.memory,
            address: self.address,
            network: self.network,
            region: self.region,
            vectors: self.vectors,
            iommu: !self.no_iommu,
            limit: Duration::from_secs(self.limit),
            nice: 0,
            more: self.more,
            ..Spec::new(self.at)
        }
    }
}

fn network(text: &str) -> Result<Network, String> {
    match text.split_once(':') {
        None if text == "none" => Ok(Network::None),
        Some(("tap", interface)) => Ok(Network::Tap(interface.to_owned())),
        Some(("listen", path)) => Ok(Network::Listen(path.into())),
        Some(("connect", path)) => Ok(Network::Connect(path.into())),
        _ => Err("none of none, tap:INTERFACE, listen:PATH, connect:PATH".to_owned()),
    }
}

fn file(text: &str) -> Result<(PathBuf, String), String> {
    match text.split_once(':') {
        Some((from, to)) if to.starts_with('/') => Ok((from.into(), to.to_owned())),
        _ => Err("not FROM:TO with an absolute TO".to_owned()),
    }
}
