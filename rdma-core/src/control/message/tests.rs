use super::*;

fn round_trip(message: Message<'_>) {
    let mut buffer = [0u8; 512];
    let length = message.emit(&mut buffer).unwrap();
    let fds = message.fds().max;
    assert_eq!(parse(&buffer[..length], fds), Ok(message));
    assert_eq!(
        parse(&buffer[..length], fds + 1),
        Err(ParseError::Fds(fds + 1))
    );
    for cut in 0..length {
        assert!(
            parse(&buffer[..cut], fds).is_err(),
            "{cut} of {length} bytes of {message:?}"
        );
    }
    assert!(matches!(
        parse(&buffer[..length + 1], fds),
        Err(ParseError::Long(_))
    ));
}

#[test]
fn every_message_survives_the_wire() {
    round_trip(Message::Hello(Hello {
        layout_version: 1,
        ring_log2: 22,
        session: 9,
    }));
    round_trip(Message::Context(Context {
        context: 255,
        reserved: 0,
    }));
    round_trip(Message::Register(Register {
        slot: 1,
        generation: 2,
        cookie: 3,
        connects: 1,
        side: 2,
        family: 6,
        own_port: 80,
        far_port: 40_000,
        reserved: [0; 6],
        own_addr: [1; 16],
        far_addr: [2; 16],
    }));
    round_trip(Message::Unregister(SlotRef {
        slot: 1,
        generation: 1,
    }));
    round_trip(Message::Kick(ContextRef {
        process: 1,
        context: 2,
    }));
    round_trip(Message::Query(Query {
        what: Query::STATUS,
        reserved: 0,
        session: 0,
    }));
    round_trip(Message::Retracted(SlotRef {
        slot: 2,
        generation: 1,
    }));
    round_trip(Message::Revoke(revocation(Revoke::KNOWN)));
    round_trip(Message::Welcome(Welcome {
        process: 1,
        layout_version: 1,
        epoch: 77,
        at: 4096,
        machine: 3,
        reserved: 0,
    }));
    round_trip(Message::Refused(Refused {
        slot: 1,
        generation: 1,
        reason: 11,
        reserved: 0,
    }));
    round_trip(Message::PeerRegister(PeerRegister {
        process: 4,
        context: 1,
        value: 2 << 16 | 3,
        reserved: 0,
    }));
    round_trip(Message::Peer(Peer {
        process: 4,
        reserved: 0,
        at: 8192,
    }));
    round_trip(Message::PeerContext(ContextRef {
        process: 4,
        context: 0,
    }));
    round_trip(Message::PeerGone(Peer {
        process: 4,
        reserved: 0,
        at: 0,
    }));
    round_trip(Message::ContextKnown(Context {
        context: 1,
        reserved: 0,
    }));
    round_trip(Message::Paired(Paired {
        slot: 1,
        generation: 1,
        conn_id: 5,
        arena: 1,
        ring_log2: 16,
        arena_bytes: 1 << 20,
        offset: 4096,
        at: 1 << 20,
        peer: 2,
        end: 1,
        relayed: 1,
        reserved: [0; 2],
    }));
}

#[test]
fn text_survives_the_wire() {
    let mut buffer = [0u8; 512];
    let message = Message::Report(
        Text {
            more: 1,
            reserved: 0,
        },
        "{\"a\": 1}",
    );
    let length = message.emit(&mut buffer).unwrap();
    assert_eq!(parse(&buffer[..length], 0), Ok(message));
}

#[test]
fn fields_out_of_range_are_named() {
    let mut buffer = [0u8; 512];
    let message = Message::Kick(ContextRef {
        process: 0,
        context: CONTEXTS,
    });
    let length = message.emit(&mut buffer).unwrap();
    assert_eq!(
        parse(&buffer[..length], 0),
        Err(ParseError::Field("context"))
    );
}

fn revocation(what: u32) -> Revoke {
    Revoke {
        what,
        pid: 7,
        conn_id: 9,
        addr: [0xfd; 16],
        family: 6,
        prefix: 128,
        port: 80,
        reserved: 0,
    }
}

#[test]
fn a_revocation_names_a_network_or_leaves_it_out() {
    let answer = |body| {
        let mut buffer = [0u8; 512];
        let length = Message::Revoke(body).emit(&mut buffer).unwrap();
        parse(&buffer[..length], 0).map(|_| ())
    };
    let all = revocation(Revoke::KNOWN);
    let v4 = Revoke { family: 4, ..all };
    assert_eq!(answer(v4), Err(ParseError::Field("prefix")));
    assert_eq!(answer(Revoke { prefix: 32, ..v4 }), Ok(()));
    assert_eq!(
        answer(Revoke { family: 5, ..all }),
        Err(ParseError::Field("family"))
    );
    let odd = Revoke {
        family: 5,
        prefix: 255,
        ..revocation(Revoke::PID)
    };
    assert_eq!(answer(odd), Ok(()), "it does not count");
    assert_eq!(answer(revocation(8)), Err(ParseError::Field("what")));
}

#[test]
fn another_version_is_told_apart_from_garbage() {
    let mut buffer = [0u8; 512];
    let message = Message::Hello(Hello {
        layout_version: 1,
        ring_log2: 22,
        session: 0,
    });
    let length = message.emit(&mut buffer).unwrap();
    buffer[4] = 99;
    assert_eq!(parse(&buffer[..length], 2), Err(ParseError::Version(99)));
    buffer[0] = b'X';
    assert!(matches!(
        parse(&buffer[..length], 2),
        Err(ParseError::Magic(_))
    ));
}
