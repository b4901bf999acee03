//! The operations in a DATA frame.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Ack, CONTROL_BYTES_MAX, OPERATION_BYTES, ParseError};
/// What the program at one end has said so far; a link only carries it.
pub use crate::mirror::Snapshot as State;

/// Numbers of the operations.
pub mod kind {
    /// The rest of the frame is nothing.
    pub const PAD: u8 = 0;
    /// See [`super::Ack`].
    pub const ACK: u8 = 1;
    /// Asks for an acknowledgement.
    pub const PING: u8 = 2;
    /// Asks whether a frame of this size arrives.
    pub const PROBE: u8 = 3;
    /// See [`super::Write`].
    pub const WRITE: u8 = 4;
    /// See [`super::StateUpdate`].
    pub const STATE: u8 = 5;
    /// See [`super::Consumed`].
    pub const CONSUMED: u8 = 6;
    /// See [`super::Control`].
    pub const CONTROL: u8 = 7;
    /// The link ends.
    pub const CLOSE: u8 = 8;
}
pub(super) use kind::ACK as KIND_ACK;

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation<'a> {
    /// What has arrived.
    Ack(Ack<'a>),
    /// Nothing but the wish for an acknowledgement.
    Ping,
    /// A frame of this size; padding follows.
    Probe,
    /// Bytes of a stream.
    Write(Write<'a>),
    /// What the program at one end says.
    State(StateUpdate),
    /// How far the program at one end has read.
    Consumed(Consumed),
    /// A message of the control channel.
    Control(Control<'a>),
    /// The link ends, and why.
    Close(u32),
}

/// WRITE: bytes to their place in the receiver's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write<'a> {
    /// The receiver's endpoint.
    pub endpoint: u32,
    /// The key of its memory.
    pub rkey: u32,
    /// Offset of the first byte in the stream.
    pub offset: u64,
    /// At least one byte; the offset behind the last one fits an u64.
    pub payload: &'a [u8],
}

/// STATE: the newest replaces the older ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateUpdate {
    /// The receiver's endpoint.
    pub endpoint: u32,
    /// The key of its memory: endpoints are numbered anew, keys are not.
    pub rkey: u32,
    /// Grows with every state of this endpoint in this session.
    pub sequence: u32,
    /// What is said.
    pub state: State,
}

/// CONSUMED: the largest wins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consumed {
    /// The receiver's endpoint.
    pub endpoint: u32,
    /// The key of its memory.
    pub rkey: u32,
    /// The far program has read the receiver's bytes up to here.
    pub head: u64,
}

/// CONTROL: reliable and in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Control<'a> {
    /// 0, 1, 2 and so on in each session.
    pub sequence: u32,
    /// At most [`CONTROL_BYTES_MAX`].
    pub message: &'a [u8],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawWrite {
    endpoint: U32,
    rkey: U32,
    offset: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawState {
    endpoint: U32,
    rkey: U32,
    sequence: U32,
    flags: U32,
    reason: U32,
    switch_at: U64,
    end_at: U64,
    left_at: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawConsumed {
    endpoint: U32,
    rkey: U32,
    head: U64,
}

/// The operations of a frame, one after the other. The first error ends it.
#[derive(Clone, Copy, Debug)]
pub struct Operations<'a> {
    rest: &'a [u8],
}

impl<'a> Operations<'a> {
    /// Of what follows the header (and has been opened, if it was sealed).
    #[inline]
    pub const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Whether all of them parse.
    ///
    /// # Errors
    /// The first [`ParseError`].
    #[inline]
    pub fn check(self) -> Result<(), ParseError> {
        for operation in self {
            operation?;
        }
        Ok(())
    }
}

impl<'a> Iterator for Operations<'a> {
    type Item = Result<Operation<'a>, ParseError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (&first, _) = self.rest.split_first()?;
        if first == kind::PAD {
            self.rest = &[];
            return None;
        }
        let rest = core::mem::take(&mut self.rest);
        let Some(([kind, _, l0, l1], rest)) = rest.split_first_chunk::<OPERATION_BYTES>() else {
            return Some(Err(ParseError::Short(rest.len())));
        };
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let Some((body, rest)) = rest.split_at_checked(length) else {
            return Some(Err(ParseError::Short(rest.len())));
        };
        let operation = Operation::parse(*kind, body);
        if operation.is_ok() {
            self.rest = rest;
        }
        Some(operation)
    }
}

impl<'a> Operation<'a> {
    #[inline]
    fn parse(kind: u8, body: &'a [u8]) -> Result<Self, ParseError> {
        Ok(match kind {
            kind::WRITE => Self::Write(Write::parse(body)?),
            kind::ACK => Self::Ack(Ack::parse(body)?),
            kind::PING => empty(body, Self::Ping)?,
            kind::PROBE => empty(body, Self::Probe)?,
            kind::STATE => {
                let raw: RawState = whole(body)?;
                Self::State(StateUpdate {
                    endpoint: raw.endpoint.get(),
                    rkey: raw.rkey.get(),
                    sequence: raw.sequence.get(),
                    state: State {
                        flags: raw.flags.get(),
                        reason: raw.reason.get(),
                        switch_at: raw.switch_at.get(),
                        end_at: raw.end_at.get(),
                        left_at: raw.left_at.get(),
                    },
                })
            }
            kind::CONSUMED => {
                let raw: RawConsumed = whole(body)?;
                Self::Consumed(Consumed {
                    endpoint: raw.endpoint.get(),
                    rkey: raw.rkey.get(),
                    head: raw.head.get(),
                })
            }
            kind::CONTROL => {
                let (sequence, message) = body
                    .split_first_chunk::<4>()
                    .ok_or(ParseError::Short(body.len()))?;
                if message.len() > CONTROL_BYTES_MAX {
                    return Err(ParseError::Field("message"));
                }
                Self::Control(Control {
                    sequence: u32::from_be_bytes(*sequence),
                    message,
                })
            }
            kind::CLOSE => Self::Close(whole::<U32>(body)?.get()),
            unknown => return Err(ParseError::Operation(unknown)),
        })
    }

    /// Whether a frame with this operation asks for an acknowledgement.
    #[inline]
    pub const fn asks(&self) -> bool {
        !matches!(self, Self::Ack(_) | Self::Close(_))
    }

    /// Appends the operation.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ack(ack) => super::emit_ack(ack.delay_us, ack.ranges.iter(), out),
            Self::Ping => put_operation(kind::PING, 0, out),
            Self::Probe => put_operation(kind::PROBE, 0, out),
            Self::Write(write) => {
                write.emit_head(write.payload.len(), out);
                out.extend_from_slice(write.payload);
            }
            Self::State(update) => {
                let raw = RawState {
                    endpoint: update.endpoint.into(),
                    rkey: update.rkey.into(),
                    sequence: update.sequence.into(),
                    flags: update.state.flags.into(),
                    reason: update.state.reason.into(),
                    switch_at: update.state.switch_at.into(),
                    end_at: update.state.end_at.into(),
                    left_at: update.state.left_at.into(),
                };
                put_operation(kind::STATE, size_of::<RawState>(), out);
                out.extend_from_slice(raw.as_bytes());
            }
            Self::Consumed(consumed) => {
                let raw = RawConsumed {
                    endpoint: consumed.endpoint.into(),
                    rkey: consumed.rkey.into(),
                    head: consumed.head.into(),
                };
                put_operation(kind::CONSUMED, size_of::<RawConsumed>(), out);
                out.extend_from_slice(raw.as_bytes());
            }
            Self::Control(control) => {
                put_operation(kind::CONTROL, 4 + control.message.len(), out);
                out.extend_from_slice(&control.sequence.to_be_bytes());
                out.extend_from_slice(control.message);
            }
            Self::Close(reason) => {
                put_operation(kind::CLOSE, 4, out);
                out.extend_from_slice(&reason.to_be_bytes());
            }
        }
    }

    /// Bytes of a STATE, a CONSUMED, a PING, a CLOSE with the four in front.
    pub const STATE_BYTES: usize = OPERATION_BYTES + size_of::<RawState>();
    /// See [`Self::STATE_BYTES`].
    pub const CONSUMED_BYTES: usize = OPERATION_BYTES + size_of::<RawConsumed>();
    /// Bytes of a CONTROL in front of its message.
    pub const CONTROL_HEAD_BYTES: usize = OPERATION_BYTES + 4;
}

impl<'a> Write<'a> {
    #[inline]
    fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let (raw, payload) =
            RawWrite::read_from_prefix(body).map_err(|_| ParseError::Short(body.len()))?;
        let offset = raw.offset.get();
        if payload.is_empty() {
            return Err(ParseError::Field("payload"));
        }
        if offset.checked_add(payload.len() as u64).is_none() {
            return Err(ParseError::Field("offset"));
        }
        Ok(Self {
            endpoint: raw.endpoint.get(),
            rkey: raw.rkey.get(),
            offset,
            payload,
        })
    }

    /// Appends all but the payload, of which `length` bytes (1 to 65,000) will follow; the one that
    /// `self` has does not matter.
    #[inline]
    pub fn emit_head(&self, length: usize, out: &mut Vec<u8>) {
        let raw = RawWrite {
            endpoint: self.endpoint.into(),
            rkey: self.rkey.into(),
            offset: self.offset.into(),
        };
        put_operation(kind::WRITE, size_of::<RawWrite>() + length, out);
        out.extend_from_slice(raw.as_bytes());
    }
}

#[inline]
pub(super) fn put_operation(kind: u8, length: usize, out: &mut Vec<u8>) {
    debug_assert!(length <= usize::from(u16::MAX));
    let [l0, l1] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    out.extend_from_slice(&[kind, 0, l0, l1]);
}

fn whole<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<T, ParseError> {
    T::read_from_bytes(body).map_err(|_| {
        if body.len() < size_of::<T>() {
            ParseError::Short(body.len())
        } else {
            ParseError::Field("length")
        }
    })
}

fn empty<'a>(body: &[u8], operation: Operation<'a>) -> Result<Operation<'a>, ParseError> {
    if body.is_empty() {
        Ok(operation)
    } else {
        Err(ParseError::Field("length"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// An operation, owned, so that strategies can make it.
    fn emitted() -> impl Strategy<Value = Vec<u8>> {
        let put = |operation: Operation<'_>| {
            let mut out = Vec::new();
            operation.emit(&mut out);
            out
        };
        prop_oneof![
            Just(put(Operation::Ping)),
            Just(put(Operation::Probe)),
            any::<u32>().prop_map(move |reason| put(Operation::Close(reason))),
            (any::<[u32; 2]>(), any::<u64>()).prop_map(move |([endpoint, rkey], head)| put(
                Operation::Consumed(Consumed {
                    endpoint,
                    rkey,
                    head
                })
            )),
            (any::<[u32; 5]>(), any::<[u64; 3]>()).prop_map(move |(a, b)| put(Operation::State(
                StateUpdate {
                    endpoint: a[0],
                    rkey: a[4],
                    sequence: a[1],
                    state: State {
                        flags: a[2],
                        reason: a[3],
                        switch_at: b[0],
                        end_at: b[1],
                        left_at: b[2],
                    },
                }
            ))),
            (any::<u32>(), vec(any::<u8>(), 0..=CONTROL_BYTES_MAX)).prop_map(
                move |(sequence, message)| put(Operation::Control(Control {
                    sequence,
                    message: &message,
                }))
            ),
            (
                any::<u32>(),
                any::<u32>(),
                0..u64::MAX / 2,
                vec(any::<u8>(), 1..2000)
            )
                .prop_map(move |(endpoint, rkey, offset, payload)| put(
                    Operation::Write(Write {
                        endpoint,
                        rkey,
                        offset,
                        payload: &payload,
                    })
                )),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in vec(emitted(), 0..6), pad in 0usize..30) {
            let mut body: Vec<u8> = parts.concat();
            let length = body.len();
            body.resize(length + pad, 0);
            let mut again = Vec::new();
            let mut count = 0;
            for operation in Operations::new(&body) {
                operation.unwrap().emit(&mut again);
                count += 1;
            }
            prop_assert_eq!(count, parts.len());
            prop_assert_eq!(&again[..], &body[..length]);
        }

        #[test]
        fn any_bytes_parse_or_not(bytes in vec(any::<u8>(), 0..200), first in 0u8..10) {
            let mut bytes = bytes;
            if let [kind, _, high, low, ..] = &mut bytes[..] {
                (*kind, *high) = (first, 0);
                *low %= 80;
            }
            let mut errors = 0;
            for operation in Operations::new(&bytes) {
                prop_assert_eq!(errors, 0, "an error is the last");
                match operation {
                    Ok(Operation::Write(write)) => {
                        prop_assert!(!write.payload.is_empty());
                        prop_assert!(write.offset.checked_add(write.payload.len() as u64).is_some());
                    }
                    Ok(operation) => {
                        let mut out = Vec::new();
                        operation.emit(&mut out);
                        prop_assert_eq!(Operations::new(&out).next(), Some(Ok(operation)));
                    }
                    Err(_) => errors += 1,
                }
            }
            prop_assert_eq!(Operations::new(&bytes).check().is_err(), errors == 1);
        }
    }

    #[test]
    fn a_write_stands_where_the_protocol_says() {
        let mut out = Vec::new();
        Operation::Write(Write {
            endpoint: 0x0102_0304,
            rkey: 0x0506_0708,
            offset: 0x1112_1314_1516_1718,
            payload: &[0xaa, 0xbb],
        })
        .emit(&mut out);
        assert_eq!(
            out,
            [
                4, 0, 0, 18, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17,
                0x18, 0xaa, 0xbb
            ]
        );
    }

    #[test]
    fn says_what_is_wrong() {
        let error = |bytes: &[u8]| Operations::new(bytes).check().unwrap_err();
        assert_eq!(error(&[2, 0, 0]), ParseError::Short(3));
        assert_eq!(error(&[2, 0, 0, 1]), ParseError::Short(0));
        assert_eq!(error(&[2, 0, 0, 1, 7]), ParseError::Field("length"));
        assert_eq!(error(&[9, 0, 0, 0]), ParseError::Operation(9));
        let mut write = vec![4, 0, 0, 16];
        write.extend_from_slice(&[0; 16]);
        assert_eq!(error(&write), ParseError::Field("payload"));
        write[3] = 17;
        write[12..20].fill(0xff);
        write.push(1);
        assert_eq!(error(&write), ParseError::Field("offset"));
    }
}
