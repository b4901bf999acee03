//! One message of the control protocol, with its descriptors, from or to a socket. Never blocks.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rdma_core::control::{FDS_MAX, MESSAGE_MAX};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The kernel passes no more than this beside one message (SCM_MAX_FD). Having room for all of them
/// means that none is closed inside the system call, where closing could take long.
const KERNEL_FDS_MAX: usize = 253;

/// A message as it came.
#[derive(Debug)]
pub struct Received {
    /// Bytes in the buffer.
    pub length: usize,
    /// The message was longer than the buffer.
    pub cut: bool,
    /// Everything that came beside it.
    pub fds: Vec<OwnedFd>,
    /// Some descriptors could not be received: we have too many open.
    pub fds_lost: bool,
}

/// Room for one message; the default has none.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Box<[u8]>,
}

impl Inbox {
    /// Room for the longest message and one byte more, so that too long is seen.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; MESSAGE_MAX + 1].into_boxed_slice(),
        }
    }

    /// Receives one message.
    ///
    /// # Errors
    /// `WouldBlock` if there is none. A length of 0 is the end.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut self.bytes)],
            &mut control,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        Ok(Received {
            length: message.bytes.min(self.bytes.len()),
            cut: message.flags.contains(ReturnFlags::TRUNC),
            fds,
            fds_lost: message.flags.contains(ReturnFlags::CTRUNC),
        })
    }

    /// The bytes of the message just received.
    pub fn bytes(&self, length: usize) -> &[u8] {
        self.bytes.get(..length).unwrap_or(&[])
    }
}

/// Sends one message.
///
/// # Errors
/// `WouldBlock` if the receiver has not read enough.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    send_with(socket, bytes, fds, flags)
}

/// Sends one message to somebody who is trusted to read, as soon as there is room.
///
/// # Errors
/// `WouldBlock` if there was none for as long as the socket's own timeout says.
pub fn send_waiting(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, bytes, fds, SendFlags::NOSIGNAL)
}

fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bytes = [IoSlice::new(bytes)];
    // A daemon that is stopped and goes on is interrupted where it waits.
    retry_on_intr(|| rustix::net::sendmsg(&socket, &bytes, &mut control, flags))?;
    Ok(())
}
