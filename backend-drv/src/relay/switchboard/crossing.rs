//! Connections whose two ends are programs of this host that do not trust each other: each end has memory of its own,
//! and is a connection of its own here. What goes over a link otherwise goes from the one to the other at once:
//! bytes by one copy from ring to ring, in turns, and what the programs say by word of mouth.

use rdma_core::event::{WaitFor, WaitRef};
use rdma_core::link::{Endpoint, Time};
use rdma_core::mirror::{Carried, Look, Snapshot};
use rdma_core::mr::RemoteKey;
use rdma_core::reason::Reason;
use rdma_core::wire::pairing::Place as FarPlace;

use super::Switchboard;
use crate::relay::connections::{Parts, Way};

/// Bytes that are copied at once, before somebody else may have his turn.
const CHUNK: u64 = 64 * 1024;
/// Bytes that are copied before links and programs are looked at again.
const BATCH: u64 = 128 * 1024;

/// One end, with the number that was [reserved](Switchboard::reserve) for it, and how its program wakes the relay.
pub type Half = (u32, Parts, WaitRef);

impl Switchboard {
    /// Serves both ends of a connection.
    ///
    /// # Errors
    /// There is no memory or no key for one of them; neither is served.
    pub fn open_here(&mut self, halves: [Half; 2]) -> Result<(), Reason> {
        let [(one, parts, who), (other, far_parts, far_who)] = halves;
        let domains = [parts.domain, far_parts.domain];
        let first = self.connections.enter(one, parts, who, None);
        let first = first.ok_or(Reason::NoMemory)?;
        let Some(second) = self.connections.enter(other, far_parts, far_who, None) else {
            // The caller gives both numbers back.
            self.connections.take_back(one);
            return Err(Reason::NoMemory);
        };
        let ends = [(one, second), (other, first)];
        for ((endpoint, far), domain) in ends.into_iter().zip(domains) {
            if let Some(entry) = self.connections.get_mut(endpoint) {
                entry.far = Some(far);
            }
            self.crossing.open(Endpoint(endpoint), domain);
            self.touched.push_back(endpoint);
        }
        Ok(())
    }

    /// Goes on with one end of a connection of a daemon before us. Both ends are needed:
    /// [`Switchboard::resume_here`].
    pub fn restore_here(
        &mut self,
        endpoint: u32,
        parts: Parts,
        who: WaitRef,
        key: RemoteKey,
        far: FarPlace,
    ) -> bool {
        let domain = parts.domain;
        let entered = self.connections.enter(endpoint, parts, who, Some(key));
        if let Some(entry) = self.connections.get_mut(endpoint) {
            entry.far = Some(far);
            self.crossing.open(Endpoint(endpoint), domain);
        }
        entered.is_some()
    }

    /// All ends that can be restored have been. Where one is missing, or they do not fit each other, the
    /// connection is broken.
    pub fn resume_here(&mut self) {
        for endpoint in self.connections.endpoints() {
            let is_here = self.connections.get(endpoint).map(|entry| entry.way) == Some(Way::Here);
            if !is_here {
                continue;
            }
            let fits = self
                .connections
                .pair_mut(endpoint)
                .is_some_and(|(one, other)| {
                    let (one, other) = (one.mirror.get_mut(), other.mirror.get_mut());
                    // Counts what the program has written meanwhile.
                    if one.look().is_err() {
                        return false;
                    }
                    let (received, consumed) = other.taken();
                    let fits = one.may_have_sent(received, consumed);
                    one.consumed(consumed);
                    fits
                });
            if fits {
                // The one before us may have died before it woke the program.
                self.wake_all(endpoint);
                self.touched.push_back(endpoint);
            } else {
                self.break_one(endpoint, Reason::LinkReset);
                self.serve_touched();
            }
        }
    }

    /// What follows from a look at one end for the other.
    pub(super) fn looked_here(&mut self, endpoint: u32, look: &Look, news: Option<Snapshot>) {
        let Some(partner) = self.connections.partner(endpoint) else {
            return;
        };
        let Some((one, other)) = self.connections.pair_mut(endpoint) else {
            return;
        };
        // What was read here leaves the ring there.
        let has_room = other.consumed(look.consumed);
        let (one, other) = (one.mirror.get_mut(), other.mirror.get_mut());
        let (sends, receives) = (one.has_for(other), other.has_for(one));
        for (endpoint, has_more) in [(endpoint, sends), (partner, receives)] {
            if has_more {
                self.crossing.ready(Endpoint(endpoint));
            } else {
                self.crossing.pause(Endpoint(endpoint));
            }
        }
        if let Some(said) = news {
            self.said_here.push_back((partner, said));
        }
        if has_room {
            self.wake(partner, WaitFor::Space);
        }
    }

    /// Lets ends hear what their far ends have said.
    pub(super) fn hear_here(&mut self) {
        while let Some((endpoint, said)) = self.said_here.pop_front() {
            if let Some(entry) = self.connections.get_mut(endpoint) {
                let result = entry.hear(said);
                self.looked(endpoint, result);
            }
        }
    }

    /// Copies bytes for those who have their turn.
    pub(super) fn cross(&mut self, now: Time) {
        let cpu = self.cpu;
        let mut copied = 0;
        while copied < BATCH
            && let Some(Endpoint(endpoint)) = self.crossing.next(now, &mut self.schedule)
        {
            let carried = self.connections.pair_mut(endpoint).map(|(one, other)| {
                other.mirror.get_mut().runs_on(cpu);
                other.announce(WaitFor::Data);
                one.mirror.get_mut().carry_to(other.mirror.get_mut(), CHUNK)
            });
            let Carried { bytes, more } = match carried {
                Some(Ok(carried)) => carried,
                Some(Err(error)) => {
                    self.break_corrupt(endpoint, &error);
                    Carried::default()
                }
                None => Carried::default(),
            };
            if bytes == 0 {
                self.crossing.pause(Endpoint(endpoint));
                continue;
            }
            copied += bytes;
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            self.crossing
                .charge(Endpoint(endpoint), len, more, &mut self.schedule);
            if let Some(partner) = self.connections.partner(endpoint)
                && self.touched.back() != Some(&partner)
            {
                self.wake(partner, WaitFor::Data);
                self.touched.push_back(partner);
            }
        }
        self.serve_touched();
    }

    /// The words of one of the two ends make no sense; both programs get to know.
    fn break_corrupt(&mut self, endpoint: u32, error: &rdma_core::ring::Corrupt) {
        if let Some(entry) = self.connections.get_mut(endpoint) {
            tracing::debug!(connection = %entry.id, %error, "broken");
            entry.mirror.get_mut().break_with(Reason::RingCorrupt);
            self.wake_all(endpoint);
            self.touched.push_back(endpoint);
        }
    }

    /// One end is about to be forgotten: the other has nobody to speak to.
    pub(super) fn part(&mut self, endpoint: u32) {
        self.crossing.close(Endpoint(endpoint));
        if let Some(partner) = self.connections.partner(endpoint)
            && let Some(other) = self.connections.get_mut(partner)
        {
            other.far = None;
            other.alone = true;
            self.crossing.pause(Endpoint(partner));
            self.touched.push_back(partner);
        }
    }
}
