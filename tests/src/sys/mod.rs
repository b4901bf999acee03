//! libc's calls, as a C program makes them: through the symbols that a preload library hooks.
//!
//! Nothing is interpreted here: a result is what the call returned, or its errno. Descriptors are plain
//! numbers, because what happens to a wrong one is part of what is tested.

#![expect(unsafe_code, reason = "errno is a thread-local of libc")]

mod address;
mod control;
mod data;
mod descriptor;
mod file;
mod message;
mod number;
mod process;
mod rare;
mod raw;
mod ready;
mod socket;
mod unseen;

use libc::{c_int, socklen_t, timespec};

pub use libc::sigset_t;

pub use address::*;
pub use control::*;
pub use data::*;
pub use descriptor::*;
pub use file::*;
pub use message::*;
pub use number::*;
pub use process::*;
pub use rare::*;
pub use raw::*;
pub use ready::*;
pub use socket::*;
pub use unseen::*;

/// What a call returned, or its errno.
pub type Ret = Result<i64, i32>;

/// The calling thread's errno.
pub fn errno() -> i32 {
    // SAFETY: libc returns a valid pointer to this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn ret(value: impl Into<i64>) -> Ret {
    let value = value.into();
    if value < 0 { Err(errno()) } else { Ok(value) }
}

fn long(value: isize) -> Ret {
    ret(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A descriptor out of a result; -1 if it is none.
pub fn fd_of(ret: Ret) -> c_int {
    ret.ok()
        .and_then(|fd| c_int::try_from(fd).ok())
        .unwrap_or(-1)
}

fn size<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn spec(ms: i64) -> timespec {
    timespec {
        tv_sec: ms / 1000,
        tv_nsec: ms % 1000 * 1_000_000,
    }
}
