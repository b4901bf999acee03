//! Records that are written and read again, and bytes that are none.

use rdma_core::mr::Regions;
use zerocopy::IntoBytes;

use super::raw::MAGIC;
use super::*;
use crate::ids::ArenaId;

pub(crate) fn record(connection: u64, backend: &str) -> Record {
    Record {
        connection: ConnectionId(connection),
        place: Place {
            arena: ArenaId(3),
            offset: 1 << 33,
            ring_log2: 22,
            arena_bytes: 1 << 40,
            fresh: false,
        },
        end: End::One,
        process: Process(5),
        port: Process(6),
        bit: 700,
        domain: 2,
        rkey: 0xdead_beef,
        far: FarPlace {
            endpoint: 8,
            rkey: 9,
        },
        beyond: Beyond::Backend {
            link: link_number("lan"),
            address: Address::Udp(backend.parse().unwrap()),
        },
        origin: Origin {
            tuple: Tuple {
                own: "127.0.0.1:1".parse().unwrap(),
                far: "[fd00::1]:2".parse().unwrap(),
            },
            netns: 1 << 60,
            uid: 1000,
            proof: Proof {
                inode: 77,
                cookie: 1 << 50,
            },
        },
        guest: None,
    }
}

fn of_guest(connection: u64) -> Record {
    Record {
        guest: Some(InRegion {
            arena: 1 << 40,
            events: 5 << 20,
            port: 8 << 20,
        }),
        ..record(connection, "10.0.0.1:7447")
    }
}

#[test]
fn records_are_read_as_they_were_written() {
    let records = Records::create().unwrap();
    assert_eq!(records.read().unwrap(), []);
    let first = record(1, "10.0.0.1:7447");
    let mut last = record(2, "[fe80::1%5]:7447");
    last.end = End::Zero;
    let mut other = record(3, "10.0.0.1:7447");
    other.beyond = Beyond::Backend {
        link: 5,
        address: Address::Mac([1, 2, 3, 4, 5, 6]),
    };
    let mut here = record(4, "10.0.0.1:7447");
    here.beyond = Beyond::Here;
    let highest = u32::try_from(Regions::MAX - 1).unwrap();
    let guest = of_guest(5);
    let written = [
        (0, first),
        (highest, last),
        (9, other),
        (10, here),
        (11, guest),
    ];
    for (endpoint, record) in written {
        records.write(endpoint, &record).unwrap();
    }
    records.write(highest + 1, &first).unwrap_err();
    let again = Records::of(records.memory.try_clone().unwrap()).unwrap();
    let all = [
        (0, first),
        (9, other),
        (10, here),
        (11, guest),
        (highest, last),
    ];
    assert_eq!(again.read().unwrap(), all);
    records.erase(9);
    let rest = [(0, first), (10, here), (11, guest), (highest, last)];
    assert_eq!(again.read().unwrap(), rest);
    assert!(Records::of(sealed_memory("other", 4096).unwrap()).is_none());
}

#[test]
fn a_record_that_is_not_whole_is_refused() {
    let own = record(1, "10.0.0.1:7447");
    let guest = of_guest(1);
    let raw = own.emit();
    let raw_of_guest = guest.emit_of_guest(&guest.guest.unwrap());
    let all = [(own, raw.as_bytes()), (guest, raw_of_guest.as_bytes())];
    for (record, bytes) in all {
        assert_eq!(Record::parse(bytes), Ok(Some(record)));
        for at in 0..bytes.len() {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(Record::parse(&bad).is_err(), "{at}");
            let cut = Record::parse(&bytes[..at]);
            assert!(matches!(cut, Ok(None) | Err(_)), "{at}");
        }
    }
    // One kind is not taken for the other.
    let mut bad = raw_of_guest.as_bytes().to_vec();
    bad[..4].copy_from_slice(&MAGIC.to_le_bytes());
    assert_eq!(Record::parse(&bad), Err(BadRecord::Garbled));
}

#[test]
fn what_is_of_another_version_is_not_looked_at_again() {
    let records = Records::create().unwrap();
    records.write(3, &record(1, "10.0.0.1:7447")).unwrap();
    let at = Records::offset(3).unwrap();
    rustix::io::pwrite(&records.memory, &0x5645_4332u32.to_le_bytes(), at).unwrap();
    assert_eq!(records.read().unwrap(), []);
    let mut magic = [1; 4];
    rustix::io::pread(&records.memory, &mut magic, at).unwrap();
    assert_eq!(magic, [0; 4]);
}
