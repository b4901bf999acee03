//! Which backends there are, and which addresses are theirs.
//!
//! A backend is known by the configuration (`peers` of a link), by convention (where the link's driver is UDP: at the
//! peer's own address and the usual port), or because it has announced itself (Ethernet). A backend that did not
//! answer is not asked again for a while.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::config::{DriverConfig, LinkConfig};
use crate::ids::PeerId;
use crate::nic::Address;

/// Where backends listen, unless something else is configured.
pub const DEFAULT_PORT: u16 = 7447;

/// How long a backend that did not answer is left alone.
const SILENCE: Duration = Duration::from_secs(60);
/// Backends that may be known.
const PEERS_MAX: usize = 4096;

/// See the module documentation.
#[derive(Debug)]
pub struct Peers {
    links: Vec<Rules>,
    peers: Vec<Peer>,
    by_address: HashMap<(usize, Address), PeerId>,
    announced: HashMap<IpAddr, PeerId>,
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
            Some(id) => *id,
            None => {
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
        if let Some(owner) = self.announced.get(&ip) {
            return *owner == id;
        }
        let Some(peer) = self.get(id) else {
            return false;
        };
        self.rule_for(ip) == Some((peer.link, peer.address))
    }

    /// A backend has announced addresses of its programs, on a link that listens to such.
    pub fn announced(&mut self, id: PeerId, addresses: impl Iterator<Item = IpAddr>) {
        let listens = self
            .get(id)
            .and_then(|peer| self.links.get(peer.link))
            .is_some_and(|rules| rules.announce);
        if !listens {
            return;
        }
        self.announced.retain(|_, owner| *owner != id);
        for ip in addresses {
            let configured = self.rule_for(ip).is_some();
            if !configured && self.announced.len() < PEERS_MAX {
                self.announced.entry(ip).or_insert(id);
            }
        }
    }

    /// A backend did not answer, or does again.
    pub fn set_silent(&mut self, id: PeerId, silent: bool, now: Instant) {
        if let Ok(index) = usize::try_from(id.0)
            && let Some(peer) = self.peers.get_mut(index)
        {
            peer.silent_until = silent.then(|| now + SILENCE);
        }
    }
}
