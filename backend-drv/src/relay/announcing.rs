//! Announcements: on an Ethernet segment daemons tell each other which addresses their programs have.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rdma_core::wire::{Announce, Header, Kind};

use crate::config::{DriverConfig, LinkConfig};
use crate::nic::{Nic, Outgoing};

/// Time between two announcements.
const EVERY: Duration = Duration::from_secs(10);
/// Time between an announcement and the one that answers a newcomer.
const SOON: Duration = Duration::from_millis(200);

/// When a link announces next.
#[derive(Debug)]
pub(super) struct Announcing {
    interface: String,
    due: Instant,
    last: Option<Instant>,
}

impl Announcing {
    /// For a link that announces; `None` for others.
    pub(super) fn of(config: &LinkConfig) -> Option<Self> {
        match &config.driver {
            DriverConfig::Ethernet { interface } if config.announce => Some(Self {
                interface: interface.clone(),
                due: Instant::now(),
                last: None,
            }),
            _ => None,
        }
    }

    /// When the next one is due.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// Somebody new is there, who should not have to wait.
    pub(super) fn hurry(&mut self) {
        let soon = self.last.map_or_else(Instant::now, |last| last + SOON);
        self.due = self.due.min(soon);
    }

    /// Announces, if it is time.
    pub(super) fn tick(&mut self, nic: &mut dyn Nic, backend: [u8; 16], epoch: u64) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        (self.due, self.last) = (now + EVERY, Some(now));
        let (addresses, Some(everybody)) = (addresses_of(&self.interface), nic.broadcast()) else {
            return;
        };
        if addresses.is_empty() {
            return;
        }
        let mut frame = Vec::new();
        Announce::emit(backend, epoch, addresses, &mut frame);
        // Lost or not taken: the next one comes soon enough.
        let _ = nic.send(&[Outgoing::of_head(everybody, &frame)]);
    }
}

/// What a frame announces, if it is an announcement: who, and which addresses.
pub(super) fn announced(frame: &[u8]) -> Option<([u8; 16], Vec<IpAddr>)> {
    let (header, body) = Header::parse(frame).ok()?;
    if header.kind != Kind::Announce {
        return None;
    }
    let announce = Announce::parse(body).ok()?;
    let useful = announce.addresses.iter().filter(is_useful);
    Some((announce.backend, useful.collect()))
}

/// The addresses of an interface that programs of other hosts may know.
fn addresses_of(interface: &str) -> Vec<IpAddr> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    all.filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(is_useful)
        .collect()
}

fn is_useful(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !link_local && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_addresses_that_others_can_use() {
        let said: Vec<IpAddr> = ["10.9.0.1", "127.0.0.1", "fe80::1", "fd00::1", "224.0.0.1"]
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect();
        let mut frame = Vec::new();
        Announce::emit([7; 16], 1, said.iter().copied(), &mut frame);
        let (backend, heard) = announced(&frame).expect("an announcement");
        assert_eq!(backend, [7; 16]);
        assert_eq!(heard, [said[0], said[3]]);
        frame[1] = 2;
        assert_eq!(announced(&frame), None);
        assert_eq!(announced(&[]), None);
    }
}
