//! `viaduct peers`: the peer list in effect, and which of its rules decides about an address.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use nix::ifaddrs::getifaddrs;
use rdma_core::policy::{PolicyError, RULES_MAX};
use rdma_core::{Policy, Verdict};

use crate::failure::Failure;
use crate::output;

/// Print the peer list, or say which rule decides about an address.
#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    /// Say which rule decides about this far address: exit status 0 if it is a peer, 1 if not
    #[arg(long, value_name = "ADDR[:PORT]")]
    check: Option<String>,
    /// The list [default: VIADUCT_PEERS, or this host's own addresses]
    #[arg(long, value_name = "LIST")]
    peers: Option<String>,
}

pub(crate) fn run(args: &PeersArgs) -> Result<ExitCode> {
    let list = PeerList::resolve(args.peers.as_deref())?;
    match &args.check {
        None => {
            output::print(&list.describe())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(address) => {
            let (is_peer, text) = list.check(address)?;
            output::print(&text)?;
            Ok(ExitCode::from(u8::from(!is_peer)))
        }
    }
}

/// A peer list and where it came from.
#[derive(Debug)]
pub(crate) struct PeerList {
    /// As the library will read it.
    pub(crate) text: String,
    pub(crate) policy: Policy,
    source: &'static str,
}

impl PeerList {
    /// The option, else the environment, else this host's own addresses.
    pub(crate) fn resolve(option: Option<&str>) -> Result<Self> {
        if let Some(text) = option {
            return Self::parse(text.to_owned(), "--peers");
        }
        match std::env::var_os("VIADUCT_PEERS") {
            Some(text) => {
                let text = text.into_string().map_err(|text| {
                    let shown = Path::new(&text).display();
                    Failure::bad_input(format!("VIADUCT_PEERS: \"{shown}\" is not UTF-8"))
                })?;
                Self::parse(text, "VIADUCT_PEERS")
            }
            None => Self::parse(own_addresses()?, "this host's own addresses"),
        }
    }

    fn parse(text: String, source: &'static str) -> Result<Self> {
        let policy = Policy::parse(&text).map_err(|error| in_terms_of(&error, source))?;
        Ok(Self {
            text,
            policy,
            source,
        })
    }

    /// One line per rule.
    fn describe(&self) -> String {
        let rules = self.policy.rules();
        let mut text = format!("{} rules from {}\n", rules.len(), self.source);
        for (index, rule) in rules.iter().enumerate() {
            let _ = writeln!(text, "{index:>3}  {rule}");
        }
        if self.policy.is_empty() {
            text.push_str("nobody is a peer: every connection stays plain TCP\n");
        }
        text
    }

    /// Whether `address` is a peer, and a line that says why.
    fn check(&self, address: &str) -> Result<(bool, String), Failure> {
        let (ip, port) = parse_address(address)?;
        let ports = port.map_or(0..=u16::MAX, |port| port..=port);
        let verdicts: Vec<(u16, Verdict)> = ports
            .map(|port| (port, self.policy.judge(SocketAddr::new(ip, port))))
            .collect();
        let is_peer = |verdict: &Verdict| matches!(verdict, Verdict::Peer(_));
        let peers: Vec<u16> = verdicts
            .iter()
            .filter(|(_, verdict)| is_peer(verdict))
            .map(|(port, _)| *port)
            .collect();
        if !peers.is_empty() && peers.len() < verdicts.len() {
            let example = SocketAddr::new(ip, peers.first().copied().unwrap_or_default());
            return Err(Failure::bad_input(format!(
                "whether {ip} is a peer depends on the port (only {} is): name it, as in {example}",
                ranges(&peers)
            )));
        }
        let deciding: BTreeSet<usize> = verdicts
            .iter()
            .filter_map(|(_, verdict)| match verdict {
                Verdict::Peer(index) | Verdict::Plain(_, Some(index)) => Some(*index),
                Verdict::Plain(_, None) => None,
            })
            .collect();
        let rules = deciding.iter().filter_map(|&index| {
            let rule = self.policy.rules().get(index)?;
            Some(format!("rule {index} ({rule})"))
        });
        let rules = rules.collect::<Vec<_>>().join(" and ");
        let (count, source) = (self.policy.rules().len(), self.source);
        Ok(match (peers.is_empty(), rules.is_empty()) {
            (false, _) => (true, format!("{address}: peer, by {rules} of {source}\n")),
            (true, false) => (
                false,
                format!("{address}: not a peer, excluded by {rules} of {source}\n"),
            ),
            (true, true) => (
                false,
                format!("{address}: not a peer, none of the {count} rules of {source} matches\n"),
            ),
        })
    }
}

/// The addresses of this host in the present network namespace, as a list of rules.
fn own_addresses() -> Result<String> {
    let interfaces = getifaddrs().context("cannot list this host's addresses")?;
    let addresses: BTreeSet<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            let v6 = || address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
            v4.or_else(v6)
        })
        .filter(|address| !address.is_loopback() && !address.is_unspecified())
        .collect();
    let room = RULES_MAX - LOOPBACK.len();
    if addresses.len() > room {
        let left_out = addresses.len() - room;
        tracing::warn!("{left_out} of this host's addresses do not fit the peer list: use --peers");
    }
    let addresses = addresses.iter().take(room).map(ToString::to_string);
    let rules: Vec<String> = LOOPBACK
        .iter()
        .map(|&rule| rule.to_owned())
        .chain(addresses)
        .collect();
    Ok(rules.join(","))
}

/// The error in terms of where the list came from.
fn in_terms_of(error: &PolicyError, source: &str) -> Failure {
    let message = error.to_string();
    let what = message.strip_prefix("VIADUCT_PEERS: ").unwrap_or(&message);
    Failure::bad_input(format!("{source}: {what}"))
}

fn parse_address(text: &str) -> Result<(IpAddr, Option<u16>), Failure> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip(), Some(address.port())));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match bare.unwrap_or(text).parse() {
        Ok(ip) => Ok((ip, None)),
        Err(_) => Err(Failure::bad_input(format!(
            "--check: \"{text}\" is not ADDR[:PORT] with a numeric address, IPv6 as [ADDR]:PORT"
        ))),
    }
}

/// `80, 443-445`; sorted ports in.
fn ranges(ports: &[u16]) -> String {
    let runs = ports.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let runs = runs.filter_map(|run| match run {
        [] => None,
        [one] => Some(one.to_string()),
        [first, .., last] => Some(format!("{first}-{last}")),
    });
    runs.collect::<Vec<_>>().join(", ")
}

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1"];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, address: &str) -> Result<(bool, String), Failure> {
        PeerList::parse(list.to_owned(), "--peers")
            .unwrap()
            .check(address)
    }

    #[test]
    fn the_deciding_rule_is_named() {
        let list = "!10.9.0.7, 10.9.0.0/24:5000-6000, [fd00::/16]:443";
        let (peer, text) = check(list, "10.9.0.2:5500").unwrap();
        assert!(
            peer && text.contains("rule 1 (10.9.0.0/24:5000-6000)"),
            "{text}"
        );
        let (peer, text) = check(list, "10.9.0.7").unwrap();
        assert!(
            !peer && text.contains("excluded by rule 0 (!10.9.0.7/32)"),
            "{text}"
        );
        let (peer, text) = check(list, "8.8.8.8:53").unwrap();
        assert!(!peer && text.contains("none of the 3 rules"), "{text}");
        assert!(check(list, "[fd00::1]:443").unwrap().0);
        assert!(!check(list, "fd01::1").unwrap().0);
    }

    #[test]
    fn a_port_is_asked_for_only_where_it_matters() {
        assert!(check("10.0.0.0/8:80,10.0.0.0/8", "10.1.1.1").unwrap().0);
        let error = check("10.0.0.0/8:80,10.0.0.0/8:90-91", "10.1.1.1").unwrap_err();
        assert!(error.to_string().contains("only 80, 90-91 is"), "{error}");
    }

    #[test]
    fn bad_addresses_name_the_form() {
        for bad in ["host", "10.0.0.1:x", "[::1", "", "1.2.3.4:70000"] {
            let error = parse_address(bad).unwrap_err().to_string();
            assert!(error.contains("ADDR[:PORT]"), "{error}");
        }
        assert_eq!(parse_address("[::1]").unwrap().1, None);
    }

    #[test]
    fn errors_say_which_list_is_meant() {
        let error = PeerList::parse("host".to_owned(), "--peers").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("--peers: \"host\" is not [!]ADDRESS")
        );
    }

    #[test]
    fn the_default_list_parses_and_has_loopback() {
        let list = PeerList::parse(own_addresses().unwrap(), "own").unwrap();
        assert!(list.check("127.1.2.3").unwrap().0);
        assert!(list.check("::1").unwrap().0);
    }
}
