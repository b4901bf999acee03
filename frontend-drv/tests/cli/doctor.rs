//! `viaduct doctor`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::fake_daemon::{Answers, FakeDaemon};
use crate::scene::{Finished, compile, directory, finish, script, viaduct};

/// Only looked at, never loaded.
const LIBRARY: &str = "int connect(void) { return 0; }\nint recv(void) { return 0; }\n\
    const char viaduct_version[] = \"0.1.0\";\n";

/// What it finds about a program; none without a compiler for the library.
fn examine(dir: &Path, program: &str) -> Option<Finished> {
    let library = compile(dir, "libviaduct.so", LIBRARY, &["-shared", "-fPIC"])?;
    let daemon = FakeDaemon::start(&dir.join("d.sock"), Answers::default());
    let library = library.to_str().unwrap();
    let options = [
        "doctor",
        "--library",
        library,
        "--socket",
        daemon.path(),
        "--",
        program,
    ];
    Some(finish(viaduct(dir, &options)))
}

#[track_caller]
fn assert_problem(found: &Finished, words: &str) {
    let text = found.stdout();
    let mut problems = text.lines().filter(|line| line.starts_with("PROBLEM"));
    assert!(problems.any(|line| line.contains(words)), "{text}");
    assert_eq!(found.code(), Some(1));
}

#[test]
fn a_dynamic_program_has_no_obstacle() {
    let dir = directory();
    let Some(found) = examine(dir.path(), "true") else {
        return;
    };
    let text = found.stdout();
    assert!(text.contains("ok       library"), "{text}");
    assert!(text.contains("ok       daemon 9.9.9"), "{text}");
    assert!(text.contains("ring_bytes_max 4194304"), "{text}");
    assert!(
        text.lines()
            .any(|line| line.starts_with("ok") && line.contains("/true: ")),
        "{text}"
    );
    // Whether the machine has problems of its own is not for this test to say.
    let problems = text
        .lines()
        .filter(|line| line.starts_with("PROBLEM"))
        .count();
    assert_eq!(found.code(), Some(i32::from(problems > 0)), "{text}");
}

#[test]
fn a_static_program_is_found_out() {
    let dir = directory();
    let source = "int main(void) { return 0; }\n";
    for (name, option) in [("static", "-static"), ("static-pie", "-static-pie")] {
        let Some(path) = compile(dir.path(), name, source, &[option]) else {
            continue;
        };
        let place = directory();
        let Some(found) = examine(place.path(), path.to_str().unwrap()) else {
            return;
        };
        assert_problem(&found, "statically linked");
    }
}

#[test]
fn a_script_is_judged_by_its_interpreter() {
    let dir = directory();
    let path = dir.path().join("script");
    script(&path, "#!/usr/bin/env sh\n");
    let Some(found) = examine(dir.path(), path.to_str().unwrap()) else {
        return;
    };
    let text = found.stdout();
    assert!(text.contains("a script"), "{text}");
    assert!(text.contains("sh: "), "{text}");
}

#[test]
fn a_setuid_program_is_found_out() {
    let dir = directory();
    let nosuid = statvfs(dir.path())
        .unwrap()
        .flags()
        .contains(FsFlags::ST_NOSUID);
    if nosuid || !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: only root can make a program setuid to somebody else, on a mount that allows it"
        );
        return;
    }
    let path = dir.path().join("setuid");
    fs::copy("/bin/true", &path).unwrap();
    chown(&path, Some(65_534), None).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let Some(found) = examine(dir.path(), path.to_str().unwrap()) else {
        return;
    };
    assert_problem(&found, "setuid to user 65534");

    chown(&path, Some(0), None).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let place = directory();
    let found = examine(place.path(), path.to_str().unwrap()).unwrap();
    let text = found.stdout();
    assert!(
        text.contains("note") && text.contains("you gain nothing by it"),
        "{text}"
    );
}

#[test]
fn go_programs_are_found_by_their_section() {
    let dir = directory();
    let source =
        "__attribute__((section(\".go.buildinfo\"))) int go = 1;\nint main(void) { return 0; }\n";
    let Some(path) = compile(dir.path(), "go", source, &[]) else {
        return;
    };
    let found = examine(dir.path(), path.to_str().unwrap()).unwrap();
    assert_problem(&found, "a Go program");
}

#[test]
fn io_uring_is_noted() {
    let dir = directory();
    let source = "int io_uring_queue_init(void) { return 0; }\n";
    let options = ["-shared", "-fPIC", "-Wl,-soname,liburing.so.2"];
    let Some(uring) = compile(dir.path(), "liburing.so", source, &options) else {
        return;
    };
    let source =
        "int io_uring_queue_init(void);\nint main(void) { return io_uring_queue_init(); }\n";
    let uring = uring.to_str().unwrap();
    // It stands before the source, where the linker would see no need for it yet.
    let options = ["-Wl,--no-as-needed", uring];
    let path = compile(dir.path(), "program", source, &options).unwrap();
    let found = examine(dir.path(), path.to_str().unwrap()).unwrap();
    let text = found.stdout();
    assert!(text.contains("links liburing.so.2"), "{text}");
}

#[test]
fn what_is_missing_is_a_problem_with_a_remedy() {
    let dir = directory();
    let missing = dir.path().join("missing").to_str().unwrap().to_owned();
    let options = [
        "doctor",
        "--library",
        &missing,
        "--socket",
        &missing,
        "--",
        "no-such-command",
    ];
    let mut command = viaduct(dir.path(), &options);
    command
        .env("VIADUCT_RING_BYTES", "1")
        .env("VIADUCT_PEERS", "x");
    let found = finish(command);
    assert_problem(&found, "is not a file");
    assert_problem(&found, "start viaductd there");
    assert_problem(&found, "command not found");
    assert_problem(&found, "VIADUCT_RING_BYTES: \"1\" is not");
    assert_problem(&found, "VIADUCT_PEERS: \"x\" is not");
}

#[test]
fn a_library_that_is_not_ours_is_told() {
    let dir = directory();
    let Some(library) = crate::scene::empty_library(dir.path()) else {
        return;
    };
    let found = finish(viaduct(dir.path(), &["doctor", "--library", &library]));
    assert_problem(&found, "defines no socket function");
}
