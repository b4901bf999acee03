//! Programs, plain or under the library, with a watchdog.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::build;

/// Ends whatever hangs. Nothing is expected to take that long.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// Session under which all accelerated programs of a daemon run, unless told otherwise.
pub const SESSION: u64 = 0x5e55;

/// How a program runs: its environment.
#[derive(Clone, Debug, Default)]
pub struct Form {
    variables: Vec<(String, String)>,
    user: Option<u32>,
}

impl Form {
    /// Without the library.
    pub fn plain() -> Self {
        Self::default()
    }

    /// Under the library, with everybody on this machine a peer and upgrades at once.
    pub fn accelerated(socket: &Path) -> Self {
        Self::plain()
            .with("LD_PRELOAD", build::library())
            .with("VIADUCT_SOCKET", socket)
            .with("VIADUCT_PEERS", "127.0.0.0/8")
            .with("VIADUCT_UPGRADE_AFTER", "0")
            .with("VIADUCT_SESSION", format!("{SESSION:x}"))
    }

    /// With a variable set (or set differently).
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref().to_string_lossy().into_owned();
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value));
        self
    }

    /// As another user, which takes root.
    #[must_use]
    pub const fn as_user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// `program` in this form.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("VIADUCT_") || text == "LD_PRELOAD" {
                command.env_remove(&name);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs `program` to its end with `input`.
    pub fn run(&self, program: &str, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let pid = Pid::from_child(&child);
        let mut stdin = child.stdin.take().expect("piped");
        // A program that ends early does not read.
        let _ = stdin.write_all(input);
        drop(stdin);
        let (done, waiting) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if waiting.recv_timeout(WATCHDOG) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    let _ = kill_process(pid, Signal::KILL);
                }
            });
            let output = child.wait_with_output().expect("our own child");
            drop(done);
            output
        })
    }
}

/// A program that does what it is told, one line at a time: the running test's own executable in
/// another role. See the test for the lines it understands.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    name: PathBuf,
}

/// The test function that becomes an agent when [`ROLE`] is set.
const ENTRY: &str = "agent_role";

/// Set for an agent.
pub const ROLE: &str = "VIADUCT_TEST_ROLE";

/// In front of an agent's answers; everything else that it prints is the test runner's.
pub const MARK: &str = "@ ";

impl Agent {
    /// Starts one.
    pub fn start(form: &Form) -> Self {
        let name = std::env::current_exe().expect("the test's executable");
        let mut child = form
            .command(&name)
            .args([ENTRY, "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, "agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test's executable starts");
        let stdout = child.stdout.take().expect("piped");
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(answer) = line.strip_prefix(MARK)
                    && sender.send(answer.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
            name,
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Tells it to do something and does not wait.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it was not dismissed");
        writeln!(stdin, "{line}").expect("the agent reads");
    }

    /// The answer to the oldest line that was not answered.
    ///
    /// # Panics
    /// If there is none: the agent died, or hangs and is killed.
    pub fn answer(&mut self) -> String {
        match self.lines.recv_timeout(WATCHDOG) {
            Ok(line) => line,
            Err(error) => {
                let _ = self.child.kill();
                let status = self.child.wait().expect("our own child");
                panic!("no answer ({error}; {status}) of {}", self.name.display());
            }
        }
    }

    /// Tells it to do something and returns its answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it end by itself; panics if it does not end well.
    pub fn dismiss(mut self) {
        drop(self.stdin.take());
        while self.lines.recv_timeout(WATCHDOG).is_ok() {}
        let status = self.child.wait().expect("our own child");
        assert!(
            status.success(),
            "an agent ended with {status} (signal {:?})",
            status.signal()
        );
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}
