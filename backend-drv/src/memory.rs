//! What the compiler cannot check: mapping memory and sending from it, adopting an inherited descriptor,
//! ringing by the kernel, and one socket option. With `nic::sys` the only unsafe code of the crate.
//!
//! A [`Mapping`] is made of private memory, of memory whose size is sealed, so that no other holder can make a
//! page disappear under the daemon, or of the memory of a device, whose size is the device's. It gives out references
//! no longer than it lives. A window is a part of another mapping, which lives as long.

#![expect(
    unsafe_code,
    reason = "mappings of memory shared with programs, and system calls without safe wrappers"
)]

use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::libc;
use rdma_core::mem::{Region, Shared};
use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Memory shared with programs, mapped here.
#[derive(Debug)]
pub struct Mapping {
    region: Region,
    /// For a window: what it is a part of.
    whole: Option<Arc<Self>>,
}

impl Mapping {
    /// Maps the first `len` bytes of `memory`, readable and writable.
    ///
    /// # Errors
    /// `InvalidInput` if the memory is shorter or could be made so; otherwise what mmap says.
    pub fn of_sealed(memory: impl AsFd, len: usize) -> io::Result<Self> {
        let memory = memory.as_fd();
        let seals = rustix::fs::fcntl_get_seals(memory)?;
        let size = u64::try_from(rustix::fs::fstat(memory)?.st_size).unwrap_or(0);
        if !seals.contains(SealFlags::SHRINK) || size < len as u64 || len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::shared(memory, len)
    }

    /// Maps the first `len` bytes of the memory of a device, readable and writable.
    ///
    /// # Errors
    /// What mmap says, also of more than the device has.
    pub fn of_device(memory: impl AsFd, len: usize) -> io::Result<Self> {
        Self::shared(memory.as_fd(), len)
    }

    /// Maps `len` bytes of memory of two devices as one: `front` up to `start`, a multiple of the page size, and then
    /// `memory`.
    ///
    /// # Errors
    /// What mmap says.
    pub fn of_devices(
        front: impl AsFd,
        start: usize,
        memory: impl AsFd,
        len: usize,
    ) -> io::Result<Self> {
        let rest = len
            .checked_sub(start)
            .filter(|rest| *rest > 0 && start > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let whole = Self::private(len)?;
        let base = whole.region.base().as_ptr();
        let front = front.as_fd();
        let memory = memory.as_fd();
        for (at, bytes, file) in [(0, start, front), (start, rest, memory)] {
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: replaces a part of a mapping of ours that nobody has seen yet; `base + at` lies inside.
            unsafe { rustix::mm::mmap(base.add(at).cast(), bytes, protection, flags, file, 0) }?;
        }
        Ok(whole)
    }

    fn shared(memory: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let base = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                0,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: just mapped readable and writable for `len` bytes; the size is sealed or a device's, and the
        // mapping goes away only in `drop`, which `part` and `get` do not outlive.
        let region = unsafe { Region::new(base, len) };
        Ok(Self {
            region,
            whole: None,
        })
    }

    /// `len` bytes from `at` on of `whole`; `None` if they do not lie inside.
    pub fn window(whole: &Arc<Self>, at: u64, len: usize) -> Option<Self> {
        let region = whole.region.part(usize::try_from(at).ok()?, len)?;
        Some(Self {
            region,
            whole: Some(Arc::clone(whole)),
        })
    }

    /// `len` zeroed bytes that nobody else sees.
    ///
    /// # Errors
    /// What mmap says.
    pub fn private(len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let base = unsafe {
            rustix::mm::mmap_anonymous(core::ptr::null_mut(), len, protection, MapFlags::PRIVATE)
        }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: as in `of_sealed`; anonymous memory does not shrink.
        let region = unsafe { Region::new(base, len) };
        Ok(Self {
            region,
            whole: None,
        })
    }

    /// Copies `bytes` to the beginning; what does not fit is left out.
    pub fn fill(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(self.region.len());
        let to = self.region.base().as_ptr();
        // SAFETY: both ranges hold `len` bytes; they do not overlap, since nobody can have a slice of
        // mapped memory; and no reference into the mapping is alive, since `self` is borrowed mutably.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len) };
    }

    /// Zeroes `len` bytes from `at` on, as far as they lie inside.
    pub fn zero(&self, at: u64, len: usize) {
        let part = usize::try_from(at)
            .ok()
            .and_then(|at| self.region.part(at, len));
        if let Some(part) = part {
            // SAFETY: `len` mapped writable bytes; nobody has a slice of them, and atomics are valid for every bit
            // pattern.
            unsafe { part.base().as_ptr().write_bytes(0, part.len()) };
        }
    }

    /// The `T` at `offset`; `None` if it would not lie inside.
    pub fn get<T: Shared + 'static>(&self, offset: usize) -> Option<&T> {
        self.region.get(offset)
    }

    /// Sends what the kernel takes now of the `len` bytes at `offset`, whatever they are by then.
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing; `InvalidInput` if they do not lie inside.
    pub fn send(&self, socket: impl AsFd, offset: usize, len: usize) -> io::Result<usize> {
        let part = self
            .region
            .part(offset, len)
            .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let bytes = part.base().as_ptr().cast();
        let socket = socket.as_fd().as_raw_fd();
        // SAFETY: `len` mapped bytes that only the kernel looks at.
        let sent = unsafe { libc::send(socket, bytes, len, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.region.len()
    }

    /// The memory as a region, which must not be used longer than the mapping lives.
    pub(crate) const fn region(&self) -> Region {
        self.region
    }

    /// Whether nothing is mapped; never the case.
    pub const fn is_empty(&self) -> bool {
        self.region.is_empty()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.whole.is_some() {
            return;
        }
        let base = self.region.base().as_ptr().cast();
        // SAFETY: mapped in `shared` or `private` with this length, and not a part of another mapping; every reference borrowed from `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(base, self.region.len()) } {
            tracing::warn!(%error, "munmap of shared memory");
        }
    }
}

/// Something that was made of mapped memory, and the mapping, which lives as long. What it gives out must not be
/// kept longer.
#[derive(Debug)]
pub struct Held<T> {
    // Dropped first.
    value: T,
    _mapping: Arc<Mapping>,
}

impl<T> Held<T> {
    /// What `make` makes of the memory of `mapping`.
    pub fn new(mapping: Arc<Mapping>, make: impl FnOnce(Region) -> Option<T>) -> Option<Self> {
        let value = make(mapping.region())?;
        Some(Self {
            value,
            _mapping: mapping,
        })
    }

    /// It.
    pub const fn get(&self) -> &T {
        &self.value
    }

    /// It, to be changed.
    pub const fn get_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Takes over descriptor `number`, which the parent process left open for us.
///
/// # Errors
/// EBADF if it is not open.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks the number up.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open (just checked), and named on the command line for this purpose: nobody else in
    // this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// SO_NETNS_COOKIE: names the network namespace of a socket for as long as the machine runs.
///
/// # Errors
/// What getsockopt says.
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the pointers name a u64 and its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Notices of asynchronous operations, by which the kernel itself adds to an eventfd. Unlike a write that never waits,
/// whoever else holds the eventfd and whatever flags he sets; at the most the count stays as high as it can be.
#[derive(Debug)]
pub struct Notices {
    context: libc::c_ulong,
    /// What is read: there is nothing.
    null: OwnedFd,
}

/// Notices that may be under way; each is done when it has been asked for.
const NOTICES: usize = 256;
/// `IOCB_CMD_PREAD` and `IOCB_FLAG_RESFD` of linux/aio_abi.h.
const READ: u16 = 0;
const TELLS_EVENTFD: u32 = 1;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Operation {
    data: u64,
    key: [u32; 2],
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

impl Notices {
    /// # Errors
    /// The kernel has no asynchronous operations, or no more of them.
    pub fn new() -> io::Result<Self> {
        let null = std::fs::File::open("/dev/null")?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: a pointer to a word that is zero, as the call wants it.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, NOTICES, &raw mut context) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            context,
            null: null.into(),
        })
    }

    /// Adds 1 to an eventfd.
    ///
    /// # Errors
    /// `InvalidInput`: it is none.
    pub fn add_to(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX);
        let operation = Operation {
            opcode: READ,
            file: number(self.null.as_fd()),
            flags: TELLS_EVENTFD,
            eventfd: number(eventfd),
            ..Operation::default()
        };
        match self.submit(&operation) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.forget_done();
                self.submit(&operation)
            }
            result => result,
        }
    }

    fn submit(&self, operation: &Operation) -> io::Result<()> {
        let list = [core::ptr::from_ref(operation)];
        // SAFETY: a list of one operation, which the kernel copies; it reads nothing into no memory.
        let done = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Makes room: the kernel keeps what it has done until somebody has looked.
    fn forget_done(&self) {
        let mut done = [[0u64; 4]; NOTICES];
        let at_once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: room for as many events, of 32 bytes each, and a time.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                NOTICES,
                done.as_mut_ptr(),
                &raw const at_once,
            )
        };
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        // SAFETY: made by io_setup, and not used any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
