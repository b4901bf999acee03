//! What a guest's frontend driver and its backend tell each other.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CHANNEL_VERSION, GUEST_PROCESS_MIN};
use crate::event::{CONTEXTS, WaitRef};
use crate::layout::{End, LAYOUT_VERSION, MACHINES, RING_LOG2_MAX, RING_LOG2_MIN, conn_bytes};
use crate::wire::pairing::{BadPairing, Names, PAIRING_MAX, Pairing, RawNames};

/// Longest message in bytes.
pub const MESSAGE_BYTES: usize = 8 + PAIRING_MAX;

/// A guest's driver has started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GuestHello {
    /// [`CHANNEL_VERSION`].
    pub version: u32,
    /// [`LAYOUT_VERSION`].
    pub layout_version: u32,
    /// Differs between two runs of the driver.
    pub nonce: u64,
}

/// The answer to HELLO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GuestWelcome {
    /// The nonce that is answered.
    pub nonce: u64,
    /// Where the guest puts event memory of its programs; a multiple of 4096.
    pub heap_at: u64,
    /// How much of it there is.
    pub heap_bytes: u64,
    /// The first number of the guest's programs.
    pub first_process: u32,
    /// How many numbers there are.
    pub processes: u32,
    /// See [`crate::control::Welcome::machine`].
    pub machine: u32,
    /// Zero.
    pub reserved: u32,
}

/// A program's context that others may have to wake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct GuestContext {
    /// The program.
    pub process: u32,
    /// The context.
    pub context: u32,
    /// The member of the region that is interrupted.
    pub member: u16,
    /// By which vector.
    pub vector: u16,
    /// Zero.
    pub reserved: u32,
}

/// Memory for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Grant {
    /// The guest's registration.
    pub registration: u64,
    /// The backend's number of the connection.
    pub connection: u64,
    /// Where in the region the arena begins; a multiple of 4096.
    pub at: u64,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Where in the arena the connection begins.
    pub offset: u64,
    /// Number of the arena.
    pub arena: u32,
    /// Ring size as a power of two.
    pub ring_log2: u32,
    /// The process at the far end: a program of another guest, or the backend's relay.
    pub peer: u32,
    /// Which end the guest's program is.
    pub end: u8,
    /// 1: a backend relays.
    pub relayed: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Memory and whose it is.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Held {
    grant: Grant,
    names: RawNames,
}

/// A connection and something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct About {
    connection: u64,
    what: u32,
    reserved: u32,
}

/// A program and something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Program {
    process: u32,
    reserved: u32,
    at: u64,
}

/// How a context is woken, as a grant to its peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bell {
    /// The member of the region that is interrupted.
    pub member: u16,
    /// By which vector.
    pub vector: u16,
}

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
    /// After [`Down::Again`]: memory of a connection that the guest was given, and has still.
    Holds {
        /// The program that has it.
        process: u32,
        /// The connection, as that program sees it.
        names: Names,
        /// As it was given.
        grant: Grant,
    },
    /// And that is all, to this [`Down::Again`].
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
    /// The backend does not serve a connection whose memory the guest [holds](Up::Holds): it is broken.
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

/// Why bytes are not a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadMessage {
    /// Another version.
    #[error("channel version {0} is not {CHANNEL_VERSION}")]
    Version(u32),
    /// Another layout.
    #[error("layout version {0} is not {LAYOUT_VERSION}")]
    Layout(u32),
    /// An unknown kind.
    #[error("channel message of unknown kind {0}")]
    Kind(u32),
    /// Too short or too long for its kind.
    #[error("channel message of kind {kind} with {len} bytes")]
    Length {
        /// Its kind.
        kind: u32,
        /// Bytes behind the kind.
        len: usize,
    },
    /// A field outside its range.
    #[error("channel message with a bad {0}")]
    Field(&'static str),
    /// What it carries is none.
    #[error(transparent)]
    Pairing(#[from] BadPairing),
}

const HELLO: u32 = 1;
const PROGRAM: u32 = 2;
const PROGRAM_GONE: u32 = 3;
const CONTEXT: u32 = 4;
const PAIRING: u32 = 5;
const ENDED: u32 = 6;
const DEPARTED: u32 = 7;
const WITHDRAW: u32 = 8;
const RETRACTED: u32 = 9;
const KICK: u32 = 10;
const WELCOME: u32 = 11;
const REFUSED: u32 = 12;
const GRANT: u32 = 13;
const AGAIN: u32 = 14;
const EXAMINE: u32 = 15;
const HOLDS: u32 = 16;
const TOLD: u32 = 17;
const LOST: u32 = 18;

/// A message under construction: kind, a word, body.
struct Out<'a>(&'a mut [u8; MESSAGE_BYTES]);

impl Out<'_> {
    fn put<T: IntoBytes + Immutable>(self, kind: u32, word: u32, body: &T) -> usize {
        self.put_bytes(kind, word, body.as_bytes())
    }

    fn put_bytes(self, kind: u32, word: u32, body: &[u8]) -> usize {
        let parts = [&kind.to_ne_bytes()[..], &word.to_ne_bytes()[..], body];
        let mut length = 0;
        for part in parts {
            if let Some(place) = self.0.get_mut(length..length + part.len()) {
                place.copy_from_slice(part);
                length += part.len();
            }
        }
        length
    }
}

fn about(connection: u64, what: u32) -> About {
    About {
        connection,
        what,
        reserved: 0,
    }
}

fn program(process: u32, at: u64) -> Program {
    Program {
        process,
        reserved: 0,
        at,
    }
}

fn put_pairing(out: Out<'_>, word: u32, message: &Pairing) -> usize {
    let mut bytes = [0; PAIRING_MAX];
    let length = message.emit(&mut bytes);
    out.put_bytes(PAIRING, word, bytes.get(..length).unwrap_or_default())
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

/// A message as it came.
struct In<'a> {
    kind: u32,
    word: u32,
    body: &'a [u8],
}

impl<'a> In<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, BadMessage> {
        let short = BadMessage::Length {
            kind: 0,
            len: bytes.len(),
        };
        let (kind, rest) = u32::read_from_prefix(bytes).map_err(|_| short)?;
        let (word, body) = u32::read_from_prefix(rest).map_err(|_| short)?;
        Ok(Self { kind, word, body })
    }

    fn body<T: FromBytes>(&self) -> Result<T, BadMessage> {
        T::read_from_bytes(self.body).map_err(|_| BadMessage::Length {
            kind: self.kind,
            len: self.body.len(),
        })
    }

    fn connection(&self) -> Result<(u64, u32), BadMessage> {
        let body: About = self.body()?;
        require(body.connection != 0, "connection")?;
        Ok((body.connection, body.what))
    }

    fn connection_and_flag(&self, name: &'static str) -> Result<(u64, bool), BadMessage> {
        let (connection, what) = self.connection()?;
        require(what <= 1, name)?;
        Ok((connection, what == 1))
    }

    fn process(&self) -> Result<u32, BadMessage> {
        let body: Program = self.body()?;
        process_number(body.process)
    }

    fn program(&self) -> Result<(u32, u64), BadMessage> {
        let Program { process, at, .. } = self.body()?;
        Ok((process_number(process)?, page(at)?))
    }

    fn context(&self) -> Result<GuestContext, BadMessage> {
        let body: GuestContext = self.body()?;
        process_number(body.process)?;
        require(body.context < CONTEXTS, "context")?;
        require(body.member < super::MEMBERS, "member")?;
        Ok(body)
    }

    fn kick(&self) -> Result<(u32, u32), BadMessage> {
        let process = self.process()?;
        require(self.word < CONTEXTS, "context")?;
        Ok((process, self.word))
    }
}

fn require(good: bool, field: &'static str) -> Result<(), BadMessage> {
    if good {
        Ok(())
    } else {
        Err(BadMessage::Field(field))
    }
}

fn process_number(process: u32) -> Result<u32, BadMessage> {
    require(process != 0 && process <= WaitRef::PROCESS_MAX, "process")?;
    Ok(process)
}

fn page(at: u64) -> Result<u64, BadMessage> {
    require(at.is_multiple_of(4096), "place")?;
    Ok(at)
}

fn grant_of(body: Grant) -> Result<Grant, BadMessage> {
    require(body.connection != 0, "connection")?;
    process_number(body.peer)?;
    page(body.at)?;
    page(body.offset)?;
    require(End::try_from(body.end).is_ok(), "end")?;
    require(body.relayed <= 1, "relayed")?;
    let known = (RING_LOG2_MIN..=RING_LOG2_MAX).contains(&body.ring_log2);
    require(known, "ring_log2")?;
    let end = body
        .offset
        .checked_add(conn_bytes(1 << body.ring_log2) as u64);
    require(end.is_some_and(|end| end <= body.arena_bytes), "arena")?;
    require(body.at.checked_add(body.arena_bytes).is_some(), "arena")?;
    Ok(body)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn up(message: Up) {
        let mut bytes = [0; MESSAGE_BYTES];
        let length = message.emit(&mut bytes);
        assert_eq!(Up::parse(&bytes[..length]), Ok(message));
        for cut in 0..length {
            assert!(Up::parse(&bytes[..cut]).is_err(), "{cut} of {message:?}");
        }
    }

    fn down(message: Down) {
        let mut bytes = [0; MESSAGE_BYTES];
        let length = message.emit(&mut bytes);
        assert_eq!(Down::parse(&bytes[..length]), Ok(message));
        for cut in 0..length {
            assert!(Down::parse(&bytes[..cut]).is_err(), "{cut} of {message:?}");
        }
    }

    fn hello() -> GuestHello {
        GuestHello {
            version: CHANNEL_VERSION,
            layout_version: LAYOUT_VERSION,
            nonce: 7,
        }
    }

    fn context() -> GuestContext {
        GuestContext {
            process: GUEST_PROCESS_MIN,
            context: 255,
            member: 63,
            vector: 31,
            reserved: 0,
        }
    }

    fn grant() -> Grant {
        Grant {
            registration: 3,
            connection: 9,
            at: 1 << 20,
            arena_bytes: 1 << 24,
            offset: 4096,
            arena: 2,
            ring_log2: 20,
            peer: GUEST_PROCESS_MIN + 1,
            end: 1,
            relayed: 1,
            reserved: [0; 2],
        }
    }

    fn refusal() -> Pairing {
        Pairing::Refuse { id: 5, reason: 11 }
    }

    #[test]
    fn every_message_survives_the_ring() {
        let process = GUEST_PROCESS_MIN + 5;
        up(Up::Hello(hello()));
        up(Up::Program { process, at: 8192 });
        up(Up::ProgramGone(process));
        up(Up::Context(context()));
        up(Up::Pairing {
            process,
            message: refusal(),
        });
        for (own, far) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[::1]:2")] {
            up(Up::Holds {
                process,
                names: Names {
                    own: own.parse().unwrap(),
                    far: far.parse().unwrap(),
                },
                grant: grant(),
            });
        }
        up(Up::Told(u64::MAX));
        up(Up::Ended(1));
        up(Up::Departed {
            connection: 1,
            held: true,
        });
        for may_return in [false, true] {
            up(Up::Withdraw {
                connection: 2,
                may_return,
            });
            down(Down::Withdraw {
                connection: 2,
                may_return,
            });
        }
        up(Up::Retracted(3));
        up(Up::Kick {
            process,
            context: 3,
        });
        down(Down::Welcome(GuestWelcome {
            nonce: 7,
            heap_at: 1 << 20,
            heap_bytes: 1 << 24,
            first_process: GUEST_PROCESS_MIN,
            processes: 4096,
            machine: 1,
            reserved: 0,
        }));
        down(Down::Refused(11));
        down(Down::Again(1 << 63));
        down(Down::Lost(6));
        down(Down::Program { process, at: 8192 });
        down(Down::ProgramGone(process));
        down(Down::Context(context()));
        down(Down::Pairing(refusal()));
        down(Down::Grant(grant()));
        down(Down::Retracted(3));
        down(Down::Examine(4));
        down(Down::Kick {
            process,
            context: 3,
        });
    }

    #[test]
    fn fields_out_of_range_are_named() {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut told = |message: Down| {
            let length = message.emit(&mut bytes);
            Down::parse(&bytes[..length])
        };
        let beyond = Grant {
            offset: 1 << 24,
            ..grant()
        };
        assert_eq!(told(Down::Grant(beyond)), Err(BadMessage::Field("arena")));
        let odd = Grant { at: 1, ..grant() };
        assert_eq!(told(Down::Grant(odd)), Err(BadMessage::Field("place")));
        let nobody = Grant { peer: 0, ..grant() };
        assert_eq!(told(Down::Grant(nobody)), Err(BadMessage::Field("process")));
        let mut bytes = [0; MESSAGE_BYTES];
        let stranger = GuestHello {
            version: 9,
            ..hello()
        };
        let length = Up::Hello(stranger).emit(&mut bytes);
        assert_eq!(Up::parse(&bytes[..length]), Err(BadMessage::Version(9)));
    }
}
