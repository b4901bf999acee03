//! Memory that guests share, as the daemon hands it out, without the daemon.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use backend_drv::vm::server::Group;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::read;
use tempfile::TempDir;

use super::window::Window;

/// How long to wait for a member or a bell.
const PATIENCE: Duration = Duration::from_secs(30);

/// A region, its group, and the socket to which members connect.
#[derive(Debug)]
pub struct Region {
    /// Its members.
    pub group: Group,
    listener: UnixListener,
    directory: TempDir,
}

impl Region {
    /// A region of `bytes`, whose members have so many vectors.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(bytes: u64, vectors: u16) -> Result<Self> {
        let memory = memfd_create("region", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, bytes)?;
        let directory = tempfile::tempdir()?;
        Ok(Self {
            group: Group::new(Arc::new(memory), vectors)?,
            listener: UnixListener::bind(directory.path().join("socket"))?,
            directory,
        })
    }

    /// Where members connect.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Waits for one that connects, and takes it in.
    ///
    /// # Errors
    /// Nobody came.
    pub fn accept(&mut self) -> Result<u16> {
        if !waited(&self.listener, PATIENCE)? {
            bail!("nobody has joined");
        }
        let (socket, _) = self.listener.accept()?;
        let memory = self.group.region().clone();
        Ok(self.group.join(socket.into(), &memory)?)
    }

    /// The memory, mapped.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn window(&self) -> io::Result<Window> {
        let size = rustix::fs::fstat(self.group.region())?.st_size;
        Window::map(self.group.region(), usize::try_from(size).unwrap_or(0))
    }
}

/// A new eventfd.
///
/// # Errors
/// What eventfd(2) says.
pub fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Waits until `bell` rings, and takes it back. False if it does not.
///
/// # Errors
/// What poll(2) says.
pub fn rings(bell: impl AsFd) -> io::Result<bool> {
    Ok(waited(&bell, PATIENCE)? && read(&bell, &mut [0u8; 8]).is_ok())
}

/// Whether `bell` has not rung.
///
/// # Errors
/// What poll(2) says.
pub fn is_quiet(bell: impl AsFd) -> io::Result<bool> {
    Ok(!waited(bell, Duration::ZERO)?)
}

/// Whether `fd` is readable, at the latest after `limit`.
fn waited(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut entry = [PollFd::new(&fd, PollFlags::IN)];
    Ok(poll(&mut entry, Some(&limit))? == 1)
}
