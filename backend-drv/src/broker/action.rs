//! What the broker wants done.

use core::net::IpAddr;

use rdma_core::control::Message;
use rdma_core::layout::End;
use rdma_core::wire::pairing::{Pairing, Place as FarPlace};

use crate::carving::Place;
use crate::ids::{ArenaId, ConnectionId, PeerId, Process, RegistrationId};

/// What the shell must do, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a message.
    Send {
        /// To this program.
        to: Process,
        /// The message; never one with text.
        message: Message<'static>,
        /// The descriptor beside it.
        beside: Option<Beside>,
    },
    /// Ring a doorbell on behalf of somebody who has not got it.
    Ring {
        /// Whose.
        process: Process,
        /// Which of its contexts.
        context: u32,
    },
    /// Ask the kernel about both ends and compare the answers.
    Compare {
        /// One end.
        left: RegistrationId,
        /// The other.
        right: RegistrationId,
    },
    /// Make memory and fill its header.
    Prepare {
        /// The connection.
        connection: ConnectionId,
        /// Where.
        place: Place,
        /// One of the users who share it.
        owner: u32,
    },
    /// Zero memory that both ends have let go of.
    Recycle {
        /// Which.
        place: Place,
    },
    /// Unmap and close an arena.
    DropArena(ArenaId),
    /// A program has left while one of its connections was attached: find out what became of the
    /// socket.
    Examine(RegistrationId),
    /// Write into the memory of a connection that one end is gone, and wake the other.
    Depart {
        /// Where the memory is.
        place: Place,
        /// The end that is gone.
        end: End,
        /// The program at the other end, to be woken.
        survivor: Process,
    },
    /// Take a connection off the ring for an end whose program has left, while its socket lives on.
    Withdraw {
        /// The connection.
        connection: ConnectionId,
        /// The end that nobody reads rings at any more.
        end: End,
        /// Its registration.
        registration: RegistrationId,
    },
    /// Take the end that is left of a connection off the ring, for a time: the other one has begun anew.
    TakeBack(ConnectionId),
    /// The registration is over; forget what is kept for it.
    Settled {
        /// The program.
        process: Process,
        /// The slot.
        slot: u32,
    },
    /// Nothing of a program that left is needed any more.
    Forget(Process),
    /// Find out whether there is a backend for the far address of a registration.
    Reach {
        /// The registration.
        id: RegistrationId,
        /// Its far address.
        far: IpAddr,
    },
    /// Ask the kernel about the socket of a registration.
    Sample(RegistrationId),
    /// Say something to a far backend.
    Tell {
        /// Which.
        peer: PeerId,
        /// What.
        message: Pairing,
    },
    /// Relay a connection to another host.
    OpenRelay {
        /// The end that is here.
        half: Half,
        /// The far backend.
        peer: PeerId,
        /// Where that takes bytes, if it has said so.
        far: Option<FarPlace>,
    },
    /// Relay between two ends that are here.
    OpenHere([Half; 2]),
    /// The far backend takes bytes of a relayed connection here.
    JoinRelay {
        /// The connection.
        connection: ConnectionId,
        /// Where.
        place: FarPlace,
    },
    /// A connection is not relayed any more: nobody was ever told of it.
    CloseRelay(ConnectionId),
    /// The near program of a relayed connection has closed its end.
    EndRelay(ConnectionId),
    /// The near program of a relayed connection has vanished. `held`: somebody without the library holds its
    /// socket.
    DepartRelay {
        /// The connection.
        connection: ConnectionId,
        /// See above.
        held: bool,
    },
    /// TCP tells of an end that the near program of a relayed connection has not said, and somebody holds its socket.
    LingerRelay(ConnectionId),
}

/// One end of a relayed connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Half {
    /// The connection.
    pub connection: ConnectionId,
    /// Its memory.
    pub place: Place,
    /// The program's end of it.
    pub end: End,
    /// The program.
    pub process: Process,
    /// The domain that is charged.
    pub domain: Option<usize>,
}

/// Descriptors that go beside messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// The event memory of a program.
    Events(Process),
    /// A doorbell of a program.
    Doorbell(Process, u32),
    /// Connection memory.
    Arena(ArenaId),
}

/// Why there is no memory for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// The arena could not be made.
    Arena,
    /// The arena is there, but not the pages.
    Pages,
}

/// What became of the socket of a program that left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nobody holds it any more.
    Gone,
    /// Somebody without the library holds it: it was kept over exec, or passed on.
    Held,
}
