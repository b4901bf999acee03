//! Makes a sequence that differs as short and as simple as it can be.

use std::time::{Duration, Instant};

use viaduct_tests::random::operation::{Call, Operation, RecvBy, SendBy};

use crate::Difference;

/// How long is spent on it.
const TIME: Duration = Duration::from_secs(60);

/// The shortest sequence found that `differs`, starting from `operations`.
pub(crate) fn shortest(
    operations: &[Operation],
    differs: impl Fn(&[Operation]) -> Option<Difference>,
) -> Difference {
    let started = Instant::now();
    let mut best = differs(operations).unwrap_or_else(|| Difference {
        shown: "only once".to_owned(),
        operations: operations.to_vec(),
    });
    let better = |candidate: &[Operation], best: &mut Difference| {
        let found = differs(candidate).filter(|found| {
            found.operations.len() < best.operations.len() || found.operations == candidate
        });
        found.map(|found| *best = found).is_some()
    };
    // Ever smaller pieces are left out.
    let mut piece = best.operations.len() / 2;
    while piece > 0 && started.elapsed() < TIME {
        let mut from = 0;
        while from < best.operations.len() && started.elapsed() < TIME {
            let mut shorter = best.operations.clone();
            shorter.drain(from..(from + piece).min(shorter.len()));
            if !better(&shorter, &mut best) {
                from += piece;
            }
        }
        piece /= 2;
    }
    // What remains is made simpler, one operation at a time.
    for at in 0..best.operations.len() {
        let Some(operation) = best.operations.get(at).copied() else {
            break;
        };
        for call in simpler(operation.call) {
            if started.elapsed() > TIME {
                break;
            }
            let mut simple = best.operations.clone();
            simple[at].call = call;
            if better(&simple, &mut best) {
                break;
            }
        }
    }
    best
}

/// Simpler calls than this one, the simplest first.
fn simpler(call: Call) -> Vec<Call> {
    let mut all = Vec::new();
    match call {
        Call::Send { at, by, len, .. } => {
            for (by, len, flags) in [
                (SendBy::Send, len.min(17), 0),
                (SendBy::Send, len, 0),
                (by, len.min(17), 0),
                (by, len, 0),
            ] {
                all.push(Call::Send { at, by, len, flags });
            }
        }
        Call::Recv { at, by, len, flags } => {
            for (by, len, flags) in [
                (RecvBy::Recv, len.min(17), 0),
                (RecvBy::Recv, len, flags),
                (by, len.min(17), 0),
                (by, len, 0),
            ] {
                all.push(Call::Recv { at, by, len, flags });
            }
        }
        _ => {}
    }
    all.retain(|other| *other != call);
    all
}
