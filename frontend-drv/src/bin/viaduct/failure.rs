//! How the tool fails: one line on stderr and an exit status.

use std::io::{self, Write};
use std::process::ExitCode;

/// Exit status for bad input, as clap uses it.
pub(crate) const BAD_INPUT: u8 = 2;

/// A failure that has an exit status of its own; any other error exits with 1.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// What the user typed is at fault. The message names the value and the remedy.
    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self::with_code(BAD_INPUT, message)
    }

    pub(crate) fn with_code(code: u8, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code,
        }
    }
}

/// Prints the error as one line and gives the exit status.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let closed = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    });
    if closed {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    complain(&format!("{error:#}"));
    let code = error.downcast_ref::<Failure>().map_or(1, |f| f.code);
    ExitCode::from(code)
}

/// One line on stderr. If even that fails there is nobody left to tell.
pub(crate) fn complain(message: &str) {
    let line = message.replace('\n', " ");
    let _ = writeln!(io::stderr().lock(), "viaduct: {line}");
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_status_survives_context() {
        let error = anyhow::Error::from(Failure::with_code(127, "nope")).context("more");
        assert_eq!(report(&error), ExitCode::from(127));
        assert_eq!(report(&anyhow::anyhow!("plain")), ExitCode::from(1));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed: io::Result<()> = Err(io::ErrorKind::BrokenPipe.into());
        let error = closed.context("writing").unwrap_err();
        assert_eq!(report(&error), ExitCode::SUCCESS);
    }
}
