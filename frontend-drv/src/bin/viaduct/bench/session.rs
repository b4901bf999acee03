//! Carries a plan out: servers up, pairs of runs, servers down, whatever happens in between.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};

use super::args::NetperfArgs;
use super::interrupt;
use super::machine::Machine;
use super::netperf::{self, Launch, Options, Run, Sample, Setup};
use super::plan::{Job, Plan, Section};
use super::process::ScratchDir;
use super::progress::Progress;
use super::results::{Failure, NetserverTotals, Results, Row, Runs, SCHEMA, Settings};
use super::server::{self, Server};
use super::table;

/// Measures everything in the plan. A signal ends it early, with what is finished by then.
pub(super) fn measure(args: &NetperfArgs, plan: &Plan) -> Result<Results> {
    let host = args.host.as_deref().unwrap_or(server::LOCAL_ADDRESS);
    let address = netperf::resolve(host)?;
    let mut results = Results {
        schema: SCHEMA,
        machine: Machine::here(),
        settings: Settings {
            netperf_version: netperf::version(),
            address: address.to_string(),
            same_host: args.host.is_none(),
            seconds_per_run: plan.seconds,
            cores: plan.cores,
            peers: args.peers.clone(),
            netperf_opts: args.netperf_opts.clone(),
        },
        rows: Vec::new(),
        netservers: Vec::new(),
    };

    // Declared first and so dropped last: the servers end before their logs go.
    let scratch = ScratchDir::new()?;
    let (plain_port, viaduct_port) = server::ports(args.port, args.host.is_none())?;
    let mut plain = Contender::new(args, Launch::Plain, plain_port, &scratch)?;
    let mut session = Session {
        setup: Setup {
            address,
            seconds: plan.seconds,
            cores: plan.cores,
            options: Options::parse(args.netperf_opts.as_deref()),
        },
        scratch: &scratch,
        progress: Progress::new(plan.runs()),
        proved: false,
    };
    session.announce(plan);
    for jobs in plan.jobs.chunk_by(|a, b| a.section == b.section) {
        let Some(&Job { section, .. }) = jobs.first() else {
            continue;
        };
        let launch = accelerated(args, section, address)?;
        let mut viaduct = Contender::new(args, launch, viaduct_port, &scratch)?;
        session.measure_section(jobs, &mut plain, &mut viaduct, &mut results.rows)?;
        let totals = viaduct.server.stop();
        if args.host.is_none() {
            results.netservers.push(NetserverTotals {
                section,
                ring_share: totals.and_then(|totals| totals.ring_share()),
                totals,
            });
        }
        if interrupt::caught() {
            break;
        }
    }
    Ok(results)
}

/// One side of the comparison: how its netperf is started, and the netserver it talks to.
#[derive(Debug)]
struct Contender {
    launch: Launch,
    server: Server,
}

impl Contender {
    fn new(args: &NetperfArgs, launch: Launch, port: u16, scratch: &ScratchDir) -> Result<Self> {
        let server = if args.host.is_none() {
            Server::start(launch.clone(), port, scratch)?
        } else {
            Server::elsewhere(port)
        };
        Ok(Self { launch, server })
    }
}

/// What lasts from the first run to the last.
#[derive(Debug)]
struct Session<'a> {
    setup: Setup,
    scratch: &'a ScratchDir,
    progress: Progress,
    /// Whether netperf has ever worked here.
    proved: bool,
}

impl Session<'_> {
    fn announce(&self, plan: &Plan) {
        for note in &plan.notes {
            self.progress.say(note);
        }
        // Setting up and taking down a run adds about a tenth of a second.
        let seconds = f64::from(plan.runs()) * (f64::from(plan.seconds) + 0.1);
        self.progress.say(&format!(
            "{} runs of {} s, kernel TCP and Viaduct in turn, in about {:.0} min",
            plan.runs(),
            plan.seconds,
            (seconds / 60.0).ceil()
        ));
    }

    fn measure_section(
        &mut self,
        jobs: &[Job],
        plain: &mut Contender,
        viaduct: &mut Contender,
        rows: &mut Vec<Row>,
    ) -> Result<()> {
        for &job in jobs {
            let runs = self.measure_job(job, plain, viaduct)?;
            if interrupt::caught() {
                break;
            }
            let row = runs.into_row();
            self.progress.say(&table::one_line(&row));
            rows.push(row);
        }
        Ok(())
    }

    fn measure_job(
        &mut self,
        job: Job,
        plain: &mut Contender,
        viaduct: &mut Contender,
    ) -> Result<Runs> {
        let mut runs = Runs::new(job);
        let mut failed_in_a_row = (0, 0);
        let count = |failed: u32, sample: &Option<Sample>| match sample {
            Some(_) => 0,
            None => failed + 1,
        };
        for run in 1..=job.runs {
            let sample = self.measure_run(job, run, plain, &mut runs.failures)?;
            failed_in_a_row.0 = count(failed_in_a_row.0, &sample);
            runs.plain.push(sample);
            if interrupt::caught() {
                break;
            }
            let sample = self.measure_run(job, run, viaduct, &mut runs.failures)?;
            failed_in_a_row.1 = count(failed_in_a_row.1, &sample);
            runs.viaduct.push(sample);
            if interrupt::caught() {
                break;
            }
            let left = job.runs - run;
            if left > 0 && failed_in_a_row.0.max(failed_in_a_row.1) >= FAILURES_MAX {
                self.progress.say(&format!(
                    "{}, {}: {FAILURES_MAX} failures in a row, the other {left} pairs are left out",
                    job.test.title(),
                    job.placement.title()
                ));
                self.progress.skip(2 * left);
                break;
            }
        }
        Ok(runs)
    }

    /// One run; none if it failed or a signal came, and a failure is noted.
    fn measure_run(
        &mut self,
        job: Job,
        run: u32,
        contender: &mut Contender,
        failures: &mut Vec<Failure>,
    ) -> Result<Option<Sample>> {
        let Contender { launch, server } = contender;
        let what = format!(
            "{}, {}, {launch}, run {run} of {}",
            job.test.title(),
            job.placement.title(),
            job.runs
        );
        self.progress.begin(what.clone());
        let log = self.scratch.file("netperf");
        let port = server.port();
        match self
            .setup
            .run(launch, port, job.test, job.placement, &log)?
        {
            Run::Interrupted => Ok(None),
            Run::Done(sample) => {
                self.proved = true;
                let figure = table::figure(sample.throughput);
                self.progress
                    .end(&format!("{what}: {figure} {}", job.test.unit()));
                Ok(Some(sample))
            }
            // The first run of all is a plain one: nothing that follows would work either.
            Run::Failed { reason, .. } if !self.proved => {
                bail!(
                    "netperf does not work here: {reason}\n{}",
                    netperf::remedy(&reason)
                )
            }
            Run::Failed { reason, timed_out } => {
                self.progress.end(&format!("{what}: failed"));
                self.progress.say(&format!("FAILED {what}: {reason}"));
                failures.push(Failure {
                    run,
                    side: launch.to_string(),
                    reason,
                });
                if timed_out || server.has_ended() {
                    server.replace()?;
                }
                Ok(None)
            }
        }
    }
}

fn accelerated(args: &NetperfArgs, section: Section, address: IpAddr) -> Result<Launch> {
    let tool = std::env::current_exe().context("cannot find the viaduct program itself")?;
    let peers = match section {
        Section::NonPeer => Some(format!("!{address}")),
        Section::Main | Section::SpinOff => args.peers.clone(),
    };
    Ok(Launch::Viaduct {
        tool,
        peers,
        spin_off: section == Section::SpinOff,
    })
}

/// A stuck test would otherwise take its whole time limit again and again.
const FAILURES_MAX: u32 = 2;
