//! The state machine of one link: everything between two backends that is not a system call.
//!
//! Sans-IO: the caller gives it frames and the time, and takes frames, events and the next timeout from
//! it. It owns no socket, no clock and no ring; bytes that arrive go straight from the frame to their
//! place ([`Memory`]), and bytes to be sent are named, not copied ([`Payload`]).
//!
//! ```text
//! engine                                link                                   engine
//!   produced, consumed, set_state  --->  streams (`stream`, `reassembly`)
//!   send_control                   --->  control channel (`control`)
//!   poll_transmit(now, schedule)   <---  `transmit`: whose turn (`schedule`), how much
//!                                        (`congestion`, `company`), how large (`probe`), sealed (`seal`)
//!   handle_frame(now, frame)       --->  `receive`: handshake (`hello`), numbers (`received`),
//!                                        operations, what was lost (`recovery`, `sent`, `rtt`)
//!   handle_timeout(now)            --->  `timeout`: the tail, keep-alive, silence
//!   poll_event, poll_timeout       <---
//! ```
//!
//! After any call the caller takes events until there are none and frames until there are none (or its
//! driver is full), and calls [`Link::handle_timeout`] when [`Link::poll_timeout`] says. docs/protocol.md
//! is normative for what goes over the wire.
//!
//! Trust: frames may come from anybody. No input makes a link panic or grow without bound; with a key,
//! nothing that the key has not authenticated changes anything.
//!
//! Tests: units here, `tests/link.rs` (two links, a virtual clock and a bad path, many seeds),
//! `fuzz/` (frame sequences), `benches/link.rs`.

#![forbid(unsafe_code)]

mod company;
mod config;
mod congestion;
mod control;
mod crossing;
mod event;
mod frame;
mod hello;
mod least;
mod memory;
mod probe;
mod reassembly;
mod receive;
mod received;
mod recovery;
mod rtt;
mod schedule;
mod seal;
mod sent;
mod session;
mod stats;
mod stream;
mod time;
mod timeout;
mod transmit;
mod trial;
mod turns;

use std::collections::VecDeque;

pub use self::config::{Config, Endpoint, FarEnd, Positions};
pub use self::control::Full;
pub use self::crossing::Crossing;
pub use self::event::{DownReason, Dropped, Event};
pub use self::frame::{Frame, Head, Payload};
pub use self::memory::{Memory, Refusal};
pub use self::schedule::{DomainConfig, DomainCounters, DomainId, Schedule};
pub use self::seal::Psk;
pub use self::stats::Stats;
pub use self::time::{MICROSECOND, MILLISECOND, SECOND, Time};
pub use crate::wire::State;

use self::control::Channel;
use self::hello::Handshake;
use self::sent::StreamRef;
use self::session::Session;
use self::stream::{Life, Stream, Streams};
use self::turns::{Turn, Turns};

/// One link.
#[derive(Debug)]
pub struct Link {
    config: Config,
    now: Time,
    handshake: Handshake,
    session: Option<Box<Session>>,
    streams: Streams,
    turns: Turns,
    control: Channel,
    events: VecDeque<Event>,
    /// Streams with something to tell.
    told: VecDeque<StreamRef>,
    states: VecDeque<StreamRef>,
    positions: VecDeque<StreamRef>,
    /// Some of `positions` should not wait,
    positions_urgent: bool,
    /// and none longer than this.
    positions_at: Option<Time>,
    throttled_until: Option<Time>,
    /// A session number that somebody used and that is not ours.
    reset: Option<u32>,
    closing: Option<(u32, u8)>,
    stats: Stats,
}

/// A position of the local program may be told this much later, so that it can ride on something else.
const POSITION_DELAY: u64 = MILLISECOND;

impl Link {
    /// A link that says HELLO at once: its first timeout is due now.
    pub fn new(config: Config, now: Time) -> Self {
        let mut handshake = Handshake::new(config.seed);
        handshake.start(now);
        Self {
            config,
            now,
            handshake,
            session: None,
            streams: Streams::default(),
            turns: Turns::default(),
            control: Channel::default(),
            events: VecDeque::new(),
            told: VecDeque::new(),
            states: VecDeque::new(),
            positions: VecDeque::new(),
            positions_urgent: false,
            positions_at: None,
            throttled_until: None,
            reset: None,
            closing: None,
            stats: Stats::default(),
        }
    }

    /// Says HELLO again after the link has come to rest.
    pub fn connect(&mut self, now: Time) {
        self.now = self.now.max(now);
        if self.session.is_none() {
            self.closing = None;
            self.handshake.start(now);
        }
    }

    /// Whether there is a session.
    pub fn is_up(&self) -> bool {
        self.session.is_some()
    }

    /// Whether there are streams that say little and often, beside one that has much to say: what is handed to the driver at
    /// once, or lies in its queue, they wait for.
    #[inline]
    pub fn has_callers(&self, now: Time) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.congestion.company().has_callers(now))
    }

    /// Nanoseconds without any answer after which the link is down.
    pub const fn idle_timeout(&self) -> u64 {
        self.config.idle_timeout
    }

    /// Counters, and what is known of the path.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        if let Some(session) = &self.session {
            session.describe(&mut stats);
        }
        stats
    }

    /// The far end may write to this endpoint before it is opened: such frames are not acknowledged, so
    /// that they come again. Frames for endpoints that are neither open nor expected are dropped.
    pub fn expect(&mut self, endpoint: Endpoint) {
        self.streams.occupy(endpoint, Life::Expected);
    }

    /// Opens a stream. One that is open already stays as it is.
    pub fn open(
        &mut self,
        endpoint: Endpoint,
        far: FarEnd,
        own_rkey: u32,
        domain: DomainId,
        at: Positions,
    ) {
        let domain = self.turns.index(domain);
        if let Some(slot) = self.streams.occupy(endpoint, Life::Open)
            && let Some(stream) = self.streams.at(slot)
        {
            stream.start(far, own_rkey, Turn { domain, slot }, at);
        }
    }

    /// Forgets a stream; nothing more is sent or taken for it.
    pub fn close(&mut self, endpoint: Endpoint) {
        if let Some((_, stream)) = self.streams.of(endpoint)
            && stream.ready
        {
            self.turns.remove(stream.turn);
        }
        self.streams.release(endpoint);
    }

    /// The local program has written up to `tail`.
    #[inline]
    pub fn produced(&mut self, endpoint: Endpoint, tail: u64) {
        if let Some((_, stream)) = self.streams.of(endpoint)
            && tail > stream.produced
        {
            stream.produced = tail;
            update_ready(&mut self.turns, stream);
        }
    }

    /// The local program has read up to `head`.
    #[inline]
    pub fn consumed(&mut self, endpoint: Endpoint, head: u64) {
        let Some((slot, stream)) = self.streams.of(endpoint) else {
            return;
        };
        if head <= stream.head || head > stream.edge {
            return;
        }
        stream.head = head;
        if head - stream.reported >= stream.far.capacity / 4 {
            self.positions_urgent = true;
        }
        if !stream.consumed_queued {
            stream.consumed_queued = true;
            let generation = stream.generation;
            self.positions.push_back(StreamRef { slot, generation });
            self.positions_at
                .get_or_insert(self.now.plus(POSITION_DELAY));
        }
    }

    /// What the local program has said so far. It is sent at once, and until it arrives or is replaced.
    pub fn set_state(&mut self, endpoint: Endpoint, state: State) {
        let Some((slot, stream)) = self.streams.of(endpoint) else {
            return;
        };
        if stream.state == state && stream.state_sequence > 0 {
            return;
        }
        stream.state = state;
        stream.state_sequence = stream.state_sequence.saturating_add(1);
        if !stream.state_queued {
            stream.state_queued = true;
            let generation = stream.generation;
            self.states.push_back(StreamRef { slot, generation });
        }
    }

    /// Whether the far end has all that [`Self::set_state`] was told; also if the stream is not open.
    pub fn is_state_known(&mut self, endpoint: Endpoint) -> bool {
        self.streams
            .of(endpoint)
            .is_none_or(|(_, stream)| stream.state_known == stream.state_sequence)
    }

    /// Drops what is unsent or unacknowledged of this stream's bytes: the far program has left its ring.
    pub fn stop_sending(&mut self, endpoint: Endpoint) {
        if let Some((_, stream)) = self.streams.of(endpoint) {
            stream.stopped = true;
            stream.lost.clear();
            update_ready(&mut self.turns, stream);
        }
    }

    /// Sends a message by the control channel. Before the first session it waits for it; it is lost with
    /// the session, or when nobody answers.
    ///
    /// # Errors
    /// [`Full`]
    pub fn send_control(&mut self, message: &[u8]) -> Result<(), Full> {
        self.control.send(message)
    }

    /// Tells the far end that the link ends, and ends it.
    pub fn shut_down(&mut self, reason: u32) {
        self.handshake.rest();
        if self.session.is_some() && self.closing.is_none() {
            self.closing = Some((reason, CLOSE_COPIES));
        }
    }

    /// The driver can send and receive frames of this size now.
    pub fn set_max_frame(&mut self, max_frame: usize) {
        self.config.max_frame = max_frame;
        if let Some(session) = &mut self.session {
            session.set_limit(self.config.frame_limit(&session.far));
        }
    }

    /// Replaces the key that seals what this side sends. False: not now (there is none, or the far end may
    /// not know the last one yet).
    pub fn rotate_key(&mut self) -> bool {
        self.session
            .as_mut()
            .is_some_and(|session| session.rotate())
    }

    /// Seals a frame in place: what [`Self::poll_transmit`] put into the head, the payload it named, and
    /// room for the tag, [`Frame::size`] bytes in all. False: not a frame of this session; drop it.
    #[must_use]
    pub fn seal(&self, frame: &mut [u8]) -> bool {
        self.session
            .as_ref()
            .and_then(|session| session.keys.as_ref())
            .is_some_and(|keys| keys.seal(frame))
    }

    /// What has happened since.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if let Some(message) = self.control.take() {
            return Some(Event::Control(message));
        }
        while let Some(&meant) = self.told.front() {
            if let Some(stream) = self.streams.get(meant) {
                let endpoint = Endpoint(stream.endpoint);
                if core::mem::take(&mut stream.tell_arrived) {
                    let edge = stream.edge;
                    return Some(Event::Arrived { endpoint, edge });
                }
                if core::mem::take(&mut stream.tell_consumed) {
                    let head = stream.far_head;
                    return Some(Event::Consumed { endpoint, head });
                }
                if core::mem::take(&mut stream.tell_state) {
                    let state = stream.far_state;
                    return Some(Event::State { endpoint, state });
                }
            }
            self.told.pop_front();
        }
        None
    }

    /// Ends the session.
    fn go_down(&mut self, now: Time, reason: DownReason) {
        self.session = None;
        self.forget_session();
        self.handshake.renew();
        if reason == DownReason::Silent {
            self.handshake.start(now);
        } else {
            self.handshake.rest();
        }
        self.events.push_back(Event::Down(reason));
    }

    /// Forgets what belongs to a session.
    fn forget_session(&mut self) {
        self.streams.clear();
        self.turns.clear();
        self.control.reset();
        self.told.clear();
        self.states.clear();
        self.positions.clear();
        self.positions_urgent = false;
        self.positions_at = None;
        self.throttled_until = None;
        self.closing = None;
    }
}

/// How often CLOSE is sent: it is not acknowledged.
const CLOSE_COPIES: u8 = 3;

/// Tells the scheduler whether a stream has something to send.
#[inline]
fn update_ready(turns: &mut Turns, stream: &mut Stream) {
    let ready = stream.sendable().is_some();
    if ready == stream.ready {
        return;
    }
    stream.ready = ready;
    if ready {
        stream.run = 0;
        turns.add(stream.turn, stream.credit);
    } else {
        stream.credit = turns.remove(stream.turn);
    }
}
