//! What is to be measured: tests, placements, sections, and the list of jobs they come to.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::args::NetperfArgs;
use super::machine::Cores;

/// All jobs of one `viaduct bench netperf`, in the order in which they are carried out.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    pub(super) seconds: u32,
    pub(super) cores: Cores,
    /// Things that were left out although nobody asked for it.
    pub(super) notes: Vec<String>,
}

impl Plan {
    pub(super) fn new(args: &NetperfArgs, cores: Cores) -> Result<Self> {
        let mut notes = Vec::new();
        let mut placements = match &args.placement {
            Some(list) => without_repeats(list),
            None if args.host.is_some() => vec![Placement::TwoCores],
            None => vec![Placement::TwoCores, Placement::OneCore],
        };
        if cores.second.is_none() && placements.contains(&Placement::TwoCores) {
            if args.placement.is_some() {
                bail!("--placement two-cores needs two cores, and only one is usable here");
            }
            notes.push("only one core is usable here: the two-cores runs are left out".to_owned());
            placements = vec![Placement::OneCore];
        }

        let mut jobs = Vec::new();
        for section in sections(args) {
            let tests = match &args.tests {
                Some(list) => without_repeats(list),
                None => section.usual_tests(),
            };
            for &placement in &placements {
                if args.placement.is_none() && !section.usually_at(placement, placements.len()) {
                    continue;
                }
                jobs.extend(tests.iter().map(|&test| Job {
                    section,
                    test,
                    placement,
                    runs: runs(args, test),
                    target: target(args, section, test, placement),
                }));
            }
        }
        let seconds = args.seconds.unwrap_or(if args.quick { 1 } else { 2 });
        Ok(Self {
            jobs,
            seconds,
            cores,
            notes,
        })
    }

    /// The number of netperf runs, both kinds together.
    pub(super) fn runs(&self) -> u32 {
        self.jobs.iter().map(|job| 2 * job.runs).sum()
    }
}

/// One line of the table: a number of pairs of runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) section: Section,
    pub(super) test: Test,
    pub(super) placement: Placement,
    pub(super) runs: u32,
    pub(super) target: Option<f64>,
}

/// How the accelerated side of a comparison is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Section {
    /// As a user would run it.
    Main,
    /// With `VIADUCT_SPIN_US=0`: every wait sleeps.
    SpinOff,
    /// With the netserver's address excluded from the peers: what the loaded library costs.
    NonPeer,
}

impl Section {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Main => "Kernel TCP and Viaduct",
            Self::SpinOff => "Viaduct with spinning off (VIADUCT_SPIN_US=0)",
            Self::NonPeer => "Library loaded, address not a peer",
        }
    }

    fn usual_tests(self) -> Vec<Test> {
        match self {
            Self::Main => DEFAULT_TESTS.to_vec(),
            Self::SpinOff => vec![Test::RequestResponse],
            Self::NonPeer => vec![
                Test::RequestResponse,
                Test::Stream { bytes: 64 },
                Test::Stream { bytes: 4 << 10 },
                Test::Stream { bytes: 128 << 10 },
            ],
        }
    }

    /// The extra sections are about one property each, so they run at one placement.
    fn usually_at(self, placement: Placement, placements: usize) -> bool {
        self == Self::Main || placement == Placement::TwoCores || placements == 1
    }
}

/// A netperf test and its message size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) enum Test {
    /// TCP_RR: one byte to and fro on one connection.
    RequestResponse,
    /// TCP_CRR: connect, one byte to and fro, close.
    ConnectRequestResponse,
    /// TCP_STREAM with sends and receives of this size.
    Stream {
        /// Bytes per send and per receive call.
        bytes: u32,
    },
}

impl Test {
    pub(super) fn netperf_name(self) -> &'static str {
        match self {
            Self::RequestResponse => "TCP_RR",
            Self::ConnectRequestResponse => "TCP_CRR",
            Self::Stream { .. } => "TCP_STREAM",
        }
    }

    pub(super) fn title(self) -> String {
        match self {
            Self::RequestResponse | Self::ConnectRequestResponse => {
                format!("{} 1 B", self.netperf_name())
            }
            Self::Stream { bytes } => format!("{} {}", self.netperf_name(), size_title(bytes)),
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::RequestResponse | Self::ConnectRequestResponse => "trans/s",
            Self::Stream { .. } => "Mbit/s",
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestResponse => f.write_str("rr"),
            Self::ConnectRequestResponse => f.write_str("crr"),
            Self::Stream { bytes } if bytes % (1 << 20) == 0 => {
                write!(f, "stream:{}m", bytes >> 20)
            }
            Self::Stream { bytes } if bytes % (1 << 10) == 0 => {
                write!(f, "stream:{}k", bytes >> 10)
            }
            Self::Stream { bytes } => write!(f, "stream:{bytes}"),
        }
    }
}

impl FromStr for Test {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "rr" => Ok(Self::RequestResponse),
            None if text == "crr" => Ok(Self::ConnectRequestResponse),
            Some(("stream", size)) => Ok(Self::Stream {
                bytes: message_bytes(size)?,
            }),
            _ => Err(format!("`{text}` is none of rr, crr, stream:SIZE")),
        }
    }
}

impl From<Test> for String {
    fn from(test: Test) -> Self {
        test.to_string()
    }
}

impl TryFrom<String> for Test {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Which cores netperf and netserver are bound to, by netperf's own `-T`, if to any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Placement {
    /// One core each.
    TwoCores,
    /// Both on the same core.
    OneCore,
    /// Wherever the scheduler puts them. Beside daemons that share the cores, that is what a user has.
    Unbound,
}

impl Placement {
    /// All of them, in the order in which charts and their legends show them.
    pub(super) const ALL: [Self; 3] = [Self::TwoCores, Self::OneCore, Self::Unbound];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::TwoCores => "two cores",
            Self::OneCore => "one core",
            Self::Unbound => "unbound",
        }
    }
}

fn sections(args: &NetperfArgs) -> Vec<Section> {
    let mut list = vec![Section::Main];
    if args.spin_off {
        list.push(Section::SpinOff);
    }
    if args.non_peer {
        list.push(Section::NonPeer);
    }
    list
}

/// TCP_CRR scatters more than the others, so it gets more runs unless a number was asked for.
fn runs(args: &NetperfArgs, test: Test) -> u32 {
    let connects = test == Test::ConnectRequestResponse;
    let usual = match (args.quick, connects) {
        (false, false) => 5,
        (false, true) => 15,
        (true, false) => 2,
        (true, true) => 3,
    };
    args.runs.unwrap_or(usual)
}

/// The project's targets for two programs on one host; see "What it must reach" in the design.
fn target(args: &NetperfArgs, section: Section, test: Test, placement: Placement) -> Option<f64> {
    if !args.targets || args.host.is_some() {
        return None;
    }
    let two_cores = placement == Placement::TwoCores;
    match (section, test) {
        (Section::NonPeer, _) => Some(0.98),
        (Section::SpinOff, Test::RequestResponse) if two_cores => Some(1.0),
        (Section::SpinOff, _) => None,
        (Section::Main, Test::ConnectRequestResponse) => Some(0.95),
        (Section::Main, Test::RequestResponse) => Some(if two_cores { 100.0 } else { 2.0 }),
        (Section::Main, Test::Stream { bytes }) if two_cores => match bytes {
            64 => Some(8.0),
            1024 => Some(5.0),
            4096 => Some(6.0),
            131_072 => Some(4.0),
            _ => None,
        },
        (Section::Main, Test::Stream { bytes: 131_072 }) => Some(2.0),
        (Section::Main, Test::Stream { .. }) => None,
    }
}

fn message_bytes(text: &str) -> Result<u32, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits
        .parse::<u32>()
        .ok()
        .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| (1..=MESSAGE_BYTES_MAX).contains(bytes))
        .ok_or_else(|| format!("`{text}` is no message size between 1 and 64m"))
}

/// `64 B`, `16 KiB`.
pub(super) fn size_title(bytes: u32) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else if bytes.is_multiple_of(1 << 10) {
        format!("{} KiB", bytes >> 10)
    } else {
        format!("{bytes} B")
    }
}

fn without_repeats<T: Copy + PartialEq>(list: &[T]) -> Vec<T> {
    let mut unique = Vec::new();
    for &item in list {
        if !unique.contains(&item) {
            unique.push(item);
        }
    }
    unique
}

/// netperf allocates the send buffer several times over; more than this tests the allocator.
const MESSAGE_BYTES_MAX: u32 = 64 << 20;

const DEFAULT_TESTS: [Test; 7] = [
    Test::RequestResponse,
    Test::ConnectRequestResponse,
    Test::Stream { bytes: 64 },
    Test::Stream { bytes: 1 << 10 },
    Test::Stream { bytes: 4 << 10 },
    Test::Stream { bytes: 16 << 10 },
    Test::Stream { bytes: 128 << 10 },
];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        netperf: NetperfArgs,
    }

    fn plan(words: &[&str], second: Option<usize>) -> Result<Plan> {
        let args = Line::try_parse_from(["test"].iter().chain(words)).unwrap();
        Plan::new(&args.netperf, Cores { first: 0, second })
    }

    #[test]
    fn tests_read_back_what_they_print() {
        for text in [
            "rr",
            "crr",
            "stream:64",
            "stream:1k",
            "stream:128k",
            "stream:1m",
        ] {
            assert_eq!(text.parse::<Test>().unwrap().to_string(), text);
        }
        assert_eq!(
            "stream:1024".parse::<Test>().unwrap().to_string(),
            "stream:1k"
        );
    }

    #[test]
    fn odd_tests_are_refused() {
        for text in [
            "",
            "RR",
            "rr:1",
            "stream",
            "stream:",
            "stream:k",
            "stream:0",
            "stream:+4",
        ] {
            assert!(text.parse::<Test>().is_err(), "{text}");
        }
        assert!("stream:65m".parse::<Test>().is_err());
        assert!("stream:4294967295k".parse::<Test>().is_err());
    }

    #[test]
    fn the_default_is_every_test_at_both_placements() {
        let plan = plan(&[], Some(1)).unwrap();
        assert_eq!(plan.jobs.len(), 14);
        assert_eq!(plan.runs(), 2 * 2 * (6 * 5 + 15));
        assert_eq!(plan.seconds, 2);
        assert!(plan.jobs.iter().all(|job| job.target.is_none()));
    }

    #[test]
    fn an_explicit_number_of_runs_holds_for_every_test() {
        let plan = plan(&["--runs", "3", "--quick", "--tests", "rr,crr,rr"], Some(1)).unwrap();
        assert_eq!(plan.runs(), 2 * 2 * 2 * 3);
        assert_eq!(plan.seconds, 1);
    }

    #[test]
    fn extra_sections_are_short_unless_asked_otherwise() {
        let short = plan(&["--spin-off", "--non-peer"], Some(1)).unwrap();
        assert_eq!(short.jobs.len(), 14 + 1 + 4);
        let long = plan(
            &["--spin-off", "--tests", "rr,crr", "--placement", "one-core"],
            Some(1),
        );
        assert_eq!(long.unwrap().jobs.len(), 4);
    }

    #[test]
    fn a_single_core_leaves_two_cores_out_or_says_no() {
        let single = plan(&["--spin-off"], None).unwrap();
        assert_eq!(single.jobs.len(), 8);
        assert_eq!(single.notes.len(), 1);
        assert!(plan(&["--placement", "two-cores"], None).is_err());
    }

    #[test]
    fn targets_are_those_of_the_design() {
        let plan = plan(&["--targets", "--non-peer", "--spin-off"], Some(1)).unwrap();
        let target = |section, text: &str, placement| {
            let test = text.parse::<Test>().unwrap();
            plan.jobs
                .iter()
                .find(|job| (job.section, job.test, job.placement) == (section, test, placement))
                .unwrap()
                .target
        };
        let (two, one) = (Placement::TwoCores, Placement::OneCore);
        assert_eq!(target(Section::Main, "rr", two), Some(100.0));
        assert_eq!(target(Section::Main, "rr", one), Some(2.0));
        assert_eq!(target(Section::Main, "stream:16k", two), None);
        assert_eq!(target(Section::Main, "stream:128k", one), Some(2.0));
        assert_eq!(target(Section::SpinOff, "rr", two), Some(1.0));
        assert_eq!(target(Section::NonPeer, "stream:64", two), Some(0.98));
    }
}
