//! Pipes of the program: bytes into them and out of them without ever waiting, whatever the pipe's own
//! O_NONBLOCK says, because a direction's lock is held meanwhile.
//!
//! * Out: vmsplice(2) copies a pipe's bytes into memory and knows SPLICE_F_NONBLOCK.
//! * In: a write with RWF_NOWAIT, as long as nobody has spliced into the pipe by the kernel, which
//!   takes that ability from a pipe for good. From then on by way of the [`relay`].

#![expect(
    unsafe_code,
    reason = "the program's descriptors, and memory given to the kernel"
)]

use core::ffi::c_int;

use libc::{
    O_ACCMODE, O_APPEND, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, POLLERR, POLLIN, POLLOUT,
    SPLICE_F_NONBLOCK,
};

use super::{relay, sys};
use crate::ops::ready;
use crate::{errno, kernel, real, tls};

/// A pipe that is open in the way that is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pipe {
    fd: c_int,
    /// Opened for both reading and writing, as only a FIFO can be.
    both: bool,
    nonblocking: bool,
}

/// What is in a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Contents {
    Bytes,
    /// Nothing now.
    Empty,
    /// Nothing, and no writer.
    Ended,
}

impl Pipe {
    /// `fd` as the pipe that a splice writes to. `None`: the kernel refuses it.
    pub(super) fn to_fill(fd: c_int) -> Option<Self> {
        Self::open(fd, O_WRONLY)
    }

    /// `fd` as the pipe that a splice reads from. `None`: the kernel refuses it.
    pub(super) fn to_empty(fd: c_int) -> Option<Self> {
        Self::open(fd, O_RDONLY)
    }

    fn open(fd: c_int, access: c_int) -> Option<Self> {
        let flags = status_flags(fd)?;
        let both = flags & O_ACCMODE == O_RDWR;
        // SAFETY: takes no argument.
        let size = errno::preserved(|| unsafe { real::fcntl(fd, libc::F_GETPIPE_SZ, 0) });
        (size > 0 && (both || flags & O_ACCMODE == access)).then_some(Self {
            fd,
            both,
            nonblocking: flags & O_NONBLOCK != 0,
        })
    }

    /// Whether a splice with `flags` waits for the pipe.
    pub(super) const fn waits(&self, flags: u32) -> bool {
        !self.nonblocking && flags & SPLICE_F_NONBLOCK == 0
    }

    /// Puts up to `len` bytes into the pipe, as many as fit now.
    ///
    /// # Errors
    /// EAGAIN if the pipe is full, EPIPE (and SIGPIPE) if nobody reads it.
    ///
    /// # Safety
    /// `from` is readable for `len` bytes.
    pub(super) unsafe fn put(&self, from: *const u8, len: usize) -> Result<usize, c_int> {
        // SAFETY: by contract.
        match unsafe { sys::write_now(self.fd, from, len) } {
            // SAFETY: by contract.
            Err(libc::EOPNOTSUPP) => unsafe { relay::put(self.fd, from, len) },
            other => other,
        }
    }

    /// Takes up to `len` bytes out of the pipe, as many as are there now; 0 if none will come.
    ///
    /// # Errors
    /// EAGAIN if it is empty.
    ///
    /// # Safety
    /// `to` is writable for `len` bytes.
    pub(super) unsafe fn take(&self, to: *mut u8, len: usize) -> Result<usize, c_int> {
        if !self.both {
            // SAFETY: by contract; not open for writing.
            return unsafe { sys::vmsplice(self.fd, to, len) };
        }
        // SAFETY: by contract.
        match unsafe { sys::read_now(self.fd, to, len, sys::HERE) } {
            Err(libc::EOPNOTSUPP) => {}
            other => return other,
        }
        // What is there, a read gets without waiting.
        match usize::try_from(kernel::readable(self.fd).unwrap_or(0)) {
            Ok(0) | Err(_) => Err(libc::EAGAIN),
            // SAFETY: by contract.
            Ok(there) => unsafe { sys::read(self.fd, to, len.min(there)) },
        }
    }

    /// Whether bytes can be put now.
    ///
    /// # Errors
    /// EPIPE if nobody reads the pipe.
    pub(super) fn has_room(&self) -> Result<bool, c_int> {
        let bits = kernel::poll_now(self.fd, POLLOUT);
        if bits & POLLERR != 0 {
            return Err(libc::EPIPE);
        }
        Ok(bits & POLLOUT != 0)
    }

    /// What a splice from the pipe finds. Without the pipe's own lock, which a thread that splices by the
    /// kernel may hold for long.
    pub(super) fn contents(&self) -> Contents {
        match kernel::poll_now(self.fd, POLLIN) {
            0 => Contents::Empty,
            bits if bits & POLLIN != 0 => Contents::Bytes,
            _ => Contents::Ended,
        }
    }

    /// Bytes in the pipe, at least 1.
    pub(super) fn bytes(&self) -> usize {
        let bytes = kernel::readable(self.fd).unwrap_or(0).max(1);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Waits for room.
    ///
    /// # Errors
    /// EINTR.
    pub(super) fn wait_for_room(&self) -> Result<(), c_int> {
        self.wait(POLLOUT)
    }

    /// Waits for bytes or for the last writer's end.
    ///
    /// # Errors
    /// EINTR.
    pub(super) fn wait_for_bytes(&self) -> Result<(), c_int> {
        self.wait(POLLIN)
    }

    fn wait(&self, events: i16) -> Result<(), c_int> {
        let mut entry = [libc::pollfd {
            fd: self.fd,
            events,
            revents: 0,
        }];
        let interrupts = tls::interrupts();
        match ready::kernel_poll(&mut entry, None) {
            // poll is never restarted; splice is, after a handler with SA_RESTART.
            Err(libc::EINTR) if tls::interrupts() == interrupts => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }
}

/// The status flags of a descriptor.
pub(super) fn status_flags(fd: c_int) -> Option<c_int> {
    // SAFETY: takes no argument.
    let flags = errno::preserved(|| unsafe { real::fcntl(fd, libc::F_GETFL, 0) });
    (flags >= 0).then_some(flags)
}

/// Whether a socket has O_APPEND, for which the kernel refuses to splice into it.
pub(super) fn appends(fd: c_int) -> bool {
    status_flags(fd).is_some_and(|flags| flags & O_APPEND != 0)
}
