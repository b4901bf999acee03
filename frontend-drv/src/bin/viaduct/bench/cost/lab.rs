//! A daemon and programs of our own, for one measurement: nobody else's connections are in the
//! figures, and everything ends with the measurement.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdma_core::control::Query;
use serde::de::DeserializeOwned;

use crate::bench::interrupt;
use crate::bench::netperf::Launch;
use crate::bench::process::{Group, ScratchDir, Waited};
use crate::daemon::Daemon;
use crate::locate;
use crate::report::{Status, Totals};

/// A daemon that leaves with its last client, of which we are one.
#[derive(Debug)]
pub(super) struct Backend {
    // Dropped first: a daemon that is left by itself does not have to be ended.
    client: Daemon,
    group: Group,
}

impl Backend {
    pub(super) fn start(scratch: &ScratchDir) -> Result<Self> {
        let socket = scratch.file("daemon.sock");
        let mut command = Command::new(locate::daemon_program()?);
        command.arg("--embedded").arg("--socket").arg(&socket);
        command.env_remove("LD_PRELOAD");
        let group = Group::spawn(&mut command, &scratch.file("daemon"))?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match Daemon::reach(&socket) {
                Ok(client) => return Ok(Self { client, group }),
                Err(error) if group.has_ended() || Instant::now() >= deadline => {
                    bail!("the daemon does not answer: {error}{}", printed(&group))
                }
                Err(_) => pause(POLL)?,
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.group.id()
    }

    /// What the programs of a session counted.
    pub(super) fn totals(&self, session: u64) -> Result<Totals> {
        Ok(Totals::parse(&self.ask(Query::TOTALS, session)?)?)
    }

    /// What it has complained about.
    pub(super) fn complaints(&self) -> Vec<String> {
        let output = self.group.output();
        let lines = output
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        lines.map(without_colours).collect()
    }

    pub(super) fn status(&self) -> Result<Status> {
        Ok(Status::parse(&self.ask(Query::STATUS, 0)?)?)
    }

    fn ask(&self, what: u32, session: u64) -> Result<String> {
        let answer = self.client.connection.ask(what, session);
        answer.with_context(|| format!("asking the daemon{}", printed(&self.group)))
    }
}

/// How a program is started.
#[derive(Clone, Copy, Debug)]
pub(super) enum Under<'a> {
    /// As it is.
    Plain,
    /// By `viaduct run`.
    Viaduct {
        backend: &'a Backend,
        /// What the daemon counts it under.
        session: u64,
    },
}

impl Under<'_> {
    /// This tool in one of the roles of `cost-peer`.
    fn command(self, role: &[String]) -> Result<Command> {
        let tool = std::env::current_exe().context("cannot find the viaduct program itself")?;
        let mut command = match self {
            Self::Plain => Launch::Plain.command(&tool.to_string_lossy(), Path::new("")),
            Self::Viaduct { backend, session } => {
                let mut command = Command::new(&tool);
                command
                    .arg("run")
                    .arg("--socket")
                    .arg(&backend.client.socket);
                command.args(["--peers", PEERS, "--"]).arg(&tool);
                command.env("VIADUCT_SESSION", format!("{session:016x}"));
                command
            }
        };
        command.args(["bench", "cost-peer"]).args(role);
        Ok(command)
    }
}

/// Plays a role that needs no leading, and reads what it prints.
pub(super) fn result_of<T: DeserializeOwned>(
    under: Under<'_>,
    role: &[String],
    scratch: &ScratchDir,
) -> Result<T> {
    let mut group = Group::spawn(&mut under.command(role)?, &scratch.file("role"))?;
    let name = role.join(" ");
    match group.wait(ROLE_PATIENCE)? {
        Waited::Exited => {}
        Waited::Interrupted => bail!(INTERRUPTED),
        Waited::TimedOut => {
            let seconds = ROLE_PATIENCE.as_secs();
            bail!("`{name}` still runs after {seconds} s{}", printed(&group));
        }
    }
    let status = group.reap()?;
    if !status.success() {
        bail!("`{name}` failed, {status}{}", printed(&group));
    }
    serde_json::from_str(&group.stdout())
        .with_context(|| format!("`{name}` printed no result{}", printed(&group)))
}

/// A program that is told what to do.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    group: Group,
    control: UnixStream,
    pending: Vec<u8>,
    pid: u32,
}

impl Program {
    /// Starts the `server` or the `client`.
    pub(super) fn start(
        under: Under<'_>,
        name: &'static str,
        scratch: &ScratchDir,
    ) -> Result<Self> {
        let socket = scratch.file(&format!("{name}.sock"));
        // That of the measurement before.
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen at {}", socket.display()))?;
        listener.set_nonblocking(true).context("O_NONBLOCK")?;
        let role = [name.to_owned(), path_text(&socket)?];
        let group = Group::spawn(&mut under.command(&role)?, &scratch.file(name))?;
        let deadline = Instant::now() + START_PATIENCE;
        let control = loop {
            match listener.accept() {
                Ok((control, _)) => break control,
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Err(error).context("accept");
                }
                Err(_) if group.has_ended() || Instant::now() >= deadline => {
                    bail!("the {name} did not start{}", printed(&group));
                }
                Err(_) => pause(POLL)?,
            }
        };
        control.set_nonblocking(false).context("O_NONBLOCK")?;
        control
            .set_read_timeout(Some(SLICE))
            .context("SO_RCVTIMEO")?;
        let mut program = Self {
            name,
            group,
            control,
            pending: Vec::new(),
            pid: 0,
        };
        program.pid = program.answer(START_PATIENCE)?.parse().context("no pid")?;
        Ok(program)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let sent = self.control.write_all(format!("{line}\n").as_bytes());
        sent.map_err(|_| anyhow!(self.last_words()))
    }

    /// The next line that it says.
    pub(super) fn answer(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            if interrupt::caught() {
                bail!(INTERRUPTED);
            }
            let name = self.name;
            if Instant::now() >= deadline {
                bail!("the {name} hangs: no answer for {} s", limit.as_secs());
            }
            let mut bytes = [0; 256];
            match self.control.read(&mut bytes) {
                Ok(0) => bail!(self.last_words()),
                Ok(length) => {
                    let came = bytes.get(..length).unwrap_or_default();
                    self.pending.extend_from_slice(came);
                }
                Err(error) if RETRY.contains(&error.kind()) => {}
                Err(error) => return Err(error).with_context(|| format!("the {name} is lost")),
            }
        }
    }

    /// Why it has hung up; it may still have thousands of connections to close before it says so.
    fn last_words(&mut self) -> String {
        let status = match self.group.wait(START_PATIENCE) {
            Ok(Waited::Exited) => self.group.reap().ok(),
            _ => None,
        };
        let status = status.map_or_else(String::new, |status| format!(" ({status})"));
        format!(
            "the {} has ended{status}{}",
            self.name,
            printed(&self.group)
        )
    }

    pub(super) fn ask(&mut self, line: &str, limit: Duration) -> Result<String> {
        self.tell(line)?;
        self.answer(limit)
    }
}

/// Sleeps, unless a signal asks us to stop.
pub(super) fn pause(time: Duration) -> Result<()> {
    let deadline = Instant::now() + time;
    loop {
        if interrupt::caught() {
            bail!(INTERRUPTED);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(SLICE));
    }
}

/// The last line that a program has printed, as the end of a message.
fn printed(group: &Group) -> String {
    let output = group.output();
    let line = output.lines().rfind(|line| !line.trim().is_empty());
    line.map_or_else(String::new, |line| format!(": {}", line.trim()))
}

/// A line of a log without what makes it colourful on a terminal.
fn without_colours(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    text
}

fn path_text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("{} is not text", path.display()))
}

/// All that the programs connect to.
const PEERS: &str = "127.0.0.0/8";
pub(super) const INTERRUPTED: &str = "interrupted";
const START_PATIENCE: Duration = Duration::from_secs(15);
const ROLE_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
const SLICE: Duration = Duration::from_millis(200);
const RETRY: [ErrorKind; 3] = [
    ErrorKind::WouldBlock,
    ErrorKind::TimedOut,
    ErrorKind::Interrupted,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_taken_out_of_a_log() {
        let line = "\x1b[2mnow\x1b[0m \x1b[33m WARN\x1b[0m it does not read";
        assert_eq!(without_colours(line), "now  WARN it does not read");
        assert_eq!(without_colours("plain"), "plain");
    }
}
