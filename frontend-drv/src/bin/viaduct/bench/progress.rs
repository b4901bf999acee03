//! What is shown on stderr while the runs go on: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Progress over a known number of runs.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    total: u32,
    done: u32,
}

impl Progress {
    pub(super) fn new(total: u32) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(u64::from(total));
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            bar,
            total,
            done: 0,
        }
    }

    /// A run begins.
    pub(super) fn begin(&self, what: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(what);
        }
    }

    /// A run has ended; off a terminal this is a line of its own.
    pub(super) fn end(&mut self, what: &str) {
        self.done += 1;
        match &self.bar {
            Some(bar) => bar.inc(1),
            None => write_line(&format!("[{}/{}] {what}", self.done, self.total)),
        }
    }

    /// Runs that will not take place.
    pub(super) fn skip(&mut self, runs: u32) {
        self.done += runs;
        if let Some(bar) = &self.bar {
            bar.inc(u64::from(runs));
        }
    }

    /// A line that stays: the bar, if there is one, moves on below it.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => write_line(line),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A stderr that nobody reads any more is no reason to stop measuring.
fn write_line(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

const TEMPLATE: &str = "{bar:28.cyan} {pos}/{len}  {msg}  [{elapsed} so far, {eta} to go]";
/// Rare enough not to disturb a measurement on the same cores.
const TICK: Duration = Duration::from_secs(1);
