//! Hearing what the far program has said: it is shown to the near one as the words of its far end.

use super::{Look, Mirror, Snapshot};
use crate::handshake::Route;
use crate::layout::EndState;
use crate::reason::Reason;
use crate::ring::{Consumer, Corrupt};

impl Mirror {
    /// The far backend has told what its program says. What waits for bytes that are still under way happens
    /// when they are there.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn hear(&mut self, snapshot: Snapshot) -> Result<Look, Corrupt> {
        self.heard = snapshot;
        if snapshot.has(Snapshot::OFF) {
            self.asks = true;
        }
        let (own, program) = (self.own(), self.program());
        let mut wake = false;
        if snapshot.has(Snapshot::ARMED) && !own.is_armed() {
            own.arm();
            wake = true;
        }
        if snapshot.has(Snapshot::SWITCHED) && own.route() == Route::Kernel && !self.down_over {
            wake |= own.switch(snapshot.switch_at);
        }
        if snapshot.has(Snapshot::LEFT) && !self.up_over {
            if snapshot.left_at < self.up.head || snapshot.left_at > self.up.tail {
                return Err(self.nonsense(snapshot.left_at));
            }
            self.up_over = true;
            wake = true;
            // Whoever is gone sends nothing again.
            let is_minded = !self.gone && own.grant(program, snapshot.left_at);
            if is_minded || self.end_of_up(program) <= snapshot.left_at {
                self.say(Snapshot::CONFIRMED);
            } else {
                self.break_with(Reason::FarEnd);
            }
        }
        if snapshot.has(Snapshot::CONFIRMED) && !own.is_confirmed() {
            own.confirm();
            wake = true;
        }
        if snapshot.has(Snapshot::GONE) && !own.is_closed() {
            if snapshot.has(Snapshot::UNREAD) {
                own.leave_unread();
            } else {
                own.leave();
            }
            wake = true;
        }
        let concerns = !self.is_off() || self.awaits_confirmation();
        if snapshot.has(Snapshot::BROKEN) && own.broken().is_none() && concerns {
            let reason = Reason::from_code(snapshot.reason).unwrap_or(Reason::FarEnd);
            own.break_with(reason);
            wake = true;
        }
        let look = self.look()?;
        Ok(Look {
            wake: look.wake | wake,
            ..look
        })
    }

    /// Where the stream that the program sends by ring ends, as far as is known.
    fn end_of_up(&mut self, program: &EndState) -> u64 {
        if let Some(end) = program.ended_at() {
            return end;
        }
        // Nonsense is found by the next look.
        let _ = Consumer::of(&self.view).refresh(&mut self.up);
        self.up.tail
    }

    /// Whether the program has left its ring by itself, and nobody has said whether it gets what lies behind.
    fn awaits_confirmation(&self) -> bool {
        let own = self.own();
        own.route() == Route::Retracted && !own.is_confirmed()
    }

    /// What depends on how many bytes the program has been given.
    pub(super) fn settle(&mut self) -> bool {
        let (own, program) = (self.own(), self.program());
        let mut wake = false;
        if self.heard.has(Snapshot::ENDED)
            && own.ended_at().is_none()
            && (self.down.tail == self.heard.end_at || self.down_over)
        {
            own.end(self.heard.end_at.max(self.down.tail));
            wake = true;
        }
        if self.heard.has(Snapshot::ASKED) && !self.down_over {
            let at = self.down.tail;
            let settled = match own.route() {
                // Nothing was ever switched: it never will be.
                Route::Kernel => own.retract_never_switched().then_some(0),
                Route::Switched => own.cancel().then_some(0),
                Route::Accepted => own.give_back(at).then_some(at),
                Route::Returned => Some(at),
                // The program was faster.
                Route::Retracted => own.retracted_at(program).filter(|left| *left <= at),
                // Nobody finishes here.
                Route::Finished => None,
            };
            if let Some(at) = settled {
                self.leave_at(at);
                wake = true;
            }
        }
        wake
    }
}
