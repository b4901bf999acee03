//! HELLO: two backends find that they speak the same protocol, and agree on a session.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FRAME_MAX, HEADER_BYTES, HELLO_BYTES, Header, Kind, ParseError};

/// The authentication tag at the end of a HELLO; zero without a key.
pub type HelloTag = [u8; 16];

/// What a backend says of itself, and what it has heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The sender's session number, not 0: what DATA frames to it must carry.
    pub session: u32,
    /// The receiver's session number as the sender knows it, or 0.
    pub echo: u32,
    /// The sender's identity, the same over restarts of its host.
    pub backend: [u8; 16],
    /// Differs between two runs of the sender.
    pub epoch: u64,
    /// What the sender can do; both use what both can.
    pub capabilities: u32,
    /// Longest frame that the sender can receive.
    pub max_frame: u32,
    /// After this long without an answer the sender gives the link up, in milliseconds.
    pub idle_timeout_ms: u32,
    /// Bytes of frames that the sender can take at once, before its driver would lose some.
    pub window: u32,
    /// An answer is not answered.
    pub answer: bool,
    /// The sender has a session with somebody on this link.
    pub live: bool,
    /// Random, new with every session number.
    pub nonce: [u8; 16],
    /// The receiver's nonce as the sender knows it, or zeros.
    pub echo_nonce: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    session: U32,
    echo: U32,
    backend: [u8; 16],
    epoch: U64,
    capabilities: U32,
    max_frame: U32,
    idle_timeout_ms: U32,
    window: U32,
    flags: U32,
    reserved: U32,
    nonce: [u8; 16],
    echo_nonce: [u8; 16],
    tag: HelloTag,
}

const _: () = assert!(size_of::<Raw>() + HEADER_BYTES == HELLO_BYTES);

/// Bits of `flags`.
const ANSWER: u32 = 1;
const LIVE: u32 = 2;

impl Hello {
    /// Reads what follows the header of a HELLO; what a driver added behind it is ignored.
    ///
    /// # Errors
    /// [`ParseError`]
    pub fn parse(body: &[u8]) -> Result<(Self, HelloTag), ParseError> {
        let (raw, _) = Raw::read_from_prefix(body).map_err(|_| ParseError::Short(body.len()))?;
        let flags = raw.flags.get();
        if flags & !(ANSWER | LIVE) != 0 {
            return Err(ParseError::Field("flags"));
        }
        let hello = Self {
            session: raw.session.get(),
            echo: raw.echo.get(),
            backend: raw.backend,
            epoch: raw.epoch.get(),
            capabilities: raw.capabilities.get(),
            max_frame: raw.max_frame.get(),
            idle_timeout_ms: raw.idle_timeout_ms.get(),
            window: raw.window.get(),
            answer: flags & ANSWER != 0,
            live: flags & LIVE != 0,
            nonce: raw.nonce,
            echo_nonce: raw.echo_nonce,
        };
        if hello.session == 0 {
            return Err(ParseError::Field("session"));
        }
        if !(Self::MAX_FRAME_LEAST..=FRAME_MAX).contains(&(hello.max_frame as usize)) {
            return Err(ParseError::Field("max_frame"));
        }
        if hello.idle_timeout_ms == 0 {
            return Err(ParseError::Field("idle_timeout_ms"));
        }
        if (hello.window as usize) < Self::MAX_FRAME_LEAST {
            return Err(ParseError::Field("window"));
        }
        Ok((hello, raw.tag))
    }

    /// The whole frame, header included, with a tag of zeros in its last 16 bytes.
    pub fn emit(&self) -> [u8; HELLO_BYTES] {
        let header = Header {
            kind: Kind::Hello,
            flags: 0,
            session: 0,
            number: 0,
        };
        let raw = Raw {
            session: self.session.into(),
            echo: self.echo.into(),
            backend: self.backend,
            epoch: self.epoch.into(),
            capabilities: self.capabilities.into(),
            max_frame: self.max_frame.into(),
            idle_timeout_ms: self.idle_timeout_ms.into(),
            window: self.window.into(),
            flags: (if self.answer { ANSWER } else { 0 } | if self.live { LIVE } else { 0 }).into(),
            reserved: 0.into(),
            nonce: self.nonce,
            echo_nonce: self.echo_nonce,
            tag: [0; 16],
        };
        let mut out = [0; HELLO_BYTES];
        out[..HEADER_BYTES].copy_from_slice(&header.emit());
        out[HEADER_BYTES..].copy_from_slice(raw.as_bytes());
        out
    }

    /// Least `max_frame` and `window`: every path carries it, and a control message fits with an
    /// acknowledgement.
    pub const MAX_FRAME_LEAST: usize = 1200;
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn hello() -> impl Strategy<Value = Hello> {
        (
            (
                1..u32::MAX,
                any::<u32>(),
                any::<[u8; 16]>(),
                any::<u64>(),
                any::<u32>(),
            ),
            (
                1200..65_507u32,
                1..u32::MAX,
                1200..u32::MAX,
                any::<[bool; 2]>(),
                any::<[u8; 16]>(),
            ),
            any::<[u8; 16]>(),
        )
            .prop_map(|(a, b, echo_nonce)| Hello {
                session: a.0,
                echo: a.1,
                backend: a.2,
                epoch: a.3,
                capabilities: a.4,
                max_frame: b.0,
                idle_timeout_ms: b.1,
                window: b.2,
                answer: b.3[0],
                live: b.3[1],
                nonce: b.4,
                echo_nonce,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(hello in hello()) {
            let frame = hello.emit();
            let (header, body) = Header::parse(&frame).unwrap();
            prop_assert_eq!(header.kind, Kind::Hello);
            prop_assert_eq!(Hello::parse(body), Ok((hello, [0; 16])));
        }

        #[test]
        fn any_bytes_parse_or_not(bytes in vec(any::<u8>(), 0..140)) {
            if let Ok((hello, _)) = Hello::parse(&bytes) {
                let frame = hello.emit();
                prop_assert_eq!(Hello::parse(&frame[HEADER_BYTES..]), Ok((hello, [0; 16])));
            } else if bytes.len() < HELLO_BYTES - HEADER_BYTES {
                prop_assert_eq!(Hello::parse(&bytes), Err(ParseError::Short(bytes.len())));
            }
        }
    }

    #[test]
    fn ranges_are_checked() {
        let good = Hello {
            session: 1,
            echo: 0,
            backend: [1; 16],
            epoch: 1,
            capabilities: 0,
            max_frame: 1500,
            idle_timeout_ms: 1000,
            window: 100_000,
            answer: false,
            live: false,
            nonce: [0; 16],
            echo_nonce: [0; 16],
        };
        let parsed = |hello: Hello| Hello::parse(&hello.emit()[HEADER_BYTES..]).map(|_| ());
        assert_eq!(parsed(good), Ok(()));
        for (hello, field) in [
            (Hello { session: 0, ..good }, "session"),
            (
                Hello {
                    max_frame: 1199,
                    ..good
                },
                "max_frame",
            ),
            (
                Hello {
                    max_frame: 65_508,
                    ..good
                },
                "max_frame",
            ),
            (
                Hello {
                    idle_timeout_ms: 0,
                    ..good
                },
                "idle_timeout_ms",
            ),
            (
                Hello {
                    window: 1199,
                    ..good
                },
                "window",
            ),
        ] {
            assert_eq!(parsed(hello), Err(ParseError::Field(field)));
        }
    }
}
