//! Start-up, in the order of an `.init_array` function:
//!
//! 1. look libc's functions up,
//! 2. read the environment (a bad value: one line, and the program runs plain),
//! 3. find the rseq area, watch forks, look at what was inherited.
//!
//! Nothing is opened and nobody is spoken to before the first connection to a peer.

#![expect(
    unsafe_code,
    reason = "the constructor's section, pthread_atfork and _exit"
)]

use std::os::fd::BorrowedFd;

use crate::{config, lifecycle, real, tls};

#[used]
#[cfg(not(test))]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

#[used]
#[cfg(not(test))]
#[unsafe(link_section = ".fini_array")]
static FINI: extern "C" fn() = lifecycle::at_exit;

#[cfg_attr(test, expect(dead_code, reason = "only the library has a constructor"))]
extern "C" fn init() {
    let errno = crate::errno::get();
    real::resolve_all();
    if let Err(line) = config::load() {
        if config::strict() {
            die(&[
                b"viaduct: ",
                line.as_bytes(),
                b"; refusing to run (VIADUCT_STRICT)",
            ]);
        }
        say(&[b"viaduct: ", line.as_bytes(), b"; running plain"]);
    }
    if config::config().is_some() {
        tls::find_rseq();
        lifecycle::is_own_memory();
        // SAFETY: a handler without preconditions.
        unsafe { libc::pthread_atfork(None, None, Some(lifecycle::in_forked_child)) };
        lifecycle::adopt_inherited();
    }
    crate::errno::set(errno);
}

/// Writes one line to standard error, past every hook.
pub(crate) fn say(parts: &[&[u8]]) {
    let mut line = [0u8; 512];
    let mut used = 0;
    for byte in parts.iter().copied().flatten() {
        if used + 1 < line.len() {
            line[used] = if *byte < b' ' { b' ' } else { *byte };
            used += 1;
        }
    }
    line[used] = b'\n';
    // SAFETY: standard error, or whatever the program made of it; a failure is ignored.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    let _ = rustix::io::write(stderr, line.get(..=used).unwrap_or_default());
}

/// Writes one line and ends the program: VIADUCT_STRICT.
pub(crate) fn die(parts: &[&[u8]]) -> ! {
    say(parts);
    // SAFETY: ends the process without running anybody's handlers.
    unsafe { libc::_exit(EXIT_STRICT) }
}

/// Exit status of a program that VIADUCT_STRICT ended.
const EXIT_STRICT: i32 = 86;
