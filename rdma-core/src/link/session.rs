//! What belongs to one session: numbers, keys, timers, the path.

use std::collections::VecDeque;

use super::Config;
use super::congestion::{Congestion, Limits};
use super::hello::credentials;
use super::probe::PathProbe;
use super::received::Received;
use super::rtt::Rtt;
use super::seal::{Credentials, Keys};
use super::sent::Sent;
use super::stats::Stats;
use super::time::{MILLISECOND, Time};
use crate::wire::{Hello, TAG_BYTES};

/// As in RFC 9002, until the path shows that it reorders more.
const REORDERING: u64 = 3;

/// More reordering than this is taken for loss.
const REORDERING_MAX: u64 = 1024;

/// At most a second round trip.
const PATIENCE_MAX: u64 = 8;

/// So many frames that were given up are remembered.
const GIVEN_UP_MAX: usize = 64;

/// What has to be acknowledged.
#[derive(Debug, Default)]
pub(super) struct AckDue {
    /// Frames that ask for it, since the last acknowledgement.
    pub(super) frames: u32,
    /// It must not wait.
    pub(super) now: bool,
    /// It must not wait longer.
    pub(super) at: Option<Time>,
    /// When the largest number arrived.
    pub(super) largest_at: Time,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) own: Credentials,
    pub(super) far: Hello,
    pub(super) keys: Option<Keys>,
    pub(super) number: u64,
    pub(super) received: Received,
    pub(super) ack: AckDue,
    pub(super) sent: Sent,
    /// Frames that were given up for lost: number and size, ascending.
    pub(super) given_up: VecDeque<(u64, u32)>,
    /// A frame is lost when so many later ones arrived,
    pub(super) reordering: u64,
    /// or one, and so many eighths of a round trip passed beyond the first.
    pub(super) patience: u64,
    /// Largest number that the far end acknowledged.
    pub(super) largest_acked: Option<u64>,
    pub(super) rtt: Rtt,
    pub(super) congestion: Congestion,
    pub(super) path: PathProbe,
    /// The oldest frame under way will be taken for lost then.
    pub(super) lost_at: Option<Time>,
    /// When the last frame that asks for an acknowledgement was sent.
    pub(super) asked_at: Time,
    /// Tail-loss timeouts in a row, and frames that they let out.
    pub(super) timeouts: u32,
    pub(super) probes: u8,
    pub(super) ping: bool,
    /// Bytes sent since an acknowledgement was last wished for at once.
    pub(super) since_wish: u64,
    /// The frame that wished for it.
    pub(super) wished: Option<u64>,
    /// An answer has been due since then.
    pub(super) waiting_since: Option<Time>,
    pub(super) heard_at: Time,
    pub(super) silent: bool,
    pub(super) idle_timeout: u64,
}

impl Session {
    pub(super) fn new(config: &Config, own: Credentials, far: Hello, now: Time) -> Self {
        let limit = config.frame_limit(&far);
        let path = PathProbe::new(config.min_frame.max(Hello::MAX_FRAME_LEAST), limit);
        let far_timeout = u64::from(far.idle_timeout_ms) * MILLISECOND;
        Self {
            keys: config
                .key
                .as_ref()
                .map(|psk| Keys::new(psk, &own, &credentials(&far))),
            congestion: Congestion::new(
                path.size() as u64,
                Limits {
                    window_max: u64::from(far.window),
                    queue_delay: config.queue_delay,
                },
            ),
            own,
            far,
            number: 0,
            received: Received::default(),
            ack: AckDue::default(),
            sent: Sent::default(),
            given_up: VecDeque::new(),
            reordering: REORDERING,
            patience: 1,
            largest_acked: None,
            rtt: Rtt::new(),
            path,
            lost_at: None,
            asked_at: now,
            timeouts: 0,
            probes: 0,
            // The far end may not know yet that the session exists.
            ping: true,
            since_wish: 0,
            wished: None,
            waiting_since: None,
            heard_at: now,
            silent: false,
            idle_timeout: config.idle_timeout.min(far_timeout).max(MILLISECOND),
        }
    }

    /// Bytes that the tag takes.
    #[inline]
    pub(super) const fn tag(&self) -> usize {
        if self.keys.is_some() { TAG_BYTES } else { 0 }
    }

    /// Whether the far end has still to acknowledge a frame that wishes for it at once.
    pub(super) fn wish_is_open(&self) -> bool {
        self.wished.is_some() && self.largest_acked < self.wished
    }

    /// A frame is given up for lost.
    pub(super) fn give_up(&mut self, number: u64, size: u32) {
        if self.given_up.len() == GIVEN_UP_MAX {
            self.given_up.pop_front();
        }
        if self.given_up.back().is_none_or(|last| last.0 < number) {
            self.given_up.push_back((number, size));
        }
    }

    /// The numbers `first..=last` have arrived. Of those that were given up the window gets back what it
    /// lost, and the path is trusted longer from now on. Gives their number.
    pub(super) fn find_again(&mut self, first: u64, last: u64) -> u64 {
        let from = self.given_up.partition_point(|lost| lost.0 < first);
        let to = self.given_up.partition_point(|lost| lost.0 <= last);
        for (_, size) in self.given_up.drain(from..to) {
            self.congestion.on_found(u64::from(size));
            self.reordering = (self.reordering * 2).min(REORDERING_MAX);
            self.patience = (self.patience * 2).min(PATIENCE_MAX);
        }
        (to - from) as u64
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.path.set_limit(limit);
        self.congestion.set_frame(self.path.size() as u64);
    }

    pub(super) fn rotate(&mut self) -> bool {
        let (number, acked) = (self.number, self.largest_acked);
        self.keys
            .as_mut()
            .is_some_and(|keys| keys.rotate(number, acked))
    }

    pub(super) fn describe(&self, stats: &mut Stats) {
        stats.rtt = if self.rtt.known() {
            self.rtt.smoothed
        } else {
            0
        };
        stats.rtt_deviation = self.rtt.deviation;
        stats.rtt_least = self.rtt.least.get_or_zero();
        stats.way_least = self.congestion.way_least();
        stats.window = self.congestion.window();
        stats.in_flight = self.congestion.in_flight();
        stats.cuts = self.congestion.cuts;
        stats.frame = self.path.size() as u64;
    }
}
