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
