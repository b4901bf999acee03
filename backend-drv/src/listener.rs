//! The daemon's socket: making it where nobody else listens, and telling others that it is there.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// See [`take_turn`].
const TURN_TRIES: usize = 50;
const TURN_PAUSE: Duration = Duration::from_millis(10);

/// The listening socket; the file goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    inode: u64,
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("{}: another daemon is listening there; stop it or use --socket PATH", .0.display())]
    InUse(PathBuf),
    /// There is a file of another kind.
    #[error("{}: exists and is not a socket; remove it or use --socket PATH", .0.display())]
    Occupied(PathBuf),
    /// Anything else.
    #[error("{}: {what}: {source}", .path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// Doing what.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Who may connect.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Permissions of the socket.
    pub mode: u32,
    /// Its group.
    pub group: Option<Gid>,
    /// Permissions of its directory, if that has to be made.
    pub directory_mode: u32,
    /// Owner of its directory, if that has to be made: who is to remove the socket at the end.
    pub directory_owner: Option<Uid>,
}

impl Listener {
    /// Listens at `path`. A socket that nobody answers at is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path, access: &Access) -> Result<Self, ListenError> {
        let failed = |what: &'static str| {
            let path = path.to_owned();
            move |error: io::Error| ListenError::System {
                path,
                what,
                source: error,
            }
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        make_directory(directory, access).map_err(failed("making the directory"))?;
        let _turn = take_turn(directory);
        remove_stale(path)?;
        let socket = Self::listen(path, access).map_err(failed("listening"))?;
        let inode = std::fs::symlink_metadata(path)
            .map_err(failed("looking at the socket"))?
            .ino();
        Ok(Self {
            socket,
            path: path.to_owned(),
            inode,
        })
    }

    fn listen(path: &Path, access: &Access) -> io::Result<OwnedFd> {
        let socket = seqpacket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Nobody can connect before `listen`.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode))?;
        if let Some(group) = access.group {
            nix::unistd::chown(path, None, Some(group))?;
        }
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// Accepts one connection.
    ///
    /// # Errors
    /// What accept says; `WouldBlock` if nobody waits.
    pub fn accept(&self) -> rustix::io::Result<OwnedFd> {
        rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    /// The socket itself.
    pub fn socket(&self) -> impl AsFd + '_ {
        &self.socket
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have replaced it meanwhile; that is theirs.
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket stays behind");
        }
    }
}

fn seqpacket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

fn make_directory(directory: &Path, access: &Access) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new()
        .mode(access.directory_mode)
        .create(directory)
    {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    if let Some(owner) = access.directory_owner {
        nix::unistd::chown(directory, Some(owner), None)?;
    }
    Ok(())
}

/// Two daemons that start at once go one after the other. Others can lock a directory too, for
/// ever: so this is given up after a while.
fn take_turn(directory: &Path) -> Option<std::fs::File> {
    let turn = std::fs::File::open(directory).ok()?;
    for _ in 0..TURN_TRIES {
        if rustix::fs::flock(&turn, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Some(turn);
        }
        std::thread::sleep(TURN_PAUSE);
    }
    None
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ListenError::Occupied(path.to_owned()));
        }
        Ok(_) => {}
    }
    let answer = seqpacket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).and_then(|socket| {
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(())
    });
    match answer {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| ListenError::System {
                path: path.to_owned(),
                what: "removing the socket that nobody answers at",
                source,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Connected, or too busy to, or another kind of socket that is alive.
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

/// Tells the one who waits for it that the socket is there: a byte into `pipe`.
///
/// # Errors
/// Nobody reads.
pub fn announce(pipe: OwnedFd) -> io::Result<()> {
    std::fs::File::from(pipe).write_all(b"1")
}

/// Tells systemd, if it started us: `READY=1`, `STOPPING=1`.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let bytes = path.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, state, "NOTIFY_SOCKET");
    }
}
