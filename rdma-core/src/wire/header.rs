//! The header of every frame.

use super::{HEADER_BYTES, ParseError, WIRE_VERSION};

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A backend introduces itself or answers ([`super::Hello`]).
    Hello = 1,
    /// Operations.
    Data = 2,
    /// The session of a DATA frame is unknown here; it is repeated in the header.
    Reset = 3,
    /// A backend tells its Ethernet segment whom it serves ([`super::Announce`]).
    Announce = 4,
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// The body is encrypted and a tag follows it.
    pub const SEALED: u8 = 1;
    /// Which of two successive keys sealed the frame.
    pub const KEY_PHASE: u8 = 2;
    /// The sender waits for an acknowledgement: send one now.
    pub const ACK_NOW: u8 = 4;
    /// All that may be set.
    pub const KNOWN: u8 = SEALED | KEY_PHASE | ACK_NOW;
}

/// In front of every frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Bits of [`flag`].
    pub flags: u8,
    /// DATA, RESET: the session number that the receiver of the DATA chose in its HELLO. Else 0.
    pub session: u32,
    /// DATA: number of the frame, never used twice in a session. Else 0.
    pub number: u64,
}

impl Header {
    /// Reads the header and gives what follows it.
    ///
    /// # Errors
    /// [`ParseError`]
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), ParseError> {
        let Some((head, body)) = frame.split_first_chunk::<HEADER_BYTES>() else {
            return Err(ParseError::Short(frame.len()));
        };
        let [version, kind, flags, _, rest @ ..] = *head;
        let [s0, s1, s2, s3, number @ ..] = rest;
        if version != WIRE_VERSION {
            return Err(ParseError::Version(version));
        }
        let kind = match kind {
            1 => Kind::Hello,
            2 => Kind::Data,
            3 => Kind::Reset,
            4 => Kind::Announce,
            unknown => return Err(ParseError::Kind(unknown)),
        };
        if flags & !flag::KNOWN != 0 {
            return Err(ParseError::Field("flags"));
        }
        let header = Self {
            kind,
            flags,
            session: u32::from_be_bytes([s0, s1, s2, s3]),
            number: u64::from_be_bytes(number),
        };
        if header.number > Self::NUMBER_MAX {
            return Err(ParseError::Field("number"));
        }
        Ok((header, body))
    }

    /// Largest number: more than any link ever sends, and sums of two still fit.
    pub const NUMBER_MAX: u64 = (1 << 62) - 1;

    /// The header as it goes on the wire.
    #[inline]
    pub fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = WIRE_VERSION;
        out[1] = self.kind as u8;
        out[2] = self.flags;
        out[4..8].copy_from_slice(&self.session.to_be_bytes());
        out[8..16].copy_from_slice(&self.number.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stands_where_the_protocol_says() {
        let header = Header {
            kind: Kind::Data,
            flags: flag::SEALED | flag::ACK_NOW,
            session: 0x0102_0304,
            number: 0x1112_1314_1516_1718,
        };
        let bytes = header.emit();
        assert_eq!(
            bytes,
            [
                1, 2, 5, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18
            ]
        );
        assert_eq!(Header::parse(&bytes), Ok((header, &[][..])));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(Header::parse(&[1; 15]), Err(ParseError::Short(15)));
        let good = Header {
            kind: Kind::Reset,
            flags: 0,
            session: 9,
            number: 0,
        }
        .emit();
        let with = |at: usize, value| {
            let mut bytes = good;
            bytes[at] = value;
            Header::parse(&bytes).map(|(header, _)| header)
        };
        assert_eq!(with(0, 2), Err(ParseError::Version(2)));
        assert_eq!(with(1, 9), Err(ParseError::Kind(9)));
        assert_eq!(with(2, 8), Err(ParseError::Field("flags")));
        assert_eq!(with(8, 0x40), Err(ParseError::Field("number")));
        assert_eq!(with(3, 77).map(|header| header.session), Ok(9), "reserved");
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not(bytes: [u8; 20]) {
            if let Ok((header, rest)) = Header::parse(&bytes) {
                prop_assert_eq!(rest.len(), 4);
                let again = header.emit();
                prop_assert_eq!(Header::parse(&again), Ok((header, &[][..])));
            }
        }
    }
}
