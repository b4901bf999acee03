//! Many idle connections between two programs: what they cost beside the same connections over
//! plain TCP, and how long it takes to move them to the rings.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use super::census::{Activity, Census, memory_files};
use super::clock::monotonic_ns;
use super::lab::{Backend, Program, Under, pause};
use super::peer::PER_PORT;
use crate::bench::process::ScratchDir;
use crate::bench::stats::median;

/// A number of connections, held plain and held under Viaduct.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Held {
    pub(super) connections: u32,
    pub(super) plain: Ends<Census>,
    pub(super) viaduct: Ends<Census>,
    pub(super) upgrade: Upgrade,
    /// A byte to and fro on some connections while all are registered: nanoseconds for each.
    pub(super) active: Active,
    /// The daemon before the programs came, and with their connections idle.
    pub(super) daemon_before: Census,
    pub(super) daemon: Census,
    /// Bytes that the memory files of all three occupy, by name.
    pub(super) memory_files: BTreeMap<String, u64>,
    /// While all connections were idle.
    pub(super) idle: Idle,
    pub(super) after_close: AfterClose,
    pub(super) daemon_complaints: Vec<String>,
}

/// The time of an exchange on some of the connections.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Active {
    /// How many of the connections are used.
    pub(super) connections: u32,
    pub(super) plain_ns: f64,
    pub(super) viaduct_ns: f64,
}

/// Something of both programs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ends<T> {
    pub(super) server: T,
    pub(super) client: T,
}

/// How the connections got to the rings.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Upgrade {
    /// Connections of which both ends are attached.
    pub(super) attached: u64,
    /// Those of which both ends send and receive by ring.
    pub(super) on_rings: u64,
    /// From the first byte until all were attached; None if some never were.
    pub(super) seconds: Option<f64>,
    /// Rounds of one byte to and fro on each connection in that time.
    pub(super) rounds: u64,
    /// What the daemon used meanwhile.
    pub(super) daemon: Activity,
    /// Ends that are not attached, by stage and reason.
    pub(super) others: BTreeMap<String, u64>,
}

/// What everybody did in some seconds without a byte.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Idle {
    pub(super) seconds: u32,
    pub(super) server: Activity,
    pub(super) client: Activity,
    pub(super) daemon: Activity,
}

/// What is left when all connections have been closed, and the programs are still there.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AfterClose {
    pub(super) server: Census,
    pub(super) client: Census,
    pub(super) daemon: Census,
    pub(super) memory_files: BTreeMap<String, u64>,
    /// Connections that the daemon still has.
    pub(super) pairs: u64,
}

/// Two programs with their connections.
#[derive(Debug)]
struct Pair {
    server: Program,
    client: Program,
    connections: u32,
}

pub(super) fn measure(count: u32, idle_seconds: u32, scratch: &ScratchDir) -> Result<Held> {
    require_descriptors(count)?;
    let (plain, plain_ns) = {
        let mut pair = Pair::start(Under::Plain, count, scratch).context("plain")?;
        pair.run(ROUNDS, ROUNDS)?;
        pause(SETTLE)?;
        (pair.census()?, pair.few()?)
    };

    let backend = Backend::start(scratch)?;
    let daemon_before = Census::take(backend.pid())?;
    let under = Under::Viaduct {
        backend: &backend,
        session: SESSION,
    };
    let mut pair = Pair::start(under, count, scratch)?;
    let mut upgrade = pair.upgrade(&backend)?;
    // Whoever has just been attached still has to arm, and then its far end to switch.
    pair.run(LAST_ROUNDS, LAST_ROUNDS)?;
    pause(SETTLE)?;
    let viaduct = pair.census()?;
    let daemon = Census::take(backend.pid())?;
    let memory_files = pair.memory_files(&backend)?;
    let idle = watch(&pair.server, &pair.client, &backend, idle_seconds)?;
    // Only now: the answer takes memory of the daemon.
    upgrade.look(&backend)?;
    let active = Active {
        connections: ACTIVE.min(count),
        plain_ns,
        viaduct_ns: pair.few()?,
    };
    let after_close = pair.close(&backend)?;
    Ok(Held {
        connections: count,
        plain,
        viaduct,
        upgrade,
        active,
        daemon_before,
        daemon,
        memory_files,
        idle,
        after_close,
        daemon_complaints: backend.complaints(),
    })
}

/// What the two programs and the daemon use while nobody asks for anything.
pub(super) fn watch(
    server: &Program,
    client: &Program,
    backend: &Backend,
    seconds: u32,
) -> Result<Idle> {
    let pids = [server.pid(), client.pid(), backend.pid()];
    let mut before = Vec::new();
    for pid in pids {
        before.push(Activity::of(pid)?);
    }
    pause(Duration::from_secs(u64::from(seconds)))?;
    let mut used = Vec::new();
    for (pid, before) in pids.into_iter().zip(before) {
        used.push(Activity::of(pid)?.since(before));
    }
    match used[..] {
        [server, client, daemon] => Ok(Idle {
            seconds,
            server,
            client,
            daemon,
        }),
        _ => bail!("three processes, and not as many figures"),
    }
}

impl Pair {
    fn start(under: Under<'_>, count: u32, scratch: &ScratchDir) -> Result<Self> {
        let mut pair = Self {
            server: Program::start(under, "server", scratch)?,
            client: Program::start(under, "client", scratch)?,
            connections: count,
        };
        let ports = usize::try_from(count)?.div_ceil(PER_PORT);
        let ports = pair.server.ask(&format!("listen {ports}"), ANSWER)?;
        pair.server.tell(&format!("accept {count}"))?;
        let limit = pair.patience();
        pair.client
            .ask(&format!("connect {count} {ports}"), limit)?;
        pair.server.answer(limit)?;
        Ok(pair)
    }

    fn run(&mut self, least: u32, most: u32) -> Result<()> {
        let limit = self.patience();
        let answer = self.client.ask(&format!("run {least} {most}"), limit);
        self.blame_server(answer).map(drop)
    }

    /// Nanoseconds of an exchange on one of a few connections, all others being silent.
    fn few(&mut self) -> Result<f64> {
        let active = ACTIVE.min(self.connections);
        let limit = self.patience();
        self.client.ask(&format!("few {active} {WARM}"), limit)?;
        let mut times = Vec::new();
        for _ in 0..SAMPLES {
            let line = format!("few {active} {PER_SAMPLE}");
            let answer = self.client.ask(&line, limit);
            let ns: f64 = self
                .blame_server(answer)?
                .parse()
                .context("odd answer of the client")?;
            times.push(ns / f64::from(active * PER_SAMPLE));
        }
        median(&times).context("no exchanges")
    }

    /// Rounds until all connections are attached, or no more of them will be.
    fn upgrade(&mut self, backend: &Backend) -> Result<Upgrade> {
        let ends = 2 * u64::from(self.connections);
        let before = Activity::of(backend.pid())?;
        self.client.tell(&format!("run {ROUNDS} {}", u32::MAX))?;
        let deadline = Instant::now() + self.patience();
        let mut progress = (0, Instant::now());
        let done_at = loop {
            let upgraded = backend.totals(SESSION)?.upgraded;
            if upgraded >= ends {
                break Some(monotonic_ns());
            }
            if upgraded > progress.0 {
                progress = (upgraded, Instant::now());
            }
            if progress.1.elapsed() > STAGNATION || Instant::now() > deadline {
                break None;
            }
            // The answer takes the daemon some time for each connection.
            let each = Duration::from_micros(5) * self.connections;
            pause(each.max(Duration::from_millis(1)))?;
        };
        let limit = self.patience();
        let answer = self.client.ask("stop", limit);
        let answer = self.blame_server(answer)?;
        let (rounds, first) = answer.split_once(' ').context("odd answer of the client")?;
        let first: u64 = first.parse().context("odd answer of the client")?;
        Ok(Upgrade {
            seconds: done_at.map(|at| at.saturating_sub(first) as f64 / 1e9),
            rounds: rounds.parse().context("odd answer of the client")?,
            daemon: Activity::of(backend.pid())?.since(before),
            ..Upgrade::default()
        })
    }

    fn census(&self) -> Result<Ends<Census>> {
        Ok(Ends {
            server: Census::take(self.server.pid())?,
            client: Census::take(self.client.pid())?,
        })
    }

    fn memory_files(&self, backend: &Backend) -> Result<BTreeMap<String, u64>> {
        memory_files(&[backend.pid(), self.server.pid(), self.client.pid()])
    }

    fn close(&mut self, backend: &Backend) -> Result<AfterClose> {
        let limit = self.patience();
        self.client.ask("close", limit)?;
        let deadline = Instant::now() + limit;
        while self.server.ask("open", limit)? != "0" && Instant::now() < deadline {
            pause(POLL)?;
        }
        let mut pairs = backend.status()?.daemon.pairs;
        let deadline = Instant::now() + CLOSE_PATIENCE;
        while pairs > 0 && Instant::now() < deadline {
            pause(POLL)?;
            pairs = backend.status()?.daemon.pairs;
        }
        pause(SETTLE)?;
        let Ends { server, client } = self.census()?;
        Ok(AfterClose {
            server,
            client,
            daemon: Census::take(backend.pid())?,
            memory_files: self.memory_files(backend)?,
            pairs,
        })
    }

    /// If the client fails because the server has, that is what matters.
    fn blame_server(&mut self, answer: Result<String>) -> Result<String> {
        answer.map_err(|error| match self.server.ask("open", ANSWER) {
            Ok(open) => error.context(format!("the server has {open} connections")),
            Err(servers) => error.context(format!("{servers:#}")),
        })
    }

    /// Generous: a millisecond for each byte to and fro.
    fn patience(&self) -> Duration {
        ANSWER + Duration::from_millis(u64::from(self.connections * 6))
    }
}

impl Upgrade {
    /// Asks the daemon what became of each connection.
    fn look(&mut self, backend: &Backend) -> Result<()> {
        let status = backend.status()?;
        let (mut attached, mut on_rings) = (0, 0);
        for end in &status.connections {
            if end.stage != "attached" {
                let what = [end.stage.as_str(), end.reason.as_str()];
                let what = what.join(" ").trim().to_owned();
                *self.others.entry(what).or_default() += 1;
                continue;
            }
            attached += 1;
            if (end.sending, end.receiving) == ("ring", "ring") {
                on_rings += 1;
            }
        }
        self.attached = attached / 2;
        self.on_rings = on_rings / 2;
        Ok(())
    }
}

fn require_descriptors(count: u32) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading RLIMIT_NOFILE")?;
    let needed = u64::from(count) + SPARE_DESCRIPTORS;
    if hard < needed {
        bail!(
            "needs {needed} descriptors per process, and the hard limit is {hard}: raise it \
             (ulimit -Hn) or ask for fewer"
        );
    }
    Ok(())
}

/// Anything: the daemon is ours alone.
const SESSION: u64 = 1;
/// Rounds with one byte to and fro per connection; the default settings ask for 8 before a
/// connection is upgraded.
const ROUNDS: u32 = 40;
const LAST_ROUNDS: u32 = 10;
/// Connections that are used while all others are silent; rounds before the clock is looked at, and in each
/// of some samples.
const ACTIVE: u32 = 10;
const WARM: u32 = 5000;
const SAMPLES: u32 = 9;
const PER_SAMPLE: u32 = 5000;
/// What a program may need beside its connections; the library keeps its own in the upper quarter.
const SPARE_DESCRIPTORS: u64 = 300;
const SETTLE: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(30);
const STAGNATION: Duration = Duration::from_secs(5);
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
