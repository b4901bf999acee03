//! Backends: their turns, what they say, and how they find connections.

use super::*;

impl World {
    // ---- Backends ----

    pub(super) fn round_soon(&mut self, host: usize) {
        let at = self.soon(20 * MICROSECOND);
        self.round_by(host, at);
    }

    pub(super) fn round_by(&mut self, host: usize, at: Time) {
        let at = at.max(self.now.plus(1));
        if self.hosts[host].round_at.is_none_or(|known| at < known) {
            self.hosts[host].round_at = Some(at);
            self.push(at, Event::Round(host));
        }
    }

    pub(super) fn round(&mut self, host: usize) {
        let (mut wakes, mut reports, mut frames) = (Vec::new(), Vec::new(), Vec::new());
        let now = self.now;
        let more = self.hosts[host].round(now, &mut wakes, &mut reports, |line, bytes| {
            frames.push((line, bytes));
        });
        if std::mem::take(&mut self.hosts[host].dies) {
            // Nobody hears what it was about to say.
            return self.restart(host);
        }
        for wake in wakes {
            self.wake_waiters(host, wake);
        }
        for report in reports {
            self.hear(host, report);
        }
        for (line, bytes) in frames {
            self.carry(host, line, bytes);
        }
        if more || !self.hosts[host].touched.is_empty() {
            self.round_soon(host);
        }
        if let Some(at) = self.hosts[host].board().poll_timeout() {
            self.round_by(host, at);
        }
    }

    pub(super) fn wake_waiters(&mut self, host: usize, wake: Wake) {
        let mut waiting: Vec<WaitRef> = Vec::new();
        if let Some((process, waits)) = self.hosts[host].board().waits(wake.endpoint)
            && waits.any(wake.what)
        {
            waits.each(wake.what, |who| {
                if who.process == process.0 {
                    waiting.push(who);
                }
            });
        }
        for who in waiting {
            let index = usize::try_from(who.process).unwrap_or(0) - 1;
            let (number, side) = (index / 2, index % 2);
            self.wake(number, side, Thread::ALL[usize::from(who.context)]);
        }
    }

    pub(super) fn carry(&mut self, from: usize, line: usize, bytes: Vec<u8>) {
        self.summary.frames += 1;
        let Some(to) = (0..self.hosts.len())
            .find(|far| self.hosts[from].board().line_of(peer(*far)) == Some(line))
        else {
            return;
        };
        let path = &mut self.paths[from][to];
        for (at, turned) in path.send(self.now, bytes.len(), &mut self.random) {
            let mut copy = bytes.clone();
            if let Some(bit) = turned {
                if !self.sealed {
                    // The network's own checksum finds it.
                    continue;
                }
                copy[bit / 8] ^= 1 << (bit % 8);
            }
            self.push(at, Event::Frame(from, to, copy));
        }
    }

    pub(super) fn hear(&mut self, host: usize, report: Report) {
        self.note(|| format!("host {host}: {report:?}"));
        match report {
            Report::Left { connection, .. } => {
                let (number, side) = seat_of(connection);
                let conn = &mut self.conns[number];
                conn.served[side] = Served::Left;
                // Of what was taken over, nothing is used again.
                let survives = conn.survives[side];
                let says_so = |view: ConnView| survives && view.mine.state.is_closed();
                let end = &conn.ends[side];
                if let Some(view) = end.view()
                    && !end.closed
                    && !says_so(view)
                {
                    self.wrong(format!("memory of {number}.{side} is let go of too early"));
                }
            }
            Report::Heard(far, message) => self.heard(host, far.0 as usize, message),
            Report::Granted(connection) => {
                self.summary.granted += 1;
                let (number, side) = seat_of(connection);
                let at = self.soon(MILLISECOND);
                self.push(at, Event::Rescue(number, side));
            }
            Report::Renewed(far) if self.keepers => {
                self.note(|| format!("host {host} goes on with {far}"));
                self.summary.sessions_ended += 1;
            }
            Report::Renewed(far) => self.excuse_all(host, far.0 as usize, "backend restarted"),
            Report::Silent(far) => self.excuse_all(host, far.0 as usize, "link down"),
            Report::Up(_)
            | Report::Drained
            | Report::Doubted(_)
            | Report::Opened(..)
            | Report::OpenedHere(..)
            | Report::KeptEmpty(..)
            | Report::PortDropped(_) => {}
        }
    }

    pub(super) fn excuse_all(&mut self, host: usize, far: usize, why: &'static str) {
        self.summary.sessions_ended += 1;
        let now = self.now;
        let late = self.idle_timeout + SECOND;
        for conn in &mut self.conns {
            if (conn.hosts == [host, far] || conn.hosts == [far, host])
                && let Some(since) = conn.orphaned.take()
                && now.0 - since.0 > late
                && self.wrong.is_none()
            {
                self.wrong = Some("a restart is noticed too late".to_owned());
            }
        }
        for number in 0..self.conns.len() {
            let hosts = self.conns[number].hosts;
            if hosts == [host, far] || hosts == [far, host] {
                self.conns[number].excuse.get_or_insert(why);
            }
        }
    }

    // ---- Pairing: what brokers do, in short ----

    pub(super) fn pair(&mut self, number: usize) {
        let hosts = self.conns[number].hosts;
        let ends = &self.conns[number].ends;
        if ends.iter().any(|end| end.closed || end.shut) {
            return;
        }
        if hosts[0] == hosts[1] {
            return self.open_here(number);
        }
        if let Some(place) = self.open(number, 0, None) {
            let pair = Pairing::Pair {
                id: number as u64,
                offer: number as u64,
                ring_log2: u8::try_from(self.ring_log2).unwrap_or(16),
                place,
            };
            self.tell(hosts[0], hosts[1], &pair);
        }
    }

    pub(super) fn open(
        &mut self,
        number: usize,
        side: usize,
        far: Option<FarPlace>,
    ) -> Option<FarPlace> {
        let hosts = self.conns[number].hosts;
        let now = self.now;
        let seat = self.seat_at(number, side);
        let host = &mut self.hosts[hosts[side]];
        let line = host.line_to(hosts[1 - side], now);
        let opened = host.open(seat, line, far);
        self.round_soon(hosts[side]);
        match opened {
            Ok(place) => {
                self.conns[number].own[side] = Some(place);
                self.conns[number].far[side] = far;
                self.conns[number].served[side] = if far.is_some() {
                    Served::Joined
                } else {
                    Served::Opened
                };
                Some(place)
            }
            Err(reason) => {
                self.wrong(format!("cannot be opened: {reason:?}"));
                None
            }
        }
    }

    /// Both programs are on one host.
    fn open_here(&mut self, number: usize) {
        let host = self.conns[number].hosts[0];
        let seats = [0, 1].map(|side| self.seat_at(number, side));
        match self.hosts[host].open_here(seats) {
            Ok(endpoints) => {
                let board = self.hosts[host].board();
                let places = endpoints.map(|endpoint| board.place_of(endpoint));
                let conn = &mut self.conns[number];
                conn.served = [Served::Joined; 2];
                conn.own = places;
                conn.far = [places[1], places[0]];
                for side in 0..2 {
                    let later = self.soon(200 * MICROSECOND);
                    self.push(later, Event::Attach(number, side));
                }
                self.round_soon(host);
            }
            Err(reason) => self.wrong(format!("cannot be opened: {reason:?}")),
        }
    }

    pub(super) fn seat_at(&self, number: usize, side: usize) -> host::Seat {
        host::Seat {
            number,
            side,
            ring_log2: self.ring_log2,
            domain: self.conns[number].domains[side],
        }
    }

    pub(super) fn tell(&mut self, from: usize, to: usize, message: &Pairing) {
        let now = self.now;
        let line = self.hosts[from].line_to(to, now);
        self.hosts[from].board().tell(line, message);
        self.round_soon(from);
    }

    pub(super) fn heard(&mut self, host: usize, far: usize, message: Pairing) {
        let later = self.soon(200 * MICROSECOND);
        match message {
            Pairing::Pair {
                id, offer, place, ..
            } => {
                let number = usize::try_from(id).unwrap_or(usize::MAX);
                let conn = &self.conns[number];
                if conn.hosts != [far, host] {
                    return self.wrong("a message of nobody");
                }
                if conn.ends[1].closed || conn.ends[1].shut || conn.served[1] != Served::No {
                    let reason = Reason::NotEstablished.code();
                    let refusal = Pairing::Refuse { id: offer, reason };
                    return self.tell(host, far, &refusal);
                }
                if let Some(place) = self.open(number, 1, Some(place)) {
                    self.tell(host, far, &Pairing::Paired { offer, place });
                    self.push(later, Event::Attach(number, 1));
                }
            }
            Pairing::Paired { offer, place } => {
                let number = usize::try_from(offer).unwrap_or(usize::MAX);
                let conn = &mut self.conns[number];
                if conn.served[0] == Served::Opened {
                    conn.served[0] = Served::Joined;
                    conn.far[0] = Some(place);
                    let board = self.hosts[host].board();
                    board.join_connection(id_of(number, 0), place);
                    self.push(later, Event::Attach(number, 0));
                }
            }
            Pairing::Refuse { id, .. } => {
                let number = usize::try_from(id).unwrap_or(usize::MAX);
                if self.conns[number].served[0] == Served::Opened {
                    self.hosts[host].board().close_connection(id_of(number, 0));
                    self.round_soon(host);
                }
            }
            other => self.wrong(format!("nobody said {other:?}")),
        }
    }
}
