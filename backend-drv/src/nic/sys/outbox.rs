//! Many datagrams out with one call, gathered from where they lie. A run of frames to one address and of one size is
//! one message, which the kernel (or the network card) cuts up.

#![expect(
    unsafe_code,
    reason = "gathers from memory that other processes write; sendmmsg"
)]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

use super::socket_address::RawAddress;
use crate::nic::Outgoing;

/// Frames that go as one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// To whom.
    pub to: SocketAddr,
    /// Index of the first one in the batch.
    pub first: usize,
    /// How many.
    pub frames: usize,
    /// Where the kernel cuts; the last frame may be shorter. `None`: it is one frame.
    pub segment: Option<u16>,
}

/// The structures that sendmmsg reads, reused from call to call.
#[derive(Default)]
pub struct Outbox {
    iovecs: Vec<libc::iovec>,
    /// Pieces of memory per message.
    pieces: Vec<usize>,
    names: Vec<(RawAddress, libc::socklen_t)>,
    controls: Vec<SegmentControl>,
    headers: Vec<libc::mmsghdr>,
}

/// The control message that says where to cut.
#[derive(Clone, Copy)]
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    segment: u16,
    padding: [u8; 6],
}

// SAFETY: the raw pointers inside lead to the box's own vectors, or nowhere: they are used only by the call of
// `send` that writes them.
unsafe impl Send for Outbox {}

impl Outbox {
    /// Sends as many of `runs`, which lie in `batch`, as the kernel takes now; returns how many runs.
    ///
    /// # Errors
    /// The first of them cannot be sent; `WouldBlock` if only now.
    pub fn send(
        &mut self,
        socket: impl AsFd,
        batch: &[Outgoing<'_>],
        runs: &[Run],
    ) -> io::Result<usize> {
        self.gather(batch, runs);
        self.address(runs);
        let count = u32::try_from(self.headers.len()).unwrap_or(u32::MAX);
        // The flags have another type in musl's libc.
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _;
        let headers = self.headers.as_mut_ptr();
        // SAFETY: `count` headers; what they point to are vectors of `self`, which nobody touches until the call
        // returns, and payload that `batch` borrows. The kernel only reads it, whatever is in it by then.
        let sent = unsafe { libc::sendmmsg(socket.as_fd().as_raw_fd(), headers, count, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Writes down where the bytes are.
    fn gather(&mut self, batch: &[Outgoing<'_>], runs: &[Run]) {
        self.iovecs.clear();
        self.pieces.clear();
        for run in runs {
            let before = self.iovecs.len();
            let frames = batch.get(run.first..).unwrap_or(&[]);
            for frame in frames.iter().take(run.frames) {
                self.iovecs.push(libc::iovec {
                    iov_base: frame.head.as_ptr().cast_mut().cast(),
                    iov_len: frame.head.len(),
                });
                let payload = frame.payload.iter().filter(|slice| !slice.is_empty());
                self.iovecs.extend(payload.map(|slice| libc::iovec {
                    iov_base: slice.base().as_ptr().cast(),
                    iov_len: slice.len(),
                }));
            }
            self.pieces.push(self.iovecs.len() - before);
        }
    }

    /// Writes the headers. All vectors have their final length before an address of an element is taken.
    fn address(&mut self, runs: &[Run]) {
        self.names.clear();
        self.controls.clear();
        self.headers.clear();
        for run in runs {
            self.names.push(RawAddress::of(run.to));
            self.controls.push(SegmentControl::new(run.segment));
        }
        let mut iovecs = self.iovecs.as_mut_slice();
        let rooms = self.names.iter_mut().zip(&mut self.controls);
        let messages = runs.iter().zip(&self.pieces).zip(rooms);
        for ((run, pieces), ((name, name_len), control)) in messages {
            let (own, rest) = std::mem::take(&mut iovecs).split_at_mut(*pieces);
            iovecs = rest;
            let mut header = empty_header();
            header.msg_name = (&raw mut *name).cast();
            header.msg_namelen = *name_len;
            header.msg_iov = own.as_mut_ptr();
            header.msg_iovlen = own.len() as _;
            if run.segment.is_some() {
                header.msg_control = (&raw mut *control).cast();
                header.msg_controllen = size_of::<SegmentControl>() as _;
            }
            self.headers.push(libc::mmsghdr {
                msg_hdr: header,
                msg_len: 0,
            });
        }
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl SegmentControl {
    fn new(segment: Option<u16>) -> Self {
        Self {
            header: libc::cmsghdr {
                cmsg_len: CONTROL_LEN as _,
                cmsg_level: libc::SOL_UDP,
                cmsg_type: libc::UDP_SEGMENT,
            },
            segment: segment.unwrap_or(0),
            padding: [0; 6],
        }
    }
}

/// Bytes of the control message that count: the rest is padding.
const CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + size_of::<u16>();
const _: () = assert!(size_of::<SegmentControl>() == size_of::<libc::cmsghdr>() + 8);

/// A header that names no memory.
pub(super) const fn empty_header() -> libc::msghdr {
    // SAFETY: integers and pointers only; null pointers with zero lengths are valid.
    unsafe { std::mem::zeroed() }
}
