//! Counters of links and NICs for reports.

use rdma_core::link::{DomainCounters, DomainId, Stats};
use rdma_core::mr::Counters;
use serde_json::{Value, json};

use crate::nic::NicStats;

pub(super) fn of_nic(stats: &NicStats) -> Value {
    json!({
        "sent_frames": stats.sent_frames,
        "sent_bytes": stats.sent_bytes,
        "send_calls": stats.send_calls,
        "send_drops": stats.send_drops,
        "received_frames": stats.received_frames,
        "received_bytes": stats.received_bytes,
        "receive_calls": stats.receive_calls,
        "receive_drops": stats.receive_drops,
        "malformed": stats.malformed,
    })
}

pub(super) fn of_domain(id: DomainId, counters: &DomainCounters) -> Value {
    json!({
        "domain": id.0,
        "bytes": counters.bytes,
        "frames": counters.frames,
        "throttled_us": counters.throttled / 1000,
    })
}

pub(super) fn of_keys(counters: &Counters) -> Value {
    json!({
        "granted": counters.granted,
        "forged": counters.forged,
        "stale": counters.stale,
        "domain": counters.domain,
        "range": counters.range,
    })
}

pub(super) fn of_link(stats: &Stats) -> Value {
    json!({
        "sessions": stats.sessions,
        "frames_sent": stats.frames_sent,
        "bytes_sent": stats.bytes_sent,
        "stream_bytes_sent": stats.stream_bytes_sent,
        "bytes_again": stats.bytes_again,
        "frames_received": stats.frames_received,
        "bytes_received": stats.bytes_received,
        "stream_bytes_received": stats.stream_bytes_received,
        "acks_sent": stats.acks_sent,
        "acks_received": stats.acks_received,
        "frames_lost": stats.frames_lost,
        "tail_probes": stats.tail_probes,
        "collapses": stats.collapses,
        "cuts": stats.cuts,
        "path_shrunk": stats.path_shrunk,
        "malformed": stats.malformed,
        "forged": stats.forged,
        "replayed": stats.replayed,
        "strange": stats.strange,
        "postponed": stats.postponed,
        "refused": stats.refused,
        "for_closed": stats.for_closed,
        "violations": stats.violations,
        "rtt_us": stats.rtt / 1000,
        "rtt_least_us": stats.rtt_least / 1000,
        "way_least_us": stats.way_least / 1000,
        "window": stats.window,
        "in_flight": stats.in_flight,
        "frame": stats.frame,
    })
}
