//! What must be known of a connection so that a play never waits for ever and never asks what depends
//! on the size of the kernel's buffers.
//!
//! The model follows what calls have said, not what they should have said: two plays in which every call
//! says the same have the same model.

use super::operation::{
    Call, DupBy, GoesOn, How, Knob, Operation, PLACES, RecvBy, SETS, SendBy, Side,
};
use super::text::named;

/// Most bytes that lie unread in one direction, except while the far end reads them at once.
pub const OUTSTANDING_MAX: u64 = 150_000;

/// Most bytes that are sent at once to an end that answers with RST.
const REFUSED_MAX: u64 = 4096;

named! {
    /// Where the two ends live.
    pub enum Topology {
        /// One process holds both.
        Single = "single",
        /// Two processes.
        Processes = "processes",
    }
}

/// What is known of one end.
#[derive(Clone, Debug, Default)]
struct End {
    places: [bool; PLACES],
    sets: [bool; SETS],
    /// Places of a second process after fork, which waits.
    held: Option<[bool; PLACES]>,
    nonblocking: bool,
    lowat: u64,
    has_timeout: bool,
    lingers: bool,
    corked: bool,
    shut_read: bool,
    shut_write: bool,
    /// Bytes sent, and bytes of the far end that were received.
    sent: u64,
    received: u64,
    gone: bool,
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct Model {
    topology: Topology,
    ends: [End; 2],
    /// Who goes on in each process, if a fork is under way there.
    forked: [Option<GoesOn>; 2],
    /// Some end has answered or will answer with RST.
    pub is_reset: bool,
    /// There are edge-triggered registrations.
    has_edges: bool,
    /// The connection was asked to go back to TCP, and does so when it is next used. To edge-triggered
    /// registrations that is one edge more.
    returns: bool,
}

impl Model {
    /// A fresh connection.
    #[must_use]
    pub fn new(topology: Topology) -> Self {
        let mut end = End::default();
        end.places[0] = true;
        Self {
            topology,
            ends: [end.clone(), end],
            forked: [None; 2],
            is_reset: false,
            has_edges: false,
            returns: false,
        }
    }

    const fn process(&self, side: Side) -> usize {
        match (self.topology, side) {
            (Topology::Single, _) | (_, Side::A) => 0,
            (Topology::Processes, Side::B) => 1,
        }
    }

    const fn end(&self, side: Side) -> &End {
        match side {
            Side::A => &self.ends[0],
            Side::B => &self.ends[1],
        }
    }

    const fn end_mut(&mut self, side: Side) -> &mut End {
        match side {
            Side::A => &mut self.ends[0],
            Side::B => &mut self.ends[1],
        }
    }

    fn has(&self, side: Side, at: usize) -> bool {
        self.end(side).places.get(at).copied().unwrap_or(false)
    }

    /// Bytes that `side` has sent and its far end has not received.
    fn outstanding(&self, side: Side) -> u64 {
        let sent = self.end(side).sent;
        sent.saturating_sub(self.end(side.other()).received)
    }

    /// Whether no process has the end's socket any more.
    #[must_use]
    pub const fn is_gone(&self, side: Side) -> bool {
        self.end(side).gone
    }

    /// Where the next byte of a call of `side` lies in its stream.
    #[must_use]
    pub const fn position(&self, side: Side, call: &Call) -> u64 {
        match call {
            Call::Recv { .. } => self.end(side).received,
            _ => self.end(side).sent,
        }
    }

    /// As [`Self::position`], for receiving at `side`.
    #[must_use]
    pub const fn received(&self, side: Side) -> u64 {
        self.end(side).received
    }

    /// A place with a descriptor of `side`, in the process that goes on.
    #[must_use]
    pub fn any_place(&self, side: Side) -> Option<usize> {
        self.end(side).places.iter().position(|open| *open)
    }

    /// Both ends have sent and can receive whatever they like.
    fn is_whole(&self) -> bool {
        let sound = |side| {
            let end = self.end(side);
            !end.gone && !end.shut_read && !end.shut_write && !end.corked && end.lowat <= 1
        };
        !self.is_reset && sound(Side::A) && sound(Side::B)
    }

    /// What the operation becomes here: `None` if it cannot be taken, or would wait for ever.
    #[must_use]
    pub fn admit(&self, operation: Operation) -> Option<Call> {
        let Operation { side, call } = operation;
        let end = self.end(side);
        let in_child = self.forked[self.process(side)] == Some(GoesOn::Child);
        match call {
            Call::Send { at, by, len, flags } => {
                let far = self.end(side.other());
                let refuses = far.gone || far.shut_read && far.shut_write;
                // How much of it is taken before the RST comes back is the kernel's own business.
                let room = if refuses {
                    REFUSED_MAX
                } else {
                    OUTSTANDING_MAX.saturating_sub(self.outstanding(side))
                };
                let fits = self.has(side, at) && len as u64 <= room;
                let flags = match by {
                    SendBy::Write | SendBy::Writev | SendBy::Sendfile => 0,
                    _ => flags,
                };
                fits.then_some(Call::Send { at, by, len, flags })
            }
            Call::Recv { at, .. } => self.has(side, at).then(|| self.without_waiting(side, call)),
            Call::Pour { at, .. } | Call::Fill { at } => {
                let idle = self.outstanding(side) == 0
                    && self.is_whole()
                    && self.has(side, at)
                    && self.any_place(side.other()).is_some();
                idle.then_some(call)
            }
            Call::Poll { .. } => self.any_place(side).map(|_| call),
            Call::EpollAdd { at, .. } => {
                (!in_child && self.has(side, at)).then(|| self.without_edges(call))
            }
            Call::EpollMod { set, at, .. } | Call::EpollDel { set, at } => {
                let there = !in_child && end.sets[set] && self.has(side, at);
                there.then(|| self.without_edges(call))
            }
            Call::EpollWait { set } | Call::EpollClose { set } => {
                (!in_child && end.sets[set]).then_some(call)
            }
            Call::Close { at } => (self.has(side, at) && self.may_close(side)).then_some(call),
            Call::Dup { at, to, by } => {
                let same = at == to && !matches!(by, DupBy::Dup2 | DupBy::Dup3);
                let closes = self.has(side, to) && at != to;
                // Nobody could send once more what lies unread.
                let far = self.end(side.other());
                let orphaned = self.outstanding(side.other()) > 0 && (far.gone || far.shut_write);
                let stays = by == DupBy::Passed && (self.has_edges || orphaned);
                let fine = self.has(side, at) && !same && !stays;
                (fine && (!closes || self.may_close(side))).then_some(call)
            }
            Call::Shutdown { at, .. } | Call::Set { at, .. } | Call::Get { at, .. } => {
                self.has(side, at).then_some(call)
            }
            Call::Fork { .. } => self.forked[self.process(side)].is_none().then_some(call),
            Call::Exit { .. } => self.forked[self.process(side)].is_some().then_some(call),
            Call::Revoke => (!self.has_edges).then_some(call),
            Call::Reconnect => self.forked.iter().all(Option::is_none).then_some(call),
        }
    }

    /// Level-triggered, if edges cannot be foretold.
    const fn without_edges(&self, call: Call) -> Call {
        match call {
            Call::EpollAdd { set, at, events } if self.returns => Call::EpollAdd {
                set,
                at,
                events: events & !libc::EPOLLET,
            },
            Call::EpollMod { set, at, events } if self.returns => Call::EpollMod {
                set,
                at,
                events: events & !libc::EPOLLET,
            },
            other => other,
        }
    }

    /// A registration outlives the descriptors of one process if another process has the socket: what
    /// becomes of it then is not compared.
    fn may_close(&self, side: Side) -> bool {
        let end = self.end(side);
        let open = end.places.iter().filter(|open| **open).count();
        end.held.is_none() || open > 1 || !end.sets.iter().any(|set| *set)
    }

    /// A receive that surely returns.
    fn without_waiting(&self, side: Side, call: Call) -> Call {
        let Call::Recv { at, by, len, flags } = call else {
            return call;
        };
        let end = self.end(side);
        let far = self.end(side.other());
        let flags = match by {
            RecvBy::Read | RecvBy::Readv => 0,
            _ => flags,
        };
        let there = self.outstanding(side.other());
        let needed = match by {
            // Every one of its messages waits for something.
            RecvBy::Recvmmsg if len < 3 => u64::MAX,
            RecvBy::Recvmmsg => len as u64 + 2,
            _ if flags & libc::MSG_WAITALL != 0 => len as u64,
            _ => end.lowat.min(len as u64),
        };
        let returns = end.nonblocking
            || end.has_timeout
            || end.shut_read
            || far.shut_write
            || far.gone
            || self.is_reset
            || flags & libc::MSG_DONTWAIT != 0
            || there >= needed.max(1)
            || by == RecvBy::Read && len == 0
            || by == RecvBy::Readv && len == 0;
        if returns {
            return Call::Recv { at, by, len, flags };
        }
        let by = match by {
            RecvBy::Read => RecvBy::Recv,
            RecvBy::Readv => RecvBy::Recvmsg,
            other => other,
        };
        Call::Recv {
            at,
            by,
            len,
            flags: flags | libc::MSG_DONTWAIT,
        }
    }

    /// Whether the call only adds to what the far end will find: the connection need not be quiet for it.
    #[must_use]
    pub fn is_blind(&self, call: &Call) -> bool {
        let sound = |side| {
            let end = self.end(side);
            !end.gone && !end.shut_read && !end.shut_write
        };
        let adds = match call {
            Call::Send { .. } => true,
            Call::Set { knob, .. } => matches!(knob, Knob::Nodelay | Knob::Cork),
            _ => false,
        };
        adds && !self.is_reset && sound(Side::A) && sound(Side::B)
    }

    /// The call was made and moved so many bytes; `good`: it did not fail.
    pub fn note(&mut self, side: Side, call: Call, moved: u64, good: bool) {
        match call {
            Call::Send { .. } => {
                self.end_mut(side).sent += moved;
                let far = self.end(side.other());
                if moved > 0 && (far.gone || far.shut_read && far.shut_write) {
                    self.is_reset = true;
                }
            }
            Call::Recv { .. } => self.end_mut(side).received += moved,
            Call::Pour { .. } | Call::Fill { .. } => {
                self.end_mut(side).sent += moved;
                self.end_mut(side.other()).received += moved;
            }
            Call::Set { knob, value, .. } if good => self.turned(side, knob, value),
            Call::Shutdown { how, .. } if good => {
                let end = self.end_mut(side);
                end.shut_read |= how != How::Write;
                end.shut_write |= how != How::Read;
            }
            Call::EpollAdd { set, events, .. } => {
                self.has_edges |= events & libc::EPOLLET != 0;
                self.end_mut(side).sets[set] = true;
            }
            Call::EpollMod { events, .. } => self.has_edges |= events & libc::EPOLLET != 0,
            Call::Revoke => self.returns = true,
            Call::EpollClose { set } => self.end_mut(side).sets[set] = false,
            Call::Close { at } => {
                self.end_mut(side).places[at] = false;
                self.settle_gone(side);
            }
            Call::Dup { at, to, by } => {
                self.returns |= by == DupBy::Passed;
                let over = at == to && by == DupBy::Dup3;
                self.end_mut(side).places[to] = good || over;
            }
            Call::Fork { goes_on } if good => self.forked(side, goes_on),
            Call::Exit { .. } => self.exited(side),
            _ => {}
        }
    }

    const fn turned(&mut self, side: Side, knob: Knob, value: i32) {
        let end = self.end_mut(side);
        match knob {
            Knob::Nonblock | Knob::Fionbio => end.nonblocking = value != 0,
            Knob::Lowat => end.lowat = value.unsigned_abs() as u64,
            Knob::Timeout => end.has_timeout = value != 0,
            Knob::Linger => end.lingers = value != 0,
            Knob::Cork => end.corked = value != 0,
            Knob::Nodelay => {}
        }
    }

    /// The ends that live in the process of `side`.
    fn sides_of(&self, side: Side) -> Vec<Side> {
        match self.topology {
            Topology::Single => vec![Side::A, Side::B],
            Topology::Processes => vec![side],
        }
    }

    fn forked(&mut self, side: Side, goes_on: GoesOn) {
        self.forked[self.process(side)] = Some(goes_on);
        for side in self.sides_of(side) {
            let end = self.end_mut(side);
            end.held = Some(end.places);
        }
    }

    fn exited(&mut self, side: Side) {
        let goes_on = self.forked[self.process(side)].take();
        for side in self.sides_of(side) {
            let end = self.end_mut(side);
            if let Some(held) = end.held.take()
                && goes_on == Some(GoesOn::Child)
            {
                end.places = held;
            }
            self.settle_gone(side);
        }
    }

    /// Notices that the last descriptor was closed.
    fn settle_gone(&mut self, side: Side) {
        let unread = self.outstanding(side.other()) > 0;
        let end = self.end_mut(side);
        let holds = |places: &[bool; PLACES]| places.iter().any(|open| *open);
        if end.gone || holds(&end.places) || end.held.as_ref().is_some_and(holds) {
            return;
        }
        end.gone = true;
        if unread || end.lingers {
            self.is_reset = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(model: &Model, text: &str) -> Option<String> {
        model
            .admit(text.parse().unwrap())
            .map(|call| call.to_string())
    }

    #[test]
    fn nothing_waits_for_ever() {
        let mut model = Model::new(Topology::Processes);
        let read = "b.recv(0,read,10,-)";
        assert_eq!(admitted(&model, read).unwrap(), "recv(0,recv,10,dontwait)");
        let send = "a.send(0,send,10,-)".parse::<Operation>().unwrap();
        model.note(Side::A, send.call, 10, true);
        assert_eq!(admitted(&model, read).unwrap(), "recv(0,read,10,-)");
        let all = "b.recv(0,recv,11,waitall)";
        assert_eq!(
            admitted(&model, all).unwrap(),
            "recv(0,recv,11,dontwait+waitall)"
        );
        model.note(Side::A, Call::Close { at: 0 }, 0, true);
        assert!(model.is_gone(Side::A) && !model.is_reset);
        assert_eq!(admitted(&model, all).unwrap(), "recv(0,recv,11,waitall)");
    }

    #[test]
    fn a_child_keeps_the_end_alive() {
        let mut model = Model::new(Topology::Processes);
        model.note(
            Side::A,
            Call::Fork {
                goes_on: GoesOn::Parent,
            },
            0,
            true,
        );
        model.note(Side::A, Call::Close { at: 0 }, 0, true);
        assert!(!model.is_gone(Side::A) && model.any_place(Side::A).is_none());
        assert_eq!(admitted(&model, "a.send(0,send,1,-)"), None);
        model.note(
            Side::A,
            "a.exit(exit)".parse::<Operation>().unwrap().call,
            0,
            true,
        );
        assert!(model.is_gone(Side::A));
    }
}
