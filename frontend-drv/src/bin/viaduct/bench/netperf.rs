//! One run of netperf: its command line, its time limit, what it printed.

use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::busy::BusyMeter;
use super::machine::Cores;
use super::plan::{Placement, Test};
use super::process::{Group, Waited};
use super::shim_stats::ShimStats;

/// How a program is started: as it is, or under `viaduct run`.
#[derive(Clone, Debug)]
pub(super) enum Launch {
    Plain,
    Viaduct {
        /// The `viaduct` program.
        tool: PathBuf,
        peers: Option<String>,
        spin_off: bool,
    },
}

impl Launch {
    pub(super) fn command(&self, program: &str, stats: &Path) -> Command {
        match self {
            Self::Plain => {
                let mut command = Command::new(program);
                let preload = std::env::var("LD_PRELOAD").unwrap_or_default();
                match without_our_library(&preload).as_str() {
                    "" => command.env_remove("LD_PRELOAD"),
                    rest => command.env("LD_PRELOAD", rest),
                };
                command
            }
            Self::Viaduct {
                tool,
                peers,
                spin_off,
            } => {
                let mut command = Command::new(tool);
                command.arg("run").arg("--stats-json").arg(stats);
                if let Some(peers) = peers {
                    command.arg(format!("--peers={peers}"));
                }
                if *spin_off {
                    command.env("VIADUCT_SPIN_US", "0");
                }
                command.arg("--").arg(program);
                command
            }
        }
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "kernel TCP",
            Self::Viaduct { .. } => "Viaduct",
        })
    }
}

/// What stays the same from run to run.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) address: IpAddr,
    pub(super) seconds: u32,
    pub(super) cores: Cores,
    pub(super) options: Options,
}

/// The user's own options, divided as netperf divides them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    global: Vec<String>,
    test: Vec<String>,
}

impl Options {
    pub(super) fn parse(text: Option<&str>) -> Self {
        let mut words = text
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned);
        Self {
            global: words.by_ref().take_while(|word| word != "--").collect(),
            test: words.collect(),
        }
    }
}

/// What one run measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) throughput: f64,
    /// Of the whole machine; none if the kernel does not say.
    pub(super) busy_cores: Option<f64>,
    pub(super) shim: Option<ShimStats>,
}

/// How one run ended.
#[derive(Debug)]
pub(super) enum Run {
    Done(Sample),
    Failed { reason: String, timed_out: bool },
    Interrupted,
}

impl Setup {
    /// Runs netperf once; `log` is a path without extension for its output and totals.
    pub(super) fn run(
        &self,
        launch: &Launch,
        port: u16,
        test: Test,
        placement: Placement,
        log: &Path,
    ) -> Result<Run> {
        let stats = log.with_extension("json");
        // Totals of an earlier run must not pass for those of one that wrote none.
        let _ = std::fs::remove_file(&stats);
        let mut command = launch.command("netperf", &stats);
        command.args(self.arguments(port, test, placement));
        let meter = BusyMeter::start();
        let mut group = Group::spawn(&mut command, log)?;
        let limit = Duration::from_secs(u64::from(self.seconds) * 3 + 20);
        match group.wait(limit)? {
            Waited::Interrupted => return Ok(Run::Interrupted),
            Waited::TimedOut => {
                group.stop();
                let reason = format!("still running after {} s, killed", limit.as_secs());
                return Ok(Run::Failed {
                    reason: with_output(reason, &group.output()),
                    timed_out: true,
                });
            }
            Waited::Exited => {}
        }
        let busy_cores = meter.busy_cores();
        let status = group.reap()?;
        let measured = if status.success() {
            parse(&group.stdout(), test)
        } else {
            Err(status.to_string())
        };
        Ok(match measured {
            Ok(throughput) => Run::Done(Sample {
                throughput,
                busy_cores,
                shim: ShimStats::read(&stats),
            }),
            Err(reason) => Run::Failed {
                reason: with_output(reason, &group.output()),
                timed_out: false,
            },
        })
    }

    fn arguments(&self, port: u16, test: Test, placement: Placement) -> Vec<String> {
        let mut words = Vec::new();
        let mut add = |text: &str| words.extend(text.split_whitespace().map(str::to_owned));
        let first = self.cores.first;
        let bound = match placement {
            Placement::OneCore => Some((first, first)),
            Placement::TwoCores => Some((first, self.cores.second.unwrap_or(first))),
            Placement::Unbound => None,
        };
        add(if self.address.is_ipv4() { "-4" } else { "-6" });
        // -P 0: no banner. -T: the same binding, by netperf itself, for both kinds of run.
        add(&format!("-P 0 -H {} -p {port}", self.address));
        add(&format!("-l {}", self.seconds));
        if let Some((first, second)) = bound {
            add(&format!("-T {first},{second}"));
        }
        add(&format!("-t {}", test.netperf_name()));
        words.extend(self.options.global.iter().cloned());
        let mut add = |text: &str| words.extend(text.split_whitespace().map(str::to_owned));
        match test {
            Test::RequestResponse | Test::ConnectRequestResponse => add("-- -r 1,1"),
            // In bytes: netperf's own k is 1000.
            Test::Stream { bytes } => add(&format!("-- -m {bytes} -M {bytes}")),
        }
        words.extend(self.options.test.iter().cloned());
        words.push("-k".to_owned());
        words.push(SELECTORS.to_owned());
        words
    }
}

/// One clear line if a program is missing, before anything is started.
pub(super) fn require_programs(with_server: bool) -> Result<()> {
    let mut programs = vec!["netperf"];
    if with_server {
        programs.push("netserver");
    }
    for program in programs {
        if !is_in_path(program) {
            bail!(
                "{program} is not in PATH: install netperf (Debian: `apt-get install netperf` \
                 with the non-free component enabled, or scripts/demo, which does it)"
            );
        }
    }
    Ok(())
}

/// The address by number, so that both kinds of run are sure to use the same one.
pub(super) fn resolve(host: &str) -> Result<IpAddr> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let addresses: Vec<_> = (host, 0)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {host}"))?
        .map(|address| address.ip())
        .collect();
    let ipv4 = addresses.iter().find(|address| address.is_ipv4());
    ipv4.or_else(|| addresses.first())
        .copied()
        .with_context(|| format!("{host} has no address"))
}

/// `Netperf version 2.7.0` without the words.
pub(super) fn version() -> String {
    let output = Command::new("netperf").arg("-V").output();
    let text = output.map_or_else(|_| Vec::new(), |output| output.stdout);
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .find_map(|line| line.strip_prefix("Netperf version "))
        .map_or_else(|| "unknown".to_owned(), |version| version.trim().to_owned())
}

/// What a failure of plain netperf usually means.
pub(super) fn remedy(reason: &str) -> &'static str {
    if reason.contains("could not resolve") {
        "netperf resolves names with AI_ADDRCONFIG and finds nothing where the loopback interface \
         is the only one; give the namespace any other address, for example: \
         ip address add 192.0.2.1/32 dev lo"
    } else if reason.contains("establish control") {
        "is a netserver listening there? With --host, run on that machine: netserver -D -4 -p PORT"
    } else if reason.contains("printed no THROUGHPUT") {
        "netperf 2.5 or newer is needed"
    } else {
        "try the same netperf command by hand"
    }
}

/// Reads the throughput, in the unit we asked for, from `KEY=VALUE` lines.
fn parse(stdout: &str, test: Test) -> Result<f64, String> {
    let value = |key: &str| {
        stdout
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
            .ok_or_else(|| format!("netperf printed no {key}"))
    };
    let wanted = match test {
        Test::RequestResponse | Test::ConnectRequestResponse => "Trans/s",
        Test::Stream { .. } => "10^6bits/s",
    };
    let unit = value("THROUGHPUT_UNITS")?;
    if unit != wanted {
        return Err(format!("netperf measured in {unit}, not in {wanted}"));
    }
    let text = value("THROUGHPUT")?;
    text.parse::<f64>()
        .ok()
        .filter(|throughput| throughput.is_finite() && *throughput > 0.0)
        .ok_or_else(|| format!("netperf measured a throughput of {text}"))
}

/// Adds the last lines that a failed run printed.
fn with_output(reason: String, output: &str) -> String {
    let lines: Vec<_> = output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match lines.get(lines.len().saturating_sub(OUTPUT_LINES_MAX)..) {
        Some(last) if !last.is_empty() => format!("{reason}: {}", last.join(" / ")),
        _ => reason,
    }
}

fn without_our_library(preload: &str) -> String {
    let others = preload.split([':', ' ']).filter(|path| {
        let name = Path::new(path).file_name();
        !path.is_empty() && name.is_none_or(|name| name != "libviaduct.so")
    });
    others.collect::<Vec<_>>().join(":")
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| {
        let file = directory.join(program);
        file.is_file() && nix::unistd::access(&file, nix::unistd::AccessFlags::X_OK).is_ok()
    })
}

const SELECTORS: &str = "THROUGHPUT,THROUGHPUT_UNITS";
const OUTPUT_LINES_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "THROUGHPUT=13044.77\nTHROUGHPUT_UNITS=Trans/s\n";

    fn setup(options: Option<&str>) -> Setup {
        Setup {
            address: "127.0.0.1".parse().unwrap(),
            seconds: 2,
            cores: Cores {
                first: 0,
                second: Some(3),
            },
            options: Options::parse(options),
        }
    }

    #[test]
    fn key_value_output_is_read() {
        assert_eq!(parse(PRINTED, Test::RequestResponse), Ok(13044.77));
    }

    #[test]
    fn wrong_units_and_missing_or_silly_values_are_failures() {
        assert!(parse(PRINTED, Test::Stream { bytes: 1 }).is_err());
        assert!(parse("", Test::RequestResponse).is_err());
        for throughput in ["0.00", "-1", "nan", "inf", "", "1 2"] {
            let text = PRINTED.replace("13044.77", throughput);
            assert!(parse(&text, Test::RequestResponse).is_err(), "{throughput}");
        }
    }

    #[test]
    fn the_command_line_says_everything_in_bytes_and_numbers() {
        let test = Test::Stream { bytes: 4096 };
        let words = setup(Some("-v 2 -- -D")).arguments(7001, test, Placement::TwoCores);
        assert_eq!(
            words.join(" "),
            "-4 -P 0 -H 127.0.0.1 -p 7001 -l 2 -T 0,3 -t TCP_STREAM -v 2 \
             -- -m 4096 -M 4096 -D -k THROUGHPUT,THROUGHPUT_UNITS"
        );
        let words = setup(None).arguments(1, Test::RequestResponse, Placement::OneCore);
        assert!(words.join(" ").contains("-T 0,0 -t TCP_RR -- -r 1,1 -k"));
        let words = setup(None).arguments(1, Test::RequestResponse, Placement::Unbound);
        assert!(!words.contains(&"-T".to_owned()));
    }

    #[test]
    fn an_accelerated_command_is_wrapped() {
        let launch = Launch::Viaduct {
            tool: "/x/viaduct".into(),
            peers: Some("!127.0.0.1".to_owned()),
            spin_off: true,
        };
        let command = launch.command("netperf", Path::new("/s.json"));
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        let expected = "run --stats-json /s.json --peers=!127.0.0.1 -- netperf";
        assert_eq!(words.join(" "), expected);
        assert!(
            command
                .get_envs()
                .any(|(name, _)| name == "VIADUCT_SPIN_US")
        );
    }

    #[test]
    fn a_plain_run_never_has_our_library() {
        assert_eq!(without_our_library("/a/libviaduct.so"), "");
        assert_eq!(
            without_our_library("/b/x.so:/a/libviaduct.so /c/y.so"),
            "/b/x.so:/c/y.so"
        );
    }

    #[test]
    fn only_the_end_of_a_long_output_is_kept() {
        let long = "1\n2\n\n3\n4\n5\n6\n7\n";
        assert_eq!(
            with_output("x".to_owned(), long),
            "x: 2 / 3 / 4 / 5 / 6 / 7"
        );
        assert_eq!(with_output("x".to_owned(), " \n"), "x");
    }
}
