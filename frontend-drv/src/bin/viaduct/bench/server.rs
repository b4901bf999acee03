//! netserver: one plain and one accelerated, each kept for as long as it is needed.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::interrupt;
use super::netperf::Launch;
use super::process::{Group, ScratchDir};
use super::shim_stats::ShimStats;

/// A netserver to measure against: ours, or one that the user runs elsewhere.
#[derive(Debug)]
pub(super) struct Server {
    port: u16,
    started: Option<Started>,
}

#[derive(Debug)]
struct Started {
    launch: Launch,
    group: Group,
    log: PathBuf,
    stats: PathBuf,
    /// From instances that were replaced.
    totals: ShimStats,
}

impl Server {
    /// A netserver on this machine's loopback address, which nobody else can reach.
    pub(super) fn start(launch: Launch, port: u16, scratch: &ScratchDir) -> Result<Self> {
        let log = scratch.file(&format!("netserver-{port}"));
        let stats = scratch.file(&format!("netserver-{port}.json"));
        let group = spawn(&launch, port, &log, &stats)?;
        let started = Started {
            launch,
            group,
            log,
            stats,
            totals: ShimStats::default(),
        };
        Ok(Self {
            port,
            started: Some(started),
        })
    }

    /// A netserver that the user runs.
    pub(super) fn elsewhere(port: u16) -> Self {
        Self {
            port,
            started: None,
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Puts a fresh netserver in the place of one that has ended or may be stuck in a test.
    pub(super) fn replace(&mut self) -> Result<()> {
        let Some(started) = &mut self.started else {
            return Ok(());
        };
        started.group.stop();
        if let Some(stats) = ShimStats::read(&started.stats) {
            started.totals += stats;
        }
        started.group = spawn(&started.launch, self.port, &started.log, &started.stats)?;
        Ok(())
    }

    pub(super) fn has_ended(&self) -> bool {
        self.started
            .as_ref()
            .is_some_and(|started| started.group.has_ended())
    }

    /// Ends it; the totals are what its side of the connections saw.
    pub(super) fn stop(mut self) -> Option<ShimStats> {
        let mut started = self.started.take()?;
        started.group.stop();
        let mut totals = started.totals;
        totals += ShimStats::read(&started.stats)?;
        Some(totals)
    }
}

/// Two ports in a row if one was asked for, otherwise two that are free now.
pub(super) fn ports(wanted: Option<u16>, local: bool) -> Result<(u16, u16)> {
    match wanted {
        Some(port) => Ok((port, port.saturating_add(1))),
        None if !local => Ok((NETSERVER_PORT, NETSERVER_PORT + 1)),
        None => {
            let bind = || TcpListener::bind((LOCAL_ADDRESS, 0)).context("no free port");
            let (plain, accelerated) = (bind()?, bind()?);
            Ok((plain.local_addr()?.port(), accelerated.local_addr()?.port()))
        }
    }
}

fn spawn(launch: &Launch, port: u16, log: &Path, stats: &Path) -> Result<Group> {
    if is_listening(port)? {
        bail!("port {port} is taken; choose two free ones in a row with --port");
    }
    // A killed instance leaves no totals, and those of an older one must not pass for its own.
    let _ = fs::remove_file(stats);
    let mut command = launch.command("netserver", stats);
    command.args(["-D", "-4", "-L", LOCAL_ADDRESS, "-p", &port.to_string()]);
    let group = Group::spawn(&mut command, log)?;
    let deadline = Instant::now() + START_PATIENCE;
    while !is_listening(port)? {
        let ended = group.has_ended();
        if ended || interrupt::caught() || Instant::now() >= deadline {
            bail!(
                "netserver {} on port {port} ({launch}){}",
                if ended {
                    "ended at once"
                } else {
                    "did not come up"
                },
                printed(&group)
            );
        }
        std::thread::sleep(START_POLL);
    }
    Ok(group)
}

fn printed(group: &Group) -> String {
    match group.output().trim() {
        "" => " and printed nothing".to_owned(),
        text => format!("; it printed:\n{text}"),
    }
}

/// Looks the port up in the kernel's table: a trial connection would count in the totals.
fn is_listening(port: u16) -> Result<bool> {
    let table = fs::read_to_string("/proc/self/net/tcp").context("cannot read the socket table")?;
    Ok(listens(&table, port))
}

fn listens(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let own_port = fields
            .next()
            .and_then(|address| address.rsplit_once(':'))
            .and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        own_port == Some(port) && fields.nth(1) == Some(LISTEN_STATE)
    })
}

pub(super) const LOCAL_ADDRESS: &str = "127.0.0.1";
/// The port that netserver uses when it is not told otherwise.
const NETSERVER_PORT: u16 = 12865;
/// TCP_LISTEN as /proc/net/tcp writes it.
const LISTEN_STATE: &str = "0A";
/// An accelerated one may have to start the backend first.
const START_PATIENCE: Duration = Duration::from_secs(15);
const START_POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection_on_the_same_port() {
        let table = "  sl  local_address rem_address   st\n   \
                     0: 0100007F:32BE 00000000:0000 0A 00000000:00000000\n   \
                     1: 0100007F:1F90 0100007F:32BF 01 00000000:00000000\n";
        assert!(listens(table, 0x32BE));
        assert!(!listens(table, 0x1F90));
        assert!(!listens(table, 0x32BF));
    }

    #[test]
    fn ports_follow_each_other_or_are_free() {
        assert_eq!(ports(Some(7000), true).unwrap(), (7000, 7001));
        assert_eq!(ports(None, false).unwrap(), (12865, 12866));
        let (plain, accelerated) = ports(None, true).unwrap();
        assert_ne!(plain, accelerated);
    }
}
