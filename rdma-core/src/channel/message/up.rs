//! Messages from a guest to its backend.

use super::format::{
    About, CONTEXT, DEPARTED, ENDED, HELLO, HOLDS, Held, In, KICK, Out, PAIRING, PROGRAM,
    PROGRAM_GONE, RETRACTED, TOLD, WITHDRAW, about, grant_of, process_number, program, put_pairing,
};
use super::{BadMessage, Grant, GuestContext, GuestHello, MESSAGE_BYTES};
use crate::channel::CHANNEL_VERSION;
use crate::layout::LAYOUT_VERSION;
use crate::wire::pairing::{Names, Pairing};

/// To the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Up {
    /// The driver has started.
    Hello(GuestHello),
    /// A program has event memory here, and may have far ends outside.
    Program {
        /// Its number.
        process: u32,
        /// Where its event memory begins.
        at: u64,
    },
    /// A program has left.
    ProgramGone(u32),
    /// A program has a context.
    Context(GuestContext),
    /// About the two ends of a connection.
    Pairing {
        /// The program that the message is about.
        process: u32,
        /// What is said.
        message: Pairing,
    },
    /// After [`Down::Again`](super::Down::Again): memory of a connection that the guest was given, and has still.
    Holds {
        /// The program that has it.
        process: u32,
        /// The connection, as that program sees it.
        names: Names,
        /// As it was given.
        grant: Grant,
    },
    /// And that is all, to this [`Down::Again`](super::Down::Again).
    Told(u64),
    /// The guest's program has let go of a connection's memory.
    Ended(u64),
    /// The guest's program has vanished.
    Departed {
        /// The connection.
        connection: u64,
        /// Somebody without the library holds its socket.
        held: bool,
    },
    /// Take the connection off the ring.
    Withdraw {
        /// The connection.
        connection: u64,
        /// Not for good: its programs may ask for memory again.
        may_return: bool,
    },
    /// The guest's end has left its ring: what its far end has in there must be sent once more.
    Retracted(u64),
    /// A program asks to wake a context whose doorbell it has not got.
    Kick {
        /// Whose.
        process: u32,
        /// Which.
        context: u32,
    },
}

impl Up {
    /// Writes the message; how many bytes of `out` it takes.
    pub fn emit(&self, out: &mut [u8; MESSAGE_BYTES]) -> usize {
        let out = Out(out);
        match *self {
            Self::Hello(body) => out.put(HELLO, 0, &body),
            Self::Program { process, at } => out.put(PROGRAM, 0, &program(process, at)),
            Self::ProgramGone(process) => out.put(PROGRAM_GONE, 0, &program(process, 0)),
            Self::Context(body) => out.put(CONTEXT, 0, &body),
            Self::Pairing { process, message } => put_pairing(out, process, &message),
            Self::Holds {
                process,
                names,
                grant,
            } => {
                let names = names.into();
                out.put(HOLDS, process, &Held { grant, names })
            }
            Self::Told(run) => out.put(TOLD, 0, &about(run, 0)),
            Self::Ended(connection) => out.put(ENDED, 0, &about(connection, 0)),
            Self::Departed { connection, held } => {
                out.put(DEPARTED, 0, &about(connection, held.into()))
            }
            Self::Withdraw {
                connection,
                may_return,
            } => out.put(WITHDRAW, 0, &about(connection, may_return.into())),
            Self::Retracted(connection) => out.put(RETRACTED, 0, &about(connection, 0)),
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
            HELLO => {
                let body: GuestHello = whole.body()?;
                if body.version != CHANNEL_VERSION {
                    return Err(BadMessage::Version(body.version));
                }
                if body.layout_version != LAYOUT_VERSION {
                    return Err(BadMessage::Layout(body.layout_version));
                }
                Self::Hello(body)
            }
            PROGRAM => {
                let (process, at) = whole.program()?;
                Self::Program { process, at }
            }
            PROGRAM_GONE => Self::ProgramGone(whole.process()?),
            CONTEXT => Self::Context(whole.context()?),
            PAIRING => Self::Pairing {
                process: process_number(whole.word)?,
                message: Pairing::parse(whole.body)?,
            },
            HOLDS => {
                let Held { grant, names } = whole.body()?;
                Self::Holds {
                    process: process_number(whole.word)?,
                    names: names.try_into()?,
                    grant: grant_of(grant)?,
                }
            }
            TOLD => {
                let body: About = whole.body()?;
                Self::Told(body.connection)
            }
            ENDED => Self::Ended(whole.connection()?.0),
            DEPARTED => {
                let (connection, held) = whole.connection_and_flag("held")?;
                Self::Departed { connection, held }
            }
            WITHDRAW => {
                let (connection, may_return) = whole.connection_and_flag("may_return")?;
                Self::Withdraw {
                    connection,
                    may_return,
                }
            }
            RETRACTED => Self::Retracted(whole.connection()?.0),
            KICK => {
                let (process, context) = whole.kick()?;
                Self::Kick { process, context }
            }
            other => return Err(BadMessage::Kind(other)),
        })
    }
}
