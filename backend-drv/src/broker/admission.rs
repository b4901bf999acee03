//! Registrations that programs ask for: which are entered, and which are refused.

use rdma_core::control::{Register, SlotRef};
use rdma_core::reason::Reason;

use super::{Broker, Key, Proof, Registration, State};
use crate::accounts::{Account, Holdings};
use crate::ids::{Process, RegistrationId};
use crate::pairing::Tuple;

impl Broker {
    /// A program registers one end. `proof` is what the kernel says of the socket.
    pub fn register(
        &mut self,
        process: Process,
        register: &Register,
        proof: Result<Proof, Reason>,
    ) {
        let answer = self.admit(process, register, proof);
        match answer {
            Ok(id) => self.find_mate(id),
            Err(reason) => {
                let slot = SlotRef {
                    slot: register.slot,
                    generation: register.generation,
                };
                self.send_refusal(process, slot, reason);
            }
        }
    }

    /// Enters a registration, unless there is a reason not to.
    fn admit(
        &mut self,
        process: Process,
        register: &Register,
        proof: Result<Proof, Reason>,
    ) -> Result<RegistrationId, Reason> {
        let program = self.programs.get(&process).ok_or(Reason::NoDaemon)?;
        if program.slots.contains_key(&register.slot) {
            return Err(Reason::Ambiguous);
        }
        let tuple = Tuple::of(register);
        if tuple.is_loop() {
            return Err(Reason::SelfConnected);
        }
        let proof = proof?;
        let facts = program.facts;
        let key = Key {
            netns: facts.netns,
            tuple,
        };
        self.settle_claim(key, proof.inode)?;
        self.accounts
            .charge(Account::User(facts.uid), Holdings::CONNECTION)
            .map_err(|_| Reason::Quota)?;
        self.last_registration += 1;
        let id = RegistrationId(self.last_registration);
        let owned = facts
            .domain
            .and_then(|index| self.domains.get(index))
            .is_some_and(|domain| domain.owns(tuple.own.ip()));
        if owned {
            self.by_tuple.entry(tuple).or_default().push(id);
        }
        self.by_key.insert(key, id);
        self.registrations.insert(
            id,
            Registration {
                process,
                slot: register.slot,
                generation: register.generation,
                tuple,
                proof,
                connects: register.side == 1,
                netns: facts.netns,
                uid: facts.uid,
                owned,
                remote: None,
                state: State::Waiting,
            },
        );
        if let Some(program) = self.programs.get_mut(&process) {
            program.slots.insert(register.slot, id);
        }
        Ok(id)
    }

    /// Decides between an earlier claim to `key` and a new one for the socket with `inode`. The
    /// kernel has just said that the addresses belong to this socket, so an earlier claim for
    /// another socket is out of date. Two claims for *one* socket mean that two programs (or one,
    /// twice) hold it without knowing of each other: neither may leave TCP.
    fn settle_claim(&mut self, key: Key, inode: u32) -> Result<(), Reason> {
        if self.inherited.get(&key) == Some(&inode) {
            return Err(Reason::Ambiguous);
        }
        let Some((&id, earlier)) = self
            .by_key
            .get(&key)
            .and_then(|id| Some((id, self.registrations.get(id)?)))
        else {
            return Ok(());
        };
        match (earlier.proof.inode == inode, earlier.state) {
            (true, State::Waiting) => {
                self.refuse(id, Reason::Ambiguous);
                Err(Reason::Ambiguous)
            }
            (true, State::Attached(..)) => Err(Reason::Ambiguous),
            (true, State::Leaving(..)) => Err(Reason::Exec),
            (false, State::Waiting) => {
                self.refuse(id, Reason::NotEstablished);
                Ok(())
            }
            // Its end has yet to unregister; the new claim takes the name over.
            (false, State::Attached(..) | State::Leaving(..)) => Ok(()),
        }
    }
}
