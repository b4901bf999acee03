//! Random numbers that are the same for the same seed, everywhere and for ever.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers from `seed` on.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to, and without, `end`; 0 if that is 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        let number = self.next();
        if end == 0 { 0 } else { number % end }
    }

    /// As [`Random::below`], of the same magnitude as `end` or any smaller one.
    pub const fn up_to(&mut self, end: u64) -> u64 {
        let bits = u64::BITS - end.leading_zeros();
        let shift = self.below(bits as u64 + 1);
        self.below((end >> shift) + 1)
    }

    /// True so often in a thousand.
    pub const fn per_mille(&mut self, share: u64) -> bool {
        self.below(1000) < share
    }

    /// True once in so often.
    pub const fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

/// Eight bytes of the stream that is named by `salt`.
const fn word_at(salt: u64, word: u64) -> [u8; 8] {
    let mixed = word.wrapping_add(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).to_le_bytes()
}

/// Bytes `from..from + len` of the stream that is named by `salt`.
pub fn stream(salt: u64, from: u64, len: usize) -> Vec<u8> {
    let to = from + len as u64;
    let mut bytes = Vec::with_capacity(len + 16);
    for word in from / 8..to.div_ceil(8) {
        bytes.extend_from_slice(&word_at(salt, word));
    }
    bytes.drain(..usize::try_from(from % 8).unwrap_or(0));
    bytes.truncate(len);
    bytes
}
