//! A daemon under test.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Program, Tool};

/// Ends a test that would otherwise hang; nothing is expected to take that long.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);

pub(crate) const VIADUCTD: &str = env!("CARGO_BIN_EXE_viaductd");

/// A daemon of our own.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    log: Receiver<String>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    /// A daemon with the built-in configuration.
    pub(crate) fn start() -> Self {
        Self::with_config("")
    }

    /// A daemon with `config`.
    pub(crate) fn with_config(config: &str) -> Self {
        Self::under(&[], config, "debug")
    }

    /// A daemon that is started by `wrapper`, with `config` and logging `log`.
    pub(crate) fn under(wrapper: &[&str], config: &str, log: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users connect too.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), everybody).unwrap();
        let socket = directory.path().join("d.sock");
        let file = directory.path().join("viaductd.toml");
        std::fs::write(&file, config).unwrap();
        let mut words = wrapper.iter().copied().chain([VIADUCTD]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(["--log", log, "--ready-fd", "1", "--socket"])
            .arg(&socket)
            .arg("--config")
            .arg(&file);
        Self::spawn(command, socket, directory)
    }

    /// `viaductd --embedded`.
    pub(crate) fn embedded() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("new").join("d.sock");
        let mut command = Command::new(VIADUCTD);
        command
            .args(["--embedded", "--ready-fd", "1", "--socket"])
            .arg(&socket);
        Self::spawn(command, socket, directory)
    }

    fn spawn(mut command: Command, socket: PathBuf, directory: tempfile::TempDir) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (lines, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { return };
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let mut ready = [0; 1];
        let mut stdout = child.stdout.take().unwrap();
        if stdout.read_exact(&mut ready).is_err() {
            let log: Vec<_> = log.iter().collect();
            panic!("the daemon did not start: {log:#?}");
        }
        Self {
            child,
            socket,
            log,
            _directory: directory,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the daemon goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it by `signal` and returns its exit code.
    pub(crate) fn stop(&mut self, signal: Signal) -> Option<i32> {
        kill(self.pid(), signal).unwrap();
        self.wait()
    }

    /// Lines logged so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    /// Descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// A report, as the tools get it.
    pub(crate) fn report(&self, what: u32, session: u64) -> serde_json::Value {
        Tool::connect(&self.socket).ask(what, session)
    }

    /// A program that has said HELLO.
    pub(crate) fn program(&self) -> Program {
        Program::hello(&self.socket, 0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            std::thread::sleep(Duration::from_millis(50));
            eprintln!("daemon's log:\n{}", self.log().join("\n"));
        }
    }
}

/// Waits until `condition` gives something; for what the daemon does without saying so.
pub(crate) fn retry<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never happened");
        std::thread::sleep(Duration::from_millis(1));
    }
}
