//! Waking a program, from whatever thread.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use rdma_core::event::WaitRef;

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
    doorbells: RwLock<HashMap<u32, Arc<OwnedFd>>>,
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
        doorbells.get(&context).cloned()
    }

    /// All doorbells, by context.
    pub fn all_doorbells(&self) -> Vec<(u32, Arc<OwnedFd>)> {
        let doorbells = self.doorbells.read();
        let doorbells = doorbells.unwrap_or_else(PoisonError::into_inner);
        let all = doorbells.iter();
        all.map(|(context, bell)| (*context, Arc::clone(bell)))
            .collect()
    }

    /// Keeps the doorbell of a context.
    pub fn add_doorbell(&self, context: u32, bell: OwnedFd) {
        let doorbells = self.doorbells.write();
        let mut doorbells = doorbells.unwrap_or_else(PoisonError::into_inner);
        doorbells.insert(context, Arc::new(bell));
    }

    /// How many doorbells there are.
    pub fn doorbells(&self) -> usize {
        let doorbells = self.doorbells.read();
        doorbells.unwrap_or_else(PoisonError::into_inner).len()
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
