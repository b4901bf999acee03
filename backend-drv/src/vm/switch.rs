//! Who looks for whom: pairing messages between guests, programs of this host, and other hosts' backends, each of
//! which numbers its registrations by itself.
//!
//! Every offer becomes a *flow* between a leader and a follower, with a number by which both know it in place of the
//! other's registration. The switch only passes on what is said, and stops at PAIR: then the ends are known to belong
//! together, and memory has to be made, which is the caller's work.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use rdma_core::reason::Reason;
use rdma_core::wire::pairing::{Names, Pairing, Place as FarPlace};

use super::VmId;
use crate::ids::PeerId;

/// Flow numbers have this bit, and registrations of this host have not.
const FLOWS: u64 = 1 << 62;
/// Flows that one side may lead.
const FLOWS_MAX: usize = 16_384;

/// Number of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId(pub u64);

impl FlowId {
    /// No flow.
    pub const NONE: Self = Self(0);

    /// The flow that a registration number means; `None` if it is a registration of this host.
    pub const fn of(id: u64) -> Option<Self> {
        if id & FLOWS == 0 {
            return None;
        }
        Some(Self(id))
    }
}

/// Who has an end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// A program of a guest.
    Vm(VmId),
    /// A program behind another host's backend.
    Peer(PeerId),
    /// A program of this host, whose far end is in this guest.
    Local(VmId),
}

/// An end, as its side names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEnd {
    /// Whose it is.
    pub side: Side,
    /// The registration there.
    pub id: u64,
    /// For a guest: the program.
    pub process: u32,
}

/// How far a flow has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The leader has offered.
    Offered,
    /// The follower has answered.
    Answered,
    /// Memory is made, and the follower told of it.
    Connecting,
}

/// See the module documentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Who offered.
    pub leader: FlowEnd,
    /// Who was offered to.
    pub follower: FlowEnd,
    /// How far it is.
    pub stage: Stage,
    /// As the leader sees it.
    pub names: Names,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Say this.
    Tell(Side, Pairing),
    /// The two ends belong together: make memory with rings of this size (a power of two). For a leader behind a
    /// link also where that takes bytes.
    Connect(FlowId, u8, FarPlace),
    /// The follower has its memory: complete the leader's.
    Complete(FlowId, FarPlace),
    /// A flow that was being connected is not wanted any more.
    Undo(FlowId),
}

/// All flows.
#[derive(Debug, Default)]
pub struct Switch {
    flows: HashMap<FlowId, Flow>,
    by_offer: HashMap<(Side, u64), FlowId>,
    led: HashMap<Side, usize>,
    first: u64,
    last: u64,
}

impl Switch {
    /// Numbers differ from those of any daemon before us.
    pub fn number_from(&mut self, epoch: u64) {
        self.last = (epoch & 0xfff_ffff) << 32;
        self.first = self.last + 1;
    }

    /// A flow.
    pub fn flow(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(&id)
    }

    /// `from` offers an end to `to`. `process`: whose it is, if `from` is a guest.
    pub fn offer(
        &mut self,
        from: Side,
        to: Side,
        process: u32,
        offer: Pairing,
        deeds: &mut Vec<Deed>,
    ) {
        let Pairing::Offer {
            id,
            names,
            ring_log2,
            sample,
        } = offer
        else {
            return;
        };
        let known = self.by_offer.get(&(from, id)).copied();
        let flow = match known {
            Some(flow) => flow,
            None if self.led.get(&from).is_some_and(|led| *led >= FLOWS_MAX) => {
                let reason = Reason::Quota.code();
                deeds.push(Deed::Tell(from, Pairing::Refuse { id, reason }));
                return;
            }
            None => {
                self.last += 1;
                let flow = FlowId(FLOWS | self.last);
                self.by_offer.insert((from, id), flow);
                *self.led.entry(from).or_default() += 1;
                flow
            }
        };
        let end = |side, id, process| FlowEnd { side, id, process };
        if self
            .flows
            .get(&flow)
            .is_some_and(|flow| flow.stage == Stage::Connecting)
        {
            deeds.push(Deed::Undo(flow));
        }
        self.flows.insert(
            flow,
            Flow {
                leader: end(from, id, process),
                follower: end(to, 0, 0),
                stage: Stage::Offered,
                names,
            },
        );
        let offer = Pairing::Offer {
            id: flow.0,
            names,
            ring_log2,
            sample,
        };
        deeds.push(Deed::Tell(to, offer));
    }

    /// `from` says something else about an end. `process` as for [`Switch::offer`].
    pub fn hear(&mut self, from: Side, process: u32, message: Pairing, deeds: &mut Vec<Deed>) {
        match message {
            Pairing::Offer { .. } | Pairing::Resume { .. } | Pairing::Gone { .. } => {}
            Pairing::Candidate {
                offer,
                id,
                ring_log2,
                sample,
            } => {
                let Some((number, flow)) = self.of_follower(from, offer) else {
                    if self.is_number(offer) {
                        // Withdrawn meanwhile, and the follower hears of that.
                        return;
                    }
                    let reason = Reason::NotEstablished.code();
                    deeds.push(Deed::Tell(from, Pairing::Refuse { id, reason }));
                    return;
                };
                if flow.stage == Stage::Connecting {
                    return;
                }
                flow.follower.id = id;
                flow.follower.process = process;
                flow.stage = Stage::Answered;
                let (leader, offer) = (flow.leader.side, flow.leader.id);
                let candidate = Pairing::Candidate {
                    offer,
                    id: number.0,
                    ring_log2,
                    sample,
                };
                deeds.push(Deed::Tell(leader, candidate));
            }
            Pairing::Pair {
                id,
                offer,
                ring_log2,
                place,
            } => match self.of_leader(from, id) {
                Some((number, flow)) if flow.stage == Stage::Answered => {
                    flow.stage = Stage::Connecting;
                    deeds.push(Deed::Connect(number, ring_log2, place));
                }
                _ => {
                    let reason = Reason::NotEstablished.code();
                    deeds.push(Deed::Tell(from, Pairing::Refuse { id: offer, reason }));
                }
            },
            Pairing::Paired { offer, place } => {
                if let Some((number, flow)) = self.of_follower(from, offer)
                    && flow.stage == Stage::Connecting
                {
                    deeds.push(Deed::Complete(number, place));
                }
            }
            Pairing::Refuse { id, reason } => {
                let Some(number) = FlowId::of(id) else {
                    return;
                };
                let Some(flow) = self.flows.get(&number).copied() else {
                    return;
                };
                if flow.leader.side == from {
                    self.end(number, reason, false, deeds);
                } else if flow.follower.side == from {
                    self.end(number, reason, true, deeds);
                }
            }
            Pairing::Withdraw { offer } => {
                if let Some(number) = self.by_offer.get(&(from, offer)).copied() {
                    self.withdraw(number, deeds);
                }
            }
        }
    }

    /// The leader does not offer its end any more. A follower that has no memory yet waits for the next offer.
    fn withdraw(&mut self, number: FlowId, deeds: &mut Vec<Deed>) {
        let Some(flow) = self.flows.get(&number).copied() else {
            return;
        };
        if flow.stage == Stage::Connecting {
            return self.end(number, Reason::NotEstablished.code(), false, deeds);
        }
        self.remove(number);
        let message = Pairing::Withdraw { offer: number.0 };
        deeds.push(Deed::Tell(flow.follower.side, message));
    }

    /// A flow comes to nothing; the end that is left is told.
    fn end(&mut self, number: FlowId, reason: u32, tell_leader: bool, deeds: &mut Vec<Deed>) {
        let Some(flow) = self.remove(number) else {
            return;
        };
        if flow.stage == Stage::Connecting {
            deeds.push(Deed::Undo(number));
        }
        let told = if tell_leader {
            let id = flow.leader.id;
            Deed::Tell(flow.leader.side, Pairing::Refuse { id, reason })
        } else if flow.stage == Stage::Offered {
            Deed::Tell(flow.follower.side, Pairing::Withdraw { offer: number.0 })
        } else {
            let id = flow.follower.id;
            Deed::Tell(flow.follower.side, Pairing::Refuse { id, reason })
        };
        deeds.push(told);
    }

    /// A flow that cannot be connected: both ends stay on TCP.
    pub fn refuse(&mut self, number: FlowId, reason: Reason, deeds: &mut Vec<Deed>) {
        let reason = reason.code();
        if let Some(flow) = self.remove(number) {
            for end in [flow.leader, flow.follower] {
                deeds.push(Deed::Tell(end.side, Pairing::Refuse { id: end.id, reason }));
            }
        }
    }

    /// A flow is connected, or its memory is undone: it is not needed any more.
    pub fn remove(&mut self, number: FlowId) -> Option<Flow> {
        let flow = self.flows.remove(&number)?;
        let leader = (flow.leader.side, flow.leader.id);
        if self.by_offer.get(&leader) == Some(&number) {
            self.by_offer.remove(&leader);
        }
        if let Some(led) = self.led.get_mut(&flow.leader.side) {
            *led = led.saturating_sub(1);
        }
        Some(flow)
    }

    /// Everything that a side has begun or waits for is void.
    pub fn forget(&mut self, is_it: impl Fn(Side) -> bool, reason: Reason, deeds: &mut Vec<Deed>) {
        let concerned: Vec<(FlowId, bool)> = self
            .flows
            .iter()
            .filter(|(_, flow)| is_it(flow.leader.side) || is_it(flow.follower.side))
            .map(|(number, flow)| (*number, is_it(flow.follower.side)))
            .collect();
        for (number, follower_is_gone) in concerned {
            self.end(number, reason.code(), follower_is_gone, deeds);
        }
    }

    /// Whether a registration of a side is offered.
    pub fn has_offer(&self, side: Side, id: u64) -> bool {
        self.by_offer.contains_key(&(side, id))
    }

    /// Whether this is or was a flow. (Which of them are, of others, nobody is told.)
    fn is_number(&self, offer: u64) -> bool {
        (FLOWS | self.first..=FLOWS | self.last).contains(&offer)
    }

    fn of_follower(&mut self, side: Side, offer: u64) -> Option<(FlowId, &mut Flow)> {
        let number = FlowId::of(offer)?;
        let flow = self.flows.get_mut(&number)?;
        (flow.follower.side == side).then_some((number, flow))
    }

    fn of_leader(&mut self, side: Side, id: u64) -> Option<(FlowId, &mut Flow)> {
        let number = FlowId::of(id)?;
        let flow = self.flows.get_mut(&number)?;
        (flow.leader.side == side).then_some((number, flow))
    }
}
