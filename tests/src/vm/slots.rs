//! Where in a region the program `guest` and its tests write what.

/// Members that may ask, the host included.
pub const MEMBERS: u16 = 8;

/// The question that ends the echo.
pub const END: u64 = u64::MAX;

/// The word that everybody adds to.
pub const ADDED: usize = 1 << 19;

/// Of the question of a member by a vector.
pub const fn question(member: u16, vector: u16) -> usize {
    (vector as usize * MEMBERS as usize + member as usize) * 64
}

/// Of the answer to it.
pub const fn answer(member: u16, vector: u16) -> usize {
    question(member, vector) + 8
}
