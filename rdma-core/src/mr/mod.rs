//! Memory regions: who may write where.
//!
//! A region is memory that a far end may write to, by a key that this side has given out. [`Regions`]
//! holds them; every write is looked up and checked on every use ([`Regions::look_up`]), so a revoked key
//! is worth nothing from the next frame on. The table is the translation cache: one indexed load and four
//! comparisons, see `benches/link.rs`.
//!
//! The module never touches memory. It answers where bytes belong, as a [`Place`] in something that the
//! caller knows by number.

#![forbid(unsafe_code)]

use crate::link::DomainId;

/// Names a region to its owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LocalKey(pub u32);

/// Names a region to the far end that may write to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RemoteKey(pub u32);

/// The keys of a new region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    /// For the owner.
    pub local: LocalKey,
    /// For the far end.
    pub remote: RemoteKey,
}

/// How offsets are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A ring of this many bytes, a power of two: offsets count from the start of the stream.
    Ring(u64),
    /// Plain memory of this many bytes.
    Flat(u64),
}

impl Shape {
    /// Whether it is a ring, and its largest offset or its length.
    const fn extent(self) -> Result<(bool, u64), RegisterError> {
        match self {
            Self::Ring(size) if size.is_power_of_two() => Ok((true, size - 1)),
            Self::Flat(size) if size > 0 => Ok((false, size)),
            _ => Err(RegisterError::Size),
        }
    }
}

/// Where bytes belong: at most two runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// What the owner said at registration.
    pub token: u64,
    /// Offset of the first run in the memory.
    pub start: u64,
    /// Length of the first run.
    pub length: u64,
    /// Length of the second, which starts at offset 0 of a ring.
    pub wrapped: u64,
}

/// Why an access is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AccessError {
    /// The key was never given out.
    #[error("forged key")]
    Forged,
    /// The key was given out and has been revoked.
    #[error("stale key")]
    Stale,
    /// The key is for another domain.
    #[error("key of another domain")]
    Domain,
    /// The range is not inside the region.
    #[error("outside the region")]
    Range,
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Accesses granted.
    pub granted: u64,
    /// Refused: never given out.
    pub forged: u64,
    /// Refused: revoked.
    pub stale: u64,
    /// Refused: for another domain.
    pub domain: u64,
    /// Refused: outside the region.
    pub range: u64,
}

/// Why a region cannot be registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegisterError {
    /// [`Regions::MAX`] are registered.
    #[error("too many regions")]
    Full,
    /// A ring whose size is not a power of two, or no bytes at all.
    #[error("bad size")]
    Size,
}

/// An entry, half a cache line.
#[derive(Clone, Copy, Debug)]
struct Entry {
    token: u64,
    /// Largest offset in a ring, length of flat memory.
    extent: u64,
    domain: DomainId,
    rkey: u32,
    ring: bool,
    live: bool,
    /// How many keys of this entry were given out.
    generation: u16,
}

impl Entry {
    /// One of which no key was given out.
    const fn unused(domain: DomainId) -> Self {
        Self {
            token: 0,
            extent: 0,
            domain,
            rkey: 0,
            ring: false,
            live: false,
            generation: 0,
        }
    }
}

/// All regions.
#[derive(Debug)]
pub struct Regions {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Mixed into the keys, so that they cannot be guessed from others.
    secret: u64,
    counters: Counters,
}

/// Bits of a key that say which entry it belongs to.
const INDEX_BITS: u32 = 16;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;

impl Regions {
    /// Most regions at a time.
    pub const MAX: usize = 1 << INDEX_BITS;

    /// Without regions. `secret` is random.
    pub const fn new(secret: u64) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            secret,
            counters: Counters {
                granted: 0,
                forged: 0,
                stale: 0,
                domain: 0,
                range: 0,
            },
        }
    }

    /// Registers memory of a domain. `token` names it in every [`Place`].
    ///
    /// # Errors
    /// [`RegisterError`]
    pub fn register(
        &mut self,
        domain: DomainId,
        shape: Shape,
        token: u64,
    ) -> Result<Keys, RegisterError> {
        shape.extent()?;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = self.entries.len();
                if index >= Self::MAX {
                    return Err(RegisterError::Full);
                }
                self.entries.push(Entry::unused(domain));
                u32::try_from(index).map_err(|_| RegisterError::Full)?
            }
        };
        self.register_at(index, domain, shape, token)
    }

    /// Makes a region of an entry that is not in use.
    fn register_at(
        &mut self,
        index: u32,
        domain: DomainId,
        shape: Shape,
        token: u64,
    ) -> Result<Keys, RegisterError> {
        let (ring, extent) = shape.extent()?;
        let entry = &mut self.entries[index as usize];
        let generation = entry.generation + 1;
        *entry = Entry {
            token,
            extent,
            domain,
            rkey: key(self.secret, index, generation),
            ring,
            live: true,
            generation,
        };
        Ok(Keys {
            local: LocalKey(index | (u32::from(generation) << INDEX_BITS)),
            remote: RemoteKey(entry.rkey),
        })
    }

    /// Registers memory again, under the key that it had before this side started anew. `None`: the key or
    /// the size is not to be had.
    pub fn restore(
        &mut self,
        domain: DomainId,
        shape: Shape,
        token: u64,
        remote: RemoteKey,
    ) -> Option<Keys> {
        let wanted = remote.0 & INDEX_MASK;
        // Entries below that are not restored are free.
        let mut index = u32::try_from(self.entries.len()).ok()?;
        while index <= wanted {
            self.entries.push(Entry::unused(domain));
            self.free.push(index);
            index += 1;
        }
        let place = self.free.iter().position(|free| *free == wanted)?;
        self.free.swap_remove(place);
        match self.register_at(wanted, domain, shape, token) {
            Ok(keys) => {
                self.entries[wanted as usize].rkey = remote.0;
                Some(Keys { remote, ..keys })
            }
            Err(_) => {
                self.free.push(wanted);
                None
            }
        }
    }

    /// Revokes a region: its key is worth nothing from now on. False: it was not registered.
    pub fn revoke(&mut self, key: LocalKey) -> bool {
        let index = key.0 & INDEX_MASK;
        match self.entries.get_mut(index as usize) {
            Some(entry) if entry.live && u32::from(entry.generation) == key.0 >> INDEX_BITS => {
                entry.live = false;
                // An entry whose keys are all used up is not used again: no key is ever valid twice.
                if entry.generation < u16::MAX {
                    self.free.push(index);
                }
                true
            }
            _ => false,
        }
    }

    /// Where `length` bytes at `offset` belong, if the key allows them.
    ///
    /// # Errors
    /// [`AccessError`], which is counted.
    #[inline]
    pub fn look_up(
        &mut self,
        domain: DomainId,
        remote: RemoteKey,
        offset: u64,
        length: u64,
    ) -> Result<Place, AccessError> {
        let index = remote.0 & INDEX_MASK;
        let entry = match self.entries.get(index as usize) {
            Some(entry) if entry.rkey == remote.0 && entry.live => entry,
            entry => {
                let error = unknown(entry, self.secret, remote);
                return Err(self.refuse(error));
            }
        };
        if entry.domain != domain {
            return Err(self.refuse(AccessError::Domain));
        }
        let Some(end) = offset.checked_add(length) else {
            return Err(self.refuse(AccessError::Range));
        };
        let place = if entry.ring {
            let size = entry.extent + 1;
            if length > size {
                return Err(self.refuse(AccessError::Range));
            }
            let start = offset & entry.extent;
            let first = length.min(size - start);
            Place {
                token: entry.token,
                start,
                length: first,
                wrapped: length - first,
            }
        } else {
            if end > entry.extent {
                return Err(self.refuse(AccessError::Range));
            }
            Place {
                token: entry.token,
                start: offset,
                length,
                wrapped: 0,
            }
        };
        self.counters.granted += 1;
        Ok(place)
    }

    /// What was counted.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    #[cold]
    fn refuse(&mut self, error: AccessError) -> AccessError {
        *match error {
            AccessError::Forged => &mut self.counters.forged,
            AccessError::Stale => &mut self.counters.stale,
            AccessError::Domain => &mut self.counters.domain,
            AccessError::Range => &mut self.counters.range,
        } += 1;
        error
    }
}

/// Whether a key that is not valid ever was.
#[cold]
fn unknown(entry: Option<&Entry>, secret: u64, remote: RemoteKey) -> AccessError {
    let Some(entry) = entry else {
        return AccessError::Forged;
    };
    let (start, step) = sequence(secret, remote.0 & INDEX_MASK);
    // The step is odd, so it has an inverse; each round of Newton's method doubles its correct bits.
    let mut inverse = step;
    for _ in 0..4 {
        inverse = inverse.wrapping_mul(2u16.wrapping_sub(step.wrapping_mul(inverse)));
    }
    let [high, low, ..] = remote.0.to_be_bytes();
    let upper = u16::from_be_bytes([high, low]);
    let generation = upper.wrapping_sub(start).wrapping_mul(inverse);
    if (1..=entry.generation).contains(&generation) {
        AccessError::Stale
    } else {
        AccessError::Forged
    }
}

/// The remote key of an entry's `generation`: the entry, and 16 bits that go through all values, from a
/// start and by an odd step that only this side knows.
fn key(secret: u64, index: u32, generation: u16) -> u32 {
    let (start, step) = sequence(secret, index);
    let upper = start.wrapping_add(generation.wrapping_mul(step));
    index | (u32::from(upper) << INDEX_BITS)
}

fn sequence(secret: u64, index: u32) -> (u16, u16) {
    let mut mixed = (secret ^ u64::from(index)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let [m0, m1, m2, m3, ..] = mixed.to_be_bytes();
    (
        u16::from_be_bytes([m0, m1]),
        u16::from_be_bytes([m2, m3]) | 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: DomainId = DomainId(3);

    #[test]
    fn answers_for_what_is_registered() {
        let mut regions = Regions::new(77);
        let ring = regions.register(DOMAIN, Shape::Ring(4096), 5).unwrap();
        let flat = regions.register(DOMAIN, Shape::Flat(100), 6).unwrap();
        assert_eq!(
            regions.look_up(DOMAIN, ring.remote, 4096 * 9 + 4000, 200),
            Ok(Place {
                token: 5,
                start: 4000,
                length: 96,
                wrapped: 104
            })
        );
        assert_eq!(
            regions.look_up(DOMAIN, flat.remote, 90, 10),
            Ok(Place {
                token: 6,
                start: 90,
                length: 10,
                wrapped: 0
            })
        );
        let refused = |regions: &mut Regions, key, offset, length| {
            regions.look_up(DOMAIN, key, offset, length).unwrap_err()
        };
        let range = AccessError::Range;
        assert_eq!(refused(&mut regions, ring.remote, 0, 4097), range);
        assert_eq!(refused(&mut regions, ring.remote, u64::MAX, 2), range);
        assert_eq!(refused(&mut regions, flat.remote, 91, 10), range);
        assert_eq!(
            regions.look_up(DomainId(4), ring.remote, 0, 1),
            Err(AccessError::Domain)
        );
        let counters = regions.counters();
        assert_eq!(
            (counters.granted, counters.range, counters.domain),
            (2, 3, 1)
        );
    }

    #[test]
    fn a_revoked_key_is_worth_nothing_at_once() {
        let mut regions = Regions::new(1);
        let mut old: Vec<Keys> = Vec::new();
        for round in 0..200 {
            let keys = regions.register(DOMAIN, Shape::Ring(64), round).unwrap();
            assert!(regions.look_up(DOMAIN, keys.remote, 0, 64).is_ok());
            for stale in &old {
                assert_eq!(
                    regions.look_up(DOMAIN, stale.remote, 0, 1),
                    Err(AccessError::Stale)
                );
                assert!(!regions.revoke(stale.local));
            }
            assert!(regions.revoke(keys.local));
            assert_eq!(
                regions.look_up(DOMAIN, keys.remote, 0, 1),
                Err(AccessError::Stale)
            );
            old.push(keys);
        }
        assert!(regions.counters().stale > 200);
    }

    #[test]
    fn a_restored_key_is_good_again_and_no_other_is_given_its_place() {
        let mut old = Regions::new(1);
        let keys: Vec<_> = (0..4)
            .map(|token| old.register(DOMAIN, Shape::Ring(64), token).unwrap().remote)
            .collect();
        let mut new = Regions::new(2);
        let ring = Shape::Ring(64);
        let third = new.restore(DOMAIN, ring, 2, keys[2]).unwrap();
        assert_eq!(new.restore(DOMAIN, ring, 2, keys[2]), None, "taken");
        new.restore(DOMAIN, ring, 0, keys[0]).unwrap();
        assert_eq!(new.look_up(DOMAIN, keys[2], 70, 2).unwrap().token, 2);
        assert!(new.look_up(DOMAIN, keys[1], 0, 1).is_err());
        // Others fill the gap, and go on behind it.
        for (token, index) in [(7, 1), (8, 3)] {
            let fresh = new.register(DOMAIN, ring, token).unwrap();
            assert_eq!(fresh.remote.0 & INDEX_MASK, index);
            assert_eq!(
                new.look_up(DOMAIN, fresh.remote, 0, 1).unwrap().token,
                token
            );
        }
        assert!(new.revoke(third.local));
        assert!(new.look_up(DOMAIN, keys[2], 0, 1).is_err());
        assert_eq!(new.restore(DOMAIN, Shape::Ring(3), 0, keys[2]), None);
    }

    #[test]
    fn a_guess_is_forged() {
        let mut regions = Regions::new(0x1234_5678_9abc_def0);
        let keys = regions.register(DOMAIN, Shape::Flat(8), 0).unwrap();
        let mut good = 0;
        for upper in 0..=u32::from(u16::MAX) {
            match regions.look_up(DOMAIN, RemoteKey(upper << 16), 0, 8) {
                Ok(_) => good += 1,
                Err(error) => assert_eq!(error, AccessError::Forged),
            }
        }
        assert_eq!(good, 1);
        assert_eq!(regions.counters().forged, 65_535);
        assert_eq!(
            regions.look_up(DOMAIN, RemoteKey(keys.remote.0 + 1), 0, 8),
            Err(AccessError::Forged)
        );
    }

    #[test]
    fn sizes_and_their_number_are_checked() {
        let mut regions = Regions::new(0);
        for shape in [Shape::Ring(0), Shape::Ring(3), Shape::Flat(0)] {
            assert_eq!(regions.register(DOMAIN, shape, 0), Err(RegisterError::Size));
        }
        for token in 0..Regions::MAX as u64 {
            regions.register(DOMAIN, Shape::Flat(1), token).unwrap();
        }
        assert_eq!(
            regions.register(DOMAIN, Shape::Flat(1), 0),
            Err(RegisterError::Full)
        );
    }
}
