//! Processes and signals: fork, sigaction.

use core::ffi::c_int;

use libc::{pid_t, sigaction as SigAction};

use crate::{config, lifecycle, real, signals};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

export! {
    unsafe fn fork() -> pid_t {
        if config::config().is_none() {
            // SAFETY: no arguments.
            return unsafe { real::fork() };
        }
        lifecycle::before_fork();
        // SAFETY: no arguments. The child is told by pthread_atfork.
        let pid = unsafe { real::fork() };
        if pid > 0 {
            lifecycle::in_parent();
        } else if pid < 0 {
            lifecycle::fork_failed();
        }
        pid
    }
}

redhook::hook! {
    unsafe fn sigaction(number: c_int, new: *const SigAction, old: *mut SigAction) -> c_int => viaduct_sigaction {
        // SAFETY: see the top of the file.
        unsafe { signals::sigaction(number, new, old) }
    }
}

redhook::hook! {
    unsafe fn signal(number: c_int, handler: usize) -> usize => viaduct_signal {
        // SAFETY: see the top of the file.
        unsafe { signals::signal(number, handler, libc::SA_RESTART) }
    }
}

redhook::hook! {
    unsafe fn bsd_signal(number: c_int, handler: usize) -> usize => viaduct_bsd_signal {
        // SAFETY: see the top of the file.
        unsafe { signals::signal(number, handler, libc::SA_RESTART) }
    }
}

redhook::hook! {
    unsafe fn sysv_signal(number: c_int, handler: usize) -> usize => viaduct_sysv_signal {
        // SAFETY: see the top of the file.
        unsafe { signals::signal(number, handler, libc::SA_RESETHAND | libc::SA_NODEFER) }
    }
}
