//! The text of reports: JSON, made of what the programs themselves write into their slots.
//!
//! A program can write anything there. Values are printed as they are, and how many is bounded.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::PoisonError;
use std::sync::atomic::Ordering as Count;

use rdma_core::control::{CONTROL_VERSION, Query};
use rdma_core::layout::LAYOUT_VERSION;
use rdma_core::reason::Reason;
use rdma_core::slot::{RxState, Slot, SlotMeta, Stage, TxState};
use rdma_core::sync::{AtomicU64, Ordering};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::Limits;
use crate::ledger::{Ledger, ProgramRecord, Totals, may_see};

/// Connections listed in one report.
const LISTED_MAX: usize = 65_536;

/// What the daemon was told at start.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Its limits.
    pub limits: Limits,
    /// Names of its domains.
    pub domains: Vec<String>,
}

/// The answer to `query` as `viewer` may see it.
pub fn text(ledger: &Ledger, settings: &Settings, viewer: u32, query: &Query) -> String {
    let value = match query.what {
        Query::STATUS => status(ledger, settings, viewer),
        Query::TOTALS => totals(query.session, &ledger.totals(viewer, query.session)),
        Query::LIMITS => limits(settings),
        other => json!({ "error": format!("query {other} is unknown") }),
    };
    value.to_string()
}

fn limits(settings: &Settings) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "control_version": CONTROL_VERSION,
        "layout_version": LAYOUT_VERSION,
        "limits": settings.limits,
    })
}

fn totals(session: u64, totals: &Totals) -> Value {
    json!({
        "session": session,
        "processes": totals.processes,
        "ring_tx_bytes": totals.ring_tx_bytes,
        "ring_rx_bytes": totals.ring_rx_bytes,
        "tcp_tx_bytes": totals.tcp_tx_bytes,
        "tcp_rx_bytes": totals.tcp_rx_bytes,
        "upgraded": totals.upgraded,
        "declined": totals.declined,
        "wakeups_sent": totals.wakeups_sent,
        "sleeps": totals.sleeps,
        "spins_won": totals.spins_won,
        "reasons": reasons(|code| totals.reasons.get(code).copied().unwrap_or(0)),
    })
}

fn reasons(count: impl Fn(usize) -> u64) -> Value {
    let mut map = Map::new();
    for reason in Reason::ALL {
        let count = count(reason.code() as usize);
        if count > 0 {
            map.insert(reason.name().to_owned(), count.into());
        }
    }
    Value::Object(map)
}

fn status(ledger: &Ledger, settings: &Settings, viewer: u32) -> Value {
    let mut processes = Vec::new();
    let mut connections = Vec::new();
    let mut complete = true;
    let mut visible: Vec<_> = ledger
        .programs
        .iter()
        .filter(|program| may_see(viewer, program.uid))
        .map(|program| std::sync::Arc::clone(&program))
        .collect();
    visible.sort_by_key(|program| program.process);
    for program in &visible {
        processes.push(process(program));
        program.each_slot(|index, slot| {
            if connections.len() < LISTED_MAX {
                connections.push(connection(ledger, program, index, slot));
            } else {
                complete = false;
            }
        });
    }
    let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(Count::Relaxed);
    json!({
        "daemon": {
            "version": env!("CARGO_PKG_VERSION"),
            "control_version": CONTROL_VERSION,
            "layout_version": LAYOUT_VERSION,
            "epoch": ledger.epoch,
            "uptime_s": ledger.started.elapsed().as_secs(),
            "pid": std::process::id(),
            "clients": count(&ledger.clients),
            "pairs": count(&ledger.pairs),
            "arenas": count(&ledger.arenas),
            "relayed": count(&ledger.relayed),
            "trimmed": count(&ledger.trimmed),
            "malformed": count(&ledger.malformed),
            "refused": reasons(|code| ledger.refused.get(code).map_or(0, |c| count(c) as u64)),
            "limits": settings.limits,
            "domains": settings.domains,
        },
        "processes": processes,
        "connections": connections,
        "survivors": survivors(ledger, viewer),
        "relay": *ledger.relay.lock().unwrap_or_else(PoisonError::into_inner),
        "vms": *ledger.vms.lock().unwrap_or_else(PoisonError::into_inner),
        "complete": complete,
    })
}

/// Connections that a daemon before this one has made: nobody knows more of them.
fn survivors(ledger: &Ledger, viewer: u32) -> Vec<Value> {
    let all = ledger.survivors.iter();
    let seen = all.filter(|entry| may_see(viewer, entry.uid));
    let mut list: Vec<_> = seen.map(|entry| (*entry.key(), *entry.value())).collect();
    list.sort_by_key(|(id, _)| *id);
    let shown = list.into_iter().take(LISTED_MAX).map(|(id, origin)| {
        json!({
            "conn_id": id.0,
            "own": origin.tuple.own.to_string(),
            "far": origin.tuple.far.to_string(),
            "uid": origin.uid,
        })
    });
    shown.collect()
}

fn process(program: &ProgramRecord) -> Value {
    let header = program.slots.header();
    let counters = &header.counters;
    let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
    json!({
        "process": program.process.0,
        "pid": program.pid,
        "own_pid": header.pid.load(Ordering::Relaxed),
        "uid": program.uid,
        "netns": program.netns,
        "session": program.session,
        "contexts": program.contexts.load(Count::Relaxed),
        "counters": {
            "upgraded": read(&counters.upgraded),
            "declined": read(&counters.declined),
            "ring_tx_bytes": read(&counters.ring_tx_bytes),
            "ring_rx_bytes": read(&counters.ring_rx_bytes),
            "tcp_tx_bytes": read(&counters.tcp_tx_bytes),
            "tcp_rx_bytes": read(&counters.tcp_rx_bytes),
            "wakeups_sent": read(&counters.wakeups_sent),
            "sleeps": read(&counters.sleeps),
            "spins_won": read(&counters.spins_won),
        },
        "reasons": reasons(|code| counters.reasons.get(code).map_or(0, read)),
    })
}

fn connection(ledger: &Ledger, program: &ProgramRecord, index: u32, slot: &Slot) -> Value {
    let link = ledger
        .links
        .get(&(program.process, index))
        .map(|link| *link);
    let meta = &slot.meta;
    let reason = meta.reason.load(Ordering::Relaxed);
    let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
    let (own, far) = addresses(meta);
    json!({
        "process": program.process.0,
        "pid": program.pid,
        "slot": index,
        "own": own.to_string(),
        "far": far.to_string(),
        "stage": stage(slot.stage()),
        "tx_state": tx_state(slot.tx.state()),
        "rx_state": rx_state(slot.rx.state()),
        "reason": match (reason, Reason::from_code(reason)) {
            (0, _) => Value::Null,
            (_, Some(reason)) => reason.name().into(),
            (code, None) => code.to_string().into(),
        },
        "ring_tx": slot.tx.cursor().tail,
        "ring_rx": slot.rx.cursor().head,
        "tcp_tx": read(&slot.tx.tcp_bytes),
        "tcp_rx": read(&slot.rx.tcp_bytes),
        "wakeups": read(&slot.tx.kicks),
        "sleeps": read(&slot.rx.sleeps),
        "conn_id": link.map(|link| link.connection.0),
        "peer_process": link.map(|link| link.peer.0),
    })
}

fn addresses(meta: &SlotMeta) -> (SocketAddr, SocketAddr) {
    let ports = meta.ports.load(Ordering::Relaxed).to_ne_bytes();
    let ports = u32::from_ne_bytes(ports);
    let family = meta.family.load(Ordering::Relaxed);
    let ip = |words: &[AtomicU64; 2]| {
        let [first, second] = words;
        let mut bytes = [0; 16];
        let (head, tail) = bytes.split_at_mut(8);
        head.copy_from_slice(&first.load(Ordering::Relaxed).to_ne_bytes());
        tail.copy_from_slice(&second.load(Ordering::Relaxed).to_ne_bytes());
        if family == 6 {
            IpAddr::V6(Ipv6Addr::from(bytes))
        } else {
            let [a, b, c, d, ..] = bytes;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
    };
    let port = |word: u32| u16::try_from(word & 0xffff).unwrap_or(0);
    (
        SocketAddr::new(ip(&meta.own_addr), port(ports)),
        SocketAddr::new(ip(&meta.far_addr), port(ports >> 16)),
    )
}

const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Free => "free",
        Stage::Candidate => "candidate",
        Stage::Registered => "registered",
        Stage::Attached => "attached",
        Stage::Plain => "plain",
    }
}

const fn tx_state(state: TxState) -> &'static str {
    match state {
        TxState::Kernel => "kernel",
        TxState::Switching => "switching",
        TxState::Ring => "ring",
        TxState::Done => "done",
        TxState::Returning => "returning",
        TxState::Returned => "returned",
    }
}

const fn rx_state(state: RxState) -> &'static str {
    match state {
        RxState::Kernel => "kernel",
        RxState::Armed => "armed",
        RxState::Draining => "draining",
        RxState::Ring => "ring",
        RxState::Done => "done",
        RxState::Returned => "returned",
    }
}
