//! `viaduct run` that starts a daemon, which is a fake program here.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::fake_daemon::{Answers, FakeDaemon, program_script};
use crate::scene::{directory, empty_library, finish, script, tool_at, wait_until};

/// An installation of its own: the tool, beside it a library and a script in place of viaductd.
struct Installation {
    dir: TempDir,
}

impl Installation {
    fn new() -> Option<Self> {
        let dir = directory();
        let (built, tool) = (
            env!("CARGO_BIN_EXE_viaduct"),
            dir.path().join("viaduct-tool"),
        );
        // Nobody may link to a file of somebody else's.
        fs::hard_link(built, &tool)
            .or_else(|_| fs::copy(built, &tool).map(drop))
            .unwrap();
        let library = empty_library(dir.path())?;
        fs::rename(library, dir.path().join("libviaduct.so")).unwrap();
        script(&dir.path().join("viaductd"), &program_script());
        Some(Self { dir })
    }

    fn command(&self, program: &[&str]) -> Command {
        let tool = self.dir.path().join("viaduct-tool");
        tool_at(&tool, self.dir.path(), &[&["run", "--"], program].concat())
    }

    fn runtime(&self) -> PathBuf {
        self.dir.path().join("viaduct")
    }

    fn starts(&self) -> usize {
        let starts = fs::read_to_string(self.dir.path().join("starts")).unwrap_or_default();
        starts.lines().count()
    }

    fn daemon_pid(&self) -> String {
        fs::read_to_string(self.runtime().join("viaductd.pid")).unwrap()
    }

    fn wait_for_daemons_end(&self) {
        let process = format!("/proc/{}", self.daemon_pid());
        wait_until(|| !Path::new(&process).exists());
    }
}

#[test]
fn a_daemon_is_started_and_leaves_with_its_last_client() {
    let Some(place) = Installation::new() else {
        return;
    };
    let ended = finish(place.command(&["sh", "-c", "printenv VIADUCT_SOCKET; exit 3"]));
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    let socket = place.runtime().join("viaductd.sock");
    assert_eq!(ended.stdout().trim_end(), socket.to_str().unwrap());
    assert_eq!(ended.stderr(), "");
    place.wait_for_daemons_end();
    let mode = fs::metadata(place.runtime()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    // And again: what the first one left behind is in nobody's way.
    assert_eq!(finish(place.command(&["true"])).code(), Some(0));
    assert_eq!(place.starts(), 2);
    place.wait_for_daemons_end();
}

#[test]
fn runs_at_the_same_time_share_one() {
    let Some(place) = Installation::new() else {
        return;
    };
    let program = format!(
        "touch {0}/started.$$; until [ -e {0}/go ]; do sleep 0.01; done",
        place.dir.path().display()
    );
    let children: Vec<_> = (0..8)
        .map(|_| place.command(&["sh", "-c", &program]).spawn().unwrap())
        .collect();
    wait_until(|| {
        let names = fs::read_dir(place.dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("started."))
            .count()
            == 8
    });
    fs::write(place.dir.path().join("go"), "").unwrap();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(place.starts(), 1);
    place.wait_for_daemons_end();
}

/// One run after the other, each of which may meet the daemon of the last one on its way out.
#[test]
fn runs_one_after_the_other_never_miss() {
    let Some(place) = Installation::new() else {
        return;
    };
    for turn in 0..20 {
        let ended = finish(place.command(&["true"]));
        assert_eq!(ended.code(), Some(0), "turn {turn}: {ended:?}");
    }
    place.wait_for_daemons_end();
}

#[test]
fn the_daemon_is_in_a_session_of_its_own_and_holds_no_stream_of_ours() {
    let Some(place) = Installation::new() else {
        return;
    };
    fs::create_dir(place.runtime()).unwrap();
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(place.runtime().join("linger"), "").unwrap();
    // A third descriptor beyond the standard ones is held open as well, by the shell's 3>&1.
    let tool = place.command(&["echo", "said"]);
    let words = std::iter::once(tool.get_program()).chain(tool.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("exec {} 3>&1", words.join(" "))])
        .env("XDG_RUNTIME_DIR", place.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    // These end only when nobody holds the other ends any more, and the daemon is still there.
    let (mut said, mut complained) = (String::new(), String::new());
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut complained)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((said.as_str(), complained.as_str()), ("said\n", ""));

    let pid = place.daemon_pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    assert_eq!(fields[3], pid, "the session is its own");
    fs::remove_file(place.runtime().join("linger")).unwrap();
    place.wait_for_daemons_end();
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let Some(place) = Installation::new() else {
        return;
    };
    let broken = "#!/bin/sh\necho first >&2\necho 'no memory left' >&2\nexit 4\n";
    script(&place.dir.path().join("viaductd"), broken);
    let ended = finish(place.command(&["true"]));
    ended.assert_fails(1, &["did not start", "no memory left", "viaductd.log"]);
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let Some(place) = Installation::new() else {
        return;
    };
    fs::create_dir(place.runtime()).unwrap();
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o777)).unwrap();
    let ended = finish(place.command(&["true"]));
    ended.assert_fails(1, &["mode 777", "chmod 700"]);
}

#[test]
fn a_daemon_of_another_version_is_left_alone() {
    let Some(place) = Installation::new() else {
        return;
    };
    fs::create_dir(place.runtime()).unwrap();
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o700)).unwrap();
    let answers = Answers {
        version: Some(42),
        ..Answers::default()
    };
    let old = FakeDaemon::start(&place.runtime().join("viaductd.sock"), answers);
    let ended = finish(place.command(&["printenv", "VIADUCT_SOCKET"]));
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_ne!(ended.stdout().trim_end(), old.path());
    assert_eq!(place.starts(), 1);
}

/// Cleaners of /tmp remove old sockets under daemons that still serve their programs.
#[test]
fn a_daemon_that_lost_its_socket_is_left_alone() {
    let Some(place) = Installation::new() else {
        return;
    };
    let go = place.dir.path().join("go");
    let program = format!(
        "touch {0}.started; until [ -e {0} ]; do sleep 0.01; done",
        go.display()
    );
    let mut first = place.command(&["sh", "-c", &program]).spawn().unwrap();
    wait_until(|| go.with_extension("started").exists());
    let socket = place.runtime().join("viaductd.sock");
    fs::remove_file(&socket).unwrap();
    let ended = finish(place.command(&["printenv", "VIADUCT_SOCKET"]));
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_ne!(ended.stdout().trim_end(), socket.to_str().unwrap());
    fs::write(go, "").unwrap();
    assert!(first.wait().unwrap().success());
}
