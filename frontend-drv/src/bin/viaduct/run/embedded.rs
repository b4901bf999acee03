//! A daemon of this user's own, shared by all `viaduct run` of the user, which leaves by itself after
//! its last client.
//!
//! Who finds none starts one. Two locks make that free of races: the *start lock* is held while
//! looking and starting; the *life lock* is handed to the daemon, which holds it, without knowing, to
//! the very end of its process. So a daemon that is about to leave is waited for before its socket's
//! path is used again.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use crate::daemon::{Daemon, EMBEDDED_SOCKETS};
use crate::query::QueryError;
use crate::{locate, runtime_dir};

/// Finds this user's embedded daemon or starts it. It stays for as long as the result is held.
pub(super) fn ensure() -> Result<Daemon> {
    let dir = runtime_dir::ensure()?;
    for socket in EMBEDDED_SOCKETS {
        if let Some(daemon) = Place::new(&dir, socket).ensure()? {
            return Ok(daemon);
        }
    }
    bail!(
        "every place for a daemon in {} is taken by one that cannot be used: end those viaductd",
        dir.display()
    )
}

/// The files of one embedded daemon.
#[derive(Debug)]
struct Place {
    socket: PathBuf,
    start_lock: PathBuf,
    life_lock: PathBuf,
    log: PathBuf,
}

impl Place {
    fn new(dir: &Path, socket: &str) -> Self {
        let socket = dir.join(socket);
        Self {
            start_lock: dir.join("lock"),
            life_lock: socket.with_extension("lock"),
            log: socket.with_extension("log"),
            socket,
        }
    }

    /// None if a daemon is here that cannot be used: one from before an upgrade, with programs that
    /// still need it, or one whose socket somebody has removed.
    fn ensure(&self) -> Result<Option<Daemon>> {
        let Some(_starting) = lock(&self.start_lock, START_PATIENCE * 2)? else {
            bail!(
                "{} is locked: a viaduct run hangs, end it",
                self.start_lock.display()
            );
        };
        let socket = self.socket.display();
        match Daemon::reach(&self.socket) {
            Ok(daemon) => return Ok(Some(daemon)),
            Err(error) if error.is_absent() => tracing::info!("{socket}: {error}"),
            Err(error @ QueryError::Version(_)) => {
                tracing::info!("{socket}: {error}");
                return Ok(None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("embedded daemon at {socket}"));
            }
        }
        let Some(life) = lock(&self.life_lock, LEAVE_PATIENCE)? else {
            tracing::info!("{socket}: its daemon lives, but does not answer there");
            return Ok(None);
        };
        self.start(&life)?;
        let daemon = Daemon::reach(&self.socket).with_context(|| {
            let log = self.log.display();
            format!("the embedded daemon does not answer at {socket}, see {log}")
        })?;
        Ok(Some(daemon))
    }

    /// Starts the daemon and waits until it is ready.
    fn start(&self, life: &File) -> Result<()> {
        let program = locate::daemon_program()?;
        let log = self.open_log()?;
        let (ready, ready_in_daemon) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let mut command = Command::new(&program);
        command
            .arg("--embedded")
            .arg("--socket")
            .arg(&self.socket)
            .arg("--ready-fd")
            .arg(ready_in_daemon.as_raw_fd().to_string())
            // What is preloaded into programs is not meant for the daemon.
            .env_remove("LD_PRELOAD")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot copy a descriptor")?)
            .stderr(log);
        let child =
            crate::launch::spawn_detached(&mut command, [ready_in_daemon.as_fd(), life.as_fd()])
                .with_context(|| format!("cannot run {}", program.display()))?;
        drop(ready_in_daemon);
        tracing::info!(program = %program.display(), pid = child.id(), "started embedded daemon");
        self.await_ready(ready, child)
    }

    /// The daemon writes a byte when it listens; the end of the pipe without one is its end.
    fn await_ready(&self, ready: OwnedFd, mut child: Child) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        let mut byte = [0];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut entries = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
            match poll(&mut entries, left) {
                Ok(0) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for the embedded daemon"),
                Ok(_) => {}
            }
            return match File::from(ready).read(&mut byte) {
                Ok(1) => Ok(()),
                _ => {
                    let status = child.wait().context("waiting for the embedded daemon")?;
                    bail!(
                        "the embedded daemon did not start ({status}){}",
                        self.last_words()
                    )
                }
            };
        }
        bail!(
            "the embedded daemon was not ready within {} s{}",
            START_PATIENCE.as_secs(),
            self.last_words()
        )
    }

    /// The log, emptied when it has grown too long to be read.
    fn open_log(&self) -> Result<File> {
        let long = fs::metadata(&self.log).is_ok_and(|meta| meta.len() > LOG_MAX_BYTES);
        private(&self.log, |options| options.append(true))
            .and_then(|log| {
                if long {
                    log.set_len(0).map(|()| log)
                } else {
                    Ok(log)
                }
            })
            .with_context(|| format!("cannot open {}", self.log.display()))
    }

    /// The last line of the log, and where there are more.
    fn last_words(&self) -> String {
        let log = self.log.display();
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
            file.read_to_end(&mut text)
        });
        let text = String::from_utf8_lossy(&text);
        match (read, text.trim_end().lines().last()) {
            (Ok(_), Some(line)) => format!(": {line} ({log})"),
            _ => format!(", see {log}"),
        }
    }
}

/// Takes a lock, waiting for `patience` at most; none if somebody else still holds it then. It is the
/// open file that holds the lock: closing our copy does not free it while a daemon has one.
fn lock(path: &Path, patience: Duration) -> Result<Option<File>> {
    let name = path.display();
    let file = private(path, |options| options.write(true))
        .with_context(|| format!("cannot open {name}"))?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {name}"));
            }
        }
    }
}

/// Opens or makes a file that only its owner can read, never through a link.
fn private(path: &Path, how: impl Fn(&mut OpenOptions) -> &mut OpenOptions) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits());
    how(&mut options).open(path)
}

/// How long a daemon may take to listen; a loaded machine can take seconds.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How long a daemon without clients may take to leave.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(5);
const LOG_MAX_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_and_then_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path, Duration::ZERO).unwrap();
        assert!(held.is_some());
        assert!(lock(&path, Duration::from_millis(20)).unwrap().is_none());
        drop(held);
        assert!(lock(&path, Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn files_are_not_opened_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("target"), &link).unwrap();
        assert!(private(&link, |options| options.write(true)).is_err());
    }
}
