//! What a process holds, and what it has used, as /proc tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use serde::Serialize;

/// What a process holds at one moment.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Census {
    pub(super) tcp_descriptors: u64,
    pub(super) other_descriptors: u64,
    /// The others by what they are.
    pub(super) descriptor_kinds: BTreeMap<String, u64>,
    pub(super) mappings: u64,
    pub(super) resident_bytes: u64,
    /// Pages that several processes map count in part for each of them.
    pub(super) proportional_bytes: u64,
    pub(super) anonymous_bytes: u64,
    pub(super) shared_memory_bytes: u64,
    pub(super) page_table_bytes: u64,
}

impl Census {
    pub(super) fn take(pid: u32) -> Result<Self> {
        let mut census = Self::default();
        census.count_descriptors(pid)?;
        let mappings = read(pid, "maps")?.lines().count();
        census.mappings = u64::try_from(mappings)?;
        let rollup = read(pid, "smaps_rollup")?;
        census.resident_bytes = kilobytes(&rollup, "Rss")?;
        census.proportional_bytes = kilobytes(&rollup, "Pss")?;
        census.anonymous_bytes = kilobytes(&rollup, "Pss_Anon")?;
        census.shared_memory_bytes = kilobytes(&rollup, "Pss_Shmem")?;
        census.page_table_bytes = kilobytes(&read(pid, "status")?, "VmPTE")?;
        Ok(census)
    }

    pub(super) fn descriptors(&self) -> u64 {
        self.tcp_descriptors + self.other_descriptors
    }

    fn count_descriptors(&mut self, pid: u32) -> Result<()> {
        let mut tcp = socket_inodes(&read(pid, "net/tcp")?);
        // There is none without IPv6.
        tcp.extend(socket_inodes(&read(pid, "net/tcp6").unwrap_or_default()));
        for (link, _) in descriptors(pid)? {
            let inode = link.strip_prefix("socket:[");
            let inode = inode.and_then(|rest| rest.trim_end_matches(']').parse().ok());
            if inode.is_some_and(|inode| tcp.contains(&inode)) {
                self.tcp_descriptors += 1;
                continue;
            }
            self.other_descriptors += 1;
            *self.descriptor_kinds.entry(kind(&link)).or_default() += 1;
        }
        Ok(())
    }
}

/// Bytes in use by the files in memory of which one of `pids` has a descriptor, by name.
pub(super) fn memory_files(pids: &[u32]) -> Result<BTreeMap<String, u64>> {
    let (mut seen, mut sums) = (BTreeSet::new(), BTreeMap::new());
    let mut found = Vec::new();
    for pid in pids {
        found.extend(descriptors(*pid)?);
    }
    for (link, path) in found {
        let Some(name) = link.strip_prefix("/memfd:") else {
            continue;
        };
        let name = name.trim_end_matches(" (deleted)").to_owned();
        // Closed meanwhile, if this fails.
        if let Ok(file) = fs::metadata(&path)
            && seen.insert((file.dev(), file.ino()))
        {
            *sums.entry(name).or_default() += file.blocks() * BLOCK_BYTES;
        }
    }
    Ok(sums)
}

/// What a process has used since its start, all threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Activity {
    /// User and system time, in hundredths of a second.
    pub(super) ticks: u64,
    /// The scheduler's own count, which is exact; None where it keeps none.
    pub(super) processor_us: Option<u64>,
    pub(super) voluntary_switches: u64,
    pub(super) involuntary_switches: u64,
}

impl Activity {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let stat = read(pid, "stat")?;
        let ticks = ticks(&stat).with_context(|| format!("/proc/{pid}/stat is odd: {stat}"))?;
        let mut sum = Self {
            ticks,
            processor_us: Some(0),
            ..Self::default()
        };
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
            let task = task.with_context(|| format!("cannot list {tasks}"))?.path();
            // A thread that has ended meanwhile is none of those that idle.
            let Ok(status) = fs::read_to_string(task.join("status")) else {
                continue;
            };
            sum.voluntary_switches += number(&status, "voluntary_ctxt_switches").unwrap_or(0);
            sum.involuntary_switches += number(&status, "nonvoluntary_ctxt_switches").unwrap_or(0);
            let run = fs::read_to_string(task.join("schedstat")).ok();
            let run = run.and_then(|text| first_number(&text));
            sum.processor_us = sum.processor_us.zip(run).map(|(sum, ns)| sum + ns / 1000);
        }
        Ok(sum)
    }

    /// What came to it since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        let time = self.processor_us.zip(before.processor_us);
        Self {
            ticks: self.ticks.saturating_sub(before.ticks),
            processor_us: time.map(|(now, then)| now.saturating_sub(then)),
            voluntary_switches: self
                .voluntary_switches
                .saturating_sub(before.voluntary_switches),
            involuntary_switches: self
                .involuntary_switches
                .saturating_sub(before.involuntary_switches),
        }
    }
}

/// Each descriptor: what it leads to, and its path in /proc.
fn descriptors(pid: u32) -> Result<Vec<(String, std::path::PathBuf)>> {
    let directory = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {directory}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot list {directory}"))?
            .path();
        if let Ok(link) = fs::read_link(&path) {
            found.push((link.to_string_lossy().into_owned(), path));
        }
    }
    Ok(found)
}

fn read(pid: u32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// `socket`, `eventfd`, `memfd:name`; a path as it is.
fn kind(link: &str) -> String {
    let link = link.trim_end_matches(" (deleted)");
    let link = link.strip_prefix("anon_inode:").unwrap_or(link);
    if let Some(name) = link.strip_prefix("/memfd:") {
        return format!("memfd:{name}");
    }
    match link.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => link.trim_matches(['[', ']']).to_owned(),
    }
}

/// Inodes of the sockets in a table of /proc/net.
fn socket_inodes(table: &str) -> BTreeSet<u64> {
    let lines = table.lines().skip(1);
    lines
        .filter_map(|line| line.split_ascii_whitespace().nth(9)?.parse().ok())
        .filter(|inode| *inode != 0)
        .collect()
}

/// A value of a file with lines `Name:   12 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Result<u64> {
    let value = number(text, name).with_context(|| format!("the kernel does not tell {name}"))?;
    Ok(value * 1024)
}

fn number(text: &str, name: &str) -> Option<u64> {
    let values = |line: &'_ str| {
        line.strip_prefix(name)?
            .strip_prefix(':')
            .map(str::to_owned)
    };
    first_number(&text.lines().find_map(values)?)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// utime and stime, the 14th and 15th field; the second one is a name that may contain anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// The unit of st_blocks, whatever the file system's own is.
const BLOCK_BYTES: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_by_kind() {
        for (link, expected) in [
            ("socket:[123]", "socket"),
            ("anon_inode:[eventfd]", "eventfd"),
            ("/memfd:viaduct-slots (deleted)", "memfd:viaduct-slots"),
            ("/dev/null", "/dev/null"),
            ("pipe:[5]", "pipe"),
        ] {
            assert_eq!(kind(link), expected);
        }
    }

    #[test]
    fn sockets_without_a_file_are_nobodys() {
        let table = "  sl  local_address rem_address st tx_queue tr tm->when retrnsmt uid timeout inode\n\
            0: 0100007F:0277 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 15 1 0\n\
            1: 0100007F:0277 0100007F:9999 06 00000000:00000000 03:00000000 00000000 0 0 0 3 0\n";
        assert_eq!(socket_inodes(table).into_iter().collect::<Vec<_>>(), [15]);
    }

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let text = "Rss:  12 kB\nPss:   8 kB\nPss_Anon:  1 kB\n";
        assert_eq!(kilobytes(text, "Pss").unwrap(), 8192);
        assert_eq!(kilobytes(text, "Pss_Anon").unwrap(), 1024);
        assert!(kilobytes(text, "Pss_Shmem").is_err());
    }

    #[test]
    fn a_name_with_a_parenthesis_does_not_shift_the_ticks() {
        let stat = "7 (a) 1 2) S 1 7 7 0 -1 0 0 0 0 0 30 4 0 0 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat), Some(34));
        assert_eq!(ticks("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let census = Census::take(std::process::id()).unwrap();
        assert!(census.mappings > 0 && census.resident_bytes > 0);
        assert!(census.page_table_bytes > 0 && census.other_descriptors > 0);
        let before = Activity::of(std::process::id()).unwrap();
        let after = Activity::of(std::process::id()).unwrap();
        assert!(after.since(before).ticks < 1000);
    }
}
