//! Sending: to the kernel, across the switch, to the ring, and back.

use super::*;

impl End {
    pub(super) fn write(&mut self, around: &mut Around<'_>) -> Next {
        if self.stage > 0 {
            return self.shut_down(around);
        }
        if self.sent.is_some() {
            return Next::Done;
        }
        if self.written == self.habits.total {
            self.sent = Some(Outcome::End);
            if self.habits.shuts {
                self.stage = 1;
                return Next::Again;
            }
            return Next::Done;
        }
        let Some(view) = self.view() else {
            return self.write_to_kernel(around);
        };
        if self.tx_state != TxState::Kernel {
            if let Some(reason) = Self::broken(&view) {
                self.sent = Some(Outcome::Broken(reason));
                return Next::Done;
            }
            if self.pending_reset {
                self.sent = Some(Outcome::Reset);
                return Next::Done;
            }
        }
        match self.tx_state {
            TxState::Kernel
                if view.theirs.state.is_armed()
                    && !self.vetoed
                    && Self::broken(&view).is_none() =>
            {
                self.switch(&view, around);
                Next::Again
            }
            TxState::Kernel | TxState::Switching | TxState::Done | TxState::Returned => {
                self.write_to_kernel(around)
            }
            TxState::Returning => self.resend_or_wait(&view, around),
            TxState::Ring => self.write_to_ring(&view, around),
        }
    }

    pub(super) fn switch(&mut self, view: &ConnView, around: &mut Around<'_>) {
        let sent = around.tcp.sent(self.side);
        if view.mine.state.switch(sent) {
            self.tx_state = TxState::Ring;
            around.kicks.push(WaitFor::Data);
            around.note(|| format!("switches after {sent}"));
        } else {
            self.tx_state = TxState::Returned;
        }
    }

    pub(super) fn write_to_ring(&mut self, view: &ConnView, around: &mut Around<'_>) -> Next {
        if view.theirs.state.is_reader_gone() {
            if self.begin_resending(view, around) {
                return self.resend_or_wait(view, around);
            }
            self.tx_state = TxState::Done;
            return Next::Again;
        }
        let ring = Producer::of(view);
        let Ok(free) = ring.refresh(&mut self.tx) else {
            around.wrong("the far end's head makes no sense");
            return Next::Done;
        };
        let left = self.habits.total - self.written;
        let len = left
            .min(free)
            .min(1 + around.random.below(self.habits.chunk));
        if len == 0 {
            return Next::Sleep {
                what: Some(WaitFor::Space),
                watch: Watch::Errors,
                until: None,
            };
        }
        let bytes = stream(self.salts[self.side], self.written, index(len));
        if ring.write_slice(&mut self.tx, &bytes) != Ok(bytes.len()) {
            around.wrong("a ring with space does not take bytes");
        }
        ring.publish(&self.tx, Consumer::of(view).published(), 0);
        full_barrier();
        self.written += len;
        around.kicks.push(WaitFor::Data);
        Next::Again
    }

    pub(super) fn write_to_kernel(&mut self, around: &mut Around<'_>) -> Next {
        let left = self.habits.total - self.written;
        let len = left.min(1 + around.random.below(self.habits.chunk));
        let bytes = stream(self.salts[self.side], self.written, index(len));
        match around.tcp.send(self.side, &bytes, around.arrival) {
            None => {
                self.sent = Some(Outcome::Reset);
                Next::Done
            }
            Some((0, _)) => Next::Sleep {
                what: None,
                watch: Watch::Writable,
                until: None,
            },
            Some((sent, at)) => {
                self.written += sent as u64;
                around.kernel_at = Some(at);
                Next::Again
            }
        }
    }

    /// The far end has left the ring that this end sends on.
    pub(super) fn begin_resending(&mut self, view: &ConnView, around: &mut Around<'_>) -> bool {
        if self.awaits_grant(view) {
            return false;
        }
        let Some(at) = view.mine.state.retracted_at(&view.theirs.state) else {
            return false;
        };
        let known = Producer::of(view).refresh(&mut self.tx).is_ok();
        if !known || at < self.tx.head || at > self.tx.tail {
            around.wrong(format!("the reader left at {at}, of {:?}", self.tx));
            return false;
        }
        self.resend = at;
        self.tx_state = TxState::Returning;
        around.note(|| format!("sends again from {at}"));
        true
    }

    /// Sends what was left in the ring. False: the kernel takes no more.
    pub(super) fn resend(&mut self, view: &ConnView, around: &mut Around<'_>) -> bool {
        while self.resend < self.tx.tail {
            let most = (self.tx.tail - self.resend).min(1 + around.random.below(40_000));
            let mask = view.tx_data.capacity() as u64 - 1;
            let at = index(self.resend.wrapping_sub(self.tx.base) & mask);
            let mut bytes = Vec::new();
            for run in Slice::of_ring(&view.tx_data, at, index(most)) {
                run.append_to(&mut bytes);
            }
            match around.tcp.send(self.side, &bytes, around.arrival) {
                None => {
                    self.tx_state = TxState::Returned;
                    self.pending_reset = true;
                    return true;
                }
                Some((0, _)) => return false,
                Some((sent, at)) => {
                    self.resend += sent as u64;
                    around.kernel_at = Some(at);
                }
            }
        }
        self.tx_state = TxState::Returned;
        around.note(|| "sends by the kernel again".to_owned());
        true
    }

    pub(super) fn resend_or_wait(&mut self, view: &ConnView, around: &mut Around<'_>) -> Next {
        if self.resend(view, around) {
            Next::Again
        } else {
            Next::Sleep {
                what: Some(WaitFor::Space),
                watch: Watch::Writable,
                until: None,
            }
        }
    }

    /// What calls that are not sends do for a far end that has left the ring; also the daemon, for a program that
    /// is idle. False: it is not done yet.
    pub fn service(&mut self, around: &mut Around<'_>) -> bool {
        let Some(view) = self.view() else {
            return true;
        };
        if self.closed {
            return true;
        }
        if self.is_wanted(&view) {
            self.begin_resending(&view, around);
        }
        self.tx_state != TxState::Returning || self.resend(&view, around)
    }

    /// As `service`, until it is done or has taken too long. `None`: done.
    pub(super) fn flush(&mut self, deadline: Time, around: &mut Around<'_>) -> Option<Next> {
        let view = self.view()?;
        self.service(around);
        let awaits = self.has_to_wait(&view);
        if self.tx_state != TxState::Returning && !awaits || around.now >= deadline {
            return None;
        }
        let until = if awaits {
            deadline.min(around.now.plus(NAP))
        } else {
            deadline
        };
        Some(Next::Sleep {
            what: None,
            watch: if awaits {
                Watch::Nothing
            } else {
                Watch::Writable
            },
            until: Some(until),
        })
    }

    /// Ends the sending side: what was left in the ring, the announcement, the kernel's FIN.
    pub(super) fn shut_down(&mut self, around: &mut Around<'_>) -> Next {
        if let Some(next) = self.end_sending(around) {
            return next;
        }
        self.shut = true;
        around.kernel_at = Some(around.tcp.shut(self.side, around.arrival));
        Next::Done
    }

    /// All but the kernel's part. `None`: done.
    pub(super) fn end_sending(&mut self, around: &mut Around<'_>) -> Option<Next> {
        let Some(view) = self.view() else {
            self.shut = true;
            return None;
        };
        match self.stage {
            1 | 3 => {
                let deadline = *self.deadline.get_or_insert(around.now.plus(FLUSH));
                if let Some(next) = self.flush(deadline, around) {
                    return Some(next);
                }
                self.deadline = None;
                view.mine.state.end(self.tx.tail);
                around.note(|| format!("ends at {:?}", self.tx));
                self.stage += 1;
                Some(Next::Again)
            }
            2 if self.tx_state == TxState::Returning
                || self.tx_state == TxState::Ring && !view.mine.state.finish() =>
            {
                self.stage = 3;
                Some(Next::Again)
            }
            _ => {
                self.tx_state = TxState::Done;
                around.kick_all();
                None
            }
        }
    }
}
