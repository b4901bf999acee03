//! The configuration file as written. Every key is optional except a domain's name.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Config, DomainConfig, RawLink, RawVm, Size};

/// The file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "documented at `super::Config`")]
pub struct RawConfig {
    pub socket: Option<PathBuf>,
    pub socket_mode: Option<String>,
    pub socket_group: Option<String>,
    pub user: Option<String>,
    pub log: Option<String>,
    pub relay_untrusted: Option<bool>,
    pub limits: RawLimits,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domain: Vec<RawDomain>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub link: Vec<RawLink>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vm: Vec<RawVm>,
}

/// `[limits]`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "documented at `super::Limits`")]
pub struct RawLimits {
    pub clients: Option<u32>,
    pub queued_messages: Option<u32>,
    pub ring_log2_default: Option<u32>,
    pub ring_log2_max: Option<u32>,
    pub allocate: Option<bool>,
    pub trim_after_ms: Option<u32>,
    pub per_user: RawUserLimits,
}

/// `[limits.per_user]`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "documented at `super::UserLimits`")]
pub struct RawUserLimits {
    pub processes: Option<u32>,
    pub connections: Option<u32>,
    pub memory_bytes: Option<Size>,
    pub descriptors: Option<u32>,
}

/// `[[domain]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented at `super::DomainConfig`")]
pub struct RawDomain {
    pub name: String,
    pub tenant: Option<String>,
    #[serde(default)]
    pub addresses: Vec<String>,
    pub netns: Option<PathBuf>,
    pub weight: Option<u32>,
    pub rate_limit: Option<Size>,
    pub memory_bytes: Option<Size>,
}

impl From<&Config> for RawConfig {
    fn from(config: &Config) -> Self {
        let limits = &config.limits;
        Self {
            socket: Some(config.socket.clone()),
            socket_mode: Some(format!("{:04o}", config.socket_mode)),
            socket_group: config.socket_group.clone(),
            user: config.user.clone(),
            log: Some(config.log.clone()),
            relay_untrusted: Some(config.relay_untrusted),
            limits: RawLimits {
                clients: Some(limits.clients),
                queued_messages: Some(limits.queued_messages),
                ring_log2_default: Some(limits.ring_log2_default),
                ring_log2_max: Some(limits.ring_log2_max),
                allocate: Some(limits.allocate),
                trim_after_ms: Some(limits.trim_after_ms),
                per_user: RawUserLimits {
                    processes: Some(limits.per_user.processes),
                    connections: Some(limits.per_user.connections),
                    memory_bytes: Some(Size(limits.per_user.memory_bytes)),
                    descriptors: Some(limits.per_user.descriptors),
                },
            },
            domain: config.domains.iter().map(RawDomain::from).collect(),
            link: config.links.iter().map(RawLink::from).collect(),
            vm: config.vms.iter().map(RawVm::from).collect(),
        }
    }
}

impl From<&DomainConfig> for RawDomain {
    fn from(domain: &DomainConfig) -> Self {
        Self {
            name: domain.name.clone(),
            tenant: domain.tenant.clone(),
            addresses: domain.addresses.iter().map(ToString::to_string).collect(),
            netns: domain.netns.clone(),
            weight: Some(domain.weight),
            rate_limit: domain.rate_limit.map(Size),
            memory_bytes: domain.memory_bytes.map(Size),
        }
    }
}
