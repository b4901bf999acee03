//! How two links find each other and agree on a session.
//!
//! Each side draws a session number and a nonce, and a session comes to be when a side sees *both* its
//! own echoed: what is replayed cannot do that. What was drawn serves for one session only, so no
//! session can be set up twice, nor its keys be used twice. docs/protocol.md has the rules.

use std::collections::VecDeque;

use super::seal::Credentials;
use super::time::{MILLISECOND, Time};
use super::{Config, DownReason, Dropped, Event, Link, Session};
use crate::wire::{FRAME_MAX, HELLO_BYTES, Hello};

/// First pause between two HELLOs; it doubles
const PAUSE: u64 = 100 * MILLISECOND;

/// up to this.
const PAUSE_MAX: u64 = 1000 * MILLISECOND;

/// HELLOs that wait to be sent: more only come when somebody floods us with theirs.
const WAITING_MAX: usize = 4;

/// A HELLO that waits to be sent.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    own: Credentials,
    echo: Option<Credentials>,
    answer: bool,
}

/// The part of a link that is there before and between sessions.
#[derive(Debug)]
pub(super) struct Handshake {
    seed: [u8; 32],
    drawn: u64,
    /// For the next session.
    pub(super) own: Credentials,
    /// Who would be at its far end.
    pub(super) candidate: Option<Hello>,
    waiting: VecDeque<Waiting>,
    tries: u32,
    pub(super) next_at: Option<Time>,
    asked_at: Option<Time>,
}

impl Handshake {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self {
            seed,
            drawn: 1,
            own: Credentials::draw(&seed, 0),
            candidate: None,
            waiting: VecDeque::with_capacity(WAITING_MAX),
            tries: 0,
            next_at: None,
            asked_at: None,
        }
    }

    /// What was drawn is used up.
    pub(super) fn renew(&mut self) {
        self.own = Credentials::draw(&self.seed, self.drawn);
        self.drawn += 1;
        self.candidate = None;
        self.tries = 0;
        self.next_at = None;
    }

    /// Begins to say HELLO.
    pub(super) fn start(&mut self, now: Time) {
        self.tries = 0;
        self.next_at = Some(now);
    }

    /// No more HELLOs of our own accord.
    pub(super) fn rest(&mut self) {
        self.next_at = None;
        self.waiting.clear();
    }

    /// The time of [`Self::next_at`] has come. False: that was the last try.
    pub(super) fn on_timeout(&mut self, now: Time, tries_max: u32) -> bool {
        if tries_max > 0 && self.tries >= tries_max {
            self.next_at = None;
            return false;
        }
        let pause = PAUSE << self.tries.min(4);
        self.tries = self.tries.saturating_add(1);
        self.next_at = Some(now.plus(pause.min(PAUSE_MAX)));
        let echo = self.candidate.as_ref().map(credentials);
        self.say(self.own, echo, false);
        true
    }

    /// A DATA frame came for a session that is not there. True: the far end has made it with what was
    /// drawn for the next one, and the HELLO that should have told was lost. It is asked to say it again.
    pub(super) fn on_unknown(&mut self, now: Time, session: u32) -> bool {
        if session != self.own.session {
            return false;
        }
        if self.may_ask(now) {
            let echo = self.candidate.as_ref().map(credentials);
            self.say(self.own, echo, false);
        }
        true
    }

    /// Whether a frame that anybody can send may cause a HELLO now.
    fn may_ask(&mut self, now: Time) -> bool {
        let may = self.asked_at.is_none_or(|at| now.since(at) >= PAUSE);
        if may {
            self.asked_at = Some(now);
        }
        may
    }

    pub(super) fn has_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn say(&mut self, own: Credentials, echo: Option<Credentials>, answer: bool) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(Waiting { own, echo, answer });
        }
    }
}

impl Link {
    /// The next HELLO to send.
    pub(super) fn next_hello(&mut self) -> Option<[u8; HELLO_BYTES]> {
        let waiting = self.handshake.waiting.pop_front()?;
        let config = &self.config;
        let echo = waiting.echo.unwrap_or(Credentials {
            session: 0,
            nonce: [0; 16],
        });
        let hello = Hello {
            session: waiting.own.session,
            echo: echo.session,
            backend: config.backend,
            epoch: config.epoch,
            capabilities: config.capabilities,
            max_frame: u32::try_from(config.max_frame.clamp(Hello::MAX_FRAME_LEAST, FRAME_MAX))
                .unwrap_or(0),
            idle_timeout_ms: u32::try_from(config.idle_timeout / MILLISECOND)
                .unwrap_or(u32::MAX)
                .max(1),
            window: config.window.max(1 << 16),
            answer: waiting.answer,
            live: self.session.is_some(),
            nonce: waiting.own.nonce,
            echo_nonce: echo.nonce,
        };
        let mut frame = hello.emit();
        if let Some(key) = &config.key {
            key.sign(&mut frame);
        }
        Some(frame)
    }

    pub(super) fn handle_hello(
        &mut self,
        now: Time,
        frame: &[u8],
        body: &[u8],
    ) -> Result<(), Dropped> {
        let (hello, tag) = Hello::parse(body).map_err(Dropped::Malformed)?;
        match &self.config.key {
            Some(key) if !key.signed(frame, &tag) => return Err(Dropped::Forged),
            None if tag != [0; 16] => return Err(Dropped::Sealed),
            _ => {}
        }
        if hello.backend == self.config.backend {
            return Err(Dropped::Own);
        }
        let far = credentials(&hello);
        let echoed = Credentials {
            session: hello.echo,
            nonce: hello.echo_nonce,
        };
        if let Some(session) = &self.session {
            let known = credentials(&session.far);
            // The far end of the session, or of one that both sides believe in: there is only one.
            let same = far == known
                || (hello.live
                    && hello.backend == session.far.backend
                    && hello.epoch == session.far.epoch
                    && echoed != self.handshake.own);
            if same {
                let own = session.own;
                if !hello.answer {
                    self.handshake.say(own, Some(known), true);
                }
                return Ok(());
            }
        }
        if echoed == self.handshake.own {
            let own = self.handshake.own;
            self.establish(now, hello);
            self.handshake.say(own, Some(far), true);
            return Ok(());
        }
        if hello.answer && hello.live {
            return Err(Dropped::Stale);
        }
        self.handshake.candidate = Some(hello);
        let own = self.handshake.own;
        self.handshake.say(own, Some(far), !hello.answer);
        Ok(())
    }

    /// The far end does not know our session, or somebody says so: ask.
    pub(super) fn handle_reset(&mut self, now: Time, number: u32) -> Result<(), Dropped> {
        let Some(session) = &self.session else {
            return Err(Dropped::Session);
        };
        if session.far.session != number {
            return Err(Dropped::Session);
        }
        if !self.handshake.may_ask(now) {
            return Err(Dropped::Stale);
        }
        let (own, far) = (session.own, credentials(&session.far));
        self.handshake.say(own, Some(far), false);
        Ok(())
    }

    /// A session comes to be with what was drawn for it.
    pub(super) fn establish(&mut self, now: Time, far: Hello) {
        if let Some(old) = self.session.take() {
            let rebooted = old.far.backend != far.backend || old.far.epoch != far.epoch;
            self.forget_session();
            self.events.push_back(if rebooted {
                Event::Rebooted {
                    far_backend: far.backend,
                    far_epoch: far.epoch,
                }
            } else {
                Event::Down(DownReason::Forgotten)
            });
        }
        let own = self.handshake.own;
        self.session = Some(Box::new(Session::new(&self.config, own, far, now)));
        self.handshake.renew();
        self.handshake.waiting.clear();
        self.stats.sessions += 1;
        self.events.push_back(Event::Up {
            far_backend: far.backend,
            far_epoch: far.epoch,
            capabilities: far.capabilities & self.config.capabilities,
        });
    }
}

pub(super) fn credentials(hello: &Hello) -> Credentials {
    Credentials {
        session: hello.session,
        nonce: hello.nonce,
    }
}

impl Config {
    /// The longest frame that both drivers can.
    pub(super) fn frame_limit(&self, far: &Hello) -> usize {
        let limit = self.max_frame.min(far.max_frame as usize);
        limit.clamp(Hello::MAX_FRAME_LEAST, FRAME_MAX)
    }
}
