//! What each user and each domain holds of the daemon, and how much they may.
//!
//! The event loop charges, the disposal thread discharges, and the reporter's thread reads: hence a
//! concurrent map.

use dashmap::DashMap;

/// Who pays.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Account {
    /// A user.
    User(u32),
    /// A configured domain, by its place in the configuration.
    Domain(usize),
}

/// What an account holds, or may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holdings {
    /// Control sockets.
    pub processes: u64,
    /// Registered connections.
    pub connections: u64,
    /// Connection memory in bytes of address space; pages are taken as they are used.
    pub memory_bytes: u64,
    /// Descriptors that the daemon keeps.
    pub descriptors: u64,
    /// Descriptors waiting to be closed because they should not have been sent.
    pub strays: u64,
}

impl Holdings {
    /// Nothing.
    pub const NONE: Self = Self {
        processes: 0,
        connections: 0,
        memory_bytes: 0,
        descriptors: 0,
        strays: 0,
    };

    /// A control socket, and the memory and sockets that come with it.
    pub const PROCESS: Self = Self {
        processes: 1,
        descriptors: 4,
        ..Self::NONE
    };

    /// One registration.
    pub const CONNECTION: Self = Self {
        connections: 1,
        ..Self::NONE
    };

    /// One doorbell.
    pub const DOORBELL: Self = Self {
        descriptors: 1,
        ..Self::NONE
    };

    /// An arena of connection memory.
    pub const fn arena(bytes: u64) -> Self {
        Self {
            memory_bytes: bytes,
            descriptors: 1,
            ..Self::NONE
        }
    }

    /// Descriptors to be closed.
    pub const fn strays(count: u64) -> Self {
        Self {
            strays: count,
            ..Self::NONE
        }
    }

    fn each(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            processes: f(self.processes, other.processes),
            connections: f(self.connections, other.connections),
            memory_bytes: f(self.memory_bytes, other.memory_bytes),
            descriptors: f(self.descriptors, other.descriptors),
            strays: f(self.strays, other.strays),
        }
    }

    const fn fits(&self, limit: &Self) -> bool {
        self.processes <= limit.processes
            && self.connections <= limit.connections
            && self.memory_bytes <= limit.memory_bytes
            && self.descriptors <= limit.descriptors
            && self.strays <= limit.strays
    }
}

/// All accounts.
#[derive(Debug)]
pub struct Accounts {
    holdings: DashMap<Account, Holdings>,
    user_limit: Holdings,
    domain_memory: Vec<Option<u64>>,
}

/// An account would hold more than it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} holds all it may")]
pub struct OverQuota(pub Account);

impl Accounts {
    /// No holdings yet. `domain_memory` limits the connection memory of the domains in order.
    pub fn new(user_limit: Holdings, domain_memory: Vec<Option<u64>>) -> Self {
        Self {
            holdings: DashMap::new(),
            user_limit,
            domain_memory,
        }
    }

    /// Adds `more` to `account`.
    ///
    /// # Errors
    /// [`OverQuota`]; nothing was added then.
    pub fn charge(&self, account: Account, more: Holdings) -> Result<(), OverQuota> {
        let mut entry = self.holdings.entry(account).or_default();
        let sum = entry.each(more, u64::saturating_add);
        // Only what grows is judged: an account over one limit may still shrink and use the others.
        let judged = sum.each(more, |sum, more| if more == 0 { 0 } else { sum });
        if !judged.fits(&self.limit(account)) {
            drop(entry);
            self.discharge(account, Holdings::default());
            return Err(OverQuota(account));
        }
        *entry = sum;
        Ok(())
    }

    /// Adds `more` to all of `accounts` or to none.
    ///
    /// # Errors
    /// As [`Accounts::charge`].
    pub fn charge_all(&self, accounts: &[Account], more: Holdings) -> Result<(), OverQuota> {
        for (done, account) in accounts.iter().enumerate() {
            if let Err(error) = self.charge(*account, more) {
                for account in accounts.iter().take(done) {
                    self.discharge(*account, more);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Adds `more` to `account` whatever it may hold.
    pub fn owe(&self, account: Account, more: Holdings) {
        let mut entry = self.holdings.entry(account).or_default();
        *entry = entry.each(more, u64::saturating_add);
    }

    /// Whether `account` holds more than it may.
    pub fn is_over(&self, account: Account) -> bool {
        !self.holdings(account).fits(&self.limit(account))
    }

    /// Takes `less` from `account`.
    pub fn discharge(&self, account: Account, less: Holdings) {
        if let Some(mut entry) = self.holdings.get_mut(&account) {
            *entry = entry.each(less, u64::saturating_sub);
        }
        self.holdings
            .remove_if(&account, |_, holdings| *holdings == Holdings::default());
    }

    /// Takes `less` from all of `accounts`.
    pub fn discharge_all(&self, accounts: &[Account], less: Holdings) {
        for account in accounts {
            self.discharge(*account, less);
        }
    }

    /// What `account` holds.
    pub fn holdings(&self, account: Account) -> Holdings {
        self.holdings
            .get(&account)
            .map_or_else(Holdings::default, |entry| *entry)
    }

    fn limit(&self, account: Account) -> Holdings {
        match account {
            Account::User(_) => self.user_limit,
            Account::Domain(index) => Holdings {
                memory_bytes: self
                    .domain_memory
                    .get(index)
                    .copied()
                    .flatten()
                    .unwrap_or(u64::MAX),
                ..UNLIMITED
            },
        }
    }
}

const UNLIMITED: Holdings = Holdings {
    processes: u64::MAX,
    connections: u64::MAX,
    memory_bytes: u64::MAX,
    descriptors: u64::MAX,
    strays: u64::MAX,
};

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        let limit = Holdings {
            processes: 2,
            connections: 3,
            memory_bytes: 100,
            descriptors: 100,
            strays: 5,
        };
        Accounts::new(limit, vec![Some(50), None])
    }

    #[test]
    fn a_quota_is_kept_per_account() {
        let accounts = accounts();
        let (one, two) = (Account::User(1), Account::User(2));
        assert_eq!(accounts.charge(one, Holdings::PROCESS), Ok(()));
        assert_eq!(accounts.charge(one, Holdings::PROCESS), Ok(()));
        assert_eq!(accounts.charge(one, Holdings::PROCESS), Err(OverQuota(one)));
        assert_eq!(accounts.charge(two, Holdings::PROCESS), Ok(()));
        assert_eq!(accounts.charge(one, Holdings::arena(100)), Ok(()));
        accounts.discharge(one, Holdings::PROCESS);
        assert_eq!(accounts.charge(one, Holdings::PROCESS), Ok(()));
    }

    #[test]
    fn all_or_none_are_charged() {
        let accounts = accounts();
        let both = [Account::User(1), Account::Domain(0)];
        assert!(accounts.charge_all(&both, Holdings::arena(60)).is_err());
        assert_eq!(accounts.holdings(Account::User(1)), Holdings::default());
        assert!(accounts.charge_all(&both, Holdings::arena(50)).is_ok());
        assert_eq!(accounts.holdings(Account::Domain(0)).memory_bytes, 50);
        accounts.discharge_all(&both, Holdings::arena(50));
        assert!(accounts.holdings.is_empty(), "empty accounts go away");
    }

    #[test]
    fn a_domain_without_quota_has_none() {
        let accounts = accounts();
        let domain = Account::Domain(1);
        assert!(accounts.charge(domain, Holdings::arena(u64::MAX)).is_ok());
    }
}
