//! Programs and their threads: who has a turn, who sleeps, who is woken.

use super::*;

impl World {
    pub(super) fn step_soon(&mut self, number: usize, side: usize, thread: Thread) {
        let pause = self.conns[number].ends[side].habits.pause;
        // Once faults have stopped programs hurry, so that what hangs is seen.
        let at = if self.random.one_in(3) && self.now < self.calm_at {
            self.now.plus(1 + self.random.below(pause + 1))
        } else {
            self.soon(20 * MICROSECOND)
        };
        self.step_at(number, side, thread, at);
    }

    pub(super) fn step_at(&mut self, number: usize, side: usize, thread: Thread, at: Time) {
        let ticket = &mut self.conns[number].tickets[side][thread as usize];
        *ticket += 1;
        let ticket = *ticket;
        self.push(at, Event::Step(number, side, thread, ticket));
    }

    /// Calls `change` with one end and what is around it, and does what that asks for.
    pub(super) fn with_end<T>(
        &mut self,
        number: usize,
        side: usize,
        change: impl FnOnce(&mut End, &mut Around<'_>) -> T,
    ) -> T {
        let conn = &mut self.conns[number];
        let way = [conn.hosts[side], conn.hosts[1 - side]];
        let leaves = self.now.max(self.cut_until[way[0]][way[1]]);
        let mut around = Around {
            now: self.now,
            arrival: leaves.plus(conn.delay),
            tcp: &mut conn.tcp,
            random: &mut self.random,
            kicks: Vec::new(),
            rouse: false,
            kernel_at: None,
            wrong: None,
            closed: false,
            excuse: None,
            notes: self.notes.is_some().then(Vec::new),
        };
        let result = change(&mut conn.ends[side], &mut around);
        let Around {
            kicks,
            rouse,
            kernel_at,
            wrong,
            closed,
            excuse,
            notes,
            ..
        } = around;
        if let Some(excuse) = excuse {
            conn.excuse.get_or_insert(excuse);
        }
        for line in notes.into_iter().flatten() {
            self.note(|| format!("{number}.{side} {line}"));
        }
        if let Some(wrong) = wrong {
            self.wrong(format!("connection {number}.{side}: {wrong}"));
        }
        for what in kicks {
            let at = self.soon(5 * MICROSECOND);
            self.push(at, Event::Kick(number, side, what));
        }
        if let Some(at) = kernel_at {
            self.push(at, Event::Kernel(number));
        }
        if rouse {
            self.rouse(number, side);
        }
        if closed {
            let at = self.soon(100 * MICROSECOND);
            self.push(at, Event::Unregister(number, side));
        }
        self.poke(number);
        result
    }

    pub(super) fn step(&mut self, number: usize, side: usize, thread: Thread) {
        let conn = &self.conns[number];
        let end = &conn.ends[side];
        match end.dozes[thread as usize] {
            Doze::Idle => return self.leave_waits(number, side, thread),
            Doze::Drowsy { rung, next } => {
                if !rung && !end.is_ready(thread, next, &conn.tcp, self.now) {
                    self.set_doze(number, side, thread, Doze::Asleep(next));
                    if let Next::Sleep {
                        until: Some(until), ..
                    } = next
                    {
                        self.step_at(number, side, thread, until);
                    }
                    return;
                }
            }
            // Woken by the clock, or by somebody.
            Doze::Awake | Doze::Asleep(_) => {}
        }
        self.leave_waits(number, side, thread);
        self.set_doze(number, side, thread, Doze::Awake);
        let next = self.with_end(number, side, |end, around| end.step(thread, around));
        match next {
            Next::Again => self.step_soon(number, side, thread),
            Next::Done => self.set_doze(number, side, thread, Doze::Idle),
            Next::Sleep { what, .. } => {
                let end = &self.conns[number].ends[side];
                if let (Some(what), Some(view)) = (what, end.view())
                    && view.mine.waits.enter(what, end.reference(thread))
                {
                    self.conns[number].entered[side][thread as usize] = Some(what);
                }
                self.set_doze(number, side, thread, Doze::Drowsy { rung: false, next });
                let at = self.soon(5 * MICROSECOND);
                self.step_at(number, side, thread, at);
            }
        }
        self.close_when_done(number, side);
    }

    pub(super) fn set_doze(&mut self, number: usize, side: usize, thread: Thread, doze: Doze) {
        self.conns[number].ends[side].dozes[thread as usize] = doze;
    }

    pub(super) fn leave_waits(&mut self, number: usize, side: usize, thread: Thread) {
        let conn = &mut self.conns[number];
        let end = &conn.ends[side];
        if let Some(what) = conn.entered[side][thread as usize].take()
            && conn.served[side] != Served::Left
            && let Some(view) = end.view()
        {
            view.mine.waits.leave(what, end.reference(thread));
        }
    }

    pub(super) fn wake(&mut self, number: usize, side: usize, thread: Thread) {
        match &mut self.conns[number].ends[side].dozes[thread as usize] {
            Doze::Drowsy { rung, .. } => *rung = true,
            Doze::Asleep(_) => {
                self.set_doze(number, side, thread, Doze::Awake);
                let at = self.soon(50 * MICROSECOND);
                self.step_at(number, side, thread, at);
            }
            Doze::Awake | Doze::Idle => {}
        }
    }

    pub(super) fn rouse(&mut self, number: usize, side: usize) {
        for thread in Thread::ALL {
            self.wake(number, side, thread);
        }
    }

    /// The kernel wakes those for whom it has something.
    pub(super) fn poke(&mut self, number: usize) {
        for side in 0..2 {
            for thread in Thread::ALL {
                let conn = &self.conns[number];
                let end = &conn.ends[side];
                if let Doze::Asleep(Next::Sleep { watch, .. }) = end.dozes[thread as usize]
                    && end.kernel_reports(watch, &conn.tcp)
                {
                    self.wake(number, side, thread);
                }
            }
        }
    }

    /// A program with nothing left to do closes.
    pub(super) fn close_when_done(&mut self, number: usize, side: usize) {
        let end = &self.conns[number].ends[side];
        let writer = end.dozes[Thread::Writer as usize];
        let done = end.sent.is_some()
            && writer == Doze::Idle
            && (end.received.is_some() || !end.habits.shuts);
        if (done || end.has_failed()) && end.dozes[Thread::Mover as usize] == Doze::Idle {
            self.close(number, side);
        }
    }

    pub(super) fn close(&mut self, number: usize, side: usize) {
        let end = &mut self.conns[number].ends[side];
        if end.closed || end.dozes[Thread::Closer as usize] != Doze::Idle {
            return;
        }
        end.begin_closing();
        for thread in [Thread::Writer, Thread::Reader, Thread::Mover] {
            self.leave_waits(number, side, thread);
        }
        self.set_doze(number, side, Thread::Closer, Doze::Awake);
        self.step_soon(number, side, Thread::Closer);
        self.note(|| format!("{number}.{side} begins to close"));
    }

    /// A program wakes its backend, if that waits.
    pub(super) fn kick(&mut self, number: usize, side: usize, what: WaitFor) {
        let conn = &self.conns[number];
        if conn.served[side] == Served::Left {
            return;
        }
        let Some(view) = conn.ends[side].view() else {
            return;
        };
        let mut bits = Vec::new();
        view.theirs.waits.each(what, |who| {
            if who.process == RELAY {
                bits.extend(who.bit);
            }
        });
        let host = conn.hosts[side];
        if !bits.is_empty() {
            self.hosts[host]
                .touched
                .extend(bits.into_iter().map(u32::from));
            self.round_soon(host);
        }
    }

    pub(super) fn rescue(&mut self, number: usize, side: usize) {
        let done = self.with_end(number, side, |end, around| end.service(around));
        self.rouse(number, side);
        if !done {
            let at = self.now.plus(RESCUE_PAUSE);
            self.push(at, Event::Rescue(number, side));
        }
    }

    pub(super) fn attach(&mut self, number: usize, side: usize) {
        let conn = &self.conns[number];
        if conn.served[side] != Served::Joined {
            return;
        }
        let place = host::place(number, side, self.ring_log2);
        let at = (place.offset, place.ring_log2, seat(side));
        let view = self.hosts[conn.hosts[side]]
            .arena()
            .hold(at, |view: ConnView| Some(view));
        let Some(view) = view else {
            return self.wrong("no memory where there should be some");
        };
        let attached = self.with_end(number, side, |end, around| end.attach(view, around));
        if attached {
            self.summary.relayed += u64::from(side == 0);
            self.note(|| format!("{number}.{side} is attached"));
            self.rouse(number, side);
        }
    }
}
