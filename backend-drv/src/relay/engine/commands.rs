//! What the event loop asks of the engine, and what it is told.

use std::sync::atomic::Ordering;
use std::time::Instant;

use rdma_core::link::DomainId;
use rdma_core::reason::Reason;

use super::{DRAIN_TIME, Engine};
use crate::ids::PeerId;
use crate::relay::connections::{Parts, Way};
use crate::relay::{Command, Opening, Report};

impl Opening {
    fn into_parts(self, way: Way) -> Parts {
        Parts {
            id: self.connection,
            arena: self.arena,
            place: self.place,
            end: self.end,
            process: self.process,
            way,
            domain: DomainId(self.domain),
            origin: self.origin,
        }
    }
}

impl Engine {
    pub(in crate::relay) fn take_commands(&mut self) -> bool {
        if !self.wires.waiting.there.load(Ordering::Relaxed) {
            return false;
        }
        let _ = self.wires.waiting.bell.read();
        self.wires.waiting.there.store(false, Ordering::SeqCst);
        while let Ok(command) = self.wires.inbox.try_recv() {
            self.obey(command);
        }
        true
    }

    pub(in crate::relay) fn obey(&mut self, command: Command) {
        match command {
            Command::AddPort {
                program,
                port,
                bell,
            } => self.add_port(program, port, bell),
            Command::RemovePort(process) => match self.ports.get_mut(&process) {
                Some(served) => {
                    served.leaving = true;
                    self.drop_port_if_unused(process);
                }
                // It could not be made.
                None => self.send_report(Report::PortDropped(process)),
            },
            Command::Open { opening, peer, far } => {
                let connection = opening.connection;
                let result = match self.line_to(peer) {
                    Some(line) => self.open(opening.into_parts(Way::Line(line)), far),
                    None => Err(Reason::Unreachable),
                };
                self.send_report(Report::Opened(connection, result));
            }
            Command::OpenHere(both) => {
                let connections = [both[0].connection, both[1].connection];
                let result = self.open_here(both.map(|opening| opening.into_parts(Way::Here)));
                self.send_report(Report::OpenedHere(connections, result));
            }
            Command::Join(connection, far) => {
                self.board.join_connection(connection, far);
                if let Some(endpoint) = self.board.connections.endpoint(connection) {
                    self.record(endpoint);
                }
            }
            Command::Close(connection) => self.board.close_connection(connection),
            Command::End(connection) => self.board.end(connection),
            Command::Depart(connection, held) => self.board.depart(connection, held),
            Command::Linger(connection) => self.board.linger(connection),
            Command::Break(connection, reason) => self.board.break_end(connection, reason),
            Command::Withdraw(connection) => self.board.withdraw(connection),
            Command::KeepEmpty(connection, end) => {
                let kept = self.board.keep_empty(connection, end);
                self.send_report(Report::KeptEmpty(connection, end, kept));
            }
            Command::MayFill(connection) => self.board.may_fill(connection),
            Command::Tell(peer, message) => {
                if let Some(line) = self.line_to(peer) {
                    self.board.tell(line, &message);
                }
            }
            Command::Drain => {
                self.draining = Some(Instant::now());
                self.board.drain();
            }
            Command::Stop => self.stopping = true,
        }
    }

    pub(in crate::relay) fn count_relayed(&self) {
        let relayed = self.board.connections.len();
        self.wires.waiting.relayed.store(relayed, Ordering::Relaxed);
    }

    pub(in crate::relay) fn send_report(&self, report: Report) {
        self.count_relayed();
        // Nobody listens only when the daemon ends.
        let _ = self.wires.outbox.send(report);
        let _ = self.wires.report_bell.write(1);
    }

    pub(in crate::relay) fn report(&mut self) {
        while let Some(report) = self.board.next_report() {
            match report {
                Report::Left {
                    connection,
                    process,
                    who,
                    endpoint,
                } => {
                    if let Some(records) = &self.records {
                        records.erase(endpoint);
                    }
                    if let Some(served) = self.ports.get_mut(&process) {
                        served.port.leave(who);
                        served.connections = served.connections.saturating_sub(1);
                    }
                    self.drop_port_if_unused(process);
                    self.send_report(Report::Left {
                        connection,
                        process,
                        who,
                        endpoint,
                    });
                }
                Report::Up(peer) => {
                    self.set_silent(peer, false);
                    self.send_report(Report::Up(peer));
                }
                Report::Silent(peer) => {
                    self.set_silent(peer, true);
                    self.send_report(Report::Silent(peer));
                }
                other => self.send_report(other),
            }
        }
    }

    pub(in crate::relay) fn set_silent(&self, peer: PeerId, silent: bool) {
        let mut peers = self.wires.lock_peers();
        peers.set_silent(peer, silent, Instant::now());
    }

    pub(in crate::relay) fn check_drain(&mut self) {
        if let Some(since) = self.draining
            && (self.board.is_drained() || since.elapsed() >= DRAIN_TIME)
        {
            self.draining = None;
            self.send_report(Report::Drained);
        }
    }
}
