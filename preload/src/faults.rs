//! SIGSEGV and SIGBUS: faults of our own touches are put right, all others are the program's.
//!
//! Our handler stands in the kernel from the first connection to a peer on (see [`crate::probe`]). What
//! the program installs is kept here and called from there in the conditions that it asked for: our
//! handler is installed with the program's mask and flags. What the program reads back is its own
//! action. A signal that it ignores is ignored by the kernel too, because exec hands that on; a bad
//! address then ends the program.

#![expect(
    unsafe_code,
    reason = "signal handlers are raw addresses, and a fault is put right in its context"
)]

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use libc::{
    SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_SIGINFO, SIG_DFL, SIG_IGN, SIGBUS, SIGSEGV,
    sigaction as SigAction, siginfo_t, ucontext_t,
};

use crate::{control, lifecycle, probe, real, registers, signals, tls};

/// What the program asked for, as far as the kernel does not hold it.
#[derive(Debug)]
struct Wish {
    signal: c_int,
    handler: AtomicUsize,
    flags: AtomicI32,
}

static WISHES: [Wish; 2] = [Wish::new(SIGSEGV), Wish::new(SIGBUS)];

/// Not 0: our handler stands in the kernel.
static INSTALLED: AtomicU32 = AtomicU32::new(0);

/// The thread that is changing an action; 0 if none.
static BUSY: AtomicU32 = AtomicU32::new(0);

/// Flags in which the kernel's action may differ from the program's.
const DIFFERENT: c_int = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;

impl Wish {
    const fn new(signal: c_int) -> Self {
        Self {
            signal,
            handler: AtomicUsize::new(SIG_DFL),
            flags: AtomicI32::new(0),
        }
    }

    fn of(signal: c_int) -> Option<&'static Self> {
        WISHES.iter().find(|wish| wish.signal == signal)
    }

    /// Notes what the program asks for and gives the kernel what that means for us; the result, and
    /// the action that the program had before.
    fn change(&self, asked: &SigAction) -> (c_int, SigAction) {
        let mut given = *asked;
        if asked.sa_sigaction != SIG_IGN {
            given.sa_sigaction = our_address();
            // One-shot handlers are ours to take back: our own must stay.
            given.sa_flags = asked.sa_flags & !SA_RESETHAND | SA_SIGINFO;
            if asked.sa_sigaction == SIG_DFL {
                given.sa_flags |= SA_ONSTACK;
            }
        }
        let before = (
            self.handler.swap(asked.sa_sigaction, Ordering::AcqRel),
            self.flags.swap(asked.sa_flags, Ordering::AcqRel),
        );
        let (rc, mut told) = in_kernel(self.signal, Some(&given));
        if rc != 0 {
            self.handler.store(before.0, Ordering::Release);
            self.flags.store(before.1, Ordering::Release);
        }
        reveal(&mut told, before);
        (rc, told)
    }

    /// The handler and the flags that the program asked for.
    fn kept(&self) -> (usize, c_int) {
        (
            self.handler.load(Ordering::Acquire),
            self.flags.load(Ordering::Acquire),
        )
    }

    /// The handler to call now. One-shot handlers are called once.
    fn take(&self) -> (usize, c_int) {
        let (handler, flags) = self.kept();
        if flags & SA_RESETHAND != 0 {
            return (self.handler.swap(SIG_DFL, Ordering::AcqRel), flags);
        }
        (handler, flags)
    }
}

/// Puts our handler in front of the program's.
pub(crate) fn install() {
    if INSTALLED.load(Ordering::Acquire) != 0 {
        return;
    }
    locked(|| {
        if INSTALLED.load(Ordering::Relaxed) != 0 {
            return;
        }
        for wish in &WISHES {
            let (rc, mut now) = in_kernel(wish.signal, None);
            if rc == 0 {
                now.sa_sigaction = signals::behind(wish.signal, now.sa_sigaction);
                wish.change(&now);
            }
        }
        INSTALLED.store(1, Ordering::Release);
    });
}

/// Takes our handler away: nothing is touched in this process from now on.
pub(crate) fn remove() {
    locked(|| {
        if INSTALLED.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        for wish in &WISHES {
            let (rc, mut now) = in_kernel(wish.signal, None);
            if rc == 0 && now.sa_sigaction == our_address() {
                reveal(&mut now, wish.kept());
                in_kernel(wish.signal, Some(&now));
            }
        }
    });
}

/// Whether `signal` is one of those that may need our handler.
pub(crate) fn is_ours(signal: c_int) -> bool {
    Wish::of(signal).is_some()
}

/// sigaction(2) for a signal of ours; the result, and the action before. `ordinary` is what is done
/// with all other signals, and with these as long as our handler is not installed.
pub(crate) fn sigaction(
    signal: c_int,
    asked: Option<&SigAction>,
    ordinary: impl FnOnce() -> (c_int, SigAction),
) -> (c_int, SigAction) {
    locked(|| {
        let Some(wish) = Wish::of(signal).filter(|_| INSTALLED.load(Ordering::Relaxed) != 0) else {
            return ordinary();
        };
        if let Some(asked) = asked.filter(|_| lifecycle::is_own_memory()) {
            return wish.change(asked);
        }
        // A question, or a vfork child, whose actions are its own but whose memory is its parent's.
        let (rc, mut told) = in_kernel(signal, asked);
        reveal(&mut told, wish.kept());
        (rc, told)
    })
}

/// In a forked child: nobody is changing an action.
pub(crate) fn after_fork() {
    BUSY.store(0, Ordering::Relaxed);
}

/// libc's sigaction.
fn in_kernel(signal: c_int, given: Option<&SigAction>) -> (c_int, SigAction) {
    let given = given.map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: zero is a valid action.
    let mut told: SigAction = unsafe { core::mem::zeroed() };
    // SAFETY: local actions; the handlers in them are the program's or our own.
    let rc = unsafe { real::sigaction(signal, given, &raw mut told) };
    (rc, told)
}

/// Puts the program's own handler and flags into an action of the kernel's that names ours.
fn reveal(told: &mut SigAction, (handler, flags): (usize, c_int)) {
    if told.sa_sigaction == our_address() {
        told.sa_sigaction = handler;
        told.sa_flags = told.sa_flags & !DIFFERENT | flags & DIFFERENT;
    }
}

fn our_address() -> usize {
    let function: unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void) = on_fault;
    function as usize
}

/// Changes of actions one after the other.
fn locked<T>(work: impl FnOnce() -> T) -> T {
    let me = tls::token();
    let is_mine = loop {
        match BUSY.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => break true,
            // A signal handler that interrupted a change changes something itself.
            Err(owner) if owner == me => break false,
            Err(_) => rustix::thread::sched_yield(),
        }
    };
    let result = work();
    if is_mine {
        BUSY.store(0, Ordering::Release);
    }
    result
}

/// # Safety
/// Called by the kernel.
unsafe extern "C-unwind" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's.
    let code = unsafe { (*info).si_code };
    // SAFETY: as above.
    if is_fault(signal, code) && unsafe { put_right(context.cast()) } {
        return;
    }
    // SAFETY: as above.
    let told = unsafe { &*info };
    // SAFETY: what a fault says.
    if signal == SIGBUS && is_fault(signal, code) && replaces(unsafe { told.si_addr() }) {
        return;
    }
    let Some(wish) = Wish::of(signal) else { return };
    let (handler, flags) = wish.take();
    if handler == SIG_DFL || handler == SIG_IGN {
        // An ignored signal only comes here if it was ignored a moment ago.
        if handler == SIG_DFL || code > 0 {
            by_default(signal, info, code);
        }
        return;
    }
    if flags & SA_RESTART == 0 {
        tls::count_interrupt();
    }
    // SAFETY: the program's handler; one of a single argument ignores the other two.
    let handler: unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void) =
        unsafe { core::mem::transmute(handler) };
    // SAFETY: called as the kernel would.
    unsafe { handler(signal, info, context) }
}

/// Whether the signal says that the interrupted instruction could not be executed. Signals that
/// somebody sent have no positive code; a memory failure is not about the address.
fn is_fault(signal: c_int, code: c_int) -> bool {
    code > 0 && !(signal == SIGBUS && (code == BUS_MCEERR_AR || code == BUS_MCEERR_AO))
}

/// Whether the memory at an address was that of a device which is gone, and is now some other memory, of zeros: the
/// interrupted instruction goes on with it. Not while anything is on a ring there: zeros would be taken for bytes.
fn replaces(address: *mut c_void) -> bool {
    let address = address.addr();
    let is_ring = control::is_device_ring_at(address);
    if !is_ring && !control::is_device_at(address) && !registers::is_at(address)
        || is_ring && lifecycle::any_on_ring()
    {
        return false;
    }
    // SAFETY: a page of the library's, which other machines could write at any time.
    unsafe { frontend_drv::memory::replace_page(address) }.is_ok()
}

const BUS_MCEERR_AR: c_int = 4;
const BUS_MCEERR_AO: c_int = 5;

/// Lets a touch of ours go on where it said; false if the interrupted instruction is none.
///
/// # Safety
/// `context` is what the kernel gave a handler.
unsafe fn put_right(context: *mut ucontext_t) -> bool {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: by contract a context.
    let counter = unsafe { &raw mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize] };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: by contract a context.
    let counter = unsafe { &raw mut (*context).uc_mcontext.pc };
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let counter = counter.cast::<usize>();
        // SAFETY: a register of the context, which has the size of an address.
        let landing = probe::landing(unsafe { counter.read() });
        if let Some(landing) = landing {
            // SAFETY: as above.
            unsafe { counter.write(landing) };
        }
        landing.is_some()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        false
    }
}

/// The program wants what happens by default: the fault comes again, to the kernel's own action. A signal
/// that was sent is sent again; it stays pending until the handler has returned.
#[cold]
fn by_default(signal: c_int, info: *const siginfo_t, code: c_int) {
    // SAFETY: zero is a valid action: SIG_DFL.
    let default: SigAction = unsafe { core::mem::zeroed() };
    in_kernel(signal, Some(&default));
    if code > 0 {
        return;
    }
    let word = |number: c_int| number.unsigned_abs() as usize;
    let process = word(rustix::process::getpid().as_raw_nonzero().get());
    let thread = word(rustix::thread::gettid().as_raw_nonzero().get());
    let number = word(signal);
    // SAFETY: the kernel's own description of the signal.
    let sent = unsafe {
        real::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            process,
            thread,
            number,
            info.addr(),
            0,
            0,
        )
    };
    if sent < 0 {
        // Only the first thread may pretend that somebody else sent it.
        // SAFETY: three numbers.
        unsafe { real::syscall(libc::SYS_tgkill, process, thread, number, 0, 0, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_touches_are_in_the_table() {
        assert_eq!(probe::landing(our_address()), None);
        assert_eq!(probe::landing(0), None);
    }
}
