//! Bytes that are known by their position, and chunk sizes that are known by a seed.

/// Length of the repeated block: prime, so that it never falls into step with buffers.
const BLOCK: usize = 1_048_573;

/// Largest chunk.
pub(crate) const SIZE_MAX: usize = 200_000;

/// A stream of pseudo-random bytes in which every position is known.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    /// The stream of this seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed | 1);
        let mut bytes = Vec::with_capacity(BLOCK + SIZE_MAX + 8);
        while bytes.len() < BLOCK {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(BLOCK);
        // What a chunk needs beyond the end of the block.
        bytes.extend_from_within(..SIZE_MAX);
        Self(bytes)
    }

    /// `len` bytes from `position`, `len` at most [`SIZE_MAX`].
    pub(crate) fn at(&self, position: usize, len: usize) -> &[u8] {
        let start = position % BLOCK;
        self.0.get(start..start + len).unwrap_or_default()
    }

    /// The first `len` bytes, `len` at most the block.
    pub(crate) fn first(&self, len: usize) -> &[u8] {
        self.0.get(..len).unwrap_or_default()
    }
}

/// Chunk sizes: many small ones, some large.
#[derive(Debug)]
pub(crate) struct Sizes(Random);

impl Sizes {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    pub(crate) fn next_size(&mut self) -> usize {
        let random = self.0.next();
        let limit = match random % 8 {
            0 => 16,
            1 | 2 => 2_000,
            3..=5 => 40_000,
            _ => SIZE_MAX,
        };
        1 + usize::try_from(random >> 16).unwrap_or(0) % limit
    }
}

/// xorshift64*.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
