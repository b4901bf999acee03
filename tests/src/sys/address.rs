//! Memory that cannot be used, and calls that are given it.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::mem::zeroed;
use core::ptr::{null_mut, with_exposed_provenance, with_exposed_provenance_mut};

use libc::{c_int, c_void, iovec, mmsghdr, msghdr};

use super::message::raw_vector;
use super::{Ret, long, ret};

/// A kind of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Readable and writable.
    Good,
    /// Readable only.
    ReadOnly,
    /// Mapped, but not to be touched.
    Forbidden,
    /// A mapping of a file that is shorter.
    Ended,
    /// An address of the kernel's half.
    Kernel,
    /// The very last bytes of the address space.
    Last,
}

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The address of a page of some kind that begins with `value`, as far as it can; it lives for ever.
pub fn memory<T>(kind: Memory, value: &T) -> usize {
    assert!(size_of::<T>() <= PAGE, "larger than a page");
    match kind {
        Memory::Good | Memory::ReadOnly | Memory::Forbidden => {
            let page = map(PAGE, -1);
            put(page, value, size_of::<T>());
            if kind == Memory::ReadOnly {
                protect(page, libc::PROT_READ);
            } else if kind == Memory::Forbidden {
                protect(page, libc::PROT_NONE);
            }
            page
        }
        Memory::Ended => {
            // SAFETY: a terminated name.
            let file = unsafe { libc::memfd_create(c"short".as_ptr(), libc::MFD_CLOEXEC) };
            let page = map(PAGE, file);
            let _ = super::close(file);
            page
        }
        Memory::Kernel => 0xffff_8000_0000_0000,
        Memory::Last => usize::MAX - 2,
    }
}

/// The address of a value of which only the first `good` bytes can be touched.
pub fn cut<T>(value: &T, good: usize) -> usize {
    let at = good_before(good);
    put(at, value, good);
    at
}

/// The address of `good` bytes, the last that can be touched before many that cannot.
pub fn good_before(good: usize) -> usize {
    let room = good.next_multiple_of(PAGE);
    let base = map(room + FORBIDDEN, -1);
    // SAFETY: the end of the mapping.
    let rc = unsafe {
        libc::mprotect(
            with_exposed_provenance_mut(base + room),
            FORBIDDEN,
            libc::PROT_NONE,
        )
    };
    assert_eq!(rc, 0, "forbidding pages");
    base + room - good
}

/// Bytes behind [`good_before`].
const FORBIDDEN: usize = 1 << 20;

/// Writes into memory of [`good_before`].
pub fn fill(at: usize, bytes: &[u8]) {
    // SAFETY: the caller has asked for that many good bytes.
    unsafe {
        core::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            with_exposed_provenance_mut(at),
            bytes.len(),
        );
    };
}

/// What stands in memory of [`good_before`].
pub fn bytes_at(at: usize, len: usize) -> Vec<u8> {
    // SAFETY: as in `fill`.
    unsafe { core::slice::from_raw_parts(with_exposed_provenance(at), len) }.to_vec()
}

fn map(bytes: usize, file: c_int) -> usize {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = if file < 0 {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
    } else {
        libc::MAP_SHARED
    };
    // SAFETY: a fresh mapping.
    let base = unsafe { libc::mmap(null_mut(), bytes, protection, flags, file, 0) };
    assert_ne!(base, libc::MAP_FAILED, "mapping {bytes} bytes");
    base.expose_provenance()
}

fn put<T>(at: usize, value: &T, len: usize) {
    let from = core::ptr::from_ref(value).cast::<u8>();
    // SAFETY: the callers have mapped that much, and `len` is at most the value's size.
    unsafe { core::ptr::copy_nonoverlapping(from, with_exposed_provenance_mut(at), len) };
}

fn protect(page: usize, protection: c_int) {
    // SAFETY: a page of ours.
    let rc = unsafe { libc::mprotect(with_exposed_provenance_mut(page), PAGE, protection) };
    assert_eq!(rc, 0, "protecting a page");
}

/// A message of one part at any address; name and control data as given, none if 0 long.
pub fn message(part: (usize, usize), name: (usize, u32), control: (usize, usize)) -> msghdr {
    // SAFETY: zero is a valid msghdr.
    let mut message: msghdr = unsafe { zeroed() };
    message.msg_iov = with_exposed_provenance_mut::<iovec>(raw_vector(&[part]));
    message.msg_iovlen = 1;
    message.msg_name = with_exposed_provenance_mut(name.0);
    message.msg_namelen = name.1;
    message.msg_control = with_exposed_provenance_mut(control.0);
    message.msg_controllen = control.1;
    message
}

/// As an entry of a batch.
pub fn entry(msg_hdr: msghdr) -> mmsghdr {
    mmsghdr {
        msg_hdr,
        msg_len: 77,
    }
}

/// Defines calls whose pointers are numbers; each passes them on as they are.
macro_rules! calls {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) = $wrap:ident $function:ident($($given:expr),*);)+) => {
        $(
            $(#[$doc])*
            pub fn $name($($arg: $type),*) -> Ret {
                // SAFETY: as in `send_at`: a call with a bad address fails; what is under test must not
                // do worse. Good addresses are of memory that the callers have made for this.
                $wrap(unsafe { libc::$function($($given),*) })
            }
        )+
    };
}

const fn to<T>(at: usize) -> *mut T {
    with_exposed_provenance_mut(at)
}

const fn from<T>(at: usize) -> *const T {
    with_exposed_provenance(at)
}

calls! {
    /// read(2).
    fn read_at(fd: c_int, at: usize, len: usize) = long read(fd, to(at), len);
    /// write(2).
    fn write_at(fd: c_int, at: usize, len: usize) = long write(fd, from(at), len);
    /// recvfrom(2) into any buffer, with any room for an address.
    fn recvfrom_at(fd: c_int, at: usize, len: usize, addr: usize, alen: usize)
        = long recvfrom(fd, to(at), len, 0, to(addr), to(alen));
    /// sendto(2) from any buffer, to any address.
    fn sendto_at(fd: c_int, at: usize, len: usize, addr: usize, alen: u32)
        = long sendto(fd, from(at), len, 0, from(addr), alen);
    /// recvmsg(2).
    fn recvmsg_at(fd: c_int, message: usize, flags: c_int) = long recvmsg(fd, to(message), flags);
    /// sendmsg(2).
    fn sendmsg_at(fd: c_int, message: usize, flags: c_int) = long sendmsg(fd, from(message), flags);
    /// recvmmsg(2).
    fn recvmmsg_at(fd: c_int, messages: usize, count: u32, time: usize)
        = ret recvmmsg(fd, to(messages), count, 0, to(time));
    /// sendmmsg(2).
    fn sendmmsg_at(fd: c_int, messages: usize, count: u32) = ret sendmmsg(fd, to(messages), count, 0);
    /// ppoll(2) with any signal mask.
    fn ppoll_at(at: usize, count: u64, mask: usize)
        = ret ppoll(to(at), count, core::ptr::null(), from(mask));
    /// select(2) that waits for ever.
    fn select_at(count: c_int, read: usize, write: usize, except: usize)
        = ret select(count, to(read), to(write), to(except), null_mut());
    /// epoll_ctl(2).
    fn epoll_ctl_at(epfd: c_int, op: c_int, fd: c_int, event: usize)
        = ret epoll_ctl(epfd, op, fd, to(event));
    /// epoll_pwait(2).
    fn epoll_pwait_at(epfd: c_int, at: usize, max: c_int, mask: usize)
        = ret epoll_pwait(epfd, to(at), max, 0, from(mask));
    /// epoll_pwait2(2).
    fn epoll_pwait2_at(epfd: c_int, at: usize, max: c_int, time: usize)
        = ret epoll_pwait2(epfd, to(at), max, from(time), core::ptr::null());
    /// getsockopt(2).
    fn getsockopt_at(fd: c_int, level: c_int, name: c_int, value: usize, len: usize)
        = ret getsockopt(fd, level, name, to::<c_void>(value), to(len));
    /// setsockopt(2).
    fn setsockopt_at(fd: c_int, level: c_int, name: c_int, value: usize, len: u32)
        = ret setsockopt(fd, level, name, from::<c_void>(value), len);
    /// connect(2).
    fn connect_at(fd: c_int, addr: usize, len: u32) = ret connect(fd, from(addr), len);
    /// accept(2).
    fn accept_at(fd: c_int, addr: usize, len: usize) = ret accept(fd, to(addr), to(len));
    /// sendfile(2).
    fn sendfile_at(out: c_int, input: c_int, offset: usize, count: usize)
        = long sendfile(out, input, to(offset), count);
}
