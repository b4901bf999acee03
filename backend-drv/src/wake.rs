//! Waking a program, from whatever thread.
//!
//! A guest's context may go to sleep, and somebody take it upon himself to ring, before the host has heard of its
//! doorbell. The ring is owed then, and whoever brings the doorbell rings it.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use rdma_core::event::{CONTEXTS, WaitFor, WaitRef};
use rdma_core::layout::EndWaits;

use crate::doorbell;
use crate::ids::Process;
use crate::shared::EventMemory;

/// A program's waiting contexts and their doorbells.
#[derive(Debug)]
pub struct Waiters {
    /// The program.
    pub process: Process,
    /// Its user.
    pub uid: u32,
    /// The contexts.
    pub events: EventMemory,
    doorbells: RwLock<Doorbells>,
}

#[derive(Debug, Default)]
struct Doorbells {
    known: HashMap<u32, Arc<OwnedFd>>,
    /// Contexts that are to be rung and have no doorbell.
    owed: BTreeSet<u32>,
}

impl Waiters {
    /// No doorbells yet.
    pub fn new(process: Process, uid: u32, events: EventMemory) -> Self {
        Self {
            process,
            uid,
            events,
            doorbells: RwLock::default(),
        }
    }

    /// The doorbell of a context.
    pub fn doorbell(&self, context: u32) -> Option<Arc<OwnedFd>> {
        let doorbells = self.doorbells.read();
        let doorbells = doorbells.unwrap_or_else(PoisonError::into_inner);
        doorbells.known.get(&context).cloned()
    }

    /// The doorbell of a context that the caller is to ring. `None`: there is none yet, and whoever
    /// [adds](Waiters::add_doorbell) it will.
    pub fn doorbell_to_ring(&self, context: u32) -> Option<Arc<OwnedFd>> {
        if let Some(bell) = self.doorbell(context) {
            return Some(bell);
        }
        let doorbells = self.doorbells.write();
        let mut doorbells = doorbells.unwrap_or_else(PoisonError::into_inner);
        let known = doorbells.known.get(&context).cloned();
        if known.is_none() && context < CONTEXTS {
            doorbells.owed.insert(context);
        }
        known
    }

    /// All doorbells, by context.
    pub fn all_doorbells(&self) -> Vec<(u32, Arc<OwnedFd>)> {
        let doorbells = self.doorbells.read();
        let doorbells = doorbells.unwrap_or_else(PoisonError::into_inner);
        let all = doorbells.known.iter();
        all.map(|(context, bell)| (*context, Arc::clone(bell)))
            .collect()
    }

    /// Keeps the doorbell of a context. True: somebody wanted to ring it already, and the caller is to.
    #[must_use]
    pub fn add_doorbell(&self, context: u32, bell: OwnedFd) -> bool {
        let doorbells = self.doorbells.write();
        let mut doorbells = doorbells.unwrap_or_else(PoisonError::into_inner);
        doorbells.known.insert(context, Arc::new(bell));
        doorbells.owed.remove(&context)
    }

    /// How many doorbells there are.
    pub fn doorbells(&self) -> usize {
        let doorbells = self.doorbells.read();
        let doorbells = doorbells.unwrap_or_else(PoisonError::into_inner);
        doorbells.known.len()
    }

    /// As [`Waiters::post`], and rings the doorbell if that is to be done.
    pub fn wake(&self, who: WaitRef) {
        if self.post(who)
            && let Some(bell) = self.doorbell_to_ring(who.context.into())
        {
            doorbell::ring(&*bell);
        }
    }

    /// What `waits` are of this program's may soon have something new: its sets look at the connection when they are asked
    /// next. The caller is about to publish, and [wakes](Waiters::wake) them after that. A program that finds by itself
    /// what is new, and then asks a set, would miss it there otherwise.
    pub fn announce(&self, waits: &EndWaits, what: WaitFor) {
        if !waits.any(what) {
            return;
        }
        waits.each(what, |who| {
            if who.process == self.process.0
                && let Some(bit) = who.bit
                && let Some(context) = self.events.context(who.context.into())
            {
                context.post(bit);
            }
        });
    }

    /// Tells the context that `who` names, which is one of this program's. The caller has published, and has
    /// passed a full barrier. True: it sleeps, and its doorbell is to be rung by the caller.
    pub fn post(&self, who: WaitRef) -> bool {
        let Some(context) = self.events.context(who.context.into()) else {
            return false;
        };
        if let Some(bit) = who.bit {
            context.post(bit);
        }
        context.take_sleeper()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_comes_before_its_doorbell_is_owed() {
        let bell = || crate::relay::doorbell().expect("a doorbell");
        let events = EventMemory::create().expect("memory");
        let waiters = Waiters::new(Process(1), 0, events);
        assert!(!waiters.add_doorbell(1, bell()), "nobody wanted to ring it");
        assert!(waiters.doorbell_to_ring(1).is_some());
        assert!(waiters.doorbell_to_ring(2).is_none());
        assert!(waiters.doorbell_to_ring(2).is_none());
        assert!(waiters.add_doorbell(2, bell()), "owed");
        assert!(waiters.doorbell_to_ring(2).is_some());
        assert!(!waiters.add_doorbell(2, bell()), "rung");
        // Nobody will ever bring this one.
        assert!(waiters.doorbell_to_ring(CONTEXTS).is_none());
        assert!(!waiters.add_doorbell(CONTEXTS, bell()));
    }
}
