//! Answers the tools, on a thread of its own: a tool that reads slowly, or a long list of
//! connections, never delays pairing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rdma_core::control::{MESSAGE_MAX, Message, Query, Text};

use crate::ledger::Ledger;
use crate::packet;
use crate::report::{self, Settings};

/// A tool that takes nothing for this long is not served.
const PATIENCE: Duration = Duration::from_secs(2);
/// Text per message.
const PIECE: usize = MESSAGE_MAX - 64;

/// A tool and its question.
#[derive(Debug)]
pub struct Tool {
    /// The event loop's name for the connection.
    pub token: u64,
    /// The connection.
    pub socket: Arc<OwnedFd>,
    /// Who asks.
    pub uid: u32,
    /// What.
    pub query: Query,
}

/// A tool that was served.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// As in [`Tool`].
    pub token: u64,
    /// False: it did not read, and is to be disconnected.
    pub good: bool,
}

/// The way to the thread.
#[derive(Debug)]
pub struct Reporter {
    questions: Sender<Tool>,
    answered: Receiver<Served>,
    bell: Arc<EventFd>,
}

impl Reporter {
    /// Starts the thread.
    ///
    /// # Errors
    /// No descriptor or no thread to be had.
    pub fn start(ledger: Arc<Ledger>, settings: Settings) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bell = Arc::new(EventFd::from_flags(flags)?);
        let (questions, queue) = channel::<Tool>();
        let (done, answered) = channel();
        let ring = Arc::clone(&bell);
        thread::Builder::new()
            .name("viaduct-report".to_owned())
            .spawn(move || {
                for tool in queue {
                    let good = serve(&tool, &ledger, &settings);
                    let token = tool.token;
                    // Before the loop hears of it, so that the loop's is the last reference.
                    drop(tool);
                    if done.send(Served { token, good }).is_err() {
                        return;
                    }
                    let _ = ring.write(1);
                }
            })?;
        Ok(Self {
            questions,
            answered,
            bell,
        })
    }

    /// Has a question answered. False if the thread is gone.
    #[must_use]
    pub fn ask(&self, tool: Tool) -> bool {
        self.questions.send(tool).is_ok()
    }

    /// Readable when [`Reporter::served`] has something.
    pub fn bell(&self) -> impl AsFd + '_ {
        self.bell.as_ref()
    }

    /// Tools that have been served since the last call.
    pub fn served(&self) -> impl Iterator<Item = Served> + '_ {
        let _ = self.bell.read();
        self.answered.try_iter()
    }
}

fn serve(tool: &Tool, ledger: &Ledger, settings: &Settings) -> bool {
    let text = report::text(ledger, settings, tool.uid, &tool.query);
    let mut rest = text.as_str();
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let cut = rest.floor_char_boundary(PIECE.min(rest.len()));
        let (piece, later) = rest.split_at(cut);
        rest = later;
        let body = Text {
            more: u32::from(!rest.is_empty()),
            reserved: 0,
        };
        let Some(length) = Message::Report(body, piece).emit(&mut buffer) else {
            return false;
        };
        let Some(bytes) = buffer.get(..length) else {
            return false;
        };
        if send_patiently(&tool.socket, bytes).is_err() {
            return false;
        }
        if rest.is_empty() {
            return true;
        }
    }
}

fn send_patiently(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match packet::send(socket, bytes, &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        if left.is_zero() || poll(&mut fds, timeout)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}
