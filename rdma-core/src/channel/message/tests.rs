//! Every message in its bytes, and bytes that are none.

use super::*;
use crate::channel::GUEST_PROCESS_MIN;
use crate::wire::pairing::{Names, Pairing};

fn up(message: Up) {
    let mut bytes = [0; MESSAGE_BYTES];
    let length = message.emit(&mut bytes);
    assert_eq!(Up::parse(&bytes[..length]), Ok(message));
    for cut in 0..length {
        assert!(Up::parse(&bytes[..cut]).is_err(), "{cut} of {message:?}");
    }
}

fn down(message: Down) {
    let mut bytes = [0; MESSAGE_BYTES];
    let length = message.emit(&mut bytes);
    assert_eq!(Down::parse(&bytes[..length]), Ok(message));
    for cut in 0..length {
        assert!(Down::parse(&bytes[..cut]).is_err(), "{cut} of {message:?}");
    }
}

fn hello() -> GuestHello {
    GuestHello {
        version: CHANNEL_VERSION,
        layout_version: LAYOUT_VERSION,
        nonce: 7,
    }
}

fn context() -> GuestContext {
    GuestContext {
        process: GUEST_PROCESS_MIN,
        context: 255,
        member: 63,
        vector: 31,
        reserved: 0,
    }
}

fn grant() -> Grant {
    Grant {
        registration: 3,
        connection: 9,
        at: 1 << 20,
        arena_bytes: 1 << 24,
        offset: 4096,
        arena: 2,
        ring_log2: 20,
        peer: GUEST_PROCESS_MIN + 1,
        end: 1,
        relayed: 1,
        reserved: [0; 2],
    }
}

fn refusal() -> Pairing {
    Pairing::Refuse { id: 5, reason: 11 }
}

#[test]
fn every_message_survives_the_ring() {
    let process = GUEST_PROCESS_MIN + 5;
    up(Up::Hello(hello()));
    up(Up::Program { process, at: 8192 });
    up(Up::ProgramGone(process));
    up(Up::Context(context()));
    up(Up::Pairing {
        process,
        message: refusal(),
    });
    for (own, far) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[::1]:2")] {
        up(Up::Holds {
            process,
            names: Names {
                own: own.parse().unwrap(),
                far: far.parse().unwrap(),
            },
            grant: grant(),
        });
    }
    up(Up::Told(u64::MAX));
    up(Up::Ended(1));
    up(Up::Departed {
        connection: 1,
        held: true,
    });
    for may_return in [false, true] {
        up(Up::Withdraw {
            connection: 2,
            may_return,
        });
        down(Down::Withdraw {
            connection: 2,
            may_return,
        });
    }
    up(Up::Retracted(3));
    up(Up::Kick {
        process,
        context: 3,
    });
    down(Down::Welcome(GuestWelcome {
        nonce: 7,
        heap_at: 1 << 20,
        heap_bytes: 1 << 24,
        first_process: GUEST_PROCESS_MIN,
        processes: 4096,
        machine: 1,
        reserved: 0,
    }));
    down(Down::Refused(11));
    down(Down::Again(1 << 63));
    down(Down::Lost(6));
    down(Down::Program { process, at: 8192 });
    down(Down::ProgramGone(process));
    down(Down::Context(context()));
    down(Down::Pairing(refusal()));
    down(Down::Grant(grant()));
    down(Down::Retracted(3));
    down(Down::Examine(4));
    down(Down::Kick {
        process,
        context: 3,
    });
}

#[test]
fn fields_out_of_range_are_named() {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut told = |message: Down| {
        let length = message.emit(&mut bytes);
        Down::parse(&bytes[..length])
    };
    let beyond = Grant {
        offset: 1 << 24,
        ..grant()
    };
    assert_eq!(told(Down::Grant(beyond)), Err(BadMessage::Field("arena")));
    let odd = Grant { at: 1, ..grant() };
    assert_eq!(told(Down::Grant(odd)), Err(BadMessage::Field("place")));
    let nobody = Grant { peer: 0, ..grant() };
    assert_eq!(told(Down::Grant(nobody)), Err(BadMessage::Field("process")));
    let mut bytes = [0; MESSAGE_BYTES];
    let stranger = GuestHello {
        version: 9,
        ..hello()
    };
    let length = Up::Hello(stranger).emit(&mut bytes);
    assert_eq!(Up::parse(&bytes[..length]), Err(BadMessage::Version(9)));
}
