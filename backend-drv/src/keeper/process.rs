//! The keeper as a process of its own, for daemons that systemd does not look after.
//!
//! The daemon starts it, in a session of its own, with the listening socket as standard input. One daemon at a
//! time speaks to it, in messages of one line and at most one descriptor:
//!
//! | message | meaning |
//! |---|---|
//! | `PUT name` and a descriptor | hold it |
//! | `DROP name` | close it |
//! | `TAKE` | answer with an `ITEM name` and a descriptor for each, then `END` |
//! | `BYE` | end |
//!
//! It ends when it is told so, or when no daemon has come back for a minute. Programs that wait for one are told
//! then.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rdma_core::reason::Reason;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::estate::Estate;
use super::{Item, NAME_MAX};
use crate::packet::{self, Inbox};
use crate::{identity, privileges};

/// How long the keeper waits for a daemon to come back.
const PATIENCE: Duration = Duration::from_secs(60);
/// Environment variable: so many milliseconds instead, for tests.
const PATIENCE_MS: &str = "VIADUCT_KEEPER_PATIENCE_MS";
/// How long either waits for the other to read or to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How often a daemon tries to find or make its keeper, and the pause in between.
const OPEN_TRIES: usize = 3;
const OPEN_PAUSE: Duration = Duration::from_millis(20);
/// Descriptors that are kept.
const ITEMS_MAX: usize = 1 << 20;

/// The subcommand of viaductd that is the keeper.
pub const SUBCOMMAND: &str = "keeper";

/// The daemon's end of a connection with its keeper.
#[derive(Debug)]
pub(super) struct Line {
    socket: OwnedFd,
    /// The keeper has not read for as long as we wait. Nobody waits again before it has read: the daemon has programs
    /// to serve, and what is not kept costs them something only if the daemon is killed.
    is_behind: Cell<bool>,
}

impl Line {
    /// Connects to the keeper at `path`, started now if need be; and what it has kept.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Item>)> {
        for _ in 1..OPEN_TRIES {
            match Self::try_open(path) {
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
                    // It was about to end.
                    tracing::debug!(%error, "keeper");
                    std::thread::sleep(OPEN_PAUSE);
                }
                other => return other,
            }
        }
        Self::try_open(path)
    }

    fn try_open(path: &Path) -> io::Result<(Self, Vec<Item>)> {
        let socket = match connect(path) {
            Ok(socket) => socket,
            Err(Errno::NOENT | Errno::CONNREFUSED) => {
                start(path)?;
                connect(path)?
            }
            Err(error) => return Err(error.into()),
        };
        let own = rustix::process::geteuid().as_raw();
        if identity::peer_credentials(&socket)?.uid != own {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
        let line = Self::over(socket);
        let items = line.take()?;
        Ok((line, items))
    }

    const fn over(socket: OwnedFd) -> Self {
        Self {
            socket,
            is_behind: Cell::new(false),
        }
    }

    fn take(&self) -> io::Result<Vec<Item>> {
        self.say("TAKE", &[])?;
        let mut inbox = Inbox::new();
        let mut items = Vec::new();
        loop {
            wait(&[self.socket.as_fd()], Some(Instant::now() + ANSWER))?;
            let message = inbox.receive(&self.socket)?;
            let text = String::from_utf8_lossy(inbox.bytes(message.length));
            match (text.split_once(' '), message.fds.into_iter().next()) {
                (Some(("ITEM", name)), Some(fd)) => items.push((name.to_owned(), fd)),
                _ if text == "END" => return Ok(items),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    pub(super) fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.say(&format!("PUT {name}"), &[fd])
    }

    pub(super) fn drop(&self, name: &str) -> io::Result<()> {
        self.say(&format!("DROP {name}"), &[])
    }

    pub(super) fn finish(&self) {
        // If it is gone, that is what was wanted.
        let _ = self.say("BYE", &[]);
    }

    fn say(&self, text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = if self.is_behind.get() {
            packet::send(&self.socket, text.as_bytes(), fds)
        } else {
            packet::send_waiting(&self.socket, text.as_bytes(), fds)
        };
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.is_behind.set(sent.as_ref().is_err_and(is_full));
        sent
    }
}

fn seqpacket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let socket = seqpacket(SocketFlags::empty())?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Starts a keeper that listens at `path`.
fn start(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = seqpacket(SocketFlags::NONBLOCK)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&listener, 4)?;
    // It is nobody's child soon: whoever adopts it waits for it.
    Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .arg(path)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .map(drop)
}

/// The keeper: serves the listening socket at `path`, which is standard input, to the end.
///
/// # Errors
/// It cannot go on; everything is lost.
pub fn run(path: &Path) -> io::Result<()> {
    // Whoever ends the daemon's session does not mean us.
    if let Err(error) = nix::unistd::setsid() {
        tracing::debug!(%error, "setsid");
    }
    privileges::raise_descriptor_limit();
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let inode = || std::fs::symlink_metadata(path).map(|file| file.ino()).ok();
    let own = inode();
    let patience = std::env::var(PATIENCE_MS).ok();
    let patience = patience.and_then(|text| text.parse().ok());
    let result = serve(&listener, patience.map_or(PATIENCE, Duration::from_millis));
    // Somebody may have put another keeper there meanwhile.
    if own.is_some() && inode() == own {
        let _ = std::fs::remove_file(path);
    }
    result
}

/// What is kept, by name.
type Shelf = HashMap<String, OwnedFd>;

fn serve(listener: &OwnedFd, patience: Duration) -> io::Result<()> {
    let mut shelf = Shelf::new();
    let mut inbox = Inbox::new();
    let mut daemon: Option<OwnedFd> = None;
    let mut until = Some(Instant::now() + patience);
    loop {
        let sources: Vec<BorrowedFd<'_>> = std::iter::once(listener)
            .chain(&daemon)
            .map(AsFd::as_fd)
            .collect();
        match wait(&sources, until) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Estate::of(shelf.into_iter().collect()).abandon(Reason::LinkReset);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        if let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
            // What the one before has said, though it is dead by now.
            if let Some(old) = &daemon
                && let Obeyed::Bye = obey(old, &mut inbox, &mut shelf)
            {
                shelf.clear();
            }
            daemon = Some(socket);
            until = None;
        }
        let Some(socket) = &daemon else { continue };
        match obey(socket, &mut inbox, &mut shelf) {
            Obeyed::More => {}
            Obeyed::Left => {
                daemon = None;
                until = Some(Instant::now() + patience);
            }
            Obeyed::Bye => return Ok(()),
        }
    }
}

enum Obeyed {
    More,
    Left,
    Bye,
}

/// Works off what the daemon has said.
fn obey(socket: &OwnedFd, inbox: &mut Inbox, shelf: &mut Shelf) -> Obeyed {
    loop {
        let message = match inbox.receive(socket) {
            Ok(message) if message.length > 0 => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Obeyed::More,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            _ => return Obeyed::Left,
        };
        let text = String::from_utf8_lossy(inbox.bytes(message.length)).into_owned();
        let (verb, name) = text.split_once(' ').unwrap_or((&text, ""));
        match (verb, message.fds.into_iter().next()) {
            ("PUT", Some(fd)) if name.len() <= NAME_MAX && shelf.len() < ITEMS_MAX => {
                shelf.insert(name.to_owned(), fd);
            }
            ("DROP", _) => {
                shelf.remove(name);
            }
            ("TAKE", _) => {
                let all = shelf.iter().try_for_each(|(name, fd)| {
                    let text = format!("ITEM {name}");
                    packet::send_waiting(socket, text.as_bytes(), &[fd.as_fd()])
                });
                if all
                    .and_then(|()| packet::send_waiting(socket, b"END", &[]))
                    .is_err()
                {
                    return Obeyed::Left;
                }
            }
            ("BYE", _) => return Obeyed::Bye,
            _ => {}
        }
    }
}

/// Waits until one of `sources` has something.
fn wait(sources: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let mut entries: Vec<_> = sources
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    loop {
        let left = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match nix::poll::poll(&mut entries, left.unwrap_or(PollTimeout::NONE)) {
            Ok(0) if until.is_some_and(|until| Instant::now() >= until) => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(text: &[u8]) -> OwnedFd {
        let fd = crate::shared::sealed_memory("test", 8).unwrap();
        rustix::io::pwrite(&fd, text, 0).unwrap();
        fd
    }

    #[test]
    fn what_is_put_is_there_for_the_next_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k");
        let listener = seqpacket(SocketFlags::NONBLOCK).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        let keeper = std::thread::spawn(move || serve(&listener, Duration::from_secs(20)));
        let (line, items) = Line::open(&path).unwrap();
        assert!(items.is_empty());
        for name in ["one", "two", "three"] {
            line.put(name, memory(name.as_bytes()).as_fd()).unwrap();
        }
        line.drop("two").unwrap();
        line.put("one", memory(b"again").as_fd()).unwrap();
        drop(line);
        let (line, items) = Line::open(&path).unwrap();
        let mut items: Vec<_> = items
            .iter()
            .map(|(name, fd)| {
                let mut text = [0; 8];
                rustix::io::pread(fd, &mut text, 0).unwrap();
                (name.as_str(), text)
            })
            .collect();
        items.sort_unstable();
        let expected = [("one", *b"again\0\0\0"), ("three", *b"three\0\0\0")];
        assert_eq!(items, expected);
        // One that ends in order, and another that comes before the keeper knows.
        line.finish();
        if let Ok((line, items)) = Line::try_open(&path) {
            assert!(items.is_empty());
            line.finish();
        }
        keeper.join().unwrap().unwrap();
    }

    #[test]
    fn a_keeper_that_does_not_read_is_waited_for_once() {
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::empty(),
            None,
        )
        .unwrap();
        set_socket_timeout(&near, Timeout::Send, Some(Duration::from_millis(20))).unwrap();
        let line = Line::over(near);
        let taken = (0..100_000)
            .take_while(|number| line.drop(&number.to_string()).is_ok())
            .count();
        assert!(line.is_behind.get());
        // With the socket's own timeout it would wait for ever now.
        set_socket_timeout(&line.socket, Timeout::Send, None).unwrap();
        let error = line.drop("more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut inbox = Inbox::new();
        for number in 0..taken {
            let message = inbox.receive(&far).unwrap();
            let expected = format!("DROP {number}");
            assert_eq!(inbox.bytes(message.length), expected.as_bytes());
        }
        line.drop("again").unwrap();
        assert!(!line.is_behind.get());
    }

    #[test]
    fn a_keeper_that_nobody_comes_back_to_ends() {
        let directory = tempfile::tempdir().unwrap();
        let listener = seqpacket(SocketFlags::NONBLOCK).unwrap();
        let path = directory.path().join("k");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 4).unwrap();
        serve(&listener, Duration::from_millis(1)).unwrap();
    }
}
