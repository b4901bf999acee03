//! EINTR or restart: what the kernel decides by SA_RESTART, we have to know.
//!
//! A blocking receive that sleeps in our `ppoll` always comes back with EINTR after a signal handler
//! has run; the kernel's own would go on if the handler was installed with SA_RESTART. So handlers
//! *without* that flag are installed behind a trampoline that counts them for the thread before it
//! calls the program's handler. All other handlers are installed untouched, and what the program
//! reads back is what it installed. SIGSEGV and SIGBUS go by [`crate::faults`] once that needs them.

#![expect(unsafe_code, reason = "signal handlers are raw addresses")]

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use libc::{SA_RESTART, SIG_DFL, SIG_IGN, sigaction as SigAction, siginfo_t};

use crate::{config, faults, real, tls};

const SIGNALS: usize = 65;

/// Handlers behind the trampoline.
static HANDLERS: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];

unsafe extern "C-unwind" fn trampoline(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    tls::count_interrupt();
    let Some(word) = usize::try_from(signal)
        .ok()
        .and_then(|signal| HANDLERS.get(signal))
    else {
        return;
    };
    let address = word.load(Ordering::Acquire);
    if address <= SIG_IGN {
        return;
    }
    // SAFETY: the program's handler; a handler of one argument ignores the other two.
    let handler: unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void) =
        unsafe { core::mem::transmute(address) };
    // SAFETY: called as the kernel would.
    unsafe { handler(signal, info, context) }
}

fn trampoline_address() -> usize {
    let function: unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void) = trampoline;
    function as usize
}

/// The program's handler behind an address that stands in the kernel's action.
pub(crate) fn behind(signal: c_int, address: usize) -> usize {
    match usize::try_from(signal)
        .ok()
        .and_then(|signal| HANDLERS.get(signal))
    {
        Some(word) if address == trampoline_address() => word.load(Ordering::Acquire),
        _ => address,
    }
}

/// sigaction(2).
///
/// # Safety
/// As sigaction itself.
pub(crate) unsafe fn sigaction(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int {
    if config::config().is_none() || !faults::is_ours(signal) {
        // SAFETY: by contract.
        return unsafe { with_trampoline(signal, new, old) };
    }
    // SAFETY: by contract an action, which libc would read as well.
    let asked = (!new.is_null()).then(|| unsafe { new.read() });
    let (rc, told) = faults::sigaction(signal, asked.as_ref(), || {
        let new = asked
            .as_ref()
            .map_or(core::ptr::null(), core::ptr::from_ref);
        // SAFETY: zero is a valid action.
        let mut told: SigAction = unsafe { core::mem::zeroed() };
        // SAFETY: two local actions.
        let rc = unsafe { with_trampoline(signal, new, &raw mut told) };
        (rc, told)
    });
    if rc == 0 && !old.is_null() {
        // SAFETY: by contract room for an action.
        unsafe { old.write(told) };
    }
    rc
}

/// As [`sigaction`], for signals of which we want to know no more than that they came.
///
/// # Safety
/// As sigaction itself.
unsafe fn with_trampoline(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int {
    let word = usize::try_from(signal)
        .ok()
        .and_then(|signal| HANDLERS.get(signal));
    let (Some(word), true) = (word, config::config().is_some()) else {
        // SAFETY: by contract.
        return unsafe { real::sigaction(signal, new, old) };
    };
    let before = word.load(Ordering::Acquire);
    let mut wrapped = None;
    if new.addr() >= 4096 {
        // SAFETY: by contract an action.
        let asked = unsafe { new.read() };
        if asked.sa_flags & SA_RESTART == 0
            && asked.sa_sigaction != SIG_DFL
            && asked.sa_sigaction != SIG_IGN
        {
            // Stored first: the handler may run before sigaction returns.
            word.store(asked.sa_sigaction, Ordering::Release);
            let mut action = asked;
            action.sa_sigaction = trampoline_address();
            wrapped = Some(action);
        }
    }
    let given = wrapped.as_ref().map_or(new, core::ptr::from_ref);
    // SAFETY: by contract.
    let rc = unsafe { real::sigaction(signal, given, old) };
    if rc != 0 && wrapped.is_some() {
        word.store(before, Ordering::Release);
    }
    if rc == 0 && old.addr() >= 4096 {
        // SAFETY: just written by libc.
        let told = unsafe { &mut *old };
        if told.sa_sigaction == trampoline_address() {
            told.sa_sigaction = before;
        }
    }
    rc
}

/// signal(3) as `bsd_signal` (SA_RESTART, the default) or `sysv_signal` (one-shot).
///
/// # Safety
/// As signal itself.
pub(crate) unsafe fn signal(signal: c_int, handler: usize, flags: c_int) -> usize {
    let interrupts = INTERRUPTING.load(Ordering::Relaxed) & bit(signal) != 0;
    // SAFETY: zero is a valid action.
    let mut action: SigAction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = if interrupts {
        flags & !SA_RESTART
    } else {
        flags
    };
    // SAFETY: zero is a valid action.
    let mut old: SigAction = unsafe { core::mem::zeroed() };
    // SAFETY: two local actions.
    let rc = unsafe { sigaction(signal, &raw const action, &raw mut old) };
    if rc == 0 {
        old.sa_sigaction
    } else {
        libc::SIG_ERR
    }
}

/// Signals whose handlers interrupt calls, also those that `signal` installs later (siginterrupt).
static INTERRUPTING: AtomicU64 = AtomicU64::new(0);

fn bit(signal: c_int) -> u64 {
    u32::try_from(signal)
        .ok()
        .and_then(|signal| 1u64.checked_shl(signal.checked_sub(1)?))
        .unwrap_or(0)
}

/// siginterrupt(3).
///
/// # Safety
/// As siginterrupt itself.
pub(crate) unsafe fn interrupt(signal: c_int, on: bool) -> c_int {
    // SAFETY: zero is a valid action.
    let mut action: SigAction = unsafe { core::mem::zeroed() };
    // SAFETY: a local action.
    if unsafe { sigaction(signal, core::ptr::null(), &raw mut action) } < 0 {
        return -1;
    }
    if on {
        INTERRUPTING.fetch_or(bit(signal), Ordering::Relaxed);
        action.sa_flags &= !SA_RESTART;
    } else {
        INTERRUPTING.fetch_and(!bit(signal), Ordering::Relaxed);
        action.sa_flags |= SA_RESTART;
    }
    // SAFETY: the action that was there, but for one flag.
    unsafe { sigaction(signal, &raw const action, core::ptr::null_mut()) }
}

/// Instead of a handler: the signal is blocked; and that it was.
const SIG_HOLD: usize = 2;

/// sigset(3).
///
/// # Safety
/// As sigset itself.
pub(crate) unsafe fn set(number: c_int, handler: usize) -> usize {
    let old = if handler == SIG_HOLD {
        // SAFETY: zero is a valid action.
        let mut action: SigAction = unsafe { core::mem::zeroed() };
        // SAFETY: a local action.
        let rc = unsafe { sigaction(number, core::ptr::null(), &raw mut action) };
        if rc < 0 {
            libc::SIG_ERR
        } else {
            action.sa_sigaction
        }
    } else {
        // SAFETY: by contract.
        unsafe { signal(number, handler, 0) }
    };
    if old == libc::SIG_ERR {
        return old;
    }
    let how = if handler == SIG_HOLD {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    let [mut changed, mut before] = [EMPTY; 2];
    // SAFETY: a local set.
    unsafe { libc::sigaddset(&raw mut changed, number) };
    // SAFETY: two local sets.
    unsafe { libc::pthread_sigmask(how, &raw const changed, &raw mut before) };
    // SAFETY: a local set.
    if unsafe { libc::sigismember(&raw const before, number) } == 1 {
        SIG_HOLD
    } else {
        old
    }
}

/// A set of no signals.
// SAFETY: bits of signals, all of them zero.
const EMPTY: libc::sigset_t = unsafe { core::mem::zeroed() };
