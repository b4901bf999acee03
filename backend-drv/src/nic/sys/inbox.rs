//! Many datagrams in with one call, into buffers that are used again. The kernel may have joined several datagrams of
//! one size into one; the caller cuts them apart.

#![expect(unsafe_code, reason = "recvmmsg")]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::libc;

use super::outbox::empty_header;
use super::socket_address::RawAddress;
use crate::nic::stamp::{Stamp, Stamps};

/// Room for as many messages as one call brings.
pub struct Inbox {
    /// One buffer per message, end to end.
    bytes: Box<[u8]>,
    names: Box<[RawAddress]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

/// Room for what the kernel says beside a message: the size of the datagrams in it, and how many were lost.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control {
    bytes: [u8; CONTROL_BYTES],
}

/// What came with one call.
#[derive(Debug)]
pub struct Datagrams<'a> {
    inbox: &'a mut Inbox,
    count: usize,
}

/// One message: datagrams of one sender.
#[derive(Debug)]
pub struct Message<'a> {
    /// Who sent it; `None` if it is no address of ours.
    pub from: Option<SocketAddr>,
    /// Its bytes.
    pub bytes: &'a mut [u8],
    /// Each datagram has so many bytes; the last may have fewer.
    pub segment: usize,
    /// It was longer than a buffer.
    pub cut: bool,
    /// How many messages the socket has lost so far for want of room, modulo 2^32, if the kernel says.
    pub lost: Option<u32>,
    /// When the kernel got it, or the first of its datagrams, if it says.
    pub at: Option<Instant>,
}

// SAFETY: the raw pointers inside lead to the box's own memory, or nowhere: they are used only by the call of
// `receive` that writes them.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Room for `messages` messages.
    pub fn new(messages: usize) -> Self {
        let nowhere = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let header = libc::mmsghdr {
            msg_hdr: empty_header(),
            msg_len: 0,
        };
        let control = Control {
            bytes: [0; CONTROL_BYTES],
        };
        Self {
            bytes: vec![0; messages * BUFFER_BYTES].into_boxed_slice(),
            names: vec![RawAddress::none(); messages].into_boxed_slice(),
            controls: vec![control; messages].into_boxed_slice(),
            iovecs: vec![nowhere; messages].into_boxed_slice(),
            headers: vec![header; messages].into_boxed_slice(),
        }
    }

    /// Receives what is there, at most so many messages, up to the room.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing.
    pub fn receive(&mut self, socket: impl AsFd, most: usize) -> io::Result<Datagrams<'_>> {
        let buffers = self.bytes.chunks_exact_mut(BUFFER_BYTES);
        let rooms = self.names.iter_mut().zip(&mut self.controls);
        let parts = self.iovecs.iter_mut().zip(buffers).zip(rooms);
        let headers = self.headers.iter_mut().take(most);
        for (header, ((iovec, buffer), (name, control))) in headers.zip(parts) {
            iovec.iov_base = buffer.as_mut_ptr().cast();
            iovec.iov_len = buffer.len();
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut *name).cast();
            header.msg_namelen = RawAddress::LEN;
            header.msg_iov = &raw mut *iovec;
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut *control).cast();
            header.msg_controllen = size_of::<Control>() as _;
            header.msg_flags = 0;
        }
        let count = u32::try_from(most.min(self.headers.len())).unwrap_or(u32::MAX);
        let headers = self.headers.as_mut_ptr();
        // The flags have another type in musl's libc.
        let flags = libc::MSG_DONTWAIT as _;
        let none = std::ptr::null_mut();
        // SAFETY: `count` headers, each with pointers to and lengths of memory of `self` that nobody else touches
        // until the call returns.
        let result =
            unsafe { libc::recvmmsg(socket.as_fd().as_raw_fd(), headers, count, flags, none) };
        let count = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        Ok(Datagrams { inbox: self, count })
    }
}

impl Datagrams<'_> {
    /// Calls `each` for every message.
    pub fn for_each(self, mut each: impl FnMut(Message<'_>)) {
        let Inbox {
            bytes,
            names,
            controls,
            headers,
            ..
        } = self.inbox;
        let mut clock = Stamps::default();
        let buffers = bytes.chunks_exact_mut(BUFFER_BYTES);
        let notes = names.iter().zip(controls);
        let messages = headers.iter().zip(buffers).zip(notes).take(self.count);
        for ((header, buffer), (name, control)) in messages {
            let len = usize::try_from(header.msg_len).unwrap_or(0);
            let Some(bytes) = buffer.get_mut(..len) else {
                continue;
            };
            let header = &header.msg_hdr;
            let control = control.bytes.get(..header.msg_controllen).unwrap_or(&[]);
            let beside = Beside::read(control);
            let segment = beside.segment.and_then(|size| usize::try_from(size).ok());
            each(Message {
                from: name.read(),
                segment: segment.filter(|size| *size > 0).unwrap_or(len.max(1)),
                bytes,
                cut: header.msg_flags & libc::MSG_TRUNC != 0,
                lost: beside.lost,
                at: beside.at.and_then(|stamp| clock.moment(stamp)),
            });
        }
    }
}

/// What the kernel said beside a message.
#[derive(Default)]
struct Beside {
    segment: Option<i32>,
    lost: Option<u32>,
    at: Option<Stamp>,
}

impl Beside {
    /// Reads control messages: each a header with its own length, level and type, then a value, aligned.
    fn read(mut control: &[u8]) -> Self {
        let mut beside = Self::default();
        while let Some((header, rest)) = control.split_at_checked(size_of::<libc::cmsghdr>()) {
            let (Some(len), Some(level), Some(kind)) = (
                header.first_chunk().map(|len| usize::from_ne_bytes(*len)),
                word(header, size_of::<usize>()),
                word(header, size_of::<usize>() + 4),
            ) else {
                break;
            };
            match (level, kind, word(rest, 0)) {
                (libc::SOL_UDP, libc::UDP_GRO, value) => beside.segment = value,
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, Some(value)) => {
                    beside.lost = Some(value.cast_unsigned());
                }
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, _) => {
                    let value = len.saturating_sub(header.len()).min(rest.len());
                    beside.at = rest.get(..value).and_then(Stamp::read);
                }
                _ => {}
            }
            let step = len.next_multiple_of(size_of::<usize>());
            control = control.get(step.max(1)..).unwrap_or(&[]);
        }
        beside
    }
}

/// The int at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<i32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(i32::from_ne_bytes(*bytes))
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// The longest message: what the length field of UDP can say, joined datagrams included.
const BUFFER_BYTES: usize = 1 << 16;
/// Two control messages with one int each, and one with a time.
const CONTROL_BYTES: usize = 2 * (size_of::<libc::cmsghdr>() + 8) + size_of::<libc::cmsghdr>() + 16;
