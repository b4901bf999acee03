//! The totals that `viaduct run --stats-json` writes: how many bytes went by ring, how many by TCP.

use std::fs;
use std::ops::AddAssign;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Totals of one accelerated command and its children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ShimStats {
    pub(super) ring_tx_bytes: u64,
    pub(super) ring_rx_bytes: u64,
    pub(super) tcp_tx_bytes: u64,
    pub(super) tcp_rx_bytes: u64,
    /// Connections that moved to the ring.
    pub(super) upgraded: u64,
    /// Connections that stayed on TCP for a reason.
    pub(super) declined: u64,
    pub(super) wakeups_sent: u64,
    pub(super) sleeps: u64,
}

impl ShimStats {
    /// None if the file is missing or not what it should be: the command was killed, or ran
    /// without the library. That is shown as unknown, never as zero.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        match serde_json::from_str(&text) {
            Ok(stats) => Some(stats),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "unreadable stats");
                None
            }
        }
    }

    pub(super) fn ring_bytes(&self) -> u64 {
        self.ring_tx_bytes.saturating_add(self.ring_rx_bytes)
    }

    pub(super) fn tcp_bytes(&self) -> u64 {
        self.tcp_tx_bytes.saturating_add(self.tcp_rx_bytes)
    }

    /// The share of all bytes that went by ring, 0 to 1.
    pub(super) fn ring_share(&self) -> Option<f64> {
        let ring = as_f64(self.ring_bytes());
        let all = ring + as_f64(self.tcp_bytes());
        (all > 0.0).then(|| ring / all)
    }
}

impl AddAssign for ShimStats {
    fn add_assign(&mut self, other: Self) {
        let add = |total: &mut u64, more: u64| *total = total.saturating_add(more);
        add(&mut self.ring_tx_bytes, other.ring_tx_bytes);
        add(&mut self.ring_rx_bytes, other.ring_rx_bytes);
        add(&mut self.tcp_tx_bytes, other.tcp_tx_bytes);
        add(&mut self.tcp_rx_bytes, other.tcp_rx_bytes);
        add(&mut self.upgraded, other.upgraded);
        add(&mut self.declined, other.declined);
        add(&mut self.wakeups_sent, other.wakeups_sent);
        add(&mut self.sleeps, other.sleeps);
    }
}

/// Exact to 2^53 bytes, which is far beyond what a share is shown with.
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_we_do_not_know_are_no_error_and_missing_ones_are_zero() {
        let text = r#"{"ring_tx_bytes": 3, "tcp_rx_bytes": 1, "later": 7}"#;
        let stats: ShimStats = serde_json::from_str(text).unwrap();
        assert_eq!((stats.ring_bytes(), stats.tcp_bytes()), (3, 1));
        assert_eq!(stats.ring_share(), Some(0.75));
    }

    #[test]
    fn no_bytes_have_no_share() {
        assert_eq!(ShimStats::default().ring_share(), None);
    }

    #[test]
    fn sums_do_not_wrap() {
        let mut sum = ShimStats {
            ring_tx_bytes: u64::MAX,
            ..ShimStats::default()
        };
        sum += sum;
        assert_eq!(sum.ring_bytes(), u64::MAX);
    }

    #[test]
    fn a_missing_file_is_unknown() {
        assert_eq!(ShimStats::read(Path::new("/nonexistent/stats.json")), None);
    }
}
