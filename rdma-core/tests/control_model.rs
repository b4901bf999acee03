//! The control protocol: parsing is total, and what is written is what is read.

use proptest::collection::vec;
use proptest::prelude::*;
use rdma_core::control::{
    CONTROL_MAGIC, CONTROL_VERSION, Context, ContextRef, Header, Hello, MESSAGE_MAX, Message,
    Paired, ParseError, Peer, PeerRegister, Query, Refused, Register, Revoke, SlotRef, Text,
    Welcome, kind, parse,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Any bytes as the body of a message.
fn body<T: FromBytes + IntoBytes + KnownLayout + Immutable + core::fmt::Debug>()
-> impl Strategy<Value = T> {
    vec(any::<u8>(), size_of::<T>())
        .prop_map(|bytes| T::read_from_bytes(&bytes).expect("as long as a body"))
}

/// Any message whose body is any bytes; most break some range.
fn wild() -> impl Strategy<Value = Message<'static>> {
    prop_oneof![
        body::<Hello>().prop_map(Message::Hello),
        body::<Context>().prop_map(Message::Context),
        body::<Register>().prop_map(Message::Register),
        body::<SlotRef>().prop_map(Message::Unregister),
        body::<ContextRef>().prop_map(Message::Kick),
        body::<Query>().prop_map(Message::Query),
        body::<SlotRef>().prop_map(Message::Retracted),
        body::<Revoke>().prop_map(Message::Revoke),
        body::<Welcome>().prop_map(Message::Welcome),
        body::<Refused>().prop_map(Message::Refused),
        body::<Peer>().prop_map(Message::Peer),
        body::<ContextRef>().prop_map(Message::PeerContext),
        body::<PeerRegister>().prop_map(Message::PeerRegister),
        body::<Paired>().prop_map(Message::Paired),
        body::<Peer>().prop_map(Message::PeerGone),
        body::<Context>().prop_map(Message::ContextKnown),
    ]
}

/// The same, with every ranged field brought into its range.
fn valid() -> impl Strategy<Value = Message<'static>> {
    wild().prop_map(|mut message| {
        match &mut message {
            Message::Context(body) | Message::ContextKnown(body) => body.context %= 256,
            Message::Register(body) => {
                body.slot %= 16_384;
                body.side = 1 + body.side % 2;
                body.family = if body.family % 2 == 0 { 4 } else { 6 };
            }
            Message::Unregister(body) | Message::Retracted(body) => body.slot %= 16_384,
            Message::Revoke(body) => {
                body.what %= 8;
                body.family = if body.family % 2 == 0 { 4 } else { 6 };
                body.prefix %= 33;
            }
            Message::Kick(body) | Message::PeerContext(body) => {
                body.process %= 1 << 22;
                body.context %= 256;
            }
            Message::Welcome(body) => {
                body.process %= 1 << 22;
                body.at &= !4095;
                body.machine %= 1 << 15;
            }
            Message::PeerRegister(body) => {
                body.process %= 1 << 22;
                body.context %= 256;
                body.value %= 1 << 31;
            }
            Message::Refused(body) => body.slot %= 16_384,
            Message::Peer(body) | Message::PeerGone(body) => {
                body.process %= 1 << 22;
                body.at &= !4095;
            }
            Message::Paired(body) => {
                body.slot %= 16_384;
                body.conn_id |= 1;
                body.peer %= 1 << 22;
                body.end %= 2;
                body.relayed %= 2;
                body.ring_log2 = 16 + body.ring_log2 % 15;
                body.offset = (body.offset % (1 << 40)) & !4095;
                body.arena_bytes = u64::MAX >> 1;
                body.at &= (1 << 62) - 4096;
            }
            Message::Hello(_) | Message::Query(_) | Message::Report(..) | Message::Failure(..) => {}
        }
        message
    })
}

fn emit(message: &Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let length = message.emit(&mut buffer).expect("it fits");
    buffer.truncate(length);
    buffer
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in vec(any::<u8>(), 0..300), fds in 0..6usize) {
        let _ = parse(&bytes, fds);
    }

    #[test]
    fn any_body_behind_a_right_header_gives_an_answer(
        kind in prop_oneof![0..10u16, 98..112u16, any::<u16>()],
        body in vec(any::<u8>(), 0..100),
        off in -2..=2i32,
        fds in 0..6usize,
    ) {
        let length = size_of::<Header>() + body.len();
        let header = Header {
            magic: CONTROL_MAGIC,
            version: CONTROL_VERSION,
            kind,
            length: u32::try_from(length).unwrap().wrapping_add_signed(off),
            reserved: 0,
        };
        let bytes = [header.as_bytes(), body.as_slice()].concat();
        let answer = parse(&bytes, fds);
        prop_assert!(off == 0 || answer.is_err());
    }

    #[test]
    fn valid_messages_survive_the_wire(message in valid()) {
        let bytes = emit(&message);
        prop_assert_eq!(parse(&bytes, message.fds().max), Ok(message));
        prop_assert_eq!(parse(&bytes, message.fds().min), Ok(message));
        prop_assert_eq!(
            parse(&bytes, message.fds().max + 1),
            Err(ParseError::Fds(message.fds().max + 1))
        );
    }

    #[test]
    fn wild_messages_survive_the_wire_or_name_a_field(message in wild()) {
        match parse(&emit(&message), message.fds().max) {
            Ok(parsed) => prop_assert_eq!(parsed, message),
            Err(error) => prop_assert!(matches!(error, ParseError::Field(_)), "{}", error),
        }
    }

    #[test]
    fn text_survives_the_wire(text in ".{0,200}", more in any::<u32>(), failure in any::<bool>()) {
        let body = Text { more, reserved: 0 };
        let message = if failure {
            Message::Failure(body, &text)
        } else {
            Message::Report(body, &text)
        };
        let bytes = emit(&message);
        prop_assert_eq!(parse(&bytes, 0), Ok(message));
    }
}

#[test]
fn text_of_the_largest_length_fits_and_no_longer_one() {
    let body = Text {
        more: 0,
        reserved: 0,
    };
    let most = MESSAGE_MAX - size_of::<Header>() - size_of::<Text>();
    let text = "x".repeat(most + 1);
    let mut buffer = vec![0; 2 * MESSAGE_MAX];
    let message = Message::Report(body, &text[..most]);
    assert_eq!(message.kind(), kind::REPORT);
    assert_eq!(message.emit(&mut buffer), Some(MESSAGE_MAX));
    assert_eq!(parse(&buffer[..MESSAGE_MAX], 0), Ok(message));
    assert_eq!(Message::Report(body, &text).emit(&mut buffer), None);
}
