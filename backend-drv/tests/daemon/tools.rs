//! Questions: status, totals, limits.

use rdma_core::control::Query;
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::reason::Reason;
use rdma_core::slot::{SLOTS, Slot, SlotMeta, Stage, TxState};
use rdma_core::sync::Ordering;

use crate::client::{Couple, Daemon, Program, Tool, Wire, registration, retry};
use crate::helper::{Helper, Start};

/// Fills a slot as the library does for an attached connection.
fn fill(program: &Program, index: u32, bytes: u64) {
    let header = program.slots.header();
    header.slots_used.fetch_max(index + 1, Ordering::SeqCst);
    header.pid.store(4711, Ordering::SeqCst);
    let slot: &Slot = program.slots.slot(index).unwrap();
    slot.set_stage(Stage::Attached);
    slot.tx.set_state(TxState::Ring);
    let mut cursor = slot.tx.cursor();
    cursor.tail = bytes;
    slot.tx.set_cursor(&cursor);
    slot.rx.tcp_bytes.store(11, Ordering::SeqCst);
    let meta: &SlotMeta = &slot.meta;
    meta.family.store(4, Ordering::SeqCst);
    let own = u64::from_ne_bytes([127, 0, 0, 1, 0, 0, 0, 0]);
    meta.own_addr[0].store(own, Ordering::SeqCst);
    meta.far_addr[0].store(own, Ordering::SeqCst);
    meta.ports.store(80 | 40_000 << 16, Ordering::SeqCst);
    meta.reason
        .store(Reason::UnseenWriter.code(), Ordering::SeqCst);
}

#[test]
fn status_shows_programs_and_connections() {
    let daemon = Daemon::start();
    let couple = Couple::new(&daemon);
    fill(&couple.one, 0, 12_345);
    let status = daemon.report(Query::STATUS, 0);
    assert_eq!(status["daemon"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["daemon"]["pid"], daemon.pid().as_raw());
    assert_eq!(status["daemon"]["pairs"], 1);
    assert_eq!(status["processes"].as_array().unwrap().len(), 2);
    assert_eq!(status["processes"][0]["pid"], std::process::id());
    let connection = &status["connections"][0];
    for (key, value) in [
        ("own", "127.0.0.1:80"),
        ("far", "127.0.0.1:40000"),
        ("stage", "attached"),
        ("tx_state", "ring"),
        ("rx_state", "kernel"),
        ("reason", "unseen_writer"),
    ] {
        assert_eq!(connection[key], value, "{key}");
    }
    for (key, value) in [
        ("slot", 0),
        ("ring_tx", 12_345),
        ("ring_rx", 0),
        ("tcp_rx", 11),
        ("conn_id", couple.paired.0.conn_id),
        ("peer_process", couple.other.welcome.process.into()),
    ] {
        assert_eq!(connection[key], value, "{key}");
    }
}

#[test]
fn a_long_report_comes_in_pieces() {
    let daemon = Daemon::start();
    let program = daemon.program();
    for index in 0..2000 {
        fill(&program, index, 1);
    }
    let status = daemon.report(Query::STATUS, 0);
    assert_eq!(status["connections"].as_array().unwrap().len(), 2000);
    assert_eq!(status["complete"], true);
}

#[test]
fn slots_that_were_never_used_cost_nothing_and_nonsense_is_bounded() {
    let daemon = Daemon::start();
    let program = daemon.program();
    let header = program.slots.header();
    header.slots_used.store(u32::MAX, Ordering::SeqCst);
    for word in &header.counters.reasons {
        word.store(u64::MAX, Ordering::SeqCst);
    }
    let slot = program.slots.slot(SLOTS - 1).unwrap();
    slot.meta.stage.store(u32::MAX, Ordering::SeqCst);
    slot.set_stage(Stage::Plain);
    slot.meta.reason.store(999, Ordering::SeqCst);
    let before = program.blocks();
    let status = daemon.report(Query::STATUS, 0);
    assert_eq!(status["connections"].as_array().unwrap().len(), 1);
    assert_eq!(status["connections"][0]["reason"], "999");
    daemon.report(Query::TOTALS, 0);
    assert_eq!(program.blocks(), before, "looking made no pages");
}

#[test]
fn totals_outlive_programs_and_belong_to_their_session() {
    let daemon = Daemon::start();
    let mut tool = Tool::connect(&daemon.socket);
    let session = 0x5e55_1077;
    for count in 1..=3 {
        let program = Program::hello(&daemon.socket, session);
        let counters = &program.slots.header().counters;
        counters.upgraded.store(1, Ordering::SeqCst);
        counters.ring_tx_bytes.store(100, Ordering::SeqCst);
        counters.count_reason(Reason::Young);
        fill(&program, 0, 1000);
        // Closed, and in the counters already.
        fill(&program, 1, 50);
        program.slots.slot(1).unwrap().end_count();
        let living = tool.ask(Query::TOTALS, session);
        assert_eq!(living["processes"], count);
        assert_eq!(living["ring_tx_bytes"], 1100 * count);
        drop(program);
        // Whether the daemon has noticed yet or not.
        for _ in 0..10 {
            assert_eq!(tool.ask(Query::TOTALS, session), living);
        }
    }
    let other = Program::hello(&daemon.socket, session + 1);
    let totals = tool.ask(Query::TOTALS, session);
    assert_eq!(totals["upgraded"], 3);
    assert_eq!(totals["reasons"]["young"], 3);
    assert_eq!(totals["tcp_rx_bytes"], 33);
    assert_eq!(tool.ask(Query::TOTALS, session + 1)["processes"], 1);
    drop(other);
}

#[test]
fn limits_say_what_the_daemon_grants() {
    let daemon = Daemon::with_config("[limits]\nring_log2_max = 20");
    let limits = daemon.report(Query::LIMITS, 0);
    assert_eq!(limits["layout_version"], LAYOUT_VERSION);
    assert_eq!(limits["limits"]["ring_log2_max"], 20);
    let unknown = daemon.report(77, 0);
    assert!(unknown["error"].as_str().unwrap().contains("77"));
}

#[test]
fn a_tool_that_does_not_read_holds_nobody_up() {
    let daemon = Daemon::start();
    let mut couple = Couple::new(&daemon);
    for index in 0..3000 {
        fill(&couple.one, index, 1);
    }
    let query = rdma_core::control::Message::Query(Query {
        what: Query::STATUS,
        reserved: 0,
        session: 0,
    });
    let wires: Vec<Wire> = (0..3).map(|_| Wire::connect(&daemon.socket)).collect();
    for wire in &wires {
        wire.send(&query, &[]);
    }
    for slot in 1..20 {
        couple.again(slot);
    }
    // They are given up in the end, and others get their answer.
    assert!(daemon.report(Query::LIMITS, 0).is_object());
}

#[test]
fn users_see_their_own_programs_only() {
    let daemon = Daemon::start();
    let mut own = daemon.program();
    fill(&own, 0, 1);
    let start = Start {
        uid: Some(65_534),
        session: 5,
        ..Start::default()
    };
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: another user's program needs root");
        return;
    }
    let Some(mut helper) = Helper::start(&daemon.socket, &start) else {
        println!(
            "skipped: user 65534 cannot run {:?}",
            std::env::current_exe()
        );
        return;
    };
    own.register(0, &helper.server, &registration(&helper.server, 2));
    assert_eq!(own.expect_pair().0.relayed, 1);
    // Root sees both.
    retry(|| {
        let status = daemon.report(Query::STATUS, 0);
        (status["processes"].as_array().unwrap().len() == 2).then_some(())
    });
    assert_eq!(helper.visible_programs(), 1);
    helper.finish();
}
