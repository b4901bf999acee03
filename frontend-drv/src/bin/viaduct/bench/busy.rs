//! How many cores of the machine are busy during a run.
//!
//! The whole machine, not the two programs: netserver's children are never collected, so their time
//! is lost, and the kernel's work for TCP is partly done in nobody's name.

use std::fs;
use std::time::Instant;

/// Measures from its start on.
#[derive(Debug)]
pub(super) struct BusyMeter {
    started: Instant,
    ticks: Option<f64>,
}

impl BusyMeter {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            ticks: busy_ticks(),
        }
    }

    /// The average since the start; none if the kernel does not say.
    pub(super) fn busy_cores(&self) -> Option<f64> {
        let ticks = busy_ticks()? - self.ticks?;
        let seconds = self.started.elapsed().as_secs_f64();
        (seconds > 0.0).then(|| ticks.max(0.0) / TICKS_PER_SECOND / seconds)
    }
}

fn busy_ticks() -> Option<f64> {
    sum_of_busy(&fs::read_to_string("/proc/stat").ok()?)
}

/// user, nice, system, irq and softirq of all cores; idle, iowait and steal are not ours, and the
/// guest times are in user already.
fn sum_of_busy(stat: &str) -> Option<f64> {
    let fields = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = fields
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    match ticks[..] {
        [user, nice, system, _idle, _iowait, irq, softirq, ..] => {
            Some(user + nice + system + irq + softirq)
        }
        _ => None,
    }
}

/// USER_HZ, which is 100 in the ABI of every architecture that Viaduct runs on.
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_busy_time_counts() {
        let stat = "cpu  1 20 300 99 99 4000 50000 99 99 99\ncpu0 7 7 7 7 7 7 7\n";
        assert_eq!(sum_of_busy(stat), Some(54321.0));
        assert_eq!(sum_of_busy("cpu0 1 2 3 4 5 6 7\n"), None);
        assert_eq!(sum_of_busy("cpu  1 2\n"), None);
    }
}
