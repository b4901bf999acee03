//! What was measured, in the form in which results.json keeps it.

use serde::{Deserialize, Serialize};

use super::machine::{Cores, Machine};
use super::netperf::Sample;
use super::plan::{Job, Placement, Section, Test};
use super::shim_stats::ShimStats;
use super::stats::{Range, median, ratio};

/// All of results.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Results {
    /// Grows by one when the meaning of a field changes.
    pub(super) schema: u32,
    pub(super) machine: Machine,
    pub(super) settings: Settings,
    pub(super) rows: Vec<Row>,
    /// What the accelerated netservers saw; none for one on another machine.
    pub(super) netservers: Vec<NetserverTotals>,
}

impl Results {
    pub(super) fn failures(&self) -> usize {
        self.rows.iter().map(|row| row.failures.len()).sum()
    }

    /// The row of the main comparison for a test at a placement.
    pub(super) fn main_row(&self, test: Test, placement: Placement) -> Option<&Row> {
        let key = (Section::Main, test, placement);
        self.rows
            .iter()
            .find(|row| (row.section, row.test, row.placement) == key)
    }
}

/// How it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) netperf_version: String,
    pub(super) address: String,
    /// Whether netserver ran on this machine.
    pub(super) same_host: bool,
    pub(super) seconds_per_run: u32,
    pub(super) cores: Cores,
    pub(super) peers: Option<String>,
    pub(super) netperf_opts: Option<String>,
}

/// One test at one placement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) section: Section,
    pub(super) test: Test,
    pub(super) title: String,
    pub(super) placement: Placement,
    pub(super) unit: String,
    pub(super) plain: Side,
    pub(super) viaduct: Side,
    /// Of the medians.
    pub(super) ratio: Option<f64>,
    /// Of the ratios of each plain run and the accelerated one right after it.
    pub(super) pair_ratio: Option<Range>,
    pub(super) target: Option<f64>,
    /// By netperf's side of the accelerated runs, which sees both directions; none if unknown.
    pub(super) ring_bytes: Option<u64>,
    pub(super) tcp_bytes: Option<u64>,
    pub(super) ring_share: Option<f64>,
    pub(super) shim: Option<ShimStats>,
    pub(super) failures: Vec<Failure>,
}

/// One of the two sides of a comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Side {
    /// In the order of the runs; null where a run failed.
    pub(super) samples: Vec<Option<f64>>,
    pub(super) median: Option<f64>,
    /// Cores that were busy on this machine, with anything; the median of the runs.
    pub(super) busy_cores: Option<f64>,
}

/// A run without a result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// Counted from 1.
    pub(super) run: u32,
    pub(super) side: String,
    pub(super) reason: String,
}

/// The other side of a section's accelerated runs, all of them together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct NetserverTotals {
    pub(super) section: Section,
    pub(super) ring_share: Option<f64>,
    /// None if it ended without leaving any.
    pub(super) totals: Option<ShimStats>,
}

/// The runs of one job as they come in.
#[derive(Debug)]
pub(super) struct Runs {
    job: Job,
    pub(super) plain: Vec<Option<Sample>>,
    pub(super) viaduct: Vec<Option<Sample>>,
    pub(super) failures: Vec<Failure>,
}

impl Runs {
    pub(super) fn new(job: Job) -> Self {
        Self {
            job,
            plain: Vec::new(),
            viaduct: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(super) fn into_row(self) -> Row {
        let (plain, viaduct) = (Side::new(&self.plain), Side::new(&self.viaduct));
        let pairs: Vec<f64> = plain
            .samples
            .iter()
            .zip(&viaduct.samples)
            .filter_map(|(&plain, &viaduct)| ratio(plain, viaduct))
            .collect();
        let shim = self.shim();
        Row {
            section: self.job.section,
            test: self.job.test,
            title: self.job.test.title(),
            placement: self.job.placement,
            unit: self.job.test.unit().to_owned(),
            ratio: ratio(plain.median, viaduct.median),
            pair_ratio: Range::of(&pairs),
            plain,
            viaduct,
            target: self.job.target,
            ring_bytes: shim.map(|shim| shim.ring_bytes()),
            tcp_bytes: shim.map(|shim| shim.tcp_bytes()),
            ring_share: shim.and_then(|shim| shim.ring_share()),
            shim,
            failures: self.failures,
        }
    }

    /// The sum over the accelerated runs; unknown as soon as one of them is unknown.
    fn shim(&self) -> Option<ShimStats> {
        let mut sum = None;
        for sample in self.viaduct.iter().flatten() {
            *sum.get_or_insert_with(ShimStats::default) += sample.shim?;
        }
        sum
    }
}

impl Side {
    fn new(runs: &[Option<Sample>]) -> Self {
        let done = || runs.iter().flatten();
        let throughput: Vec<f64> = done().map(|sample| sample.throughput).collect();
        let busy: Vec<f64> = done().filter_map(|sample| sample.busy_cores).collect();
        Self {
            samples: runs
                .iter()
                .map(|sample| sample.map(|sample| sample.throughput))
                .collect(),
            median: median(&throughput),
            busy_cores: median(&busy),
        }
    }
}

pub(super) const SCHEMA: u32 = 1;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Results with the given throughputs, for the tests of this module and of its readers.
    pub(crate) fn results(rows: Vec<Row>) -> Results {
        Results {
            schema: SCHEMA,
            machine: Machine {
                kernel: "6.1.0".to_owned(),
                cpu_model: "Test CPU".to_owned(),
                cores: 2,
                date: "2026-01-31T12:00:00Z".to_owned(),
            },
            settings: Settings {
                netperf_version: "2.7.0".to_owned(),
                address: "127.0.0.1".to_owned(),
                same_host: true,
                seconds_per_run: 2,
                cores: Cores {
                    first: 0,
                    second: Some(1),
                },
                peers: None,
                netperf_opts: None,
            },
            rows,
            netservers: Vec::new(),
        }
    }

    pub(crate) fn row(test: &str, placement: Placement, pairs: &[(f64, f64)]) -> Row {
        let mut runs = Runs::new(Job {
            section: Section::Main,
            test: test.parse().unwrap(),
            placement,
            runs: 5,
            target: Some(2.0),
        });
        for &(plain, viaduct) in pairs {
            runs.plain.push(measured(plain));
            runs.viaduct.push(measured(viaduct));
        }
        runs.into_row()
    }

    /// A throughput of 0 stands for a failed run.
    fn measured(throughput: f64) -> Option<Sample> {
        (throughput > 0.0).then_some(Sample {
            throughput,
            busy_cores: Some(1.5),
            shim: Some(ShimStats {
                ring_tx_bytes: 999,
                tcp_tx_bytes: 1,
                ..ShimStats::default()
            }),
        })
    }

    #[test]
    fn a_row_sums_its_runs_up() {
        let row = row(
            "rr",
            Placement::TwoCores,
            &[(10.0, 50.0), (20.0, 60.0), (12.0, 12.0)],
        );
        assert_eq!(
            (row.plain.median, row.viaduct.median),
            (Some(12.0), Some(50.0))
        );
        assert_eq!(row.ratio, Some(50.0 / 12.0));
        assert_eq!(row.pair_ratio, Some(Range { min: 1.0, max: 5.0 }));
        assert_eq!(row.plain.busy_cores, Some(1.5));
        assert_eq!((row.ring_bytes, row.tcp_bytes), (Some(2997), Some(3)));
        assert_eq!(row.ring_share, Some(0.999));
    }

    #[test]
    fn a_failed_run_breaks_its_pair_only() {
        let row = row("rr", Placement::TwoCores, &[(10.0, 0.0), (20.0, 60.0)]);
        assert_eq!(row.viaduct.samples, [None, Some(60.0)]);
        assert_eq!(row.pair_ratio, Some(Range { min: 3.0, max: 3.0 }));
        assert_eq!(row.ratio, Some(4.0));
    }

    #[test]
    fn results_survive_json() {
        let pairs = [(10.0, 50.0), (20.0, 0.0)];
        let before = results(vec![row("stream:4k", Placement::OneCore, &pairs)]);
        let text = serde_json::to_string(&before).unwrap();
        assert!(
            text.contains(r#""test":"stream:4k","title":"TCP_STREAM 4 KiB""#),
            "{text}"
        );
        assert!(text.contains(r#""placement":"one-core""#), "{text}");
        let after: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&after).unwrap(), text);
    }
}
