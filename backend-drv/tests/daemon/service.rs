//! Starting, stopping, configuration, and what is left behind.

use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::client::{Couple, Daemon, Tool, VIADUCTD, Wire, retry};

fn viaductd(args: &[&str]) -> Output {
    Command::new(VIADUCTD).args(args).output().unwrap()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_bad_configuration_is_one_line_and_exit_code_2() {
    for (text, parts) in [
        ("sokket = \"/x\"", &["sokket"][..]),
        ("log = \"a=b=c\"", &["log = a=b=c", "filter"]),
        (
            "[limits]\nclients = 0",
            &["limits.clients = 0", "at least 1"],
        ),
        ("socket = 1", &[":1:", "string"]),
    ] {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        for args in [&["--config", path, "--check"][..], &["--config", path]] {
            let output = viaductd(args);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(output.stdout.is_empty());
            for part in parts {
                assert!(stderr.contains(part), "{stderr:?} lacks {part:?}");
            }
        }
    }
    let output = viaductd(&["--check", "--config", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_good_configuration_is_checked_and_shown() {
    let file = file("socket_mode = \"0660\"\n[[domain]]\nname = \"x\"\naddresses = [\"10.1.2.3\"]");
    let path = file.path().to_str().unwrap();
    let check = viaductd(&["--config", path, "--check"]);
    assert!(check.status.success());
    assert_eq!(String::from_utf8(check.stdout).unwrap().lines().count(), 1);
    let show = viaductd(&["--config", path, "--show", "--socket", "/tmp/other.sock"]);
    let text = String::from_utf8(show.stdout).unwrap();
    for part in [
        "\"/tmp/other.sock\"",
        "\"0660\"",
        "10.1.2.3/32",
        "connections",
    ] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    let file = file("[[domain]]\nname = \"x\"\nnetns = \"/nowhere/ns\"");
    let output = viaductd(&["--config", file.path().to_str().unwrap()]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("domain x: netns = /nowhere/ns"), "{stderr}");
}

#[test]
fn a_user_that_does_not_exist_is_named() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let file = file("user = \"no-such-user-here\"");
    let output = viaductd(&["--config", file.path().to_str().unwrap()]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("no-such-user-here"), "{stderr}");
}

#[test]
fn signals_end_it_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::start();
        let couple = Couple::new(&daemon);
        assert_eq!(daemon.stop(signal), Some(0));
        assert!(!daemon.socket.exists(), "the socket is removed");
        // The connection is the programs' own.
        assert!(
            couple
                .map()
                .get::<rdma_core::layout::ConnHeader>(0)
                .is_some()
        );
    }
}

#[test]
fn a_socket_that_nobody_answers_at_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut command = Command::new(VIADUCTD);
    command
        .args(["--embedded", "--socket"])
        .arg(&path)
        .stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let wire = retry(|| Wire::try_connect(&path).ok());
    drop(wire);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let mut daemon = Daemon::start();
    let path = daemon.socket.to_str().unwrap();
    let output = viaductd(&["--socket", path]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("another daemon"), "{stderr}");
    daemon.program().sync();
    assert!(daemon.is_running());
    let plain = tempfile::NamedTempFile::new().unwrap();
    let output = viaductd(&["--socket", plain.path().to_str().unwrap()]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("not a socket"), "{stderr}");
    assert!(plain.path().exists());
}

#[test]
fn an_embedded_daemon_leaves_with_its_last_client() {
    use std::os::unix::fs::PermissionsExt;
    let mut daemon = Daemon::embedded();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.socket), 0o600);
    assert_eq!(mode(daemon.socket.parent().unwrap()), 0o700);
    let mut tool = Tool::connect(&daemon.socket);
    drop(Couple::new(&daemon));
    tool.ask(rdma_core::control::Query::STATUS, 0);
    assert!(daemon.is_running(), "a tool is a client too");
    drop(tool);
    assert_eq!(daemon.wait(), Some(0));
    assert!(!daemon.socket.exists());
}

#[test]
fn readiness_is_told_to_the_service_manager() {
    use std::os::unix::net::UnixDatagram;
    let directory = tempfile::tempdir().unwrap();
    let notify = directory.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager
        .set_read_timeout(Some(crate::client::WATCHDOG))
        .unwrap();
    let mut command = Command::new(VIADUCTD);
    command
        .env("NOTIFY_SOCKET", &notify)
        .args(["--embedded", "--socket"])
        .arg(directory.path().join("s"));
    let mut child = command.spawn().unwrap();
    let mut buffer = [0; 64];
    let length = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1");
    drop(Wire::connect(&directory.path().join("s")));
    let length = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn root_is_given_up() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: not root");
        return;
    }
    let mut daemon = Daemon::with_config("user = \"nobody\"");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    for key in ["Uid:", "Gid:", "Groups:"] {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        assert!(
            line.split_whitespace().skip(1).all(|id| id == "65534"),
            "{line}"
        );
    }
    // It cannot look at our user namespace any more, and pairs all the same.
    let couple = Couple::new(&daemon);
    drop(couple);
    assert_eq!(daemon.stop(Signal::SIGTERM), Some(0));
}
