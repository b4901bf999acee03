//! `viaduct bench`: the same unmodified benchmark, with and without Viaduct, side by side.
//!
//! Every sample of kernel TCP is followed at once by a sample under `viaduct run`, so that whatever
//! else the machine does meets both. The netperf used is the one the machine has; this module only
//! starts it, bounds it, and reads what it prints.
//!
//! * [`args`]: the command line; [`plan`]: what it comes to, as a list of jobs.
//! * [`session`]: carries a plan out, with [`server`] (netserver), [`netperf`] (one run),
//!   [`process`] (bounded children that leave no orphan), [`interrupt`] and [`progress`].
//! * [`results`]: what was measured, as written to results.json; [`stats`]: medians and ratios;
//!   [`shim_stats`]: the proof that the ring was used; [`busy`]: what it cost in CPU time;
//!   [`machine`]: where it was measured.
//! * [`table`] and [`chart`]: the same results for people.
//! * [`cost`]: another measurement, of memory, descriptors and the time of single calls.
//! * `raw`, the drivers of links by themselves, is left to the daemon's program, which has them.
//!
//! It moves no benchmark data itself and never judges: targets are shown beside the ratios, but
//! only a run that failed makes the exit status non-zero.

mod args;
mod busy;
mod chart;
mod cost;
mod interrupt;
mod machine;
mod netperf;
mod plan;
mod process;
mod progress;
mod results;
mod server;
mod session;
mod shim_stats;
mod stats;
mod table;

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

pub(crate) use args::BenchArgs;
use args::{BenchCommand, NetperfArgs, RawArgs, RenderArgs};
use plan::Section;
use results::{Results, SCHEMA};

use crate::locate;

/// Runs one `viaduct bench` command.
pub(crate) fn run(args: BenchArgs) -> Result<()> {
    match args.command {
        BenchCommand::Netperf(netperf) => compare_netperf(&netperf),
        BenchCommand::Render(render) => draw_again(&render),
        BenchCommand::Cost(cost) => cost::run(&cost),
        BenchCommand::Raw(raw) => measure_drivers(&raw),
        BenchCommand::CostPeer(peer) => cost::run_peer(&peer),
    }
}

/// Becomes the daemon's program. Returns only if that fails.
fn measure_drivers(args: &RawArgs) -> Result<()> {
    let program = locate::daemon_program()?;
    let mut command = Command::new(&program);
    command.arg("bench-raw").args(&args.arguments);
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

fn compare_netperf(args: &NetperfArgs) -> Result<()> {
    netperf::require_programs(args.host.is_none())?;
    let cores = machine::pick_cores(args.cores.as_deref())?;
    let plan = plan::Plan::new(args, cores)?;
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the output directory {}", args.out.display()))?;
    interrupt::install()?;

    let results = session::measure(args, &plan)?;
    if !results.rows.is_empty() {
        print_table(&results, args.markdown)?;
    }
    if interrupt::caught() {
        bail!("interrupted; no file was written, a table only of what was finished");
    }
    write_files(&results, &args.out)?;
    let failures = results.failures();
    if failures > 0 {
        bail!(
            "{failures} of {} runs failed; the reasons are above and in results.json",
            plan.runs()
        );
    }
    match args.min_ring_share {
        Some(percent) => require_ring_share(&results, percent),
        None => Ok(()),
    }
}

/// Fails unless every row that should ride the rings did.
fn require_ring_share(results: &Results, percent: u8) -> Result<()> {
    for row in results
        .rows
        .iter()
        .filter(|row| row.section != Section::NonPeer)
    {
        let share = row.ring_share.unwrap_or(0.0) * 100.0;
        if share < f64::from(percent) {
            let title = &row.title;
            bail!("{title}: {share:.2} % of the bytes went by ring, less than {percent} %");
        }
    }
    Ok(())
}

fn draw_again(args: &RenderArgs) -> Result<()> {
    let text = fs::read_to_string(&args.results)
        .with_context(|| format!("cannot read {}", args.results.display()))?;
    let results: Results = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a results.json of ours", args.results.display()))?;
    if results.schema != SCHEMA {
        let (path, schema) = (args.results.display(), results.schema);
        bail!("{path} has schema {schema}, and only {SCHEMA} is understood");
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the output directory {}", args.out.display()))?;
    print_table(&results, args.markdown)?;
    write_drawings(&results, &args.out)
}

fn print_table(results: &Results, markdown: bool) -> Result<()> {
    let text = if markdown {
        table::markdown(results)
    } else {
        table::plain_text(results)
    };
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write the table to stdout")
}

fn write_files(results: &Results, out: &Path) -> Result<()> {
    let mut json = serde_json::to_string_pretty(results).context("cannot encode the results")?;
    json.push('\n');
    write_file(&out.join("results.json"), &json)?;
    write_drawings(results, out)
}

fn write_drawings(results: &Results, out: &Path) -> Result<()> {
    write_file(&out.join("table.md"), &table::markdown(results))?;
    for note in chart::write(results, out)? {
        writeln!(std::io::stderr().lock(), "{note}")?;
    }
    Ok(())
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(std::io::stderr().lock(), "wrote {}", path.display())?;
    Ok(())
}
