//! The peer list.

use std::net::{IpAddr, SocketAddr};

use rdma_core::Policy;

use super::naive_policy::{NaiveRule, judge};

/// An even first byte: the rest is a list, and what parses survives being printed. An odd one: rules
/// and addresses in binary, judged by the list and by the naive model.
pub fn policy(data: &[u8]) {
    match data.split_first() {
        Some((first, text)) if first % 2 == 0 => survives(&String::from_utf8_lossy(text)),
        Some((_, bytes)) => agrees(bytes),
        None => {}
    }
}

fn survives(list: &str) {
    match Policy::parse(list) {
        Ok(policy) => {
            let printed: Vec<String> = policy.rules().iter().map(ToString::to_string).collect();
            assert_eq!(Policy::parse(&printed.join(",")), Ok(policy));
        }
        Err(error) => assert!(error.to_string().starts_with("VIADUCT_PEERS: ")),
    }
}

fn agrees(mut bytes: &[u8]) {
    let mut rules = Vec::new();
    while rules.len() < 5
        && let Some(rule) = take_rule(&mut bytes)
    {
        rules.push(rule);
    }
    let list: Vec<String> = rules.iter().map(ToString::to_string).collect();
    let policy = Policy::parse(&list.join(",")).expect("a list by the grammar");
    // Addresses near the rules, and one of their own.
    let mut addresses: Vec<IpAddr> = rules.iter().map(|rule| rule.net).collect();
    addresses.extend(take_address(&mut bytes));
    for addr in addresses {
        for port in rules.iter().flat_map(|rule| [rule.ports.0, rule.ports.1]) {
            let far = SocketAddr::new(addr, port);
            assert_eq!(policy.judge(far), judge(&rules, far), "{policy:?} {far}");
        }
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn take_address(bytes: &mut &[u8]) -> Option<IpAddr> {
    let [kind] = take(bytes)?;
    Some(match kind % 3 {
        0 => IpAddr::from(take::<4>(bytes)?),
        1 => IpAddr::from(take::<16>(bytes)?),
        _ => {
            let mut mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0];
            mapped[12..].copy_from_slice(&take::<4>(bytes)?);
            IpAddr::from(mapped)
        }
    })
}

fn take_rule(bytes: &mut &[u8]) -> Option<NaiveRule> {
    let net = take_address(bytes)?;
    let [include, bits, a, b, c, d] = take(bytes)?;
    let (low, high) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(NaiveRule {
        include: include % 2 == 0,
        net,
        bits: bits % if net.is_ipv4() { 33 } else { 129 },
        ports: (low.min(high), low.max(high)),
    })
}
