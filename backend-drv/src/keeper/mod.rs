//! What outlives the daemon: descriptors under names, held by somebody else.
//!
//! That is systemd where it started us (its file descriptor store), else a process of our own, the
//! [`process`]. A daemon that was killed leaves everything there that its relayed connections need, and the next
//! one goes on with them: the [`record`]s, which say what is what, the memory of connections and of waiting
//! programs, their doorbells, and what tells that a program has ended.

pub mod estate;
pub mod process;
pub mod record;
mod systemd;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Longest name.
const NAME_MAX: usize = 48;

/// A descriptor that was kept, and its name.
pub type Item = (String, OwnedFd);

/// Somebody who holds descriptors.
#[derive(Debug)]
enum Holder {
    Process(process::Line),
    Systemd,
}

/// The daemon's side.
#[derive(Debug)]
pub struct Keeper {
    holder: Holder,
    names: BTreeSet<String>,
}

impl Keeper {
    /// Finds who keeps for the daemon at `socket`, or makes one; and what he has kept so far.
    ///
    /// # Errors
    /// There is nobody, nor can there be.
    pub fn open(socket: &Path) -> io::Result<(Self, Vec<Item>)> {
        let (holder, items) = if std::env::var_os("NOTIFY_SOCKET").is_some() {
            (Holder::Systemd, systemd::inherited()?)
        } else {
            let (line, items) = process::Line::open(&beside(socket))?;
            (Holder::Process(line), items)
        };
        let names = items.iter().map(|(name, _)| name.clone()).collect();
        Ok((Self { holder, names }, items))
    }

    /// The same, but a process of our own whoever started us. `is_there`: only if it is there already.
    ///
    /// # Errors
    /// As for [`Keeper::open`].
    pub fn open_own(socket: &Path, is_there: bool) -> io::Result<Option<(Self, Vec<Item>)>> {
        let path = beside(socket);
        if is_there && !path.exists() {
            return Ok(None);
        }
        let (line, items) = process::Line::open(&path)?;
        let names = items.iter().map(|(name, _)| name.clone()).collect();
        let holder = Holder::Process(line);
        Ok(Some((Self { holder, names }, items)))
    }

    /// Whether there is somebody who may have kept something for the daemon at `socket`.
    pub fn may_have_kept(socket: &Path) -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some() || beside(socket).exists()
    }

    /// Has a descriptor kept. Another one of that name is kept no more.
    pub fn keep(&mut self, name: &str, fd: impl AsFd) {
        if self.names.contains(name) {
            self.forget(name);
        }
        let kept = match &self.holder {
            Holder::Process(line) => line.put(name, fd.as_fd()),
            Holder::Systemd => systemd::put(name, fd.as_fd()),
        };
        match kept {
            Ok(()) => {
                self.names.insert(name.to_owned());
            }
            Err(error) => tracing::warn!(name, %error, "not kept for a restart"),
        }
    }

    /// Whether a descriptor of that name is kept.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// A descriptor need not be kept any more.
    pub fn forget(&mut self, name: &str) {
        if !self.names.remove(name) {
            return;
        }
        let forgotten = match &self.holder {
            Holder::Process(line) => line.drop(name),
            Holder::Systemd => systemd::drop(name),
        };
        if let Err(error) = forgotten {
            tracing::warn!(name, %error, "kept for longer than need be");
        }
    }

    /// None of the descriptors whose names begin so need be kept any more.
    pub fn forget_all(&mut self, beginning: &str) {
        let of_those = self.names.range(beginning.to_owned()..);
        let found = of_those.take_while(|name| name.starts_with(beginning));
        for name in found.cloned().collect::<Vec<_>>() {
            self.forget(&name);
        }
    }

    /// The daemon ends in order: nothing is to be gone on with.
    pub fn finish(mut self) {
        match &self.holder {
            Holder::Process(line) => line.finish(),
            Holder::Systemd => self.forget_all(""),
        }
    }
}

impl Keeper {
    /// The daemon ends in order, but what these names begin is gone on with.
    pub fn finish_but(mut self, beginning: &str) {
        let others = self
            .names
            .iter()
            .filter(|name| !name.starts_with(beginning));
        for name in others.cloned().collect::<Vec<_>>() {
            self.forget(&name);
        }
    }
}

/// Where the keeper of the daemon at `socket` listens.
pub fn beside(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".keeper");
    path.into()
}
