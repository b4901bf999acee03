//! Looking at the program's words: what it has said since the last look.

use super::{Mirror, Snapshot};
use crate::event::WaitFor;
use crate::handshake::Route;
use crate::layout::EndState;
use crate::ring::{Consumer, Corrupt, Producer};
use crate::sync::Ordering;

/// What a look at the program's words has found.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Look {
    /// The program's ring holds bytes up to here.
    pub produced: u64,
    /// The program has read its own ring up to here.
    pub consumed: u64,
    /// Somebody at the program may have to be woken.
    pub wake: bool,
    /// The program's bytes are not wanted any more.
    pub up_over: bool,
}

impl Mirror {
    /// Looks at the program's words.
    ///
    /// # Errors
    /// They make no sense; the connection is to be [broken](Mirror::break_with).
    pub fn look(&mut self) -> Result<Look, Corrupt> {
        let mut wake = false;
        let program = self.program();
        // Ends before the tail, as for any reader.
        let ended = program.ended_at();
        let is_closed = program.is_closed();
        wake |= self.look_up(program)?;
        Producer::of(&self.view).refresh(&mut self.down)?;
        self.mind_space()?;
        self.look_down(program)?;
        if self.gone || ended.is_some() {
            let end = ended.unwrap_or(self.up.tail);
            // What was written after the last byte that is wanted was not looked at.
            if end > self.up.tail && !self.up_over {
                return Err(self.nonsense(end));
            }
            self.say(Snapshot::ENDED);
            self.said.end_at = end;
        }
        if self.gone || is_closed {
            self.say(Snapshot::GONE);
        }
        if self.done {
            self.say(Snapshot::DONE);
        }
        if self.up_over && self.own().is_granted() {
            self.say(Snapshot::CONFIRMED);
        }
        if program.is_doubting() {
            self.say(Snapshot::DOUBTS);
        }
        if let Some(reason) = program.broken() {
            self.say(Snapshot::BROKEN);
            self.said.reason = reason.code();
        }
        wake |= self.settle();
        Ok(Look {
            produced: if self.up_over {
                self.up.head
            } else {
                self.up.tail
            },
            consumed: self.down.head,
            wake,
            up_over: self.up_over,
        })
    }

    /// The direction that the program sends.
    fn look_up(&mut self, program: &EndState) -> Result<bool, Corrupt> {
        if self.up_over {
            return Ok(false);
        }
        if self.asks {
            Self::make_ask(program);
        }
        let route = program.route();
        let is_switched = matches!(route, Route::Switched | Route::Retracted | Route::Finished);
        if is_switched && !self.said.has(Snapshot::SWITCHED) {
            if route == Route::Retracted {
                // Nobody was told of a switch, so nobody has read anything.
                let _ = self.own().grant(program, 0);
                self.up_over = true;
                if self.asks {
                    self.say(Snapshot::ASKED);
                }
                return Ok(true);
            }
            self.say(Snapshot::SWITCHED);
            self.said.switch_at = program.switch_at.load(Ordering::Relaxed);
        }
        Consumer::of(&self.view).refresh(&mut self.up)?;
        self.up_base = self.view.rx_words.base.load(Ordering::Relaxed);
        if self.up_base > self.up.head {
            return Err(Corrupt::Base {
                base: self.up_base,
                head: self.up.head,
            });
        }
        if route == Route::Retracted {
            self.say(Snapshot::ASKED);
        }
        Ok(false)
    }

    /// Makes the program ask to send by the kernel again, unless it has ended.
    fn make_ask(program: &EndState) {
        if program.ended_at().is_none() && program.cancel() && program.ended_at().is_some() {
            // Too late: it need not have seen that it is to wait. If it has, it sees this.
            program.resume_switch();
        }
        // True or false: there is nothing to do for a sender that never was on the ring.
        let _ = program.retract_never_switched();
    }

    /// The direction that the program receives.
    fn look_down(&mut self, program: &EndState) -> Result<(), Corrupt> {
        if program.is_armed() {
            self.say(Snapshot::ARMED);
        }
        if self.own().route() == Route::Retracted && !self.said.has(Snapshot::LEFT) {
            let at = self.own().retracted_at(program).unwrap_or(0);
            if at > self.down.tail {
                return Err(self.nonsense(at));
            }
            self.leave_at(at);
        }
        Ok(())
    }

    /// What the program reads is noticed whenever bytes for it come. Only if much lies unread, so that the far
    /// program might wait for space, the program has to wake us.
    fn mind_space(&mut self) -> Result<(), Corrupt> {
        let unread = self.down.used();
        let entries = &self.view.mine.waits;
        if !self.waits_for_space && unread >= self.capacity() / 4 {
            self.waits_for_space = entries.enter(WaitFor::Space, self.who);
            Producer::of(&self.view).refresh(&mut self.down)?;
        } else if self.waits_for_space && unread < self.capacity() / 8 {
            entries.leave(WaitFor::Space, self.who);
            self.waits_for_space = false;
        }
        Ok(())
    }
}
