//! `[[vm]]`: virtual machines that this host serves.

use std::path::PathBuf;

use ipnet::IpNet;
use rdma_core::channel::REGION_MIN;
use serde::{Deserialize, Serialize};

use super::{ConfigError, Size, given, require, weight_of};

/// Most memory of a region: what a BAR of a device may be on all machines that QEMU knows.
const REGION_MAX: u64 = 1 << 37;
const REGION_DEFAULT: u64 = 1 << 30;
/// One for the control ring, one that contexts share, two for others.
const VECTORS_MIN: u16 = 4;
const VECTORS_MAX: u16 = 256;
const VECTORS_DEFAULT: u16 = 32;
/// sun_path, with its final zero.
const SOCKET_PATH_MAX: usize = 108;

/// One `[[vm]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmConfig {
    /// For people.
    pub name: String,
    /// Where its QEMU connects (`-chardev socket,path=...`).
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub socket_mode: u32,
    /// VMs of one tenant share one region, and reach each other's programs without this host's help.
    pub tenant: Option<String>,
    /// Addresses that its programs may use.
    pub addresses: Vec<IpNet>,
    /// Size of its region, a power of two; of a tenant's the largest. Pages are taken only when they are used.
    pub memory_bytes: u64,
    /// A name for the region, by which QEMU finds it as persistent memory (`memory-backend-file,mem-path=...`).
    pub memory_path: Option<PathBuf>,
    /// Interrupt vectors of its device (`vectors=` of QEMU's device must be the same).
    pub vectors: u16,
    /// Share of the relay and of the links, relative to others.
    pub weight: u32,
    /// Bytes per second on them.
    pub rate_limit: Option<u64>,
    /// It is no machine but a container that shares its network namespace with others, loopback addresses included.
    pub shared_network: bool,
}

/// `[[vm]]` as written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "documented at `VmConfig`")]
pub struct RawVm {
    pub name: String,
    pub socket: PathBuf,
    pub socket_mode: Option<String>,
    pub tenant: Option<String>,
    #[serde(default)]
    pub addresses: Vec<String>,
    pub memory: Option<Size>,
    pub memory_path: Option<PathBuf>,
    pub vectors: Option<u16>,
    pub weight: Option<u32>,
    pub rate_limit: Option<Size>,
    pub shared_network: Option<bool>,
}

impl From<&VmConfig> for RawVm {
    fn from(vm: &VmConfig) -> Self {
        Self {
            name: vm.name.clone(),
            socket: vm.socket.clone(),
            socket_mode: Some(format!("{:04o}", vm.socket_mode)),
            tenant: vm.tenant.clone(),
            addresses: vm.addresses.iter().map(ToString::to_string).collect(),
            memory: Some(Size(vm.memory_bytes)),
            memory_path: vm.memory_path.clone(),
            vectors: Some(vm.vectors),
            weight: Some(vm.weight),
            rate_limit: vm.rate_limit.map(Size),
            shared_network: Some(vm.shared_network),
        }
    }
}

/// What all `[[vm]]` mean.
pub(super) fn vms_of(raw: Vec<RawVm>) -> Result<Vec<VmConfig>, ConfigError> {
    let mut vms: Vec<VmConfig> = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let vm = vm_of(index, raw)?;
        check_with_others(index, &vm, &vms)?;
        vms.push(vm);
    }
    Ok(vms)
}

fn vm_of(index: usize, raw: RawVm) -> Result<VmConfig, ConfigError> {
    let key = |field: &str| format!("vm[{index}].{field}");
    require(!raw.name.is_empty(), &key("name"), "\"\"", || {
        "must not be empty".to_owned()
    })?;
    let length = raw.socket.as_os_str().len();
    let good = raw.socket.is_absolute() && length < SOCKET_PATH_MAX;
    require(good, &key("socket"), raw.socket.display(), || {
        format!("must be an absolute path shorter than {SOCKET_PATH_MAX} bytes")
    })?;
    let mode = raw.socket_mode.unwrap_or_else(|| "0600".to_owned());
    let socket_mode = u32::from_str_radix(&mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o777);
    let socket_mode = given(socket_mode, &key("socket_mode"), &mode, || {
        "must be octal permissions in quotes, such as \"0660\"".to_owned()
    })?;
    if let Some(tenant) = &raw.tenant {
        require(!tenant.is_empty(), &key("tenant"), tenant, || {
            "must not be empty; leave it out for none".to_owned()
        })?;
    }
    let shared_network = raw.shared_network.unwrap_or(false);
    let mut addresses = Vec::new();
    for text in &raw.addresses {
        addresses.push(super::own_address(&key("addresses"), text, shared_network)?);
    }
    require(!addresses.is_empty(), &key("addresses"), "[]", || {
        "must name at least one address that the VM's programs may use".to_owned()
    })?;
    let memory_bytes = raw.memory.map_or(REGION_DEFAULT, |size| size.0);
    let good = memory_bytes.is_power_of_two() && (REGION_MIN..=REGION_MAX).contains(&memory_bytes);
    require(good, &key("memory"), memory_bytes, || {
        "must be a power of two, \"64 MiB\" to \"128 GiB\": it becomes a BAR of a device".to_owned()
    })?;
    if let Some(path) = &raw.memory_path {
        let good = path.is_absolute() && *path != raw.socket;
        require(good, &key("memory_path"), path.display(), || {
            "must be an absolute path, and not that of the socket".to_owned()
        })?;
    }
    let vectors = raw.vectors.unwrap_or(VECTORS_DEFAULT);
    let good = (VECTORS_MIN..=VECTORS_MAX).contains(&vectors);
    require(good, &key("vectors"), vectors, || {
        format!("must be {VECTORS_MIN} to {VECTORS_MAX}")
    })?;
    let weight = weight_of(&key("weight"), raw.weight)?;
    Ok(VmConfig {
        name: raw.name,
        socket: raw.socket,
        socket_mode,
        tenant: raw.tenant,
        addresses,
        memory_bytes,
        memory_path: raw.memory_path,
        vectors,
        weight,
        rate_limit: raw.rate_limit.map(|size| size.0),
        shared_network,
    })
}

fn check_with_others(index: usize, vm: &VmConfig, others: &[VmConfig]) -> Result<(), ConfigError> {
    let key = |field: &str| format!("vm[{index}].{field}");
    for (before, other) in others.iter().enumerate() {
        require(vm.name != other.name, &key("name"), &vm.name, || {
            format!("is the name of vm[{before}] too; give it another")
        })?;
        let socket = vm.socket.display();
        require(vm.socket != other.socket, &key("socket"), socket, || {
            format!("is the socket of vm[{before}] too; each VM has its own")
        })?;
        if let Some(path) = &vm.memory_path {
            let own = vm.memory_path != other.memory_path;
            require(own, &key("memory_path"), path.display(), || {
                format!("is that of vm[{before}] too; each VM has its own")
            })?;
        }
        if vm.tenant.is_none() || vm.tenant != other.tenant {
            continue;
        }
        let same = vm.vectors == other.vectors;
        require(same, &key("vectors"), vm.vectors, || {
            format!(
                "must be {} as for vm[{before}], of the same tenant",
                other.vectors
            )
        })?;
        if vm.shared_network && other.shared_network {
            continue;
        }
        for net in &vm.addresses {
            let clash = other
                .addresses
                .iter()
                .find(|other| net.contains(&other.network()) || other.contains(&net.network()));
            require(clash.is_none(), &key("addresses"), net, || {
                format!("overlaps vm[{before}].addresses; an address has one owner")
            })?;
        }
    }
    Ok(())
}
