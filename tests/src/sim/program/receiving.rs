//! Receiving: from the kernel, across the switch, from the ring, to the end.

use super::*;

impl End {
    pub(super) fn receive(&mut self, around: &mut Around<'_>) -> Next {
        if self.received.is_some() {
            return Next::Done;
        }
        self.service(around);
        if self.pending_reset && !matches!(self.rx_state, RxState::Kernel | RxState::Ring) {
            self.received = Some(Outcome::Reset);
            return Next::Done;
        }
        let Some(view) = self.view() else {
            return self.read_from_kernel(usize::MAX, around);
        };
        match self.rx_state {
            RxState::Kernel if !self.vetoed && Self::broken(&view).is_none() => {
                self.rx_state = RxState::Armed;
                view.mine.state.arm();
                around.kicks.push(WaitFor::Data);
                around.note(|| "arms".to_owned());
                Next::Again
            }
            RxState::Kernel | RxState::Done | RxState::Returned => {
                self.read_from_kernel(usize::MAX, around)
            }
            RxState::Armed => self.read_armed(&view, around),
            RxState::Draining => self.read_from_kernel(index(self.kernel_left), around),
            RxState::Ring => self.read_from_ring(&view, around),
        }
    }

    pub(super) fn read_armed(&mut self, view: &ConnView, around: &mut Around<'_>) -> Next {
        let Some(at) = view.theirs.state.accept() else {
            return self.read_from_kernel(usize::MAX, around);
        };
        let Some(left) = at.checked_sub(self.kernel_read) else {
            around.wrong(format!(
                "switched after {at}, of which {} were read",
                self.kernel_read
            ));
            return Next::Done;
        };
        around.note(|| format!("accepts a switch at {at}"));
        self.kernel_left = left;
        self.rx_state = if left == 0 {
            RxState::Ring
        } else {
            RxState::Draining
        };
        Next::Again
    }

    pub(super) fn read_from_kernel(&mut self, most: usize, around: &mut Around<'_>) -> Next {
        let chunk = index(1 + around.random.below(self.habits.chunk));
        match around.tcp.receive(self.side, chunk.min(most)) {
            Got::Bytes(bytes) => {
                let len = bytes.len() as u64;
                self.check(&bytes, "the kernel", around);
                self.kernel_read += len;
                if self.rx_state == RxState::Draining {
                    self.kernel_left -= len;
                    if self.kernel_left == 0 {
                        self.rx_state = RxState::Ring;
                    }
                }
                Next::Again
            }
            Got::Empty => Next::Sleep {
                what: Some(WaitFor::Data),
                watch: Watch::Readable,
                until: None,
            },
            Got::End if self.rx_state == RxState::Draining => {
                around.wrong("the kernel's stream ends before the switch");
                Next::Done
            }
            Got::End if self.rx_state == RxState::Armed => self.end_before_switch(around),
            Got::End if self.rx_state == RxState::Returned => self.end_after_leaving(),
            Got::End => {
                self.received = Some(Outcome::End);
                Next::Done
            }
            Got::Reset => {
                self.received = Some(Outcome::Reset);
                Next::Done
            }
        }
    }

    /// The kernel's stream is over for a reader that has left its ring: bytes may be missing.
    pub(super) fn end_after_leaving(&mut self) -> Next {
        let Some(view) = self.view() else {
            return Next::Done;
        };
        if !self.is_unconfirmed(&view) {
            self.received = Some(Outcome::End);
            return Next::Done;
        }
        if let Some(reason) = Self::broken(&view) {
            self.received = Some(Outcome::Broken(reason));
            return Next::Done;
        }
        // Whoever leaves gives up in time.
        Next::Sleep {
            what: Some(WaitFor::Data),
            watch: Watch::Nothing,
            until: None,
        }
    }

    /// The kernel's stream is over, and no switch was seen: the backend's word on that comes by another way.
    pub(super) fn end_before_switch(&mut self, around: &mut Around<'_>) -> Next {
        let Some(view) = self.view() else {
            return Next::Done;
        };
        let far = &view.theirs.state;
        let ended = far.ended_at().is_some();
        if far.is_switched() {
            return Next::Again;
        }
        if !ended && let Some(reason) = Self::broken(&view) {
            // Whether anything went by ring, nobody will ever say.
            self.received = Some(Outcome::Broken(reason));
            return Next::Done;
        }
        if self.is_early(around.now) {
            let since = self.over_since.unwrap_or(around.now);
            return Next::Sleep {
                what: Some(WaitFor::Data),
                watch: Watch::Nothing,
                until: Some(since.plus(PATIENCE)),
            };
        }
        if !ended {
            // Nobody can say whether these were all bytes.
            around.excuse = Some("nobody says how the stream ends");
            self.break_with(&view, Reason::LinkTimeout, around);
            self.received = Some(Outcome::Broken(Reason::LinkTimeout));
            return Next::Done;
        }
        self.received = Some(Outcome::End);
        Next::Done
    }

    pub(super) fn is_early(&mut self, now: Time) -> bool {
        let Some(view) = self.view() else {
            return false;
        };
        let far = &view.theirs.state;
        if far.ended_at().is_some() || far.broken().is_some() {
            return false;
        }
        let since = *self.over_since.get_or_insert(now);
        now.0 - since.0 < PATIENCE
    }

    pub(super) fn read_from_ring(&mut self, view: &ConnView, around: &mut Around<'_>) -> Next {
        let ring = Consumer::of(view);
        let far = &view.theirs.state;
        let (ended, returned, last) = (far.ended_at(), far.returned_at(), self.final_tail);
        let Ok(available) = ring.refresh(&mut self.rx) else {
            around.wrong("the ring's tail makes no sense");
            return Next::Done;
        };
        let end = returned.or(ended).or(last);
        if end.is_some_and(|end| end < self.rx.tail) {
            around.wrong(format!("an end at {end:?} before {:?}", self.rx));
            return Next::Done;
        }
        if available == 0 {
            return self.read_empty(view, (end, returned, last), around);
        }
        let len = available.min(1 + around.random.below(self.habits.chunk));
        let mut bytes = vec![0; index(len)];
        if ring.read_slice(&mut self.rx, &mut bytes) != Ok(bytes.len()) {
            around.wrong("bytes that are there cannot be read");
        }
        self.check(&bytes, "the ring", around);
        ring.publish(&self.rx);
        full_barrier();
        if self.rx.available() <= ring.capacity() / 2 {
            around.kicks.push(WaitFor::Space);
        }
        Next::Again
    }

    pub(super) fn read_empty(
        &mut self,
        view: &ConnView,
        (end, returned, last): (Option<u64>, Option<u64>, Option<u64>),
        around: &mut Around<'_>,
    ) -> Next {
        if self.pending_reset {
            self.received = Some(Outcome::Reset);
            return Next::Done;
        }
        let head = Some(self.rx.head);
        if returned == head {
            self.rx_state = RxState::Returned;
            around.note(|| format!("reads from the kernel again after {}", self.rx.head));
            return Next::Again;
        }
        if end == head {
            self.rx_state = RxState::Done;
            around.note(|| format!("the ring's stream ends after {}", self.rx.head));
            return Next::Again;
        }
        if let Some(reason) = Self::broken(view) {
            self.received = Some(Outcome::Broken(reason));
            return Next::Done;
        }
        if last.is_some() {
            around.wrong("an end was announced and bytes are missing");
            return Next::Done;
        }
        if (around.tcp.readable(self.side) > 0 || around.tcp.is_over(self.side))
            && !self.hear_kernel(view, around)
        {
            let since = self.over_since.unwrap_or(around.now);
            return Next::Sleep {
                what: Some(WaitFor::Data),
                watch: Watch::Nothing,
                until: Some(since.plus(PATIENCE)),
            };
        }
        if self.final_tail.is_some() {
            return Next::Again;
        }
        Next::Sleep {
            what: Some(WaitFor::Data),
            watch: Watch::Readable,
            until: None,
        }
    }

    /// The kernel reports something to a reader of the ring. False: that has to wait.
    pub(super) fn hear_kernel(&mut self, view: &ConnView, around: &mut Around<'_>) -> bool {
        let far = &view.theirs.state;
        if far.returned_at().is_some() {
            return true;
        }
        let reset = around.tcp.is_reset(self.side);
        if !reset && around.tcp.readable(self.side) > 0 {
            around.wrong("bytes by the kernel although the far end sends by ring");
            return true;
        }
        if self.is_early(around.now) {
            return false;
        }
        let Some(end) = far.ended_at() else {
            if far.broken().is_none() {
                // Nobody can say whether these were all bytes.
                around.excuse = Some("nobody says how the stream ends");
                self.break_with(view, Reason::LinkTimeout, around);
            }
            return true;
        };
        self.final_tail = Some(end);
        around.note(|| format!("the kernel reports the end, at {:?}", self.final_tail));
        true
    }

    pub(super) fn check(&mut self, bytes: &[u8], from: &str, around: &mut Around<'_>) {
        let due = stream(self.salts[1 - self.side], self.read, bytes.len());
        if let Some(at) = bytes.iter().zip(&due).position(|(got, due)| got != due) {
            around.wrong(format!(
                "byte {} from {from} is not the one that was sent",
                self.read + at as u64
            ));
        }
        self.read += bytes.len() as u64;
    }
}
