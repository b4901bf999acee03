//! What a peer list means, said as simply as possible.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rdma_core::{Reason, Verdict};

/// One rule before it is written down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NaiveRule {
    /// No `!`.
    pub(crate) include: bool,
    /// Net.
    pub(crate) net: IpAddr,
    /// Prefix length, at most the width of the address.
    pub(crate) bits: u8,
    /// First and last port.
    pub(crate) ports: (u16, u16),
}

impl fmt::Display for NaiveRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (not, net, bits) = (if self.include { "" } else { "! " }, self.net, self.bits);
        match net {
            IpAddr::V4(_) => write!(f, "{not}{net}/{bits}")?,
            IpAddr::V6(_) => write!(f, "{not}[{net}/{bits}]")?,
        }
        write!(f, ":{}-{}", self.ports.0, self.ports.1)
    }
}

/// The verdict of the first rule that matches.
pub(crate) fn judge(rules: &[NaiveRule], far: SocketAddr) -> Verdict {
    for (index, rule) in rules.iter().enumerate() {
        let (net, bits) = canonical(rule.net, rule.bits);
        let (addr, _) = canonical(far.ip(), 128);
        let same = net.is_ipv4() == addr.is_ipv4()
            && (0..usize::from(bits)).all(|at| bit(net, at) == bit(addr, at));
        if same && (rule.ports.0..=rule.ports.1).contains(&far.port()) {
            return if rule.include {
                Verdict::Peer(index)
            } else {
                Verdict::Plain(Reason::Excluded, Some(index))
            };
        }
    }
    Verdict::Plain(Reason::NotPeer, None)
}

/// A v4-mapped address is the IPv4 address, and so is a net of them.
fn canonical(addr: IpAddr, bits: u8) -> (IpAddr, u8) {
    match addr {
        IpAddr::V6(v6)
            if v6.octets()[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255] && bits >= 96 =>
        {
            let [.., a, b, c, d] = v6.octets();
            (IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits - 96)
        }
        other => (other, bits),
    }
}

/// Bit `at` of an address, counted from the left.
fn bit(addr: IpAddr, at: usize) -> bool {
    let octet = match addr {
        IpAddr::V4(v4) => v4.octets()[at / 8],
        IpAddr::V6(v6) => v6.octets()[at / 8],
    };
    octet >> (7 - at % 8) & 1 == 1
}
