//! A private daemon.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::build;
use crate::counters::{self, Totals};

/// A running `viaductd` with a socket of its own; ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Starts one with the built-in configuration.
    ///
    /// # Panics
    /// If it does not start; its log is in the message.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the daemon");
        let child = spawn(directory.path());
        Self { child, directory }
    }

    /// Starts another on the same socket, after this one was killed.
    ///
    /// # Panics
    /// As [`Daemon::start`].
    pub fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(self.directory.path());
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("d.sock")
    }

    /// A directory that lives as long as the daemon.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it is not there any more.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed());
        kill(pid, signal).expect("signalling the daemon");
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("waiting for the daemon");
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it counted for a session.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn totals(&self, session: u64) -> Totals {
        counters::totals(&self.socket(), session).expect("the daemon's totals")
    }

    /// All it knows.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn status(&self) -> serde_json::Value {
        counters::status(&self.socket()).expect("the daemon's status")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(directory: &Path) -> Child {
    let log = directory.join("log");
    let open = || {
        File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the daemon's log")
    };
    // No configuration of this machine shall matter.
    let empty = directory.join("viaductd.toml");
    std::fs::write(&empty, "").expect("the daemon's configuration");
    let mut child = Command::new(build::viaductd())
        .arg("--config")
        .arg(&empty)
        .arg("--socket")
        .arg(directory.join("d.sock"))
        .args(["--log", "info", "--ready-fd", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(open())
        .spawn()
        .expect("starting viaductd");
    let mut ready = [0; 1];
    let told = child
        .stdout
        .take()
        .map(|mut pipe| pipe.read_exact(&mut ready));
    assert!(
        matches!(told, Some(Ok(()))),
        "the daemon did not start: {}",
        std::fs::read_to_string(&log).unwrap_or_default()
    );
    child
}
