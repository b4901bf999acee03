//! Which far addresses are peers: the rule list of `VIADUCT_PEERS`.
//!
//! ```text
//! list = rule { "," rule }          spaces around rules are ignored; an empty list names no peer
//! rule = ["!"] net [":" port ["-" port]]
//! net  = IPv4 ["/" 0..32]  |  IPv6 ["/" 0..128]  |  "[" IPv6 ["/" bits] "]"
//! ```
//!
//! The first rule that matches decides; `!` excludes. An IPv6 net needs brackets if a port follows.
//! A v4-mapped IPv6 address is judged as the IPv4 address it is, and a v4-mapped net is the IPv4 net.

#![forbid(unsafe_code)]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::reason::Reason;

/// Most rules in a list: it is searched linearly, and more belong into the daemon's configuration.
pub const RULES_MAX: usize = 128;

/// One rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    include: bool,
    net: IpAddr,
    bits: u8,
    ports: (u16, u16),
}

/// A parsed list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// What the list says of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A peer, by the rule with this index.
    Peer(usize),
    /// Not a peer: the reason, and the rule that excluded it if one did.
    Plain(Reason, Option<usize>),
}

/// Why a list does not parse.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// An item that is not a rule.
    #[error("VIADUCT_PEERS: \"{item}\" is not [!]ADDRESS[/BITS][:PORT[-PORT]] ({why})")]
    Item {
        /// The item as written.
        item: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More rules than [`RULES_MAX`].
    #[error("VIADUCT_PEERS: more than {RULES_MAX} rules")]
    TooMany,
}

impl Policy {
    /// Reads a list.
    ///
    /// # Errors
    /// [`PolicyError`] names the first bad item and the form.
    pub fn parse(list: &str) -> Result<Self, PolicyError> {
        let mut rules = Vec::new();
        for item in list
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            let rule = Rule::parse(item).map_err(|why| PolicyError::Item {
                item: item.to_owned(),
                why,
            })?;
            if rules.len() == RULES_MAX {
                return Err(PolicyError::TooMany);
            }
            rules.push(rule);
        }
        Ok(Self { rules })
    }

    /// Whether no address can be a peer.
    pub fn is_empty(&self) -> bool {
        !self.rules.iter().any(|rule| rule.include)
    }

    /// Whether some rule names ports.
    pub fn has_ports(&self) -> bool {
        self.rules.iter().any(|rule| rule.ports != (0, u16::MAX))
    }

    /// The rules in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What the list says of `far`. Does not allocate.
    pub fn judge(&self, far: SocketAddr) -> Verdict {
        let addr = far.ip().to_canonical();
        for (index, rule) in self.rules.iter().enumerate() {
            if rule.matches(addr, far.port()) {
                return if rule.include {
                    Verdict::Peer(index)
                } else {
                    Verdict::Plain(Reason::Excluded, Some(index))
                };
            }
        }
        Verdict::Plain(Reason::NotPeer, None)
    }
}

impl Rule {
    /// Whether it excludes what it names.
    pub const fn excludes(&self) -> bool {
        !self.include
    }

    /// Its network: an address, and how many of its leading bits count.
    pub const fn network(&self) -> (IpAddr, u8) {
        (self.net, self.bits)
    }

    /// Its first and last port; 0 and 65535 if it names none.
    pub const fn ports(&self) -> (u16, u16) {
        self.ports
    }

    fn parse(item: &str) -> Result<Self, &'static str> {
        let (include, rest) = match item.strip_prefix('!') {
            Some(rest) => (false, rest.trim_start()),
            None => (true, item),
        };
        let (net, port) = split_port(rest)?;
        let (addr, bits) = match net.split_once('/') {
            Some((addr, bits)) => (addr, Some(bits)),
            None => (net, None),
        };
        let net: IpAddr = addr.parse().map_err(|_| "not an IP address")?;
        if net.is_ipv4() && rest.starts_with('[') {
            return Err("brackets are for IPv6");
        }
        let width = if net.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => number(bits)
                .filter(|&b: &u8| b <= width)
                .ok_or("prefix length out of range")?,
        };
        let (net, bits) = match (net.to_canonical(), bits.checked_sub(96)) {
            (IpAddr::V4(v4), Some(bits)) if net.is_ipv6() => (IpAddr::V4(v4), bits),
            _ => (net, bits),
        };
        let ports = match port {
            None => (0, u16::MAX),
            Some(port) => {
                let (low, high) = port.split_once('-').unwrap_or((port, port));
                let low = number(low).ok_or("port is not 0 to 65535")?;
                let high = number(high).ok_or("port is not 0 to 65535")?;
                if low > high {
                    return Err("port range is backwards");
                }
                (low, high)
            }
        };
        Ok(Self {
            include,
            net,
            bits,
            ports,
        })
    }

    fn matches(&self, addr: IpAddr, port: u16) -> bool {
        if port < self.ports.0 || port > self.ports.1 {
            return false;
        }
        match (self.net, addr) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                Ipv4Addr::to_bits(net) & mask == Ipv4Addr::to_bits(addr) & mask
            }
            (IpAddr::V6(net), IpAddr::V6(addr)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.bits))
                    .unwrap_or(0);
                Ipv6Addr::to_bits(net) & mask == Ipv6Addr::to_bits(addr) & mask
            }
            _ => false,
        }
    }
}

impl core::fmt::Display for Rule {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if !self.include {
            f.write_str("!")?;
        }
        match self.net {
            IpAddr::V4(net) => write!(f, "{net}/{}", self.bits)?,
            IpAddr::V6(net) => write!(f, "[{net}/{}]", self.bits)?,
        }
        match self.ports {
            (0, u16::MAX) => Ok(()),
            (low, high) if low == high => write!(f, ":{low}"),
            (low, high) => write!(f, ":{low}-{high}"),
        }
    }
}

/// Digits only: `parse` alone would take a sign.
fn number<T: core::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

/// Splits `net[:port]`, where an IPv6 net with a port stands in brackets.
fn split_port(item: &str) -> Result<(&str, Option<&str>), &'static str> {
    if let Some(rest) = item.strip_prefix('[') {
        let (net, rest) = rest.split_once(']').ok_or("no closing bracket")?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((net, Some(port))),
            None if rest.is_empty() => Ok((net, None)),
            None => Err("only :PORT may follow the bracket"),
        };
    }
    match item.split_once(':') {
        // Two colons or more: an IPv6 address without a port.
        Some((_, port)) if port.contains(':') => Ok((item, None)),
        Some((net, port)) => Ok((net, Some(port))),
        None => Ok((item, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(list: &str, addr: &str) -> Verdict {
        Policy::parse(list).unwrap().judge(addr.parse().unwrap())
    }

    #[test]
    fn first_match_wins() {
        let list = "!10.9.0.7, 10.9.0.0/24:5000-6000, 10.0.0.0/8:80, [fd00::/16]:443, fe80::1";
        assert_eq!(judge(list, "10.9.0.2:5500"), Verdict::Peer(1));
        assert_eq!(
            judge(list, "10.9.0.7:5500"),
            Verdict::Plain(Reason::Excluded, Some(0))
        );
        assert_eq!(
            judge(list, "10.9.0.2:4999"),
            Verdict::Plain(Reason::NotPeer, None)
        );
        assert_eq!(judge(list, "10.200.0.2:80"), Verdict::Peer(2));
        assert_eq!(judge(list, "[fd00:1::2]:443"), Verdict::Peer(3));
        assert_eq!(
            judge(list, "[fd00:1::2]:444"),
            Verdict::Plain(Reason::NotPeer, None)
        );
        assert_eq!(judge(list, "[fe80::1]:9"), Verdict::Peer(4));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(
            judge("127.0.0.0/8", "[::ffff:127.0.0.1]:80"),
            Verdict::Peer(0)
        );
        assert_eq!(
            judge("::ffff:127.0.0.0/104", "127.0.0.1:80"),
            Verdict::Peer(0)
        );
        assert_eq!(
            judge("::/0", "127.0.0.1:80"),
            Verdict::Plain(Reason::NotPeer, None)
        );
    }

    #[test]
    fn prefix_zero_matches_everything_of_its_family() {
        assert_eq!(judge("0.0.0.0/0", "8.8.8.8:53"), Verdict::Peer(0));
        assert_eq!(judge("::/0", "[2001:db8::1]:1"), Verdict::Peer(0));
    }

    #[test]
    fn errors_name_the_item_and_the_form() {
        for bad in [
            "10.9.0.0/33",
            "host",
            "10.0.0.1:x",
            "10.0.0.1:9-3",
            "[::1",
            "[::1]80",
            "!",
            "1.2.3.4:70000",
            "1.2.3.4:+80",
            "1.2.3.4/+8",
            "[1.2.3.4]:80",
        ] {
            let error = Policy::parse(&format!("127.0.0.1,{bad}"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(bad) && error.contains("[!]ADDRESS"),
                "{error}"
            );
        }
    }

    #[test]
    fn rules_print_as_they_are_written() {
        for rule in ["10.9.0.0/24", "!10.9.0.7/32:80", "[fd00::/16]:443-444"] {
            assert_eq!(Policy::parse(rule).unwrap().rules()[0].to_string(), rule);
        }
    }

    #[test]
    fn an_empty_list_names_nobody() {
        assert!(Policy::parse("").unwrap().is_empty());
        assert!(Policy::parse(" , ").unwrap().is_empty());
        assert!(Policy::parse("!10.0.0.1").unwrap().is_empty());
        assert!(!Policy::parse("!10.0.0.1,::1").unwrap().is_empty());
    }
}
