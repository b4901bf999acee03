//! Programs in C that reach what Rust programs do not: the checked variants of libc's calls
//! (`_FORTIFY_SOURCE`), blocking calls that are left by siglongjmp, and by pthread_cancel; signal
//! handlers in the middle of a copy; and requests by liburing and libaio.
//!
//! The same binary runs on kernel TCP and under the library and prints the same. Without a C compiler
//! the tests say so and pass.

#![expect(clippy::print_stderr, reason = "tests say what they skip")]

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use viaduct_tests::rig::compiler;
use viaduct_tests::rig::daemon::Daemon;
use viaduct_tests::rig::program::{Form, SESSION};

/// The checked variants that the program must reach, or it tests nothing.
const CHECKED: &[&str] = &[
    "__read_chk",
    "__recv_chk",
    "__recvfrom_chk",
    "__poll_chk",
    "__ppoll_chk",
];

/// The program that talks; none without a compiler.
fn talk() -> Option<(TempDir, PathBuf)> {
    let options = ["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"];
    compiler::compile(include_str!("talk.c"), &options)
}

/// The program that submits requests; none without a compiler or the two libraries.
fn uring() -> Option<(TempDir, PathBuf)> {
    if !compiler::has_headers(&["liburing.h", "libaio.h"]) {
        eprintln!("skipped: no liburing-dev or no libaio-dev");
        return None;
    }
    compiler::compile(include_str!("uring.c"), &["-O2", "-luring", "-laio"])
}

/// Runs a scene in a form; code (128 + signal if killed), output and error output.
fn run(program: &Path, form: &Form, scene: &[&str]) -> (i32, String, String) {
    use std::os::unix::process::ExitStatusExt;
    let output = form.run(&program.to_string_lossy(), scene, b"");
    let code = output.status.code();
    let code = code.unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (code, text(&output.stdout), text(&output.stderr))
}

/// Plays scenes in both forms; they must end the same way, with this code, and get so many bytes through the rings.
fn same(program: &Path, scenes: &[[&str; 2]], code: i32, least: u64) {
    for scene in scenes {
        let expected = run(program, &Form::plain(), scene);
        assert_eq!(expected.0, code, "{scene:?}, plain: {expected:?}");
        for spin in ["50", "0"] {
            let daemon = Daemon::start();
            let form = Form::accelerated(daemon.socket()).with("VIADUCT_SPIN_US", spin);
            let found = run(program, &form, scene);
            assert_eq!(
                found, expected,
                "{scene:?}, accelerated (left), plain (right)"
            );
            let totals = daemon.totals(SESSION);
            let bytes = totals["ring_rx_bytes"].as_u64();
            assert!(
                bytes >= Some(least),
                "{scene:?}: fewer than {least} bytes came through a ring: {totals}"
            );
        }
    }
}

fn talks(scenes: &[[&str; 2]], code: i32) {
    if let Some((_directory, program)) = talk() {
        same(&program, scenes, code, 1);
    }
}

#[test]
fn the_program_reaches_the_checked_calls() {
    let Some((_directory, program)) = talk() else {
        return;
    };
    let bytes = std::fs::read(&program).expect("the program");
    let names = |name: &str| {
        bytes
            .windows(name.len())
            .any(|window| window == name.as_bytes())
    };
    let missing: Vec<&&str> = CHECKED.iter().filter(|name| !names(name)).collect();
    assert!(missing.is_empty(), "not fortified: {missing:?}");
}

#[test]
fn checked_calls() {
    talks(&[["calls", ""]], 0);
}

/// A program that may not write files as large as the memory of its slots stays on TCP, and lives.
#[test]
fn file_size_limit() {
    let Some((_directory, program)) = talk() else {
        return;
    };
    let limited = format!("ulimit -f 8; exec '{}' calls ''", program.display());
    let scene = ["-c", limited.as_str()];
    let expected = run(Path::new("/bin/sh"), &Form::plain(), &scene);
    assert_eq!(expected.0, 0, "plain: {expected:?}");
    let daemon = Daemon::start();
    let found = run(
        Path::new("/bin/sh"),
        &Form::accelerated(daemon.socket()),
        &scene,
    );
    assert_eq!(found, expected, "accelerated (left), plain (right)");
}

/// A buffer that is too small ends the program, as glibc does it, before anything is received.
#[test]
fn overflows_are_detected() {
    let scenes = ["read", "recv", "recvfrom", "poll", "ppoll"].map(|call| ["overflow", call]);
    talks(&scenes, 134);
}

#[test]
fn calls_left_by_siglongjmp() {
    let scenes = ["recv", "poll", "epoll", "send"].map(|call| ["jump", call]);
    talks(&scenes, 0);
}

#[test]
fn threads_cancelled_in_calls() {
    let scenes = ["recv", "poll", "send"].map(|call| ["cancel", call]);
    talks(&scenes, 0);
}

/// The connection, which calls of libc have put on rings, goes back to the kernel before the kernel is told of it.
#[test]
fn requests_of_the_connection() {
    let Some((_directory, program)) = uring() else {
        return;
    };
    let scenes = [
        "streams", "late", "half", "poll", "epoll", "files", "update", "splice", "aio",
    ];
    same(&program, &scenes.map(|scene| [scene, ""]), 0, 1000);
}

#[test]
fn requests_of_something_else() {
    let Some((_directory, program)) = uring() else {
        return;
    };
    // Two times forty rounds of 64 bytes each way, at both ends, but for the first few.
    same(&program, &[["beside", ""]], 0, 9000);
}

/// What the handler does takes effect when the call that it has interrupted is done, as in the kernel; out of a call that
/// is left for good, nothing is kept back.
#[test]
fn handlers_that_interrupt_a_copy() {
    let Some((_directory, program)) =
        compiler::compile(include_str!("interrupted.c"), &["-O2", "-pthread"])
    else {
        return;
    };
    if run(&program, &Form::plain(), &["probe", "-"]).0 == 77 {
        eprintln!("skipped: no right to userfaultfd of faults in the kernel");
        return;
    }
    for call in ["send", "recv"] {
        let scenes = ["close", "shutdown", "both", "dup2"].map(|action| [action, call]);
        same(&program, &scenes, 0, 200);
    }
    same(&program, &[["jump", "recv"]], 0, 200);
}
