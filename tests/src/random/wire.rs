//! Bytes that are known by their position, and lines between a play and its agents.

use super::operation::Side;
use crate::sys;

/// Most bytes that one call of a longer transfer moves.
pub(super) const CHUNK: usize = 40_000;

/// What buffers hold before a receive; the streams never do.
pub(super) const UNTOUCHED: u8 = 0xff;

/// `len` bytes of the stream that `from` sends, from `position`.
pub(super) fn bytes(from: Side, position: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    let mut word = position / 8;
    let skip = usize::try_from(position % 8).unwrap_or(0);
    while out.len() < len + skip {
        out.extend_from_slice(&word_at(from, word).to_le_bytes());
        word += 1;
    }
    out.drain(..skip);
    out.truncate(len);
    out
}

/// Eight bytes of a stream, none of them [`UNTOUCHED`].
const fn word_at(from: Side, word: u64) -> u64 {
    let seed = match from {
        Side::A => 0x9e37_79b9_7f4a_7c15,
        Side::B => 0xc2b2_ae3d_27d4_eb4f,
    };
    let mixed = (word ^ word >> 7).wrapping_add(1).wrapping_mul(seed);
    (mixed ^ mixed >> 29) & 0x7f7f_7f7f_7f7f_7f7f
}

/// What is wrong with a fresh buffer into which `got` bytes were received (or by which they were thrown
/// away): empty if nothing is.
pub(super) fn verdict(
    from: Side,
    position: u64,
    buffer: &[u8],
    got: u64,
    thrown_away: bool,
) -> &'static str {
    let got = usize::try_from(got).unwrap_or(usize::MAX).min(buffer.len());
    let (received, rest) = buffer.split_at(if thrown_away { 0 } else { got });
    if received != bytes(from, position, received.len()) {
        return " WRONG BYTES";
    }
    if rest.iter().any(|byte| *byte != UNTOUCHED) {
        return " WROTE BEHIND";
    }
    ""
}

/// A line from the descriptor; `None` at its end.
pub(super) fn read_line(fd: i32) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match sys::read(fd, &mut byte) {
            Ok(1) if byte == *b"\n" => return String::from_utf8(line).ok(),
            Ok(1) => line.push(byte[0]),
            Err(libc::EINTR) => {}
            _ => return None,
        }
    }
}
