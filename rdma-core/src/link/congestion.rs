//! How many bytes may be under way.
//!
//! CUBIC (RFC 9438) with three changes that a fast and short path needs:
//!
//! * A loss by itself is no sign of congestion: some paths lose one frame in a hundred at any rate. The
//!   window is cut when the *share* of lost frames is above [`TOLERATED`]; below it, it only shrinks by
//!   what was lost.
//! * The window shrinks while the queue that it causes costs more than [`Limits::queue_delay`]: what waits in a
//!   driver or on the way makes everybody else wait as well. What waits for a backend to look, whose processor is
//!   busy with something else, is no such queue: a smaller window would not shorten it. But it fits no cache, so the
//!   window is held down then too, less far; further where other domains do send, and furthest where callers wait
//!   (`company`). What half the window does not shorten is somebody else's queue, or none, and left alone (`trial`).
//! * It never exceeds what the far end's driver can hold ([`Limits::window_max`]).

#[cfg(test)]
mod tests;

use super::company::Company;
use super::least::{Base, Rounds};
use super::rtt::Rtt;
use super::time::{MICROSECOND, SECOND, Time};
use super::trial::Trial;

/// Frames at the start of a session, and after its path fell silent for long.
const FRAMES_INITIAL: u64 = 16;

/// Frames that may always be under way.
const FRAMES_MIN: u64 = 2;

/// Share of lost frames that is not taken for congestion: 1 in 40.
const TOLERATED: u64 = 40;

/// The share is judged over at least so many frames,
const SAMPLE_FRAMES: u64 = 128;

/// or as soon as so many were lost.
const SAMPLE_LOST: u64 = 12;

/// What is left of the window after a cut.
const CUT: f64 = 0.7;

/// A window of so many bytes is not held down for the time that backends take to look: where they share
/// their processors with others, much of that is waiting for those.
const QUEUE_MIN: u64 = 1 << 20;
/// The same, on a link that several domains use.
const QUEUE_MIN_SHARED: u64 = 512 << 10;
/// The same, where callers wait for what is under way.
const QUEUE_MIN_CALLERS: u64 = 128 << 10;
/// The same for each stream that waits for its turn, on a link of one domain: with many, a window of
/// [`QUEUE_MIN`] is a few frames of each, and programs and backends wake each other for little. One turn.
const QUEUE_MIN_STREAM: u64 = 64 << 10;
/// At most that for all of them together.
const QUEUE_MIN_STREAMS: u64 = 4 << 20;

/// A queue on the way holds the window down to so many bytes and frames: with less, a slow path would be idle while backends
/// are woken.
const QUEUE_LEAST: u64 = 64 << 10;
const FRAMES_LEAST: u64 = 4;

/// What is left of the window after a round in which the queue was long: all but this part.
const QUEUE_SHARE: u64 = 8;

/// CUBIC's constant, in frames per second cubed.
const CUBIC: f64 = 0.4;

/// What bounds a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes.
    pub(super) window_max: u64,
    /// Nanoseconds.
    pub(super) queue_delay: u64,
}

impl Limits {
    /// A queue that costs less than this is not worth a slower sender.
    pub(super) const QUEUE_DELAY: u64 = 100 * MICROSECOND;
}

/// The window and its history.
#[derive(Debug)]
pub(super) struct Congestion {
    limits: Limits,
    company: Company,
    frame: u64,
    window: u64,
    /// Below it the window doubles each round.
    threshold: u64,
    in_flight: u64,
    /// Frames sent before this moment belong to the last cut.
    cut_at: Option<Time>,
    /// The window before the last cut, in frames, and when growth from there began.
    window_before: f64,
    epoch: Option<Time>,
    /// Bytes acknowledged that have not yet grown the window.
    credit: u64,
    acked: u64,
    lost: u64,
    /// The window, not the program, was the limit since the last acknowledgement.
    limited: bool,
    /// Streams that had more to send when the window last was the limit.
    waiting: u64,
    /// Answers: how long until we had them, and how long frames and acknowledgements were on their way alone. A round
    /// ends with an answer to what was sent after it began.
    answers: Rounds<2>,
    ways: Rounds<4>,
    way: Base,
    /// Whether the window is to be taken down for a queue on the way, and for callers.
    way_trial: Trial,
    call_trial: Trial,
    round_end: Time,
    /// Up to where it doubled, or was, before callers came.
    alone: Option<u64>,
    /// Cuts so far.
    pub(super) cuts: u64,
}

impl Congestion {
    pub(super) const fn new(frame: u64, limits: Limits) -> Self {
        Self {
            limits,
            company: Company::new(),
            frame,
            window: FRAMES_INITIAL * frame,
            threshold: u64::MAX,
            in_flight: 0,
            cut_at: None,
            window_before: 0.0,
            epoch: None,
            credit: 0,
            acked: 0,
            lost: 0,
            limited: false,
            waiting: 0,
            answers: Rounds::new(),
            ways: Rounds::new(),
            way: Base::new(),
            way_trial: Trial::new(),
            call_trial: Trial::new(),
            round_end: Time(0),
            alone: None,
            cuts: 0,
        }
    }

    /// The path carries frames of another size.
    pub(super) fn set_frame(&mut self, frame: u64) {
        // So many frames as before, at least: the window is judged in frames.
        if frame > self.frame
            && self.threshold == u64::MAX
            && self.window <= FRAMES_INITIAL * self.frame
        {
            self.window = FRAMES_INITIAL * frame;
        }
        self.frame = frame;
        self.clamp();
    }

    #[inline]
    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    #[inline]
    pub(super) const fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Nanoseconds that frame and acknowledgement are under way if nothing is in it; 0 before there was one.
    pub(super) const fn way_least(&self) -> u64 {
        self.way.get_or_zero()
    }

    /// Whether another frame may go.
    #[inline]
    pub(super) const fn has_room(&self) -> bool {
        self.in_flight < self.window
    }

    #[inline]
    pub(super) fn on_sent(&mut self, size: u64) {
        self.in_flight += size;
    }

    /// Who else uses the link.
    #[inline]
    pub(super) const fn company(&self) -> &Company {
        &self.company
    }

    #[inline]
    pub(super) const fn company_mut(&mut self) -> &mut Company {
        &mut self.company
    }

    /// What the window is never held down below, for the delay that it causes.
    fn queue_min(&self, now: Time) -> u64 {
        if self.heeds_callers(now) {
            QUEUE_MIN_CALLERS.max(FRAMES_LEAST * self.frame)
        } else if self.company.is_mixed(now) {
            QUEUE_MIN_SHARED
        } else {
            let streams = self.waiting.saturating_mul(QUEUE_MIN_STREAM);
            streams.clamp(QUEUE_MIN, QUEUE_MIN_STREAMS)
        }
    }

    /// There are callers, and a smaller window may help them.
    fn heeds_callers(&self, now: Time) -> bool {
        self.company.has_callers(now) && !self.call_trial.rests(now)
    }

    /// Once callers are gone, the window is soon what it was before they came.
    fn note_callers(&mut self, now: Time) {
        if self.company.has_callers(now) {
            let alone = self.threshold.max(self.window);
            self.alone.get_or_insert(alone);
        } else if let Some(alone) = self.alone.take() {
            self.threshold = self.threshold.max(alone);
            self.call_trial.end();
        }
    }

    /// The window is cut for another reason.
    const fn end_trials(&mut self) {
        self.way_trial.end();
        self.call_trial.end();
        self.alone = None;
    }

    /// There was more to send than the window let: so many streams wait.
    #[inline]
    pub(super) fn on_limited(&mut self, waiting: usize) {
        self.limited = true;
        self.waiting = waiting as u64;
    }

    /// An answer came `after` so long, of which frame and acknowledgement were on their `way` for so long; 0 if that is
    /// not known, or a clock was set.
    #[inline]
    pub(super) fn on_answer(&mut self, now: Time, after: u64, way: u64) {
        self.answers.note(after);
        if way > 0 {
            self.ways.note(way);
            self.way.note(now, way);
        }
    }

    /// A frame is no longer under way, for a reason that says nothing about the path.
    pub(super) fn forget(&mut self, size: u64) {
        self.in_flight = self.in_flight.saturating_sub(size);
    }

    /// A frame was acknowledged.
    #[inline]
    pub(super) fn on_acked(&mut self, size: u64, sent_at: Time) {
        self.in_flight = self.in_flight.saturating_sub(size);
        self.acked += 1;
        if self.cut_at.is_none_or(|cut| sent_at > cut) {
            self.credit += size;
        }
    }

    /// A frame was lost.
    pub(super) fn on_lost(&mut self, size: u64) {
        self.in_flight = self.in_flight.saturating_sub(size);
        self.lost += 1;
        // Even a tolerated loss takes its bytes off, so that a path that loses more than it carries
        // slows down before enough frames are counted.
        self.window = self.window.saturating_sub(size);
        self.clamp();
    }

    /// A frame that was taken for lost has arrived after all.
    pub(super) fn on_found(&mut self, size: u64) {
        self.lost = self.lost.saturating_sub(1);
        self.acked += 1;
        self.window += size;
        self.clamp();
    }

    /// Everything in one acknowledgement has been told. `newest_lost` is when the newest of the lost
    /// frames was sent.
    pub(super) fn settle(
        &mut self,
        now: Time,
        rtt: &Rtt,
        newest_acked: Option<Time>,
        newest_lost: Option<Time>,
    ) {
        let queue_min = self.queue_min(now);
        self.note_callers(now);
        if newest_acked.is_some_and(|newest| newest >= self.round_end) {
            self.answers.end();
            self.ways.end();
            self.round_end = now;
            if !self.is_queue_on_the_way(now) {
                self.way_trial.end();
            }
            if let Some(least) = self.held_down_to(now, rtt, queue_min)
                && !self.is_in_vain(now, rtt)
            {
                self.shrink(now, least);
            }
        }
        if newest_lost.is_some_and(|lost| self.cut_at.is_none_or(|cut| lost > cut)) {
            self.judge(now);
        }
        if self.acked + self.lost >= SAMPLE_FRAMES * 4 {
            self.acked /= 2;
            self.lost /= 2;
        }
        let credit = core::mem::take(&mut self.credit);
        if credit > 0
            && core::mem::take(&mut self.limited)
            && self.held_down_to(now, rtt, queue_min).is_none()
        {
            self.grow(now, rtt, credit);
        }
    }

    /// Nothing came through for so long that the window says nothing any more.
    pub(super) fn collapse(&mut self) {
        self.threshold = (self.window / 2).max(FRAMES_INITIAL * self.frame);
        self.window = FRAMES_MIN * self.frame;
        self.end_trials();
        self.epoch = None;
        self.credit = 0;
        self.acked = 0;
        self.lost = 0;
    }

    fn judge(&mut self, now: Time) {
        let seen = self.acked + self.lost;
        if self.lost < SAMPLE_LOST && seen < SAMPLE_FRAMES {
            return;
        }
        if self.lost * TOLERATED <= seen {
            return;
        }
        self.cuts += 1;
        self.end_trials();
        self.acked = 0;
        self.lost = 0;
        self.cut_at = Some(now);
        self.window_before = as_f64(self.window) / as_f64(self.frame);
        self.epoch = None;
        self.window = as_u64(as_f64(self.window) * CUT);
        self.clamp();
        self.threshold = self.window;
    }

    /// To how many bytes the window is to shrink, since its queue is long; `None`: it may grow.
    fn held_down_to(&self, now: Time, rtt: &Rtt, queue_min: u64) -> Option<u64> {
        let delay = self.limits.queue_delay;
        if self.is_queue_on_the_way(now) {
            let least = QUEUE_LEAST.max(FRAMES_LEAST * self.frame);
            return (self.window > least).then_some(least);
        }
        let busy = self.window >= queue_min && self.answers.exceeds(rtt.least.get(), delay);
        busy.then_some(queue_min)
    }

    fn is_queue_on_the_way(&self, now: Time) -> bool {
        let delay = self.limits.queue_delay;
        !self.way_trial.rests(now) && self.ways.exceeds(self.way.get(), delay)
    }

    /// Half the window and still nearly the same queue: it is others', or the way became longer, or a backend looks late whatever
    /// waits for it. Then the window goes back to where it was.
    fn is_in_vain(&mut self, now: Time, rtt: &Rtt) -> bool {
        let restored = if self.is_queue_on_the_way(now) {
            let (base, way) = (self.way.get(), self.ways.last());
            self.way_trial.look(now, self.window, base, way)
        } else if self.heeds_callers(now) {
            let (base, answer) = (rtt.least.get(), self.answers.last());
            self.call_trial.look(now, self.window, base, answer)
        } else {
            None
        };
        if let Some(window) = restored {
            self.window = window;
            self.clamp();
            self.threshold = self.threshold.max(window);
        }
        restored.is_some()
    }

    /// Down, but not below `least`; from here on it grows slowly.
    fn shrink(&mut self, now: Time, least: u64) {
        self.window = (self.window - self.window / QUEUE_SHARE).max(least);
        self.clamp();
        self.threshold = self.threshold.min(self.window);
        if self.is_queue_on_the_way(now) {
            // Which was there without callers, too.
            self.alone = self.alone.map(|alone| alone.min(self.window));
        }
        self.window_before = as_f64(self.window) / as_f64(self.frame);
        self.epoch = None;
    }

    fn grow(&mut self, now: Time, rtt: &Rtt, credit: u64) {
        if self.window < self.threshold {
            self.window += credit;
            self.clamp();
            return;
        }
        let start = *self.epoch.get_or_insert(now);
        let frames = as_f64(self.window) / as_f64(self.frame);
        let round = as_f64(rtt.smoothed) / as_f64(SECOND);
        let age = as_f64(now.since(start)) / as_f64(SECOND) + round;
        let origin = self.window_before.max(frames * CUT);
        let turn = (origin * (1.0 - CUT) / CUBIC).cbrt();
        let target = CUBIC * (age - turn).powi(3) + origin;
        // At least what Reno does: one frame for each window of acknowledged bytes.
        let share = as_f64(credit) / as_f64(self.frame) / frames;
        let cubic = (target - frames).clamp(0.0, frames / 2.0) * share;
        let step = cubic.max(share);
        self.window += as_u64(step * as_f64(self.frame)).max(1);
        self.clamp();
    }

    fn clamp(&mut self) {
        let least = FRAMES_MIN * self.frame;
        self.window = self.window.min(self.limits.window_max).max(least);
    }
}

/// Windows and times in nanoseconds are far below 2^52.
#[expect(
    clippy::cast_precision_loss,
    reason = "windows and durations are far below 2^52"
)]
const fn as_f64(value: u64) -> f64 {
    value as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a saturating cast is meant"
)]
const fn as_u64(value: f64) -> u64 {
    value as u64
}
