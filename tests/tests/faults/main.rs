//! A program in C whose own faults are handled, or not, while its bad pointers are EFAULT: on kernel TCP
//! and under the library it prints the same and ends the same way.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use viaduct_tests::rig::compiler::compile;
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::program::{Form, SESSION};

/// Output, and exit code or 128 + signal.
fn run(program: &Path, form: &Form, scene: &[&str]) -> (String, i32) {
    let output = form.run(&program.to_string_lossy(), scene, b"");
    let status = output.status;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (said, code.unwrap_or(-1))
}

/// Plays scenes in both forms; they must say the same, end with this code, and go through the rings.
fn same(scenes: &[&[&str]], code: i32) {
    let options = ["-O2", "-Wall", "-Wextra", "-Werror"];
    let Some((_directory, program)) = compile(include_str!("faults.c"), &options) else {
        return;
    };
    for scene in scenes {
        let expected = run(&program, &Form::plain(), scene);
        assert_eq!(expected.1, code, "{scene:?}, plain: {expected:?}");
        let daemon = Daemon::start();
        let found = run(&program, &Form::accelerated(daemon.socket()), scene);
        assert_eq!(
            found, expected,
            "{scene:?}: accelerated (left), plain (right)"
        );
        let totals = daemon.totals(SESSION);
        let bytes = totals["ring_tx_bytes"].as_u64();
        assert!(
            bytes > Some(0),
            "{scene:?}: no byte went through a ring: {totals}"
        );
    }
}

#[test]
fn handlers_that_jump() {
    same(&[&["jump", "before"], &["jump", "after"]], 0);
}

#[test]
fn handlers_that_look_around() {
    same(&[&["info", "before"], &["info", "after"]], 0);
}

#[test]
fn threads_and_children() {
    same(&[&["threads"], &["children"]], 0);
}

#[test]
fn what_is_ignored_stays_ignored_in_another_program() {
    same(&[&["exec"]], 0);
}

#[test]
fn faults_that_nobody_handles() {
    let ways = [
        "fault", "raise", "kill", "one-shot", "reset", "ignored", "thread",
    ];
    for way in ways {
        same(&[&["end", way]], 128 + libc::SIGSEGV);
    }
    same(&[&["end", "bus"]], 128 + libc::SIGBUS);
}
