//! Plays a sequence: starts the agents, tells them one call after the other, and writes down what each
//! did. The process that plays is not accelerated and holds no socket of the connection.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::model::{Model, Topology};
use super::operation::{Call, DupBy, Operation, Side};
use super::text::named;
use crate::rig::build;
use crate::rig::daemon::Daemon;
use crate::sys;

named! {
    /// When the connection leaves TCP.
    pub enum Mode {
        /// Before the sequence begins.
        Before = "before",
        /// At some point of the sequence: after a few calls.
        During = "during",
        /// Not at all.
        Never = "never",
    }
}

impl Mode {
    /// VIADUCT_UPGRADE_AFTER.
    #[must_use]
    pub const fn upgrade_after(self) -> &'static str {
        match self {
            Self::Before => "0",
            Self::During => "5",
            Self::Never => "4000000000",
        }
    }
}

/// How a sequence is played.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The program that is an agent when called with `agent`.
    pub program: PathBuf,
    /// Where the two ends live.
    pub topology: Topology,
    /// When the connection leaves TCP.
    pub mode: Mode,
    /// The library and its environment; without it the play is plain.
    pub library: Option<(PathBuf, Vec<(String, OsString)>)>,
}

/// The library under test and its environment, for [`Stage::library`].
#[must_use]
pub fn accelerated(daemon: &Daemon) -> (PathBuf, Vec<(String, OsString)>) {
    let environment = vec![
        ("VIADUCT_SOCKET".to_owned(), daemon.socket().into()),
        ("VIADUCT_PEERS".to_owned(), "127.0.0.0/8".into()),
    ];
    (build::library(), environment)
}

/// What was written down.
#[derive(Debug, Default)]
pub struct Script {
    /// One line for each call.
    pub lines: Vec<String>,
    /// Why the play ended early, if the agents did not do what they always must.
    pub failure: Option<String>,
    /// Operations that were played; others could not be.
    pub played: Vec<usize>,
    /// Operations before which the connection did not become quiet in time.
    pub restless: Vec<usize>,
}

impl Script {
    /// The first line that two plays of one sequence disagree on, and what they say there; `None` if
    /// there is none.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<(usize, String)> {
        let ends = |script: &Self| {
            let mut lines = script.lines.clone();
            lines.extend(script.failure.iter().map(|why| format!("({why})")));
            lines
        };
        let (plain, other) = (ends(self), ends(other));
        let at = (0..plain.len().max(other.len())).find(|at| plain.get(*at) != other.get(*at))?;
        let said = |lines: &[String]| lines.get(at).cloned().unwrap_or("(nothing)".to_owned());
        Some((
            at,
            format!("plain: {}\nother: {}", said(&plain), said(&other)),
        ))
    }
}

/// A call that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection is given to become quiet. The kernel holds corked bytes for 200 ms.
const SETTLING: Duration = Duration::from_millis(600);

/// Messages exchanged to warm up, and times that the kernel's counts are looked at afterwards.
const WARM_ROUNDS: usize = 30;
const WARM_LOOKS: usize = 2000;

/// TCP states in which the far end's FIN has come.
const CLOSE: u8 = 7;
const AFTER_FIN: [u8; 5] = [6, CLOSE, 8, 9, 11];

/// TCP states in which a FIN is on its way.
const PASSING: [u8; 3] = [4, 9, 11];

/// Plays `operations` on `stage`.
#[must_use]
pub fn play(stage: &Stage, operations: &[Operation]) -> Script {
    let mut script = Script::default();
    let failure = Play::start(stage).and_then(|mut play| play.all(operations, &mut script));
    script.failure = failure.err();
    script
}

struct Agent {
    process: Child,
    to: UnixStream,
    from: BufReader<UnixStream>,
}

struct Play<'a> {
    stage: &'a Stage,
    agents: Vec<Agent>,
    model: Model,
    port: u64,
}

/// The kernel's counts of one end: state, written, received, queued.
type Counts = Option<[u64; 4]>;

impl<'a> Play<'a> {
    fn start(stage: &'a Stage) -> Result<Self, String> {
        let wanted = match stage.topology {
            Topology::Single => 1,
            Topology::Processes => 2,
        };
        let agents: Result<Vec<_>, _> = (0..wanted).map(|_| Agent::start(stage)).collect();
        let mut play = Self {
            stage,
            agents: agents.map_err(|error| error.to_string())?,
            model: Model::new(stage.topology),
            port: 0,
        };
        play.port = play.ask(Side::B, "listen")?.0;
        play.connect()?;
        Ok(play)
    }

    fn agent(&mut self, side: Side) -> &mut Agent {
        let last = self.agents.len() - 1;
        let index = if side == Side::A { 0 } else { last };
        &mut self.agents[index]
    }

    fn tell(&mut self, side: Side, what: &str) -> Result<(), String> {
        self.agent(side).tell(&format!("{side} {what}\n"))
    }

    fn ask(&mut self, side: Side, what: &str) -> Result<(u64, String), String> {
        self.tell(side, what)?;
        self.agent(side).hear()
    }

    /// As [`Self::ask`], for what must go well.
    fn must(&mut self, side: Side, what: &str) -> Result<(), String> {
        match self.ask(side, what)? {
            (_, text) if text.is_empty() => Ok(()),
            (_, text) => Err(format!("{side} {what}: {text}")),
        }
    }

    fn connect(&mut self) -> Result<(), String> {
        let port = self.port;
        self.must(Side::A, &format!("connect {port}"))?;
        self.must(Side::B, "accept")?;
        let is_plain = self.stage.library.is_none();
        if is_plain || self.stage.mode != Mode::Before {
            for side in [Side::A, Side::B] {
                self.must(side, "open_window 1")?;
                self.must(side.other(), "open_window 0")?;
            }
        }
        if self.stage.mode == Mode::Before {
            self.warm_up()?;
        }
        self.settle()
            .then_some(())
            .ok_or_else(|| "never quiet".to_owned())
    }

    /// Exchanges messages until they do not go through the kernel any more (in a plain play: a few).
    fn warm_up(&mut self) -> Result<(), String> {
        for _ in 0..WARM_ROUNDS {
            self.rally()?;
        }
        if self.stage.library.is_none() {
            return Ok(());
        }
        for _ in 0..WARM_LOOKS {
            let before = self.counts()?;
            self.rally()?;
            if self.counts()? == before {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err("the connection never leaves TCP".to_owned())
    }

    fn rally(&mut self) -> Result<(), String> {
        for side in [Side::A, Side::B] {
            self.must(side, "throw")?;
            self.must(side.other(), "catch")?;
        }
        Ok(())
    }

    fn counts(&mut self) -> Result<[Counts; 2], String> {
        let mut both = [None; 2];
        for (counts, side) in both.iter_mut().zip([Side::A, Side::B]) {
            let (_, text) = self.ask(side, "counts")?;
            let mut numbers = text.split(' ').map(|word| word.parse().ok());
            let mut next = || numbers.next().flatten();
            *counts = next().and_then(|state| Some([state, next()?, next()?, next()?]));
        }
        Ok(both)
    }

    /// Waits until nothing is under way in the kernel; false if that took too long.
    fn settle(&mut self) -> bool {
        let started = Instant::now();
        let mut pause = Duration::from_micros(20);
        while let Ok(counts) = self.counts() {
            if self.is_quiet(&counts) {
                return true;
            }
            if started.elapsed() > SETTLING {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
        false
    }

    fn is_quiet(&self, [a, b]: &[Counts; 2]) -> bool {
        let is_closed = |end: &[u64; 4]| end[0] == u64::from(CLOSE);
        let alone = |end: &[u64; 4]| {
            let fin = AFTER_FIN.iter().any(|state| end[0] == u64::from(*state));
            is_closed(end) || (fin && end[3] == 0 && !self.model.is_reset)
        };
        // A FIN that is not acknowledged yet.
        let in_passing = |end: &[u64; 4]| PASSING.iter().any(|state| end[0] == u64::from(*state));
        if [a, b].into_iter().flatten().any(in_passing) {
            return false;
        }
        match (a, b) {
            (Some(a), Some(b)) if is_closed(a) || is_closed(b) => is_closed(a) && is_closed(b),
            (Some(a), Some(b)) => a[1] == b[2] && b[1] == a[2] && !self.model.is_reset,
            // Held by a process that waits, and so not seen.
            (Some(end), None) => !self.model.is_gone(Side::B) || alone(end),
            (None, Some(end)) => !self.model.is_gone(Side::A) || alone(end),
            (None, None) => true,
        }
    }

    fn all(&mut self, operations: &[Operation], script: &mut Script) -> Result<(), String> {
        for (number, operation) in operations.iter().enumerate() {
            let Some(call) = self.model.admit(*operation) else {
                continue;
            };
            let side = operation.side;
            script.played.push(number);
            if !self.model.is_blind(&call) && !self.settle() {
                script.restless.push(number);
            }
            let said = self
                .one(side, call)
                .map_err(|error| format!("{number} {side}.{call}: {error}"))?;
            script
                .lines
                .push(format!("{number:02} {side}.{call} = {said}"));
        }
        Ok(())
    }

    fn one(&mut self, side: Side, call: Call) -> Result<String, String> {
        let position = self.model.position(side, &call);
        let (moved, said) = match call {
            Call::Reconnect => {
                for side in [Side::A, Side::B] {
                    self.must(side, "close_all")?;
                }
                self.model = Model::new(self.stage.topology);
                self.connect()?;
                (0, "connected".to_owned())
            }
            Call::Revoke => {
                self.revoke()?;
                (0, "revoked".to_owned())
            }
            Call::Pour { at, len } => self.pour(side, at, len as u64)?,
            Call::Fill { at } => self.fill(side, at)?,
            _ => self.ask(side, &format!("do {position} {call}"))?,
        };
        let good = said.starts_with("ok") || said == "forked";
        self.model.note(side, call, moved, good);
        if matches!(
            call,
            Call::Revoke
                | Call::Dup {
                    by: DupBy::Passed,
                    ..
                }
        ) {
            // What lies unread is sent once more by an end that does something.
            for side in [Side::A, Side::B, Side::A] {
                self.must(side, "look")?;
            }
        }
        if self.stage.mode == Mode::During && self.stage.library.is_some() {
            // For the daemon's answers, so that they come at the same call in every play.
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(said)
    }

    fn revoke(&self) -> Result<(), String> {
        let Some((_, environment)) = &self.stage.library else {
            return Ok(());
        };
        let told = Command::new(build::viaduct())
            .args(["revoke", "--all"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .output()
            .map_err(|error| error.to_string())?;
        let (status, stderr) = (told.status, String::from_utf8_lossy(&told.stderr));
        // 1: there was no such connection.
        let fine = status.code().is_some_and(|code| code < 2);
        fine.then_some(())
            .ok_or_else(|| format!("{status}: {stderr}"))
    }

    fn pour(&mut self, side: Side, at: usize, len: u64) -> Result<(u64, String), String> {
        let from = self.model.position(side, &Call::Fill { at });
        let far = self.model.any_place(side.other()).unwrap_or(0);
        if self.stage.topology == Topology::Single {
            return self.pour_alone(side, at, len);
        }
        self.tell(side.other(), &format!("drink {far} {from} {len}"))?;
        let (poured, said) = self.ask(side, &format!("pour {at} {from} {len}"))?;
        let (_, heard) = self.agent(side.other()).hear()?;
        Ok((poured, format!("{said}, {heard}")))
    }

    /// One process with both ends: as much at a time as surely fits.
    fn pour_alone(&mut self, side: Side, at: usize, len: u64) -> Result<(u64, String), String> {
        let from = self.model.position(side, &Call::Fill { at });
        let far = self.model.any_place(side.other()).unwrap_or(0);
        let mut done = 0;
        while done < len {
            let chunk = (len - done).min(50_000);
            let at_now = from + done;
            let (sent, poured) = self.ask(side, &format!("pour {at} {at_now} {chunk}"))?;
            let (got, drunk) = self.ask(side.other(), &format!("drink {far} {at_now} {chunk}"))?;
            if (sent, got) != (chunk, chunk) {
                return Ok((done + got, format!("after {done}: {poured}, {drunk}")));
            }
            done += chunk;
        }
        Ok((done, format!("poured {done}, drank {done}")))
    }

    /// How much fits is the business of whoever holds it; that all of it arrives is not.
    fn fill(&mut self, side: Side, at: usize) -> Result<(u64, String), String> {
        let from = self.model.position(side, &Call::Fill { at });
        let far = self.model.any_place(side.other()).unwrap_or(0);
        let (filled, _) = self.ask(side, &format!("fill {at} {from}"))?;
        let (got, heard) = self.ask(side.other(), &format!("drink {far} {from} {filled}"))?;
        if got != filled {
            return Ok((got, format!("of {filled}: {heard}")));
        }
        let enough = filled > 200_000;
        Ok((filled, format!("filled {enough}, drained")))
    }
}

impl Agent {
    fn start(stage: &Stage) -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let mut command = Command::new(&stage.program);
        command
            .arg("agent")
            .env_remove("LD_PRELOAD")
            .env("RUST_BACKTRACE", "0")
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        if let Some((library, environment)) = &stage.library {
            command.env("LD_PRELOAD", library);
            command.env("VIADUCT_UPGRADE_AFTER", stage.mode.upgrade_after());
            command.envs(environment.iter().map(|(name, value)| (name, value)));
        }
        Ok(Self {
            process: command.spawn()?,
            from: BufReader::new(ours.try_clone()?),
            to: ours,
        })
    }

    fn tell(&mut self, line: &str) -> Result<(), String> {
        self.to
            .write_all(line.as_bytes())
            .map_err(|error| format!("the agent does not listen: {error}"))
    }

    fn hear(&mut self) -> Result<(u64, String), String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => return Err(format!("the agent has left: {}", self.departure())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err("hangs".to_owned()),
            Err(error) => return Err(format!("the agent does not answer: {error}")),
        }
        let line = line.trim_end_matches('\n');
        let (moved, text) = line.split_once(' ').unwrap_or((line, ""));
        Ok((moved.parse().unwrap_or(0), text.to_owned()))
    }

    fn departure(&mut self) -> String {
        let status = self.process.wait();
        status.map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.to.shutdown(std::net::Shutdown::Both);
        sys::kill_group(self.process.id());
        let _ = self.process.wait();
    }
}
