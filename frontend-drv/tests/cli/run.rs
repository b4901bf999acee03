//! `viaduct run` with a daemon that is there.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::fake_daemon::{Answers, FakeDaemon};
use crate::scene::{Finished, compile, directory, empty_library, finish, viaduct};

/// A daemon, an empty library, and the options that name them.
struct Stage {
    dir: TempDir,
    daemon: FakeDaemon,
    library: String,
}

impl Stage {
    fn new() -> Option<Self> {
        Self::with(Answers::default())
    }

    fn with(answers: Answers) -> Option<Self> {
        let dir = directory();
        let library = empty_library(dir.path())?;
        let daemon = FakeDaemon::start(&dir.path().join("d.sock"), answers);
        Some(Self {
            dir,
            daemon,
            library,
        })
    }

    fn command(&self, options: &[&str], program: &[&str]) -> Command {
        let daemon = [
            "run",
            "--socket",
            self.daemon.path(),
            "--library",
            &self.library,
        ];
        viaduct(
            self.dir.path(),
            &[&daemon, options, &["--"], program].concat(),
        )
    }

    fn run(&self, options: &[&str], program: &[&str]) -> Finished {
        finish(self.command(options, program))
    }
}

/// Without statistics the tool becomes the program, with them it waits for it.
const BOTH_WAYS: [&[&str]; 2] = [&[], &["--stats"]];

#[test]
fn the_exit_status_is_the_programs() {
    let Some(stage) = Stage::new() else { return };
    for options in BOTH_WAYS {
        for code in [0, 1, 7, 255] {
            let ended = stage.run(options, &["sh", "-c", &format!("exit {code}")]);
            assert_eq!(ended.code(), Some(code), "{options:?} {ended:?}");
        }
    }
}

#[test]
fn a_death_by_signal_is_the_programs() {
    let Some(stage) = Stage::new() else { return };
    for options in BOTH_WAYS {
        for signal in [
            Signal::SIGTERM,
            Signal::SIGKILL,
            Signal::SIGINT,
            Signal::SIGSEGV,
        ] {
            let kill = format!("kill -{} $$", signal as i32);
            let ended = stage.run(options, &["sh", "-c", &kill]);
            assert_eq!(
                ended.0.status.signal(),
                Some(signal as i32),
                "{options:?} {ended:?}"
            );
        }
    }
}

#[test]
fn what_is_sent_to_the_tool_reaches_the_program() {
    let Some(stage) = Stage::new() else { return };
    for (name, code) in [("TERM", 41), ("INT", 42), ("HUP", 43), ("USR1", 44)] {
        let program =
            format!("trap 'exit {code}' {name}; echo ready; while :; do sleep 0.05; done");
        for options in BOTH_WAYS {
            let mut command = stage.command(options, &["sh", "-c", &program]);
            let streams = command.stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = streams.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "ready");
            let signal = format!("SIG{name}").parse::<Signal>().unwrap();
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
            assert_eq!(
                child.wait().unwrap().code(),
                Some(code),
                "{name} {options:?}"
            );
        }
    }
}

#[test]
fn what_cannot_be_run_is_said_as_a_shell_says_it() {
    let Some(stage) = Stage::new() else { return };
    for options in BOTH_WAYS {
        let missing = stage.run(options, &["no-such-command-of-anybody"]);
        missing.assert_fails(127, &["no-such-command-of-anybody", "not found"]);
        stage
            .run(options, &["/nonexistent/x"])
            .assert_fails(127, &["/nonexistent/x"]);
        stage
            .run(options, &["/etc/passwd"])
            .assert_fails(126, &["/etc/passwd", "chmod +x"]);
    }
}

#[test]
fn standard_streams_are_the_programs() {
    let Some(stage) = Stage::new() else { return };
    for options in BOTH_WAYS {
        let mut command = stage.command(options, &["sh", "-c", "cat; echo err >&2"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through").unwrap();
        let ended = Finished(child.wait_with_output().unwrap());
        assert_eq!(ended.stdout(), "through");
        assert!(ended.stderr().starts_with("err\n"), "{}", ended.stderr());
    }
}

#[test]
fn options_become_the_librarys_variables() {
    let Some(stage) = Stage::new() else { return };
    let options = [
        "--peers",
        "10.0.0.0/8",
        "--upgrade-after",
        "4,1k",
        "--ring-bytes",
        "64k",
        "--spin-us",
        "9",
        "--strict",
    ];
    let mut command = stage.command(&options, &["env"]);
    command.env("LD_PRELOAD", "/nonexistent/other.so");
    let ended = finish(command);
    let text = ended.stdout();
    let expected = [
        "VIADUCT_PEERS=10.0.0.0/8".to_owned(),
        "VIADUCT_UPGRADE_AFTER=4,1024".to_owned(),
        "VIADUCT_RING_BYTES=65536".to_owned(),
        "VIADUCT_SPIN_US=9".to_owned(),
        "VIADUCT_STRICT=1".to_owned(),
        format!("VIADUCT_SOCKET={}", stage.daemon.path()),
        format!("LD_PRELOAD={}:/nonexistent/other.so", stage.library),
    ];
    for line in expected {
        assert!(
            text.lines().any(|found| found == line),
            "no {line} in\n{text}"
        );
    }
}

#[test]
fn peers_are_this_host_or_what_the_environment_says() {
    let Some(stage) = Stage::new() else { return };
    let own = stage.run(&[], &["printenv", "VIADUCT_PEERS"]);
    assert!(
        own.stdout().starts_with("127.0.0.0/8,::1"),
        "{}",
        own.stdout()
    );
    let mut command = stage.command(&[], &["printenv", "VIADUCT_PEERS"]);
    command.env("VIADUCT_PEERS", "10.1.0.0/16");
    assert_eq!(finish(command).stdout(), "10.1.0.0/16\n");
}

#[test]
fn bad_options_are_one_line_and_status_2() {
    let Some(stage) = Stage::new() else { return };
    for (option, value, form) in [
        ("--peers", "10.0.0.0/8,host", "[!]ADDRESS"),
        ("--upgrade-after", "soon", "CALLS[,BYTES]"),
        ("--ring-bytes", "1", "from 65536 to 1073741824"),
        ("--spin-us", "-", "microseconds"),
        ("--stats-json", "/nonexistent/file", "cannot write"),
    ] {
        let ended = stage.run(&[option, value], &["true"]);
        ended.assert_fails(2, &[option, form]);
    }
    let socket = stage.daemon.path();
    let library = [
        "run",
        "--socket",
        socket,
        "--library",
        "/nonexistent/lib.so",
        "true",
    ];
    finish(viaduct(stage.dir.path(), &library))
        .assert_fails(2, &["--library", "/nonexistent/lib.so"]);
}

#[test]
fn statistics_are_those_of_the_session() {
    let totals = r#"{"ring_tx_bytes": 1024, "ring_rx_bytes": 2, "tcp_tx_bytes": 3, "tcp_rx_bytes": 4,
        "upgraded": 5, "declined": 6, "wakeups_sent": 7, "sleeps": 8, "reasons": {"young": 6}}"#;
    let answers = Answers {
        totals: totals.to_owned(),
        ..Answers::default()
    };
    let Some(stage) = Stage::with(answers) else {
        return;
    };
    let file = stage.dir.path().join("stats.json");
    let options = ["--stats", "--stats-json", file.to_str().unwrap()];
    let ended = stage.run(&options, &["printenv", "VIADUCT_SESSION"]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let session = u64::from_str_radix(ended.stdout().trim_end(), 16).unwrap();
    assert_eq!(*stage.daemon.asked.lock().unwrap().sessions, [session]);
    assert_ne!(session, 0);

    let written: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        written,
        serde_json::from_str::<serde_json::Value>(totals).unwrap()
    );
    let text = ended.stderr();
    for words in [
        "1.0 KiB sent, 2 B received",
        "5 upgraded, 6 declined (young 6)",
        "8 sleeps",
    ] {
        assert!(text.contains(words), "no \"{words}\" in\n{text}");
    }
}

#[test]
fn without_statistics_the_exit_status_stands_and_no_file_is_left() {
    let answers = Answers {
        totals: "nonsense".to_owned(),
        ..Answers::default()
    };
    let Some(stage) = Stage::with(answers) else {
        return;
    };
    let file = stage.dir.path().join("stats.json");
    fs::write(&file, "of yesterday").unwrap();
    let options = ["--stats-json", file.to_str().unwrap()];
    let ended = stage.run(&options, &["sh", "-c", "exit 9"]);
    ended.assert_fails(9, &["no statistics"]);
    let ended = stage.run(&options, &["sh", "-c", "kill -TERM $$"]);
    assert_eq!(ended.0.status.signal(), Some(15));
    let left: Vec<_> = fs::read_dir(stage.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("stats"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_run_inside_a_run_belongs_to_its_session() {
    let Some(stage) = Stage::new() else { return };
    let session = |options| {
        let mut command = stage.command(options, &["printenv", "VIADUCT_SESSION"]);
        command.env("VIADUCT_SESSION", "00000000000000ab");
        finish(command).stdout()
    };
    assert_eq!(session(&[]), "00000000000000ab\n");
    assert_ne!(session(&["--stats"]), "00000000000000ab\n");
}

#[test]
fn a_named_daemon_must_answer() {
    let Some(stage) = Stage::new() else { return };
    let missing = stage.dir.path().join("missing.sock");
    let missing = missing.to_str().unwrap();
    let options = [
        "run",
        "--library",
        &stage.library,
        "--socket",
        missing,
        "true",
    ];
    let ended = finish(viaduct(stage.dir.path(), &options));
    ended.assert_fails(1, &[missing, "start viaductd"]);
}

#[test]
fn what_cannot_be_accelerated_is_noted_and_still_run() {
    let Some(stage) = Stage::new() else { return };
    let source = "int main(void) { return 5; }\n";
    if let Some(path) = compile(stage.dir.path(), "static", source, &["-static"]) {
        let ended = stage.run(&[], &[path.to_str().unwrap()]);
        ended.assert_fails(
            5,
            &["note: ", "will not be accelerated", "statically linked"],
        );
    }
    let ended = stage.run(&["--peers", ""], &["sh", "-c", "exit 6"]);
    ended.assert_fails(6, &["names nobody"]);
}

/// Services are started with SIGPIPE ignored and rely on it; Rust's runtime changes it twice.
#[test]
fn signal_dispositions_and_mask_are_handed_on() {
    let Some(stage) = Stage::new() else { return };
    let show = "grep -E '^Sig(Ign|Blk)' /proc/self/status";
    for trap in [
        "",
        "trap '' PIPE;",
        "trap '' CHLD;",
        "trap '' HUP PIPE CHLD;",
    ] {
        let natively = shell(stage.dir.path(), &format!("{trap} exec sh -c \"{show}\""));
        for options in BOTH_WAYS {
            let line = stage.command(options, &["sh", "-c"]);
            let words = std::iter::once(line.get_program()).chain(line.get_args());
            let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
            let launched = format!("{trap} exec {} \"{show}\"", words.join(" "));
            let launched = shell(stage.dir.path(), &launched);
            assert_eq!(launched, natively, "{trap} {options:?}");
        }
    }
}

fn shell(dir: &Path, text: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", text]).env("XDG_RUNTIME_DIR", dir);
    let ended = finish(command);
    assert!(ended.0.status.success(), "{ended:?}");
    ended.stdout()
}
