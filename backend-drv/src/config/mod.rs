//! The daemon's configuration: one TOML file, read once, checked in full before anything starts.
//!
//! [`RawConfig`] is the file as written (unknown keys are errors); [`Config`] is what it means, and
//! nothing in it needs to be checked again. An error is one line that names the key, the value and
//! what to write instead.

mod link;
mod raw;
mod size;
#[cfg(test)]
mod tests;
mod vm;

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use once_cell::sync::Lazy;
use rdma_core::control::DEFAULT_SOCKET;
use rdma_core::layout::{RING_LOG2_DEFAULT, RING_LOG2_MAX, RING_LOG2_MIN};
use serde::Serialize;

pub use link::{DriverConfig, LinkConfig, PeerConfig, RawFaults, RawLink, RawPeer};
pub use raw::{RawConfig, RawDomain, RawLimits, RawUserLimits};
pub use size::Size;
pub use vm::{RawVm, VmConfig};

/// Where the configuration is, unless the command line names another file. Its absence is no error.
pub static DEFAULT_FILE: Lazy<PathBuf> = Lazy::new(|| PathBuf::from("/etc/viaduct/viaductd.toml"));

/// Where the socket is, unless something says otherwise.
pub static DEFAULT_SOCKET_PATH: Lazy<PathBuf> = Lazy::new(|| PathBuf::from(DEFAULT_SOCKET));

/// Log filter, unless something says otherwise.
pub const DEFAULT_LOG: &str = "info";

/// Largest weight of a domain.
const WEIGHT_MAX: u32 = rdma_core::link::DomainConfig::WEIGHT_MAX;

/// A configuration that can be used.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The control socket.
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub socket_mode: u32,
    /// Group of the socket.
    pub socket_group: Option<String>,
    /// User to become when started as root.
    pub user: Option<String>,
    /// Filter for the log, as for `RUST_LOG`.
    pub log: String,
    /// Bounds on everything that clients can cause.
    pub limits: Limits,
    /// Network namespaces that may pair with each other.
    pub domains: Vec<DomainConfig>,
    /// Links to other hosts.
    pub links: Vec<LinkConfig>,
    /// Two ends on this host that do not trust each other are relayed; else they stay on TCP.
    pub relay_untrusted: bool,
    /// Virtual machines on this host.
    pub vms: Vec<VmConfig>,
}

/// Bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Limits {
    /// Control sockets.
    pub clients: u32,
    /// Messages kept for a client that does not read.
    pub queued_messages: u32,
    /// Ring size (power of two) for a program that asks for none.
    pub ring_log2_default: u32,
    /// Largest ring.
    pub ring_log2_max: u32,
    /// Take all memory of a connection when it is made, not as it is used. Always so where the
    /// system counts memory strictly (vm.overcommit_memory = 2).
    pub allocate: bool,
    /// How long a ring is empty and quiet before its memory is given back; 0: never.
    pub trim_after_ms: u32,
    /// Of each user.
    pub per_user: UserLimits,
}

/// Bounds per user.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct UserLimits {
    /// Control sockets.
    pub processes: u32,
    /// Registered connections.
    pub connections: u32,
    /// Connection memory in bytes of address space. Pages are taken only when they are used.
    pub memory_bytes: u64,
    /// Descriptors that the daemon keeps: four per control socket, one per doorbell and per arena of
    /// connection memory (which is also a mapping, of which the system allows 65,530).
    pub descriptors: u32,
}

/// One `[[domain]]`.
#[derive(Clone, PartialEq, Debug)]
pub struct DomainConfig {
    /// For people.
    pub name: String,
    /// Domains of one tenant share memory with each other.
    pub tenant: Option<String>,
    /// The domain's own addresses.
    pub addresses: Vec<IpNet>,
    /// Its network namespace; the daemon's own if not given.
    pub netns: Option<PathBuf>,
    /// Share of the links, relative to other domains.
    pub weight: u32,
    /// Bytes per second on the links.
    pub rate_limit: Option<u64>,
    /// Connection memory in bytes of address space.
    pub memory_bytes: Option<u64>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("{}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("{}:{line}: {why}", .path.display())]
    Form {
        /// Which file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What.
        why: String,
    },
    /// A value that makes no sense.
    #[error("{key} = {value}: {remedy}")]
    Value {
        /// The key.
        key: String,
        /// What stands there.
        value: String,
        /// What should stand there.
        remedy: String,
    },
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], one line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// The built-in configuration.
    ///
    /// # Errors
    /// None in practice; the defaults pass the same checks as a file.
    pub fn built_in() -> Result<Self, ConfigError> {
        RawConfig::default().try_into()
    }

    /// Reads `text`, which came from `path`.
    ///
    /// # Errors
    /// [`ConfigError`], one line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| ConfigError::Form {
            path: path.to_owned(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            why: error.message().lines().collect::<Vec<_>>().join(" "),
        })?;
        raw.try_into()
    }

    /// The configuration as a file that says all of it.
    ///
    /// # Errors
    /// A value that TOML cannot express.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(&RawConfig::from(self))
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let socket = raw.socket.unwrap_or_else(|| DEFAULT_SOCKET_PATH.clone());
        require(socket.is_absolute(), "socket", socket.display(), || {
            "must be an absolute path".to_owned()
        })?;
        let length = socket.as_os_str().len();
        require(length < SOCKET_PATH_MAX, "socket", socket.display(), || {
            format!(
                "must be shorter than {SOCKET_PATH_MAX} bytes, which is all a socket address holds"
            )
        })?;
        let mode = raw.socket_mode.unwrap_or_else(|| "0666".to_owned());
        let socket_mode = u32::from_str_radix(&mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777);
        let socket_mode = given(socket_mode, "socket_mode", &mode, || {
            "must be octal permissions in quotes, such as \"0660\"".to_owned()
        })?;
        let mut domains = Vec::new();
        for (index, domain) in raw.domain.into_iter().enumerate() {
            domains.push(domain_of(index, domain)?);
        }
        check_domains(&domains)?;
        let mut links: Vec<LinkConfig> = Vec::new();
        for (index, link) in raw.link.into_iter().enumerate() {
            let link = link::link_of(index, link)?;
            let known = links.iter().position(|other| other.name == link.name);
            require(
                known.is_none(),
                &format!("link[{index}].name"),
                &link.name,
                || "is the name of another link too; give it another".to_owned(),
            )?;
            links.push(link);
        }
        Ok(Self {
            socket,
            socket_mode,
            socket_group: raw.socket_group,
            user: raw.user,
            log: raw.log.unwrap_or_else(|| DEFAULT_LOG.to_owned()),
            limits: limits_of(raw.limits)?,
            domains,
            links,
            relay_untrusted: raw.relay_untrusted.unwrap_or(true),
            vms: vm::vms_of(raw.vm)?,
        })
    }
}

/// Long enough that a program with pauses between its bursts has its pages still; short enough that a burst at start
/// does not stay for good.
const TRIM_AFTER_MS: u32 = 20_000;

/// sun_path, with its final zero.
const SOCKET_PATH_MAX: usize = 108;

fn limits_of(raw: RawLimits) -> Result<Limits, ConfigError> {
    let ring = |key: &str, value: Option<u32>, default: u32| {
        let value = value.unwrap_or(default);
        let good = (RING_LOG2_MIN..=RING_LOG2_MAX).contains(&value);
        require(good, &format!("limits.{key}"), value, || {
            format!("must be {RING_LOG2_MIN} to {RING_LOG2_MAX}, the power of two of the ring size")
        })?;
        Ok(value)
    };
    let count = |key: &str, value: Option<u32>, default: u32| {
        let value = value.unwrap_or(default);
        require(value > 0, &format!("limits.{key}"), value, || {
            "must be at least 1".to_owned()
        })?;
        Ok(value)
    };
    let ring_log2_max = ring("ring_log2_max", raw.ring_log2_max, 26)?;
    let preset = RING_LOG2_DEFAULT.min(ring_log2_max);
    let ring_log2_default = ring("ring_log2_default", raw.ring_log2_default, preset)?;
    require(
        ring_log2_default <= ring_log2_max,
        "limits.ring_log2_default",
        ring_log2_default,
        || format!("must not exceed limits.ring_log2_max ({ring_log2_max})"),
    )?;
    let user = raw.per_user;
    Ok(Limits {
        clients: count("clients", raw.clients, 8192)?,
        queued_messages: count("queued_messages", raw.queued_messages, 65_536)?,
        ring_log2_default,
        ring_log2_max,
        allocate: raw.allocate.unwrap_or(false),
        trim_after_ms: raw.trim_after_ms.unwrap_or(TRIM_AFTER_MS),
        per_user: UserLimits {
            processes: count("per_user.processes", user.processes, 4096)?,
            connections: count("per_user.connections", user.connections, 65_536)?,
            memory_bytes: user.memory_bytes.map_or(1 << 40, |size| size.0),
            descriptors: count("per_user.descriptors", user.descriptors, 32_768)?,
        },
    })
}

fn weight_of(key: &str, weight: Option<u32>) -> Result<u32, ConfigError> {
    let weight = weight.unwrap_or(1);
    require((1..=WEIGHT_MAX).contains(&weight), key, weight, || {
        format!("must be 1 to {WEIGHT_MAX}")
    })?;
    Ok(weight)
}

fn domain_of(index: usize, raw: RawDomain) -> Result<DomainConfig, ConfigError> {
    let key = |field: &str| format!("domain[{index}].{field}");
    require(!raw.name.is_empty(), &key("name"), "\"\"", || {
        "must not be empty".to_owned()
    })?;
    let mut addresses = Vec::new();
    for text in &raw.addresses {
        addresses.push(own_address(&key("addresses"), text, false)?);
    }
    if let Some(netns) = &raw.netns {
        require(netns.is_absolute(), &key("netns"), netns.display(), || {
            "must be an absolute path, such as /run/netns/NAME".to_owned()
        })?;
    }
    let weight = weight_of(&key("weight"), raw.weight)?;
    if let Some(tenant) = &raw.tenant {
        require(!tenant.is_empty(), &key("tenant"), "\"\"", || {
            "must not be empty; leave it out for none".to_owned()
        })?;
    }
    Ok(DomainConfig {
        name: raw.name,
        tenant: raw.tenant,
        addresses,
        netns: raw.netns,
        weight,
        rate_limit: raw.rate_limit.map(|size| size.0),
        memory_bytes: raw.memory_bytes.map(|size| size.0),
    })
}

/// Addresses that belong to somebody; `loopback`: even those that every namespace has.
fn own_address(key: &str, text: &str, loopback: bool) -> Result<IpNet, ConfigError> {
    let net = text
        .parse::<IpNet>()
        .ok()
        .or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| ip.into()));
    let net = given(net, key, text, || {
        "must be an address or ADDRESS/BITS".to_owned()
    })?;
    let ip = net.network();
    let shared = (ip.is_loopback() && !loopback) || ip.is_multicast();
    require(!shared, key, text, || {
        "must not be a loopback or multicast address: every namespace has those".to_owned()
    })?;
    Ok(net)
}

/// Names and namespaces are unique; so are addresses, except that tenants number theirs without
/// asking each other.
fn check_domains(domains: &[DomainConfig]) -> Result<(), ConfigError> {
    for (index, domain) in domains.iter().enumerate() {
        for (before, other) in domains.iter().take(index).enumerate() {
            let key = |field: &str| format!("domain[{index}].{field}");
            require(
                domain.name != other.name,
                &key("name"),
                &domain.name,
                || format!("is the name of domain[{before}] too; give it another"),
            )?;
            let netns = domain
                .netns
                .as_deref()
                .map_or_else(|| "(none)".to_owned(), |netns| netns.display().to_string());
            require(domain.netns != other.netns, &key("netns"), netns, || {
                format!("is the namespace of domain[{before}] too; one domain per namespace")
            })?;
            if domain.tenant != other.tenant {
                continue;
            }
            for net in &domain.addresses {
                let clash = other
                    .addresses
                    .iter()
                    .find(|other| net.contains(&other.network()) || other.contains(&net.network()));
                require(clash.is_none(), &key("addresses"), net, || {
                    format!("overlaps domain[{before}].addresses; an address has one owner")
                })?;
            }
        }
    }
    Ok(())
}

fn require(
    good: bool,
    key: &str,
    value: impl ToString,
    remedy: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    given(good.then_some(()), key, value, remedy)
}

fn given<T>(
    found: Option<T>,
    key: &str,
    value: impl ToString,
    remedy: impl FnOnce() -> String,
) -> Result<T, ConfigError> {
    found.ok_or_else(|| ConfigError::Value {
        key: key.to_owned(),
        value: value.to_string(),
        remedy: remedy(),
    })
}
