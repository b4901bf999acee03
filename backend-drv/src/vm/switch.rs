//! Who looks for whom: pairing messages between guests, programs of this host, and other hosts' backends, each of
//! which numbers its registrations by itself.
//!
//! Every offer becomes a *flow* between a leader and a follower, with a number by which both know it in place of the
//! other's registration. The switch only passes on what is said, and stops at PAIR: then the ends are known to belong
//! together, and memory has to be made, which is the caller's work.

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

#[cfg(test)]
mod tests {
    use super::*;
    use rdma_core::wire::pairing::Sample;

    const A: Side = Side::Vm(VmId(0));
    const B: Side = Side::Vm(VmId(1));
    const NOWHERE: FarPlace = FarPlace {
        endpoint: 0,
        rkey: 0,
    };

    fn names() -> Names {
        Names {
            own: "10.0.0.1:1".parse().unwrap(),
            far: "10.0.0.2:2".parse().unwrap(),
        }
    }

    fn offer(id: u64) -> Pairing {
        Pairing::Offer {
            id,
            names: names(),
            ring_log2: 20,
            sample: Sample::default(),
        }
    }

    fn offered(switch: &mut Switch) -> FlowId {
        let mut deeds = Vec::new();
        switch.offer(A, B, 7, offer(5), &mut deeds);
        match deeds.as_slice() {
            [Deed::Tell(to, Pairing::Offer { id, .. })] if *to == B => FlowId::of(*id).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn hear(switch: &mut Switch, from: Side, message: Pairing) -> Vec<Deed> {
        let mut deeds = Vec::new();
        switch.hear(from, 9, message, &mut deeds);
        deeds
    }

    fn answered(switch: &mut Switch) -> FlowId {
        let flow = offered(switch);
        let candidate = |offer, id| Pairing::Candidate {
            offer,
            id,
            ring_log2: 18,
            sample: Sample::default(),
        };
        let deeds = hear(switch, B, candidate(flow.0, 3));
        assert_eq!(deeds, [Deed::Tell(A, candidate(5, flow.0))]);
        flow
    }

    fn pair(flow: FlowId) -> Pairing {
        Pairing::Pair {
            id: flow.0,
            offer: 5,
            ring_log2: 18,
            place: NOWHERE,
        }
    }

    #[test]
    fn both_ends_know_the_flow_by_its_number() {
        let mut switch = Switch::default();
        let flow = answered(&mut switch);
        assert_eq!(
            hear(&mut switch, A, pair(flow)),
            [Deed::Connect(flow, 18, NOWHERE)]
        );
        let found = *switch.flow(flow).unwrap();
        assert_eq!((found.leader.process, found.follower.process), (7, 9));
        assert_eq!((found.leader.id, found.follower.id), (5, 3));
        let paired = Pairing::Paired {
            offer: flow.0,
            place: NOWHERE,
        };
        assert_eq!(
            hear(&mut switch, B, paired),
            [Deed::Complete(flow, NOWHERE)]
        );
    }

    #[test]
    fn nobody_speaks_for_another_side() {
        let mut switch = Switch::default();
        let flow = answered(&mut switch);
        let stranger = Side::Vm(VmId(2));
        for side in [B, stranger] {
            let refused = Pairing::Refuse {
                id: 5,
                reason: Reason::NotEstablished.code(),
            };
            assert_eq!(
                hear(&mut switch, side, pair(flow)),
                [Deed::Tell(side, refused)]
            );
        }
        let refuse = Pairing::Refuse {
            id: flow.0,
            reason: 1,
        };
        assert_eq!(hear(&mut switch, stranger, refuse), []);
        assert!(switch.flow(flow).is_some());
    }

    #[test]
    fn a_withdrawal_leaves_the_follower_to_the_next_offer() {
        let mut switch = Switch::default();
        let candidate = |offer| Pairing::Candidate {
            offer,
            id: 3,
            ring_log2: 18,
            sample: Sample::default(),
        };
        for answers in [true, false] {
            let flow = if answers {
                answered(&mut switch)
            } else {
                offered(&mut switch)
            };
            let withdrawn = |offer| Pairing::Withdraw { offer };
            assert_eq!(
                hear(&mut switch, A, withdrawn(5)),
                [Deed::Tell(B, withdrawn(flow.0))]
            );
            // An answer on its way is none any more.
            assert_eq!(hear(&mut switch, B, candidate(flow.0)), []);
        }
        let reason = Reason::NotEstablished.code();
        let refused = Deed::Tell(B, Pairing::Refuse { id: 3, reason });
        assert_eq!(hear(&mut switch, B, candidate(FLOWS | 99)), [refused]);
    }

    #[test]
    fn a_refusal_reaches_the_other_end_under_its_own_number() {
        let mut switch = Switch::default();
        let flow = answered(&mut switch);
        let refuse = |id| Pairing::Refuse { id, reason: 4 };
        assert_eq!(
            hear(&mut switch, B, refuse(flow.0)),
            [Deed::Tell(A, refuse(5))]
        );
        let flow = answered(&mut switch);
        assert_eq!(
            hear(&mut switch, A, refuse(flow.0)),
            [Deed::Tell(B, refuse(3))]
        );
        assert!(switch.flows.is_empty() && switch.by_offer.is_empty());
    }

    #[test]
    fn a_side_that_leaves_takes_its_flows_along() {
        let mut switch = Switch::default();
        let first = answered(&mut switch);
        hear(&mut switch, A, pair(first));
        let mut deeds = Vec::new();
        switch.offer(B, A, 1, offer(6), &mut deeds);
        deeds.clear();
        switch.forget(|side| side == B, Reason::FarEnd, &mut deeds);
        let reason = Reason::FarEnd.code();
        assert!(deeds.contains(&Deed::Undo(first)));
        assert!(deeds.contains(&Deed::Tell(A, Pairing::Refuse { id: 5, reason })));
        assert!(switch.flows.is_empty());
        assert_eq!(switch.led.values().sum::<usize>(), 0);
    }

    #[test]
    fn offers_have_a_bound() {
        let mut switch = Switch::default();
        let mut deeds = Vec::new();
        for id in 0..=FLOWS_MAX as u64 {
            deeds.clear();
            switch.offer(A, B, 1, offer(id), &mut deeds);
        }
        assert!(matches!(
            deeds.as_slice(),
            [Deed::Tell(_, Pairing::Refuse { .. })]
        ));
        deeds.clear();
        switch.offer(A, B, 1, offer(3), &mut deeds);
        assert!(matches!(
            deeds.as_slice(),
            [Deed::Tell(_, Pairing::Offer { .. })]
        ));
    }
}
