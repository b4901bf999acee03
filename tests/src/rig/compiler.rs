//! Programs in C, compiled for the test that runs them.

#![expect(clippy::print_stderr, reason = "tests say what they skip")]

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Whether the compiler finds these headers.
pub fn has_headers(names: &[&str]) -> bool {
    let mut cc = Command::new("cc");
    cc.args(["-fsyntax-only", "-x", "c"]);
    for name in names {
        cc.args(["-include", name]);
    }
    cc.arg("/dev/null")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A program, in a directory of its own; none without a compiler.
///
/// # Panics
/// If the compiler refuses the source.
pub fn compile(source: &str, options: &[&str]) -> Option<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (file, program) = (
        directory.path().join("program.c"),
        directory.path().join("program"),
    );
    std::fs::write(&file, source).expect("a writable directory");
    let mut cc = Command::new("cc");
    cc.arg(&file).arg("-o").arg(&program).arg("-pthread");
    match cc.args(options).output() {
        Ok(output) if output.status.success() => Some((directory, program)),
        Ok(output) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            panic!("cc cannot compile the program: {stderr}");
        }
        Err(error) => {
            eprintln!("skipped: no C compiler: {error}");
            None
        }
    }
}
