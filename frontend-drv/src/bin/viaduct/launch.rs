//! Starting programs just as if we were not there.
//!
//! Rust's runtime ignores SIGPIPE before main, and its `Command` gives every child an empty signal
//! mask and the default action for SIGPIPE. A program started by `viaduct run` must see neither:
//! what we were started with is recorded before main and put back between fork and exec. (A service
//! manager, for one, starts services with SIGPIPE ignored, and they rely on it.)

#![expect(
    unsafe_code,
    reason = "a record taken before main, and code between fork and exec, have no safe form"
)]

use std::ffi::{c_int, c_uint};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, Signal, raise, signal};
use nix::unistd::setsid;

/// The signal state that this process was started with, to be handed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    mask: SigSet,
    pipe_ignored: bool,
    child_ignored: bool,
}

impl Inherited {
    /// Takes the record, and makes sure that this process can wait for children. To be called before
    /// the signal mask is changed.
    pub(crate) fn take() -> nix::Result<Self> {
        let child_ignored = CHILD_IGNORED.load(Ordering::Relaxed);
        if child_ignored {
            // An ignored SIGCHLD would throw the exit status of our child away.
            set_action(Signal::SIGCHLD, SigHandler::SigDfl)?;
        }
        Ok(Self {
            mask: SigSet::thread_get_mask()?,
            pipe_ignored: PIPE_IGNORED.load(Ordering::Relaxed),
            child_ignored,
        })
    }

    /// Becomes the program. Returns only if that fails.
    pub(crate) fn exec(self, command: &mut Command) -> io::Error {
        self.put_back_in(command);
        command.exec()
    }

    /// Starts the program.
    pub(crate) fn spawn(self, command: &mut Command) -> io::Result<Child> {
        self.put_back_in(command);
        command.spawn()
    }

    fn put_back_in(self, command: &mut Command) {
        let put_back = move || -> io::Result<()> {
            let (pipe, child) = (self.pipe_ignored, self.child_ignored);
            set_action(Signal::SIGPIPE, ignored(pipe))?;
            set_action(Signal::SIGCHLD, ignored(child))?;
            self.mask.thread_set_mask()?;
            Ok(())
        };
        // SAFETY: the closure only makes async-signal-safe calls: sigaction and the signal mask.
        unsafe { command.pre_exec(put_back) };
    }
}

/// Starts a program in a session of its own, with no descriptors of ours beyond its standard ones
/// and those in `keep`.
pub(crate) fn spawn_detached(
    command: &mut Command,
    keep: [BorrowedFd<'_>; 2],
) -> io::Result<Child> {
    let keep: [RawFd; 2] = keep.map(|fd| fd.as_raw_fd());
    let detach = move || -> io::Result<()> {
        setsid()?;
        close_others_on_exec()?;
        for fd in keep {
            // SAFETY: F_SETFD changes a flag of a descriptor that the parent holds open.
            let done = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
            nix::errno::Errno::result(done)?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls: setsid, close_range and fcntl.
    unsafe { command.pre_exec(detach) };
    command.spawn()
}

/// Ends this process by the signal that ended our child, so that whoever waits for us sees the same.
/// Returns if that is not possible.
pub(crate) fn end_by_signal(number: c_int) {
    let Ok(signal) = Signal::try_from(number) else {
        return;
    };
    // The child has left the core dump that counts.
    let _ = prctl::set_dumpable(false);
    let _ = set_action(signal, SigHandler::SigDfl);
    let mut only = SigSet::empty();
    only.add(signal);
    let _ = only.thread_unblock();
    let _ = raise(signal);
}

const fn ignored(yes: bool) -> SigHandler {
    if yes {
        SigHandler::SigIgn
    } else {
        SigHandler::SigDfl
    }
}

fn set_action(which: Signal, action: SigHandler) -> nix::Result<()> {
    // SAFETY: only ever the default action or none: no handler code is installed.
    unsafe { signal(which, action) }.map(drop)
}

/// Marks every descriptor above the standard ones close-on-exec.
fn close_others_on_exec() -> nix::Result<()> {
    let (first, last, flags) = (3 as c_uint, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: close_range with this flag closes nothing now; the numbers are plain integers.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    nix::errno::Errno::result(done).map(drop)
}

/// Runs before main and before Rust's runtime.
extern "C" fn record() {
    for (number, flag) in [
        (libc::SIGPIPE, &PIPE_IGNORED),
        (libc::SIGCHLD, &CHILD_IGNORED),
    ] {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: asks only; the pointer is to a place of the right size.
        let done = unsafe { libc::sigaction(number, ptr::null(), action.as_mut_ptr()) };
        if done == 0 {
            // SAFETY: a successful call has filled it in.
            let action = unsafe { action.assume_init() };
            flag.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
        }
    }
}

// The loader calls what stands in this section with (argc, argv, envp), which a C function without
// parameters may ignore.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);
static CHILD_IGNORED: AtomicBool = AtomicBool::new(false);
