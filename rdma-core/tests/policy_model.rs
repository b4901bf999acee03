//! The peer list against a naive reading of it.

use std::net::{IpAddr, SocketAddr};

use proptest::collection::vec;
use proptest::prelude::*;
use rdma_core::Policy;

#[path = "../fuzz/src/naive_policy.rs"]
mod naive_policy;

use naive_policy::{NaiveRule, judge};

/// Few different addresses, so that rules and addresses meet.
fn address() -> impl Strategy<Value = IpAddr> {
    let close = prop_oneof![
        Just(0u8),
        Just(1),
        Just(127),
        Just(128),
        Just(255),
        any::<u8>()
    ];
    prop_oneof![
        (close.clone(), close.clone()).prop_map(|(a, b)| IpAddr::from([10, 9, a, b])),
        any::<[u8; 4]>().prop_map(IpAddr::from),
        (close.clone(), close.clone()).prop_map(|(a, b)| {
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 9, a, b])
        }),
        (close.clone(), close).prop_map(|(a, b)| {
            IpAddr::from([0xfd, 0, a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b])
        }),
        any::<[u8; 16]>().prop_map(IpAddr::from),
    ]
}

fn rule() -> impl Strategy<Value = NaiveRule> {
    let port = || prop_oneof![Just(0u16), Just(80), Just(u16::MAX), any::<u16>()];
    (any::<bool>(), address(), any::<u8>(), port(), port()).prop_map(
        |(include, net, bits, a, b)| NaiveRule {
            include,
            net,
            bits: bits % if net.is_ipv4() { 33 } else { 129 },
            ports: (a.min(b), a.max(b)),
        },
    )
}

fn list(rules: &[NaiveRule]) -> Policy {
    let items: Vec<String> = rules.iter().map(ToString::to_string).collect();
    Policy::parse(&items.join(" , ")).expect("a list by the grammar")
}

proptest! {
    #[test]
    fn verdicts_are_the_naive_ones(
        rules in vec(rule(), 0..6),
        addresses in vec((address(), prop_oneof![Just(80u16), any::<u16>()]), 1..20),
    ) {
        let policy = list(&rules);
        for (addr, port) in addresses {
            let far = SocketAddr::new(addr, port);
            prop_assert_eq!(policy.judge(far), judge(&rules, far), "{} in {:?}", far, rules);
        }
    }

    #[test]
    fn what_is_printed_means_the_same(rules in vec(rule(), 0..6)) {
        let policy = list(&rules);
        let printed: Vec<String> = policy.rules().iter().map(ToString::to_string).collect();
        prop_assert_eq!(Policy::parse(&printed.join(",")), Ok(policy));
    }

    #[test]
    fn any_text_gives_an_answer(text in "[0-9a-f:.!/,\\[\\] -]{0,60}|.{0,40}") {
        if let Err(error) = Policy::parse(&text) {
            prop_assert!(error.to_string().starts_with("VIADUCT_PEERS: "));
        }
    }
}
