//! Virtual machines on this host.
//!
//! Each has a shared-memory device, and in it a guest's frontend driver (`viaduct-guest`, [`crate::uplink`]), which
//! speaks to this backend through control rings ([`rdma_core::channel`]). The backend makes all memory, says who may
//! have what, and finds far ends; between two guests of one tenant it then has nothing more to do.
//!
//! * [`server`]: how a VM gets its device: the protocol that QEMU speaks.
//! * [`region`]: the memory of a VM, or of a tenant's VMs, and what of it is free.
//! * [`seat`]: a VM whose device is there: its control rings and its programs.
//! * [`lease`]: who may have a region's memory still; [`ghosts`]: what is kept for those who may.
//! * [`switch`]: who looks for whom.
//! * [`connections`]: memory that guests were given for connections.
//! * [`keeping`]: what the next daemon needs; [`resuming`]: connections of the one before.
//!
//! Everything a guest writes is hostile until checked. A guest can lose its own connections and its own acceleration,
//! never those of others; what the VMs of a tenant share is that tenant's.

pub mod connections;
pub mod ghosts;
mod inheritance;
pub mod keeping;
pub mod lease;
pub mod persistent;
pub mod region;
pub mod resuming;
pub mod seat;
pub mod server;
pub mod switch;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rdma_core::channel::{GUEST_PROCESS_MIN, GUEST_PROCESSES};
use rdma_core::event::WaitRef;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::broker::Half;
use crate::config::VmConfig;
use crate::ids::{PeerId, Process};

use connections::Connections;
use ghosts::{Ghost, Ghosts, Retired};
use keeping::Notes;
use persistent::Name;
use region::Region;
use seat::Seat;
use server::Group;
use switch::{FlowId, Switch};

/// A virtual machine, in the order of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmId(pub usize);

/// Blocks of process numbers: of the drivers of one device, and of a machine with those that it has left behind.
const BLOCKS_KEPT: usize = 3;
const BLOCKS_MAX: usize = 8;

/// Programs of guests are no users of this host.
pub const GUEST_UID: u32 = u32::MAX;

/// Guests are far backends to the broker; their numbers as such have this bit.
const VM_PEERS: u32 = 1 << 30;

impl VmId {
    /// The guest as a far backend.
    pub fn peer(self) -> PeerId {
        PeerId(VM_PEERS | u32::try_from(self.0).unwrap_or(0))
    }

    /// The guest that is meant by a far backend; `None`: it is another host's.
    pub fn of(peer: PeerId) -> Option<Self> {
        if peer.0 & VM_PEERS == 0 || peer == crate::broker::UPLINK {
            return None;
        }
        Some(Self(usize::try_from(peer.0 & !VM_PEERS).ok()?))
    }

    /// See [`rdma_core::control::Welcome::machine`].
    pub fn machine(self) -> u32 {
        u32::try_from(self.0 + 1).unwrap_or(0)
    }
}

/// Several machines have one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("several virtual machines have the address")]
pub struct Ambiguous;

/// A region and who shares it.
#[derive(Debug)]
pub struct Tenancy {
    /// The memory.
    pub region: Region,
    /// The members.
    pub group: Group,
    /// A daemon before us has made it: machines of which it is not known yet what they have. `None`: that is all known.
    pub unheard: Option<BTreeSet<VmId>>,
}

/// A virtual machine that may come.
#[derive(Debug)]
pub struct Vm {
    /// As configured.
    pub config: VmConfig,
    /// The domain that is charged; 0 is none.
    pub domain: u32,
    /// Index of its tenancy.
    pub tenancy: usize,
    /// Where its QEMU connects.
    pub listener: OwnedFd,
    /// Its device is there.
    pub seat: Option<Seat>,
}

impl Vm {
    /// Whether an address is one that its programs may use.
    pub fn owns(&self, addr: IpAddr) -> bool {
        self.config
            .addresses
            .iter()
            .any(|net: &IpNet| net.contains(&addr))
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Vms {
    /// Regions.
    pub tenancies: Vec<Tenancy>,
    /// Machines.
    pub vms: Vec<Vm>,
    /// Who looks for whom.
    pub switch: Switch,
    /// Memory of connections.
    pub connections: Connections,
    /// Ends of this host's that lead, while their far guest is asked.
    pub local_halves: HashMap<FlowId, Half>,
    /// Memory of ports whose programs have left, until the relay lets go.
    pub retired: HashMap<Process, Retired>,
    /// What programs may use whose driver has died or left.
    pub ghosts: Ghosts,
    /// Whose block of process numbers it is, and when it was given out; a driver that starts anew gets another.
    blocks: HashMap<u32, (VmId, u64)>,
    given: u64,
    sockets: Vec<PathBuf>,
    /// Names of regions that QEMU can take as persistent memory, and which region each is.
    names: Vec<(usize, Name)>,
    notes: Notes,
}

impl Vms {
    /// Makes the regions and listens for the QEMUs. `first_domain`: the number of the first VM's domain.
    ///
    /// # Errors
    /// No descriptor, memory, or socket path to be had.
    pub fn open(configs: &[VmConfig], first_domain: u32) -> io::Result<Self> {
        let mut all = Self::default();
        let mut by_tenant: HashMap<&str, usize> = HashMap::new();
        for (index, config) in configs.iter().enumerate() {
            let known = config
                .tenant
                .as_deref()
                .and_then(|name| by_tenant.get(name));
            let tenancy = match known {
                Some(known) => *known,
                None => {
                    let number = all.tenancies.len();
                    let same = |other: &&VmConfig| {
                        config.tenant.is_some() && other.tenant == config.tenant
                    };
                    let bytes = configs.iter().filter(same).map(|other| other.memory_bytes);
                    let bytes = bytes.max().unwrap_or(config.memory_bytes);
                    let region = Region::create(number, bytes)?;
                    let group = Group::new(region.memory().clone(), config.vectors)?;
                    all.tenancies.push(Tenancy {
                        region,
                        group,
                        unheard: None,
                    });
                    if let Some(name) = config.tenant.as_deref() {
                        by_tenant.insert(name, number);
                    }
                    number
                }
            };
            if let Some(path) = &config.memory_path
                && let Some(Tenancy { region, .. }) = all.tenancies.get(tenancy)
            {
                all.names.push((tenancy, Name::new(path, region.memory())?));
            }
            let listener = listen(&config.socket, config.socket_mode)?;
            all.sockets.push(config.socket.clone());
            all.vms.push(Vm {
                config: config.clone(),
                domain: first_domain + u32::try_from(index).unwrap_or(0),
                tenancy,
                listener,
                seat: None,
            });
        }
        Ok(all)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vms.is_empty()
    }

    /// A machine.
    pub fn vm(&self, vm: VmId) -> Option<&Vm> {
        self.vms.get(vm.0)
    }

    /// A machine whose device is there.
    pub fn seat(&self, vm: VmId) -> Option<&Seat> {
        self.vms.get(vm.0)?.seat.as_ref()
    }

    /// The same.
    pub fn seat_mut(&mut self, vm: VmId) -> Option<&mut Seat> {
        self.vms.get_mut(vm.0)?.seat.as_mut()
    }

    /// A region.
    pub fn tenancy_mut(&mut self, vm: VmId) -> Option<&mut Tenancy> {
        let tenancy = self.vms.get(vm.0)?.tenancy;
        self.tenancies.get_mut(tenancy)
    }

    /// A region.
    pub fn tenancy(&self, vm: VmId) -> Option<&Tenancy> {
        self.tenancies.get(self.vms.get(vm.0)?.tenancy)
    }

    /// The machines that share a region.
    pub fn of_tenancy(&self, tenancy: usize) -> impl Iterator<Item = VmId> + '_ {
        let all = self.vms.iter().enumerate();
        all.filter(move |(_, vm)| vm.tenancy == tenancy)
            .map(|(index, _)| VmId(index))
    }

    /// The machine whose programs may use `addr`, other than `asking`. Tenants number theirs without asking each other: `asking`, if it
    /// is a guest, means its own tenant's first.
    ///
    /// # Errors
    /// [`Ambiguous`].
    pub fn owner(&self, addr: IpAddr, asking: Option<VmId>) -> Result<Option<VmId>, Ambiguous> {
        let tenancy = asking.and_then(|vm| self.vm(vm)).map(|vm| vm.tenancy);
        let mut found = Vec::new();
        for (index, vm) in self.vms.iter().enumerate() {
            if asking != Some(VmId(index)) && vm.seat.is_some() && vm.owns(addr) {
                if Some(vm.tenancy) == tenancy {
                    return Ok(Some(VmId(index)));
                }
                found.push(VmId(index));
            }
        }
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            _ => Err(Ambiguous),
        }
    }

    /// A block of process numbers for a driver that has just started; its first number. A device has that of a few
    /// drivers, then its oldest again, as with memory for events. What ghosts have counts as well, but stays theirs.
    pub fn take_block(&mut self, vm: VmId) -> Option<u32> {
        let blocks = (WaitRef::PROCESS_MAX + 1 - GUEST_PROCESS_MIN) / GUEST_PROCESSES;
        // The relay may not be done with programs of a machine that has left.
        let with_relay = |block: &u32| {
            let of_block = |process: &Process| block_of(*process) == Some(*block);
            self.retired.keys().any(of_block)
        };
        let mut own: Vec<u32> = self.blocks_of(vm).collect();
        let all = own.len();
        own.retain(|block| !self.ghosts.have(*block));
        let block = if own.len() < BLOCKS_KEPT && all < BLOCKS_MAX {
            (0..blocks).find(|block| !self.blocks.contains_key(block) && !with_relay(block))?
        } else {
            own.into_iter().find(|block| !with_relay(block))?
        };
        self.give_block(block, vm);
        Some(GUEST_PROCESS_MIN + block * GUEST_PROCESSES)
    }

    fn give_block(&mut self, block: u32, vm: VmId) {
        self.given += 1;
        self.blocks.insert(block, (vm, self.given));
    }

    /// How often memory or connections have changed, of which tools are told.
    pub fn changes(&self) -> u64 {
        let regions = self.tenancies.iter().map(|found| found.region.changes());
        regions.sum::<u64>() + self.connections.changes()
    }

    /// Numbers differ from those of any daemon before us.
    pub fn number_from(&mut self, epoch: u64) {
        self.connections.number_from(epoch);
        self.switch.number_from(epoch);
    }

    /// Names lead to the regions that there are now.
    fn rename(&mut self) -> io::Result<()> {
        for (tenancy, name) in &mut self.names {
            if let Some(Tenancy { region, .. }) = self.tenancies.get(*tenancy) {
                name.lead_to(region.memory())?;
            }
        }
        Ok(())
    }

    /// Oldest first.
    fn blocks_of(&self, vm: VmId) -> impl Iterator<Item = u32> + use<> {
        let all = self.blocks.iter();
        let own = all.filter(|(_, (owner, _))| *owner == vm);
        let mut own: Vec<_> = own.map(|(block, (_, given))| (*given, *block)).collect();
        own.sort_unstable();
        own.into_iter().map(|(_, block)| block)
    }

    /// A machine has left; its programs may not have.
    pub fn depart(&mut self, vm: VmId) {
        let Some(seat) = self.vms.get_mut(vm.0).and_then(|vm| vm.seat.take()) else {
            return;
        };
        // Whatever it has is known by its lease.
        if let Some(tenancy) = self.tenancy_mut(vm)
            && let Some(unheard) = &mut tenancy.unheard
        {
            unheard.remove(&vm);
        }
        let own = self.blocks_of(vm);
        let blocks = own.filter(|block| !self.ghosts.have(*block)).collect();
        let ghost = Ghost {
            vm,
            lease: seat.lease,
            heaps: seat.heaps,
            blocks,
        };
        self.ghosts.members.push(ghost);
    }

    /// Programs have gone, and so have their numbers.
    pub fn free_blocks(&mut self, gone: &[u32]) {
        self.blocks.retain(|block, _| !gone.contains(block));
    }

    /// The machine that a process number belongs to.
    pub fn vm_of_process(&self, process: Process) -> Option<VmId> {
        let (vm, _) = self.blocks.get(&block_of(process)?)?;
        Some(*vm)
    }
}

/// The block that a number of a guest's program is in.
fn block_of(process: Process) -> Option<u32> {
    Some(process.0.checked_sub(GUEST_PROCESS_MIN)? / GUEST_PROCESSES)
}

impl Drop for Vms {
    fn drop(&mut self) {
        for path in &self.sockets {
            // Whoever connects late finds nothing, as after any daemon.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Connections that wait to be accepted: there is one QEMU.
const BACKLOG: i32 = 4;

/// Says beside an error which path it is about.
fn naming(path: &Path) -> impl Fn(io::Error) -> io::Error + Copy {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn listen(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let named = naming(path);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(named)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(named(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another daemon is listening there; name another socket",
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(named)?;
        }
        Err(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?).map_err(|error| named(error.into()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(named)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::lease::Lease;
    use super::*;

    #[test]
    fn a_machine_has_few_blocks() {
        let mut all = Vms::default();
        let mut taken = Vec::new();
        for _ in 0..BLOCKS_KEPT {
            taken.push(all.take_block(VmId(0)).unwrap());
        }
        // Its own again, oldest first, but for what the relay has.
        assert_eq!(all.take_block(VmId(0)), Some(taken[0]));
        let port = Retired {
            tenancy: 0,
            at: 0,
            lease: None,
        };
        all.retired.insert(Process(taken[1] + 1), port);
        assert_eq!(all.take_block(VmId(0)), Some(taken[2]));
        assert_eq!(all.take_block(VmId(0)), Some(taken[0]));
        all.retired.clear();
        // What it leaves behind stays as it is, and is counted.
        for _ in 0..4 {
            let ghost = Ghost {
                vm: VmId(0),
                lease: Lease::default(),
                heaps: Vec::new(),
                blocks: all.blocks_of(VmId(0)).collect(),
            };
            all.ghosts.members.push(ghost);
            for _ in 0..10 {
                let next = all.take_block(VmId(0));
                assert!(next.is_none_or(|next| !taken.contains(&next)));
            }
            let own = all.blocks_of(VmId(0));
            let first = |block: u32| GUEST_PROCESS_MIN + block * GUEST_PROCESSES;
            taken = own.map(first).collect();
        }
        assert_eq!(taken.len(), BLOCKS_MAX);
        assert_eq!(all.take_block(VmId(0)), None);
        let other = all.take_block(VmId(1)).unwrap();
        assert!(!taken.contains(&other));
    }

    #[test]
    fn numbers_are_given_out_again_when_the_relay_has_let_go() {
        let mut all = Vms::default();
        let first = all.take_block(VmId(0)).unwrap();
        let program = Process(first + 1);
        let port = Retired {
            tenancy: 0,
            at: 0,
            lease: None,
        };
        all.retired.insert(program, port);
        all.free_blocks(&[0]);
        let other = all.take_block(VmId(0)).unwrap();
        assert_ne!(other, first);
        all.retired.remove(&program);
        assert_eq!(all.take_block(VmId(1)), Some(first));
        assert_eq!(all.vm_of_process(program), Some(VmId(1)));
    }
}
