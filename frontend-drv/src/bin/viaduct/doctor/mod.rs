//! `viaduct doctor`: checks of this machine, of our own installation and of a program, one line each.
//!
//! * [`machine`]: the kernel and its limits. [`socket_diag`]: whether identity can be proved.
//! * [`installation`]: library, daemon, environment. [`subject`]: the program that was named.

mod installation;
mod machine;
mod socket_diag;
mod subject;

use std::ffi::OsString;
use std::fmt::{self, Display, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::output;

/// Check what works on this machine, and whether a program can be accelerated.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The daemon's socket [default: as for run]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The library [default: as for run]
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// A program to look at
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let mut findings = Findings::default();
    let library = installation::check_library(&mut findings, args.library.as_deref());
    installation::check_daemon(&mut findings, args.socket.as_deref());
    installation::check_environment(&mut findings);
    machine::check(&mut findings);
    if let Some(name) = args.command.first() {
        subject::check(&mut findings, name, library.as_ref());
    }
    output::print(&findings.text())?;
    Ok(ExitCode::from(u8::from(findings.problems() > 0)))
}

/// How serious a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Grade {
    Ok,
    /// Works, with a limit worth knowing.
    Note,
    /// Something needed does not work; the line says what to do.
    Problem,
}

impl Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "PROBLEM",
        })
    }
}

/// What was found, in order.
#[derive(Debug, Default)]
struct Findings(Vec<(Grade, String)>);

impl Findings {
    fn ok(&mut self, line: impl Into<String>) {
        self.0.push((Grade::Ok, line.into()));
    }

    fn note(&mut self, line: impl Into<String>) {
        self.0.push((Grade::Note, line.into()));
    }

    fn problem(&mut self, line: impl Into<String>) {
        self.0.push((Grade::Problem, line.into()));
    }

    fn problems(&self) -> usize {
        let problems = self.0.iter().filter(|(grade, _)| *grade == Grade::Problem);
        problems.count()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (grade, line) in &self.0 {
            let line = line.replace('\n', " ");
            let _ = writeln!(text, "{grade:<8} {line}");
        }
        let _ = match self.problems() {
            0 => writeln!(text, "Everything needed works."),
            1 => writeln!(text, "1 problem."),
            n => writeln!(text, "{n} problems."),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_one_line_each_and_counted() {
        let mut findings = Findings::default();
        findings.ok("a");
        findings.problem("b\nc");
        assert_eq!(findings.text(), "ok       a\nPROBLEM  b c\n1 problem.\n");
    }
}
