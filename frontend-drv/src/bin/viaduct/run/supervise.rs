//! Runs the program as a child and stands in for it: signals go on to it, its exit status comes back.
//!
//! The child stays in our process group, so that it keeps the terminal, and a Ctrl-C there reaches
//! it without our help. What somebody sends to us alone is meant for it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};

use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;

use crate::launch::{Inherited, end_by_signal};

/// How the program ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending(ExitStatus);

impl Ending {
    /// Ends this process the same way, or gives the exit status to end with.
    pub(super) fn pass_on(self) -> ExitCode {
        if let Some(number) = self.0.signal() {
            end_by_signal(number);
            // A signal that cannot be raised again; say it as a shell would.
            let code = u8::try_from(number).unwrap_or(0).saturating_add(128);
            return ExitCode::from(code);
        }
        let code = self.0.code().unwrap_or(1);
        ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
    }
}

/// Starts the program and waits for its end.
pub(super) fn run(inherited: Inherited, command: &mut Command) -> io::Result<Ending> {
    let mut awaited: SigSet = PASSED_ON.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    // Blocked before the start: none may be lost or end us in between.
    awaited.thread_block()?;
    let signals = SignalFd::with_flags(&awaited, SfdFlags::SFD_CLOEXEC)?;
    let mut child = inherited.spawn(command)?;
    loop {
        // Asked before each sleep, since SIGCHLDs of several children merge into one.
        if let Some(status) = child.try_wait()? {
            tracing::info!(%status, "the program has ended");
            return Ok(Ending(status));
        }
        match signals.read_signal() {
            Ok(Some(info)) => pass_on(&child, &info),
            Ok(None) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn pass_on(child: &Child, info: &siginfo) {
    let signal = i32::try_from(info.ssi_signo)
        .ok()
        .and_then(|n| Signal::try_from(n).ok());
    let Some(signal) = signal.filter(|signal| PASSED_ON.contains(signal)) else {
        return;
    };
    // The kernel sends to the whole group of the terminal: the child has got that one itself.
    if info.ssi_code == libc::SI_KERNEL {
        return;
    }
    // The child has not been waited for, so the number is still its own.
    if let Ok(pid) = i32::try_from(child.id()) {
        tracing::info!(%signal, pid, "passing on");
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// What people and service managers send to a program to steer it.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];
