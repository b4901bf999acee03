//! Which backends there are, and which addresses are theirs.
//!
//! A backend is known by the configuration (`peers` of a link), by convention (where the link's driver is UDP: at the
//! peer's own address and the usual port), or because it has announced itself (Ethernet). A backend that did not
//! answer is not asked again for a while: for a minute if it never did, and for moments at first if it did, because it
//! may be starting anew.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::config::{DriverConfig, LinkConfig};
use crate::ids::PeerId;
use crate::nic::Address;

/// Where backends listen, unless something else is configured.
pub const DEFAULT_PORT: u16 = 7447;

/// How long a backend that did not answer is left alone at most.
const SILENCE: Duration = Duration::from_secs(60);
/// The same, the first time, of one that has answered before. It doubles.
const FIRST_SILENCE: Duration = Duration::from_secs(2);
/// How long an announcement is believed.
const ANNOUNCED_FOR: Duration = Duration::from_secs(35);
/// Backends that may be known.
const PEERS_MAX: usize = 4096;

/// See the module documentation.
#[derive(Debug)]
pub struct Peers {
    links: Vec<Rules>,
    peers: Vec<Peer>,
    by_address: HashMap<(usize, Address), PeerId>,
    /// And when that was.
    announced: HashMap<IpAddr, (PeerId, Instant)>,
}

/// What the configuration says of one link.
#[derive(Debug)]
struct Rules {
    fixed: Vec<(IpNet, Address)>,
    convention: bool,
    announce: bool,
    own: Option<IpAddr>,
}

/// One backend.
#[derive(Debug)]
pub struct Peer {
    /// The link, by its place in the configuration.
    pub link: usize,
    /// Where it is.
    pub address: Address,
    silent_until: Option<Instant>,
    /// How long it is left alone the next time.
    patience: Duration,
}

impl Peers {
    /// Nobody has been reached yet.
    pub fn new<'a>(links: impl Iterator<Item = &'a LinkConfig>) -> Self {
        let rules = links.map(|link| Rules {
            fixed: link
                .peers
                .iter()
                .map(|peer| (peer.prefix, peer.backend))
                .collect(),
            convention: link.convention,
            announce: link.announce,
            own: match &link.driver {
                DriverConfig::Udp { bind } => Some(bind.ip()),
                DriverConfig::Ethernet { .. } => None,
            },
        });
        Self {
            links: rules.collect(),
            peers: Vec::new(),
            by_address: HashMap::new(),
            announced: HashMap::new(),
        }
    }

    /// The backend for the programs at `ip`, if there may be one that answers.
    pub fn reach(&mut self, ip: IpAddr, now: Instant) -> Option<PeerId> {
        let id = match self.announced.get(&ip) {
            Some((id, at)) if at.elapsed() < ANNOUNCED_FOR => *id,
            _ => {
                let (link, address) = self.rule_for(ip)?;
                self.number(link, address)?
            }
        };
        let peer = self.get(id)?;
        let is_silent = peer.silent_until.is_some_and(|until| now < until);
        (!is_silent).then_some(id)
    }

    fn rule_for(&self, ip: IpAddr) -> Option<(usize, Address)> {
        let mut best: Option<(u8, usize, Address)> = None;
        for (link, rules) in self.links.iter().enumerate() {
            for (prefix, address) in &rules.fixed {
                let better = best.is_none_or(|(bits, ..)| prefix.prefix_len() > bits);
                if better && prefix.contains(&ip) {
                    best = Some((prefix.prefix_len(), link, *address));
                }
            }
        }
        if let Some((_, link, address)) = best {
            return Some((link, address));
        }
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        let by_convention = self.links.iter().position(|rules| {
            rules.convention
                && rules
                    .own
                    .is_some_and(|own| own.is_ipv4() == ip.is_ipv4() && own != ip)
        })?;
        let address = Address::Udp(SocketAddr::new(ip, DEFAULT_PORT));
        Some((by_convention, address))
    }

    /// The number of the backend at `address`; `None`: there are too many.
    pub fn number(&mut self, link: usize, address: Address) -> Option<PeerId> {
        if let Some(id) = self.by_address.get(&(link, address)) {
            return Some(*id);
        }
        if self.peers.len() >= PEERS_MAX {
            return None;
        }
        let id = PeerId(u32::try_from(self.peers.len()).ok()?);
        self.peers.push(Peer {
            link,
            address,
            silent_until: None,
            patience: SILENCE,
        });
        self.by_address.insert((link, address), id);
        Some(id)
    }

    /// A backend, by number.
    pub fn get(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(usize::try_from(id.0).ok()?)
    }

    /// Whether a stranger who speaks first may be a backend: he is where the configuration or the convention puts
    /// one.
    pub fn may_speak(&self, link: usize, address: Address) -> bool {
        let Some(rules) = self.links.get(link) else {
            return false;
        };
        let is_usual = matches!(address, Address::Udp(at) if at.port() == DEFAULT_PORT);
        self.by_address.contains_key(&(link, address))
            || rules.fixed.iter().any(|(_, known)| *known == address)
            || rules.convention && is_usual
    }

    /// Whether programs at `ip` may be that backend's.
    pub fn may_own(&self, id: PeerId, ip: IpAddr) -> bool {
        if let Some((owner, at)) = self.announced.get(&ip)
            && at.elapsed() < ANNOUNCED_FOR
        {
            return *owner == id;
        }
        let Some(peer) = self.get(id) else {
            return false;
        };
        self.rule_for(ip) == Some((peer.link, peer.address))
    }

    /// A backend has announced addresses of its programs, on a link that listens to such.
    pub fn announced(&mut self, id: PeerId, addresses: &[IpAddr]) {
        let listens = self
            .get(id)
            .and_then(|peer| self.links.get(peer.link))
            .is_some_and(|rules| rules.announce);
        if !listens {
            return;
        }
        self.announced
            .retain(|_, (owner, at)| *owner != id && at.elapsed() < ANNOUNCED_FOR);
        for ip in addresses {
            let configured = self.rule_for(*ip).is_some();
            if !configured && self.announced.len() < PEERS_MAX {
                self.announced.entry(*ip).or_insert((id, Instant::now()));
            }
        }
    }

    /// A backend did not answer, or does again.
    pub fn set_silent(&mut self, id: PeerId, silent: bool, now: Instant) {
        if let Ok(index) = usize::try_from(id.0)
            && let Some(peer) = self.peers.get_mut(index)
        {
            peer.silent_until = silent.then(|| now + peer.patience);
            peer.patience = if silent {
                (peer.patience * 2).min(SILENCE)
            } else {
                FIRST_SILENCE
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerConfig;

    fn link(driver: DriverConfig, peers: &[(&str, &str)], convention: bool) -> LinkConfig {
        LinkConfig {
            name: "test".to_owned(),
            announce: matches!(driver, DriverConfig::Ethernet { .. }),
            driver,
            peers: peers
                .iter()
                .map(|(prefix, backend)| PeerConfig {
                    prefix: prefix.parse().expect("a prefix"),
                    backend: Address::Udp(backend.parse().expect("an address")),
                })
                .collect(),
            convention,
            key_file: None,
            max_frame: None,
            timeout: Duration::from_secs(30),
            faults: None,
            pcap: None,
        }
    }

    fn udp(peers: &[(&str, &str)], convention: bool) -> Peers {
        let bind = "10.0.0.1:7447".parse().expect("an address");
        Peers::new([link(DriverConfig::Udp { bind }, peers, convention)].iter())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_longest_prefix_counts_and_owns() {
        let mut peers = udp(
            &[("10.1.0.0/16", "9.9.9.1:1"), ("10.1.2.0/24", "9.9.9.2:1")],
            false,
        );
        let now = Instant::now();
        let wide = peers.reach(ip("10.1.9.9"), now).expect("configured");
        let narrow = peers.reach(ip("10.1.2.3"), now).expect("configured");
        assert_ne!(wide, narrow);
        assert!(peers.may_own(narrow, ip("10.1.2.3")) && !peers.may_own(wide, ip("10.1.2.3")));
        assert_eq!(peers.reach(ip("10.2.0.1"), now), None);
        assert_eq!(peers.reach(ip("127.0.0.1"), now), None);
    }

    #[test]
    fn by_convention_a_backend_is_at_the_address_itself() {
        let mut peers = udp(&[], true);
        let now = Instant::now();
        let id = peers.reach(ip("10.0.0.2"), now).expect("by convention");
        let at = peers.get(id).expect("known").address;
        assert_eq!(
            at,
            Address::Udp("10.0.0.2:7447".parse().expect("an address"))
        );
        assert!(peers.may_speak(0, at) && peers.may_own(id, ip("10.0.0.2")));
        assert!(!peers.may_speak(
            0,
            Address::Udp("10.0.0.2:7448".parse().expect("an address"))
        ));
        assert_eq!(peers.reach(ip("10.0.0.1"), now), None, "this host");
        assert_eq!(peers.reach(ip("127.0.0.1"), now), None);
        assert_eq!(peers.reach(ip("fd00::1"), now), None, "another family");
    }

    #[test]
    fn who_is_silent_is_left_alone_for_a_while() {
        let mut peers = udp(&[("10.1.0.0/16", "9.9.9.1:1")], false);
        let now = Instant::now();
        let id = peers.reach(ip("10.1.0.1"), now).expect("configured");
        peers.set_silent(id, true, now);
        assert_eq!(peers.reach(ip("10.1.0.1"), now), None);
        assert_eq!(peers.reach(ip("10.1.0.1"), now + SILENCE), Some(id));
        peers.set_silent(id, false, now);
        assert_eq!(peers.reach(ip("10.1.0.1"), now), Some(id));
        // It has answered, and may be starting anew.
        for times in [1, 2, 4] {
            peers.set_silent(id, true, now);
            let until = now + FIRST_SILENCE * times;
            let before = until.checked_sub(Duration::from_millis(1)).expect("later");
            assert_eq!(peers.reach(ip("10.1.0.1"), before), None);
            assert_eq!(peers.reach(ip("10.1.0.1"), until), Some(id));
        }
    }

    #[test]
    fn announcements_are_believed_where_nothing_is_configured() {
        let interface = "eth0".to_owned();
        let mut peers = Peers::new([link(DriverConfig::Ethernet { interface }, &[], false)].iter());
        let now = Instant::now();
        let [one, other] = [1, 2].map(|last| {
            let at = Address::Mac([2, 0, 0, 0, 0, last]);
            peers.number(0, at).expect("room")
        });
        peers.announced(one, &[ip("10.3.0.1")]);
        peers.announced(other, &[ip("10.3.0.1"), ip("10.3.0.2")]);
        assert_eq!(peers.reach(ip("10.3.0.1"), now), Some(one), "the first");
        assert_eq!(peers.reach(ip("10.3.0.2"), now), Some(other));
        assert!(!peers.may_own(other, ip("10.3.0.1")));
        peers.announced(one, &[]);
        assert_eq!(peers.reach(ip("10.3.0.1"), now), None);
        let mut deaf = udp(&[], false);
        let id = deaf.number(0, Address::Mac([2; 6])).expect("room");
        deaf.announced(id, &[ip("10.3.0.1")]);
        assert_eq!(deaf.reach(ip("10.3.0.1"), now), None);
    }
}
