//! Calls that hand out descriptors, and a close that no preload library sees.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use std::ffi::CString;

use libc::{AT_FDCWD, O_CREAT, O_RDWR, c_char, c_int, c_long};

use super::{Ret, fd_of, ret};

unsafe extern "C" {
    fn __open_2(path: *const c_char, flags: c_int) -> c_int;
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int;
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
}

/// A call that opens a file that can be written, which is gone from its directory then.
pub type Maker = fn() -> c_int;

/// Such calls by name.
pub const MAKERS: [(&str, Maker); 7] = [
    ("__open_2", || {
        // SAFETY: a path that ends.
        named(|path| unsafe { __open_2(path, O_RDWR) })
    }),
    ("__open64_2", || {
        // SAFETY: as above.
        named(|path| unsafe { __open64_2(path, O_RDWR) })
    }),
    ("__openat_2", || {
        // SAFETY: as above.
        named(|path| unsafe { __openat_2(AT_FDCWD, path, O_RDWR) })
    }),
    ("__openat64_2", || {
        // SAFETY: as above.
        named(|path| unsafe { __openat64_2(AT_FDCWD, path, O_RDWR) })
    }),
    ("mkstemp", || {
        // SAFETY: a template that ends.
        temporary(|path| unsafe { libc::mkstemp(path) })
    }),
    ("mkostemp", || {
        // SAFETY: as above.
        temporary(|path| unsafe { libc::mkostemp(path, libc::O_CLOEXEC) })
    }),
    ("shm_open", shared),
];

fn template(end: &str) -> Vec<u8> {
    let name = format!("viaduct-{}-{end}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut bytes = path.into_os_string().into_encoded_bytes();
    bytes.push(0);
    bytes
}

fn temporary(make: impl Fn(*mut c_char) -> c_int) -> c_int {
    let mut path = template("XXXXXX");
    let fd = make(path.as_mut_ptr().cast());
    // SAFETY: a path that ends.
    unsafe { libc::unlink(path.as_ptr().cast()) };
    fd
}

fn named(open: impl Fn(*const c_char) -> c_int) -> c_int {
    let path = template("file");
    let text = core::str::from_utf8(&path[..path.len() - 1]).unwrap_or_default();
    // Made without a call of libc's that would take the number first.
    let made = rustix::fs::open(
        text,
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    );
    if let Ok(made) = made {
        let _ = close_unseen(std::os::fd::IntoRawFd::into_raw_fd(made));
    }
    let fd = open(path.as_ptr().cast());
    // SAFETY: the same path.
    unsafe { libc::unlink(path.as_ptr().cast()) };
    fd
}

fn shared() -> c_int {
    let name = CString::new(format!("/viaduct-{}", std::process::id())).unwrap_or_default();
    // SAFETY: a name that ends.
    let fd = unsafe { libc::shm_open(name.as_ptr(), O_CREAT | O_RDWR, 0o600) };
    // SAFETY: the same name.
    unsafe { libc::shm_unlink(name.as_ptr()) };
    fd
}

/// A duplicate of a descriptor of this process, by pidfd_getfd(2).
pub fn fetch_from_itself(fd: c_int) -> Ret {
    let own = c_long::from(std::process::id());
    // SAFETY: no pointers.
    let process = fd_of(ret(unsafe { libc::syscall(libc::SYS_pidfd_open, own, 0) }));
    // SAFETY: no pointers.
    let fetched = ret(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd, 0) });
    let _ = super::close(process);
    fetched
}

/// close(2).
pub fn close_unseen(fd: c_int) -> Ret {
    // SAFETY: descriptors of the test are plain numbers; nothing owns them.
    unsafe { rustix::io::close(fd) };
    Ok(0)
}
