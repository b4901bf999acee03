//! What is left to do for programs that are no longer there.
//!
//! A control socket closes when the last process that holds it has ended or has become another
//! program by exec. Its connections may live on in the second case; so the kernel is asked before the
//! far ends are told anything.

use super::{Action, Broker, Fate, State};
use crate::ids::{Process, RegistrationId};

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
        let Some(registration) = self.registrations.get(&id) else {
            return;
        };
        let process = registration.process;
        if let State::Leaving(connection, end) = registration.state
            && let Some(entry) = self.connections.get(&connection)
            && let Some(survivor) = entry.processes.get(end.far().index()).copied()
            && entry
                .ends
                .get(end.far().index())
                .is_some_and(Option::is_some)
        {
            self.actions.push_back(Action::Depart {
                place: entry.place,
                end,
                fate,
                survivor,
            });
        }
        self.remove(id);
        if let Some(count) = self.leaving.get_mut(&process) {
            *count -= 1;
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
