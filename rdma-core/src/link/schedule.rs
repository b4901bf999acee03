//! The domains of a daemon: what each is entitled to, and what it has used.
//!
//! [`Schedule`] is one per daemon, shared by all its links and by the way between programs of one host
//! ([`super::Crossing`]): weights, token buckets, counters. Whose turn it is on a link, the link knows (`turns`).

use super::time::{SECOND, Time};

/// A rate may be exceeded by what it allows in this time,
const BURST: u64 = SECOND / 500;

/// and at least by so many bytes, one batch of a driver.
const BURST_MIN: u64 = 64 * 1024;

/// A domain: whoever the work is charged to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, PartialOrd, Ord)]
pub struct DomainId(pub u32);

/// What a domain is entitled to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainConfig {
    /// Share relative to others, 1 to [`Self::WEIGHT_MAX`].
    pub weight: u32,
    /// Bits per second of frames, their headers included; `None`: no limit.
    pub rate: Option<u64>,
}

impl DomainConfig {
    /// Largest weight.
    pub const WEIGHT_MAX: u32 = 1000;
}

impl Default for DomainConfig {
    fn default() -> Self {
        Self {
            weight: 1,
            rate: None,
        }
    }
}

/// What a domain has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DomainCounters {
    /// Bytes of frames.
    pub bytes: u64,
    /// Frames.
    pub frames: u64,
    /// Nanoseconds in which it had something to send, and its rate did not let it.
    pub throttled: u64,
}

/// All domains of a daemon.
#[derive(Debug, Default)]
pub struct Schedule {
    domains: Vec<Domain>,
}

#[derive(Debug)]
struct Domain {
    id: DomainId,
    config: DomainConfig,
    counters: DomainCounters,
    /// Bytes that may be sent, times [`SECOND`] times 8; negative after the last frame of a burst.
    tokens: i128,
    filled_at: Time,
    throttled_since: Option<Time>,
}

impl Schedule {
    /// Without domains. A domain that is not named has the default entitlement and no counters until it
    /// sends.
    pub const fn new() -> Self {
        Self {
            domains: Vec::new(),
        }
    }

    /// Adds a domain, or changes what it is entitled to.
    pub fn set_domain(&mut self, id: DomainId, config: DomainConfig, now: Time) {
        let config = DomainConfig {
            weight: config.weight.clamp(1, DomainConfig::WEIGHT_MAX),
            rate: config.rate.map(|rate| rate.max(1)),
        };
        let domain = self.domain(id);
        domain.config = config;
        domain.filled_at = now;
        domain.tokens = domain.tokens_max();
    }

    /// Forgets a domain and its counters.
    pub fn remove_domain(&mut self, id: DomainId) {
        if let Ok(at) = self.find(id) {
            self.domains.remove(at);
        }
    }

    /// What a domain has used.
    pub fn counters(&self, id: DomainId) -> Option<DomainCounters> {
        Some(self.domains[self.find(id).ok()?].counters)
    }

    /// All domains.
    pub fn domains(&self) -> impl Iterator<Item = (DomainId, DomainConfig, DomainCounters)> {
        self.domains
            .iter()
            .map(|domain| (domain.id, domain.config, domain.counters))
    }

    /// A frame of `size` bytes was sent for a domain.
    #[inline]
    pub(super) fn charge(&mut self, id: DomainId, size: u64) {
        let domain = self.domain(id);
        domain.counters.bytes += size;
        domain.counters.frames += 1;
        if domain.config.rate.is_some() {
            domain.tokens -= i128::from(size) * Domain::TOKENS_PER_BYTE;
        }
    }

    /// Until when a domain must wait, if it must.
    #[inline]
    pub(super) fn wait(&mut self, id: DomainId, now: Time) -> Option<Time> {
        let domain = self.domain(id);
        match domain.config.rate {
            None => None,
            Some(rate) => domain.refill(rate, now),
        }
    }

    pub(super) fn weight(&self, id: DomainId) -> u32 {
        self.find(id).map_or(1, |at| self.domains[at].config.weight)
    }

    #[inline]
    fn find(&self, id: DomainId) -> Result<usize, usize> {
        self.domains.binary_search_by_key(&id, |domain| domain.id)
    }

    #[inline]
    fn domain(&mut self, id: DomainId) -> &mut Domain {
        let at = match self.find(id) {
            Ok(at) => at,
            Err(at) => {
                let domain = Domain {
                    id,
                    config: DomainConfig::default(),
                    counters: DomainCounters::default(),
                    tokens: 0,
                    filled_at: Time(0),
                    throttled_since: None,
                };
                self.domains.insert(at, domain);
                at
            }
        };
        &mut self.domains[at]
    }
}

impl Domain {
    const TOKENS_PER_BYTE: i128 = 8 * SECOND as i128;

    fn tokens_max(&self) -> i128 {
        let rate = self.config.rate.unwrap_or(0);
        let by_time = i128::from(rate) * i128::from(BURST);
        by_time.max(i128::from(BURST_MIN) * Self::TOKENS_PER_BYTE)
    }

    fn refill(&mut self, rate: u64, now: Time) -> Option<Time> {
        let passed = now.since(self.filled_at);
        if passed > 0 {
            let more = i128::from(rate) * i128::from(passed);
            self.tokens = self.tokens.saturating_add(more).min(self.tokens_max());
            self.filled_at = now;
        }
        if self.tokens > 0 {
            if let Some(since) = self.throttled_since.take() {
                self.counters.throttled += now.since(since);
            }
            return None;
        }
        self.throttled_since.get_or_insert(now);
        let missing = u128::try_from(-self.tokens).unwrap_or(0) / u128::from(rate) + 1;
        Some(now.plus(u64::try_from(missing).unwrap_or(u64::MAX)))
    }
}
