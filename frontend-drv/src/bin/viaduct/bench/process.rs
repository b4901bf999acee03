//! Children with a time limit and a process group of their own: one that overstays is ended with
//! everything it started, and what it printed is kept.
//!
//! Output goes to files, not pipes: a grandchild that keeps a pipe open would make us wait for it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use super::interrupt;

/// A directory for logs and stats of children, removed at the end.
#[derive(Debug)]
pub(super) struct ScratchDir {
    path: PathBuf,
}

impl ScratchDir {
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        for attempt in 0..SCRATCH_ATTEMPTS {
            let path = parent.join(format!("viaduct-bench-{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot create {}", path.display()));
                }
            }
        }
        anyhow::bail!("no free name for a directory in {}", parent.display())
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "scratch directory left behind");
        }
    }
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    Exited,
    TimedOut,
    Interrupted,
}

/// A child that leads a process group; dropping it ends the group.
#[derive(Debug)]
pub(super) struct Group {
    child: Child,
    reaped: bool,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Group {
    /// Starts `command` without a stdin, its output going to `<log>.out` and `<log>.err`.
    pub(super) fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let (stdout, stderr) = (log.with_extension("out"), log.with_extension("err"));
        let open = |path: &Path| {
            File::create(path).with_context(|| format!("cannot create {}", path.display()))
        };
        command
            .stdin(Stdio::null())
            .stdout(open(&stdout)?)
            .stderr(open(&stderr)?)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            child,
            reaped: false,
            stdout,
            stderr,
        })
    }

    /// The child's process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sleeps until the child has ended, the limit is over, or a signal asks us to stop. The child
    /// is not reaped, so that its process group cannot pass to a stranger.
    pub(super) fn wait(&self, limit: Duration) -> Result<Waited> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch a child")?;
        let deadline = Instant::now() + limit;
        loop {
            if interrupt::caught() {
                return Ok(Waited::Interrupted);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Waited::TimedOut);
            }
            // Short naps close the gap between the look at the flag and the sleep.
            let nap = Timespec::try_from(left.min(NAP)).context("a nap is a valid time")?;
            let mut fds = [PollFd::new(&ended, PollFlags::IN)];
            match poll(&mut fds, Some(&nap)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(Waited::Exited),
                Err(error) => return Err(error).context("cannot wait for a child"),
            }
        }
    }

    /// Collects a child that has ended by itself.
    pub(super) fn reap(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("cannot collect a child")?;
        self.reaped = true;
        Ok(status)
    }

    /// Ends the whole group: politely, then, after a while, for certain.
    pub(super) fn stop(&mut self) {
        if self.reaped {
            return;
        }
        self.signal(Signal::SIGTERM);
        let patience = Instant::now() + TERM_PATIENCE;
        while Instant::now() < patience && !self.has_ended() {
            std::thread::sleep(NAP / 10);
        }
        self.signal(Signal::SIGKILL);
        if let Err(error) = self.reap() {
            tracing::warn!(%error, "a child could not be collected");
        }
    }

    pub(super) fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// Everything printed; netperf writes its errors to stdout.
    pub(super) fn output(&self) -> String {
        self.stdout() + &read_lossy(&self.stderr)
    }

    pub(super) fn has_ended(&self) -> bool {
        process_state(self.child.id()).is_none_or(|state| state == 'Z')
    }

    fn signal(&self, signal: Signal) {
        let Ok(id) = i32::try_from(self.child.id()) else {
            return;
        };
        // The child is not reaped yet, so the number still names our group. An error can only say
        // that nobody is left in it.
        let _ = killpg(Pid::from_raw(id), signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The state letter, which follows a name that may itself contain blanks and parentheses.
fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

/// Long enough for `viaduct run` to write its totals.
const TERM_PATIENCE: Duration = Duration::from_secs(3);
const NAP: Duration = Duration::from_millis(250);
const SCRATCH_ATTEMPTS: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Group, ScratchDir) {
        let scratch = ScratchDir::new().unwrap();
        let group = Group::spawn(Command::new("sh").args(["-c", script]), &scratch.file("sh"));
        (group.unwrap(), scratch)
    }

    #[test]
    fn output_and_status_of_a_child_are_kept() {
        let (mut group, _scratch) = shell("echo out; echo err >&2; exit 3");
        assert_eq!(group.wait(Duration::from_secs(60)).unwrap(), Waited::Exited);
        assert_eq!(group.reap().unwrap().code(), Some(3));
        assert_eq!(
            (group.stdout().as_str(), group.output().as_str()),
            ("out\n", "out\nerr\n")
        );
    }

    #[test]
    fn a_child_that_overstays_takes_its_own_children_with_it() {
        let (mut group, _scratch) = shell("trap '' TERM; sleep 1000 & echo $!; wait; wait; wait");
        while !group.stdout().ends_with('\n') {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(
            group.wait(Duration::from_millis(10)).unwrap(),
            Waited::TimedOut
        );
        let grandchild = group.stdout().trim().parse::<u32>().unwrap();
        assert!(process_state(grandchild).is_some());
        group.stop();
        // The grandchild may stay a zombie for as long as nobody collects it.
        // A killed process is there for a moment more.
        let gone = || process_state(grandchild).is_none_or(|state| state == 'Z');
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(gone());
    }

    #[test]
    fn the_scratch_directory_goes_away() {
        let path = {
            let scratch = ScratchDir::new().unwrap();
            fs::write(scratch.file("x"), "x").unwrap();
            scratch.file("")
        };
        assert!(!path.exists());
    }
}
