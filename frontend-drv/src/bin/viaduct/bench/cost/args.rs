//! The command line of `viaduct bench cost`, and of the programs that it starts.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Measure what connections and calls cost: memory, descriptors, time.
#[derive(Debug, Args)]
pub(in crate::bench) struct CostArgs {
    /// Numbers of connections to hold, one measurement each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,10,1000,10000",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)))]
    pub(super) connections: Vec<u32>,
    /// What to measure [default: everything]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(super) only: Option<Vec<What>>,
    /// Seconds for which idle programs are watched
    #[arg(long, value_name = "S", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(super) idle_seconds: u32,
    /// Runs of each kind, where times of calls are measured
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) runs: u32,
    /// Write everything that was measured to a file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Print the tables as Markdown
    #[arg(long)]
    pub(super) markdown: bool,
}

impl CostArgs {
    pub(super) fn wants(&self, what: What) -> bool {
        self.only.as_ref().is_none_or(|list| list.contains(&what))
    }
}

/// One of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    /// Memory, descriptors and mappings of many idle connections, and how fast they are upgraded
    Connections,
    /// Time per send and recv
    Calls,
    /// Connections made and closed per second
    Connects,
    /// Processor time of an idle pair of programs
    Idle,
}

/// The programs that are measured.
#[derive(Debug, Args)]
pub(in crate::bench) struct PeerArgs {
    #[command(subcommand)]
    pub(super) role: Role,
}

#[derive(Debug, Subcommand)]
pub(super) enum Role {
    /// Accepts connections and sends back what comes, as told over a Unix socket
    Server { control: PathBuf },
    /// Makes connections and sends, as told over a Unix socket
    Client { control: PathBuf },
    /// Sends and receives on a connection to itself, and prints the time of a call
    Calls {
        /// Bytes per call
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
        bytes: u32,
        /// Calls of each kind
        #[arg(long, default_value_t = 200_000)]
        calls: u32,
    },
    /// Connects to itself, accepts and closes, and prints how often per second
    Connects {
        /// How many times
        #[arg(long, default_value_t = 2000)]
        count: u32,
    },
}

/// More connections than the library takes in one process stay on TCP.
const CONNECTIONS_MAX: u32 = 16_000;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        cost: CostArgs,
    }

    #[test]
    fn everything_is_measured_unless_some_of_it_is_named() {
        let args = Line::try_parse_from(["cost"]).unwrap().cost;
        assert_eq!(args.connections, [1, 10, 1000, 10_000]);
        assert!(args.wants(What::Idle) && args.wants(What::Calls));
        let words = ["cost", "--only", "calls,connects", "--connections", "5"];
        let args = Line::try_parse_from(words).unwrap().cost;
        assert_eq!(args.connections, [5]);
        assert!(args.wants(What::Connects) && !args.wants(What::Idle));
        assert!(Line::try_parse_from(["cost", "--connections", "0"]).is_err());
    }
}
