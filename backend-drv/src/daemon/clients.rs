//! Control sockets: accepting, receiving, and ending.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering as Count;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use rdma_core::control::{MESSAGE_MAX, Message, ParseError, Query, Text, parse};
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::reason::Reason;
use rustix::io::Errno;

use super::outbox::{Outbox, is_shortage};
use super::{ACCEPT_PAUSE, Daemon, LISTENER, spare};
use crate::accounts::{Account, Holdings};
use crate::identity::{self, IdentityError, PeerCredentials};
use crate::ids::Process;
use crate::packet::{self, Received};
use crate::reporter::Tool;

/// Messages taken from one client before the others get their turn.
const TURN: usize = 32;
/// Connections accepted before clients get their turn.
const ACCEPT_TURN: usize = 64;

/// Bytes under way to a client; room for two of the largest messages.
const SEND_BUFFER: usize = 64 * 1024;

/// A control socket.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) credentials: PeerCredentials,
    pub(super) role: Role,
    pub(super) outbox: Outbox,
    pub(super) interest: EpollFlags,
}

/// What a client has turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// It has not said anything.
    Unknown,
    /// It said HELLO.
    Program(Process),
    /// It asks questions.
    Tool,
}

/// A client did something that ends its connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Offence {
    #[error("{0}")]
    Parse(#[from] ParseError),
    #[error("{0}")]
    Identity(#[from] IdentityError),
    #[error("layout version {0} is not {LAYOUT_VERSION}")]
    Layout(u32),
    #[error("message kind {0} does not belong here")]
    OutOfPlace(u16),
    #[error("the daemon is out of descriptors")]
    NoDescriptors,
    #[error("no memory: {0}")]
    NoMemory(io::Error),
    #[error("no process number is free")]
    NoNumber,
}

impl Offence {
    const fn reason(&self) -> Reason {
        match self {
            Self::Parse(_) | Self::Layout(_) | Self::OutOfPlace(_) => Reason::Version,
            Self::Identity(_) => Reason::Identity,
            Self::NoDescriptors => Reason::FdLimit,
            Self::NoMemory(_) => Reason::NoMemory,
            Self::NoNumber => Reason::Quota,
        }
    }
}

impl Daemon {
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPT_TURN {
            match self.listener.accept() {
                Ok(socket) => self.admit(socket),
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    self.pause_accepting();
                    return;
                }
                // The client has given up meanwhile.
                Err(_) => {}
            }
        }
    }

    /// No descriptor for a new client: with the spare one it is turned away rather than left
    /// waiting, and nobody else is looked at until a descriptor is free.
    fn pause_accepting(&mut self) {
        self.accepting.spare = None;
        drop(self.listener.accept());
        self.accepting.spare = spare();
        let now = Instant::now();
        if self.accepting.again_at.is_none() && self.may_log() {
            tracing::warn!("out of descriptors: no new clients for the moment");
        }
        self.accepting.again_at = Some(now + ACCEPT_PAUSE);
        let mut nothing = EpollEvent::new(EpollFlags::empty(), LISTENER);
        if let Err(error) = self.epoll.modify(self.listener.socket(), &mut nothing) {
            tracing::error!(%error, "epoll");
        }
    }

    pub(super) fn resume_accepting(&mut self) {
        self.accepting.again_at = None;
        if self.accepting.spare.is_none() {
            self.accepting.spare = spare();
        }
        let mut readable = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
        if let Err(error) = self.epoll.modify(self.listener.socket(), &mut readable) {
            tracing::error!(%error, "epoll");
        }
    }

    fn admit(&mut self, socket: OwnedFd) {
        let Ok(credentials) = identity::peer_credentials(&socket) else {
            return;
        };
        let user = Account::User(credentials.uid);
        let full = self.clients.len() >= usize::try_from(self.options.limits.clients).unwrap_or(0);
        if full
            || self.disposal.is_flooded_by(credentials.uid)
            || self.accounts.charge(user, Holdings::PROCESS).is_err()
        {
            if self.may_log() {
                tracing::warn!(
                    uid = credentials.uid,
                    pid = credentials.pid,
                    "too many clients"
                );
            }
            send_failure(&socket, Reason::Quota, "too many clients");
            return;
        }
        // What is under way to a client that does not read is ours to pay for.
        if let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)
        {
            tracing::debug!(%error, "SO_SNDBUF");
        }
        self.last_token += 1;
        let token = self.last_token;
        let interest = EpollFlags::EPOLLIN;
        if let Err(error) = self.epoll.add(&socket, EpollEvent::new(interest, token)) {
            tracing::warn!(%error, "epoll");
            self.accounts.discharge(user, Holdings::PROCESS);
            return;
        }
        tracing::debug!(
            token,
            uid = credentials.uid,
            pid = credentials.pid,
            "client"
        );
        self.had_client = true;
        self.clients.insert(
            token,
            Client {
                socket: Arc::new(socket),
                credentials,
                role: Role::Unknown,
                outbox: Outbox::default(),
                interest,
            },
        );
    }

    pub(super) fn serve_client(&mut self, token: u64, events: EpollFlags) {
        if events.contains(EpollFlags::EPOLLOUT) {
            self.flush(token);
        }
        if !events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            return;
        }
        for _ in 0..TURN {
            let Some(client) = self.clients.get(&token) else {
                return;
            };
            let (socket, uid) = (Arc::clone(&client.socket), client.credentials.uid);
            match self.inbox.receive(&*socket) {
                Ok(received) if received.length == 0 => {
                    let orderly = received.fds.is_empty();
                    self.disposal.close(uid, received.fds);
                    drop(socket);
                    self.close(token, orderly);
                    return;
                }
                Ok(received) => {
                    drop(socket);
                    self.handle_packet(token, uid, received);
                    self.perform();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_shortage(&error) => return,
                Err(_) => {
                    drop(socket);
                    self.close(token, false);
                    return;
                }
            }
            if self.is_away(token) {
                return;
            }
        }
    }

    fn handle_packet(&mut self, token: u64, uid: u32, received: Received) {
        let Received {
            length,
            cut,
            mut fds,
            fds_lost,
        } = received;
        // Taken out while the message borrows it.
        let inbox = std::mem::take(&mut self.inbox);
        let result = if cut {
            Err(ParseError::Long(length).into())
        } else {
            match parse(inbox.bytes(length), fds.len()) {
                Ok(message) => self.handle_message(token, &message, &mut fds),
                Err(ParseError::Fds(_)) if fds_lost => self.handle_loss(token, inbox.bytes(length)),
                Err(error) => Err(error.into()),
            }
        };
        self.inbox = inbox;
        // Whatever was not taken.
        self.disposal.close(uid, fds);
        if let Err(offence) = result {
            self.fail(token, &offence);
        }
    }

    /// The descriptors of a message were lost because we have too many open.
    fn handle_loss(&mut self, token: u64, bytes: &[u8]) -> Result<(), Offence> {
        let role = self.clients.get(&token).map(|client| client.role);
        let Some(Role::Program(process)) = role else {
            return Err(Offence::NoDescriptors);
        };
        match parse(bytes, 1) {
            Ok(Message::Register(register)) => {
                self.broker
                    .register(process, &register, Err(Reason::NoMemory));
            }
            Ok(Message::Context(context)) => self.ignore_context(process, context.context),
            _ => return Err(Offence::NoDescriptors),
        }
        Ok(())
    }

    /// Hands the client to the reporter; it is not listened to until it has its answer.
    pub(super) fn query(&mut self, token: u64, query: &Query) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        client.role = Role::Tool;
        let tool = Tool {
            token,
            socket: Arc::clone(&client.socket),
            uid: client.credentials.uid,
            query: *query,
        };
        self.set_interest(token, EpollFlags::empty());
        if !self.reporter.ask(tool) {
            tracing::error!("the reporter's thread is gone");
            self.doomed.push(token);
        }
    }

    pub(super) fn take_served(&mut self) {
        let served: Vec<_> = self.reporter.served().collect();
        for served in served {
            if served.good {
                self.set_interest(served.token, EpollFlags::EPOLLIN);
            } else {
                self.doomed.push(served.token);
            }
        }
    }

    fn is_away(&self, token: u64) -> bool {
        self.clients
            .get(&token)
            .is_none_or(|client| client.interest.is_empty())
    }

    pub(super) fn set_interest(&mut self, token: u64, interest: EpollFlags) {
        let Some(client) = self.clients.get_mut(&token) else {
            return;
        };
        if client.interest == interest {
            return;
        }
        client.interest = interest;
        let mut event = EpollEvent::new(interest, token);
        if let Err(error) = self.epoll.modify(&*client.socket, &mut event) {
            tracing::warn!(%error, "epoll");
            self.doomed.push(token);
        }
    }

    /// Tells a client what it did wrong, and ends the connection.
    fn fail(&mut self, token: u64, offence: &Offence) {
        self.ledger.malformed.fetch_add(1, Count::Relaxed);
        let Some(client) = self.clients.get(&token) else {
            return;
        };
        let (socket, credentials) = (Arc::clone(&client.socket), client.credentials);
        if self.may_log() {
            let PeerCredentials { uid, pid } = credentials;
            tracing::warn!(uid, pid, %offence, "client disconnected");
        }
        send_failure(&socket, offence.reason(), &offence.to_string());
        drop(socket);
        self.doomed.push(token);
    }

    /// Ends a connection. `orderly`: the client did, and everything it sent has been read.
    pub(super) fn close(&mut self, token: u64, orderly: bool) {
        let Some(client) = self.clients.remove(&token) else {
            return;
        };
        let uid = client.credentials.uid;
        if let Err(error) = self.epoll.delete(&*client.socket) {
            tracing::warn!(%error, "epoll");
        }
        if !orderly && let Ok(socket) = Arc::try_unwrap(client.socket) {
            // What it sent and nobody read may hold descriptors.
            self.disposal.close(uid, vec![socket]);
        }
        self.accounts
            .discharge(Account::User(uid), Holdings::PROCESS);
        if let Role::Program(process) = client.role {
            tracing::debug!(%process, "program left");
            self.ledger.retire(process);
            if let Some(program) = self.programs.remove(&process) {
                for _ in 0..program.waiters.doorbells() {
                    self.accounts
                        .discharge(Account::User(uid), Holdings::DOORBELL);
                }
                self.departed.insert(process, program);
            }
            self.broker.leave(process);
        }
        if self.accepting.again_at.is_some() {
            self.resume_accepting();
        }
    }
}

/// A FAILURE message, if the socket takes it.
fn send_failure(socket: &OwnedFd, reason: Reason, text: &str) {
    let body = Text {
        more: reason.code(),
        reserved: 0,
    };
    let mut buffer = [0; MESSAGE_MAX];
    if let Some(length) = Message::Failure(body, text).emit(&mut buffer)
        && let Some(bytes) = buffer.get(..length)
    {
        let _ = packet::send(socket, bytes, &[]);
    }
}
