//! The fuzzers' corpus as a plain test, and the test that wrote it.

use std::fs;
use std::path::{Path, PathBuf};

use rdma_core::control::{
    Context, ContextRef, Hello, Message, Paired, Peer, PeerRegister, Query, Refused, Register,
    Revoke, SlotRef, Text, Welcome,
};

#[path = "../fuzz/src/lib.rs"]
pub mod targets;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

fn run_all(target: &str, run: fn(&[u8])) {
    let mut count = 0;
    for entry in fs::read_dir(corpus(target)).expect("a corpus") {
        let path = entry.expect("an entry").path();
        let data = fs::read(&path).expect("a file");
        if std::panic::catch_unwind(|| run(&data)).is_err() {
            panic!("{} fails", path.display());
        }
        count += 1;
    }
    assert!(count >= 20, "{count} files for {target}");
}

#[test]
fn control() {
    run_all("control", targets::control);
}

#[test]
fn policy() {
    run_all("policy", targets::policy);
}

#[test]
fn ring() {
    run_all("ring", targets::ring);
}

#[cfg(feature = "link")]
#[test]
fn link() {
    run_all("link", targets::link);
}

#[cfg(feature = "link")]
#[test]
fn channel() {
    run_all("channel", targets::channel);
}

#[cfg(feature = "link")]
#[test]
fn wire() {
    run_all("wire", targets::wire);
}

/// Any bytes, not only those of the corpus: what a fuzzer does first.
#[cfg(feature = "link")]
#[test]
fn random_steps() {
    let mut state = 1u64;
    for _ in 0..2000 {
        let data: Vec<u8> = (0..600)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            })
            .collect();
        targets::link(&data);
        targets::wire(&data);
        targets::channel(&data);
    }
}

/// Writes the files named here; those that a fuzzer found stay.
#[test]
#[ignore = "writes into the source tree: cargo test --test fuzz_corpus -- --ignored"]
fn write_the_corpus() {
    for (target, seeds) in [
        ("control", control_seeds()),
        ("policy", policy_seeds()),
        ("ring", ring_seeds()),
        #[cfg(feature = "link")]
        ("link", link_seeds()),
        #[cfg(feature = "link")]
        ("wire", wire_seeds()),
        #[cfg(feature = "link")]
        ("channel", channel_seeds()),
    ] {
        let folder = corpus(target);
        fs::create_dir_all(&folder).unwrap();
        for (name, data) in seeds {
            fs::write(folder.join(name), data).unwrap();
        }
    }
}

type Seeds = Vec<(String, Vec<u8>)>;

fn messages() -> Vec<(&'static str, Message<'static>)> {
    let context = Context {
        context: 255,
        reserved: 0,
    };
    let slot = SlotRef {
        slot: 16_383,
        generation: 9,
    };
    let context_ref = ContextRef {
        process: (1 << 22) - 1,
        context: 255,
    };
    let peer = Peer {
        process: 1,
        reserved: 0,
        at: 4096,
    };
    let text = |more| Text { more, reserved: 0 };
    vec![
        (
            "hello",
            Message::Hello(Hello {
                layout_version: 1,
                ring_log2: 22,
                session: 0xfeed,
            }),
        ),
        ("context", Message::Context(context)),
        (
            "register",
            Message::Register(Register {
                slot: 3,
                generation: 1,
                cookie: 0x1234,
                connects: 1,
                side: 1,
                family: 4,
                own_port: 40_000,
                far_port: 80,
                reserved: [0; 6],
                own_addr: [10, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                far_addr: [10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            }),
        ),
        ("unregister", Message::Unregister(slot)),
        ("kick", Message::Kick(context_ref)),
        (
            "query",
            Message::Query(Query {
                what: Query::TOTALS,
                reserved: 0,
                session: 0xfeed,
            }),
        ),
        ("retracted", Message::Retracted(slot)),
        (
            "revoke",
            Message::Revoke(Revoke {
                what: Revoke::KNOWN,
                pid: 4711,
                conn_id: 5,
                addr: [10, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                family: 4,
                prefix: 24,
                port: 80,
                reserved: 0,
            }),
        ),
        (
            "welcome",
            Message::Welcome(Welcome {
                process: 1,
                layout_version: 1,
                epoch: 7,
                at: 4096,
                machine: 1,
                reserved: 0,
            }),
        ),
        (
            "refused",
            Message::Refused(Refused {
                slot: 3,
                generation: 1,
                reason: 11,
                reserved: 0,
            }),
        ),
        ("peer", Message::Peer(peer)),
        ("peer_context", Message::PeerContext(context_ref)),
        (
            "paired",
            Message::Paired(Paired {
                slot: 3,
                generation: 1,
                conn_id: 5,
                arena: 1,
                ring_log2: 16,
                arena_bytes: 1 << 20,
                offset: 4096,
                at: 1 << 20,
                peer: 2,
                end: 1,
                relayed: 0,
                reserved: [0; 2],
            }),
        ),
        (
            "peer_register",
            Message::PeerRegister(PeerRegister {
                process: 2,
                context: 255,
                value: 1 << 16 | 3,
                reserved: 0,
            }),
        ),
        ("peer_gone", Message::PeerGone(peer)),
        ("context_known", Message::ContextKnown(context)),
        (
            "report",
            Message::Report(text(1), "{\"version\": \"\u{fc}\""),
        ),
        ("failure", Message::Failure(text(7), "version")),
    ]
}

fn control_seeds() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, message) in messages() {
        let mut bytes = vec![u8::try_from(message.fds().max).expect("a few")];
        let mut buffer = [0; 256];
        let length = message.emit(&mut buffer).expect("it fits");
        bytes.extend(&buffer[..length]);
        seeds.push((name.to_owned(), bytes.clone()));
        // Too many descriptors, a byte less, every field at its largest.
        let mut fds = bytes.clone();
        fds[0] += 1;
        seeds.push((format!("{name}-fds"), fds));
        seeds.push((format!("{name}-short"), bytes[..bytes.len() - 1].to_vec()));
        bytes[17..].fill(0xff);
        seeds.push((format!("{name}-ones"), bytes));
    }
    let hello = seeds[0].1.clone();
    for (name, at, value) in [
        ("magic", 1, b'X'),
        ("version", 5, 2),
        ("kind", 7, 99),
        ("length", 9, 200),
        ("long", 10, 1),
        ("reserved", 13, 1),
    ] {
        let mut bytes = hello.clone();
        bytes[at] = value;
        seeds.push((format!("header-{name}"), bytes));
    }
    seeds.push(("nothing".to_owned(), Vec::new()));
    seeds.push(("header-only".to_owned(), hello[..17].to_vec()));
    seeds
}

fn policy_seeds() -> Seeds {
    let lists = [
        ("empty", ""),
        ("commas", " , ,, "),
        ("net", "10.9.0.0/24"),
        ("ports", "10.9.0.0/24:5000-6000,10.9.1.1:80"),
        ("exclude", "!10.9.0.7, 10.9.0.0/24"),
        ("exclude-space", "! 10.9.0.7"),
        ("v6", "fd00::/16,::1,fe80::1"),
        ("v6-port", "[fd00::/16]:443,[::1]"),
        ("v6-all", "::/0"),
        ("v4-all", "0.0.0.0/0:0-65535"),
        ("mapped", "::ffff:10.9.0.0/120"),
        ("mapped-wide", "::ffff:0.0.0.0/95"),
        ("bits-33", "10.9.0.0/33"),
        ("bits-129", "::/129"),
        ("bits-256", "10.9.0.0/256"),
        ("bits-sign", "10.9.0.0/+8"),
        ("port-large", "1.2.3.4:65536"),
        ("port-back", "1.2.3.4:9-3"),
        ("port-empty", "1.2.3.4:"),
        ("port-dash", "1.2.3.4:1-"),
        ("bracket-open", "[::1"),
        ("bracket-tail", "[::1]80"),
        ("bracket-v4", "[1.2.3.4]:80"),
        ("bang", "!"),
        ("bangs", "!!1.2.3.4"),
        ("name", "localhost"),
        ("zone", "fe80::1%eth0"),
        ("unicode", "10.9.0.0/\u{662}\u{664}"),
    ];
    let mut seeds: Seeds = lists
        .iter()
        .map(|(name, list)| (format!("list-{name}"), [b"\0", list.as_bytes()].concat()))
        .collect();
    let many = vec!["::1"; 129].join(",");
    seeds.push(("list-many".to_owned(), [b"\0", many.as_bytes()].concat()));
    // kind, address, include, bits, first and last port; then an address.
    let v4 = [0, 10, 9, 0, 0, 0, 24, 0, 80, 0, 80];
    let all = [0, 0, 0, 0, 0, 1, 0, 0, 0, 255, 255];
    let mapped = [2, 10, 9, 0, 0, 0, 120, 0, 0, 255, 255];
    let near = [0, 10, 9, 0, 255];
    seeds.push(("rules-v4".to_owned(), [&[1][..], &v4, &near].concat()));
    seeds.push((
        "rules-order".to_owned(),
        [&[1][..], &v4, &all, &near].concat(),
    ));
    seeds.push((
        "rules-mapped".to_owned(),
        [&[1][..], &mapped, &all, &near].concat(),
    ));
    let v6 = [&[1][..], &[0xfd; 16], &[0, 7, 1, 2, 3, 4]].concat();
    seeds.push(("rules-v6".to_owned(), [&[1][..], &v6, &v4].concat()));
    seeds
}

fn ring_seeds() -> Seeds {
    // As `fuzz/src/ring.rs` reads them: kind, then lengths (0 to 11: a table of edges).
    const WRITE: u8 = 0;
    const FILL: u8 = 2;
    const PUBLISH: u8 = 3;
    const REFRESH_PRODUCER: u8 = 5;
    const HINT: u8 = 6;
    const READ: u8 = 7;
    const PEEK: u8 = 9;
    const DISCARD: u8 = 10;
    const REFRESH_CONSUMER: u8 = 11;
    const RELEASE: u8 = 12;
    const POKE: u8 = 14;
    const NUDGE: u8 = 15;
    let mut seeds = Seeds::new();
    for edge in 0..12 {
        let once = [WRITE, edge, PUBLISH, READ, edge, RELEASE, HINT];
        seeds.push((format!("edge-{edge}"), once.repeat(3)));
        let twice = [
            FILL, edge, WRITE, 3, PUBLISH, PEEK, edge, 5, DISCARD, edge, RELEASE,
        ];
        seeds.push((format!("fill-{edge}"), twice.repeat(3)));
    }
    let pingpong = [WRITE, 1, PUBLISH, READ, 1, RELEASE, HINT].repeat(40);
    seeds.push(("pingpong".to_owned(), pingpong));
    let full = [
        WRITE,
        11,
        PUBLISH,
        WRITE,
        1,
        READ,
        6,
        RELEASE,
        REFRESH_PRODUCER,
        WRITE,
        11,
    ];
    seeds.push(("full".to_owned(), full.repeat(4)));
    let unpublished = [WRITE, 5, READ, 5, REFRESH_CONSUMER, PUBLISH, READ, 5];
    seeds.push(("unpublished".to_owned(), unpublished.repeat(4)));
    let stream = [
        WRITE, 200, 0x88, 0x13, PUBLISH, READ, 200, 0xb8, 0x0b, RELEASE,
    ];
    seeds.push(("stream".to_owned(), stream.repeat(40)));
    for word in 0..50u8 {
        let lie = [POKE, word, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        let nudge = [NUDGE, word, 1, 0, 0, 0];
        let tail = [
            REFRESH_PRODUCER,
            WRITE,
            8,
            PUBLISH,
            REFRESH_CONSUMER,
            READ,
            8,
            RELEASE,
            HINT,
        ];
        let head = [WRITE, 3, PUBLISH, READ, 1, RELEASE];
        if word < 10 {
            seeds.push((format!("poke-{word}"), [&head[..], &lie, &tail].concat()));
            seeds.push((format!("nudge-{word}"), [&head[..], &nudge, &tail].concat()));
        } else if word % 10 == 0 {
            seeds.push((format!("poke-{word}"), [&head[..], &lie, &tail].concat()));
        }
    }
    seeds
}

/// Steps of the target `link`, see there: a session, streams, and what a far end may say.
#[cfg(feature = "link")]
fn link_seeds() -> Seeds {
    const HELLO: [u8; 2] = [0, 5];
    const OPEN: [u8; 3] = [1, 1, 0];
    const PRODUCED: [u8; 3] = [3, 1, 200];
    const CONSUME: [u8; 3] = [4, 1, 50];
    const STATE: [u8; 2] = [5, 1];
    const CONTROL: [u8; 2] = [6, 0];
    const WAIT: [u8; 6] = [7, 0, 253, 0xff, 0xff, 0];
    const CLOSE: [u8; 2] = [9, 1];
    let write = |at: u8, length: u8| [12, 1, 1, 1, 7, at, length];
    let mut seeds: Seeds = Vec::new();
    for first in 0..4u8 {
        let begin = [&[first][..], &HELLO, &OPEN].concat();
        let mut add = |name: &str, steps: &[u8]| {
            seeds.push((format!("{name}-{first}"), [&begin[..], steps].concat()));
        };
        add(
            "writes",
            &[write(0, 99), write(200, 50), write(100, 99)].concat(),
        );
        add(
            "sends",
            &[&PRODUCED[..], &CONTROL, &STATE, &WAIT[..5]].concat(),
        );
        add(
            "acked",
            &[&PRODUCED[..], &[12, 1, 1, 1, 6, 0, 0], &WAIT].concat(),
        );
        add("consumed", &[&write(0, 99)[..], &CONSUME, &WAIT].concat());
        add("control", &[12, 1, 1, 3, 4, 2, 4, 1, 4, 0]);
        add("states", &[12, 1, 1, 3, 3, 2, 3, 1, 3, 200]);
        add("closed", &[&[12, 1, 1, 1, 5][..], &HELLO].concat());
        add("shut", &[&CLOSE[..], &WAIT, &[10, 0]].concat());
        add(
            "reboot",
            &[&[0, 0][..], &HELLO, &[0, 2], &write(0, 9)].concat(),
        );
        add(
            "silence",
            &[&PRODUCED[..], &[7, 0, 254], &[7, 0, 254]].concat(),
        );
    }
    seeds
}

/// Messages each way, and words of a ring.
#[cfg(feature = "link")]
fn channel_seeds() -> Seeds {
    use rdma_core::channel::{
        CHANNEL_VERSION, Down, GUEST_PROCESS_MIN, Grant, GuestContext, GuestHello, MESSAGE_BYTES,
        Up,
    };
    use rdma_core::layout::LAYOUT_VERSION;
    use rdma_core::wire::pairing::Names;
    let process = GUEST_PROCESS_MIN + 1;
    let up = |message: Up| {
        let mut bytes = [0; MESSAGE_BYTES];
        let length = message.emit(&mut bytes);
        bytes[..length].to_vec()
    };
    let down = |message: Down| {
        let mut bytes = [0; MESSAGE_BYTES];
        let length = message.emit(&mut bytes);
        bytes[..length].to_vec()
    };
    let hello = GuestHello {
        version: CHANNEL_VERSION,
        layout_version: LAYOUT_VERSION,
        nonce: 7,
    };
    let context = GuestContext {
        process,
        context: 3,
        member: 1,
        vector: 2,
        reserved: 0,
    };
    let grant = Grant {
        registration: 3,
        connection: 9,
        at: 1 << 20,
        arena_bytes: 1 << 24,
        offset: 4096,
        arena: 2,
        ring_log2: 20,
        peer: process,
        end: 1,
        relayed: 1,
        reserved: [0; 2],
    };
    let holds = Up::Holds {
        process,
        names: Names {
            own: ([10, 0, 0, 1], 1).into(),
            far: ([10, 0, 0, 2], 2).into(),
        },
        grant,
    };
    let mut ring = vec![0; 24];
    ring[0] = 40;
    ring[16] = 1;
    ring.extend([4, 1, 0, 1, 250, 0, 1, 1]);
    let mut seeds = vec![
        ("hello".to_owned(), up(Up::Hello(hello))),
        ("program".to_owned(), up(Up::Program { process, at: 4096 })),
        ("context".to_owned(), up(Up::Context(context))),
        ("ended".to_owned(), up(Up::Ended(9))),
        ("gone".to_owned(), up(Up::ProgramGone(process))),
        (
            "departed".to_owned(),
            up(Up::Departed {
                connection: 9,
                held: true,
            }),
        ),
        ("retracted".to_owned(), up(Up::Retracted(9))),
        (
            "kick".to_owned(),
            down(Down::Kick {
                process,
                context: 3,
            }),
        ),
        ("refused".to_owned(), down(Down::Refused(11))),
        ("again".to_owned(), down(Down::Again(1))),
        ("lost".to_owned(), down(Down::Lost(9))),
        ("told".to_owned(), up(Up::Told(1))),
        ("holds".to_owned(), up(holds)),
        (
            "withdraw".to_owned(),
            down(Down::Withdraw {
                connection: 9,
                may_return: true,
            }),
        ),
        ("ring".to_owned(), ring),
    ];
    for (name, data) in seeds.clone() {
        let cut = data[..data.len() - 3].to_vec();
        seeds.push((format!("{name}_cut"), cut));
    }
    seeds
}

/// Frames of every kind, whole, cut and bent.
#[cfg(feature = "link")]
fn wire_seeds() -> Seeds {
    use rdma_core::wire::{
        Announce, Consumed, Control, Header, Hello, Kind, Operation, State, StateUpdate, Write,
        emit_ack,
    };
    let hello = Hello {
        session: 1,
        echo: 2,
        backend: [3; 16],
        epoch: 4,
        capabilities: 5,
        max_frame: 9000,
        idle_timeout_ms: 30_000,
        window: 1 << 20,
        answer: true,
        live: false,
        nonce: [6; 16],
        echo_nonce: [7; 16],
    };
    let mut announce = Vec::new();
    let addresses = [[10, 9, 0, 1], [10, 9, 0, 2]].map(std::net::IpAddr::from);
    Announce::emit([1; 16], 2, addresses, &mut announce);
    let frame = |kind| {
        Header {
            kind,
            flags: 0,
            session: 8,
            number: 9,
        }
        .emit()
        .to_vec()
    };
    let data = |operations: &[Operation<'_>]| {
        let mut bytes = frame(Kind::Data);
        for operation in operations {
            operation.emit(&mut bytes);
        }
        bytes
    };
    let mut ack = frame(Kind::Data);
    emit_ack(7, [(90, 100), (50, 60), (3, 3)].into_iter(), &mut ack);
    let write = Operation::Write(Write {
        endpoint: 1,
        rkey: 2,
        offset: 3,
        payload: b"payload",
    });
    let consumed = Operation::Consumed(Consumed {
        endpoint: 1,
        rkey: 2,
        head: 5,
    });
    let state = Operation::State(StateUpdate {
        endpoint: 1,
        rkey: 2,
        sequence: 2,
        state: State {
            flags: 3,
            ..State::default()
        },
    });
    let control = Operation::Control(Control {
        sequence: 1,
        message: b"message",
    });
    let mut seeds = Vec::new();
    for (name, whole) in [
        ("hello", hello.emit().to_vec()),
        ("announce", announce),
        ("reset", frame(Kind::Reset)),
        ("ack", ack),
        ("write", data(&[write])),
        ("small", data(&[Operation::Ping, consumed, state, control])),
        ("mixed", data(&[consumed, write])),
        ("close", data(&[Operation::Probe, Operation::Close(3)])),
    ] {
        let mut padded = whole.clone();
        padded.resize(whole.len() + 40, 0);
        let mut bent = whole.clone();
        let at = whole.len().min(19) - 1;
        bent[at] ^= 0x80;
        seeds.push((format!("{name}-short"), whole[..whole.len() - 1].to_vec()));
        seeds.push((format!("{name}-padded"), padded));
        seeds.push((format!("{name}-bent"), bent));
        seeds.push((name.to_owned(), whole));
    }
    seeds
}
