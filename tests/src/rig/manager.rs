//! What systemd is to a daemon that it starts: it hears how the daemon does, and stores descriptors for it.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Passes descriptors from number 3 on, as systemd does, and becomes the program.
const STARTER: &str = "n=3; for fd in $STORED; do eval \"exec $n<&$fd $fd<&-\"; n=$((n + 1)); done; \
                       export LISTEN_PID=$$; exec \"$@\"";

/// Stored descriptors wait above those that the started program gets.
const ABOVE: i32 = 200;

type Store = Vec<(String, OwnedFd)>;

/// See the module documentation.
#[derive(Debug)]
pub struct Manager {
    path: PathBuf,
    store: Arc<Mutex<Store>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    /// One that listens in `directory`.
    pub fn start(directory: &Path) -> Self {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a free path");
        let pause = Some(Duration::from_millis(50));
        socket.set_read_timeout(pause).expect("not zero");
        let store = Arc::new(Mutex::new(Store::new()));
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (store, over) = (Arc::clone(&store), Arc::clone(&over));
            move || {
                while !over.load(Ordering::Relaxed) {
                    hear(&socket, &store);
                }
            }
        });
        Self {
            path,
            store,
            over,
            thread: Some(thread),
        }
    }

    /// How many descriptors are stored.
    pub fn stored(&self) -> usize {
        self.store.lock().map_or(0, |store| store.len())
    }

    /// Starts `program` with what is stored, by `spawn`.
    pub fn launch<T>(&self, program: &Path, spawn: impl FnOnce(&mut Command) -> T) -> T {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let passed: Vec<OwnedFd> = store
            .iter()
            .map(|(_, fd)| {
                let fd = fcntl_dupfd_cloexec(fd, ABOVE).expect("a descriptor");
                fcntl_setfd(&fd, FdFlags::empty()).expect("ours");
                fd
            })
            .collect();
        let numbers: Vec<_> = passed.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let names: Vec<_> = store.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("bash");
        command
            .args(["-c", STARTER, "bash"])
            .arg(program)
            .env("NOTIFY_SOCKET", &self.path)
            .env("STORED", numbers.join(" "))
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        spawn(&mut command)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Works off one message, if one comes.
fn hear(socket: &UnixDatagram, store: &Mutex<Store>) {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        flags,
    );
    let Ok(received) = received else { return };
    let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
    let fds = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    for fd in fds.flatten() {
        if text.contains("FDSTORE=1") {
            store.push((name.unwrap_or("stored").to_owned(), fd));
        }
    }
    if text.contains("FDSTOREREMOVE=1") {
        store.retain(|(known, _)| Some(known.as_str()) != name);
    }
}
