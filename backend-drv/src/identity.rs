//! Who a client is, and whether the descriptors it sends are what they should be.
//!
//! None of these checks may wait for a client: a file system in user space could hold the daemon up
//! for ever with a single stat. So a descriptor is asked nothing that a file system would have to
//! answer before it is known to be the kernel's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::sockopt;
use once_cell::sync::Lazy;
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::slot::{ARENA_BYTES, ARENA_MAGIC};
use rdma_core::sync::Ordering;
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::net::AddressFamily;

use crate::broker::UserNamespace;
use crate::shared::{FINAL_SIZE, SlotArena};

/// Why a descriptor or a socket is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// HELLO: the first descriptor.
    #[error("the slot arena is not a memfd of {ARENA_BYTES} bytes with a final size")]
    NotAnArena,
    /// HELLO: the second descriptor.
    #[error("not a NETLINK_SOCK_DIAG socket")]
    NotSockDiag,
    /// CONTEXT.
    #[error("not an eventfd")]
    NotAnEventfd,
    /// REGISTER.
    #[error("not an O_PATH descriptor of a socket")]
    NotAPath,
    /// The kernel did not answer.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The other end of a control socket, at the time it connected.
#[derive(Clone, Copy, Debug)]
pub struct PeerCredentials {
    /// User, as this process's user namespace numbers it.
    pub uid: u32,
    /// Process, as this process's pid namespace numbers it; 0 if it is not visible there.
    pub pid: u32,
}

/// Who connected to us.
///
/// # Errors
/// What getsockopt says.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let credentials = nix::sys::socket::getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
    Ok(PeerCredentials {
        uid: credentials.uid(),
        pid: u32::try_from(credentials.pid()).unwrap_or(0),
    })
}

/// The user namespace of the process that connected to us.
///
/// A daemon without privileges may not look at the namespaces of other users' processes. It then
/// compares the mappings of users, which everybody may read: only root can make a namespace that maps
/// users as the daemon's own does.
pub fn user_namespace(socket: impl AsFd, peer: PeerCredentials) -> UserNamespace {
    if peer.pid == 0 || *OVERFLOW_USER == Some(peer.uid) {
        return UserNamespace::Unknown;
    }
    // Holds the process number for as long as we look. Before Linux 6.5 there is no such option.
    let holder = nix::sys::socket::getsockopt(&socket.as_fd(), sockopt::PeerPidfd);
    if matches!(holder, Err(error) if error != nix::errno::Errno::ENOPROTOOPT) {
        return UserNamespace::Unknown;
    }
    let namespace = match rustix::fs::stat(format!("/proc/{}/ns/user", peer.pid)) {
        Ok(theirs) => match *OWN_NAMESPACE {
            Some(own) if own == (theirs.st_dev, theirs.st_ino) => UserNamespace::Own,
            Some(_) => UserNamespace::Other(theirs.st_dev, theirs.st_ino),
            None => UserNamespace::Unknown,
        },
        Err(_) if maps_users_as_we_do(peer.pid) => UserNamespace::Own,
        Err(_) => UserNamespace::Unknown,
    };
    match holder {
        Ok(pidfd) if has_ended(pidfd.as_fd()) => UserNamespace::Unknown,
        _ => namespace,
    }
}

/// Device and inode of our own user namespace.
static OWN_NAMESPACE: Lazy<Option<(u64, u64)>> = Lazy::new(|| {
    let own = rustix::fs::stat("/proc/self/ns/user").ok()?;
    Some((own.st_dev, own.st_ino))
});

/// The number that stands for all users whom our user namespace has none for; `None` if it numbers
/// everybody.
static OVERFLOW_USER: Lazy<Option<u32>> = Lazy::new(|| {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let everybody = ["0", "0", "4294967295"];
    let numbers_all = read("/proc/self/uid_map").split_whitespace().eq(everybody);
    let overflow = read("/proc/sys/kernel/overflowuid").trim().parse();
    overflow.ok().filter(|_| !numbers_all)
});

fn maps_users_as_we_do(pid: u32) -> bool {
    let same = |file: &str| {
        let theirs = std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let ours = std::fs::read_to_string(format!("/proc/self/{file}"));
        matches!((theirs, ours), (Ok(theirs), Ok(ours)) if theirs == ours && !ours.is_empty())
    };
    same("uid_map") && same("gid_map")
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// HELLO: whether a descriptor can be a slot arena. It may be mapped then.
///
/// # Errors
/// [`IdentityError::NotAnArena`].
pub fn slot_memory(memory: BorrowedFd<'_>) -> Result<(), IdentityError> {
    // Fails on everything but memory files, without asking a file system.
    let seals = rustix::fs::fcntl_get_seals(memory).map_err(|_| IdentityError::NotAnArena)?;
    if !seals.contains(FINAL_SIZE) {
        return Err(IdentityError::NotAnArena);
    }
    let kind = rustix::fs::fstatfs(memory).map_err(io::Error::from)?;
    let size = rustix::fs::fstat(memory).map_err(io::Error::from)?.st_size;
    // Huge pages have holes that are not zeros but SIGBUS.
    if kind.f_type != nix::libc::TMPFS_MAGIC || usize::try_from(size) != Ok(ARENA_BYTES) {
        return Err(IdentityError::NotAnArena);
    }
    Ok(())
}

/// HELLO: whether a mapped slot arena says that it is one.
///
/// # Errors
/// [`IdentityError::NotAnArena`].
pub fn slot_arena(arena: &SlotArena) -> Result<(), IdentityError> {
    let header = arena.header();
    if header.magic.load(Ordering::Acquire) != ARENA_MAGIC
        || header.version.load(Ordering::Relaxed) != LAYOUT_VERSION
    {
        return Err(IdentityError::NotAnArena);
    }
    Ok(())
}

/// HELLO: the network namespace of a program's NETLINK_SOCK_DIAG socket.
///
/// # Errors
/// [`IdentityError::NotSockDiag`].
pub fn sock_diag_namespace(socket: BorrowedFd<'_>) -> Result<u64, IdentityError> {
    let domain = rustix::net::sockopt::socket_domain(socket);
    let protocol = rustix::net::sockopt::socket_protocol(socket);
    if domain != Ok(AddressFamily::NETLINK) || protocol != Ok(Some(rustix::net::netlink::SOCK_DIAG))
    {
        return Err(IdentityError::NotSockDiag);
    }
    Ok(crate::memory::netns_cookie(socket)?)
}

/// CONTEXT: whether a descriptor is an eventfd.
///
/// # Errors
/// [`IdentityError::NotAnEventfd`].
pub fn eventfd(fd: BorrowedFd<'_>) -> Result<(), IdentityError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if link.as_os_str() == "anon_inode:[eventfd]" {
        Ok(())
    } else {
        Err(IdentityError::NotAnEventfd)
    }
}

/// Tells sockets from files that merely look like sockets.
#[derive(Clone, Copy, Debug)]
pub struct SocketFiles {
    device: (u32, u32),
}

impl SocketFiles {
    /// `socket`: any socket of our own.
    ///
    /// # Errors
    /// What statx says.
    pub fn like(socket: impl AsFd) -> io::Result<Self> {
        let (device, _, _) = identify(socket.as_fd())?;
        Ok(Self { device })
    }

    /// REGISTER: the inode of the socket behind an O_PATH descriptor, which keeps nothing of the
    /// connection alive and is harmless to close.
    ///
    /// # Errors
    /// [`IdentityError::NotAPath`].
    pub fn inode(&self, fd: BorrowedFd<'_>) -> Result<u32, IdentityError> {
        let flags = rustix::fs::fcntl_getfl(fd).map_err(io::Error::from)?;
        if !flags.contains(OFlags::PATH) {
            return Err(IdentityError::NotAPath);
        }
        let (device, kind, inode) = identify(fd)?;
        if device != self.device || kind != FileType::Socket {
            return Err(IdentityError::NotAPath);
        }
        u32::try_from(inode).map_err(|_| IdentityError::NotAPath)
    }
}

/// Device, type and inode, as the kernel has them in memory.
fn identify(fd: BorrowedFd<'_>) -> io::Result<((u32, u32), FileType, u64)> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let what = StatxFlags::TYPE | StatxFlags::INO;
    let found = rustix::fs::statx(fd, c"", how, what)?;
    let kind = FileType::from_raw_mode(found.stx_mode.into());
    Ok((
        (found.stx_dev_major, found.stx_dev_minor),
        kind,
        found.stx_ino,
    ))
}
