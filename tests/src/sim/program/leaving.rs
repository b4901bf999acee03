//! Leaving the ring, and closing.

use super::*;

impl End {
    // ---- Leaving the ring ----

    pub(super) fn leave_ring(&mut self, around: &mut Around<'_>) -> Next {
        let Some(view) = self.view() else {
            self.leaving = false;
            return Next::Done;
        };
        match self.mover_stage {
            0 => {
                match self.tx_state {
                    TxState::Ring => {
                        let cancelled = view.mine.state.cancel();
                        around.note(|| format!("asks to send by the kernel: {cancelled}"));
                        around.kick_all();
                    }
                    TxState::Kernel => self.tx_state = TxState::Returned,
                    _ => {}
                }
                self.mover_stage = 1;
                Next::Again
            }
            1 => {
                if let Some(next) = self.flush(self.mover_deadline, around) {
                    return next;
                }
                if self.tx_state == TxState::Returning || self.has_to_wait(&view) {
                    around.excuse = Some("nobody answers a sender that wants to leave");
                    self.break_with(&view, Reason::Revoked, around);
                }
                self.mover_stage = 2;
                Next::Again
            }
            2 => {
                self.leave_receiving(&view, around);
                around.kick_all();
                self.mover_deadline = around.now.plus(FLUSH);
                self.mover_stage = 3;
                Next::Again
            }
            3 => {
                let is_broken = Self::broken(&view).is_some();
                if self.is_unconfirmed(&view) && !is_broken && around.now < self.mover_deadline {
                    return Next::Sleep {
                        what: None,
                        watch: Watch::Nothing,
                        until: Some(around.now.plus(NAP)),
                    };
                }
                self.is_told = self.has_left && view.theirs.state.is_confirmed();
                if self.is_unconfirmed(&view) {
                    around.excuse = Some("nobody sends again what was left");
                    self.break_with(&view, Reason::Stdio, around);
                    self.received.get_or_insert(Outcome::Broken(Reason::Stdio));
                    let at = around.tcp.close(self.side, true, around.arrival);
                    around.kernel_at = Some(at);
                }
                self.mover_stage = 4;
                Next::Again
            }
            _ => {
                self.leaving = false;
                around.kick_all();
                around.rouse = true;
                Next::Done
            }
        }
    }

    pub(super) fn leave_receiving(&mut self, view: &ConnView, around: &mut Around<'_>) {
        let far: &EndState = &view.theirs.state;
        match self.rx_state {
            RxState::Kernel => self.rx_state = RxState::Returned,
            RxState::Armed | RxState::Draining | RxState::Ring => {
                let end = far.ended_at().or(self.final_tail);
                let unread = Consumer::of(view).refresh(&mut self.rx).unwrap_or(1) > 0;
                if end.is_some() && unread {
                    return;
                }
                match view.mine.state.retract(far, self.rx.head) {
                    Ok(()) => {
                        self.has_left = true;
                        around.note(|| format!("leaves its ring at {}", self.rx.head));
                        self.rx_state = RxState::Returned;
                    }
                    Err(at) if at == self.rx.head => self.rx_state = RxState::Returned,
                    Err(_) => {}
                }
            }
            RxState::Done | RxState::Returned => {}
        }
    }

    // ---- Closing ----

    /// The program has no more calls to make.
    pub fn begin_closing(&mut self) {
        self.dozes[Thread::Writer as usize] = Doze::Idle;
        self.dozes[Thread::Reader as usize] = Doze::Idle;
        self.dozes[Thread::Mover as usize] = Doze::Idle;
        self.sent.get_or_insert(Outcome::Closed);
        self.received.get_or_insert(Outcome::Closed);
        self.stage = 10;
        self.deadline = None;
    }

    pub(super) fn close(&mut self, around: &mut Around<'_>) -> Next {
        let Some(view) = self.view() else {
            around.kernel_at = Some(around.tcp.close(self.side, false, around.arrival));
            around.closed = true;
            self.closed = true;
            return Next::Done;
        };
        if self.stage == 10 {
            view.mine.state.leave();
            self.stage = 1;
            return Next::Again;
        }
        if let Some(next) = self.end_sending(around) {
            return next;
        }
        let on_ring = matches!(
            self.rx_state,
            RxState::Ring | RxState::Armed | RxState::Draining
        );
        let unread = on_ring
            && view.theirs.state.is_switched()
            && Consumer::of(&view).refresh(&mut self.rx).unwrap_or(0) > 0;
        around.note(|| format!("closes, unread: {unread}"));
        around.kernel_at = Some(around.tcp.close(self.side, unread, around.arrival));
        around.closed = true;
        self.closed = true;
        Next::Done
    }

    /// The program is killed: the kernel closes its socket, and nobody says anything.
    pub fn kill(&mut self, around: &mut Around<'_>) {
        let unread = around.tcp.readable(self.side) > 0;
        around.kernel_at = Some(around.tcp.close(self.side, unread, around.arrival));
        around.closed = true;
        self.closed = true;
        self.killed = true;
        self.sent.get_or_insert(Outcome::Closed);
        self.received.get_or_insert(Outcome::Closed);
        self.dozes = [Doze::Idle; 4];
    }
}
