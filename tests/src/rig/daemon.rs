//! A private daemon, and questions to it.

use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use frontend_drv::client::Client;
use rdma_core::control::{MESSAGE_MAX, Message, Query};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use tempfile::TempDir;

use super::build;
use super::manager::Manager;
use super::patience::Patience;
use super::program::WATCHDOG;

/// A daemon of the test's own, in a directory of its own.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Receiver<String>,
    socket: PathBuf,
    more: More,
    manager: Option<Manager>,
    directory: TempDir,
}

/// How it is started, besides.
#[derive(Debug, Default)]
struct More {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Daemon {
    /// A daemon that listens.
    pub fn start() -> Self {
        Self::logging_to(Stdio::piped())
    }

    /// A daemon that listens and logs to `log`.
    pub fn logging_to(log: impl Into<Stdio>) -> Self {
        Self::with(log, "", false)
    }

    /// A daemon with this configuration.
    pub fn configured(config: &str) -> Self {
        Self::with(Stdio::piped(), config, false)
    }

    /// As [`Daemon::configured`], looked after by a [`Manager`].
    pub fn managed(config: &str) -> Self {
        Self::with(Stdio::piped(), config, true)
    }

    /// Two daemons with a link between them, as on two hosts. A program of one is paired with a program of the
    /// other, on whatever loopback address. `more` stands in the configuration of each link.
    pub fn linked(more: &str) -> [Self; 2] {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a free port"));
        let [one, other] = sockets.map(|socket| socket.local_addr().expect("bound"));
        [(one, other), (other, one)].map(|(own, far)| {
            let peers = ["127.0.0.0/8", "::1"]
                .map(|prefix| format!("{{ prefix = \"{prefix}\", backend = \"{far}\" }}"));
            Self::configured(&format!(
                "[[link]]\nname = \"test\"\ndriver = \"udp\"\nbind = \"{own}\"\npeers = [{}]\n{more}\n",
                peers.join(", ")
            ))
        })
    }

    fn with(log: impl Into<Stdio>, config: &str, managed: bool) -> Self {
        // Other users' programs find the socket, too.
        let directory = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("a temporary directory");
        let socket = directory.path().join("d.sock");
        let file = directory.path().join("config.toml");
        std::fs::write(&file, config).expect("a writable directory");
        let manager = managed.then(|| Manager::start(directory.path()));
        let (child, log) = spawn(
            directory.path(),
            &socket,
            &More::default(),
            manager.as_ref(),
            log.into(),
        );
        Self {
            more: More::default(),
            child,
            log,
            socket,
            manager,
            directory,
        }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.end().is_none()
    }

    /// Ends it without giving it a chance to say goodbye.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A new daemon in place of one that was killed, on the same path.
    pub fn restart(&mut self) {
        self.kill();
        let (directory, manager) = (self.directory.path(), self.manager.as_ref());
        let (socket, log) = (&self.socket, Stdio::piped());
        (self.child, self.log) = spawn(directory, socket, &self.more, manager, log);
    }

    /// The same, from now on with one more argument.
    pub fn restart_with(&mut self, argument: &str) {
        self.more.arguments.push(argument.to_owned());
        self.restart();
    }

    /// The same, from now on with one more environment variable.
    pub fn restart_in(&mut self, name: &str, value: &str) {
        self.more
            .variables
            .push((name.to_owned(), value.to_owned()));
        self.restart();
    }

    /// Who looks after it.
    pub const fn manager(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    /// The process that keeps for it what the next daemon needs, if there is one.
    pub fn keeper(&self) -> Option<Pid> {
        let socket = self.socket.with_extension("sock.keeper");
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers.find_map(|number: i32| {
            let line = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
            let last = line.split(|byte| *byte == 0).rev().nth(1)?;
            let is_ours = last == socket.as_os_str().as_encoded_bytes();
            is_ours.then(|| Pid::from_raw(number)).flatten()
        })
    }

    /// Ends that process without giving it a chance to say goodbye.
    pub fn kill_keeper(&self) {
        if let Some(keeper) = self.keeper() {
            let _ = kill_process(keeper, Signal::KILL);
            retry("the keeper ends", || self.keeper().is_none().then_some(()));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our own child");
    }

    /// Sets the soft limit of `resource`; `None` gives all that the hard limit allows.
    pub fn limit(&self, resource: Resource, current: Option<u64>) {
        let hard = getrlimit(resource).maximum;
        let limit = Rlimit {
            current: current.or(hard),
            maximum: hard,
        };
        prlimit(Some(self.pid()), resource, limit).expect("our own child");
    }

    /// Totals of `session`.
    pub fn totals(&self, session: u64) -> Value {
        self.ask(Query::TOTALS, session)
    }

    /// Connections and processes.
    pub fn status(&self) -> Value {
        self.ask(Query::STATUS, 0)
    }

    /// A report; panics if there is none in time.
    pub fn ask(&self, what: u32, session: u64) -> Value {
        let path = self.socket.to_str().expect("made by us");
        let client = Client::connect(path).expect("the daemon listens");
        let query = Query {
            what,
            reserved: 0,
            session,
        };
        client
            .send(&Message::Query(query), &[])
            .expect("the first message fits");
        let mut buffer = vec![0; MESSAGE_MAX];
        let mut text = String::new();
        loop {
            match client.receive_blocking(&mut buffer, WATCHDOG) {
                Ok((Message::Report(body, piece), _)) => {
                    text.push_str(piece);
                    if body.more == 0 {
                        return serde_json::from_str(&text).expect("reports are JSON");
                    }
                }
                other => panic!("{other:?} instead of a report"),
            }
        }
    }

    /// What it logged since the last call.
    pub fn log(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    /// How it ended, if it did.
    pub fn end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let end = self.end();
        self.kill();
        if self.socket.with_extension("sock.keeper").exists() {
            self.kill_keeper();
        }
        #[expect(clippy::print_stderr, reason = "the log of a failed test")]
        if std::thread::panicking() {
            let log: Vec<String> = self.log.iter().collect();
            eprintln!("the daemon ({end:?}) logged:\n{}", log.join("\n"));
        }
    }
}

/// Starts a daemon and waits until programs can connect.
fn spawn(
    directory: &Path,
    socket: &Path,
    more: &More,
    manager: Option<&Manager>,
    log: Stdio,
) -> (Child, Receiver<String>) {
    let _ = std::fs::remove_file(socket);
    let start = |command: &mut Command| {
        command
            .args(["--log", "info", "--ready-fd", "1", "--socket"])
            .arg(socket)
            .arg("--config")
            .arg(directory.join("config.toml"))
            .args(&more.arguments)
            .envs(more.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("viaductd starts")
    };
    let program = build::viaductd();
    let mut child = match manager {
        None => start(Command::new(program).env_remove("NOTIFY_SOCKET")),
        Some(manager) => manager.launch(&program, start),
    };
    let mut ready = [0; 1];
    let mut stdout = child.stdout.take().expect("piped");
    assert!(
        wait_readable(&stdout, WATCHDOG) && stdout.read_exact(&mut ready).is_ok(),
        "the daemon did not start"
    );
    let log = child.stderr.take().map_or_else(|| channel().1, follow);
    (child, log)
}

/// Reads a log as it is written. Not into a file: that would be under the limits under test.
fn follow(log: ChildStderr) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Waits until `fd` is readable or at its end.
pub fn wait_readable(fd: impl AsFd, timeout: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let mut entry = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut entry, Some(&timeout)) == Ok(1)
}

/// Waits until `condition` gives something, for what happens without saying so.
///
/// # Panics
/// If it has not happened when the watchdog barks.
pub fn retry<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let mut patience = Patience::new();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            !patience.is_beyond(WATCHDOG / 2),
            "{what}: it never happened"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
