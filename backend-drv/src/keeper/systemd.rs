//! systemd's file descriptor store; see sd_notify(3), "FDSTORE=1".

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::Item;
use crate::memory;

/// The first descriptor that systemd passes.
const FIRST: RawFd = 3;

/// What the store held when we were started.
pub(super) fn inherited() -> io::Result<Vec<Item>> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let count = number("LISTEN_FDS").unwrap_or(0);
    let mut items = Vec::new();
    for (at, name) in (FIRST..).zip(names.split(':')).take(count as usize) {
        let fd = memory::inherited_fd(at)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        items.push((name.to_owned(), fd));
    }
    Ok(items)
}

/// Puts a descriptor into the store. Nobody watches it there: a program that has ended is news for us only.
pub(super) fn put(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    say(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd])
}

/// Takes the descriptors of that name out of the store.
pub(super) fn drop(name: &str) -> io::Result<()> {
    say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
}

fn say(text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let path = std::env::var_os("NOTIFY_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    let address = match path.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    }?;
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bytes = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
