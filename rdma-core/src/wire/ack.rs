//! ACK: which frames have arrived.

use super::operation::{KIND_ACK, put_operation};
use super::{ACK_RANGES_MAX, ParseError};

/// Bytes in front of the ranges: largest, delay, count, reserved.
const FIXED_BYTES: usize = 16;

/// A parsed acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack<'a> {
    /// Largest number that has arrived.
    pub largest: u64,
    /// How long ago that was when the acknowledgement was written, in microseconds.
    pub delay_us: u32,
    /// What has arrived, from the largest down.
    pub ranges: AckRanges<'a>,
}

/// Pairs of (gap, length): so many numbers are missing, then so many have arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AckRanges<'a> {
    largest: u64,
    pairs: &'a [[u8; 8]],
}

impl<'a> Ack<'a> {
    /// Reads the body of an ACK.
    ///
    /// # Errors
    /// [`ParseError`]
    pub fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let short = ParseError::Short(body.len());
        let (fixed, rest) = body.split_first_chunk::<FIXED_BYTES>().ok_or(short)?;
        let [l0, l1, l2, l3, l4, l5, l6, l7, d0, d1, d2, d3, c0, c1, _, _] = *fixed;
        let largest = u64::from_be_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let count = usize::from(u16::from_be_bytes([c0, c1]));
        if count == 0 || count > ACK_RANGES_MAX {
            return Err(ParseError::Field("ranges"));
        }
        let (pairs, odd) = rest.as_chunks::<8>();
        if pairs.len() != count || !odd.is_empty() {
            return Err(ParseError::Field("ranges"));
        }
        let mut left = largest.checked_add(1).ok_or(ParseError::Field("largest"))?;
        for (index, pair) in pairs.iter().enumerate() {
            let (gap, length) = split(pair);
            if (gap == 0) != (index == 0) {
                return Err(ParseError::Field("gap"));
            }
            left = left
                .checked_sub(gap)
                .and_then(|left| left.checked_sub(length))
                .filter(|_| length > 0)
                .ok_or(ParseError::Field("length"))?;
        }
        Ok(Self {
            largest,
            delay_us: u32::from_be_bytes([d0, d1, d2, d3]),
            ranges: AckRanges { largest, pairs },
        })
    }
}

impl AckRanges<'_> {
    /// First and last number of each range, from the largest down.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = (u64, u64)> {
        let mut left = self.largest.wrapping_add(1);
        self.pairs.iter().map(move |pair| {
            let (gap, length) = split(pair);
            // The parser has shown that neither goes below zero.
            let end = left.wrapping_sub(gap);
            left = end.wrapping_sub(length);
            (left, end.wrapping_sub(1))
        })
    }
}

/// Appends an ACK of `ranges` (first and last number, from the largest down, apart from each other).
/// Of too many ranges the smallest are left out; of none, nothing is written.
pub fn emit_ack(delay_us: u32, ranges: impl Iterator<Item = (u64, u64)>, out: &mut Vec<u8>) {
    let start = out.len();
    put_operation(KIND_ACK, 0, out);
    out.extend_from_slice(&[0; FIXED_BYTES]);
    let (mut count, mut largest, mut before) = (0u16, 0, None);
    for (first, last) in ranges.take(ACK_RANGES_MAX) {
        let gap = match before {
            None => {
                largest = last;
                0
            }
            Some(before) => u64::wrapping_sub(before, last).wrapping_sub(1),
        };
        // What lies further back than fits is no news to anybody.
        let Ok(gap) = u32::try_from(gap) else { break };
        let length = u32::try_from(last - first + 1).unwrap_or(u32::MAX);
        out.extend_from_slice(&gap.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        count += 1;
        before = Some(first);
        if u64::from(length) != last - first + 1 {
            break;
        }
    }
    if count == 0 {
        out.truncate(start);
        return;
    }
    let length = u16::try_from(FIXED_BYTES).unwrap_or(0) + count * 8;
    out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    let fixed = &mut out[start + 4..start + 4 + FIXED_BYTES];
    fixed[..8].copy_from_slice(&largest.to_be_bytes());
    fixed[8..12].copy_from_slice(&delay_us.to_be_bytes());
    fixed[12..14].copy_from_slice(&count.to_be_bytes());
}

fn split(pair: &[u8; 8]) -> (u64, u64) {
    let [g0, g1, g2, g3, l0, l1, l2, l3] = *pair;
    (
        u64::from(u32::from_be_bytes([g0, g1, g2, g3])),
        u64::from(u32::from_be_bytes([l0, l1, l2, l3])),
    )
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn emitted(delay: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        emit_ack(delay, ranges.iter().copied(), &mut out);
        out
    }

    #[test]
    fn stands_where_the_protocol_says() {
        let bytes = emitted(0x0a0b_0c0d, &[(9, 10), (0, 4)]);
        assert_eq!(
            bytes,
            [
                1, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 10, 10, 11, 12, 13, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 2, 0, 0, 0, 4, 0, 0, 0, 5
            ]
        );
        let ack = Ack::parse(&bytes[4..]).unwrap();
        assert_eq!((ack.largest, ack.delay_us), (10, 0x0a0b_0c0d));
        assert_eq!(ack.ranges.iter().collect::<Vec<_>>(), [(9, 10), (0, 4)]);
    }

    #[test]
    fn nothing_is_not_written_and_too_much_is_cut() {
        assert!(emitted(0, &[]).is_empty());
        let many: Vec<(u64, u64)> = (0..100).rev().map(|n| (n * 3, n * 3)).collect();
        let bytes = emitted(0, &many);
        let ack = Ack::parse(&bytes[4..]).unwrap();
        assert_eq!(ack.ranges.iter().collect::<Vec<_>>(), &many[..64]);
        let huge = emitted(0, &[(1 << 40, 1 << 41), (3, 5)]);
        let ack = Ack::parse(&huge[4..]).unwrap();
        assert_eq!(
            ack.ranges.iter().collect::<Vec<_>>(),
            [((1 << 41) + 1 - u64::from(u32::MAX), 1 << 41)]
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            start: u32,
            delay: u32,
            steps in vec((1u64..1000, 0u64..1000), 1..64)
        ) {
            let mut next = u64::from(start);
            let mut ranges: Vec<(u64, u64)> = steps
                .iter()
                .map(|(gap, more)| {
                    let first = next + gap;
                    next = first + more + 1;
                    (first, first + more)
                })
                .collect();
            ranges.reverse();
            let bytes = emitted(delay, &ranges);
            let ack = Ack::parse(&bytes[4..]).unwrap();
            prop_assert_eq!(ack.delay_us, delay);
            prop_assert_eq!(ack.largest, ranges[0].1);
            prop_assert_eq!(ack.ranges.iter().collect::<Vec<_>>(), ranges);
        }

        #[test]
        fn any_bytes_parse_or_not(mut bytes in vec(any::<u8>(), 0..80), count in 0u8..9) {
            if bytes.len() >= 16 {
                bytes[12..14].copy_from_slice(&[0, count]);
            }
            if let Ok(ack) = Ack::parse(&bytes) {
                let ranges: Vec<_> = ack.ranges.iter().collect();
                prop_assert_eq!(ranges[0].1, ack.largest);
                for pair in ranges.windows(2) {
                    prop_assert!(pair[1].0 <= pair[1].1 && pair[1].1 + 1 < pair[0].0);
                }
            }
        }
    }
}
