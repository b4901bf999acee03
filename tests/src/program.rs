//! Programs under watch: run plain or under the library, with a time after which they are killed.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::build;

/// Time after which a program hangs. Generous: it is never reached where all is well.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// Peers of the tests: this machine.
pub const PEERS: &str = "127.0.0.0/8,::1";

/// A command without anything of Viaduct in its environment.
pub fn plain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VIADUCT_") {
            command.env_remove(name);
        }
    }
    // A panic of an end is one line.
    command
        .env_remove("LD_PRELOAD")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null());
    command
}

/// The environment of an accelerated program, without the library itself; connections register at once.
pub fn configure(command: &mut Command, socket: &Path) {
    command
        .env("VIADUCT_SOCKET", socket)
        .env("VIADUCT_PEERS", PEERS)
        .env("VIADUCT_UPGRADE_AFTER", "0");
}

/// A command under the library, with the daemon at `socket`.
pub fn accelerated(program: impl AsRef<OsStr>, socket: &Path) -> Command {
    let mut command = plain(program);
    configure(&mut command, socket);
    command.env("LD_PRELOAD", build::library());
    command
}

/// How a program ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finished {
    /// Exit code, or 128 + signal as a shell says it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs to the end.
///
/// # Panics
/// If the program cannot be started, or hangs.
pub fn finish(mut command: Command) -> Finished {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starting a program");
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child);
    let read = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Finished {
        code: code_of(status),
        stdout: read(stdout),
        stderr: read(stderr),
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for a child.
///
/// # Panics
/// If it hangs; it is killed first.
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status,
            Ok(None) if Instant::now() > deadline => {
                let whereabouts = whereabouts(child.id());
                let _ = child.kill();
                let _ = child.wait();
                panic!("process {} hangs: {whereabouts}", child.id());
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => panic!("waiting for process {}: {error}", child.id()),
        }
    }
}

/// Exit code, or 128 + signal.
pub fn code_of(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What the threads of a process are doing.
fn whereabouts(pid: u32) -> String {
    let mut all = String::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return all;
    };
    for task in tasks.flatten() {
        let read = |what: &str| std::fs::read_to_string(task.path().join(what)).unwrap_or_default();
        all += &format!("[{} {}] ", read("wchan"), read("syscall").trim_end());
    }
    all
}

/// Waits until `done`, which must come true.
///
/// # Panics
/// If it does not, naming `what`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not in {WATCHDOG:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
