//! A daemon that answers queries and revocations, and nothing else.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, recv,
    send, socket,
};
use rdma_core::control::{MESSAGE_MAX, Message, Query, Revoke, Text, parse};

/// What the fake says.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    pub(crate) limits: String,
    pub(crate) status: String,
    pub(crate) totals: String,
    pub(crate) revoked: String,
    /// Another control version in every header.
    pub(crate) version: Option<u16>,
    /// Texts are cut into pieces of this many bytes.
    pub(crate) piece: usize,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            limits: r#"{"version": "9.9.9", "limits": {"ring_bytes_max": 4194304}}"#.to_owned(),
            status: r#"{"daemon": {"version": "9.9.9"}}"#.to_owned(),
            totals: "{}".to_owned(),
            revoked: r#"{"revoked": 2, "already": 1, "refused": 0, "pending": 0}"#.to_owned(),
            version: None,
            piece: 7,
        }
    }
}

/// A fake in a thread of the test, until the process ends.
#[derive(Debug)]
pub(crate) struct FakeDaemon {
    pub(crate) socket: PathBuf,
    /// What it was asked.
    pub(crate) asked: Arc<Mutex<Asked>>,
}

/// What a fake was asked.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// The sessions that totals were asked for.
    pub(crate) sessions: Vec<u64>,
    /// What was to be revoked.
    pub(crate) revocations: Vec<Revoke>,
}

impl FakeDaemon {
    pub(crate) fn start(socket: &Path, answers: Answers) -> Self {
        let listener = listen_at(socket);
        let asked = Arc::default();
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Some(client) = next_client(&listener) {
                let (answers, seen) = (answers.clone(), Arc::clone(&seen));
                std::thread::spawn(move || serve(&client, &answers, &seen));
            }
        });
        Self {
            socket: socket.to_owned(),
            asked,
        }
    }

    pub(crate) fn path(&self) -> &str {
        self.socket.to_str().unwrap()
    }
}

fn listen_at(socket_path: &Path) -> OwnedFd {
    let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
    let listener = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(socket_path).unwrap()).unwrap();
    listen(&listener, Backlog::new(64).unwrap()).unwrap();
    listener
}

fn next_client(listener: &OwnedFd) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
    #[expect(unsafe_code, reason = "accept4 of nix returns a bare number")]
    // SAFETY: the descriptor is new and nobody else's.
    let client = unsafe { OwnedFd::from_raw_fd(fd) };
    Some(client)
}

/// Answers until the client leaves.
fn serve(client: &OwnedFd, answers: &Answers, asked: &Mutex<Asked>) {
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let length = match recv(client.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let mut asked = asked.lock().unwrap();
        let text = match parse(&buffer[..length], 0) {
            Ok(Message::Query(query)) => match query.what {
                Query::LIMITS => &answers.limits,
                Query::STATUS => &answers.status,
                Query::TOTALS => {
                    asked.sessions.push(query.session);
                    &answers.totals
                }
                other => panic!("query {other}"),
            },
            Ok(Message::Revoke(revoke)) => {
                asked.revocations.push(revoke);
                &answers.revoked
            }
            other => panic!("{other:?} is not for a tool"),
        };
        drop(asked);
        report(client, text, answers);
    }
}

fn report(client: &OwnedFd, text: &str, answers: &Answers) {
    let mut rest = text;
    loop {
        let (piece, after) = rest.split_at(answers.piece.min(rest.len()));
        let head = Text {
            more: u32::from(!after.is_empty()),
            reserved: 0,
        };
        let mut buffer = vec![0; MESSAGE_MAX];
        let length = Message::Report(head, piece).emit(&mut buffer).unwrap();
        if let Some(version) = answers.version {
            buffer[4..6].copy_from_slice(&version.to_ne_bytes());
        }
        // The client may have left already, as one that met another version does.
        let _ = send(
            client.as_raw_fd(),
            &buffer[..length],
            MsgFlags::MSG_NOSIGNAL,
        );
        if after.is_empty() {
            return;
        }
        rest = after;
    }
}

/// The shell script that stands in for `viaductd`: it runs [`as_program`] in this test program.
pub(crate) fn program_script() -> String {
    let tests = std::env::current_exe().unwrap();
    format!(
        "#!/bin/sh\necho \"$*\" >> \"$(dirname \"$0\")/starts\"\n\
         FAKE_DAEMON=\"$*\" exec '{}' --ignored --exact fake_daemon::as_program --nocapture\n",
        tests.display()
    )
}

/// Not a test: the fake as a program of its own, which leaves after its last client, and not before
/// a file named `linger` beside its socket is gone.
#[test]
#[ignore = "run by a script in the tests of the embedded daemon"]
fn as_program() {
    let Ok(arguments) = std::env::var("FAKE_DAEMON") else {
        return;
    };
    let words: Vec<&str> = arguments.split(' ').collect();
    let ["--embedded", "--socket", path, "--ready-fd", ready] = words[..] else {
        panic!("unexpected arguments: {arguments}");
    };
    let path = Path::new(path);
    // As the real one does: nobody else can be listening there.
    let _ = fs::remove_file(path);
    let listener = listen_at(path);
    fs::write(path.with_extension("pid"), std::process::id().to_string()).unwrap();
    let mut ready = fs::File::options()
        .write(true)
        .open(format!("/proc/self/fd/{ready}"))
        .unwrap();
    ready.write_all(b"\n").unwrap();

    let clients = Arc::new(Mutex::new(0));
    loop {
        let Some(client) = next_client(&listener) else {
            return;
        };
        *clients.lock().unwrap() += 1;
        let (count, path) = (Arc::clone(&clients), path.to_owned());
        std::thread::spawn(move || {
            serve(&client, &Answers::default(), &Mutex::default());
            let mut count = count.lock().unwrap();
            *count -= 1;
            if *count == 0 {
                let linger = path.with_file_name("linger");
                super::scene::wait_until(|| !linger.exists());
                let _ = fs::remove_file(&path);
                std::process::exit(0);
            }
        });
    }
}
