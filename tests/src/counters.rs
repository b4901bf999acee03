//! What a daemon counted.

use std::path::Path;
use std::time::Duration;

use frontend_drv::client::{Client, ReceiveError};
use rdma_core::control::{MESSAGE_MAX, Message, Query};
use serde_json::Value;

/// Longest wait for an answer.
const WATCHDOG: Duration = Duration::from_secs(30);

/// Sums over the programs of one session.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Bytes sent and received through rings.
    pub ring_bytes: u64,
    /// Bytes of peer connections sent and received through the kernel.
    pub tcp_bytes: u64,
    /// Connections whose memory was attached.
    pub upgraded: u64,
    /// Programs that have greeted the daemon.
    pub processes: u64,
    /// Reasons for being plain or broken, as the daemon names them.
    pub reasons: Vec<(String, u64)>,
}

/// The totals of `session`.
///
/// # Errors
/// The daemon does not answer, or not with what it should.
pub fn totals(socket: &Path, session: u64) -> anyhow::Result<Totals> {
    let answer = ask(socket, Query::TOTALS, session)?;
    let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    let reasons = answer.get("reasons").and_then(Value::as_object);
    let reasons = reasons.into_iter().flatten();
    Ok(Totals {
        ring_bytes: number("ring_tx_bytes") + number("ring_rx_bytes"),
        tcp_bytes: number("tcp_tx_bytes") + number("tcp_rx_bytes"),
        upgraded: number("upgraded"),
        processes: number("processes"),
        reasons: reasons
            .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0)))
            .collect(),
    })
}

/// All the daemon knows, as its own JSON.
///
/// # Errors
/// As [`totals`].
pub fn status(socket: &Path) -> anyhow::Result<Value> {
    ask(socket, Query::STATUS, 0)
}

/// Asks a daemon.
///
/// # Errors
/// As [`totals`].
pub fn ask(socket: &Path, what: u32, session: u64) -> anyhow::Result<Value> {
    let path = socket
        .to_str()
        .ok_or_else(|| anyhow::anyhow!("not a path: {}", socket.display()))?;
    let client = Client::connect(path)?;
    client.send(
        &Message::Query(Query {
            what,
            reserved: 0,
            session,
        }),
        &[],
    )?;
    let mut text = String::new();
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        match client.receive_blocking(&mut buffer, WATCHDOG) {
            Ok((Message::Report(head, piece), _)) => {
                text.push_str(piece);
                if head.more == 0 {
                    return Ok(serde_json::from_str(&text)?);
                }
            }
            Ok((other, _)) => anyhow::bail!("not a report: {other:?}"),
            Err(ReceiveError::Empty) => anyhow::bail!("no answer in {WATCHDOG:?}"),
            Err(error) => return Err(error.into()),
        }
    }
}
