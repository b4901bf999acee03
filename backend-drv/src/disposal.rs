//! Closes descriptors that should not have been sent.
//!
//! Closing a file can take as long as its owner likes: a lingering socket, a file system in user
//! space. So it is done beside the event loop, and each user may only have so many descriptors
//! waiting; the daemon talks to nobody who has more.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::accounts::{Account, Accounts, Holdings};

/// Threads that close; a user who manages to block all of them delays only other strays.
const CLOSERS: usize = 2;

/// The way to the closing threads.
#[derive(Debug)]
pub struct Disposal {
    accounts: Arc<Accounts>,
    queues: Vec<Sender<Stray>>,
    next: usize,
}

struct Stray {
    fds: Vec<OwnedFd>,
    uid: u32,
}

impl Disposal {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(accounts: &Arc<Accounts>) -> std::io::Result<Self> {
        let mut queues = Vec::new();
        for _ in 0..CLOSERS {
            let (sender, receiver) = channel();
            let accounts = Arc::clone(accounts);
            thread::Builder::new()
                .name("viaduct-close".to_owned())
                .spawn(move || close(&receiver, &accounts))?;
            queues.push(sender);
        }
        Ok(Self {
            accounts: Arc::clone(accounts),
            queues,
            next: 0,
        })
    }

    /// Closes `fds`, which `uid` sent, some time.
    pub fn close(&mut self, uid: u32, fds: Vec<OwnedFd>) {
        if fds.is_empty() {
            return;
        }
        let count = Holdings::strays(fds.len() as u64);
        // Over quota or not, they are here and must be counted.
        self.accounts.owe(Account::User(uid), count);
        self.next = self.next.wrapping_add(1);
        if let Some(queue) = self.queues.get(self.next % CLOSERS) {
            // The threads end only with the daemon; then dropping closes as well.
            let _ = queue.send(Stray { fds, uid });
        }
    }

    /// Whether `uid` has too many descriptors waiting to be closed.
    pub fn is_flooded_by(&self, uid: u32) -> bool {
        self.accounts.is_over(Account::User(uid))
    }
}

fn close(queue: &Receiver<Stray>, accounts: &Accounts) {
    for Stray { fds, uid } in queue {
        for fd in fds {
            drop(fd);
            accounts.discharge(Account::User(uid), Holdings::strays(1));
        }
    }
}
