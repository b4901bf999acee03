//! Where the numbers were measured, and which cores to measure on.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What one must know about a machine to compare its figures with another's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpu_model: String,
    pub(super) cores: usize,
    /// UTC, `2026-01-31T12:00:00Z`.
    pub(super) date: String,
}

impl Machine {
    pub(super) fn here() -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned());
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Self {
            kernel,
            cpu_model: cpu_model(&cpuinfo),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            date: utc(seconds),
        }
    }
}

/// The cores that netperf and netserver are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cores {
    pub(super) first: usize,
    /// None where only one core may be used.
    pub(super) second: Option<usize>,
}

/// The two cores asked for, or the first two that this process may use and that are not two
/// hardware threads of one core (if there are such).
pub(super) fn pick_cores(wanted: Option<&[usize]>) -> Result<Cores> {
    let allowed = allowed_cores()?;
    if let Some(wanted) = wanted {
        return wanted_cores(wanted, &allowed);
    }
    let first = *allowed.first().context("this process may run on no core")?;
    let path = format!("/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list");
    let siblings = fs::read_to_string(path).map_or_else(|_| Vec::new(), |text| cpu_list(&text));
    let mut others = allowed.iter().copied().filter(|&core| core != first);
    let second = others
        .clone()
        .find(|core| !siblings.contains(core))
        .or_else(|| others.next());
    Ok(Cores { first, second })
}

fn wanted_cores(wanted: &[usize], allowed: &[usize]) -> Result<Cores> {
    let &[first, second] = wanted else {
        bail!("--cores takes two numbers, as in --cores 0,1");
    };
    if first == second {
        bail!("--cores takes two different cores; --placement one-core is for one");
    }
    if let Some(core) = wanted.iter().find(|core| !allowed.contains(core)) {
        bail!("core {core} cannot be used here; this process may run on {allowed:?}");
    }
    Ok(Cores {
        first,
        second: Some(second),
    })
}

fn allowed_cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPU affinity")?;
    Ok((0..CpuSet::count())
        .filter(|&core| set.is_set(core).unwrap_or(false))
        .collect())
}

/// Reads the kernel's form of a CPU list: `0-3,8`.
fn cpu_list(text: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for part in text.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            cores.extend(from..=to.min(CpuSet::count()));
        }
    }
    cores
}

fn cpu_model(cpuinfo: &str) -> String {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    field("model name")
        .or_else(|| field("Model"))
        .or_else(|| field("Hardware"))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Days are turned into a civil date by counting years from 1 March, so that the leap day comes
/// last and every month but the last has a fixed place.
fn utc(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second % 3_600 / 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_centuries() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_list("0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(cpu_list("5"), [5]);
        assert!(cpu_list("").is_empty());
    }

    #[test]
    fn a_core_that_may_not_be_used_is_refused() {
        assert!(wanted_cores(&[0, 1], &[0, 1, 2]).is_ok());
        assert!(wanted_cores(&[0, 3], &[0, 1, 2]).is_err());
        assert!(wanted_cores(&[1, 1], &[0, 1, 2]).is_err());
        assert!(wanted_cores(&[1], &[0, 1, 2]).is_err());
    }

    #[test]
    fn the_cpu_model_is_found_on_x86_and_falls_back_elsewhere() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Foo 9\n"), "Foo 9");
        assert_eq!(cpu_model("processor\t: 0\n"), std::env::consts::ARCH);
    }
}
