//! Checks of the program that was named, and what to expect of it.

use std::ffi::OsStr;
use std::path::Path;

use super::Findings;
use crate::locate;
use crate::program::{Image, Program};

pub(super) fn check(findings: &mut Findings, name: &OsStr, library: Option<&Image>) {
    let path = match locate::command(name) {
        Ok(path) => path,
        Err(error) => return findings.problem(error.to_string()),
    };
    let program = match Program::open(&path) {
        Ok(program) => program,
        Err(error) => return findings.problem(format!("{}: {error:#}", path.display())),
    };
    for script in &program.scripts {
        findings.ok(format!(
            "{}: a script, so its interpreter counts",
            script.display()
        ));
    }
    let name = program.path.display();
    let image = &program.image;
    let obstacles = program.obstacles(library);
    for obstacle in &obstacles {
        findings.problem(format!("{name}: {obstacle}: it stays on TCP, and correct"));
    }
    if let Some(harmless) = program.harmless_privilege() {
        findings.note(format!("{name}: {harmless}"));
    }
    if let Some(what) = image.uses_uring() {
        findings.note(format!(
            "{name}: links {what}: once it sets io_uring up, its connections stay on TCP (io_uring)"
        ));
    }
    if obstacles.is_empty() {
        expect(findings, &program.path, image);
    }
}

/// What will be accelerated and what not.
fn expect(findings: &mut Findings, path: &Path, image: &Image) {
    let name = path.display();
    let loader = image.interpreter.as_deref().unwrap_or_default();
    findings.ok(format!("{name}: {}, dynamic ({loader})", image.machine()));
    if image.sockets_used == 0 {
        findings.note(format!(
            "{name}: takes no socket function from libc itself; the libraries it loads may"
        ));
    }
    findings.ok(format!(
        "{name}: TCP to and from peers is accelerated once a connection has lasted (--upgrade-after); \
         other addresses, UDP, Unix sockets and raw system calls are not"
    ));
}
