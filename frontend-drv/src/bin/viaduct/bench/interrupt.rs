//! Ctrl-C, SIGTERM and SIGHUP as a flag, so that children are stopped before the tool ends.
//!
//! Children start with the default actions again, since handlers do not survive exec.

#![expect(
    unsafe_code,
    reason = "sigaction has no safe form; the handler only stores a flag"
)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Catches the signals that would otherwise end the tool and leave its children behind.
///
/// A signal that is ignored on entry (SIGHUP under nohup) stays ignored.
pub(super) fn install() -> Result<()> {
    let noting = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        let before = unsafe { sigaction(signal, &noting) }
            .with_context(|| format!("cannot catch {signal}"))?;
        if matches!(before.handler(), SigHandler::SigIgn) {
            // SAFETY: this puts back the action that was in force a moment ago, and it is no code.
            unsafe { sigaction(signal, &before) }
                .with_context(|| format!("cannot ignore {signal} again"))?;
        }
    }
    Ok(())
}

/// Whether one of the signals has arrived.
pub(super) fn caught() -> bool {
    // Nothing is published through the flag, so no ordering is needed.
    CAUGHT.load(Ordering::Relaxed)
}

extern "C" fn note(_signal: c_int) {
    CAUGHT.store(true, Ordering::Relaxed);
}

static CAUGHT: AtomicBool = AtomicBool::new(false);
