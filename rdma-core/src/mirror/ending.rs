//! How a mirror ends: its program vanishes or lets go of the memory, both directions leave the rings, or the connection
//! breaks.

use super::{Mirror, Snapshot};
use crate::handshake::Route;
use crate::reason::Reason;
use crate::ring::Producer;

impl Mirror {
    /// The program has vanished: what it has sent is sent, and nobody reads any more.
    pub fn depart(&mut self) {
        if self.gone {
            return;
        }
        self.gone = true;
        // One that has closed its end by itself has told the kernel of unread bytes.
        if !self.down_over && !self.program().is_closed() {
            // Nonsense is found by the next look.
            let _ = Producer::of(&self.view).refresh(&mut self.down);
            if self.down.used() > 0 {
                self.say(Snapshot::UNREAD);
            }
        }
    }

    /// Whether TCP has told the far program that ours is done, and ours has not said so: it may have vanished.
    pub const fn is_doubted(&self) -> bool {
        self.heard.has(Snapshot::DOUBTS)
            && !self
                .said
                .has(Snapshot::ENDED | Snapshot::BROKEN | Snapshot::DONE)
    }

    /// The program has let go of the memory. If both directions have left the rings, it goes on by the kernel, and so
    /// does the far one, whose ring may not be read to its end yet: nothing is said of an end. If it never took the
    /// memory, both go on by the kernel, which alone knows how it ends. Else the program is gone.
    pub fn let_go(&mut self) {
        if self.up_over && self.down_over {
            self.done = true;
        } else if self.is_untaken() {
            self.ask_to_leave();
            self.done = true;
        } else {
            self.depart();
        }
    }

    /// Both directions are to leave the ring.
    pub const fn ask_to_leave(&mut self) {
        self.asks = true;
        self.said.flags |= Snapshot::OFF;
    }

    /// Whether the program has no way yet to send by the ring, and was given nothing that was: both programs can do
    /// without the ring.
    pub fn is_unused(&self) -> bool {
        let (own, program) = (self.own(), self.program());
        !own.is_armed() && own.route() == Route::Kernel && program.route() == Route::Kernel
    }

    /// Breaks the connection for the near program, and tells the far one. A connection that is off the rings goes on
    /// without us.
    pub fn break_with(&mut self, reason: Reason) {
        if !self.is_off() {
            self.own().break_with(reason);
        }
        self.say(Snapshot::BROKEN);
        self.said.reason = reason.code();
    }

    /// Whether nothing of either direction has to be carried any more.
    pub fn is_off(&self) -> bool {
        let read = self.said.has(Snapshot::ENDED) && self.up.head == self.said.end_at;
        (self.up_over || read) && (self.down_over || self.own().ended_at().is_some())
    }

    /// Whether nothing is left to be done: both programs are gone or have ended, and each has what the other
    /// sent.
    pub fn is_over(&self) -> bool {
        let over = |snapshot: &Snapshot| snapshot.has(Snapshot::GONE | Snapshot::DONE);
        over(&self.said) && over(&self.heard)
            || self.said.has(Snapshot::BROKEN)
            || self.heard.has(Snapshot::BROKEN)
    }

    /// Whether the program has not said anything here, not even that it will: it was not told of the memory, or had
    /// given it up when it was.
    fn is_untaken(&self) -> bool {
        let program = self.program();
        !program.is_armed()
            && program.route() == Route::Kernel
            && program.ended_at().is_none()
            && !program.is_closed()
            && program.broken().is_none()
    }
}
