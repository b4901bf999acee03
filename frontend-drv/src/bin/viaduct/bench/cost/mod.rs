//! `viaduct bench cost`: what connections and calls cost, in memory, descriptors and time.
//!
//! Every figure is of two ordinary programs (this tool itself, in the hidden roles of `cost-peer`)
//! over loopback, plain and under `viaduct run` with a daemon that nobody else uses.
//!
//! * [`args`]: the command line. [`peer`]: the programs. [`lab`]: starting and leading them.
//! * [`connections`]: many idle connections, and how fast they are upgraded. [`calls`]: the time of
//!   calls and connects. [`idle`]: processor time of an idle pair.
//! * [`census`]: what /proc says of a process; [`clock`]: the time between processes.
//! * [`results`], [`table`]: what came of it.
//!
//! A measurement that fails is one line, and the others go on; the exit status then says so. No
//! program is waited for without a limit, and none outlives the tool.

mod args;
mod calls;
mod census;
mod clock;
mod connections;
mod idle;
mod lab;
mod peer;
mod results;
mod table;

use std::fs::{self, OpenOptions};

use anyhow::{Context, Result, bail};

use args::What;
pub(super) use args::{CostArgs, PeerArgs};
use idle::Wait;
pub(super) use peer::run as run_peer;
use results::Results;

use super::interrupt;
use super::process::ScratchDir;
use super::progress::Progress;
use crate::failure::Failure;
use crate::output;

/// Measures, prints, writes.
pub(super) fn run(args: &CostArgs) -> Result<()> {
    if let Some(path) = &args.json {
        // Said before the measurement, not after it.
        let fresh = !path.exists();
        let open = OpenOptions::new().create(true).append(true).open(path);
        open.map_err(|error| {
            Failure::bad_input(format!("--json: cannot write {}: {error}", path.display()))
        })?;
        if fresh {
            let _ = fs::remove_file(path);
        }
    }
    interrupt::install()?;
    let results = measure(args)?;
    output::print(&table::text(&results, args.markdown))?;
    if interrupt::caught() {
        bail!("interrupted; the tables are of what was finished");
    }
    if let Some(path) = &args.json {
        let mut json = serde_json::to_string_pretty(&results).context("encoding the results")?;
        json.push('\n');
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match results.problems.len() {
        0 => Ok(()),
        problems => bail!("{problems} measurements failed; the reasons are above"),
    }
}

fn measure(args: &CostArgs) -> Result<Results> {
    let mut results = Results::new();
    let mut progress = Progress::new(steps(args)?);
    if args.wants(What::Connections) {
        for &count in &args.connections {
            let what = format!("{count} connections");
            progress.begin(what.clone());
            let scratch = ScratchDir::new()?;
            let held = connections::measure(count, args.idle_seconds, &scratch);
            results
                .connections
                .extend(results.problems.note(&what, held));
            progress.end(&what);
        }
    }
    if args.wants(What::Calls) {
        for bytes in calls::SIZES {
            let scratch = ScratchDir::new()?;
            let times = calls::calls(bytes, args.runs, &scratch, &mut progress);
            let what = format!("calls of {bytes} B");
            results.calls.extend(results.problems.note(&what, times));
        }
    }
    if args.wants(What::Connects) {
        let scratch = ScratchDir::new()?;
        let rates = calls::connects(args.runs, &scratch, &mut progress);
        results.connects = results.problems.note("connects", rates);
    }
    if args.wants(What::Idle) {
        for wait in [Wait::Blocking, Wait::Epoll] {
            let what = format!("idle pair that {}", wait.title());
            progress.begin(what.clone());
            let scratch = ScratchDir::new()?;
            let pair = idle::measure(wait, args.idle_seconds, &scratch);
            results.idle.extend(results.problems.note(&what, pair));
            progress.end(&what);
        }
    }
    Ok(results)
}

/// How many times progress is shown.
fn steps(args: &CostArgs) -> Result<u32> {
    let steps = [
        (What::Connections, args.connections.len()),
        (What::Calls, calls::SIZES.len()),
        (What::Connects, 1),
        (What::Idle, 2),
    ];
    let wanted = steps.iter().filter(|(what, _)| args.wants(*what));
    Ok(u32::try_from(
        wanted.map(|(_, count)| count).sum::<usize>(),
    )?)
}

/// Keeps going: a failure becomes a line.
trait Problems {
    fn note<T>(&mut self, what: &str, result: Result<T>) -> Option<T>;
}

impl Problems for Vec<String> {
    fn note<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            // Whatever was under way says so; once is enough.
            Err(_) if interrupt::caught() => None,
            Err(error) => {
                self.push(format!("{what}: {error:#}").replace('\n', " "));
                None
            }
        }
    }
}
