//! What the messages of programs and tools mean.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering as Count};

use rdma_core::control::{Context, Hello, Message, ParseError, Register};
use rdma_core::event::WaitRef;
use rdma_core::layout::{LAYOUT_VERSION, RING_LOG2_MAX, RING_LOG2_MIN};
use rdma_core::reason::Reason;

use super::clients::{Offence, Role};
use super::{Daemon, Program};
use crate::accounts::{Account, Holdings};
use crate::broker::{ProgramFacts, Proof};
use crate::identity;
use crate::ids::Process;
use crate::ledger::ProgramRecord;
use crate::pairing::{Sample, Tuple};
use crate::shared::{EventMemory, SlotArena};
use crate::sock_diag::Namespace;
use crate::wake::Waiters;

impl Daemon {
    pub(super) fn handle_message(
        &mut self,
        token: u64,
        message: &Message<'_>,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), Offence> {
        let Some(client) = self.clients.get(&token) else {
            return Ok(());
        };
        tracing::trace!(token, ?message, "received");
        match (client.role, message) {
            (Role::Unknown, Message::Hello(hello)) => self.hello(token, hello, fds),
            (Role::Program(process), Message::Context(context)) => {
                self.context(process, context, fds)
            }
            (Role::Program(process), Message::Register(register)) => {
                self.register(process, register, fds);
                Ok(())
            }
            (Role::Program(process), Message::Unregister(slot)) => {
                self.broker.unregister(process, *slot);
                Ok(())
            }
            (Role::Program(process), Message::Kick(target)) => {
                if !self.broker.kick(process, *target) {
                    tracing::debug!(%process, ?target, "kick of a stranger");
                }
                Ok(())
            }
            (Role::Program(process), Message::Retracted(slot)) => {
                match self.broker.far_registration(process, *slot) {
                    Some(id) => self.withdrawals.plan_rescue(id),
                    None => {
                        if let Some(connection) = self.broker.connection_of(process, *slot) {
                            self.tell_retracted(connection);
                        }
                    }
                }
                Ok(())
            }
            (Role::Unknown | Role::Tool, Message::Revoke(revoke)) => {
                self.revoke(token, revoke);
                Ok(())
            }
            (Role::Unknown | Role::Tool, Message::Query(query)) => {
                self.query(token, query);
                Ok(())
            }
            (_, other) => Err(Offence::OutOfPlace(other.kind())),
        }
    }

    fn hello(&mut self, token: u64, hello: &Hello, fds: &mut Vec<OwnedFd>) -> Result<(), Offence> {
        if hello.layout_version != LAYOUT_VERSION {
            return Err(Offence::Layout(hello.layout_version));
        }
        let Some(client) = self.clients.get(&token) else {
            return Ok(());
        };
        let [memory, netlink] = fds.as_slice() else {
            return Err(ParseError::Fds(fds.len()).into());
        };
        identity::slot_memory(memory.as_fd())?;
        let netns = identity::sock_diag_namespace(netlink.as_fd())?;
        // Both are what they should be.
        let (Some(netlink), Some(memory)) = (fds.pop(), fds.pop()) else {
            return Ok(());
        };
        let slots = SlotArena::new(memory).map_err(Offence::NoMemory)?;
        identity::slot_arena(&slots)?;
        let user_namespace = identity::user_namespace(&*client.socket, client.credentials);
        let credentials = client.credentials;
        let admitted = self.admit_outside(credentials.uid);
        let outside = admitted.is_some();
        let (process, events) = match admitted {
            Some(admitted) => admitted,
            None => (
                self.free_number().ok_or(Offence::NoNumber)?,
                EventMemory::create().map_err(Offence::NoMemory)?,
            ),
        };
        let port = self.reserve_port(process);
        let rings = &self.options.limits;
        let wanted = if (RING_LOG2_MIN..=RING_LOG2_MAX).contains(&hello.ring_log2) {
            hello.ring_log2
        } else {
            rings.ring_log2_default
        };
        let facts = ProgramFacts {
            uid: credentials.uid,
            user_namespace,
            netns,
            domain: self.broker.domain_of(netns),
            ring_log2: wanted.min(rings.ring_log2_max),
            port,
        };
        let record = Arc::new(ProgramRecord {
            process,
            pid: credentials.pid,
            uid: credentials.uid,
            netns,
            session: hello.session,
            contexts: AtomicU32::new(0),
            slots,
        });
        tracing::debug!(%process, pid = credentials.pid, ?facts, hello.session, "program");
        self.ledger.programs.insert(process, Arc::clone(&record));
        self.programs.insert(
            process,
            Program {
                token,
                record,
                waiters: Arc::new(Waiters::new(process, credentials.uid, events)),
                namespace: Namespace {
                    cookie: netns,
                    netlink: Arc::new(netlink),
                },
                outside,
            },
        );
        if let Some(client) = self.clients.get_mut(&token) {
            client.role = Role::Program(process);
        }
        self.broker.join(process, facts, self.ledger.epoch);
        Ok(())
    }

    pub(super) fn free_number(&mut self) -> Option<Process> {
        let used = self.programs.len() + self.departed.len() + self.ports.len();
        for _ in 0..=used + 2 * self.survivors.len() {
            self.last_process = self.last_process % WaitRef::PROCESS_MAX + 1;
            let process = Process(self.last_process);
            let taken = self.programs.contains_key(&process)
                || self.departed.contains_key(&process)
                || self.ports.has(process)
                || self.survivors.has_number(process);
            if !taken {
                return Some(process);
            }
        }
        None
    }

    fn context(
        &mut self,
        process: Process,
        context: &Context,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), Offence> {
        let Some(program) = self.programs.get_mut(&process) else {
            return Ok(());
        };
        let [bell] = fds.as_slice() else {
            return Err(ParseError::Fds(fds.len()).into());
        };
        identity::eventfd(bell.as_fd())?;
        if program.waiters.doorbell(context.context).is_none() {
            let user = Account::User(program.record.uid);
            if self.accounts.charge(user, Holdings::DOORBELL).is_err() {
                self.ignore_context(process, context.context);
                return Ok(());
            }
        }
        let is_owed = fds
            .pop()
            .is_some_and(|bell| program.waiters.add_doorbell(context.context, bell));
        let contexts = u32::try_from(program.waiters.doorbells()).unwrap_or(u32::MAX);
        program.record.contexts.store(contexts, Count::Relaxed);
        self.keep_doorbell(process, context.context);
        self.publish_context(process, context.context);
        if is_owed {
            self.ring(process, context.context);
        }
        self.broker.context(process, context.context);
        Ok(())
    }

    fn register(&mut self, process: Process, register: &Register, fds: &mut Vec<OwnedFd>) {
        let proof = if self.is_draining() {
            fds.clear();
            Err(Reason::Drained)
        } else {
            self.prove(process, register, fds)
        };
        if let Err(reason) = proof {
            tracing::debug!(%process, slot = register.slot, %reason, "registration");
        }
        self.broker.register(process, register, proof);
    }

    /// Whether the program holds the socket that it claims to.
    fn prove(
        &mut self,
        process: Process,
        register: &Register,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Proof, Reason> {
        let [path] = fds.as_slice() else {
            return Err(Reason::Identity);
        };
        let inode = self
            .socket_files
            .inode(path.as_fd())
            .map_err(|_| Reason::Identity)?;
        // It is an O_PATH descriptor of a socket: closing it here is harmless.
        fds.clear();
        let program = self.programs.get(&process).ok_or(Reason::NoDaemon)?;
        let tuple = Tuple::of(register);
        let cookie = Some(register.cookie).filter(|cookie| *cookie != 0);
        let sample = self
            .diag
            .lookup(&program.namespace, &tuple, cookie)
            .map_err(|error| {
                tracing::debug!(%process, %tuple, %error, "registration");
                Reason::Identity
            })?
            .filter(|sample| sample.inode == inode)
            .ok_or(Reason::Identity)?;
        if sample.state != Sample::ESTABLISHED {
            return Err(Reason::NotEstablished);
        }
        Ok(Proof {
            inode,
            cookie: sample.cookie,
        })
    }

    /// There is no room for a doorbell. The program is never told that its peers know the context,
    /// and goes on without.
    pub(super) fn ignore_context(&mut self, process: Process, context: u32) {
        if self.may_log() {
            tracing::warn!(%process, context, "no descriptor for a doorbell");
        }
    }
}
