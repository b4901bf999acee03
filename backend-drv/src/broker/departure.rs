//! What is left to do for programs that are no longer there.
//!
//! A control socket closes when the last process that holds it has ended or has become another
//! program by exec. Its connections may live on in the second case; so the kernel is asked before the
//! far ends are told anything.

use rdma_core::layout::End;

use super::{Action, Broker, Fate, State};
use crate::carving::Place;
use crate::ids::{ConnectionId, Process, RegistrationId};

impl Broker {
    /// A program's control socket is closed.
    pub fn leave(&mut self, process: Process) {
        let Some(program) = self.programs.remove(&process) else {
            return;
        };
        for id in program.slots.into_values() {
            let Some(registration) = self.registrations.get_mut(&id) else {
                continue;
            };
            if let State::Attached(connection, end) = registration.state {
                registration.state = State::Leaving(connection, end);
                *self.leaving.entry(process).or_default() += 1;
                self.actions.push_back(Action::Examine(id));
            } else {
                self.remove(id);
            }
        }
        for peer in program.peers {
            let knows = self
                .programs
                .get_mut(&peer)
                .is_some_and(|program| program.peers.remove(&process));
            if knows {
                self.send_gone(peer, process);
            }
        }
        for arena in self.carving.leave(process) {
            self.drop_arena(arena);
        }
        self.forget_if_done(process);
    }

    /// The answer to [`Action::Examine`].
    pub fn examined(&mut self, id: RegistrationId, fate: Fate) {
        if let Some(connection) = self.relayed_without_end(id) {
            match fate {
                Fate::Gone => {
                    self.actions.push_back(Action::DepartRelay {
                        connection,
                        held: false,
                    });
                    self.remove(id);
                }
                Fate::Held => self.actions.push_back(Action::LingerRelay(connection)),
            }
            return;
        }
        if let Some(connection) = self.relayed_left_behind(id) {
            let held = fate == Fate::Held;
            self.actions
                .push_back(Action::DepartRelay { connection, held });
            return self.settle(id);
        }
        let left = self.left_behind(id).or_else(|| self.left_outside(id));
        let Some((connection, end, place, survivor)) = left else {
            self.settle(id);
            return;
        };
        match fate {
            Fate::Gone => {
                self.actions.push_back(Action::Depart {
                    place,
                    end,
                    survivor,
                });
                self.settle(id);
            }
            Fate::Held => self.actions.push_back(Action::Withdraw {
                connection,
                end,
                registration: id,
            }),
        }
    }

    /// The answer to [`Action::Withdraw`]: nobody uses the memory for this end any more.
    pub fn withdrawn(&mut self, id: RegistrationId) {
        self.settle(id);
    }

    /// The connection of a program that left, if its far end is on another host.
    fn relayed_left_behind(&self, id: RegistrationId) -> Option<ConnectionId> {
        let State::Leaving(connection, _) = self.registrations.get(&id)?.state else {
            return None;
        };
        self.is_relayed(connection).then_some(connection)
    }

    /// The relayed connection of a program that is there and perhaps holds it no more.
    fn relayed_without_end(&self, id: RegistrationId) -> Option<ConnectionId> {
        let State::Attached(connection, _) = self.registrations.get(&id)?.state else {
            return None;
        };
        self.is_relayed(connection).then_some(connection)
    }

    /// The connection of a program that left, if its far end goes on.
    fn left_behind(&self, id: RegistrationId) -> Option<(ConnectionId, End, Place, Process)> {
        let State::Leaving(connection, end) = self.registrations.get(&id)?.state else {
            return None;
        };
        let entry = self.connections.get(&connection)?;
        let far = end.far().index();
        entry.ends.get(far)?.as_ref()?;
        Some((connection, end, entry.place, *entry.processes.get(far)?))
    }

    /// A registration of a program that left is done with.
    fn settle(&mut self, id: RegistrationId) {
        let Some(registration) = self.registrations.get(&id) else {
            return;
        };
        let process = registration.process;
        if !matches!(registration.state, State::Leaving(..)) {
            return;
        }
        self.remove(id);
        if let Some(count) = self.leaving.get_mut(&process) {
            *count = count.saturating_sub(1);
        }
        self.forget_if_done(process);
    }

    fn forget_if_done(&mut self, process: Process) {
        if self.leaving.get(&process).is_none_or(|count| *count == 0) {
            self.leaving.remove(&process);
            self.actions.push_back(Action::Forget(process));
        }
    }
}
