//! The time of single calls, and of making connections: plain and under Viaduct, in turn.

use anyhow::{Result, ensure};
use serde::Serialize;

use super::lab::{Backend, Under, result_of};
use super::peer::calls::{CallTimes, ConnectRate};
use crate::bench::process::ScratchDir;
use crate::bench::progress::Progress;
use crate::bench::stats::median;

/// Calls with one number of bytes each.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Calls {
    pub(super) bytes: u32,
    pub(super) plain: Option<CallTimes>,
    pub(super) viaduct: Option<CallTimes>,
    /// Share of the bytes of the runs under Viaduct that went by ring, 0 to 1.
    pub(super) ring_share: f64,
}

/// Connections made and closed without a byte.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Connects {
    /// Medians, per second.
    pub(super) plain: Option<f64>,
    pub(super) viaduct: Option<f64>,
}

/// The sizes that are measured.
pub(super) const SIZES: [u32; 3] = [1, 64, 4096];

pub(super) fn calls(
    bytes: u32,
    runs: u32,
    scratch: &ScratchDir,
    progress: &mut Progress,
) -> Result<Calls> {
    let backend = Backend::start(scratch)?;
    let session = u64::from(bytes);
    let role = ["calls".to_owned(), format!("--bytes={bytes}")];
    let (plain, viaduct) = in_turn::<CallTimes>(&role, runs, &backend, session, scratch, progress)?;
    let totals = backend.totals(session)?;
    let ring = (totals.ring_tx_bytes + totals.ring_rx_bytes) as f64;
    let all = ring + (totals.tcp_tx_bytes + totals.tcp_rx_bytes) as f64;
    // What went by TCP is no measurement of a ring.
    ensure!(
        ring > all / 2.0,
        "only {ring:.0} of {all:.0} bytes went by ring, so these are not the times of its calls: see viaduct doctor"
    );
    Ok(Calls {
        bytes,
        plain: middle(&plain),
        viaduct: middle(&viaduct),
        ring_share: ring / all,
    })
}

pub(super) fn connects(
    runs: u32,
    scratch: &ScratchDir,
    progress: &mut Progress,
) -> Result<Connects> {
    let backend = Backend::start(scratch)?;
    let role = ["connects".to_owned()];
    let (plain, viaduct) = in_turn::<ConnectRate>(&role, runs, &backend, 1, scratch, progress)?;
    let middle = |rates: &[ConnectRate]| {
        let rates: Vec<f64> = rates.iter().map(|rate| rate.per_second).collect();
        median(&rates)
    };
    Ok(Connects {
        plain: middle(&plain),
        viaduct: middle(&viaduct),
    })
}

fn in_turn<T: serde::de::DeserializeOwned>(
    role: &[String],
    runs: u32,
    backend: &Backend,
    session: u64,
    scratch: &ScratchDir,
    progress: &mut Progress,
) -> Result<(Vec<T>, Vec<T>)> {
    let (mut plain, mut viaduct) = (Vec::new(), Vec::new());
    let name = role.join(" ");
    for run in 1..=runs {
        progress.begin(format!("{name}, run {run} of {runs}"));
        plain.push(result_of(Under::Plain, role, scratch)?);
        viaduct.push(result_of(
            Under::Viaduct { backend, session },
            role,
            scratch,
        )?);
    }
    progress.end(&name);
    Ok((plain, viaduct))
}

fn middle(runs: &[CallTimes]) -> Option<CallTimes> {
    let of = |value: fn(&CallTimes) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
    Some(CallTimes {
        send_ns: of(|run| run.send_ns)?,
        recv_ns: of(|run| run.recv_ns)?,
    })
}
