//! Every message in its bytes, and bytes that are none.

use super::*;

fn all() -> Vec<Pairing> {
    let sample = Sample {
        send_scale: 7,
        receive_scale: 9,
        send_mss: 1448,
        advertised_mss: 1460,
        acked: 1 << 40,
        received: 2,
        sent: u64::MAX,
    };
    let names = |own: &str, far: &str| Names {
        own: own.parse().expect("an address"),
        far: far.parse().expect("an address"),
    };
    let place = Place {
        endpoint: 5,
        rkey: 0xdead_beef,
    };
    vec![
        Pairing::Offer {
            id: 1,
            names: names("10.9.0.1:40000", "10.9.0.2:80"),
            ring_log2: 22,
            sample,
        },
        Pairing::Offer {
            id: 1,
            names: names("[fd00::1]:40000", "[fd00::2]:80"),
            ring_log2: 16,
            sample,
        },
        Pairing::Candidate {
            offer: 1,
            id: 2,
            ring_log2: 30,
            sample,
        },
        Pairing::Pair {
            id: 2,
            offer: 1,
            ring_log2: 22,
            place,
        },
        Pairing::Paired { offer: 1, place },
        Pairing::Refuse { id: 2, reason: 10 },
        Pairing::Withdraw { offer: u64::MAX },
        Pairing::Resume {
            own: place,
            far: 9,
            received: 1 << 50,
            consumed: 7,
        },
        Pairing::Gone {
            endpoint: 9,
            reason: 10,
        },
    ]
}

#[test]
fn every_message_survives_the_wire_and_no_part_of_one_does() {
    for message in all() {
        let mut out = [0; PAIRING_MAX];
        let len = message.emit(&mut out);
        assert_eq!(Pairing::parse(&out[..len]), Ok(message));
        for cut in 0..len {
            assert!(Pairing::parse(&out[..cut]).is_err(), "{cut} of {message:?}");
        }
        assert!(len == PAIRING_MAX || Pairing::parse(&out[..=len]).is_err());
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut out = [0; PAIRING_MAX];
    let len = all()[0].emit(&mut out);
    for (at, value, what) in [
        (1, 15, "ring size"),
        (1, 31, "ring size"),
        (2, 5, "address"),
    ] {
        let mut bad = out;
        bad[at] = value;
        assert_eq!(Pairing::parse(&bad[..len]), Err(BadPairing::Field(what)));
    }
    let unread = Pairing::Resume {
        own: Place {
            endpoint: 1,
            rkey: 2,
        },
        far: 3,
        received: 4,
        consumed: 5,
    };
    let len = unread.emit(&mut out);
    let bad = BadPairing::Field("position");
    assert_eq!(Pairing::parse(&out[..len]), Err(bad));
    assert_eq!(Pairing::parse(&[9]), Err(BadPairing::Kind(9)));
    assert!(Pairing::parse(&[]).is_err());
}
