//! Wireshark's command-line tool, with scripts/viaduct.lua, reads what the capturing NIC has written: every kind of
//! frame and operation, as an Ethernet frame and as a UDP datagram. Skipped where there is no tshark.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests panic where something is not as it must be, and say what they skip"
)]

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

use backend_drv::nic::{Nic, Outgoing, loopback, pcap::Pcap, udp::Udp};
use rdma_core::wire::pairing::{Names, PAIRING_MAX, Pairing, Place, Sample};
use rdma_core::wire::{
    Announce, Consumed, Control, Header, Hello, Kind, Operation, State, StateUpdate, Write,
    emit_ack, flag,
};

/// The script, from the crate's directory.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/viaduct.lua");

/// A DATA frame with what `fill` puts into it.
fn data(number: u64, flags: u8, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let header = Header {
        kind: Kind::Data,
        flags,
        session: 0xa1b2_c3d4,
        number,
    };
    let mut frame = header.emit().to_vec();
    fill(&mut frame);
    frame
}

/// A DATA frame with one control message.
fn control(sequence: u32, pairing: &Pairing) -> Vec<u8> {
    let mut bytes = [0; PAIRING_MAX];
    let len = pairing.emit(&mut bytes);
    let message = &bytes[..len];
    data(30 + u64::from(sequence), 0, |frame| {
        Operation::Control(Control { sequence, message }).emit(frame);
    })
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        session: 0x11,
        echo: 0x22,
        backend: [7; 16],
        epoch: 0x33,
        capabilities: 1,
        max_frame: 8972,
        idle_timeout_ms: 30_000,
        window: 1 << 20,
        answer: true,
        live: false,
        nonce: [1; 16],
        echo_nonce: [2; 16],
    };
    hello.emit().to_vec()
}

/// Frames, and what the Info column shall say of each.
fn examples() -> Vec<(Vec<u8>, &'static str)> {
    let mut announce = Vec::new();
    let addresses = ["10.9.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    Announce::emit([7; 16], 5, addresses, &mut announce);
    let reset = Header {
        kind: Kind::Reset,
        flags: 0,
        session: 9,
        number: 0,
    };
    let write = Operation::Write(Write {
        endpoint: 3,
        rkey: 0xbeef,
        offset: 1 << 40,
        payload: &[0x55; 1000],
    });
    let state = StateUpdate {
        endpoint: 4,
        rkey: 0xfeed,
        sequence: 2,
        state: State {
            flags: 0x03,
            switch_at: 77,
            ..State::default()
        },
    };
    let consumed = Consumed {
        endpoint: 5,
        rkey: 0xcafe,
        head: 123_456_789_012,
    };
    vec![
        (hello(), "HELLO session 00000011 echo 00000022, answer"),
        (announce, "ANNOUNCE 2 addresses"),
        (reset.emit().to_vec(), "RESET 00000009"),
        (
            data(1, 0, |frame| {
                emit_ack(7, [(20, 29), (3, 9)].into_iter(), frame);
                write.emit(frame);
            }),
            "DATA a1b2c3d4 #1, ACK 20-29 3-9, WRITE 3 1099511627776+1000",
        ),
        (
            data(2, flag::ACK_NOW, |frame| {
                Operation::Ping.emit(frame);
                Operation::State(state).emit(frame);
                Operation::Consumed(consumed).emit(frame);
                Operation::Close(6).emit(frame);
            }),
            "DATA a1b2c3d4 #2, PING, STATE 4 armed switched, CONSUMED 5 123456789012, CLOSE 6",
        ),
        (
            data(3, 0, |frame| {
                Operation::Probe.emit(frame);
                frame.resize(1400, 0);
            }),
            "DATA a1b2c3d4 #3, PROBE, PAD",
        ),
        (
            data(4, flag::SEALED, |frame| frame.extend([0xcc; 50])),
            "DATA a1b2c3d4 #4, sealed",
        ),
        (
            data(5, 0, |frame| frame.extend([4, 0, 1, 0, 0])),
            "DATA a1b2c3d4 #5, bad operation",
        ),
    ]
}

/// The messages about connections.
fn pairings() -> Vec<(Vec<u8>, &'static str)> {
    let names = |own: &str, far: &str| Names {
        own: own.parse().unwrap(),
        far: far.parse().unwrap(),
    };
    let offer = |names| Pairing::Offer {
        id: 8,
        names,
        ring_log2: 18,
        sample: Sample::default(),
    };
    let place = Place {
        endpoint: 1,
        rkey: 2,
    };
    let messages = [
        (offer(names("10.9.0.1:40000", "10.9.0.2:80")), "OFFER"),
        (offer(names("[fd00::1]:40000", "[fd00::2]:80")), "OFFER"),
        (
            Pairing::Candidate {
                offer: 8,
                id: 9,
                ring_log2: 18,
                sample: Sample::default(),
            },
            "CANDIDATE",
        ),
        (
            Pairing::Pair {
                id: 9,
                offer: 8,
                ring_log2: 18,
                place,
            },
            "PAIR",
        ),
        (Pairing::Paired { offer: 8, place }, "PAIRED"),
        (Pairing::Refuse { id: 9, reason: 10 }, "REFUSE"),
        (Pairing::Withdraw { offer: 8 }, "WITHDRAW"),
    ];
    let frames = (0..).zip(messages);
    frames
        .map(|(sequence, (message, name))| (control(sequence, &message), name))
        .collect()
}

fn have_tshark() -> bool {
    let there = Command::new("tshark").arg("--version").output().is_ok();
    if !there {
        println!("skipped: no tshark");
    }
    there
}

/// What tshark prints about a capture.
fn tshark(capture: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("tshark");
    command.arg("-X").arg(format!("lua_script:{SCRIPT}"));
    command.arg("-r").arg(capture).args(arguments);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(!errors.contains("Lua Error"), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Sends the frames through a capturing NIC.
fn capture(mut nic: Pcap<impl Nic>, to: backend_drv::nic::Address, frames: &[Vec<u8>]) {
    for frame in frames {
        nic.send(&[Outgoing::of_head(to, frame)]).unwrap();
    }
    // Nothing comes, so what was captured goes to the file.
    nic.receive(&mut |_, _| {}).unwrap();
}

#[test]
fn every_ethernet_frame_is_taken_apart() {
    if !have_tshark() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("frames.pcap");
    let (near, far) = loopback::pair(9000).unwrap();
    let nic = Pcap::new(Box::new(near), &path).unwrap();
    let (frames, expected): (Vec<_>, Vec<_>) = examples().into_iter().unzip();
    capture(nic, far.address(), &frames);

    let columns = tshark(
        &path,
        &[
            "-T",
            "fields",
            "-e",
            "_ws.col.Protocol",
            "-e",
            "_ws.col.Info",
        ],
    );
    let lines: Vec<_> = columns.lines().collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|info| format!("VIADUCT\t{info}"))
        .collect();
    assert_eq!(lines, expected);

    let details = tshark(&path, &["-V"]);
    for line in [
        "Longest frame: 8972",
        "Address: ::ffff:10.9.0.1",
        "Range: 3-9",
        "Key: 0x0000beef",
        "Offset: 1099511627776",
        "Flags: 0x00000003 (armed switched)",
        "Switch at: 77",
        ".... .1.. = Acknowledge now: True",
        "Head: 123456789012",
        "(Error/Malformed): bad operation",
    ] {
        assert!(details.contains(line), "no \"{line}\" in:\n{details}");
    }
    assert_eq!(details.matches("Expert Info").count(), 1, "{details}");
}

#[test]
fn messages_about_connections_are_found_in_datagrams() {
    if !have_tshark() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("frames.pcap");
    // The port does not matter to the test, nor whether anybody has it.
    let far = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let near = Udp::open("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let nic = Pcap::new(Box::new(near), &path).unwrap();
    let (frames, expected): (Vec<_>, Vec<_>) = pairings().into_iter().unzip();
    capture(nic, backend_drv::nic::Address::Udp(far), &frames);

    let decode = format!("udp.port=={},viaduct", far.port());
    let infos = tshark(
        &path,
        &["-d", &decode, "-T", "fields", "-e", "_ws.col.Info"],
    );
    let expected: Vec<_> = (0..)
        .zip(expected)
        .map(|(n, name)| format!("DATA a1b2c3d4 #{}, CONTROL {n} {name}", 30 + n))
        .collect();
    assert_eq!(infos.lines().collect::<Vec<_>>(), expected);

    let fields = [
        "own", "far", "far_v6", "far_port", "id", "endpoint", "reason",
    ];
    let fields = fields.map(|field| format!("viaduct.pairing.{field}"));
    let mut arguments = vec!["-d", &decode, "-T", "fields", "-E", "separator=,"];
    arguments.extend(fields.iter().flat_map(|field| ["-e", field.as_str()]));
    let values = tshark(&path, &arguments);
    let expected = [
        "10.9.0.1,10.9.0.2,,80,,,",
        ",,fd00::2,80,,,",
        ",,,,9,,",
        ",,,,9,1,",
        ",,,,,1,",
        ",,,,9,,10",
        ",,,,,,",
    ];
    assert_eq!(values.lines().collect::<Vec<_>>(), expected);
}
