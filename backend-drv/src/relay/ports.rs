//! How programs wake the relay, and the relay programs.
//!
//! To a program the relay looks like another program with one waiting context. Each program has a context and a
//! doorbell of its own, so that none can ring, silence or exhaust another's.
//!
//! A port is *awake* while the engine looks at its bits in each round. It sleeps when the engine does. When the engine
//! wakes up, so do the ports of programs that it lately heard of: it looks at doorbells only now and then while it is
//! busy. The others go on sleeping, at no cost, until their own doorbell rings.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use rdma_core::event::WaitFor;
use rdma_core::event::{EventContext, WaitRef};
use rdma_core::layout::EndWaits;

use crate::doorbell;
use crate::ids::Process;
use crate::wake::Waiters;

/// A port that might have slept so often, and heard nothing of its program, sleeps until its own doorbell rings.
const QUIET_MAX: u32 = 64;

/// One program's port.
#[derive(Debug)]
pub(super) struct Port {
    program: Arc<Waiters>,
    own: Arc<Waiters>,
    bell: Arc<OwnedFd>,
    is_awake: bool,
    /// How often it might have slept since the program last had something.
    quiet: u32,
    /// Connection numbers by bit.
    bits: Vec<Option<u32>>,
    free: Vec<u16>,
}

impl Port {
    /// A port whose doorbell rings in `epoll` as `token`.
    pub(super) fn new(
        program: Arc<Waiters>,
        own: Arc<Waiters>,
        bell: Arc<OwnedFd>,
        epoll: &Epoll,
        token: u64,
    ) -> nix::Result<Self> {
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(bell.as_fd(), EpollEvent::new(events, token))?;
        let mut port = Self {
            program,
            own,
            bell,
            is_awake: true,
            quiet: 0,
            bits: Vec::new(),
            free: Vec::new(),
        };
        // A daemon before us may have died asleep.
        port.wake_up();
        Ok(port)
    }

    /// No longer rings.
    pub(super) fn close(&self, epoll: &Epoll) {
        let _ = epoll.delete(self.bell.as_fd());
    }

    /// The number under which the program knows the relay.
    pub(super) fn number(&self) -> Process {
        self.own.process
    }

    /// Where its memory begins in what it is a part of.
    pub(super) fn place(&self) -> u64 {
        self.own.events.place()
    }

    fn context(&self) -> Option<&EventContext> {
        self.own.events.context(0)
    }

    /// A bit for the connection with this number, and how the program names it.
    pub(super) fn enter(&mut self, connection: u32) -> Option<WaitRef> {
        let bit = match self.free.pop() {
            Some(bit) => bit,
            None => {
                let bit = u16::try_from(self.bits.len()).ok()?;
                self.bits.push(None);
                bit
            }
        };
        *self.bits.get_mut(usize::from(bit))? = Some(connection);
        Some(WaitRef {
            process: self.own.process.0,
            context: 0,
            bit: Some(bit),
        })
    }

    /// Gives this very bit to the connection with this number, as a daemon before us did. `None`: it is in use.
    pub(super) fn enter_again(&mut self, connection: u32, bit: u16) -> Option<WaitRef> {
        while self.bits.len() <= usize::from(bit) {
            let next = u16::try_from(self.bits.len()).ok()?;
            self.bits.push(None);
            self.free.push(next);
        }
        let place = self.free.iter().position(|free| *free == bit)?;
        // `enter` takes the last of the free ones.
        self.free.swap_remove(place);
        self.free.push(bit);
        self.enter(connection)
    }

    /// The bit is free again.
    pub(super) fn leave(&mut self, who: WaitRef) {
        if let Some(bit) = who.bit
            && let Some(place) = self.bits.get_mut(usize::from(bit))
            && place.take().is_some()
        {
            self.free.push(bit);
        }
    }

    /// The program.
    pub(super) const fn program(&self) -> &Arc<Waiters> {
        &self.program
    }

    /// Whether the program runs in a guest.
    pub(super) fn is_in_guest(&self) -> bool {
        self.program.events.is_part()
    }

    /// Whether the engine has to look at it.
    pub(super) const fn is_awake(&self) -> bool {
        self.is_awake
    }

    /// The doorbell has rung.
    pub(super) fn wake_up(&mut self) {
        if let Some(context) = self.context() {
            context.finish_sleep();
        }
        self.is_awake = true;
    }

    /// The engine is awake, for whatever reason.
    pub(super) fn wake_up_if_recent(&mut self) {
        if !self.is_awake && self.quiet < QUIET_MAX {
            self.wake_up();
        }
    }

    /// Whether the program has something, as far as the engine looks.
    pub(super) fn has_pending(&self) -> bool {
        self.is_awake && self.context().is_some_and(EventContext::has_pending)
    }

    /// Gives each connection that the program has something for to `found`. True if there were any.
    pub(super) fn take(&mut self, mut found: impl FnMut(u32)) -> bool {
        let Some(context) = self.own.events.context(0) else {
            return false;
        };
        if !context.has_pending() {
            return false;
        }
        self.quiet = 0;
        let bits = &self.bits;
        context.take_pending(|bit| {
            if let Some(Some(connection)) = bits.get(usize::from(bit)) {
                found(*connection);
            }
        });
        true
    }

    /// The engine found nothing, here or anywhere. True: the port is asleep now, with nothing pending.
    pub(super) fn doze(&mut self) -> bool {
        let Some(context) = self.own.events.context(0) else {
            return false;
        };
        context.prepare_sleep();
        if context.has_pending() {
            context.finish_sleep();
            return false;
        }
        self.is_awake = false;
        self.quiet = self.quiet.saturating_add(1);
        true
    }

    /// The engine has been busy for a while: so that it does not look at programs for ever that say nothing.
    pub(super) fn doze_if_quiet(&mut self) {
        if !self.is_awake {
            return;
        }
        self.quiet = self.quiet.saturating_add(1);
        if self.quiet >= QUIET_MAX {
            self.doze();
        }
    }

    /// Rings every doorbell of the program: a daemon before us may have said that a context wakes up, and died before it
    /// rang.
    pub(super) fn rouse(&self) {
        for (_, bell) in self.program.all_doorbells() {
            doorbell::ring(&*bell);
        }
    }

    /// Wakes whoever of the program waits at `waits`. The engine has published, and passed a full barrier.
    pub(super) fn wake(
        &self,
        waits: &EndWaits,
        what: WaitFor,
        others: &impl Fn(u32) -> Option<Arc<Waiters>>,
    ) {
        if !waits.any(what) {
            return;
        }
        waits.each(what, |who| {
            if who.process == self.program.process.0 {
                self.program.wake(who);
            } else if let Some(other) = others(who.process)
                // A forked child, which holds the same connection.
                && other.uid == self.program.uid
            {
                other.wake(who);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::epoll::EpollCreateFlags;

    use super::*;
    use crate::relay::doorbell;
    use crate::shared::EventMemory;

    fn waiters(process: u32) -> Arc<Waiters> {
        let events = EventMemory::create().expect("memory");
        Arc::new(Waiters::new(Process(process), 0, events))
    }

    #[test]
    fn who_was_heard_of_lately_is_looked_at_whoever_wakes_the_engine() {
        let epoll = Epoll::new(EpollCreateFlags::empty()).expect("an epoll set");
        let own = waiters(2);
        let bell = Arc::new(doorbell().expect("an eventfd"));
        let mut port = Port::new(waiters(1), Arc::clone(&own), bell, &epoll, 9).expect("a port");
        let bit = port.enter(7).and_then(|who| who.bit).expect("a bit");
        let context = own.events.context(0).expect("a context");

        assert!(port.doze());
        port.wake_up_if_recent();
        assert!(port.is_awake() && !port.has_pending());
        context.post(bit);
        assert!(port.has_pending());
        assert!(!context.take_sleeper(), "nobody has to ring");
        assert!(!port.doze(), "there is something");
        let mut found = Vec::new();
        assert!(port.take(|connection| found.push(connection)));
        assert_eq!(found, [7]);

        // One that says nothing costs nothing.
        for _ in 0..QUIET_MAX {
            port.wake_up_if_recent();
            assert!(port.is_awake() && port.doze());
        }
        port.wake_up_if_recent();
        assert!(!port.is_awake());
        context.post(bit);
        assert!(!port.has_pending(), "it is not looked at");
        assert!(context.take_sleeper(), "and has to ring");
        port.wake_up();
        assert!(port.take(|_| {}) && port.doze());
        port.wake_up_if_recent();
        assert!(port.is_awake());

        // Nor does it while the engine never sleeps.
        for _ in 1..QUIET_MAX {
            assert!(port.is_awake());
            port.doze_if_quiet();
        }
        assert!(!port.is_awake());
    }
}
