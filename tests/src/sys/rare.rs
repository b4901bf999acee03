//! Calls that few programs make: other ways to leave and to become another program, what a descriptor is, sets of
//! select beyond their declared size.

#![expect(
    unsafe_code,
    reason = "calls of libc's functions, which are what is under test"
)]

use core::ffi::CStr;
use core::mem::zeroed;
use core::ptr::{null, null_mut};

use libc::{c_char, c_int, c_long};

use super::descriptor::dup2;
use super::{Ret, ret};

/// How a process leaves.
#[derive(Clone, Copy, Debug)]
pub enum Leaving {
    /// exit(3), with all that the process has registered for it.
    Exit,
    /// quick_exit(3).
    Quick,
    /// _exit(2).
    AtOnce,
    /// exit_group(2) by number.
    ByNumber,
    /// abort(3).
    Abort,
}

/// Leaves the process.
pub fn leave_by(how: Leaving) -> ! {
    unsafe extern "C" {
        fn quick_exit(status: c_int) -> !;
    }
    // SAFETY: no pointers; the caller has one thread.
    unsafe {
        match how {
            Leaving::Exit => libc::exit(3),
            Leaving::Quick => quick_exit(3),
            Leaving::AtOnce => libc::_exit(3),
            Leaving::ByNumber => {
                libc::syscall(libc::SYS_exit_group, 3 as c_long);
                libc::_exit(4)
            }
            Leaving::Abort => libc::abort(),
        }
    }
}

/// Which of the exec functions.
#[derive(Clone, Copy, Debug)]
pub enum Becoming {
    /// execl(3).
    List,
    /// execlp(3).
    ListByPath,
    /// execle(3).
    ListWithEnvironment,
    /// execve(2).
    Vector,
    /// execvp(3).
    VectorByPath,
    /// execvpe(3).
    VectorByPathWithEnvironment,
    /// fexecve(3).
    Descriptor,
    /// execve(2) by number.
    ByNumber,
}

/// Becomes `cat`, with `fd` as standard input and output; returns if that fails.
pub fn become_cat_by(how: Becoming, fd: c_int) {
    const PATH: &CStr = c"/bin/cat";
    const NAME: &CStr = c"cat";
    let (_, _) = (dup2(fd, 0), dup2(fd, 1));
    let (path, name) = (PATH.as_ptr(), NAME.as_ptr());
    let end: *const c_char = null();
    let arguments = [name, end];
    let environment = [c"PATH=/bin".as_ptr(), end];
    let (list, env) = (arguments.as_ptr(), environment.as_ptr());
    // SAFETY: terminated strings in terminated lists.
    unsafe {
        match how {
            Becoming::List => libc::execl(path, name, end),
            Becoming::ListByPath => libc::execlp(name, name, end),
            Becoming::ListWithEnvironment => libc::execle(path, name, end, env),
            Becoming::Vector => libc::execve(path, list, env),
            Becoming::VectorByPath => libc::execvp(name, list),
            Becoming::VectorByPathWithEnvironment => libc::execvpe(name, list, env),
            Becoming::Descriptor => {
                let program = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
                libc::fexecve(program, list, env)
            }
            Becoming::ByNumber => {
                libc::syscall(libc::SYS_execve, path, list, env);
                -1
            }
        }
    };
}

/// socket(2) with a protocol.
pub fn socket_of(domain: c_int, kind: c_int, protocol: c_int) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { libc::socket(domain, kind, protocol) })
}

/// What fstat(2) says that the file is: its kind.
pub fn kind(fd: c_int) -> Ret {
    // SAFETY: zero is a valid stat.
    let mut stat: libc::stat = unsafe { zeroed() };
    // SAFETY: one stat.
    ret(unsafe { libc::fstat(fd, &raw mut stat) })?;
    Ok(i64::from(stat.st_mode & libc::S_IFMT))
}

/// Calls for files that a socket is not.
pub fn as_file(fd: c_int) -> Vec<Ret> {
    let mut byte = 0u8;
    let part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let (at, vector) = (&raw mut byte, &raw const part);
    // SAFETY: one byte, and a vector of it.
    unsafe {
        vec![
            super::long(libc::pread(fd, at.cast(), 1, 0)),
            super::long(libc::pwrite(fd, at.cast(), 1, 0)),
            super::long(libc::preadv(fd, vector, 1, 0)),
            super::long(libc::pwritev(fd, vector, 1, 0)),
            ret(libc::ftruncate(fd, 1)),
            ret(libc::fsync(fd)),
            ret(libc::fdatasync(fd)),
            ret(libc::posix_fallocate(fd, 0, 1)),
            ret(libc::isatty(fd)),
            ret(libc::flock(fd, libc::LOCK_SH | libc::LOCK_UN)),
            ret(libc::fchdir(fd)),
            super::long(libc::copy_file_range(fd, null_mut(), fd, null_mut(), 1, 0)),
            super::long(libc::tee(fd, fd, 1, 0)),
        ]
    }
}

/// select(2) for reading one descriptor of any number; whether it is ready.
pub fn select_wide(fd: c_int, ms: i64) -> (Ret, bool) {
    let place = usize::try_from(fd).unwrap_or(0);
    let mut words = vec![0u64; place / 64 + 1];
    if let Some(word) = words.last_mut() {
        *word = 1 << (place % 64);
    }
    let mut time = libc::timeval {
        tv_sec: ms / 1000,
        tv_usec: ms % 1000 * 1000,
    };
    let set = words.as_mut_ptr().cast();
    // SAFETY: a set with room for the descriptor, and a local time.
    let got = ret(unsafe { libc::select(fd + 1, set, null_mut(), null_mut(), &raw mut time) });
    (got, words.last().is_some_and(|word| *word != 0))
}

/// The soft limit of descriptors, which becomes `limit` (0: the hard one).
pub fn limit_descriptors(limit: u64) -> Ret {
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one limit.
    ret(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) })?;
    limits.rlim_cur = if limit == 0 { limits.rlim_max } else { limit };
    // SAFETY: as above.
    ret(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) })
}

/// How a handler is installed, by [`catch_by`].
#[derive(Clone, Copy, Debug)]
pub enum Catching {
    /// signal(3).
    Signal,
    /// sigset(3).
    Set,
    /// The X/Open form of signal, which catches once.
    Old,
}

unsafe extern "C" {
    fn sigset(signal: c_int, handler: usize) -> usize;
    fn siginterrupt(signal: c_int, on: c_int) -> c_int;
    fn sysv_signal(signal: c_int, handler: usize) -> usize;
}

/// Catches `signal` and counts it, as [`super::catch`]; what was there: `default`, `ignored`, `blocked`, `caught` or
/// an error.
pub fn catch_by(how: Catching, signal: c_int) -> String {
    let handler = super::counter();
    // SAFETY: the handler only counts.
    let old = unsafe {
        match how {
            Catching::Signal => libc::signal(signal, handler),
            Catching::Set => sigset(signal, handler),
            Catching::Old => sysv_signal(signal, handler),
        }
    };
    told(old)
}

fn told(old: usize) -> String {
    match old {
        libc::SIG_DFL => "default".to_owned(),
        libc::SIG_IGN => "ignored".to_owned(),
        2 => "blocked".to_owned(),
        libc::SIG_ERR => show_errno(),
        old if old == super::counter() => "caught".to_owned(),
        _ => "somebody else's".to_owned(),
    }
}

fn show_errno() -> String {
    crate::show::errno(super::errno())
}

/// sigset(3) with SIG_HOLD: blocks.
pub fn hold(signal: c_int) -> String {
    // SAFETY: no handler.
    told(unsafe { sigset(signal, 2) })
}

/// siginterrupt(3).
pub fn interrupt(signal: c_int, on: bool) -> Ret {
    // SAFETY: no pointers.
    ret(unsafe { siginterrupt(signal, c_int::from(on)) })
}
