//! A program in a process of its own: another user, another namespace, or one to be killed.
//!
//! It is this test binary, told by its environment to run [`a_program`] only.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rdma_core::control::{Message, Query};
use rdma_core::reason::Reason;

use crate::client::{ALL, Program, Tool, registration};

const SOCKET: &str = "VIADUCT_TEST_SOCKET";
const ADDRESS: &str = "VIADUCT_TEST_ADDRESS";
const SESSION: &str = "VIADUCT_TEST_SESSION";
const REVOKES: &str = "VIADUCT_TEST_REVOKES";

/// The other process.
pub(crate) struct Helper {
    child: Child,
    said: BufReader<ChildStdout>,
    /// Our end of its connection.
    pub(crate) server: TcpStream,
}

/// How to start it.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// Words before the command.
    pub(crate) wrapper: &'a [&'a str],
    pub(crate) uid: Option<u32>,
    pub(crate) session: u64,
    /// It asks for everything to be revoked once it has registered.
    pub(crate) revokes: bool,
}

impl Helper {
    /// Starts a program that connects to us and registers its end in slot 0. `None` if such a
    /// process cannot be had here.
    pub(crate) fn start(socket: &Path, start: &Start<'_>) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let executable = std::env::current_exe().unwrap();
        let mut command = match start.wrapper.split_first() {
            Some((wrapper, rest)) => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg(executable);
                command
            }
            None => Command::new(executable),
        };
        command
            .args(["--exact", "helper::a_program", "--nocapture"])
            .env(SOCKET, socket)
            .env(ADDRESS, listener.local_addr().unwrap().to_string())
            .env(SESSION, start.session.to_string())
            .env(REVOKES, if start.revokes { "1" } else { "" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(uid) = start.uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().ok()?;
        let mut said = BufReader::new(child.stdout.take()?);
        let began = find(&mut said, "began");
        if began.is_none() {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        let (server, _) = listener.accept().unwrap();
        Some(Self {
            child,
            said,
            server,
        })
    }

    /// What became of its registration: `None` if it shares memory with us, `relayed`, or a reason.
    pub(crate) fn outcome(&mut self) -> Option<String> {
        let line = find(&mut self.said, "outcome").expect("it says so");
        Some(line).filter(|reason| reason != "paired")
    }

    /// How many programs its user sees; after [`Helper::outcome`] or instead of it.
    pub(crate) fn visible_programs(&mut self) -> usize {
        let line = find(&mut self.said, "visible").expect("it says so");
        line.trim().parse().unwrap()
    }

    /// The next thing that it says of `key`.
    pub(crate) fn said(&mut self, key: &str) -> String {
        find(&mut self.said, key).expect("it says so")
    }

    /// Ends it without a warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has it become another program, which keeps the connection and nothing else.
    pub(crate) fn exec(&mut self) {
        let mut stdin = self.child.stdin.take().unwrap();
        stdin.write_all(b"exec\n").unwrap();
        find(&mut self.said, "execing").unwrap();
        self.child.stdin = Some(stdin);
    }

    /// Lets it end.
    pub(crate) fn finish(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(said: &mut impl BufRead, key: &str) -> Option<String> {
    for line in said.lines() {
        // The test harness writes on the same lines.
        if let Some((_, rest)) = line.ok()?.split_once(&format!("@{key} ")) {
            return Some(rest.to_owned());
        }
    }
    None
}

#[test]
fn a_program() {
    let Ok(socket) = std::env::var(SOCKET) else {
        // Not told to be one.
        return;
    };
    println!("@began .");
    let address = std::env::var(ADDRESS).unwrap();
    let session = std::env::var(SESSION).unwrap().parse().unwrap();
    let connection = TcpStream::connect(address).unwrap();
    let mut program = Program::hello(Path::new(&socket), session);
    program.register(0, &connection, &registration(&connection, 1));
    let mut answer = None;
    if std::env::var(REVOKES).is_ok_and(|value| !value.is_empty()) {
        program.sync();
        answer = Some(Tool::connect(Path::new(&socket)).revoke(&ALL));
    }
    let outcome = loop {
        match program.receive().0 {
            Message::Refused(refused) => break Reason::from_code(refused.reason).unwrap().name(),
            Message::Paired(paired) if paired.relayed == 1 => break "relayed",
            Message::Paired(_) => break "paired",
            _ => {}
        }
    };
    println!("@outcome {outcome}");
    if let Some(answer) = answer {
        println!("@answer {answer}");
    }
    let status = Tool::connect(Path::new(&socket)).ask(Query::STATUS, 0);
    println!("@visible {}", status["processes"].as_array().unwrap().len());
    let mut order = String::new();
    std::io::stdin().lock().read_line(&mut order).unwrap();
    if order == "exec\n" {
        rustix::io::fcntl_setfd(&connection, rustix::io::FdFlags::empty()).unwrap();
        println!("@execing .");
        std::io::stdout().flush().unwrap();
        let error = Command::new("cat").exec();
        panic!("{error}");
    }
    let _ = std::io::stdin().read(&mut [0]);
}
