//! What a frame that arrived does.

use super::received::Seen;
use super::seal::Keys;
use super::sent::StreamRef;
use super::stream::{BEYOND_MAX, Life, Stream};
use super::time::Time;
use super::{DownReason, Dropped, Endpoint, Event, Link, Memory, Refusal, update_ready};
use super::{control::Accepted, rtt::ACK_DELAY};
use crate::wire::{
    Consumed, HEADER_BYTES, Header, Kind, Operation, Operations, StateUpdate, TAG_BYTES, Write,
    flag,
};

/// An acknowledgement waits for no more frames than this.
const ACK_FRAMES_MAX: u32 = 256;

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    Yes,
    /// The frame must come again.
    Again(Dropped),
    /// The session is over.
    Over(DownReason),
}

impl Link {
    /// Takes one frame, which the machine had at `arrived`: up to when it was on its way, and not waiting for somebody to
    /// look. The payload of a WRITE goes to `memory` straight from it; a sealed frame is opened in place.
    ///
    /// # Errors
    /// [`Dropped`] says why the frame changed nothing; it is counted in [`super::Stats`].
    #[inline]
    pub fn handle_frame(
        &mut self,
        now: Time,
        arrived: Option<Time>,
        frame: &mut [u8],
        memory: &mut impl Memory,
    ) -> Result<(), Dropped> {
        self.now = self.now.max(now);
        let size = frame.len() as u64;
        let result = self.sort(self.now, arrived, frame, memory);
        match result {
            Ok(()) => {
                self.stats.frames_received += 1;
                self.stats.bytes_received += size;
            }
            Err(dropped) => self.count(dropped),
        }
        result
    }

    fn count(&mut self, dropped: Dropped) {
        let stats = &mut self.stats;
        *match dropped {
            Dropped::Malformed(_) | Dropped::NotForLink => &mut stats.malformed,
            Dropped::Forged | Dropped::Unsealed | Dropped::Sealed => &mut stats.forged,
            Dropped::Duplicate | Dropped::Old | Dropped::Stale => &mut stats.replayed,
            Dropped::Session | Dropped::Own => &mut stats.strange,
            Dropped::BadAck => &mut stats.violations,
            Dropped::Early | Dropped::NoRoom => &mut stats.postponed,
        } += 1;
    }

    #[inline]
    fn sort(
        &mut self,
        now: Time,
        arrived: Option<Time>,
        frame: &mut [u8],
        memory: &mut impl Memory,
    ) -> Result<(), Dropped> {
        let (header, body) = Header::parse(frame).map_err(Dropped::Malformed)?;
        match header.kind {
            Kind::Data => self.handle_data(now, arrived, &header, frame, memory),
            Kind::Hello => self.handle_hello(now, frame, body),
            Kind::Reset => self.handle_reset(now, header.session),
            Kind::Announce => Err(Dropped::NotForLink),
        }
    }

    #[inline]
    fn handle_data(
        &mut self,
        now: Time,
        arrived: Option<Time>,
        header: &Header,
        frame: &mut [u8],
        memory: &mut impl Memory,
    ) -> Result<(), Dropped> {
        let end = self.open_frame(now, header, frame)?;
        let body = frame.get(HEADER_BYTES..end).unwrap_or(&[]);
        Operations::new(body).check().map_err(Dropped::Malformed)?;
        self.apply(now, arrived, header, body, memory)
    }

    /// Checks number and seal of a frame of the session; gives the end of its body.
    #[inline]
    fn open_frame(
        &mut self,
        now: Time,
        header: &Header,
        frame: &mut [u8],
    ) -> Result<usize, Dropped> {
        let session = match &mut self.session {
            Some(session) if session.own.session == header.session => session,
            _ => {
                if !self.handshake.on_unknown(now, header.session) {
                    self.reset = Some(header.session);
                }
                return Err(Dropped::Session);
            }
        };
        match session.received.look(header.number) {
            Seen::New => {}
            Seen::Duplicate => return Err(Dropped::Duplicate),
            Seen::Old | Seen::Ahead => return Err(Dropped::Old),
        }
        let sealed = header.flags & flag::SEALED != 0;
        match &mut session.keys {
            Some(_) if !sealed => Err(Dropped::Unsealed),
            Some(keys) => open_sealed(keys, header, frame),
            None if sealed => Err(Dropped::Sealed),
            None => Ok(frame.len()),
        }
    }

    #[inline]
    fn apply(
        &mut self,
        now: Time,
        arrived: Option<Time>,
        header: &Header,
        body: &[u8],
        memory: &mut impl Memory,
    ) -> Result<(), Dropped> {
        let mut asks = false;
        let mut again = None;
        for operation in Operations::new(body).flatten() {
            asks |= operation.asks();
            let done = match operation {
                Operation::Write(write) => self.on_write(&write, memory),
                Operation::Ack(ack) => self.on_ack(now, arrived, &ack),
                Operation::Consumed(consumed) => self.on_consumed(&consumed),
                Operation::State(update) => self.on_state(&update),
                Operation::Control(message) => {
                    match self.control.receive(message.sequence, message.message) {
                        Accepted::Yes => Done::Yes,
                        Accepted::No => Done::Again(Dropped::NoRoom),
                    }
                }
                Operation::Ping | Operation::Probe => Done::Yes,
                Operation::Close(reason) => Done::Over(DownReason::Closed(reason)),
            };
            match done {
                Done::Yes => {}
                Done::Again(why) => again = Some(why),
                Done::Over(reason) => {
                    self.go_down(now, reason);
                    return Ok(());
                }
            }
        }
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        session.heard_at = now;
        if session.waiting_since.is_some() {
            session.waiting_since = (session.sent.under_way() > 0).then_some(now);
        }
        if session.silent {
            session.silent = false;
            self.events.push_back(Event::Heard);
        }
        if let Some(why) = again {
            return Err(why);
        }
        let before = session.received.largest();
        let out_of_order = session.received.insert(header.number);
        if before.is_none_or(|before| header.number > before) {
            session.ack.largest_at = arrived.unwrap_or(now);
        }
        if asks {
            let ack = &mut session.ack;
            ack.frames += 1;
            ack.now |=
                out_of_order || header.flags & flag::ACK_NOW != 0 || ack.frames >= ACK_FRAMES_MAX;
            ack.at
                .get_or_insert(arrived.unwrap_or(now).min(now).plus(ACK_DELAY));
        }
        Ok(())
    }

    #[inline]
    fn on_write(&mut self, write: &Write<'_>, memory: &mut impl Memory) -> Done {
        let Some(slot) = self.streams.find(write.endpoint) else {
            self.stats.for_closed += 1;
            return Done::Yes;
        };
        let Some(stream) = self.streams.at(slot) else {
            return Done::Yes;
        };
        if stream.life != Life::Open {
            return Done::Again(Dropped::Early);
        }
        if write.rkey != stream.own_rkey {
            self.stats.refused += 1;
            return Done::Yes;
        }
        let end = write.offset + write.payload.len() as u64;
        if end <= stream.edge {
            return Done::Yes;
        }
        if end > stream.head.saturating_add(stream.far.capacity) {
            self.stats.violations += 1;
            return Done::Again(Dropped::NoRoom);
        }
        let offset = write.offset.max(stream.edge);
        if offset > stream.edge {
            if stream.beyond.contains(offset, end) {
                return Done::Yes;
            }
            if !stream.beyond.fits(offset, end, BEYOND_MAX) {
                return Done::Again(Dropped::NoRoom);
            }
        }
        let skip = usize::try_from(offset - write.offset).unwrap_or(usize::MAX);
        let payload = write.payload.get(skip..).unwrap_or(&[]);
        match memory.place(Endpoint(write.endpoint), write.rkey, offset, payload) {
            Ok(()) => {}
            Err(Refusal::Busy) => return Done::Again(Dropped::NoRoom),
            Err(Refusal::Key | Refusal::Range) => {
                self.stats.refused += 1;
                return Done::Yes;
            }
        }
        self.stats.stream_bytes_received += payload.len() as u64;
        if stream.arrived(offset, end) && !stream.tell_arrived {
            stream.tell_arrived = true;
            self.told.push_back(reference(slot, stream));
        }
        Done::Yes
    }

    fn on_consumed(&mut self, consumed: &Consumed) -> Done {
        let Some((slot, stream)) = self.streams.of(Endpoint(consumed.endpoint)) else {
            return self.on_unopened(consumed.endpoint);
        };
        if consumed.rkey != stream.own_rkey {
            self.stats.refused += 1;
            return Done::Yes;
        }
        let before = stream.far_head;
        if !stream.on_consumed(consumed.head) {
            self.stats.violations += 1;
            return Done::Yes;
        }
        if stream.far_head > before {
            update_ready(&mut self.turns, stream);
            if !stream.tell_consumed {
                stream.tell_consumed = true;
                self.told.push_back(reference(slot, stream));
            }
        }
        Done::Yes
    }

    fn on_state(&mut self, update: &StateUpdate) -> Done {
        let Some((slot, stream)) = self.streams.of(Endpoint(update.endpoint)) else {
            return self.on_unopened(update.endpoint);
        };
        if update.rkey != stream.own_rkey {
            self.stats.refused += 1;
            return Done::Yes;
        }
        if update.sequence > stream.far_sequence {
            stream.far_sequence = update.sequence;
            stream.far_state = update.state;
            if !stream.tell_state {
                stream.tell_state = true;
                self.told.push_back(reference(slot, stream));
            }
        }
        Done::Yes
    }

    /// Something for a stream that is not open: it comes again only if the stream is expected.
    fn on_unopened(&mut self, endpoint: u32) -> Done {
        if self.streams.find(endpoint).is_some() {
            return Done::Again(Dropped::Early);
        }
        self.stats.for_closed += 1;
        Done::Yes
    }
}

#[inline]
fn open_sealed(keys: &mut Keys, header: &Header, frame: &mut [u8]) -> Result<usize, Dropped> {
    keys.open(header, frame).map_err(|_| Dropped::Forged)?;
    Ok(frame.len() - TAG_BYTES)
}

#[inline]
fn reference(slot: u32, stream: &Stream) -> StreamRef {
    StreamRef {
        slot,
        generation: stream.generation,
    }
}
