//! What a plan does to programs, backends and networks.

use backend_drv::relay::switchboard::Way;

use super::*;

impl World {
    pub(super) fn act(&mut self, act: Act) {
        self.note(|| format!("{act:?}"));
        let now = self.now;
        match act {
            Act::Pair(number) => self.pair(number),
            Act::Leave(number, side) => {
                let end = &mut self.conns[number].ends[side];
                let closing = end.dozes[Thread::Closer as usize] != Doze::Idle;
                if end.view().is_some() && !closing && end.begin_leaving(now) {
                    self.set_doze(number, side, Thread::Mover, Doze::Awake);
                    self.step_soon(number, side, Thread::Mover);
                }
            }
            Act::Close(number, side) => {
                self.conns[number].excuse.get_or_insert("closed early");
                self.close(number, side);
            }
            Act::Kill(number, side) => {
                if !self.conns[number].ends[side].closed {
                    self.conns[number].excuse.get_or_insert("killed");
                    self.with_end(number, side, |end, around| end.kill(around));
                }
            }
            Act::Withdraw(number, side) => {
                let host = self.conns[number].hosts[side];
                self.hosts[host].board().withdraw(id_of(number, side));
                self.round_soon(host);
            }
            Act::KeepEmpty(number, side, time) => {
                let host = self.conns[number].hosts[side];
                let board = self.hosts[host].board();
                if board.keep_empty(id_of(number, side), seat(side).far()) {
                    let epoch = self.hosts[host].epoch;
                    self.push(now.plus(time), Event::Emptied(number, side, epoch));
                }
            }
            Act::Drain(host) => {
                self.hosts[host].board().drain();
                self.round_soon(host);
            }
            Act::Restart(host) => self.restart(host),
            Act::RestartInside(host) => {
                self.hosts[host].dies = true;
                self.round_soon(host);
            }
            Act::Cut(one, other, time) => {
                for (from, to) in [(one, other), (other, one)] {
                    let until = now.plus(time);
                    self.paths[from][to].down_until = until;
                    self.cut_until[from][to] = until;
                }
            }
            Act::Narrow(one, other, mtu) => {
                for (from, to) in [(one, other), (other, one)] {
                    let path = &mut self.paths[from][to];
                    path.mtu = path.mtu.min(mtu);
                }
            }
            Act::Calm => {
                for path in self.paths.iter_mut().flatten() {
                    path.calm();
                }
                for until in self.cut_until.iter_mut().flatten() {
                    *until = Time(0);
                }
            }
        }
    }

    /// As late as can be: whatever was put there since is lost.
    pub(super) fn emptied(&mut self, number: usize, side: usize, epoch: u64) {
        let host = self.conns[number].hosts[side];
        if self.hosts[host].epoch != epoch {
            return;
        }
        let place = host::place(number, side, self.ring_log2);
        self.hosts[host].give_back(&place, seat(side).far());
        self.hosts[host].board().may_fill(id_of(number, side));
        self.summary.emptied += 1;
        self.round_soon(host);
    }

    /// A backend is killed and started again. Whoever continues connections over that does it here; without, they
    /// are broken for the near programs at once, and for the far ones when their backend hears of the new run.
    pub(super) fn restart(&mut self, host: usize) {
        let now = self.now;
        self.hosts[host].restart(now);
        self.hosts[host].round_at = None;
        self.round_soon(host);
        if self.keepers {
            return self.take_over(host);
        }
        for (number, side) in self.seats_at(host) {
            let conn = &mut self.conns[number];
            conn.excuse.get_or_insert("backend restarted");
            if matches!(conn.served[side], Served::Opened | Served::Joined) {
                conn.served[side] = Served::Left;
                conn.orphaned.get_or_insert(now);
                if let Some(view) = conn.ends[side].view()
                    && !conn.ends[side].is_back()
                {
                    view.theirs.state.break_with(Reason::LinkReset);
                    self.rouse(number, side);
                }
            }
        }
    }

    /// The ends that are on a host.
    fn seats_at(&self, host: usize) -> Vec<(usize, usize)> {
        let all = (0..self.conns.len()).flat_map(|number| [(number, 0), (number, 1)]);
        all.filter(|(number, side)| self.conns[*number].hosts[*side] == host)
            .collect()
    }

    /// Goes on with what the keeper of a host has kept.
    fn take_over(&mut self, host: usize) {
        for (number, side) in self.seats_at(host) {
            let conn = &self.conns[number];
            if !matches!(conn.served[side], Served::Opened | Served::Joined) {
                continue;
            }
            let far_host = conn.hosts[1 - side];
            let places = conn.own[side].zip(conn.far[side]);
            let Some((own, far)) = places.filter(|_| conn.served[side] == Served::Joined) else {
                // Nobody had been told of it.
                self.conns[number].served[side] = Served::Left;
                self.conns[number].excuse.get_or_insert("half paired");
                continue;
            };
            let seat = self.seat_at(number, side);
            let way = if far_host == host {
                Way::Here
            } else {
                Way::Line(self.hosts[host].line_to(far_host, self.now))
            };
            if !self.hosts[host].restore(seat, Kept { own, far }, way) {
                self.wrong(format!("{number}.{side} cannot be restored"));
            }
            self.summary.restored += 1;
            let conn = &mut self.conns[number];
            conn.survives[side] = true;
            if conn.ends[side].closed && (conn.ends[side].killed || !conn.ends[side].is_attached())
            {
                // Its process has ended, or its socket is gone.
                conn.ends[side].killed = true;
                let at = self.soon(MILLISECOND);
                self.push(at, Event::Unregister(number, side));
            }
        }
        self.hosts[host].board().resume_here();
    }
}
