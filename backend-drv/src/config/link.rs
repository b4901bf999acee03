//! `[[link]]`: how other hosts' backends are reached.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rdma_core::wire::Hello;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Size, given, require};
use crate::nic::Address;
use crate::nic::faults::FaultSettings;
use crate::relay::peers::DEFAULT_PORT;

/// One `[[link]]`.
#[derive(Clone, PartialEq, Debug)]
pub struct LinkConfig {
    /// For people.
    pub name: String,
    /// What carries the frames.
    pub driver: DriverConfig,
    /// Backends whose place is known.
    pub peers: Vec<PeerConfig>,
    /// A far address without a known backend is tried at its own address and the usual port.
    pub convention: bool,
    /// Announce this host's addresses, and believe the announcements of others.
    pub announce: bool,
    /// File with a key that both sides have; frames are then encrypted and authenticated.
    pub key_file: Option<PathBuf>,
    /// Longest frame in bytes; found out if not given.
    pub max_frame: Option<usize>,
    /// A backend that is silent for longer has gone, and its connections time out.
    pub timeout: Duration,
    /// Bad networks, for tests.
    pub faults: Option<FaultSettings>,
    /// Frames are also written to this file.
    pub pcap: Option<PathBuf>,
}

/// What carries the frames of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DriverConfig {
    /// UDP datagrams.
    Udp {
        /// Address and port of this backend.
        bind: SocketAddr,
    },
    /// Ethernet frames with an EtherType of our own.
    Ethernet {
        /// The interface.
        interface: String,
    },
}

/// A backend whose place is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    /// Addresses of its programs.
    pub prefix: IpNet,
    /// Where it is.
    pub backend: Address,
}

/// `[[link]]` as written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented at `LinkConfig`")]
pub struct RawLink {
    pub name: String,
    pub driver: String,
    pub bind: Option<String>,
    pub interface: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<RawPeer>,
    pub convention: Option<bool>,
    pub announce: Option<bool>,
    pub key_file: Option<PathBuf>,
    pub max_frame: Option<usize>,
    pub timeout_s: Option<u64>,
    pub pcap: Option<PathBuf>,
    pub faults: Option<RawFaults>,
}

/// An entry of `peers`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented at `PeerConfig`")]
pub struct RawPeer {
    pub prefix: String,
    pub backend: String,
}

/// `[link.faults]`; shares are 0 to 1.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "documented at `FaultSettings`")]
pub struct RawFaults {
    pub seed: u64,
    pub drop: f64,
    pub duplicate: f64,
    pub reorder: f64,
    pub reorder_by_us: u64,
    pub corrupt: f64,
    pub delay_us: u64,
    pub jitter_us: u64,
    pub rate: Option<Size>,
    pub queue: Option<Size>,
    pub mtu: Option<usize>,
}

/// What a frame may always have, by the protocol.
const FRAME_MIN: usize = Hello::MAX_FRAME_LEAST;
const FRAME_MAX: usize = 65_507;

pub(super) fn link_of(index: usize, raw: RawLink) -> Result<LinkConfig, ConfigError> {
    let key = |field: &str| format!("link[{index}].{field}");
    require(!raw.name.is_empty(), &key("name"), "\"\"", || {
        "must not be empty".to_owned()
    })?;
    let driver = driver_of(&key, &raw)?;
    let is_udp = matches!(driver, DriverConfig::Udp { .. });
    let mut peers = Vec::new();
    for peer in &raw.peers {
        let prefix = peer.prefix.parse::<IpNet>().ok().or_else(|| {
            peer.prefix
                .parse()
                .ok()
                .map(|ip: std::net::IpAddr| ip.into())
        });
        let prefix = given(prefix, &key("peers.prefix"), &peer.prefix, || {
            "must be an address or ADDRESS/BITS".to_owned()
        })?;
        let backend = given(
            backend_of(&peer.backend, is_udp),
            &key("peers.backend"),
            &peer.backend,
            || {
                if is_udp {
                    "must be ADDRESS or ADDRESS:PORT".to_owned()
                } else {
                    "must be a MAC address such as 02:00:00:00:00:01".to_owned()
                }
            },
        )?;
        peers.push(PeerConfig { prefix, backend });
    }
    let convention = raw.convention.unwrap_or(false);
    require(is_udp || !convention, &key("convention"), "true", || {
        "works with driver = \"udp\" only".to_owned()
    })?;
    let announce = raw.announce.unwrap_or(!is_udp);
    require(!is_udp || !announce, &key("announce"), "true", || {
        "works with driver = \"ethernet\" only".to_owned()
    })?;
    if let Some(bytes) = raw.max_frame {
        let good = (FRAME_MIN..=FRAME_MAX).contains(&bytes);
        require(good, &key("max_frame"), bytes, || {
            format!("must be {FRAME_MIN} to {FRAME_MAX} bytes")
        })?;
    }
    for (field, file) in [("key_file", &raw.key_file), ("pcap", &raw.pcap)] {
        if let Some(file) = file {
            require(file.is_absolute(), &key(field), file.display(), || {
                "must be an absolute path".to_owned()
            })?;
        }
    }
    let timeout = raw.timeout_s.unwrap_or(30);
    require(
        (1..=86_400).contains(&timeout),
        &key("timeout_s"),
        timeout,
        || "must be 1 to 86400 seconds".to_owned(),
    )?;
    Ok(LinkConfig {
        name: raw.name,
        driver,
        peers,
        convention,
        announce,
        key_file: raw.key_file,
        max_frame: raw.max_frame,
        timeout: Duration::from_secs(timeout),
        faults: raw
            .faults
            .map(|faults| faults_of(&key, &faults))
            .transpose()?,
        pcap: raw.pcap,
    })
}

fn driver_of(key: &impl Fn(&str) -> String, raw: &RawLink) -> Result<DriverConfig, ConfigError> {
    match raw.driver.as_str() {
        "udp" => {
            let text = raw.bind.as_deref().unwrap_or("(none)");
            let bind = given(socket_address(text), &key("bind"), text, || {
                "must be this host's ADDRESS or ADDRESS:PORT".to_owned()
            })?;
            Ok(DriverConfig::Udp { bind })
        }
        "ethernet" => {
            let interface = raw
                .interface
                .clone()
                .filter(|name| !name.is_empty() && name.len() < 16 && !name.contains(['/', ' ']));
            let text = raw.interface.as_deref().unwrap_or("(none)");
            let interface = given(interface, &key("interface"), text, || {
                "must be the name of an interface, such as eth0".to_owned()
            })?;
            Ok(DriverConfig::Ethernet { interface })
        }
        other => given(None, &key("driver"), other, || {
            "must be \"udp\" or \"ethernet\"".to_owned()
        }),
    }
}

fn socket_address(text: &str) -> Option<SocketAddr> {
    let whole = text.parse().ok();
    whole.or_else(|| {
        text.parse()
            .ok()
            .map(|ip| SocketAddr::new(ip, DEFAULT_PORT))
    })
}

fn backend_of(text: &str, is_udp: bool) -> Option<Address> {
    if is_udp {
        return socket_address(text).map(Address::Udp);
    }
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(Address::Mac(mac))
}

fn faults_of(key: &impl Fn(&str) -> String, raw: &RawFaults) -> Result<FaultSettings, ConfigError> {
    for (field, share) in [
        ("drop", raw.drop),
        ("duplicate", raw.duplicate),
        ("reorder", raw.reorder),
        ("corrupt", raw.corrupt),
    ] {
        let good = (0.0..=1.0).contains(&share);
        require(good, &key(&format!("faults.{field}")), share, || {
            "must be a share from 0 to 1".to_owned()
        })?;
    }
    Ok(FaultSettings {
        seed: raw.seed,
        drop: raw.drop,
        duplicate: raw.duplicate,
        reorder: raw.reorder,
        reorder_by: Duration::from_micros(raw.reorder_by_us),
        corrupt: raw.corrupt,
        delay: Duration::from_micros(raw.delay_us),
        jitter: Duration::from_micros(raw.jitter_us),
        rate: raw.rate.map(|size| size.0),
        queue: raw.queue.map(|size| size.0),
        mtu: raw.mtu,
    })
}

impl From<&LinkConfig> for RawLink {
    fn from(link: &LinkConfig) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (driver, bind, interface) = match &link.driver {
            DriverConfig::Udp { bind } => ("udp", Some(bind.to_string()), None),
            DriverConfig::Ethernet { interface } => ("ethernet", None, Some(interface.clone())),
        };
        Self {
            name: link.name.clone(),
            driver: driver.to_owned(),
            bind,
            interface,
            peers: link
                .peers
                .iter()
                .map(|peer| RawPeer {
                    prefix: peer.prefix.to_string(),
                    backend: peer.backend.to_string(),
                })
                .collect(),
            convention: Some(link.convention),
            announce: Some(link.announce),
            key_file: link.key_file.clone(),
            max_frame: link.max_frame,
            timeout_s: Some(link.timeout.as_secs()),
            pcap: link.pcap.clone(),
            faults: link.faults.map(|faults| RawFaults {
                seed: faults.seed,
                drop: faults.drop,
                duplicate: faults.duplicate,
                reorder: faults.reorder,
                reorder_by_us: micros(faults.reorder_by),
                corrupt: faults.corrupt,
                delay_us: micros(faults.delay),
                jitter_us: micros(faults.jitter),
                rate: faults.rate.map(Size),
                queue: faults.queue.map(Size),
                mtu: faults.mtu,
            }),
        }
    }
}
