//! What the next daemon has to know, and what the last one left.

use std::sync::Arc;

use rdma_core::event::WaitRef;
use rdma_core::link::DomainId;
use rdma_core::mr::RemoteKey;
use rdma_core::reason::Reason;

use super::Engine;
use crate::keeper::estate::abandon_one;
use crate::keeper::record::{Beyond, InRegion, Record, link_number};
use crate::nic::Address;
use crate::relay::connections::{Parts, Way};
use crate::relay::{Kept, KeptPort, Report};
use crate::shared::ConnectionArena;
use crate::vm::region::is_in_region;

impl Engine {
    /// Has the next daemon know of a connection, if both ends are there.
    pub(in crate::relay) fn record(&self, endpoint: u32) {
        if let Some(records) = &self.records
            && let Some(record) = self.record_of(endpoint)
            && let Err(error) = records.write(endpoint, &record)
        {
            tracing::warn!(endpoint, %error, "a restart will break the connection");
        }
    }

    pub(in crate::relay) fn record_of(&self, endpoint: u32) -> Option<Record> {
        let entry = self.board.connections.get(endpoint)?;
        let beyond = match entry.way {
            Way::Here => Beyond::Here,
            Way::Line(line) => {
                let peers = self.wires.lock_peers();
                let found = peers.get(self.board.peer_of(line)?)?;
                Beyond::Backend {
                    link: link_number(self.nics.name(found.link)?),
                    address: found.address,
                }
            }
        };
        let port = &self.ports.get(&entry.process)?.port;
        let places = InRegion {
            arena: entry.arena_at,
            events: port.program().events.place(),
            port: port.place(),
        };
        Some(Record {
            connection: entry.id,
            place: entry.place,
            end: entry.end,
            process: entry.process,
            port: port.number(),
            bit: entry.who.bit?,
            domain: entry.domain.0,
            rkey: entry.keys.remote.0,
            far: entry.far?,
            beyond,
            origin: entry.origin,
            guest: is_in_region(entry.place.arena).then_some(places),
        })
    }

    /// Takes up what a daemon before us has left.
    pub(in crate::relay) fn restore(&mut self, kept: Kept) {
        for KeptPort {
            program,
            port,
            bell,
        } in kept.ports
        {
            self.add_port(program, port, bell);
        }
        for (endpoint, record, arena) in kept.connections {
            if self.restore_one(endpoint, &record, &arena).is_none() {
                self.lose(endpoint, &record, &arena);
            }
        }
        for beyond in kept.lost {
            // It asks for them as soon as we speak to it, and not before.
            if let Beyond::Backend { link, address } = beyond {
                let _line = self.line_again(link, address);
            }
        }
        self.board.resume_here();
        self.count_relayed();
        self.wake();
        for served in self.ports.values() {
            served.port.rouse();
        }
    }

    pub(in crate::relay) fn restore_one(
        &mut self,
        endpoint: u32,
        record: &Record,
        arena: &Arc<ConnectionArena>,
    ) -> Option<()> {
        let way = match record.beyond {
            Beyond::Here => Way::Here,
            Beyond::Backend { link, address } => Way::Line(self.line_again(link, address)?),
        };
        let is_share = self
            .board
            .schedule()
            .domains()
            .any(|(id, ..)| id.0 == record.domain);
        let served = self.ports.get_mut(&record.process)?;
        if !self.board.connections.claim(endpoint) {
            return None;
        }
        let parts = Parts {
            id: record.connection,
            arena: Arc::clone(arena),
            place: record.place,
            end: record.end,
            process: record.process,
            way,
            domain: DomainId(if is_share { record.domain } else { 0 }),
            origin: record.origin,
        };
        let key = RemoteKey(record.rkey);
        let who = served.port.enter_again(endpoint, record.bit);
        let restored = who.is_some_and(|who| match way {
            Way::Here => self
                .board
                .restore_here(endpoint, parts, who, key, record.far),
            Way::Line(_) => self.board.restore(endpoint, parts, who, key, record.far),
        });
        if restored {
            served.connections += 1;
            self.introduce(endpoint, record.process);
        } else {
            if let Some(who) = who {
                served.port.leave(who);
            }
            self.board.connections.give_back(endpoint);
        }
        restored.then_some(())
    }

    /// The line to a backend that a daemon before us had a line to.
    fn line_again(&mut self, link: u64, address: Address) -> Option<usize> {
        let link = (0..self.nics.len())
            .find(|index| self.nics.name(*index).map(link_number) == Some(link))?;
        let peer = {
            let mut peers = self.wires.lock_peers();
            peers.number(link, address)?
        };
        self.line_to(peer)
    }

    /// A connection that cannot be gone on with: the program is told.
    pub(in crate::relay) fn lose(
        &self,
        endpoint: u32,
        record: &Record,
        arena: &Arc<ConnectionArena>,
    ) {
        tracing::warn!(connection = %record.connection, "lost in the restart");
        let served = self.ports.get(&record.process);
        let program = served.map(|served| &**served.port.program());
        abandon_one(record, arena, program, Reason::LinkReset);
        if let Some(records) = &self.records {
            records.erase(endpoint);
        }
        self.send_report(Report::Left {
            connection: record.connection,
            process: record.process,
            who: WaitRef {
                process: record.port.0,
                context: 0,
                bit: Some(record.bit),
            },
            endpoint,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::ids::Process;
    use crate::relay::{Links, Relay, Share, doorbell};
    use crate::shared::EventMemory;
    use crate::wake::Waiters;

    fn waiters(process: u32) -> Arc<Waiters> {
        let events = EventMemory::create().expect("memory");
        let waiters = Waiters::new(Process(process), 0, events);
        assert!(!waiters.add_doorbell(0, doorbell().expect("an eventfd")));
        Arc::new(waiters)
    }

    /// Whatever their words say: the daemon before us may have been killed between the word and the doorbell.
    #[test]
    fn every_context_of_a_program_that_was_served_before_is_roused() {
        let program = waiters(1);
        assert!(!program.add_doorbell(3, doorbell().expect("an eventfd")));
        let kept = Kept {
            ports: vec![KeptPort {
                program: Arc::clone(&program),
                port: waiters(2),
                bell: Arc::new(doorbell().expect("an eventfd")),
            }],
            ..Kept::default()
        };
        let share = Share {
            weight: 1,
            rate: None,
        };
        let counted = Arc::default();
        let relay = Relay::start(Links::default(), &[share], [1; 16], 1, counted, kept);
        let bells = program.all_doorbells();
        assert_eq!(bells.len(), 2);
        for (context, bell) in bells {
            let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
            let rings = poll(&mut fds, PollTimeout::from(20_000u16));
            assert_eq!(rings, Ok(1), "context {context}");
        }
        drop(relay.expect("a thread"));
    }
}
