//! Messages from a backend to a guest.

use super::format::{
    AGAIN, About, CONTEXT, EXAMINE, GRANT, In, KICK, LOST, Out, PAIRING, PROGRAM, PROGRAM_GONE,
    REFUSED, RETRACTED, WELCOME, WITHDRAW, about, grant_of, page, program, put_pairing, require,
};
use super::{BadMessage, Grant, GuestContext, GuestWelcome, MESSAGE_BYTES};
use crate::channel::GUEST_PROCESS_MIN;
use crate::event::WaitRef;
use crate::layout::MACHINES;
use crate::wire::pairing::Pairing;

/// To the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Down {
    /// The driver is served.
    Welcome(GuestWelcome),
    /// It is not; a [`crate::Reason`] code.
    Refused(u32),
    /// The backend has started anew, and this is the number of its run: say HELLO, who is there, and which memory
    /// they hold.
    Again(u64),
    /// The backend does not serve a connection whose memory the guest [holds](super::Up::Holds): it is broken.
    Lost(u64),
    /// A process at a far end.
    Program {
        /// Its number.
        process: u32,
        /// Where its event memory begins.
        at: u64,
    },
    /// It has left.
    ProgramGone(u32),
    /// It has a context.
    Context(GuestContext),
    /// About the two ends of a connection.
    Pairing(Pairing),
    /// Memory for a connection whose two ends are known.
    Grant(Grant),
    /// Take the connection off the ring.
    Withdraw {
        /// The connection.
        connection: u64,
        /// Not for good: its programs may ask for memory again.
        may_return: bool,
    },
    /// The far end has left its ring: what is in there must be sent once more.
    Retracted(u64),
    /// TCP has told the far program that the guest's is done: does anybody hold its socket?
    Examine(u64),
    /// Wake a context of a program.
    Kick {
        /// Whose.
        process: u32,
        /// Which.
        context: u32,
    },
}

impl Down {
    /// Writes the message; how many bytes of `out` it takes.
    pub fn emit(&self, out: &mut [u8; MESSAGE_BYTES]) -> usize {
        let out = Out(out);
        match *self {
            Self::Welcome(body) => out.put(WELCOME, 0, &body),
            Self::Refused(reason) => out.put(REFUSED, 0, &about(0, reason)),
            Self::Again(run) => out.put(AGAIN, 0, &about(run, 0)),
            Self::Lost(connection) => out.put(LOST, 0, &about(connection, 0)),
            Self::Program { process, at } => out.put(PROGRAM, 0, &program(process, at)),
            Self::ProgramGone(process) => out.put(PROGRAM_GONE, 0, &program(process, 0)),
            Self::Context(body) => out.put(CONTEXT, 0, &body),
            Self::Pairing(message) => put_pairing(out, 0, &message),
            Self::Grant(body) => out.put(GRANT, 0, &body),
            Self::Withdraw {
                connection,
                may_return,
            } => out.put(WITHDRAW, 0, &about(connection, may_return.into())),
            Self::Retracted(connection) => out.put(RETRACTED, 0, &about(connection, 0)),
            Self::Examine(connection) => out.put(EXAMINE, 0, &about(connection, 0)),
            Self::Kick { process, context } => out.put(KICK, context, &program(process, 0)),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`BadMessage`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BadMessage> {
        let whole = In::new(bytes)?;
        Ok(match whole.kind {
            WELCOME => {
                let body: GuestWelcome = whole.body()?;
                page(body.heap_at)?;
                page(body.heap_bytes)?;
                require(body.machine < MACHINES, "machine")?;
                let last = body.first_process.checked_add(body.processes);
                let good = last.is_some_and(|last| last <= WaitRef::PROCESS_MAX + 1);
                require(good && body.first_process >= GUEST_PROCESS_MIN, "process")?;
                Self::Welcome(body)
            }
            REFUSED => {
                let body: About = whole.body()?;
                Self::Refused(body.what)
            }
            AGAIN => {
                let body: About = whole.body()?;
                Self::Again(body.connection)
            }
            LOST => Self::Lost(whole.connection()?.0),
            PROGRAM => {
                let (process, at) = whole.program()?;
                Self::Program { process, at }
            }
            PROGRAM_GONE => Self::ProgramGone(whole.process()?),
            CONTEXT => Self::Context(whole.context()?),
            PAIRING => Self::Pairing(Pairing::parse(whole.body)?),
            GRANT => Self::Grant(grant_of(whole.body()?)?),
            WITHDRAW => {
                let (connection, may_return) = whole.connection_and_flag("may_return")?;
                Self::Withdraw {
                    connection,
                    may_return,
                }
            }
            RETRACTED => Self::Retracted(whole.connection()?.0),
            EXAMINE => Self::Examine(whole.connection()?.0),
            KICK => {
                let (process, context) = whole.kick()?;
                Self::Kick { process, context }
            }
            other => return Err(BadMessage::Kind(other)),
        })
    }
}
