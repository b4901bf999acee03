//! What the broker is told about programs, sockets and domains.

use core::net::IpAddr;

use ipnet::IpNet;

use crate::ids::Process;

/// What the kernel says about a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramFacts {
    /// Its user, as the daemon's user namespace numbers it.
    pub uid: u32,
    /// Its user namespace.
    pub user_namespace: UserNamespace,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The configured domain that it belongs to.
    pub domain: Option<usize>,
    /// Ring size it asked for, as a power of two, as granted.
    pub ring_log2: u32,
    /// The number under which it knows the relay, if there are links.
    pub port: Option<Process>,
}

/// The user namespace of a program, as far as the daemon may know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserNamespace {
    /// The daemon's own.
    Own,
    /// Another, by device and inode of its name in /proc.
    Other(u64, u64),
    /// Not to be found out; trusts nobody.
    Unknown,
}

/// What the kernel says about a registered socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Its inode, which the program holds too.
    pub inode: u32,
    /// Its SO_COOKIE, by which it is found again and told from any later socket.
    pub cookie: u64,
}

/// A configured domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain {
    /// For people.
    pub name: String,
    /// Domains of one tenant trust each other.
    pub tenant: Option<String>,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Addresses that are its own, in every namespace of the machine.
    pub addresses: Vec<IpNet>,
}

impl Domain {
    /// Whether `addr` is the domain's own.
    pub fn owns(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.contains(&addr))
    }
}

/// Whether two programs may share memory: one user of one user namespace, or one tenant. Where a
/// tenant is configured it decides alone: root of two containers is not one user.
pub(super) fn trusted(one: &ProgramFacts, other: &ProgramFacts, domains: &[Domain]) -> bool {
    let tenant = |facts: &ProgramFacts| {
        facts
            .domain
            .and_then(|index| domains.get(index))
            .and_then(|domain| domain.tenant.as_deref())
    };
    match (tenant(one), tenant(other)) {
        (None, None) => {
            one.uid == other.uid
                && one.user_namespace == other.user_namespace
                && one.user_namespace != UserNamespace::Unknown
        }
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}
