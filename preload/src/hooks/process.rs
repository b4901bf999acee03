//! Processes and signals: fork, sigaction.

use core::ffi::{c_char, c_int, c_void};

use libc::{pid_t, sigaction as SigAction};

use crate::ops::lock;
use crate::{config, lifecycle, real, signals};

// SAFETY (whole file): as in `data`: the arguments are the program's, and so is their contract.

export! {
    unsafe fn fork() -> pid_t {
        if config::config().is_none() {
            // SAFETY: no arguments.
            return unsafe { real::fork() };
        }
        // SAFETY: no arguments.
        forking(|| unsafe { real::fork() })
    }

    unsafe fn daemon(stay: c_int, keep: c_int) -> c_int {
        if config::config().is_none() {
            // SAFETY: no pointers.
            return unsafe { real::daemon(stay, keep) };
        }
        // SAFETY: no pointers.
        forking(|| unsafe { real::daemon(stay, keep) })
    }

    unsafe fn forkpty(
        main: *mut c_int, name: *mut c_char, terminal: *const c_void, size: *const c_void,
    ) -> pid_t {
        // SAFETY: see the top of the file.
        let native = || unsafe { real::forkpty(main, name, terminal, size) };
        let pid = if config::config().is_some() { forking(native) } else { native() };
        if pid > 0 && !main.is_null() {
            // SAFETY: libc has just written the descriptor.
            lifecycle::created(unsafe { main.read() });
        }
        pid
    }
}

/// Runs a call that forks, of which the child is told by pthread_atfork. A failure in the child is no
/// failure to fork.
fn forking(native: impl Fn() -> c_int) -> c_int {
    lifecycle::before_fork();
    let parent = rustix::process::getpid();
    let rc = native();
    if rc < 0 && rustix::process::getpid() == parent {
        lifecycle::fork_failed();
    }
    rc
}

export! {
    unsafe fn execve(path: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int {
        // SAFETY: see the top of the file.
        exec(|| unsafe { real::execve(path, argv, env) })
    }

    unsafe fn execv(path: *const c_char, argv: *const *const c_char) -> c_int {
        // SAFETY: see the top of the file.
        exec(|| unsafe { real::execv(path, argv) })
    }

    unsafe fn execvp(file: *const c_char, argv: *const *const c_char) -> c_int {
        // SAFETY: see the top of the file.
        exec(|| unsafe { real::execvp(file, argv) })
    }

    unsafe fn execvpe(file: *const c_char, argv: *const *const c_char, env: *const *const c_char) -> c_int {
        // SAFETY: see the top of the file.
        exec(|| unsafe { real::execvpe(file, argv, env) })
    }

    unsafe fn fexecve(fd: c_int, argv: *const *const c_char, env: *const *const c_char) -> c_int {
        // SAFETY: see the top of the file.
        exec(|| unsafe { real::fexecve(fd, argv, env) })
    }

    unsafe fn execveat(
        dir: c_int, path: *const c_char, argv: *const *const c_char, env: *const *const c_char, flags: c_int,
    ) -> c_int {
        // SAFETY: see the top of the file.
        exec(|| unsafe { real::execveat(dir, path, argv, env, flags) })
    }
}

/// Runs a call that returns only if it fails.
fn exec(native: impl Fn() -> c_int) -> c_int {
    lifecycle::before_exec();
    let rc = native();
    lifecycle::exec_failed();
    rc
}

export! {
    unsafe fn _exit(status: c_int) -> c_int {
        lifecycle::at_exit();
        // SAFETY: no pointers; does not return.
        unsafe { real::_exit(status) }
    }

    unsafe fn _Exit(status: c_int) -> c_int {
        lifecycle::at_exit();
        // SAFETY: no pointers; does not return.
        unsafe { real::_exit(status) }
    }
}

/// Exports a function that goes on as libc's own in our place, after a call of `$before`: the registers are
/// kept and the stack is left as it is. For functions with a variable number of arguments, and for vfork,
/// which must not return through a frame of ours.
#[cfg(target_arch = "x86_64")]
macro_rules! export_in_place {
    ($before:path: $($name:ident),+) => {
        $(
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            unsafe extern "C-unwind" fn $name() {
                core::arch::naked_asm!(
                    "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                    "call {before}",
                    "call {real}",
                    "mov r11, rax",
                    "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                    "jmp r11",
                    before = sym $before,
                    real = sym real::addresses::$name,
                )
            }
        )+
    };
}

#[cfg(target_arch = "x86_64")]
export_in_place!(lock::jumping: longjmp, _longjmp, siglongjmp, __longjmp_chk);

#[cfg(target_arch = "x86_64")]
export_in_place!(before_exec: execl, execlp, execle);

#[cfg(target_arch = "x86_64")]
export_in_place!(lifecycle::spawning: vfork, __vfork, posix_spawn, posix_spawnp, system, popen, _Fork);

#[cfg(target_arch = "x86_64")]
extern "C" fn before_exec() {
    lifecycle::before_exec();
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
    unsafe fn ssignal(number: c_int, handler: usize) -> usize => viaduct_ssignal {
        // SAFETY: see the top of the file.
        unsafe { signals::signal(number, handler, libc::SA_RESTART) }
    }
}

redhook::hook! {
    unsafe fn siginterrupt(number: c_int, on: c_int) -> c_int => viaduct_siginterrupt {
        // SAFETY: see the top of the file.
        unsafe { signals::interrupt(number, on != 0) }
    }
}

redhook::hook! {
    unsafe fn sigset(number: c_int, handler: usize) -> usize => viaduct_sigset {
        // SAFETY: see the top of the file.
        unsafe { signals::set(number, handler) }
    }
}

// What `signal` is to a program that is compiled for X/Open.
redhook::hook! {
    unsafe fn __sysv_signal(number: c_int, handler: usize) -> usize => viaduct_dunder_sysv_signal {
        // SAFETY: see the top of the file.
        unsafe { signals::signal(number, handler, libc::SA_RESETHAND | libc::SA_NODEFER) }
    }
}

redhook::hook! {
    unsafe fn sysv_signal(number: c_int, handler: usize) -> usize => viaduct_sysv_signal {
        // SAFETY: see the top of the file.
        unsafe { signals::signal(number, handler, libc::SA_RESETHAND | libc::SA_NODEFER) }
    }
}
