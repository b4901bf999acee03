//! The command line of `viaduct bench`. What the options amount to is worked out in `plan`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::cost::{CostArgs, PeerArgs};
use super::plan::{Placement, Test};

/// Measure a benchmark over kernel TCP and over Viaduct, side by side.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(super) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Run netperf plain and accelerated, interleaved; print a table, write results and charts
    Netperf(NetperfArgs),
    /// Print the table and draw the charts of an earlier results.json again
    Render(RenderArgs),
    /// Measure what connections and calls cost: memory, descriptors, time
    Cost(CostArgs),
    /// Measure how fast a driver of links carries frames between two ends, with nothing above it
    #[command(disable_help_flag = true)]
    Raw(RawArgs),
    /// A program that `cost` measures
    #[command(hide = true)]
    CostPeer(PeerArgs),
}

#[derive(Debug, Args)]
pub(super) struct NetperfArgs {
    /// Tests to run: rr, crr, stream:SIZE (bytes, or with k or m)
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "What to measure"
    )]
    pub(super) tests: Option<Vec<Test>>,
    /// Where netperf and netserver run [default: two-cores,one-core; with --host, two-cores]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "What to measure"
    )]
    pub(super) placement: Option<Vec<Placement>>,
    /// Runs of each kind per test [default: 5; 15 for crr]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000),
          help_heading = "What to measure")]
    pub(super) runs: Option<u32>,
    /// Seconds per run [default: 2]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=3600),
          help_heading = "What to measure")]
    pub(super) seconds: Option<u32>,
    /// A first impression in about a minute: 2 runs (3 for crr) of 1 second
    #[arg(long, help_heading = "What to measure")]
    pub(super) quick: bool,
    /// Fail if a test of the main section sent less than this share of its bytes by ring, in percent
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100), help_heading = "What to measure")]
    pub(super) min_ring_share: Option<u8>,
    /// Also compare with spinning off (VIADUCT_SPIN_US=0); rr unless --tests says otherwise
    #[arg(long, help_heading = "What to measure")]
    pub(super) spin_off: bool,
    /// Also compare with the library loaded but the address excluded from its peers
    #[arg(long, help_heading = "What to measure")]
    pub(super) non_peer: bool,
    /// Show the project's own targets beside the ratios
    #[arg(long, help_heading = "What to measure")]
    pub(super) targets: bool,

    /// A machine where you run two netservers: one plain, one under `viaduct run`
    ///
    /// No netserver is started here then. On that machine:
    /// `netserver -D -4 -p 12865` and `viaduct run -- netserver -D -4 -p 12866`.
    #[arg(long, value_name = "ADDR", help_heading = "Where to measure")]
    pub(super) host: Option<String>,
    /// Port of the plain netserver; the accelerated one has the next
    ///
    /// Without it: two free ports, or with --host 12865 and 12866.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..65535),
          help_heading = "Where to measure")]
    pub(super) port: Option<u16>,
    /// Peers of the accelerated runs, as `viaduct run --peers` takes them
    #[arg(long, value_name = "LIST", help_heading = "Where to measure")]
    pub(super) peers: Option<String>,
    /// The two cores: netperf's, netserver's [default: two that are not one core's threads]
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        num_args = 1,
        help_heading = "Where to measure"
    )]
    pub(super) cores: Option<Vec<usize>>,
    /// More options for netperf; those after ` -- ` go to the test
    #[arg(
        long,
        value_name = "OPTS",
        allow_hyphen_values = true,
        help_heading = "Where to measure"
    )]
    pub(super) netperf_opts: Option<String>,

    /// Directory for results.json, table.md, netperf.svg and netperf.png
    #[arg(
        long,
        value_name = "DIR",
        default_value = "results",
        help_heading = "Output"
    )]
    pub(super) out: PathBuf,
    /// Print the table as Markdown
    #[arg(long, help_heading = "Output")]
    pub(super) markdown: bool,
}

#[derive(Debug, Args)]
pub(super) struct RenderArgs {
    /// The results.json to draw
    pub(super) results: PathBuf,
    /// Directory for table.md, netperf.svg and netperf.png
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub(super) out: PathBuf,
    /// Print the table as Markdown
    #[arg(long)]
    pub(super) markdown: bool,
}

/// The drivers are the daemon's, and so is what measures them.
#[derive(Debug, Args)]
pub(super) struct RawArgs {
    /// See `viaduct bench raw --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) arguments: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn netperf(words: &[&str]) -> Result<NetperfArgs, clap::Error> {
        let line = ["viaduct", "netperf"].iter().chain(words);
        match Line::try_parse_from(line)?.bench.command {
            BenchCommand::Netperf(args) => Ok(args),
            _ => panic!("not a netperf command"),
        }
    }

    #[test]
    fn the_bare_command_leaves_everything_to_the_plan() {
        let args = netperf(&[]).unwrap();
        assert!(args.tests.is_none() && args.placement.is_none() && args.runs.is_none());
        assert_eq!(args.out, PathBuf::from("results"));
    }

    #[test]
    fn lists_are_split_at_commas() {
        let args = netperf(&["--tests", "rr,stream:4k", "--placement", "one-core"]).unwrap();
        let tests = vec![Test::RequestResponse, Test::Stream { bytes: 4096 }];
        assert_eq!(args.tests, Some(tests));
        assert_eq!(args.placement, Some(vec![Placement::OneCore]));
        let args = netperf(&["--cores", "3,1"]).unwrap();
        assert_eq!(args.cores, Some(vec![3, 1]));
    }

    #[test]
    fn options_for_netperf_may_begin_with_a_dash() {
        let args = netperf(&["--netperf-opts", "-v 2 -- -D"]).unwrap();
        assert_eq!(args.netperf_opts.as_deref(), Some("-v 2 -- -D"));
    }

    #[test]
    fn what_raw_is_given_is_the_daemons() {
        let words = ["--help", "-v", "--driver", "udp"];
        let line = ["viaduct", "raw"].iter().chain(&words);
        let BenchCommand::Raw(raw) = Line::parse_from(line).bench.command else {
            panic!("not raw");
        };
        assert_eq!(raw.arguments, words);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            ["--tests", "udp"],
            ["--runs", "0"],
            ["--seconds", "x"],
            ["--port", "65535"],
        ] {
            assert!(netperf(&words).is_err(), "{words:?}");
        }
    }
}
